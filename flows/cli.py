"""The command `head2toe`. Stage commands call the stages directly; only runs and deployments use Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from flows import (
    catalogue_commands,
    deployment_commands,
    evaluation_commands,
    extraction_commands,
    logs,
    prediction_commands,
    selection_commands,
)
from flows.catalogue_commands import Json
from flows.console import extraction_sentence, print_facts, print_json, print_table, say
from flows.redaction import redact
from flows.stopping import command_line, listen, stopped_by
from store.errors import Head2ToeError, InterruptedExtractionError

if TYPE_CHECKING:
    from flows.config import Head2ToeConfig
    from flows.head2toe import RunSummary

MISTAKE = 2
"""Exit code for what the user can mend."""


class _Commands(TyperGroup):
    """Turns a user's mistake into one sentence on standard error and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            from flows.reading import explain

            _fail(f"{explain(error)}")
        except InterruptedExtractionError as error:
            _stop(str(error))
        except Head2ToeError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _stop("stopped; what was finished is kept.")


def _fail(sentence: str) -> NoReturn:
    say(f"error: {redact(sentence)}")
    raise typer.Exit(MISTAKE)


def _stop(sentence: str) -> NoReturn:
    say(f"{redact(sentence)}\nTo go on, run:\n  {command_line()}")
    raise typer.Exit(128 + stopped_by())


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adapt a frozen vision backbone to many tasks: extract every layer once, select features, refit a head.",
)


@app.callback()
def _common(
    context: typer.Context,
    log_level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="Logs on standard error from this level on: debug, info, warning, error or critical; default "
            "HEAD2TOE_LOG_LEVEL, or warning.",
        ),
    ] = None,
) -> None:
    logs.configure(log_level)
    # Arguments may hold secrets, so the command is logged by its name alone.
    context.with_resource(logs.bound(command=context.invoked_subcommand, run=logs.new_run()))
    context.with_resource(logs.stage(str(context.invoked_subcommand)))


@app.command()
def demo(
    root: Annotated[str, typer.Option(help="Where stores and reports go.")] = "demo",
    weights: Annotated[
        str, typer.Option(help="'shipped', 'random:SEED', 'pretrained' (needs a network), or a file.")
    ] = "shipped",
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on scikit-learn's handwritten digits; a second run extracts nothing.

    Example: head2toe demo --root demo
    """
    from flows.demo import demo_config

    _run(demo_config(root, weights), as_json)


@app.command()
def run(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Parameters of the run; see configs/demo.yaml.")
    ],
    as_json: Json = False,
) -> None:
    """Run the whole pipeline as a Prefect flow.

    Example: head2toe run configs/demo.yaml
    """
    from flows.config import load_config

    _run(load_config(config), as_json)


def _run(config: Head2ToeConfig, as_json: bool) -> None:
    from flows.runtime import run_flow

    summary = run_flow(config)
    for note in summary.notes:
        if note not in summary.announced:
            say(f"note: {note}")
    say(extraction_sentence(summary.extracted, summary.reused, summary.seconds_saved))
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    _print_summary(summary)


def _print_summary(summary: RunSummary) -> None:
    print_table(
        None,
        ("method", "features", "test accuracy", "seconds"),
        [
            (r.method, f"{r.features:,}", f"{100 * r.accuracy['test']:.1f} %", f"{r.seconds:.1f}")
            for r in summary.results
        ],
    )
    print_facts({"store": summary.store, "selection": summary.selection, "report": summary.report})


for commands in (
    extraction_commands,
    selection_commands,
    prediction_commands,
    evaluation_commands,
    deployment_commands,
    catalogue_commands,
):
    commands.register(app)


def main() -> None:
    """Run the command line; SIGTERM stops it as Ctrl-C does, and the exit code tells them apart, as is the custom."""
    listen()
    app()
