"""What is on disk, and the only code that opens it."""

from store.activations import ActivationStore, open_store
from store.errors import Head2ToeError
from store.writer import StoreWriter, create_store

__all__ = ["ActivationStore", "Head2ToeError", "StoreWriter", "create_store", "open_store"]
