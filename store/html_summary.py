"""What a notebook shows of a store: backbone, data, layers, results and state, as a small piece of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from store.aliases import list_names
from store.catalogue import MALFORMED, RESULT_KINDS, describe_results
from store.units import human_bytes as human_bytes

if TYPE_CHECKING:
    from store.activations import ActivationStore

LISTED = 40
"""Results that are described one by one; of more, which a remote store takes long to read, only the numbers."""
NAMED = 5
"""Classes whose names are shown."""
SHORT = 8
"""Digits of a digest."""


class ResultRow(NamedTuple):
    """A result in words: its kind, the beginning of its digest, what it is, and its accuracy if it has one."""

    kind: str
    name: str
    what: str
    accuracy: str


def html_summary(store: ActivationStore) -> str:
    """Return what a store is as HTML that needs no style sheet, script or network; every text of it is escaped.

    Parameters
    ----------
    store : ActivationStore
        May be incomplete. Only metadata is read: which blocks are committed, and the results as they are now.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("store"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    widest = max(layer.n_features for layer in store.layers.values())
    n_samples = sum(split.n_samples for split in store.splits.values())
    layers = [
        {
            "name": layer.name,
            "features": f"{layer.n_features:,}",
            "size": human_bytes(layer.n_features * n_samples * store.dtype.itemsize),
            "width": f"{100 * layer.n_features / widest:.1f}",
        }
        for layer in store.layers.values()
    ]
    counts = {kind: len(list_names(store.objects, f"results/{kind}")) for kind in RESULT_KINDS}
    few = sum(n for kind, n in counts.items() if kind != "points") <= LISTED
    there = ", ".join(_counted(n, kind) for kind, n in counts.items() if n)
    return environment.get_template("store.html").render(
        facts=_facts(store),
        layers=layers,
        counted=f"results: {there or 'none yet'}",
        results=_rows(store) if few else (),
        lister=f"head2toe show {store.uri}" if there else "",
    )


def _facts(store: ActivationStore) -> dict[str, str]:
    s = store.summary
    names = ", ".join(store.class_names[:NAMED]) + (", …" if len(store.class_names) > NAMED else "")
    facts = {
        "backbone": f"{s['backbone']}, weights {s['weights']}" if s["weights"] else s["backbone"],
        "data": f"{s['data'] or 'unnamed'}, {_counted(s['classes'], 'classes')}: {names}",
        "samples": ", ".join(f"{name} {n:,}" for name, n in s["splits"].items()),
        "activations": f"{s['features']:,} features, {s['dtype']}, {human_bytes(s['bytes'])}",
        "place": s["uri"],
        "fingerprint": s["fingerprint"],
        "created": s["created"],
    }
    missing = store.missing()
    if not missing:
        return {**facts, "state": "complete"}
    what = store.describe_blocks(missing)
    return {**facts, "state": f"incomplete, blocks missing in {what}; the same extraction again writes only these"}


def _rows(store: ActivationStore) -> list[ResultRow]:
    found = [(kind, result) for kind, results in describe_results(store).items() for result in results]
    splits = list(store.splits)
    return [_row(kind.removesuffix("s") if kind != "statistics" else kind, result, splits) for kind, result in found]


def _row(kind: str, result: Mapping[str, Any], splits: Sequence[str]) -> ResultRow:
    name = str(result["digest"])[:SHORT]
    try:
        return ResultRow(kind, name, *_words(kind, result["inputs"], result["facts"], splits))
    except MALFORMED:  # the document could not be read, which `describe_results` tells, or lacks what it should have
        return ResultRow(kind, name, "damaged; `head2toe verify` says how", "")


def _words(kind: str, inputs: Mapping[str, Any], facts: Mapping[str, Any], splits: Sequence[str]) -> tuple[str, str]:
    """Return what a result is, and its accuracy."""
    if kind == "statistics":
        return f"split {inputs['split']}, {facts['constant_features']:,} constant features", ""
    if kind == "selection":
        chosen = {**inputs["ranking"], **inputs}
        return f"{inputs['keep']:,} features by {chosen['scorer']}, {chosen['normalization']}", ""
    if kind == "head":
        digests = ("selection", "store")
        on = (f"{what} {str(of)[:SHORT] if what in digests else of}" for what, of in inputs["features"].items())
        measured = {split: facts["accuracy"][split] for split in splits}
        return f"on {', '.join(on)}, {inputs['normalization']}", _percent(measured)
    accuracy = {"validation": facts["validation_accuracy"], "test": facts["accuracy"]}
    return f"{inputs['method']}, {inputs['folds']} folds", _percent(accuracy)


def _percent(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{split} {100 * value:.1f} %" for split, value in accuracy.items())


def _counted(number: int, things: str) -> str:
    one = {"classes": "class"}.get(things, things if things == "statistics" else things.removesuffix("s"))
    return f"{number:,} {one if number == 1 else things}"
