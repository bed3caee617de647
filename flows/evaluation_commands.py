"""The command that compares methods on many tasks: `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.completion import complete_config
from flows.console import (
    MISTAKE,
    ProgressBars,
    counted,
    human_bytes,
    human_seconds,
    insist,
    print_json,
    print_table,
    say,
)
from flows.options import DryRun, Json
from store.errors import InvalidInputError

if TYPE_CHECKING:
    from pipeline.comparison import Comparison
    from pipeline.evaluation import EvaluationConfig, Foreseen, Results
    from pipeline.evaluation.results import Summary

EXAMPLE = "configs/offline.yaml"


def evaluate(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml",
            help=f"Tasks, backbone and methods; see {EXAMPLE}.",
            autocompletion=complete_config,
        ),
    ],
    root: Annotated[str | None, typer.Option(help="Folder or URL under which stores and results lie.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder that holds those of the VTAB-1k tasks.")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Only these tasks.")] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Only these methods, as the file names them.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes, each on a task of its own.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file; repeatable.")
    ] = None,
    dry_run: DryRun = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write results.json and results.csv there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods on many tasks: folds choose each method's settings, the test samples are asked once.

    Everything is kept in the stores: the same command goes on where it stopped, and reads what is there. A task or a
    method that fails does not stop the others; the exit code is then 2.

    For example:
      head2toe evaluate configs/offline.yaml --tasks digits,position --jobs 2
      head2toe evaluate configs/offline.yaml --set protocol.folds=3 --dry-run
    """
    from pipeline.evaluation import evaluate as run
    from pipeline.evaluation import foresee_tasks

    places = {"root": root, "data_root": data_root, "jobs": jobs}
    given = [f"{key}={json.dumps(value)}" for key, value in places.items() if value is not None]
    chosen = _load(config, [*given, *(changes or ())]).only(_names(tasks), _names(methods))
    if dry_run:
        with ProgressBars() as progress:
            foreseen = foresee_tasks(chosen, progress)
        _show_plan(chosen, foreseen, as_json)
        _end([f"{one.task}: {one.error}" for one in foreseen if one.error])
        return
    if output is not None:
        _make(output)
    with ProgressBars() as progress:
        results = run(chosen, say, progress)
    if output is not None:
        (output / "results.json").write_text(json.dumps(results.document(), indent=2) + "\n", encoding="utf-8")
        (output / "results.csv").write_text(results.table(), encoding="utf-8")
    found = [o.evaluation for result in results.tasks for o in result.outcomes if o.evaluation is not None]
    reused = sum(evaluation.reused for evaluation in found)
    extracted = sum(result.extracted for result in results.tasks)
    say(f"{len(found)} results, {reused} of which were there already; {extracted:,} samples extracted.")
    if as_json:
        print_json(results.document())
    else:
        _show(results)
    _end(results.errors)


def _load(path: Path, changes: list[str]) -> EvaluationConfig:
    from pydantic import ValidationError

    from flows.reading import explain, read_model
    from pipeline.evaluation import METHODS, EvaluationConfig

    config = read_model(path, EvaluationConfig, EXAMPLE, changes)
    for name, parameters in config.methods.items():
        try:
            for task in config.all_tasks:
                METHODS[parameters.method].count_settings(parameters.options, config.extraction_of(task))
        except ValidationError as error:
            raise InvalidInputError(f"configuration {str(path)!r}: methods.{name}.{explain(error)}") from error
        except InvalidInputError as error:
            raise InvalidInputError(f"configuration {str(path)!r}: methods.{name}: {error}") from error
    return config


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot write to {str(folder)!r}: {error.strerror}; choose another folder.") from error


def _end(errors: list[str]) -> None:
    """End with the exit code of a mistake, if there are any, after saying each again where it is not lost."""
    for error in errors:
        insist(f"error: {error}")
    if errors:
        raise typer.Exit(MISTAKE)


def _show_plan(config: EvaluationConfig, foreseen: list[Foreseen], as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print_json([asdict(one) for one in foreseen])
        return
    rows = []
    for one in foreseen:
        forecast = one.forecast
        if forecast is None:
            rows.append((one.task, "–", "–", *("–" for _ in config.methods)))
            continue
        time = "" if forecast.seconds is None else f", {human_seconds(forecast.seconds)}"
        left = f"{forecast.left:,} to extract{time}" if forecast.left else "there"
        cells = [" / ".join(one.plans.get(name, ())) or f"{_count(one.fits[name])} fits" for name in config.methods]
        rows.append((one.task, left, human_bytes(forecast.bytes_total), *cells))
    print_table(None, ("task", "samples", "store", *config.methods), rows)
    fits = [one.fits[name] for one in foreseen for name in config.methods]
    n_bytes = sum(one.forecast.bytes_left for one in foreseen if one.forecast is not None)
    say(
        f"{counted(len(foreseen), 'task')} × {counted(len(config.methods), 'method')} × "
        f"{counted(len(config.seeds), 'seed')} on {counted(config.protocol.folds, 'fold')}: "
        f"{sum(n or 0 for n in fits):,} fits{'' if None not in fits else ' and more'}, "
        f"and {len(fits) * len(config.seeds):,} final ones; {human_bytes(n_bytes)} to be written."
    )


def _count(fits: int | None) -> str:
    return "?" if fits is None else f"{fits:,}"


def _show(results: Results) -> None:
    methods = list(results.config.methods)
    rows = [(r.task.name, r.task.group, *(_percent(results.accuracy(r, m)) for m in methods)) for r in results.tasks]
    if len(results.tasks) > 1:
        rows.append(("mean over tasks", "", *(_percent(results.mean(m)) for m in methods)))
    if len(results.groups()) > 1:
        rows.append(("mean of group means", "", *(_percent(results.mean_of_groups(m)) for m in methods)))
    print_table("test accuracy, %", ("task", "group", *methods), rows)
    if not results.others:
        return
    typer.echo()
    cells = [
        (r.task.name, *(_compared(results.comparison(r, other)) for other in results.others)) for r in results.tasks
    ]
    if len(results.tasks) > 1:
        cells.append(("all test samples", *(_compared(results.comparison(None, other)) for other in results.others)))
    title = f"{results.reference} less the other, points, with its 95 % interval and McNemar's p"
    print_table(title, ("task", *results.others), cells)


def _percent(found: Summary | None) -> str:
    if found is None:
        return "–"
    spread = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    return f"{100 * found.mean:.1f}{spread}"


def _compared(found: Comparison | None) -> str:
    if found is None:
        return "–"
    difference, low, high = (100 * value for value in (found.difference, found.low, found.high))
    p = f"p = {found.p_value:.3f}" if found.p_value >= 0.001 else "p < 0.001"
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}] {p}"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(evaluate)
