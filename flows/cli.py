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
    maintenance_commands,
    prediction_commands,
    report_commands,
    selection_commands,
    setup_commands,
)
from flows.completion import complete_config, complete_weights
from flows.console import (
    MISTAKE,
    ProgressBars,
    extraction_sentence,
    insist,
    print_facts,
    print_json,
    print_table,
    quiet,
    say,
    say_notes,
)
from flows.options import Application, DryRun, Json
from flows.redaction import redact
from flows.stopping import command_line, listen, stopped_by
from store.errors import Head2ToeError, InterruptedExtractionError

if TYPE_CHECKING:
    from flows.config import Head2ToeConfig
    from flows.head2toe import RunSummary

EXIT_CODES = {
    0: "done",
    1: "a fault of this program, with a traceback to report; or whoever read its output has gone",
    MISTAKE: "something you can mend, said on standard error; or damage, or a problem, that was looked for",
    130: "stopped by Ctrl-C; what was finished is kept",
    143: "stopped by SIGTERM; what was finished is kept",
}
"""What every exit code means."""


class _Commands(TyperGroup):
    """Turns a user's mistake into one sentence on standard error and exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # People type these where they are when they think of them: before the command's name and after it.
        anywhere = [parameter for parameter in self.params if parameter.name == "quiet"]
        for command in self.commands.values():
            command.params += anywhere

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
    insist(f"error: {redact(sentence)}")
    raise typer.Exit(MISTAKE)


def _stop(sentence: str) -> NoReturn:
    insist(f"{redact(sentence)}\nTo go on, run:\n  {command_line()}")
    raise typer.Exit(128 + stopped_by())


def _hush(context: typer.Context, value: bool) -> None:
    if value:
        context.find_root().with_resource(quiet())


app = Application(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Adapt a frozen vision backbone to many tasks: extract every layer once, select features, refit a head.

Results go to standard output, progress and messages to standard error. Every command explains itself with --help.

\b
For example:
  head2toe doctor
  head2toe demo
  head2toe init run.yaml --data photos --backbone resnet50.a1_in1k
""",
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES.items()),
)


@app.callback()
def _common(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            expose_value=False,
            callback=_hush,
            help="No progress and no notes: results and errors only. HEAD2TOE_QUIET=1 does the same.",
        ),
    ] = False,
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
        str,
        typer.Option(
            help="'shipped', 'random:SEED', 'pretrained' (needs a network), or a file.", autocompletion=complete_weights
        ),
    ] = "shipped",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on scikit-learn's handwritten digits; a second run extracts nothing.

    For example:
      head2toe demo
      head2toe demo --root elsewhere --dry-run
    """
    from flows.demo import demo_config

    _run(demo_config(root, weights), dry_run, as_json)


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml",
            help="Parameters of the run; `head2toe init` writes them, with what they mean.",
            autocompletion=complete_config,
        ),
    ],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline as a Prefect flow.

    For example:
      head2toe run configs/demo.yaml
      head2toe run configs/demo.yaml --dry-run
    """
    from flows.config import load_config

    _run(load_config(config), dry_run, as_json)


def _run(config: Head2ToeConfig, dry_run: bool, as_json: bool) -> None:
    if dry_run:
        from flows.foreseeing import foresee_run, show_run

        with ProgressBars() as progress:
            found = foresee_run(config, progress)
        show_run(found, as_json)
        return
    from flows.runtime import run_flow

    summary = run_flow(config)
    say_notes(note for note in summary.notes if note not in summary.announced)
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
    setup_commands,
    extraction_commands,
    selection_commands,
    prediction_commands,
    report_commands,
    evaluation_commands,
    catalogue_commands,
    maintenance_commands,
    deployment_commands,
):
    commands.register(app)


def main() -> None:
    """Run the command line; SIGTERM stops it as Ctrl-C does, and the exit code tells them apart, as is the custom."""
    listen()
    app()
