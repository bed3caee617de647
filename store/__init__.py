"""What is on disk, and the only code that opens it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.activations import ActivationStore, open_store
    from store.errors import Head2ToeError
    from store.writer import StoreWriter, create_store

__all__ = ["ActivationStore", "Head2ToeError", "StoreWriter", "create_store", "open_store"]

_HOMES = {
    "ActivationStore": "store.activations",
    "Head2ToeError": "store.errors",
    "StoreWriter": "store.writer",
    "create_store": "store.writer",
    "open_store": "store.activations",
}


def __getattr__(name: str) -> Any:
    # Zarr takes a third of a second to import, which a shell that completes a word does not have.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
