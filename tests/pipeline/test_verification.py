"""`verify_store` names every damaged or missing block, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.verification import verify_store
from store import open_store
from store.layout import ChunkRef


def test_an_undamaged_store_has_no_problems(store) -> None:
    assert verify_store(store) == []


def test_every_flipped_bit_in_a_chunk_is_found(store) -> None:
    rng = np.random.default_rng(0)
    chunks = [ref for split in store.splits for ref in store.chunks(split)]
    for _ in range(30):
        ref = chunks[rng.integers(len(chunks))]
        path = Path(store.uri) / ref.key
        whole = path.read_bytes()
        broken = bytearray(whole)
        at = int(rng.integers(len(broken) - 4))
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        assert any(ref.key in problem for problem in verify_store(open_store(store.uri)))
        path.write_bytes(whole)
    assert verify_store(open_store(store.uri)) == []


def test_missing_blocks_chunks_and_norms_are_named(store) -> None:
    root = Path(store.uri)
    (root / "blocks/test/000001.json").unlink()
    (root / ChunkRef("train", "stem", 0, 2).key).unlink()
    (root / "train/norms/c/0/0").unlink()
    problems = verify_store(open_store(store.uri, allow_incomplete=True))
    assert len(problems) == 3
    assert any("block 1 of split 'test' is missing" in p for p in problems)
    assert any("train/layers/stem/c/0/2" in p for p in problems)
    assert any("train/norms/c/0/0" in p for p in problems)
