"""What lies under a root: a row for every store, and what is said of the results of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, get_args

from store import hierarchy
from store.activations import ActivationStore, open_store
from store.aliases import SUFFIX, is_there, list_aliases, list_names
from store.errors import DamagedStoreError, Head2ToeError, StoreNotFoundError
from store.hierarchy import METADATA
from store.layout import REMOVING
from store.objects import Objects, join, open_objects
from store.results import Kind, list_results

RESULT_KINDS: tuple[Kind, ...] = get_args(Kind)
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)
"""What a damaged document can raise when it parses but does not hold what it should."""


def list_stores(root: str | os.PathLike[str], **options: Any) -> list[dict[str, Any]]:
    """Return a row for every store under a root, by name; a store that cannot be opened is a row with the reason.

    Parameters
    ----------
    root : str or path
        Folder or URL.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    list of dict
        ``uri``, ``aliases`` and ``state``: ``complete`` or ``incomplete``, with `ActivationStore.summary`; otherwise
        ``damaged``, ``unreadable``, ``half removed`` or ``no store``, with a ``reason``.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at all at `root`, or it is a store itself.
    """
    objects = open_objects(root, **options)
    names = list_names(objects)
    if not names:
        raise StoreNotFoundError(
            f"{os.fspath(root)!r} does not exist or is empty; `head2toe extract --root {os.fspath(root)}` makes a "
            "store."
        )
    if METADATA in names:
        raise StoreNotFoundError(f"{os.fspath(root)!r} is a store itself, not a root; use `head2toe show` for it.")
    aliases = list_aliases(root, **options)
    rows = []
    for name in names:
        if name.endswith(SUFFIX):
            own = [a.name for a in aliases.values() if a.store == name]
            rows.append({**_row(join(root, name), options), "aliases": own})
    return rows


def _row(uri: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if half_removed(open_objects(uri, **options)):
            return {"uri": uri, "state": "half removed", "reason": f"`head2toe remove {uri}` finishes the removal."}
        store = open_store(uri, allow_incomplete=True, **options)
        return {**store.summary, "state": "incomplete" if store.missing() else "complete"}
    except DamagedStoreError as error:
        return {"uri": uri, "state": "damaged", "reason": str(error)}
    except StoreNotFoundError as error:
        return {"uri": uri, "state": "no store", "reason": str(error)}
    except (Head2ToeError, OSError) as error:
        return {"uri": uri, "state": "unreadable", "reason": str(error)}
    except MALFORMED as error:
        return {"uri": uri, "state": "damaged", "reason": f"the metadata of store {uri!r} is damaged ({error})."}


def describe_results(store: ActivationStore) -> dict[Kind, list[dict[str, Any]]]:
    """Return what is said of every result of a store but points, by kind, oldest first, without reading the numbers.

    Parameters
    ----------
    store : ActivationStore
        The store the results lie beside.

    Returns
    -------
    dict of str to list of dict
        ``digest``, ``inputs``, ``facts`` and ``created`` per result; ``digest`` and ``damaged``, which says how, for
        one that cannot be read.
    """
    return {kind: describe_kind(store, kind) for kind in RESULT_KINDS if kind != "points"}


def describe_kind(store: ActivationStore, kind: Kind) -> list[dict[str, Any]]:
    """Return what `describe_results` does of one kind; of equal age, in order of digest."""
    rows = [_describe(store, f"results/{kind}/{name}", name) for name in list_results(store, kind)]
    return sorted(rows, key=lambda row: (row.get("created") or "", row["digest"]))


def count_results(objects: Objects, kind: Kind) -> int:
    """Return how many results of a kind a store has, without reading them."""
    names = list_names(objects, f"results/{kind}")
    if kind == "points":  # one object each, and there can be thousands: the listing is enough
        return len(names)
    return sum(is_there(objects, f"results/{kind}/{name}/{METADATA}") for name in names)


def _describe(store: ActivationStore, path: str, name: str) -> dict[str, Any]:
    try:
        attributes = hierarchy.read_attributes(store.objects, path)
        inputs, facts = dict(attributes["inputs"]), dict(attributes["facts"])
    except (Head2ToeError, OSError, *MALFORMED) as error:
        return {"digest": name, "damaged": str(error)}
    return {"digest": name, "inputs": inputs, "facts": facts, "created": attributes.get("created")}


def half_removed(objects: Objects) -> bool:
    """Return whether a removal of this store began and was interrupted."""
    return is_there(objects, REMOVING) and not is_there(objects, METADATA)
