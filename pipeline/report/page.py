"""The page itself: everything gathered from the store, and put into the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from pipeline.comparison import Comparison, compare
from pipeline.compute import Progress
from pipeline.intake import LEFT_OUT, describe_skipped
from pipeline.report.classes import LISTED, ClassTables, class_tables, classify
from pipeline.report.heads import HEAD2TOE, LINEAR, Row, by_fraction, read_rows
from pipeline.report.pictures import fractions_picture, selection_pictures
from pipeline.report.reproduction import Reproduction, reproduce
from pipeline.report.words import (
    about_weights,
    describe_run,
    explain_certificate,
    human_seconds,
    lineage,
    list_stages,
)
from pipeline.selection import Selection
from store.activations import ActivationStore
from store.aliases import split_uri
from store.catalogue import describe_results
from store.objects import join, open_objects
from store.results import read_result
from store.spec import ExtractionSpec


def render_report(
    store: ActivationStore,
    selection: Selection,
    heads: Sequence[str] | None = None,
    seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    reproduction: Reproduction | None = None,
    progress: Progress | None = None,
) -> str:
    """Return the page that shows a run, or what is stored of one.

    Nothing is computed again but what the heads say of the samples that they are judged by.

    Parameters
    ----------
    store : ActivationStore
        The activations.
    selection : Selection
        What was kept.
    heads : sequence of str, optional
        Digests of the heads; those on the selection, and Linear beside them, if not given.
    seconds : mapping of str to float, optional
        Time by stage, of a run that is over now.
    notes : sequence of str
        Sentences the reader must not miss, besides what the store itself says.
    reproduction : Reproduction, optional
        How to make it again; worked out from what is stored if not given.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    str
        HTML; needs no other file and no network, has no script, and forbids both to the browser.
    """
    inputs = read_result(store, "selections", selection.digest).inputs
    results = describe_results(store)
    rows = read_rows(store, selection, heads, results)
    split = judged_by(store, selection)
    main = next((row for row in reversed(rows) if row.method == HEAD2TOE), None)
    linear = _rival(rows, main)
    tables, comparison, fractions = None, None, {}
    if main is not None:
        said = {row.digest: _classify(store, row, split, progress) for row in (main, linear) if row is not None}
        tables, comparison = _compare(store, split, said[main.digest], said.get(linear.digest) if linear else None)
        fractions = by_fraction(store, results, inputs, main, split)
    pictures = selection_pictures(store, selection)
    pictures += fractions_picture(fractions, linear.accuracy[split] if linear else None, split)
    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = human_seconds
    stages = list_stages(store, selection, rows, seconds or {})
    return environment.get_template("report.html").render(
        headline=headline(store, selection, split, main, linear),
        store=store,
        selection=selection,
        split=split,
        others=[name for name in store.splits if name != split],
        unseen=split != selection.split,
        rows=rows,
        main=main,
        linear=linear,
        comparison=comparison,
        warnings=about_weights(str(store.provenance.get("weights") or "")),
        notes=_notes(store, notes),
        run=describe_run(store, selection, inputs, rows),
        pictures=pictures,
        tables=tables,
        listed=LISTED,
        certificate=explain_certificate(selection),
        stages=stages,
        slowest=max((stage.computed or stage.run or 0.0 for stage in stages), default=0.0),
        timed=bool(seconds),
        kept=[(name, n, store.layers[name].n_features) for name, n in selection.per_layer(store).items()],
        lineage=list(lineage(store, selection, rows)),
        reproduction=reproduction or reproduce(store, inputs, selection.digest, rows),
    )


def headline(store: ActivationStore, selection: Selection, split: str, main: Row | None, linear: Row | None) -> str:
    """Return the result in one sentence.

    Parameters
    ----------
    store : ActivationStore
        Names backbone and data.
    selection : Selection
        What was kept.
    split : str
        Of the accuracies.
    main, linear : Row, optional
        Head2Toe, and what it is held against.
    """
    data = str(store.summary["data"] or "imported data")
    if data.startswith(("folder:", ".", "/", "~")):
        # Where the folder lies is told further down; a title is read in a list of pages.
        data = PurePath(data.removeprefix("folder:")).name or data
    where = f"on {data}"
    if store.summary["backbone"] != "imported":
        where += f" with {store.summary['backbone']}"
    if main is None:
        return f"{len(selection.indices):,} of {store.n_features:,} features kept {where}"
    parts = [f"{row.short} {100 * row.accuracy[split]:.1f} %" for row in (main, linear) if row is not None]
    return f"{' against '.join(parts)} {where}"


def judged_by(store: ActivationStore, selection: Selection) -> str:
    """Return the split whose accuracies count: ``test``, or another than the training samples, or these."""
    others = [name for name in store.splits if name != selection.split]
    return next((name for name in ("test", *others) if name in others), selection.split)


def _rival(rows: Sequence[Row], main: Row | None) -> Row | None:
    """Return the Linear head to compare with: one that is trained alike, or the newest."""
    linear = [row for row in rows if row.method == LINEAR]
    alike = [row for row in linear if main is not None and row.trained_like(main)]
    return next(reversed(alike or linear), None)


def _classify(store: ActivationStore, row: Row, split: str, progress: Progress | None) -> NDArray[np.int64]:
    return classify(store, read_result(store, "heads", row.digest), split, progress)


def _compare(
    store: ActivationStore, split: str, said: NDArray[np.int64], linear: NDArray[np.int64] | None
) -> tuple[ClassTables, Comparison | None]:
    truth = store.labels(split)
    tables = class_tables(store.class_names, truth, said, linear)
    return tables, None if linear is None else compare(said == truth, linear == truth)


def _notes(store: ActivationStore, given: Sequence[str]) -> list[str]:
    """Return the notes of a run and those the store knows, each once, without what the page says elsewhere."""
    made: dict[str, Any] = store.provenance
    known = []
    if isinstance(store.spec, ExtractionSpec):
        from pipeline.preprocessing import describe  # which imports timm

        known.append(f"preprocessing is a {describe(store.spec.preprocessing)}.")
    if made.get("data_note"):
        known.append(f"{made['data_note']}.")
    if not any(note.startswith(LEFT_OUT) for note in given):  # which says where they are, as the store does not
        known.append(describe_skipped(made.get("skipped_images") or {}))
    elsewhere = about_weights(str(made.get("weights") or ""))
    return [note for note in dict.fromkeys([*given, *known]) if note and note not in elsewhere]


def report_place(store: ActivationStore, selection: Selection) -> str:
    """Return where the page of a selection lies among the reports of the store's root."""
    return join(_reports(store), _name(store, selection))


def save_report(store: ActivationStore, selection: Selection, page: str) -> str:
    """Put a page where `report_place` says, in place of the one that is there; return where it is.

    Raises
    ------
    InvalidInputError
        If the root is not writable.
    """
    open_objects(_reports(store)).write(_name(store, selection), [page.encode()])
    return report_place(store, selection)


def _reports(store: ActivationStore) -> str:
    return join(split_uri(store.uri)[0] or store.uri, "reports")


def _name(store: ActivationStore, selection: Selection) -> str:
    return f"{store.fingerprint}-{selection.digest}.html"
