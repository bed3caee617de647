"""`ActivationStore`: open a store, look at it, and read columns, chunks and lazy arrays from it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from store import hierarchy, layout
from store.columns import read_columns
from store.errors import (
    DamagedStoreError,
    FormatVersionError,
    Head2ToeError,
    IncompleteStoreError,
    InvalidInputError,
    StoreNotFoundError,
    suggest,
)
from store.layout import ChunkRef, Layer, Split
from store.objects import Objects, open_objects
from store.records import BlockRecord, read_record
from store.spec import FORMAT, FORMAT_VERSION, ExtractionSpec, ImportSpec, Spec, fingerprint
from store.units import human_bytes

if TYPE_CHECKING:
    import dask.array
    import xarray

_SPEC: TypeAdapter[ExtractionSpec | ImportSpec] = TypeAdapter(Spec)


@dataclass
class ReadCounter:
    """What has been read through a store object since it was opened or reset.

    Attributes
    ----------
    n_bytes : int
        Bytes of activations.
    n_requests : int
        Reads: files mapped, or ranges requested.
    """

    n_bytes: int = 0
    n_requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, n_bytes: int, n_requests: int = 1) -> None:
        """Count one read; safe from several threads."""
        with self._lock:
            self.n_bytes += n_bytes
            self.n_requests += n_requests

    def reset(self) -> None:
        """Start again from zero."""
        with self._lock:
            self.n_bytes = self.n_requests = 0


class ActivationStore:
    """Pooled activations of every layer for every sample, read-only.

    Made by `open_store`. Activations have the dimensions (feature, sample); `columns` turns them.

    Attributes
    ----------
    uri : str
        Where the store is.
    fingerprint : str
        Digest of `spec`.
    spec : ExtractionSpec or ImportSpec
        What identifies the activations.
    layers : dict of str to Layer
        Layers in order of depth.
    splits : dict of str to Split
        Splits in order.
    class_names : tuple of str
        Name per class index.
    dtype : numpy.dtype
        Type of the stored values.
    provenance : dict
        How, when and with what the store was made; not part of its identity.
    reads : ReadCounter
        Bytes and requests so far.
    """

    def __init__(self, objects: Objects, attributes: Mapping[str, Any]) -> None:
        self.objects = objects
        self.uri = objects.uri
        self.fingerprint: str = attributes["fingerprint"]
        self.spec = _SPEC.validate_python(attributes["spec"])
        self.layers = {row["name"]: Layer(**row) for row in attributes["layer_order"]}
        self.splits = {row["name"]: Split(**row) for row in attributes["splits"]}
        self.class_names = tuple(self.spec.data.class_names)
        self.dtype = np.dtype(self.spec.dtype).newbyteorder("<")
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.created: str = attributes["created"]
        self.documents: dict[str, str] = attributes["documents"]
        self.reads = ReadCounter()
        self._records: dict[tuple[str, int], BlockRecord] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(open_store, **self.objects.options), (self.uri, True)

    def check(self) -> None:
        """Check that the layout holds together and that the Zarr metadata describes just that.

        Raises
        ------
        DamagedStoreError
            If a name, size, type or codec does not fit.
        """
        layers = tuple(self.layers.values())
        try:
            layout.check_plan(layers, tuple(self.splits.values()))
        except InvalidInputError as error:
            raise DamagedStoreError(f"the metadata of store {self.uri!r} does not fit together: {error}") from None
        blank = (a for s in self.splits.values() for a in layout.block_arrays(layers, s, self.spec.dtype))
        hierarchy.check_arrays(self.objects, blank)

    # ---------------------------------------------------------------- what there is

    @property
    def n_features(self) -> int:
        """Features over all layers."""
        return sum(layer.n_features for layer in self.layers.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of all activations when complete, without padding and metadata."""
        return self.n_features * self.dtype.itemsize * sum(s.n_samples for s in self.splits.values())

    def split(self, name: str) -> Split:
        """Return one split.

        Raises
        ------
        InvalidInputError
            If there is no split of this name.
        """
        if name not in self.splits:
            raise InvalidInputError(f"store {self.uri!r} has no split {name!r}; {suggest(name, self.splits)}")
        return self.splits[name]

    def layer(self, name: str) -> Layer:
        """Return one layer.

        Raises
        ------
        InvalidInputError
            If there is no layer of this name.
        """
        if name not in self.layers:
            raise InvalidInputError(f"store {self.uri!r} has no layer {name!r}; {suggest(name, self.layers)}")
        return self.layers[name]

    @property
    def embedding(self) -> str:
        """Name of the layer that a linear probe uses: the pooled embedding right before the classifier.

        Raises
        ------
        InvalidInputError
            If the store's producer did not say which layer that is.
        """
        name = self.provenance.get("embedding")
        if name not in self.layers:
            raise InvalidInputError(
                f"store {self.uri!r} does not say which of its layers is the embedding, so there is no Linear "
                "baseline; extract with the preset 'head2toe', which captures it."
            )
        return str(name)

    def layer_indices(self, name: str) -> NDArray[np.int64]:
        """Return the global indices of a layer's features, as `columns` takes them."""
        layer = self.layer(name)
        return np.arange(layer.offset, layer.offset + layer.n_features, dtype=np.int64)

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return class indices, shape (sample,)."""
        labels = hierarchy.read_array(self.objects, f"{self.split(split).name}/labels", self.documents)
        return labels.astype(np.int64, copy=False)

    def ids(self, split: str) -> list[str]:
        """Return the samples' names, in order."""
        return [str(v) for v in hierarchy.read_array(self.objects, f"{self.split(split).name}/ids", self.documents)]

    def digests(self, split: str) -> list[str]:
        """Return the digests of the samples' contents, in order."""
        found = hierarchy.read_array(self.objects, f"{self.split(split).name}/digests", self.documents)
        return [str(v) for v in found]

    @cached_property
    def _committed(self) -> set[tuple[str, int]]:
        # Not made by `__init__`, which a view of other stores does without.
        return set()

    def missing(self, split: str | None = None) -> dict[str, list[int]]:
        """Return the blocks never committed, by split; splits that are complete are left out."""
        found = {}
        for s in [self.split(split)] if split is not None else self.splits.values():
            there = set(self.objects.names(f"blocks/{s.name}"))
            absent = [b for b in range(s.n_blocks) if layout.record_key(s.name, b).rsplit("/", 1)[1] not in there]
            self._committed.update((s.name, b) for b in set(range(s.n_blocks)).difference(absent))
            if absent:
                found[s.name] = absent
        return found

    def is_committed(self, split: str, block: int) -> bool:
        """Return whether a block is committed at this moment."""
        return self.objects.exists(layout.record_key(split, block))

    def record(self, split: str, block: int) -> BlockRecord:
        """Return a block's commit record, read once.

        Raises
        ------
        IncompleteStoreError
            If the block was never committed.
        DamagedStoreError
            If the record does not hold.
        """
        key = (split, block)
        if key not in self._records:
            try:
                self._records[key] = read_record(self.objects, split, block)
            except FileNotFoundError:
                raise self._incomplete({split: [block]}) from None
        return self._records[key]

    def _incomplete(self, missing: Mapping[str, Sequence[int]]) -> IncompleteStoreError:
        return IncompleteStoreError(
            f"store {self.uri!r} is incomplete, blocks missing in {self.describe_blocks(missing)}; "
            "run the same extraction again, it writes only these."
        )

    def describe_blocks(self, blocks: Mapping[str, Sequence[int]]) -> str:
        """Return blocks by split in words, such as ``train: 0–3, 7 of 9``."""
        return "; ".join(f"{s}: {_ranges(b)} of {self.splits[s].n_blocks}" for s, b in blocks.items())

    # ---------------------------------------------------------------- reading

    def chunks(self, split: str) -> Iterator[ChunkRef]:
        """Yield the address of every chunk of a split, by layer, then along features, then samples."""
        s = self.split(split)
        for layer in self.layers.values():
            for chunk in range(layer.n_chunks):
                for block in range(s.n_blocks):
                    yield ChunkRef(s.name, layer.name, chunk, block)

    def chunk_bytes(self, ref: ChunkRef) -> int:
        """Return the size in bytes of a chunk's object, padding and checksum included."""
        values = self.layers[ref.layer].chunk_features * self.splits[ref.split].block_samples
        return values * self.dtype.itemsize + layout.CRC_BYTES

    def read_chunk(self, ref: ChunkRef, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Return one chunk, verified against its commit record, shape (feature, sample).

        Given a buffer of `chunk_bytes` or more, the chunk is a view of it.

        Raises
        ------
        IncompleteStoreError
            If its block was never committed.
        DamagedStoreError
            If the chunk is absent, or its bytes are not those that were committed.
        """
        layer, split = self.layers[ref.layer], self.splits[ref.split]
        record = self.record(ref.split, ref.block)
        try:
            raw = self.objects.load(ref.key, buffer)
        except FileNotFoundError:
            raise self.damaged_chunk(ref, "is missing") from None
        self.reads.add(len(raw))
        payload = raw[: -layout.CRC_BYTES]
        if len(raw) != self.chunk_bytes(ref):
            raise self.damaged_chunk(ref, f"has {len(raw)} bytes instead of {self.chunk_bytes(ref)}")
        if layout.crc32c(payload) != record.checksums[layer.name][ref.chunk]:
            raise self.damaged_chunk(ref, "does not have the checksum that was committed")
        (f0, f1), (s0, s1) = layer.chunk_range(ref.chunk), split.block_range(ref.block)
        values = payload.view(self.dtype).reshape(layer.chunk_features, split.block_samples)
        return values[: f1 - f0, : s1 - s0]

    def damaged_chunk(self, ref: ChunkRef, how: str) -> DamagedStoreError:
        """Return the error that names a damaged chunk and the next step."""
        return self.damaged_block(ref.split, ref.block, f"chunk {ref.key}", how)

    def columns(
        self, split: str, indices: ArrayLike, samples: slice = slice(None), layer: str | None = None
    ) -> NDArray[np.float32]:
        """Return chosen features of a split, reading and verifying only their bytes.

        Parameters
        ----------
        split : str
            Name of the split.
        indices : array_like of int, shape (m,)
            Global feature indices, counting over `layers` in order; any order, duplicates allowed, negative ones
            count from the end.
        samples : slice
            A contiguous range of samples.
        layer : str, optional
            A layer whose features the indices count instead.

        Returns
        -------
        ndarray of float32, shape (sample, m)
            The raw stored values, in Fortran order.

        Raises
        ------
        IndexError
            If an index is out of range.
        InvalidInputError
            If indices are not integers, or the samples are not a contiguous range.
        DamagedStoreError
            If a chunk is missing or too short, or a feature's bytes are not those that were committed.
        """
        return read_columns(self, split, indices, samples, layer)

    def check_committed(self, split: Split, blocks: Sequence[int]) -> None:
        """Refuse blocks that are not committed.

        Raises
        ------
        IncompleteStoreError
            If one of them was never committed.
        """
        # A block that was seen committed stays so, and its bytes are checked: only of others is asked again.
        if not self._committed.issuperset((split.name, b) for b in blocks):
            missing = sorted(set(self.missing(split.name).get(split.name, ())).intersection(blocks))
            if missing:
                raise self._incomplete({split.name: missing})

    def row_checksums(self, split: str, block: int) -> NDArray[np.uint32]:
        """Return a block's CRC-32C per feature, verified against its commit record, shape (feature,)."""
        return self._block_values(split, block, layout.row_checksums_key(split, block), "rows_checksum").view("<u4")

    def _block_values(self, split: str, block: int, key: str, checksum: str) -> NDArray[np.uint8]:
        record = self.record(split, block)
        try:
            payload = self.objects.load(key)[: -layout.CRC_BYTES]
        except FileNotFoundError:
            raise self.damaged_block(split, block, key, "is missing") from None
        if layout.crc32c(payload) != getattr(record, checksum):
            raise self.damaged_block(split, block, key, "does not have the checksum that was committed")
        return payload

    def damaged_block(self, split: str, block: int, key: str, how: str) -> DamagedStoreError:
        """Return the error that names a damaged object of a block and the next step."""
        return DamagedStoreError(
            f"store {self.uri!r} is damaged: {key} {how}; `head2toe verify --repair` marks block {block} of split "
            f"{split!r} for the same extraction to redo."
        )

    def norms(self, split: str) -> NDArray[np.float32]:
        """Return the L2 norm of each layer's vector per sample, shape (layer, sample)."""
        s = self.split(split)
        out = np.empty((len(self.layers), s.n_samples), np.float32)
        for block in range(s.n_blocks):
            s0, s1 = s.block_range(block)
            payload = self._block_values(split, block, layout.norms_key(split, block), "norms_checksum")
            out[:, s0:s1] = payload.view("<f4").reshape(len(self.layers), s.block_samples)[:, : s1 - s0]
        return out

    # ---------------------------------------------------------------- views for people

    def dask(self, split: str, layer: str) -> dask.array.Array:
        """Return a layer as a lazy Dask array, shape (feature, sample), one Dask chunk per stored chunk.

        Reductions of float16 overflow silently in Dask: widen first, ``.astype("float32")``.
        """
        from store.views import dask_array

        return dask_array(self, split, layer)

    def xarray(self) -> xarray.DataTree:
        """Return the whole store as a lazy xarray DataTree: one node per split, one variable per layer."""
        from store.views import data_tree

        return data_tree(self)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `show` prints: plain JSON values."""
        backbone = self.spec.backbone.architecture if isinstance(self.spec, ExtractionSpec) else "imported"
        return {
            "uri": self.uri,
            "fingerprint": self.fingerprint,
            "backbone": backbone,
            "weights": self.provenance.get("weights"),
            "data": self.provenance.get("data"),
            "classes": len(self.class_names),
            "splits": {s.name: s.n_samples for s in self.splits.values()},
            "layers": len(self.layers),
            "features": self.n_features,
            "dtype": self.spec.dtype,
            "bytes": self.n_bytes,
            "created": self.created,
        }

    def __repr__(self) -> str:
        s = self.summary
        weights, data = (f" ({s['weights']})" if s["weights"] else ""), (f" on {s['data']}" if s["data"] else "")
        sizes = ", ".join(f"{k} {v:,}" for k, v in s["splits"].items())
        return (
            f"<ActivationStore {s['backbone']}{weights}{data}: {s['layers']} layers, {s['features']:,} features, "
            f"{sizes} samples, {s['dtype']}, {human_bytes(s['bytes'])} at {self.uri}>"
        )

    def _repr_html_(self) -> str:
        from store.html_summary import html_summary

        return html_summary(self)


def open_store(uri: str | os.PathLike[str], allow_incomplete: bool = False, **options: Any) -> ActivationStore:
    """Open an activation store for reading.

    Parameters
    ----------
    uri : str or path
        A local path, or any URL fsspec knows.
    allow_incomplete : bool
        Open a store whose blocks are not all committed; reading a missing block still raises.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    ActivationStore
        The opened store.

    Raises
    ------
    StoreNotFoundError
        If there is no store at `uri`.
    FormatVersionError
        If it was written in another format version.
    DamagedStoreError
        If its metadata does not hold.
    IncompleteStoreError
        If blocks are missing and `allow_incomplete` is false.

    Examples
    --------
    >>> from store import open_store
    >>> open_store("no/such/place")
    Traceback (most recent call last):
    store.errors.StoreNotFoundError: no activation store at 'no/such/place'; `head2toe list ROOT` shows what a root \
holds.
    """
    objects = open_objects(uri, **options)
    try:
        attributes = hierarchy.read_attributes(objects, verify=False)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise StoreNotFoundError(
            f"no activation store at {objects.uri!r}; `head2toe list ROOT` shows what a root holds."
        ) from None
    except PermissionError:
        raise InvalidInputError(f"store {objects.uri!r} cannot be read: permission denied.") from None
    if attributes.get("format") != FORMAT:
        raise StoreNotFoundError(f"{objects.uri!r} is a Zarr group but not an activation store.")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise FormatVersionError(
            f"store {objects.uri!r} has format version {attributes.get('format_version')!r}; this release reads "
            f"version {FORMAT_VERSION}: use the release that wrote it, or extract again."
        )
    hierarchy.read_attributes(objects)
    try:
        opened = ActivationStore(objects, attributes)
        opened.check()
        whole = fingerprint(opened.spec) == opened.fingerprint
    except Head2ToeError:
        raise
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DamagedStoreError(
            f"the metadata of store {objects.uri!r} is damaged: its specification does not have its fingerprint; "
            "restore it from a copy, or remove the store and extract again."
        )
    missing = {} if allow_incomplete else opened.missing()
    if missing:
        raise opened._incomplete(missing)
    return opened


def _ranges(numbers: Sequence[int]) -> str:
    """Return ``0–3, 7`` for ``[0, 1, 2, 3, 7]``."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
