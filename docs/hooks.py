"""What the site needs besides its pages: formulas as MathML, and the page of all commands, made when it is built."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import typer
from latex2mathml.converter import convert

from flows.cli import app

COMMANDS = "<!-- every command -->"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
TAG = re.compile(r"\\tag\{(.*?)\}")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put every command of the application in the place of the mark."""
    return markdown.replace(COMMANDS, "\n".join(_describe_commands())) if COMMANDS in markdown else markdown


def on_page_content(html_text: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw without a script."""
    return FORMULA.sub(_formula, html_text)


def _formula(found: re.Match[str]) -> str:
    latex = html.unescape(found[2])
    number = TAG.search(latex)
    drawn = convert(TAG.sub("", latex), display="inline" if found[1] == "span" else "block")
    return f'<div class="equation">{drawn}<span>({number[1]})</span></div>' if number else drawn


def _describe_commands() -> Iterator[str]:
    """Yield a section per command: its help, and its parameters as a table."""
    group = typer.main.get_command(app)
    context = group.context_class(group, info_name="head2toe")
    yield from _describe("head2toe", group, context)
    for name in sorted(group.commands):
        command = group.commands[name]
        yield from _describe(f"head2toe {name}", command, group.context_class(command, info_name=name, parent=context))


def _describe(title: str, command: Any, context: Any) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield f"```text\n{' '.join([title, *command.collect_usage_pieces(context)])}\n```\n"
    for paragraph in (command.help or "").replace("\b\n", "\b").split("\n\n"):
        lines = paragraph.strip("\b\n").splitlines()
        yield f"```text\n{_lines(lines)}\n```\n" if lines[0].startswith("For example") else " ".join(lines) + "\n"
    yield "| | |\n|---|---|"
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            name, explained = (" ".join(part.split()).replace("|", r"\|") for part in record)
            yield f"| `{name}` | {html.escape(explained, quote=False)} |"


def _lines(lines: list[str]) -> str:
    return "\n".join(line.strip() for line in lines if not line.startswith("For example"))
