"""Which selection or head is meant where none is named: the newest that is of this store and no other."""

from __future__ import annotations

from typing import Any

from pipeline.joined_store import JoinedStore
from store.activations import ActivationStore
from store.catalogue import describe_kind
from store.errors import StoreNotFoundError
from store.results import Kind, result_digest


def newest_selection(store: ActivationStore, *, used_first: bool = False) -> str:
    """Return the digest of the selection of a store that was made last.

    What was made on joined stores counts for these, in this order, and for none of them alone; likewise what was made
    on some of the layers. A selection that was found again, not made again, keeps its age.

    Parameters
    ----------
    store : ActivationStore
        One store, or several joined.
    used_first : bool
        Whether one that has a head goes before any that has none.

    Raises
    ------
    StoreNotFoundError
        If it has none.
    """
    found = _own_results(store, "selections")
    if not found:
        stores = store.stores if isinstance(store, JoinedStore) else [store]
        joined = " --join ".join(each.uri for each in stores)
        whose = "together with the others" if len(stores) > 1 else "of its own"
        raise StoreNotFoundError(
            f"store {store.uri!r} has no selection {whose} yet; `head2toe select {joined}` makes one."
        )
    if used_first:
        used = {_selected(row) for row in _own_results(store, "heads")}
        found = [row for row in found if row["digest"] in used] or found
    return str(found[-1]["digest"])


def newest_head(store: ActivationStore) -> str:
    """Return the digest of the head that was trained last of those on a selection.

    Raises
    ------
    StoreNotFoundError
        If there is none.
    """
    heads = _own_results(store, "heads")
    found = [row for row in heads if _selected(row) is not None]
    if not found:
        others = f"; --head DIGEST takes another, such as {heads[-1]['digest']}" if heads else ""
        raise StoreNotFoundError(
            f"store {store.uri!r} has no head on a selection yet; `head2toe refit {store.uri}` trains one{others}."
        )
    return str(found[-1]["digest"])


def _own_results(store: ActivationStore, kind: Kind) -> list[dict[str, Any]]:
    """Return what is said of a store's undamaged results of a kind, oldest first."""
    # What is joined lies beside the first of its stores, under a digest that its own fingerprint does not give.
    return [
        row
        for row in describe_kind(store, kind)
        if "damaged" not in row and result_digest(store, kind, row["inputs"]) == row["digest"]
    ]


def _selected(head: dict[str, Any]) -> str | None:
    """Return the digest of the selection that a head reads."""
    digest: str | None = head["inputs"]["features"].get("selection")
    return digest
