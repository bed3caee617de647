"""Chosen features of a store: only their bytes are read, and each is verified by its own checksum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from store import layout
from store.errors import InvalidInputError
from store.layout import ChunkRef, Split

if TYPE_CHECKING:
    from store.activations import ActivationStore

Part = tuple[str, int, NDArray[np.int64], NDArray[np.intp]]
"""A layer, one of its chunks, the wanted rows of that chunk, and where they go."""


def read_columns(
    store: ActivationStore, split: str, indices: ArrayLike, samples: slice, layer: str | None
) -> NDArray[np.float32]:
    """Return chosen features, shape (sample, feature); see `ActivationStore.columns`."""
    s = store.split(split)
    wanted = np.asarray(indices)
    if wanted.size == 0:
        wanted = wanted.astype(np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise InvalidInputError(
            f"feature indices must be a one-dimensional array of integers, not shape {wanted.shape} of {wanted.dtype}."
        )
    chosen = None if layer is None else store.layer(layer)
    p = store.n_features if chosen is None else chosen.n_features
    outside = (wanted < -p) | (wanted >= p)
    if outside.any():
        raise IndexError(f"feature index {wanted[outside][0]} is out of range for {p:,} features")
    start, stop, step = samples.indices(s.n_samples)
    if step != 1:
        raise InvalidInputError(f"samples must be a contiguous range, not step {step}.")
    wanted = wanted.astype(np.int64)
    wanted = np.where(wanted < 0, wanted + p, wanted) + (0 if chosen is None else chosen.offset)
    out = np.empty((len(wanted), max(stop - start, 0)), np.float32)
    blocks = [b for b in range(s.n_blocks) if s.block_range(b)[0] < stop and s.block_range(b)[1] > start]
    parts: list[Part] = []
    for owner, positions in layout.locate(tuple(store.layers.values()), wanted):
        chunks, rows = np.divmod(wanted[positions] - owner.offset, owner.chunk_features)
        for chunk in np.unique(chunks) if owner.n_chunks > 1 else (0,):
            inside = chunks == chunk
            parts.append((owner.name, int(chunk), rows[inside], positions[inside]))
    if not parts or not blocks:
        return out.T
    store.check_committed(s, blocks)
    for block, part, rows, expected in _read_rows(store, s, blocks, parts, wanted):
        name, chunk, _, targets = parts[part]
        if (layout.checksum_rows(rows) != expected[targets]).any():
            ref = ChunkRef(s.name, name, chunk, block)
            raise store.damaged_chunk(ref, "does not have the checksums per feature that were committed")
        s0, s1 = s.block_range(block)
        a, b = max(s0, start), min(s1, stop)
        out[targets, a - start : b - start] = layout.widen(rows.view(store.dtype)[:, a - s0 : b - s0])
    return out.T


def _read_rows(
    store: ActivationStore,
    split: Split,
    blocks: Sequence[int],
    parts: Sequence[Part],
    features: NDArray[np.int64],
) -> Iterator[tuple[int, int, NDArray[np.uint8], NDArray[np.uint32]]]:
    """Yield per block and part the bytes of its rows and the checksums of all features; all requested at once."""
    sum_keys = [layout.row_checksums_key(split.name, b) for b in blocks]
    refs = [(b, i, ChunkRef(split.name, part[0], part[1], b)) for b in blocks for i, part in enumerate(parts)]
    found = store.objects.read_many(
        [*((key, features) for key in sum_keys), *((ref.key, parts[i][2]) for _, i, ref in refs)],
        [np.dtype(np.uint32).itemsize] * len(blocks) + [split.block_samples * store.dtype.itemsize] * len(refs),
    )
    sums = {}
    for block, key in zip(blocks, sum_keys, strict=True):
        try:
            checksums, n_bytes, n_requests = next(found)
        except (FileNotFoundError, IndexError, ValueError):
            raise store.damaged_block(split.name, block, key, "is missing or too short") from None
        store.reads.add(n_bytes, n_requests)
        sums[block] = checksums.view("<u4")[:, 0]
    for block, i, ref in refs:
        try:
            rows, n_bytes, n_requests = next(found)
        except FileNotFoundError:
            raise store.damaged_chunk(ref, "is missing") from None
        except (IndexError, ValueError) as error:
            raise store.damaged_chunk(ref, "is too short") from error
        store.reads.add(n_bytes, n_requests)
        yield block, i, rows, sums[block]
