"""Create a store at its final shape, write blocks, commit each one last and atomically."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store import hierarchy, layout
from store.activations import ActivationStore, open_store
from store.errors import ConflictError, InvalidInputError, NotFiniteError, StoreNotFoundError
from store.hierarchy import Filled
from store.layout import ChunkRef
from store.objects import Data, open_objects
from store.records import BlockRecord, encode_record, read_record
from store.spec import (
    FORMAT,
    FORMAT_VERSION,
    DataSpec,
    DTypeName,
    ExtractionSpec,
    ImportSpec,
    Manifest,
    digest,
    fingerprint,
)

LEAST_SQUARE_OF_INFINITY = 2.0**31
"""`layout.widen` makes 2¹⁶ or more of an infinity or a NaN in half precision; the sum of squares shows that."""
PART_VALUES = 2**18
"""Values whose squares are added in single precision before the sum goes on in double precision."""


class StoreWriter:
    """Writes blocks of one store; several writers may share a store if they write different blocks.

    Attributes
    ----------
    store : ActivationStore
        The store as it can be read so far.
    checksum_rows : callable
        Gives the CRC-32C of each row of bytes; a producer may put a faster one in the place of `layout.checksum_rows`.
    layer_norms : callable
        Gives each sample's norm; a producer may put a faster one in the place of the module's own.
    """

    def __init__(self, store: ActivationStore) -> None:
        self.store = store
        self.checksum_rows: Callable[[NDArray[np.uint8]], NDArray[np.uint32]] = layout.checksum_rows
        self.layer_norms: Callable[[NDArray[Any]], NDArray[np.float32]] = layer_norms

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self.store.uri

    def missing(self) -> dict[str, list[int]]:
        """Return the blocks still to be written, by split."""
        return self.store.missing()

    def write_block(
        self,
        split: str,
        block: int,
        layers: Mapping[str, NDArray[Any]],
        seconds: Mapping[str, float] | None = None,
        batch_size: int | None = None,
    ) -> BlockRecord:
        """Write all layers of one block, then commit it.

        Parameters
        ----------
        split : str
            Name of the split.
        block : int
            Number of the block.
        layers : mapping of str to ndarray, shape (feature, sample)
            Every layer's values for the samples of `store.splits[split].block_range(block)`, in the store's dtype.
        seconds : mapping of str to float, optional
            Time spent by activity, kept in the record beside the time of writing.
        batch_size : int, optional
            How many samples were computed at a time, kept in the record.

        Returns
        -------
        BlockRecord
            The record now in the store.

        Raises
        ------
        InvalidInputError
            If a layer is missing, unknown, or of the wrong shape or type.
        NotFiniteError
            If a layer holds an infinity or a NaN; nothing is committed.
        ConflictError
            If the block is already committed with other bytes; nothing is changed.
        """
        store = self.store
        s = store.split(split)
        if not 0 <= block < s.n_blocks:
            raise InvalidInputError(f"split {split!r} has no block {block}; its blocks are 0 to {s.n_blocks - 1}.")
        start, stop = s.block_range(block)
        if layers.keys() != store.layers.keys():
            odd = sorted(layers.keys() ^ store.layers.keys())[0]
            raise InvalidInputError(f"a block must hold exactly the store's layers; {odd!r} is missing or unknown.")
        norms = np.zeros((len(layers), stop - start), np.float32)
        encoded: dict[str, list[tuple[str, memoryview, bytes]]] = {}
        sums: list[NDArray[np.uint32]] = []
        for row, layer in enumerate(store.layers.values()):
            values = layers[layer.name]
            if values.shape != (layer.n_features, stop - start) or values.dtype != store.dtype:
                raise InvalidInputError(
                    f"layer {layer.name!r} of block {block} must be {store.dtype} of shape "
                    f"{(layer.n_features, stop - start)}, not {values.dtype} of shape {values.shape}."
                )
            norms[row] = self.layer_norms(values)
            if not np.isfinite(norms[row]).all():
                raise NotFiniteError(self._not_finite(layer.name, values, split, start))
            encoded[layer.name] = [
                (
                    ChunkRef(split, layer.name, c, block).key,
                    *layout.encode(values[slice(*layer.chunk_range(c))], (layer.chunk_features, s.block_samples)),
                )
                for c in range(layer.n_chunks)
            ]
            # Layer by layer, while it is in the cache of the processor.
            for chunk, (_, view, _) in enumerate(encoded[layer.name]):
                first, last = layer.chunk_range(chunk)
                rows = np.frombuffer(view, np.uint8).reshape(layer.chunk_features, -1)
                sums.append(self.checksum_rows(rows[: last - first]))
        rows_view, rows_crc = layout.encode(np.concatenate(sums)[:, None], (store.n_features, 1))
        norms_view, norms_crc = layout.encode(norms, (len(norms), s.block_samples))
        record = BlockRecord(
            split=split,
            block=block,
            start=start,
            stop=stop,
            checksums={n: tuple(int.from_bytes(crc, "little") for *_, crc in e) for n, e in encoded.items()},
            norms_checksum=int.from_bytes(norms_crc, "little"),
            rows_checksum=int.from_bytes(rows_crc, "little"),
            batch_size=batch_size,
        )
        committed = self._committed(record)
        if committed is not None:
            return committed
        began = time.perf_counter()
        items: list[tuple[str, Sequence[Data]]] = [
            (key, [payload, crc]) for chunks in encoded.values() for key, payload, crc in chunks
        ]
        items.append((layout.norms_key(split, block), [norms_view, norms_crc]))
        items.append((layout.row_checksums_key(split, block), [rows_view, rows_crc]))
        store.objects.write_all(items)
        spent = {**(seconds or {}), "write": time.perf_counter() - began}
        record = record.model_copy(update={"seconds": {k: round(v, 4) for k, v in spent.items()}})
        if not store.objects.create(layout.record_key(split, block), encode_record(record)):
            return self._committed(record) or record
        return record

    def _committed(self, record: BlockRecord) -> BlockRecord | None:
        try:
            there = read_record(self.store.objects, record.split, record.block)
        except FileNotFoundError:
            return None
        if not there.same_content(record):
            raise ConflictError(
                f"block {record.block} of split {record.split!r} in {self.uri!r} is already committed with other "
                "bytes; nothing was changed: check that both writers use the same batch size and device."
            )
        return there

    def _not_finite(self, layer: str, values: NDArray[Any], split: str, start: int) -> str:
        bad = ~np.isfinite(values).all(axis=0)
        where = f"layer {layer!r}, first at sample {start + int(np.argmax(bad))} of split {split!r}"
        if np.isnan(values).any():
            return f"the backbone gives NaN in {where}; check the weights and the input, nothing of this block is kept."
        advice = "; extract with --dtype float32" if values.dtype.itemsize == 2 else ""
        return f"values overflow {values.dtype.name} in {where}{advice}, nothing of this block is kept."


def layer_norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return the L2 norm of each sample's vector as stored, shape (sample,), from (feature, sample) values."""
    total = np.zeros(values.shape[1], np.float64)
    for part in np.array_split(values, max(1, values.size // PART_VALUES)):
        if values.dtype.itemsize == 2:
            wide = layout.widen(part)
            squares = np.einsum("fs,fs->s", wide, wide)
            if squares.max(initial=0) < LEAST_SQUARE_OF_INFINITY:
                total += squares
                continue
        wide = part.astype(np.float32, copy=False)
        total += np.einsum("fs,fs->s", wide, wide, dtype=np.float64)
    return np.sqrt(total).astype(np.float32)


def create_store(
    uri: str | os.PathLike[str],
    layers: Mapping[str, int],
    splits: Mapping[str, int],
    *,
    manifests: Mapping[str, Manifest] | None = None,
    class_names: Sequence[str] | None = None,
    dtype: DTypeName = "float16",
    spec: ExtractionSpec | ImportSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    block_samples: int | Mapping[str, int] | None = None,
    **options: Any,
) -> StoreWriter:
    """Create a store at its final shape, or open the same one for resuming.

    Parameters
    ----------
    uri : str or path
        Where the store shall be.
    layers : mapping of str to int
        Features per layer, in order of depth.
    splits : mapping of str to int
        Samples per split.
    manifests : mapping of str to Manifest, optional
        Ids, labels and content digests per split; without it samples are numbered and labels are 0.
    class_names : sequence of str, optional
        Name per class index; numbers if not given.
    dtype : {"float16", "float32"}
        Type of the stored values.
    spec : ExtractionSpec or ImportSpec, optional
        What identifies the activations; derived from the other arguments if not given.
    provenance : mapping, optional
        Anything worth knowing that is not identity; JSON values.
    block_samples : int or mapping of str to int, optional
        Samples per block at most; chosen from the width of the layers if not given. By split, exactly so many.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    StoreWriter
        Its `missing()` says which blocks to write.

    Raises
    ------
    ConflictError
        If another store is at `uri` already.
    InvalidInputError
        If names, sizes or manifests do not fit, or the place is not writable.

    Examples
    --------
    >>> import numpy as np
    >>> from store import create_store, open_store
    >>> writer = create_store("memory://example", {"a": 3}, {"train": 2})
    >>> record = writer.write_block("train", 0, {"a": np.ones((3, 2), "float16")})
    >>> open_store("memory://example").columns("train", [0, 2])
    array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    manifests = dict(manifests or {s: _numbered(n) for s, n in splits.items()})
    for name, n in splits.items():
        if name not in manifests or len(manifests[name].ids) != n:
            raise InvalidInputError(f"split {name!r} has {n} samples but no manifest of that length was given.")
    if class_names is None:
        n_classes = max(int(np.max(m.labels, initial=0)) for m in manifests.values()) + 1
        class_names = [str(c) for c in range(n_classes)]
    if spec is None:
        data = DataSpec(splits={s: manifests[s].spec() for s in splits}, class_names=tuple(class_names))
        spec = ImportSpec(layers=dict(layers), dtype=dtype, data=data)
    planned_layers, planned_splits = layout.plan_layers(layers, splits, np.dtype(spec.dtype).itemsize, block_samples)
    small: dict[str, Filled] = {}
    blank = [array for s in planned_splits for array in layout.block_arrays(planned_layers, s, spec.dtype)]
    for s in planned_splits:
        small[f"{s.name}/labels"] = Filled(np.asarray(manifests[s.name].labels, np.int64), ("sample",))
        small[f"{s.name}/digests"] = Filled(list(manifests[s.name].digests), ("sample",))
        small[f"{s.name}/ids"] = Filled(list(manifests[s.name].ids), ("sample",))
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(spec),
        "spec": spec.model_dump(mode="json"),
        "layer_order": [vars(layer) for layer in planned_layers],
        "splits": [vars(s) for s in planned_splits],
        "provenance": dict(provenance or {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    objects = open_objects(uri, **options)
    try:
        there = open_store(uri, allow_incomplete=True, **options)
    except StoreNotFoundError:
        if objects.exists(hierarchy.METADATA):
            # Something else than a store, which is refused now with its name, or another process made it just now.
            return _resumed(open_store(uri, allow_incomplete=True, **options), attributes["fingerprint"])
        if objects.exists(layout.REMOVING):
            raise ConflictError(
                f"the removal of what was at {objects.uri!r} has not been finished; run `head2toe remove` again first."
            ) from None
    else:
        return _resumed(there, attributes["fingerprint"])
    try:
        *members, (root, root_document) = hierarchy.documents(small, attributes, blank).items()
        objects.write_all((key, [document]) for key, document in members)
        objects.create(root, root_document)
    except OSError as error:
        raise InvalidInputError(
            f"cannot write to {objects.uri!r}: {error.strerror or error}; choose a root that is writable."
        ) from error
    return _resumed(open_store(uri, allow_incomplete=True, **options), attributes["fingerprint"])


def _resumed(there: ActivationStore, wanted: str) -> StoreWriter:
    if there.fingerprint != wanted:
        raise ConflictError(
            f"{there.uri!r} already holds another store (fingerprint {there.fingerprint}, not {wanted}); "
            "choose another place or remove it first."
        )
    there.objects.sweep()
    return StoreWriter(there)


def _numbered(n: int) -> Manifest:
    ids = [f"{i:08d}" for i in range(n)]
    return Manifest(ids, np.zeros(n, np.int64), [digest(i) for i in ids])
