"""Commit records: the small objects that say which blocks are whole, and what their chunks must be."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from store.errors import DamagedStoreError
from store.layout import record_key
from store.objects import Objects
from store.spec import Frozen, canonical_json, digest


class BlockRecord(Frozen):
    """Proof that a block was written whole.

    Attributes
    ----------
    split : str
        Split of the block.
    block : int
        Number of the block within its split.
    start, stop : int
        Samples [start, stop) of the split.
    checksums : dict
        CRC-32C per chunk along the feature dimension, by layer.
    norms_checksum : int
        CRC-32C of the block's chunk of layer norms.
    rows_checksum : int
        CRC-32C of the block's chunk of checksums per feature.
    finite : bool
        Whether every value is finite; writers refuse blocks that are not.
    seconds : dict
        Time spent by activity, such as reading, forward, writing.
    batch_size : int, optional
        Samples that were computed at a time; it changes values in the last digits.
    """

    split: str
    block: int
    start: int
    stop: int
    checksums: dict[str, tuple[int, ...]]
    norms_checksum: int
    rows_checksum: int
    finite: bool = True
    seconds: dict[str, float] = Field(default_factory=dict)
    batch_size: int | None = None

    def same_content(self, other: BlockRecord) -> bool:
        """Return whether both records describe the same bytes, however they came about."""
        how: dict[str, Any] = {"seconds": {}, "batch_size": None}
        return self.model_copy(update=how) == other.model_copy(update=how)


def encode_record(record: BlockRecord) -> bytes:
    """Return a record's bytes, which carry a digest of themselves."""
    body = record.model_dump(mode="json")
    return canonical_json({"record": body, "digest": digest(body)}).encode()


def read_record(objects: Objects, split: str, block: int) -> BlockRecord:
    """Read and check one commit record.

    Raises
    ------
    FileNotFoundError
        If the block was never committed.
    DamagedStoreError
        If the record's own digest does not hold or it is about another block.
    """
    raw = objects.read(record_key(split, block))
    try:
        document: dict[str, Any] = json.loads(raw)
        record = BlockRecord.model_validate(document["record"])
        whole = document["digest"] == digest(document["record"]) and (record.split, record.block) == (split, block)
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError):
        whole = False
    if not whole:
        raise DamagedStoreError(
            f"the commit record of block {block} of split {split!r} in {objects.uri!r} is damaged; "
            "delete that record and extract again: only this block is redone."
        )
    return record
