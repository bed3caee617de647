"""Chosen features of a store: only their bytes are read, and each is verified by its own checksum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from store import layout
from store.errors import DamagedStoreError, InvalidInputError
from store.layout import ChunkRef, Layer, Split

if TYPE_CHECKING:
    from store.activations import ActivationStore
    from store.objects import RowsRead

TOGETHER = 2**19
"""Bytes that are verified and widened at once: enough of them to hide the cost of a call, few enough to stay cached."""


class _Part(NamedTuple):
    """The wanted features, sorted, that lie in one chunk of a layer: their rows there, and their positions."""

    layer: str
    chunk: int
    rows: NDArray[np.int64]
    start: int
    stop: int


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
    if not len(wanted) or not blocks:
        return out.T
    store.check_committed(s, blocks)
    order = np.argsort(wanted, kind="stable")
    for block, first, rows in _read_rows(store, s, blocks, wanted[order]):
        s0, s1 = s.block_range(block)
        a, b = max(s0, start), min(s1, stop)
        values = layout.widen(rows.view(store.dtype)[:, a - s0 : b - s0])
        out[:, a - start : b - start][order[first : first + len(rows)]] = values
    return out.T


def _read_rows(
    store: ActivationStore, split: Split, blocks: Sequence[int], features: NDArray[np.int64]
) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield verified rows of sorted features: their block, the first one's position, and their bytes."""
    parts = _divide(tuple(store.layers.values()), features)
    row_bytes = split.block_samples * store.dtype.itemsize
    sum_keys = [layout.row_checksums_key(split.name, b) for b in blocks]
    found = store.objects.read_many(
        [
            *((key, features) for key in sum_keys),
            *((layout.chunk_key(split.name, part.layer, part.chunk, b), part.rows) for b in blocks for part in parts),
        ],
        [np.dtype(np.uint32).itemsize] * len(blocks) + [row_bytes] * len(blocks) * len(parts),
    )
    sums = []
    for block, key in zip(blocks, sum_keys, strict=True):
        try:
            checksums, n_bytes, n_requests = next(found)
        except (FileNotFoundError, IndexError, ValueError):
            raise store.damaged_block(split.name, block, key, "is missing or too short") from None
        store.reads.add(n_bytes, n_requests)
        sums.append(checksums.view("<u4")[:, 0])
    for block, expected in zip(blocks, sums, strict=True):
        group: list[_Part] = []
        held: list[RowsRead] = []
        for part in parts:
            group.append(part)
            try:
                held.append(next(found))
            except FileNotFoundError:
                raise _damaged(store, split, block, part, "is missing") from None
            except (IndexError, ValueError) as error:
                raise _damaged(store, split, block, part, "is too short") from error
            first = group[0].start
            if (part.stop - first) * row_bytes >= TOGETHER or part is parts[-1]:
                rows = np.concatenate([r for r, _, _ in held])
                store.reads.add(sum(n_bytes for _, n_bytes, _ in held), sum(n for _, _, n in held))
                wrong = np.flatnonzero(layout.checksum_rows(rows) != expected[first : part.stop])
                if len(wrong):
                    bad = next(p for p in group if p.stop > first + wrong[0])
                    how = "does not have the checksums per feature that were committed"
                    raise _damaged(store, split, block, bad, how)
                yield block, first, rows
                group, held = [], []


def _divide(layers: Sequence[Layer], features: NDArray[np.int64]) -> list[_Part]:
    """Divide sorted features by the chunk that holds them."""
    sizes = np.array([(layer.offset, layer.chunk_features) for layer in layers])
    owner = np.searchsorted(sizes[:, 0], features, side="right") - 1
    offset, size = sizes[owner].T
    chunk, row = np.divmod(features - offset, size)
    starts = np.flatnonzero(np.diff(owner, prepend=-1) | np.diff(chunk, prepend=-1)).tolist()
    return [
        _Part(layers[owner[start]].name, int(chunk[start]), row[start:stop], start, stop)
        for start, stop in pairwise([*starts, len(features)])
    ]


def _damaged(store: ActivationStore, split: Split, block: int, part: _Part, how: str) -> DamagedStoreError:
    return store.damaged_chunk(ChunkRef(split.name, part.layer, part.chunk, block), how)
