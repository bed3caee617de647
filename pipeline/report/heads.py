"""The heads that a report compares: those on the selection, and Linear beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.newest import newest_selection
from pipeline.selection import Selection
from store.activations import ActivationStore
from store.catalogue import describe_results
from store.errors import InvalidInputError, StoreNotFoundError, suggest
from store.results import Kind

Results = Mapping[Kind, Sequence[Mapping[str, Any]]]
HEAD2TOE, LINEAR = "Head2Toe", "Linear (last embedding)"


@dataclass(frozen=True)
class Row:
    """A head in the table of results.

    Attributes
    ----------
    method : str
        ``Head2Toe``, or what else the head reads.
    digest : str
        The head.
    features : int
        How many features it reads.
    accuracy : dict of str to float
        Share of samples classified right, by split.
    seconds : float
        What computing it took, the selection's time included.
    refit : str
        How it was trained, in words.
    inputs, facts : dict
        As stored.
    """

    method: str
    digest: str
    features: int
    accuracy: dict[str, float]
    seconds: float
    refit: str
    inputs: dict[str, Any]
    facts: dict[str, Any]

    @property
    def short(self) -> str:
        """Name of the method in a sentence."""
        return self.method.partition(" (")[0]

    def trained_like(self, other: Row) -> bool:
        """Return whether both heads differ in their features alone."""
        return all(self.inputs[name] == other.inputs[name] for name in ("normalization", "parameters", "train"))


def check_selection(store: ActivationStore, name: str) -> None:
    """Refuse a selection that is not there, or was made on joined stores.

    Raises
    ------
    StoreNotFoundError
        If there is none of this digest, or beginning of it.
    InvalidInputError
        If it was made on several stores, of which a report shows one.
    """
    there = _whole(describe_results(store)["selections"])
    if not there:
        newest_selection(store)
    found = [row for row in there if row["digest"].startswith(name)] if name else []
    if not found:
        hint = suggest(name, [row["digest"] for row in there])
        raise StoreNotFoundError(f"selection {name!r} does not exist in store {store.uri!r}; {hint}")
    joined = found[0]["inputs"].get("joined")
    if joined:
        raise InvalidInputError(
            f"selection {found[0]['digest']} was made on the joined stores {', '.join(joined)}, but a report shows one "
            f"store; `head2toe show {store.uri}` lists the others."
        )


def read_rows(
    store: ActivationStore,
    selection: Selection,
    digests: Sequence[str] | None = None,
    results: Results | None = None,
) -> list[Row]:
    """Return the heads to compare, Linear first and then those on the selection, oldest first.

    Parameters
    ----------
    store : ActivationStore
        Where they lie.
    selection : Selection
        What the heads read.
    digests : sequence of str, optional
        The heads; if not given, all on this selection, and the Linear heads that are trained as one of them, or the
        newest one.
    results : mapping, optional
        What `describe_results` says of the store, if that is known.
    """
    heads = _whole((results or describe_results(store))["heads"])
    if digests is not None:
        rows = {row["digest"]: _row(store, selection, row) for row in heads if row["digest"] in digests}
        return [rows[digest] for digest in digests]
    trained = [_row(store, selection, row) for row in heads if row["inputs"]["train"] == selection.split]
    ours = [row for row in trained if row.inputs["features"] == {"selection": selection.digest}]
    linear = [row for row in trained if row.method == LINEAR]
    fair = [row for row in linear if any(row.trained_like(other) for other in ours)]
    return [*(fair or linear[-1:]), *ours]


def by_fraction(
    store: ActivationStore, results: Results, ranked: Mapping[str, Any], main: Row, split: str
) -> dict[float, float]:
    """Return the accuracy of all stored heads that differ from one in how many features they read, by fraction.

    Parameters
    ----------
    store : ActivationStore
        Where the heads lie.
    results : mapping
        What `describe_results` says of it.
    ranked : mapping
        Inputs of the selection that `main` reads.
    main : Row
        The head.
    split : str
        Of the samples counted.
    """
    alike = {
        row["digest"]: row["inputs"]["keep"] / store.n_features
        for row in _whole(results["selections"])
        if {**row["inputs"], "keep": 0} == {**ranked, "keep": 0}
    }
    found: dict[float, float] = {}
    for row in _whole(results["heads"]):
        inputs = row["inputs"]
        same = all(inputs[name] == main.inputs[name] for name in ("normalization", "parameters", "train"))
        if same and set(inputs["features"]) == {"selection"} and inputs["features"]["selection"] in alike:
            found[alike[inputs["features"]["selection"]]] = row["facts"]["accuracy"][split]
    return dict(sorted(found.items()))


def _whole(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if "damaged" not in row]


def _row(store: ActivationStore, selection: Selection, found: Mapping[str, Any]) -> Row:
    inputs, facts = dict(found["inputs"]), dict(found["facts"])
    layer = inputs["features"].get("layer")
    method = HEAD2TOE if layer is None else LINEAR if layer == store.provenance.get("embedding") else f"layer {layer}"
    before = selection.seconds if layer is None else 0.0
    return Row(
        method=method,
        digest=str(found["digest"]),
        features=len(selection.indices) if layer is None else store.layer(layer).n_features,
        accuracy={split: facts["accuracy"][split] for split in store.splits},
        seconds=before + facts["seconds"],
        refit=_refit(inputs, facts),
        inputs=inputs,
        facts=facts,
    )


def _refit(inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    # Not all of it is known of a head that an earlier version of this package wrote.
    done = [f"{facts[unit]:,} {unit}" for unit in ("iterations", "steps") if unit in facts]
    return ", ".join(filter(None, [inputs["parameters"].get("optimizer", ""), *done, inputs["normalization"]]))
