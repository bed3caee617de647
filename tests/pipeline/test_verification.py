"""`verify_store` names every damaged or missing part once, and nothing else; a mark makes exactly it be rewritten."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from pipeline.verification import Problem, mark_for_rewriting, verify_store
from store import ActivationStore, create_store, open_store
from store.faults import StorageError
from store.layout import ChunkRef
from store.records import BlockRecord, encode_record, read_record
from store.results import write_result


def verified(store: ActivationStore) -> list[Problem]:
    return verify_store(open_store(store.uri, allow_incomplete=True))


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 16
    path.write_bytes(raw)


def rewrite_record(store: ActivationStore, split: str, block: int, **changes: object) -> None:
    """Replace fields of a commit record; its own digest holds."""
    record = read_record(store.objects, split, block)
    path = Path(store.uri) / f"blocks/{split}/{block:06d}.json"
    path.write_bytes(encode_record(BlockRecord.model_validate(record.model_dump() | changes)))


def again(store: ActivationStore) -> None:
    """Do what the same extraction does: write what is missing."""
    values, manifests = synthetic()
    writer = create_store(store.uri, LAYERS, SPLITS, manifests=manifests, class_names=CLASSES, block_samples=32)
    write_all(writer, values)


def test_an_undamaged_store_with_results_has_no_problems(store) -> None:
    write_result(store, "statistics", {"split": "train"}, {"mean": (np.zeros(127), ("feature",))}, {})
    write_result(store, "heads", {"a": 1}, {"coef": (np.ones((3, 2)), ("feature", "class"))}, {"seconds": 1.0})
    assert verify_store(store) == []


def test_every_flipped_bit_of_a_block_is_found_wherever_it_is(store) -> None:
    rng = np.random.default_rng(0)
    root = Path(store.uri)
    keys = [ref.key for split in SPLITS for ref in store.chunks(split)]
    keys += [f"train/norms/c/0/{b}" for b in range(3)] + [f"train/row_checksums/c/0/{b}" for b in range(3)]
    for key in map(str, rng.permutation(keys)[:12]):
        whole = (root / key).read_bytes()
        # The last four bytes are the checksum that plain Zarr looks at.
        flip(root / key, int(rng.choice([rng.integers(len(whole)), len(whole) - 1])))
        problems = verified(store)
        assert [p.what for p in problems] == ["block"]
        assert f"{key!r}" in str(problems[0])
        (root / key).write_bytes(whole)
    assert verified(store) == []


def test_a_damaged_block_is_named_once_however_much_of_it_is_damaged(store) -> None:
    root = Path(store.uri)
    for name in LAYERS:
        flip(root / f"train/layers/{name}/c/0/1", 5)
    (root / "train/norms/c/0/1").unlink()
    (problem,) = verified(store)
    assert problem.name == "train/1"
    assert "'train/layers/stem/c/0/1' does not have the checksum" in problem.message
    assert "and 2 more chunks" in problem.message
    assert "\n" not in problem.message


def test_missing_blocks_chunks_norms_and_short_chunks_are_named_one_by_one(store) -> None:
    root = Path(store.uri)
    (root / "blocks/test/000001.json").unlink()
    (root / ChunkRef("train", "stem", 0, 2).key).unlink()
    (root / "train/norms/c/0/0").unlink()
    short = root / ChunkRef("train", "stem", 0, 1).key
    short.write_bytes(short.read_bytes()[:-7])
    problems = verified(store)
    assert [p.name for p in problems] == ["train/0", "train/1", "train/2", "test/1"]
    expected = ("'train/norms/c/0/0' is missing", "bytes instead of", "stem/c/0/2' is missing", "is missing; the same")
    for problem, message in zip(problems, expected, strict=True):
        assert message in problem.message
        assert problem.repairable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 1}, "is about samples 1 to 30, not 0 to 30"),
        ({"finite": False}, "not every value is finite"),
        ({"checksums": dict.fromkeys([*LAYERS, "ghost"], (0,))}, "layer 'ghost', which the store does not have"),
        ({"checksums": {n: (0,) for n in LAYERS if n != "stem"}}, "has 0 checksums for layer 'stem' instead of 1"),
        ({"checksums": dict.fromkeys(LAYERS, (0, 0))}, "has 2 checksums for layer 'stem' instead of 1"),
    ],
)
def test_a_record_that_holds_but_cannot_be_true_of_this_store_is_a_damaged_block(store, changes, message) -> None:
    rewrite_record(store, "train", 0, **changes)
    (problem,) = verified(store)
    assert (problem.what, problem.name) == ("block", "train/0")
    assert message in problem.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"record": 1, "digest": "x"}', b"\xff\xfe"])
def test_a_record_that_does_not_hold_is_a_damaged_block(store, raw) -> None:
    (Path(store.uri) / "blocks/train/000000.json").write_bytes(raw)
    (problem,) = verified(store)
    assert problem.name == "train/0"
    assert "its own digest" in problem.message


def test_a_record_of_a_block_or_split_that_is_not_there_is_named(store) -> None:
    root = Path(store.uri) / "blocks"
    (root / "ghost").mkdir()
    for name in ("train/000003.json", "ghost/000000.json"):
        (root / name).write_bytes((root / "train/000000.json").read_bytes())
    problems = verified(store)
    assert sorted(p.name for p in problems) == ["blocks/ghost/000000.json", "blocks/train/000003.json"]
    assert {p.what for p in problems} == {"record"}


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("train/labels/c/0", "labels"),
        ("test/ids/c/0", "ids"),
        ("train/digests/c/0", "metadata"),
        ("train/layers/stem/zarr.json", "metadata"),
        ("test/zarr.json", "metadata"),
    ],
)
def test_damaged_metadata_labels_and_ids_are_named_once_and_said_to_be_beyond_repair(store, key, what) -> None:
    path = Path(store.uri) / key
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    for _ in range(2):
        (problem,) = verified(store)
        assert (problem.what, problem.name, problem.repairable) == (what, key, False)
        assert "--repair cannot mend this" in problem.message
        path.unlink(missing_ok=True)
    path.write_bytes(whole)
    assert verified(store) == []


def test_results_are_read_back_and_a_damaged_one_is_named_once(store) -> None:
    arrays = {"coef": (np.ones((30, 2)), ("feature", "class")), "intercept": (np.ones(2), ("class",))}
    result = write_result(store, "heads", {"a": 1}, arrays, {"seconds": 1.0})
    path = Path(store.uri) / f"results/heads/{result.digest}"
    for damage in ("flip", "lose", "facts", "swap"):
        held = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
        if damage == "flip":
            flip(path / "coef/c/0/0", 40)
        elif damage == "lose":
            (path / "intercept/c/0").unlink()
        elif damage == "facts":
            (path / "zarr.json").write_text((path / "zarr.json").read_text().replace('"seconds":1.0', '"seconds":2.0'))
        else:
            path.rename(path.with_name("0" * 20))
        problems = verified(store)
        assert [p.what for p in problems] == ["result"]
        assert not problems[0].repairable
        if damage == "swap":
            path.with_name("0" * 20).rename(path)
        for file, raw in held.items():
            file.write_bytes(raw)
    assert verified(store) == []


def test_what_an_unfinished_writer_left_is_no_problem(store) -> None:
    left = Path(store.uri) / "results/heads/abc/coef"
    left.mkdir(parents=True)
    (left / "zarr.json").write_text("{")
    (Path(store.uri) / ".unfinished").mkdir(exist_ok=True)
    (Path(store.uri) / ".unfinished/half").write_text("half a chunk")
    assert verified(store) == []


def test_marked_blocks_are_exactly_those_the_next_extraction_writes_and_the_store_is_whole_again(store) -> None:
    root = Path(store.uri)
    flip(root / ChunkRef("train", "blocks.0", 0, 1).key, 3)
    (root / "test/norms/c/0/0").unlink()
    (root / "blocks/train/000002.json").write_text("{")
    (root / "blocks/test/000001.json").unlink()
    untouched = {p: p.stat().st_mtime_ns for p in root.glob("train/layers/*/c/0/0")}
    marked = mark_for_rewriting(store, verified(store))
    assert [p.name for p in marked] == ["train/1", "train/2", "test/0"]
    assert open_store(store.uri, allow_incomplete=True).missing() == {"train": [1, 2], "test": [0, 1]}
    again(store)
    assert verified(store) == []
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched


def test_marking_leaves_metadata_labels_and_results_alone(store) -> None:
    root = Path(store.uri)
    result = write_result(store, "heads", {"a": 1}, {"coef": (np.ones(3), ("feature",))}, {})
    flip(root / "train/labels/c/0", 8)
    flip(root / f"results/heads/{result.digest}/coef/c/0", 8)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    problems = verified(store)
    assert len(problems) == 2
    assert mark_for_rewriting(store, problems) == []
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_memory_does_not_grow_with_the_store(tmp_path) -> None:
    """Sixteen blocks of 1 MB are read within a few MB."""
    writer = create_store(tmp_path / "s.zarr", {"a": 1024}, {"train": 16 * 512}, block_samples=512)
    for block in range(16):
        writer.write_block("train", block, {"a": np.full((1024, 512), block, np.float16)})
    store = open_store(writer.uri)
    verify_store(store)  # what is imported and cached at the first call is not what is measured
    tracemalloc.start()
    assert verify_store(store) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_progress_counts_up_to_the_number_of_chunks(store) -> None:
    seen: dict[str, tuple[int, int]] = {}
    verify_store(store, lambda stage, done, total: seen.__setitem__(stage, (done, total)))
    assert seen["verifying commit records"] == (5, 5)
    assert seen["verifying chunks"] == (5 * (len(LAYERS) + 2),) * 2


def test_stores_in_memory_are_verified_too() -> None:
    values, manifests = synthetic()
    writer = create_store("memory://verify/s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    write_all(writer, values)
    store = open_store(writer.uri)
    assert verify_store(store) == []
    key = ChunkRef("test", "stem", 0, 0).key
    raw = bytearray(store.objects.read(key))
    raw[1] ^= 1
    store.objects.write(key, [raw])
    (problem,) = verify_store(store)
    mark_for_rewriting(store, [problem])
    assert open_store(writer.uri, allow_incomplete=True).missing() == {"test": [0]}
    assert json.loads(store.objects.read("zarr.json"))["attributes"]["fingerprint"] == store.fingerprint


def test_storage_that_does_not_answer_is_no_damage(store, monkeypatch) -> None:
    """An outage must never lead `--repair` to forget blocks that are whole."""

    def unanswered(*_: object) -> bytes:
        raise StorageError("no answer")

    for method in ("read", "load", "names"):
        with monkeypatch.context() as patch:
            patch.setattr(store.objects, method, unanswered)
            with pytest.raises(StorageError):
                verify_store(store)
    assert verify_store(store) == []
