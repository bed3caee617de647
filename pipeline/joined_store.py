"""Several stores of the same samples, such as those of two backbones, seen as one: their features side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from store.activations import ActivationStore, ReadCounter
from store.errors import InvalidInputError
from store.layout import Layer, Split
from store.spec import digest

SHOWN = 3
"""Names of samples that a message lists."""


class JoinedStore(ActivationStore):
    """Several stores seen as one, for selection and refit; samples are matched by name, in the order of the first.

    Layers are those of all stores in order, each named ``NUMBER:LAYER`` by its store's number from 1. Results lie
    beside the first store. Chunks stay those of the stores: there is no reading of them, and no Dask array, here.

    Parameters
    ----------
    stores : sequence of ActivationStore
        Two or more.

    Raises
    ------
    InvalidInputError
        If there are fewer, one is given twice, or they do not have the same splits; on first use of a split, if its
        samples or their labels differ.
    """

    def __init__(self, stores: Sequence[ActivationStore]) -> None:
        first = stores[0]
        fingerprints = [store.fingerprint for store in stores]
        twice = next((f for at, f in enumerate(fingerprints) if f in fingerprints[:at]), None)
        if twice is not None:
            raise InvalidInputError(f"store {twice} is given twice; join stores of different features.")
        for store in stores:
            if {s: v.n_samples for s, v in store.splits.items()} != {s: v.n_samples for s, v in first.splits.items()}:
                splits = [
                    ", ".join(f"{s.name} {s.n_samples:,}" for s in each.splits.values()) for each in (first, store)
                ]
                raise InvalidInputError(
                    f"store {first.uri!r} has the splits {splits[0]}, but {store.uri!r} has {splits[1]}; stores that "
                    "are joined must be of the same images."
                )
        self.stores = list(stores)
        self.fingerprints = fingerprints
        self.objects, self.uri, self.spec = first.objects, first.uri, first.spec
        self.fingerprint = digest({"joined": fingerprints})
        self.class_names, self.dtype, self.created = first.class_names, first.dtype, first.created
        self.documents: dict[str, str] = {}
        self.provenance = first.provenance
        if "embedding" in first.provenance:
            self.provenance = {**first.provenance, "embedding": f"1:{first.provenance['embedding']}"}
        self.splits: dict[str, Split] = dict(first.splits)
        self.layers: dict[str, Layer] = {}
        for number, store in enumerate(stores, start=1):
            before = self.n_features
            for layer in store.layers.values():
                name = f"{number}:{layer.name}"
                self.layers[name] = replace(layer, name=name, offset=layer.offset + before)
        self.reads = ReadCounter()
        self._matched: dict[str, list[NDArray[np.int64]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedStore, (self.stores,)

    def rows(self, split: str) -> list[NDArray[np.int64]]:
        """Return, by store, where each sample of the first one is; matched once."""
        if split not in self._matched:
            self._matched[split] = match_samples(self.stores, self.split(split).name)
        return self._matched[split]

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return class indices, shape (sample,)."""
        return self.stores[0].labels(split)

    def ids(self, split: str) -> list[str]:
        """Return the samples' names, in order."""
        return self.stores[0].ids(split)

    def digests(self, split: str) -> list[str]:
        """Return the digests of the samples' contents, in order."""
        return self.stores[0].digests(split)

    def columns(
        self, split: str, indices: ArrayLike, samples: slice = slice(None), layer: str | None = None
    ) -> NDArray[np.float32]:
        """Return chosen features of a split, as `ActivationStore.columns` does."""
        wanted = np.asarray(indices, np.int64) + (0 if layer is None else self.layer(layer).offset)
        outside = (wanted < 0) | (wanted >= self.n_features)
        if outside.any():
            raise IndexError(f"feature index {wanted[outside][0]} is out of range for {self.n_features:,} features")
        chosen = range(self.split(split).n_samples)[samples]
        values = np.empty((len(chosen), len(wanted)), np.float32, order="F")
        start = 0
        for store, rows in zip(self.stores, self.rows(split), strict=True):
            own = np.flatnonzero((wanted >= start) & (wanted < start + store.n_features))
            before = store.reads.n_bytes, store.reads.n_requests
            place = rows[samples]
            if len(place):
                low = int(place.min())
                span = slice(low, int(place.max()) + 1)
                values[:, own] = store.columns(split, wanted[own] - start, span)[place - low]
            self.reads.add(store.reads.n_bytes - before[0], store.reads.n_requests - before[1])
            start += store.n_features
        return values

    def norms(self, split: str) -> NDArray[np.float32]:
        """Return the L2 norm of each layer's vector per sample, shape (layer, sample)."""
        return np.concatenate(
            [store.norms(split)[:, rows] for store, rows in zip(self.stores, self.rows(split), strict=True)]
        )


def join_stores(stores: Sequence[ActivationStore]) -> ActivationStore:
    """Return one store as it is, and several as one.

    Raises
    ------
    InvalidInputError
        If there is none, or they cannot be joined.
    """
    if not stores:
        raise InvalidInputError("no store is given; give at least one.")
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def match_samples(stores: Sequence[ActivationStore], split: str) -> list[NDArray[np.int64]]:
    """Return, by store, where each sample of the first one is.

    Parameters
    ----------
    stores : sequence of ActivationStore
        They must hold the same samples of the split, by name, in any order, with the same labels.
    split : str
        The samples.

    Returns
    -------
    list of ndarray of int64, shape (n,)
        Positions.

    Raises
    ------
    InvalidInputError
        If a name is missing on one side, or has different labels.
    """
    first = stores[0]
    names = first.ids(split)
    classes = _classes(first, split)
    found = []
    for store in stores:
        place = {name: row for row, name in enumerate(store.ids(split))}
        # Both have as many, each name once: if none is absent here, none is there.
        absent = [name for name in names if name not in place]
        if absent:
            shown = ", ".join(repr(name) for name in absent[:SHOWN]) + (", …" if len(absent) > SHOWN else "")
            raise InvalidInputError(
                f"store {store.uri!r} lacks {len(absent):,} of the samples of {split!r} in {first.uri!r}: {shown}; "
                "stores that are joined must be of the same images."
            )
        rows = np.array([place[name] for name in names], np.int64)
        theirs = _classes(store, split)
        differing = [i for i, row in enumerate(rows) if theirs[row] != classes[i]]
        if differing:
            i = differing[0]
            raise InvalidInputError(
                f"sample {names[i]!r} is {classes[i]!r} in store {first.uri!r} but {theirs[rows[i]]!r} in "
                f"{store.uri!r}; {len(differing):,} samples differ so."
            )
        found.append(rows)
    return found


def _classes(store: ActivationStore, split: str) -> list[str]:
    names = store.class_names
    return [names[label] if label < len(names) else str(label) for label in store.labels(split)]


def joined_with(store: ActivationStore) -> dict[str, list[str]]:
    """Return what the inputs of a result of a joined store have besides: the stores' fingerprints; else nothing."""
    return {"joined": store.fingerprints} if isinstance(store, JoinedStore) else {}
