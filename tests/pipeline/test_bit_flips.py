"""A bit that flips anywhere in a store is reported by `verify` and never returned as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.verification import verify_store
from store import open_store
from store.errors import Head2ToeError

FLIPS = 200


def read_everything(uri: str) -> dict[str, np.ndarray]:
    """Read every value of a store by every way of reading."""
    store = open_store(uri)
    found: dict[str, np.ndarray] = {}
    for split in store.splits:
        found[f"{split}/columns"] = store.columns(split, np.arange(store.n_features))
        found[f"{split}/norms"] = store.norms(split)
        found[f"{split}/labels"] = store.labels(split)
        found[f"{split}/ids"] = np.array(store.ids(split))
        for ref in store.chunks(split):
            found[ref.key] = store.read_chunk(ref)
    return found


def problems(uri: str) -> list[str]:
    try:
        return verify_store(open_store(uri, allow_incomplete=True))
    except Head2ToeError as error:
        return [str(error)]


@pytest.mark.slow
def test_two_hundred_flipped_bits_are_all_reported_and_none_is_returned_as_data(store) -> None:
    rng = np.random.default_rng(0)
    files = [path for path in sorted(Path(store.uri).rglob("*")) if path.is_file()]
    assert {path.suffix for path in files} == {"", ".json"}
    expected, reported, returned = read_everything(store.uri), 0, 0
    for flip in range(FLIPS):
        # Every file in turn, so that records and metadata are hit as often as chunks.
        path = files[flip % len(files)]
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        reported += bool(problems(store.uri))
        try:
            found = read_everything(store.uri)
        except (Head2ToeError, FileNotFoundError):
            pass
        else:
            returned += any(not np.array_equal(found[key], expected[key]) for key in expected)
        path.write_bytes(whole)
    assert (reported, returned) == (FLIPS, 0)
    assert problems(store.uri) == []
