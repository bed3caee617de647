"""Verification: read everything in a store once, name what is damaged or missing, mark blocks for rewriting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from pipeline.compute import Progress, map_tasks, scratch
from store import hierarchy, layout
from store.activations import ActivationStore
from store.errors import DamagedStoreError, StoreNotFoundError
from store.hierarchy import METADATA
from store.layout import ChunkRef, Split
from store.records import BlockRecord, read_record
from store.results import Kind, list_results, read_result, result_digest
from store.spec import Manifest

What = Literal["block", "record", "metadata", "labels", "ids", "result"]
_SAMPLES: dict[str, What] = {"labels": "labels", "ids": "ids"}
MOST_NAMED = 3
"""Damaged chunks of one block that its sentence names."""

Item = TypeVar("Item")
Value = TypeVar("Value")
# Storage that gives no answer or no permission says nothing of the bytes, and must not pass for damage.
_DOES_NOT_HOLD = (
    DamagedStoreError,
    StoreNotFoundError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True)
class Problem:
    """One part of a store that is not as it must be.

    Attributes
    ----------
    what : str
        ``block``, ``record`` (of a block the store does not have), ``metadata``, ``labels``, ``ids`` or ``result``.
    name : str
        Which one, such as ``train/3`` or ``results/heads/3f2a…``.
    message : str
        One sentence for the user; also the text of the problem.
    record : str, optional
        Key of the commit record whose removal makes the next extraction write the part again.
    absent : bool
        The block was never committed, so that the next extraction writes it anyway.
    """

    what: What
    name: str
    message: str
    record: str | None = None
    absent: bool = False

    @property
    def repairable(self) -> bool:
        """Whether another extraction mends it, once it is marked."""
        return self.absent or self.record is not None

    def __str__(self) -> str:
        return self.message


class _Expected(NamedTuple):
    """An object of one block, and the checksum that was committed for it."""

    block: tuple[str, int]
    key: str
    n_bytes: int
    checksum: int


def verify_store(store: ActivationStore, progress: Progress | None = None) -> list[Problem]:
    """Return the problems found, each block at most once; an empty list for a complete and undamaged store.

    Commit records, every chunk of activations and norms, labels, ids, metadata and results are read afresh. Chunks
    are read one at a time per thread.

    Parameters
    ----------
    store : ActivationStore
        Opened with ``allow_incomplete=True``.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    """

    def each(stage: str, function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
        return map_tasks(function, items, stage=stage, progress=progress) if items else []

    blocks = [(split, block) for split in store.splits.values() for block in range(split.n_blocks)]
    records = each("verifying commit records", lambda b: _check_record(store, *b), blocks)
    expected: list[_Expected] = []
    sentences: dict[tuple[str, int], Problem] = {}
    for (split, block), found in zip(blocks, records, strict=True):
        if isinstance(found, Problem):
            sentences[split.name, block] = found
        else:
            expected += _objects_of(store, found)
    checked = each("verifying chunks", lambda e: _check_object(store, e), expected)
    damage: dict[tuple[str, int], list[str]] = {}
    for item, how in zip(expected, checked, strict=True):
        if how is not None:
            damage.setdefault(item.block, []).append(f"{item.key!r} {how}")
    for (name, block), parts in damage.items():
        more = f" and {len(parts) - MOST_NAMED:,} more chunks" if len(parts) > MOST_NAMED else ""
        sentences[name, block] = _damaged_block(name, block, "; ".join(parts[:MOST_NAMED]) + more)
    documents = list(_check_documents(store))
    # What is named as an object already is not named again for not reading back.
    intact = [s for s in store.splits.values() if not any(p.name.startswith(f"{s.name}/") for p in documents)]
    return [
        *documents,
        *(problem for split in intact for problem in _check_samples(store, split)),
        *(sentences[split.name, block] for split, block in blocks if (split.name, block) in sentences),
        *_stray_records(store),
        *(p for p in each("verifying results", lambda r: _check_result(store, *r), _results(store)) if p is not None),
    ]


def mark_for_rewriting(store: ActivationStore, problems: Sequence[Problem]) -> list[Problem]:
    """Remove the commit records of damaged blocks, so that the next extraction writes exactly these blocks again.

    Parameters
    ----------
    store : ActivationStore
        The store.
    problems : sequence of Problem
        As `verify_store` returned them.

    Returns
    -------
    list of Problem
        Those that were marked. Blocks never committed need no mark; metadata, labels, ids and results have none.
    """
    marked = [problem for problem in problems if problem.record is not None]
    for problem in marked:
        store.objects.remove(str(problem.record))
    return marked


# -------------------------------------------------------------------- blocks


def _check_record(store: ActivationStore, split: Split, block: int) -> BlockRecord | Problem:
    """Return a block's commit record if it is there and describes the block."""
    try:
        record = read_record(store.objects, split.name, block)
    except FileNotFoundError:
        name = f"{split.name}/{block}"
        sentence = f"block {block} of split {split.name!r} is missing; the same extraction writes it."
        return Problem("block", name, sentence, absent=True)
    except _DOES_NOT_HOLD:
        return _damaged_block(split.name, block, "its commit record does not have its own digest")
    wrong = _contradiction(store, split, record)
    return record if wrong is None else _damaged_block(split.name, block, wrong)


