"""Import: a store from activations that were computed elsewhere, identified by their content."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.compute import Progress
from pipeline.npz import LABELS, open_archive, sort_members
from store import layout
from store.activations import open_store
from store.errors import InvalidInputError, NotFiniteError, StoreNotFoundError, suggest
from store.objects import join
from store.spec import DIGEST_LENGTH, DataSpec, DTypeName, ImportSpec, Manifest, fingerprint
from store.writer import create_store

MAX_CLASSES = 1_000_000
"""Labels above this are not class indices but something else, such as identifiers."""
READ_BYTES = 4 * 2**20
"""What is held at a time while contents are digested."""


class Rows(Protocol):
    """One layer's values by sample: a two-dimensional array, or anything that is sliced like one by its rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of samples and of features."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Return some samples, shape (sample, feature)."""


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes
    ----------
    uri : str
        Where the store is.
    fingerprint : str
        Its identity.
    imported : int
        Samples written by this call.
    reused : int
        Samples whose blocks were there already.
    n_bytes : int
        Bytes of all its activations.
    seconds : float
        Time of this call.
    """

    uri: str
    fingerprint: str
    imported: int
    reused: int
    n_bytes: int
    seconds: float


def import_arrays(
    arrays: Mapping[str, Mapping[str, Rows]],
    labels: Mapping[str, ArrayLike],
    root: str | os.PathLike[str],
    *,
    ids: Mapping[str, ArrayLike] | None = None,
    class_names: Sequence[str] | None = None,
    dtype: DTypeName = "float16",
    embedding: str | None = None,
    data: str = "arrays",
    block_samples: int | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Imported:
    """Write a store of activations made elsewhere under `root`, or only what is missing of it.

    The arrays are read twice, some samples at a time: once for the digest of their content, which names the store,
    and once to write the blocks that are not there. Nothing is written if anything in them cannot be used.

    Parameters
    ----------
    arrays : mapping of str to mapping of str to array, shape (sample, feature)
        By split, then by layer; layers in order of depth, the same in every split. Memory maps and the like stay on
        disk, since only consecutive rows are taken.
    labels : mapping of str to array_like of int, shape (sample,)
        Class indices by split.
    root : str or path
        Folder or URL under which stores lie.
    ids : mapping of str to array_like, optional
        Unique names of the samples by split; numbers if not given.
    class_names : sequence of str, optional
        Name per class index; numbers if not given.
    dtype : {"float16", "float32"}
        Type of the stored values.
    embedding : str, optional
        Layer that the Linear baseline uses; not part of the identity.
    data : str
        What to call the data; not part of the identity.
    block_samples : int, optional
        Samples per block at most; chosen from the width of the layers if not given.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    dry_run : bool
        Read and check everything, but write nothing.

    Returns
    -------
    Imported
        Where the store is and how much of it was, or would be, written.

    Raises
    ------
    InvalidInputError
        If shapes, types, labels, ids or names cannot be used, or the place is not writable.
    NotFiniteError
        If a value is not a number, or overflows `dtype`.

    Examples
    --------
    >>> import numpy as np
    >>> from pipeline.importing import import_arrays
    >>> layers = {"conv": np.ones((2, 3), "float32"), "head": np.eye(2, dtype="float32")}
    >>> done = import_arrays({"train": layers}, {"train": [0, 1]}, "memory://imported")
    >>> done.imported
    2
    """
    start = time.perf_counter()
    layers, sizes = _check_arrays(arrays)
    if embedding is not None and embedding not in layers:
        raise InvalidInputError(f"embedding {embedding!r} is not a layer of the data; {suggest(embedding, layers)}")
    odd = sorted((labels.keys() | (ids or {}).keys()) - arrays.keys())
    if odd:
        raise InvalidInputError(f"split {odd[0]!r} has labels or ids but no layers.")
    checked = {split: _check_labels(split, labels.get(split), n, class_names) for split, n in sizes.items()}
    named = {split: _check_ids(split, (ids or {}).get(split), n) for split, n in sizes.items()}
    # Refuses names and sizes that a store cannot have before anything is read.
    layout.plan_layers(layers, sizes, np.dtype(dtype).itemsize, block_samples)
    manifests = {}
    for split, n in sizes.items():
        ordered = {layer: arrays[split][layer] for layer in layers}
        manifests[split] = Manifest(named[split], checked[split], _digests(split, ordered, n, dtype, progress))
    if class_names is None:
        class_names = [str(c) for c in range(max(int(y.max()) for y in checked.values()) + 1)]
    spec = ImportSpec(
        layers=layers,
        dtype=dtype,
        data=DataSpec(splits={s: m.spec() for s, m in manifests.items()}, class_names=tuple(class_names)),
        # Canonical JSON sorts names, and the order of layers is part of what is stored.
        identity={"layer_order": list(layers)},
    )
    uri, n_bytes = join(root, f"{fingerprint(spec)}.zarr"), _n_bytes(layers, sizes, dtype)
    if dry_run:
        total = _count_missing(uri, sizes)
        reused = sum(sizes.values()) - total
        return Imported(uri, fingerprint(spec), total, reused, n_bytes, time.perf_counter() - start)
    writer = create_store(
        uri,
        layers,
        sizes,
        manifests=manifests,
        class_names=class_names,
        dtype=dtype,
        spec=spec,
        provenance={
            "data": data,
            "weights": None,
            "embedding": embedding,
            "versions": {name: version(name) for name in ("numpy", "zarr")},
        },
        block_samples=block_samples,
    )
    store = writer.store
    todo = [(split, *store.splits[split].block_range(b), b) for split, found in writer.missing().items() for b in found]
    total, done = sum(stop - first for _, first, stop, _ in todo), 0
    for split, first, stop, block in todo:
        clock = time.perf_counter()
        # Transposed views: the writer turns one chunk at a time.
        values = {layer: _cast(arrays[split][layer][first:stop], store.dtype).T for layer in layers}
        try:
            writer.write_block(split, block, values, {"read": time.perf_counter() - clock})
        except OSError as error:
            raise InvalidInputError(
                f"cannot write to {store.uri!r}: {error.strerror or error}; what is written stays: import again to "
                "go on."
            ) from error
        done += stop - first
        if progress:
            progress("writing samples", done, total)
    reused = sum(sizes.values()) - total
    return Imported(store.uri, store.fingerprint, total, reused, n_bytes, time.perf_counter() - start)


def import_file(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    dtype: DTypeName = "float16",
    embedding: str | None = None,
    block_samples: int | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Imported:
    """Import an ``.npz`` file, as `numpy.savez` and `numpy.savez_compressed` write them.

    Its arrays are named ``<split>/<layer>``, ``<split>/labels`` and, optionally, ``<split>/ids``; without a slash in
    any name there is one split, ``train``. Rows are decompressed as they are needed; an array in Fortran order is
    held whole. No pickle is ever loaded.

    Parameters
    ----------
    path : str or path
        The file.
    root, class_names, dtype, embedding, block_samples, progress, dry_run
        As for `import_arrays`.

    Returns
    -------
    Imported
        Where the store is and how much of it was written.

    Raises
    ------
    InvalidInputError
        If the file is not such a file, is damaged, or holds what `import_arrays` refuses.
    NotFiniteError
        If a value is not a number, or overflows `dtype`.
    """
    with ExitStack() as stack:
        archive = stack.enter_context(open_archive(Path(path)))
        arrays, labels, ids = sort_members(archive, str(path), stack)
        return import_arrays(
            arrays,
            labels,
            root,
            ids=ids,
            class_names=class_names,
            dtype=dtype,
            embedding=embedding,
            data=Path(path).name,
            block_samples=block_samples,
            progress=progress,
            dry_run=dry_run,
        )


def _n_bytes(layers: Mapping[str, int], sizes: Mapping[str, int], dtype: DTypeName) -> int:
    return sum(layers.values()) * sum(sizes.values()) * np.dtype(dtype).itemsize


def _count_missing(uri: str, sizes: Mapping[str, int]) -> int:
    """Return how many samples of a store are not there."""
    try:
        store = open_store(uri, allow_incomplete=True)
    except StoreNotFoundError:
        return sum(sizes.values())
    ranges = [store.splits[split].block_range(block) for split, found in store.missing().items() for block in found]
    return sum(stop - first for first, stop in ranges)


# -------------------------------------------------------------------- checks


def _check_arrays(arrays: Mapping[str, Mapping[str, Rows]]) -> tuple[dict[str, int], dict[str, int]]:
    """Return features by layer and samples by split of arrays that fit each other."""
    if not arrays:
        raise InvalidInputError("there are no arrays to import.")
    first, layers = next(iter(arrays)), dict[str, int]()
    sizes = dict[str, int]()
    for split, members in arrays.items():
        if not members:
            raise InvalidInputError(f"split {split!r} has no layers.")
        if split != first and members.keys() != arrays[first].keys():
            odd = min(members.keys() ^ arrays[first].keys())
            raise InvalidInputError(f"layer {odd!r} is not in both split {first!r} and split {split!r}.")
        for layer, values in members.items():
            name = f"array '{split}/{layer}'"
            if values.dtype.kind not in "fiu":
                raise InvalidInputError(f"{name} holds {values.dtype}; activations must be numbers.")
            if len(values.shape) != 2:
                raise InvalidInputError(
                    f"{name} has shape {values.shape}; it must have two dimensions, (sample, feature)."
                )
            n, features = values.shape
            if sizes.setdefault(split, n) != n:
                raise InvalidInputError(f"{name} has {n} samples, but the layers before it have {sizes[split]}.")
            if split == first:
                layers[layer] = features
            elif layers[layer] != features:
                raise InvalidInputError(f"{name} has {features} features, but {layers[layer]} in split {first!r}.")
        if sizes[split] == 0:
            raise InvalidInputError(f"split {split!r} has no samples.")
    return layers, sizes


def _check_labels(split: str, values: ArrayLike | None, n: int, class_names: Sequence[str] | None) -> NDArray[np.int64]:
    if values is None:
        raise InvalidInputError(f"split {split!r} has no labels; give '{split}/{LABELS}' of shape (sample,).")
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InvalidInputError(
            f"labels of split {split!r} have shape {labels.shape} of {labels.dtype}; they must be whole numbers, one "
            "per sample."
        )
    if len(labels) != n:
        raise InvalidInputError(f"split {split!r} has {n} samples but {len(labels)} labels.")
    if labels.min() < 0:
        raise InvalidInputError(f"split {split!r} has the negative label {labels.min()}; classes count from 0.")
    n_classes = MAX_CLASSES if class_names is None else len(class_names)
    if labels.max() >= n_classes:
        known = f"there are {n_classes} class names" if class_names is not None else "classes count from 0"
        raise InvalidInputError(f"split {split!r} has the label {labels.max()}, but {known}.")
    return labels.astype(np.int64)


def _check_ids(split: str, values: ArrayLike | None, n: int) -> list[str]:
    if values is None:
        return [f"{i:08d}" for i in range(n)]
    ids = np.asarray(values)
    if ids.ndim != 1 or ids.dtype.kind not in "USiu" or len(ids) != n:
        raise InvalidInputError(
            f"ids of split {split!r} have shape {ids.shape} of {ids.dtype}; they must be {n} names, one per sample."
        )
    return [i.decode("utf-8", "replace") if isinstance(i, bytes) else str(i) for i in ids.tolist()]


# -------------------------------------------------------------------- contents


def _digests(split: str, layers: Mapping[str, Rows], n: int, dtype: DTypeName, progress: Progress | None) -> list[str]:
    """Return the digest of each sample's values as they will be stored, over all layers in order."""
    stored = np.dtype(dtype).newbyteorder("<")
    widths = [values.shape[1] for values in layers.values()]
    step = max(1, READ_BYTES // (stored.itemsize * max(sum(widths), 1)))
    found: list[str] = []
    for start in range(0, n, step):
        stop = min(start + step, n)
        whole = np.empty((stop - start, sum(widths)), stored)
        offset = 0
        for (name, values), width in zip(layers.items(), widths, strict=True):
            given = values[start:stop]
            part = _cast(given, stored)
            if not np.isfinite(part).all():
                raise NotFiniteError(_not_finite(split, name, given, part, start))
            whole[:, offset : offset + width] = part
            offset += width
        found += [hashlib.sha256(row.data).hexdigest()[:DIGEST_LENGTH] for row in whole]
        if progress:
            progress(f"reading split {split}", stop, n)
    return found


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Overflow is looked for afterwards, and told with its place.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values).astype(dtype)


def _not_finite(split: str, layer: str, given: NDArray[Any], cast: NDArray[Any], start: int) -> str:
    bad = ~np.isfinite(cast).all(axis=1)
    where = f"layer {layer!r}, first at sample {start + int(np.argmax(bad))} of split {split!r}"
    if not np.isfinite(given).all():
        return f"not every value is a finite number in {where}; nothing was written."
    advice = "import with --dtype float32" if cast.dtype.itemsize == 2 else "scale the activations down"
    return f"values overflow {cast.dtype.name} in {where}; {advice}, nothing was written."
