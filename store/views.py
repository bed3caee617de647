"""A store as lazy arrays: Dask, and an xarray tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from store.layout import ChunkRef

if TYPE_CHECKING:
    import dask.array
    import xarray

    from store.activations import ActivationStore


def dask_array(store: ActivationStore, split: str, layer: str) -> dask.array.Array:
    """Return a layer as a lazy Dask array, shape (feature, sample), one Dask chunk per stored chunk."""
    import dask.array as da

    s, chosen = store.split(split), store.layer(layer)
    features = [b - a for a, b in (chosen.chunk_range(c) for c in range(chosen.n_chunks))]
    samples = [b - a for a, b in (s.block_range(b) for b in range(s.n_blocks))]

    def load(block_info: Any = None) -> NDArray[Any]:
        chunk, block = block_info[None]["chunk-location"]
        return store.read_chunk(ChunkRef(s.name, chosen.name, chunk, block))

    return da.map_blocks(
        load,
        chunks=(tuple(features), tuple(samples)),
        dtype=store.dtype,
        meta=np.empty((0, 0), store.dtype),
        name=f"{chosen.name}-{store.fingerprint}-{s.name}",
    )


def data_tree(store: ActivationStore) -> xarray.DataTree:
    """Return a store as a lazy xarray DataTree: one node per split, one variable per layer."""
    import xarray as xr

    nodes = {}
    for split in store.splits:
        layers = {n: ((f"{n}_feature", "sample"), dask_array(store, split, n)) for n in store.layers}
        coordinates = {"id": ("sample", store.ids(split)), "label": ("sample", store.labels(split))}
        nodes[split] = xr.Dataset(layers, coordinates)
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {"fingerprint": store.fingerprint, "uri": store.uri, "class_names": list(store.class_names)}
    return tree
