"""Commands that help to begin: `init` and `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.completion import complete_backbone, complete_data, complete_weights
from flows.console import MISTAKE, ProgressBars, counted, insist, print_json, print_table, say
from flows.options import DryRun, Json
from flows.outputs import check_folder
from store.errors import InvalidInputError


def init(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="FILE.yaml", help="Where it goes; run.yaml or evaluation.yaml if not given."),
    ] = None,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="For `head2toe evaluate` instead of `head2toe run`.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Folder or name of your images; looked at.", autocompletion=complete_data)
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="timm model name; looked up.", autocompletion=complete_backbone)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="As `head2toe extract` has it; 'shipped' or else 'pretrained' if not given.",
            autocompletion=complete_weights,
        ),
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder or URL under which stores and reports shall lie.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the file's JSON schema, for editors, and write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a configuration file with every key, what it means and its default, ready to run.

    For example:
      head2toe init
      head2toe init pets.yaml --data photos/pets --backbone resnet50.a1_in1k
      head2toe init --evaluation --schema
    """
    from flows.init import write_config
    from flows.schema import Kind, text_of

    kind = Kind.evaluation if evaluation else Kind.run
    if schema:
        typer.echo(text_of(kind), nl=False)
        return
    path = path or Path(f"{kind}.yaml")
    if not force and path.exists():
        raise InvalidInputError(f"{str(path)!r} is there already; give --force to replace it, or another name.")
    check_folder(path)
    command = f"head2toe {'evaluate' if evaluation else 'run'} {path}"
    text = write_config(kind, command, _given(evaluation, data, backbone, weights, root))
    if not dry_run:
        try:
            with path.open("w" if force else "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
    if as_json:
        print_json({"path": str(path), "kind": kind, "written": not dry_run, "next": f"{command} --dry-run"})
    elif dry_run:
        typer.echo(text, nl=False)
    else:
        typer.echo(str(path))
        say(f"wrote a configuration; `{command} --dry-run` says what it would do.")


def _given(
    evaluation: bool, data: str | None, backbone: str | None, weights: str | None, root: str | None
) -> dict[str, Any]:
    """Return values by dotted key, after a look at what they name."""
    given: dict[str, Any] = {} if root is None else {"root": root}
    if backbone is not None:
        from pipeline.backbones import model_structure
        from pipeline.weights import shipped_backbones

        model_structure(backbone)
        weights = weights or ("shipped" if backbone in shipped_backbones() else "pretrained")
        given["extraction.backbone"] = backbone
    if weights is not None:
        given["extraction.weights"] = weights
    if data is not None:
        from pipeline.datasets import load_data

        load_data(data)
        task = {"name": Path(data).name, "data": data}
        given |= {"suite": None, "tasks": [task]} if evaluation else {"extraction.data": data}
    return given


def doctor(
    root: Annotated[str, typer.Option(help="Folder or URL under which stores shall lie.")] = ".",
    dask_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that shall be used.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the installation, the machine, the root and the servers; exit code 2 if there is a problem.

    Nothing stays of what it writes to try the root, and no server is started.

    For example:
      head2toe doctor
      head2toe doctor --root s3://bucket/stores --dask-address tcp://host:8786
    """
    from flows.doctor import Finding, State, checks, examine

    found: list[Finding] = []
    todo = checks(root, dask_address)
    with ProgressBars() as progress:
        for number, (name, check) in enumerate(todo.items(), start=1):
            found += examine(check, name)
            progress(f"checking · {name}", number, len(todo))
    problems = sum(finding.state is State.problem for finding in found)
    if as_json:
        print_json({"problems": problems, "checks": [asdict(finding) for finding in found]})
    else:
        print_table(None, ("check", "state", "found", "next step"), [tuple(asdict(f).values()) for f in found])
    if problems:
        insist(f"error: {counted(problems, 'problem')} found; the last column says what to do.")
        raise typer.Exit(MISTAKE)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (init, doctor):
        app.command()(command)
