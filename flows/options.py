"""Options and arguments that several commands share, and the commands' help."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.models import CommandFunctionType

from flows.completion import complete_store

EXAMPLES = "For example:"
"""How the paragraph of a docstring begins whose lines are examples."""


class DType(StrEnum):
    """Choices of ``--dtype``."""

    float16 = "float16"
    float32 = "float32"


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="Path or URL of an activation store, ROOT/ALIAS, or ROOT/beginning of its fingerprint.",
        autocompletion=complete_store,
    ),
]
RootArgument = Annotated[str, typer.Argument(metavar="ROOT", help="Folder or URL under which stores lie.")]


class Command(TyperCommand):
    """Shows options under the headings that ``rich_help_panel`` names, and examples line by line."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        # A backspace tells the formatter to leave the lines of a paragraph as they are.
        super().__init__(*args, help=(help or "").replace(f"\n\n{EXAMPLES}", f"\n\n\b\n{EXAMPLES}"), **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; what is wrong with a value is said without the library that found it."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return as much of the first sentence as fits, whole clauses if there are."""
        text = " ".join((self.help or "").partition("\n\n")[0].split()).rstrip(".")
        for marks in (";:", ","):
            while len(text) > limit and (cut := max(text.rfind(f"{mark} ") for mark in marks)) > 0:
                text = text[:cut]
        return text if len(text) <= limit else super().get_short_help_str(limit)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = f"{parameter.param_type_name}s".capitalize()
                heading = getattr(parameter, "rich_help_panel", None) or usual
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Application(typer.Typer):
    """Typer whose commands are of the class `Command`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Return the decorator that adds a command."""
        return super().command(name, **{"cls": Command, **settings})
