"""Some layers of a store, seen as a store of their own: those of one target size, or any others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.joined_store import JoinedStore
from store.activations import ActivationStore
from store.errors import InvalidInputError, suggest
from store.layout import Layer
from store.spec import digest

_SIZED = re.compile(r".+@([0-9]+)")


class LayerView(ActivationStore):
    """Some layers of a store, for selection and refit; features count over these layers alone.

    Results lie beside the store, under digests of their own. Workers of a cluster cannot scan a view.

    Parameters
    ----------
    store : ActivationStore
        A store, not a joined one.
    names : sequence of str
        Layers, in any order; theirs is that of the store.

    Raises
    ------
    InvalidInputError
        If there is no such layer, none is given, or the store is joined.
    """

    def __init__(self, store: ActivationStore, names: Sequence[str]) -> None:
        if isinstance(store, JoinedStore):
            raise InvalidInputError("layers of joined stores cannot be chosen; choose them in each store, then join.")
        chosen = {store.layer(name).name for name in names}
        if not chosen:
            raise InvalidInputError(f"no layer is chosen of store {store.uri!r}; choose at least one.")
        super().__init__(store.objects, _attributes(store))
        self.store = store
        self.layers: dict[str, Layer] = {}
        for layer in store.layers.values():
            if layer.name in chosen:
                self.layers[layer.name] = replace(layer, offset=self.n_features)
        self.fingerprint = digest({"store": store.fingerprint, "layers": list(self.layers)})
        self.reads, self._records, self._committed = store.reads, store._records, store._committed
        self._rows = [row for row, name in enumerate(store.layers) if name in chosen]
        self.indices: NDArray[np.int64] = np.concatenate([store.layer_indices(name) for name in self.layers])

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerView, (self.store, list(self.layers))

    def columns(
        self, split: str, indices: ArrayLike, samples: slice = slice(None), layer: str | None = None
    ) -> NDArray[np.float32]:
        """Return chosen features of a split, as `ActivationStore.columns` does."""
        if layer is not None:
            return self.store.columns(split, indices, samples, self.layer(layer).name)
        return self.store.columns(split, self.indices[np.asarray(indices, np.int64)], samples)

    def norms(self, split: str) -> NDArray[np.float32]:
        """Return the L2 norm of each layer's vector per sample, shape (layer, sample)."""
        return self.store.norms(split)[self._rows]


def target_sizes(store: ActivationStore) -> tuple[int, ...]:
    """Return the target sizes whose layers, named ``TAP@SIZE``, lie side by side in a store; none if it has one."""
    found = [_SIZED.fullmatch(name) for name in store.layers]
    return tuple(sorted({int(match[1]) for match in found if match})) if all(found) else ()


def of_target_size(store: ActivationStore, size: int | None) -> ActivationStore:
    """Return the layers of one target size T, or the whole store for None.

    Raises
    ------
    InvalidInputError
        If the store does not hold this size beside others.
    """
    if size is None:
        return store
    if size not in (known := target_sizes(store)):
        raise InvalidInputError(
            f"store {store.uri!r} does not hold target size {size} beside others; {_choices(size, known)}"
        )
    return LayerView(store, [name for name in store.layers if name.endswith(f"@{size}")])


def _choices(size: int, known: Sequence[int]) -> str:
    return suggest(str(size), map(str, known)) if known else "it has one size only: leave target_size out."


def _attributes(store: ActivationStore) -> dict[str, Any]:
    """Return what `ActivationStore` is made from."""
    return {
        "fingerprint": store.fingerprint,
        "spec": store.spec.model_dump(mode="json"),
        "layer_order": [vars(layer) for layer in store.layers.values()],
        "splits": [vars(split) for split in store.splits.values()],
        "provenance": store.provenance,
        "created": store.created,
        "documents": store.documents,
    }
