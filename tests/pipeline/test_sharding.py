"""Shards divide a store: nothing twice, nothing left out, and the bytes of one process alone."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise import N, contents, noise

from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.sharding import WHOLE, Shard, all_blocks
from pipeline.verification import verify_store
from store import open_store
from store.errors import InvalidInputError
from store.layout import Split


@given(count=st.integers(1, 50), sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4), size=st.integers(1, 40))
def test_shards_are_disjoint_and_cover_all_blocks(count, sizes, size) -> None:
    blocks = all_blocks(Split(f"split{i}", n, size) for i, n in enumerate(sizes))
    parts = [Shard(number, count).of(blocks) for number in range(1, count + 1)]
    assert sorted(block for part in parts for block in part) == sorted(blocks)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1, "shards are of equal size"
    assert WHOLE.of(blocks) == blocks


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "", "1", "1/0", "-1/4", "1/4/4", "1.5/4", "²/4"])
def test_texts_that_are_no_shard_are_refused_with_an_example(text) -> None:
    with pytest.raises(InvalidInputError, match=r"is not NUMBER/COUNT.* 1/4, 2/4, 3/4 and 4/4"):
        Shard.parse(text)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ExtractionParameters:
    return noise(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> str:
    """An undisturbed extraction by one process."""
    return extract(small, str(tmp_path_factory.mktemp("whole"))).uri


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse(" 2/4 ") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"


@pytest.mark.slow
def test_shards_in_any_order_make_the_same_store_and_say_what_is_left_to_others(small, whole, tmp_path) -> None:
    for number, order in enumerate([*permutations((1, 2, 3))][1::2]):
        left = N
        for done, shard in enumerate(order):
            part = extract(small, str(tmp_path / f"{number}"), shard=Shard(shard, 3))
            left -= part.extracted
            assert part.forecast.left == part.extracted > 0
            assert (part.reused, part.left_to_others, part.shard) == (0, left, f"{shard}/3")
            assert (part.left_to_others == 0) is (done == 2)
        assert contents(part.uri) == contents(whole)
        assert verify_store(open_store(part.uri)) == []


def test_a_shard_that_is_done_extracts_nothing_and_succeeds(small, tmp_path) -> None:
    first = extract(small, str(tmp_path), shard=Shard(1, 2))
    again = extract(small, str(tmp_path), shard=Shard(1, 2))
    assert (again.extracted, again.reused) == (0, first.extracted)
    assert again.left_to_others == N - first.extracted
    # What is committed plays no part in the division: another count of shards re-uses it.
    rest = extract(small, str(tmp_path), shard=Shard(2, 3))
    assert rest.reused + rest.extracted == 24
    assert rest.reused == 8


@pytest.mark.slow
def test_two_processes_with_a_shard_each_end_with_the_bytes_of_one_alone(small, whole, tmp_path) -> None:
    code = (
        "import sys; from pipeline.extraction import extract; from pipeline.sharding import Shard;"
        "from pipeline.extraction_parameters import ExtractionParameters as P;"
        f"print(extract(P.model_validate_json({small.model_dump_json()!r}), sys.argv[1],"
        "shard=Shard.parse(sys.argv[2])).extracted)"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "root"), s], stdout=subprocess.PIPE, text=True)
        for s in ("1/2", "2/2")
    ]
    counts = [int(child.communicate(timeout=300)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(counts) == N
    uri = str(tmp_path / "root" / Path(whole).name)
    assert contents(uri) == contents(whole)
    assert verify_store(open_store(uri)) == []
