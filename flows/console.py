"""What a person sees in the terminal: progress and messages on standard error, results on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from store.units import human_bytes as human_bytes

if TYPE_CHECKING:
    from pipeline.forecast import Forecast

messages = Console(stderr=True, highlight=False)
PIPED_WIDTH = 200
"""Width of tables that go into a file or a pipe, where nothing says how wide a line may be."""
MISTAKE = 2
"""Exit code for what the user can mend."""
QUIET = "HEAD2TOE_QUIET"
"""Variable that says what ``--quiet`` says, also to the processes that a command starts."""

STATES = {
    "ok": "green",
    "complete": "green",
    "warning": "yellow",
    "incomplete": "yellow",
    "problem": "bold red",
    "damaged": "bold red",
}
"""Colours, on a terminal, of cells that say how something is."""


def is_quiet() -> bool:
    """Return whether progress and notes are unwanted."""
    return os.environ.get(QUIET, "0") not in {"", "0"}


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out progress and notes, here and in processes started meanwhile."""
    before = os.environ.get(QUIET)
    os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[QUIET]
        else:
            os.environ[QUIET] = before


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the speed, such as ``41.2/s``."""
        return Text(f"{task.finished_speed or task.speed or 0:,.1f}/s", style="progress.data.speed")


class ProgressBars:
    """Progress of long work, a bar per stage with rate and time left; a line per finished stage without a terminal.

    Use as a context and pass it where a progress callback is wanted.
    """

    def __init__(self) -> None:
        self._quiet = is_quiet()
        self._live = messages.is_terminal and not self._quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=messages,
            disable=not self._live,
        )
        self._stages: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are finished; what follows a ``·`` in its name may change."""
        text, stage = stage, stage.partition(" · ")[0]
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._stages[stage], completed=done, total=total, description=text)
        if done == total and not self._live and not self._quiet:
            messages.print(f"{stage}: {done:,} of {total:,}")
        if done == total:
            # A stage of the same name that comes later gets a bar of its own.
            del self._stages[stage]


def say(text: str) -> None:
    """Print a message for the user on standard error, unless it is unwanted."""
    if not is_quiet():
        insist(text)


def insist(text: str) -> None:
    """Print on standard error what nobody may miss, such as an error."""
    line = Text(text)
    line.highlight_regex(r"^(error|problem):", "bold red")
    line.highlight_regex(r"^(note|warning):", "yellow")
    messages.print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a machine-readable result on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output; columns after the first are right-aligned if their cells begin with a digit."""
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", show_header=any(columns)
    )
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(row[number][:1].isdigit() or row[number] in {"", "–"} for row in rows)
        table.add_column(column, justify="right" if numeric and number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, STATES.get(cell, "")) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
        with console.capture() as captured:
            console.print(table)
        # The padding of the last column is of no use to who reads the file or searches it.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().split("\n")[:-1]))
        return
    console.print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, one per line, on standard output."""
    print_table(None, ("", ""), [(key, _plain(value)) for key, value in facts.items()])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def counted(number: int, thing: str) -> str:
    """Return a number of things, such as ``3 blocks``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def human_seconds(seconds: float) -> str:
    """Return a time such as ``2 h 5 min``, of two units at most."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def extraction_sentence(extracted: int, reused: int, seconds_saved: float, left_to_others: int = 0) -> str:
    """Say how many samples an extraction forwarded, what the others saved, and what other shards have to do."""
    others = f" {left_to_others:,} samples of other shards are still missing." if left_to_others else ""
    if not reused:
        return f"extracted {extracted:,} samples.{others}"
    return (
        f"extracted {extracted:,} samples; {reused:,} were in the store already, which saved {seconds_saved:.1f} s."
        f"{others}"
    )


def say_forecast(forecast: Forecast) -> None:
    """Say what an extraction will take, on standard error."""
    for line in forecast_lines(forecast):
        say(line)
    say_notes(forecast.notes)


def say_notes(notes: Iterable[str]) -> None:
    """Say what a reader of the results must know, on standard error."""
    for note in notes:
        say(f"note: {note}")


def forecast_lines(forecast: Forecast) -> list[str]:
    """Return what an extraction will take, in lines for people."""
    samples = ", ".join(f"{name} {n:,}" for name, n in forecast.samples.items())
    free = "" if forecast.bytes_free is None else f"; {human_bytes(forecast.bytes_free)} free at the root"
    work = f"{forecast.left:,} samples to extract, {forecast.reused:,} there already"
    if forecast.left_to_others:
        work += f", {forecast.left_to_others:,} left to other shards"
    if forecast.seconds is not None:
        work += f"; about {human_seconds(forecast.seconds)}, estimated from one batch"
    return [
        f"store: {forecast.uri}",
        f"samples: {samples}; layers: {forecast.layers:,}; features: {forecast.features:,}",
        f"size: {human_bytes(forecast.bytes_total)}, of which {human_bytes(forecast.bytes_left)} to be written{free}",
        f"work: {work}",
    ]