def _contradiction(store: ActivationStore, split: Split, record: BlockRecord) -> str | None:
    """Return what a commit record says that cannot be true of this store."""
    wanted = split.block_range(record.block)
    if (record.start, record.stop) != wanted:
        return f"its commit record is about samples {record.start} to {record.stop}, not {wanted[0]} to {wanted[1]}"
    if not record.finite:
        return "its commit record says that not every value is finite"
    for name in sorted(record.checksums.keys() - store.layers.keys()):
        return f"its commit record is about layer {name!r}, which the store does not have"
    for layer in store.layers.values():
        n = len(record.checksums.get(layer.name, ()))
        if n != layer.n_chunks:
            return f"its commit record has {n} checksums for layer {layer.name!r} instead of {layer.n_chunks}"
    return None


def _damaged_block(split: str, block: int, how: str) -> Problem:
    sentence = f"block {block} of split {split!r} is damaged: {how}."
    return Problem("block", f"{split}/{block}", sentence, record=layout.record_key(split, block))


def _objects_of(store: ActivationStore, record: BlockRecord) -> Iterator[_Expected]:
    """Yield every object that a commit record vouches for."""
    split = store.splits[record.split]
    at = (record.split, record.block)
    for layer in store.layers.values():
        for chunk, checksum in enumerate(record.checksums[layer.name]):
            ref = ChunkRef(record.split, layer.name, chunk, record.block)
            yield _Expected(at, ref.key, store.chunk_bytes(ref), checksum)
    norms = len(store.layers) * split.block_samples * np.dtype(np.float32).itemsize + layout.CRC_BYTES
    yield _Expected(at, layout.norms_key(*at), norms, record.norms_checksum)
    sums = store.n_features * np.dtype(np.uint32).itemsize + layout.CRC_BYTES
    yield _Expected(at, layout.row_checksums_key(*at), sums, record.rows_checksum)


def _check_object(store: ActivationStore, expected: _Expected) -> str | None:
    """Return how an object differs from what was committed; its own checksum, which other readers use, included."""
    try:
        raw = store.objects.load(expected.key, scratch(expected.n_bytes))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if len(raw) != expected.n_bytes:
        return f"has {len(raw):,} bytes instead of {expected.n_bytes:,}"
    payload, own = raw[: -layout.CRC_BYTES], raw[-layout.CRC_BYTES :].tobytes()
    if layout.crc32c(payload) != expected.checksum:
        return "does not have the checksum that was committed"
    if int.from_bytes(own, "little") != expected.checksum:
        return "does not end with its checksum"
    return None


def _stray_records(store: ActivationStore) -> Iterator[Problem]:
    """Yield commit records of blocks that the store does not have."""
    for split in store.objects.names("blocks"):
        known = store.splits.get(split)
        own = {layout.record_key(split, b).rpartition("/")[2] for b in range(known.n_blocks)} if known else set()
        for name in store.objects.names(f"blocks/{split}"):
            if name not in own:
                key = f"blocks/{split}/{name}"
                yield Problem("record", key, f"commit record {key!r} is of a block that the store does not have.", key)


# -------------------------------------------------------------------- the rest


def _check_documents(store: ActivationStore) -> Iterator[Problem]:
    """Yield the metadata, labels, ids and digests whose bytes are not those the root vouches for."""
    try:
        vouched = dict(hierarchy.read_attributes(store.objects)["documents"])
    except _DOES_NOT_HOLD as error:
        yield Problem("metadata", METADATA, _beyond_repair("the root's metadata does not read back", error))
        return
    for key, expected in vouched.items():
        try:
            wrong = hierarchy.check_documents(store.objects, {key: expected})
        except _DOES_NOT_HOLD:
            wrong = [key]
        if wrong:
            split, _, name = key.partition("/c/")[0].rpartition("/")
            what = _SAMPLES.get(name, "metadata") if split in store.splits else "metadata"
            yield Problem(what, key, _beyond_repair(f"{key!r} is missing or not what was written"))


def _check_samples(store: ActivationStore, split: Split) -> Iterator[Problem]:
    """Yield a problem if a split's labels, ids and content digests are not those its fingerprint stands for."""
    try:
        manifest = Manifest(store.ids(split.name), store.labels(split.name), store.digests(split.name))
        if manifest.spec() == store.spec.data.splits[split.name]:
            return
        sentence = f"labels, ids and digests of split {split.name!r} are not those of its manifest"
    except _DOES_NOT_HOLD as error:
        sentence = f"labels, ids or digests of split {split.name!r} do not read back ({str(error).rstrip('.')})"
    yield Problem("labels", split.name, _beyond_repair(sentence))


def _beyond_repair(what: str, error: Exception | None = None) -> str:
    why = "" if error is None else f" ({str(error).partition(';')[0].rstrip('.')})"
    return f"{what}{why}; --repair cannot mend this: restore it from a copy, or remove the store."


def _results(store: ActivationStore) -> list[tuple[Kind, str]]:
    return [(kind, name) for kind in get_args(Kind) for name in list_results(store, kind)]


def _check_result(store: ActivationStore, kind: Kind, name: str) -> Problem | None:
    """Return a problem if a result does not read back, or is not of the inputs whose digest it bears."""
    path = f"results/{kind}/{name}"
    try:
        result = read_result(store, kind, name)
        how = "it does not have the digest of its inputs"
        whole = result.digest == name == result_digest(store, kind, result.inputs)
    except _DOES_NOT_HOLD as error:
        whole, how = False, str(error).partition(";")[0].rstrip(".")
    if whole:
        return None
    return Problem("result", path, f"{path!r} is damaged: {how}; delete that folder and compute it again.")
