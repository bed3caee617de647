"""The stores under a root."""

from __future__ import annotations

from typing import Any

from store.activations import open_store
from store.errors import Head2ToeError, StoreNotFoundError
from store.objects import join, open_objects

SUFFIX = ".zarr"


def list_stores(root: str, **options: Any) -> list[dict[str, Any]]:
    """Return a summary of every store under a root, by name.

    Parameters
    ----------
    root : str
        Folder or URL.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    list of dict
        `ActivationStore.summary` and a ``state``: ``complete``, ``incomplete``, or why it cannot be opened.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at all at `root`.
    """
    names = open_objects(root, **options).names("")
    if not names:
        raise StoreNotFoundError(
            f"{root!r} does not exist or is empty; `head2toe extract --root {root}` makes a store."
        )
    rows = []
    for name in names:
        if not name.endswith(SUFFIX):
            continue
        uri = join(root, name)
        try:
            store = open_store(uri, allow_incomplete=True, **options)
            rows.append({**store.summary, "state": "incomplete" if store.missing() else "complete"})
        except Head2ToeError as error:
            rows.append({"uri": uri, "state": str(error)})
    return rows
