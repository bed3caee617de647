"""Where things lie in a store: names, dimensions, the arithmetic of blocks and chunks, and a chunk's bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from store.errors import InvalidInputError

CHUNK_BYTES = 16 * 2**20
"""Upper bound of a chunk's size: large enough to read at full speed, small enough for a task."""
BLOCK_BYTES = 512 * 2**20
"""What one block may hold over all layers, since a writer keeps about two of them in memory."""
MIN_BLOCK, MAX_BLOCK = 128, 8192
FEW_BLOCKS = 16
"""A split is cut into about as many blocks before they grow past `SMALL_BLOCK`, so that a stop loses little."""
SMALL_BLOCK = 1024
CRC_BYTES = 4
REMOVING = "removing.json"
"""Marks what is left of a store whose removal has begun, so that the removal can be finished and nothing else done."""
RESERVED = frozenset({"blocks", "results", "claims"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


@dataclass(frozen=True)
class Layer:
    """One layer's place in the store.

    Attributes
    ----------
    name : str
        Name of the layer.
    n_features : int
        Features of the layer.
    offset : int
        Global index of its first feature, counting over all layers in order.
    chunk_features : int
        Features per chunk; the last chunk may hold fewer.
    """

    name: str
    n_features: int
    offset: int
    chunk_features: int

    @property
    def n_chunks(self) -> int:
        """Chunks along the feature dimension."""
        return -(-self.n_features // self.chunk_features)

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Return the layer's features [start, stop) that a chunk holds."""
        return chunk * self.chunk_features, min((chunk + 1) * self.chunk_features, self.n_features)


@dataclass(frozen=True)
class Split:
    """One split's samples and their division into blocks.

    Attributes
    ----------
    name : str
        Name of the split, such as ``"train"``.
    n_samples : int
        Samples in the split.
    block_samples : int
        Samples per block; the last block may hold fewer.
    """

    name: str
    n_samples: int
    block_samples: int

    @property
    def n_blocks(self) -> int:
        """Blocks in the split."""
        return -(-self.n_samples // self.block_samples)

    def block_range(self, block: int) -> tuple[int, int]:
        """Return the samples [start, stop) of a block."""
        return block * self.block_samples, min((block + 1) * self.block_samples, self.n_samples)


@dataclass(frozen=True)
class ChunkRef:
    """Address of one chunk: a range of a layer's features for the samples of one block."""

    split: str
    layer: str
    chunk: int
    block: int

    @property
    def key(self) -> str:
        """Key of the chunk's object."""
        return chunk_key(self.split, self.layer, self.chunk, self.block)


def chunk_key(split: str, layer: str, chunk: int, block: int) -> str:
    """Return the key of a chunk's object, as Zarr v3's default chunk key encoding has it."""
    return f"{split}/layers/{layer}/c/{chunk}/{block}"


def layer_path(split: str, layer: str) -> str:
    """Return the path of a layer's array inside the store."""
    return f"{split}/layers/{layer}"


@dataclass(frozen=True)
class BlockArray:
    """An array that blocks are written to, as Zarr describes it."""

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]


def block_arrays(layers: tuple[Layer, ...], split: Split, dtype: str) -> Iterator[BlockArray]:
    """Yield the arrays of a split that blocks are written to."""
    n_features = sum(layer.n_features for layer in layers)
    n, b = split.n_samples, split.block_samples
    yield BlockArray(f"{split.name}/norms", (len(layers), n), (len(layers), b), "float32", ("layer", "sample"))
    yield BlockArray(
        f"{split.name}/row_checksums", (n_features, split.n_blocks), (n_features, 1), "uint32", ("feature", "block")
    )
    for layer in layers:
        yield BlockArray(
            layer_path(split.name, layer.name),
            (layer.n_features, n),
            (layer.chunk_features, b),
            dtype,
            # One dimension name per layer: xarray gives every dimension of a group one length.
            (f"{layer.name}_feature", "sample"),
        )


def norms_key(split: str, block: int) -> str:
    """Return the key of a block's layer norms."""
    return f"{split}/norms/c/0/{block}"


def row_checksums_key(split: str, block: int) -> str:
    """Return the key of a block's checksums, one per feature."""
    return f"{split}/row_checksums/c/0/{block}"


def record_key(split: str, block: int) -> str:
    """Return the key of a block's commit record."""
    return f"blocks/{split}/{block:06d}.json"


def plan_layers(
    layers: Mapping[str, int],
    splits: Mapping[str, int],
    itemsize: int,
    block_samples: int | Mapping[str, int] | None = None,
) -> tuple[tuple[Layer, ...], tuple[Split, ...]]:
    """Choose blocks and chunks.

    Blocks of all splits are of about the same size, bounded by what a writer can hold; narrow layers get long blocks,
    so that they do not become thousands of tiny files. Within a split blocks are made equal, since Zarr pads the last
    one to full size on disk.

    Parameters
    ----------
    layers : mapping of str to int
        Features per layer, in order.
    splits : mapping of str to int
        Samples per split.
    itemsize : int
        Bytes per value.
    block_samples : int or mapping of str to int, optional
        Samples per block at most; chosen from the width of all layers if not given. By split, exactly so many.

    Raises
    ------
    InvalidInputError
        If a name cannot be part of a path, or a size is not positive.
    """
    _check_sizes("layer", layers)
    _check_sizes("split", splits)
    if block_samples is None:
        fitting = max(BLOCK_BYTES // (itemsize * sum(layers.values())), 1)
        wanted = max(SMALL_BLOCK, max(splits.values()) // FEW_BLOCKS)
        block_samples = min(max(1 << fitting.bit_length() - 1, MIN_BLOCK), MAX_BLOCK, wanted)
    exact = block_samples if isinstance(block_samples, Mapping) else {}
    most = max(exact.values()) if isinstance(block_samples, Mapping) else block_samples
    if most < 1:
        raise InvalidInputError(f"block size {most} is not positive; give a number of samples ≥ 1.")
    planned_splits = tuple(
        Split(name, n, exact.get(name) or -(-n // -(-n // min(most, n)))) for name, n in splits.items()
    )
    widest = max(s.block_samples for s in planned_splits)
    planned_layers, offset = [], 0
    for name, n_features in layers.items():
        n_chunks = -(-n_features // max(CHUNK_BYTES // (widest * itemsize), 1))
        planned_layers.append(Layer(name, n_features, offset, -(-n_features // n_chunks)))
        offset += n_features
    return tuple(planned_layers), planned_splits


def check_plan(layers: tuple[Layer, ...], splits: tuple[Split, ...]) -> None:
    """Refuse a division that `plan_layers` cannot have made, as a store from elsewhere may claim.

    Raises
    ------
    InvalidInputError
        If a name cannot be part of a path, or a size or an offset does not fit.
    """
    _check_sizes("layer", {layer.name: layer.n_features for layer in layers})
    _check_sizes("split", {s.name: s.n_samples for s in splits})
    offsets = [0, *accumulate(layer.n_features for layer in layers)]
    held = [*(layer.chunk_features for layer in layers), *(s.block_samples for s in splits)]
    if [layer.offset for layer in layers] != offsets[:-1] or min(held) < 1:
        raise InvalidInputError("the layers' offsets, chunks or blocks do not add up.")


def _check_sizes(kind: str, sizes: Mapping[str, int]) -> None:
    if not sizes:
        raise InvalidInputError(f"a store needs at least one {kind}.")
    for name, size in sizes.items():
        if not _NAME.fullmatch(name) or name in RESERVED or len(name) > 200:
            raise InvalidInputError(
                f"{kind} name {name!r} cannot be used; letters, digits and '_.@-' are allowed, "
                "up to 200 of them, starting with a letter, digit or '_'."
            )
        if size < 1:
            raise InvalidInputError(f"{kind} {name!r} has size {size}; at least 1 is needed.")


def locate(layers: tuple[Layer, ...], indices: NDArray[np.int64]) -> Iterator[tuple[Layer, NDArray[np.int64]]]:
    """Yield each layer that some global index falls in, with the positions of those indices."""
    offsets = np.array([layer.offset for layer in layers])
    owner = np.searchsorted(offsets, indices, side="right") - 1
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(layers) + 1))
    for number, layer in enumerate(layers):
        positions = order[bounds[number] : bounds[number + 1]]
        if len(positions):
            yield layer, positions


def encode(values: NDArray[np.generic], shape: tuple[int, int]) -> tuple[memoryview, bytes]:
    """Return a chunk's bytes and its checksum: little-endian values, padded to `shape`, then CRC-32C.

    The padding of an edge chunk is NaN, the arrays' fill value.
    """
    if values.shape != shape:
        padded = np.full(shape, np.nan, values.dtype)
        padded[tuple(slice(n) for n in values.shape)] = values
        values = padded
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    view = little.reshape(-1).view(np.uint8).data
    return view, crc32c(view).to_bytes(CRC_BYTES, "little")


_HALF_BITS = np.int32(np.uint32(0x8FFFE000).astype(np.int32))


def widen(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return finite values in single precision, shape (row, column).

    NumPy's own cast from half precision takes several times as long: here sign, exponent and mantissa are moved by
    whole vectors, a few rows at a time, and one multiplication puts the exponent right, subnormal numbers included.
    """
    out = np.empty(values.shape, np.float32)
    if values.dtype.itemsize != 2:
        out[:] = values
        return out
    bits = values.astype("=f2", copy=False).view(np.int16)
    step = max(1, 2**17 // max(values.shape[1], 1))
    for start in range(0, len(values), step):
        part = out[start : start + step]
        wide = part.view(np.int32)
        wide[:] = bits[start : start + step]
        wide <<= 13
        # Extending the sign has filled the three bits below it, which are the upper ones of the exponent.
        wide &= _HALF_BITS
        part *= np.float32(2.0**112)
    return out


def checksum_rows(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the CRC-32C of each row of bytes, shape (row,), so that features read one by one can be verified."""
    return np.fromiter(map(google_crc32c.value, rows), np.uint32, len(rows))


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8) if len(data) else b""))
