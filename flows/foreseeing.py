"""What the commands that compute would do: shown by ``--dry-run``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import typer

from flows.config import Head2ToeConfig
from flows.console import forecast_lines, human_bytes, print_json, say_notes
from pipeline.compute import Progress
from pipeline.extraction import foresee
from pipeline.forecast import Forecast
from pipeline.foreseeing import HeadForecast, SelectionForecast, foresee_refit, foresee_selection
from pipeline.memory import parse_memory
from store import open_store


@dataclass(frozen=True)
class RunForecast:
    """What a run of the flow `head2toe` would do.

    Attributes
    ----------
    extraction : Forecast
        Of the store.
    keep : int
        Features that the selection keeps.
    selection : SelectionForecast or None
        None before the extraction, on whose store it depends.
    heads : dict of str to HeadForecast
        By method; empty before the extraction.
    """

    extraction: Forecast
    keep: int
    selection: SelectionForecast | None
    heads: dict[str, HeadForecast]


def foresee_run(config: Head2ToeConfig, progress: Progress | None = None) -> RunForecast:
    """Return what a run would do, without Prefect; nothing is written.

    Raises
    ------
    InvalidInputError
        If anything cannot be used as given, or the disk cannot hold the store.
    """
    parse_memory(config.memory)
    extraction = foresee(config.extraction, config.root, progress)
    keep = config.selection.count(extraction.features)
    if extraction.left or extraction.left_to_others:
        return RunForecast(extraction, keep, None, {})
    store = open_store(extraction.uri)
    selection = foresee_selection(store, config.selection, memory=config.memory)
    common: dict[str, Any] = {"normalization": config.selection.normalization, "parameters": config.refit}
    embedding = store.embedding
    heads = {
        "Linear (last embedding)": foresee_refit(
            store,
            store.layer(embedding).n_features,
            features={"layer": embedding},
            train=config.selection.split,
            **common,
        ),
        "Head2Toe": foresee_refit(
            store, keep, features={"selection": selection.selection}, train=config.selection.split, **common
        ),
    }
    return RunForecast(extraction, keep, selection, heads)


def show_run(found: RunForecast, as_json: bool) -> None:
    """Print what a run would do on standard output."""
    say_notes(found.extraction.notes)
    if as_json:
        print_json(asdict(found))
        return
    lines = forecast_lines(found.extraction)
    if found.selection is None:
        lines.append(
            f"then: a selection of {found.keep:,} of {found.extraction.features:,} features, two heads, a report"
        )
    else:
        lines += [_selection(found.selection), *(_head(head, name) for name, head in found.heads.items())]
        lines.append("report: to be written again")
    typer.echo("\n".join(lines))


def show_selection(found: SelectionForecast, as_json: bool) -> None:
    """Print what a selection would do on standard output."""
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(_selection(found))


def show_head(found: HeadForecast, as_json: bool) -> None:
    """Print what a refit would do on standard output."""
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(_head(found))


def _selection(found: SelectionForecast) -> str:
    what = f"selection: {found.selection}, {found.keep:,} of {found.of:,} features by {found.scorer}"
    if found.there:
        return f"{what}, there already"
    if found.ranked:
        return f"{what}, from a ranking that is there"
    return f"{what}, to be computed; a pass reads {human_bytes(found.bytes_per_pass)}"


def _head(found: HeadForecast, name: str | None = None) -> str:
    on = f" of selection {found.selection}" if found.selection and not name else ""
    what = f"head: {found.head}{f', {name}' if name else ''}, on {found.features:,} features{on}"
    return f"{what}, there already" if found.there else f"{what}, to be trained; reads {human_bytes(found.bytes_read)}"
