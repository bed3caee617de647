"""What is said before an extraction starts is what it then does, and what cannot fit is not begun."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from noise import N, noise
from PIL import Image

from pipeline import forecast
from pipeline.extraction import extract, foresee
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.forecast import Forecast
from pipeline.sharding import Shard
from store import open_store
from store.errors import InvalidInputError


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ExtractionParameters:
    return noise(tmp_path_factory.mktemp("data"))


def occupied(root: Path) -> int:
    """Bytes of everything below a store that blocks consist of."""
    chunks = sum(p.stat().st_size for p in root.glob("*.zarr/*/*/**/c/*/*"))
    return chunks + 4096 * len(list(root.glob("*.zarr/blocks/*/*.json")))


def test_a_dry_run_foretells_what_then_happens_and_writes_nothing(small, tmp_path) -> None:
    root = tmp_path / "root"
    told = foresee(small, str(root))
    assert not root.exists()
    assert (told.samples, told.left, told.reused, told.left_to_others) == ({"train": 40, "test": 24}, N, 0, 0)
    heard: list[Forecast] = []
    done = extract(small, str(root), announce=heard.append)
    store = open_store(done.uri)
    assert (told.uri, told.layers, told.features) == (store.uri, len(store.layers), store.n_features)
    assert told.bytes_left == told.bytes_total == occupied(root)
    assert heard == [done.forecast]
    assert told.notes == done.notes
    assert done.forecast.left == done.extracted
    again = foresee(small, str(root))
    assert (again.left, again.reused, again.bytes_left, again.bytes_total) == (0, N, 0, told.bytes_total)


@pytest.mark.slow
def test_images_that_will_be_left_out_are_named_before(small, tmp_path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            colour = (number, 0, 255 if name == "ant" else 0)
            Image.new("RGB", (32, 32), colour).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "data" / "ant" / "empty.png").write_bytes(b"")
    parameters = small.model_copy(update={"data": str(tmp_path / "data"), "on_bad_image": "skip"})
    notes = foresee(parameters, str(tmp_path / "root")).notes
    assert any(note.startswith("left out 1 image that cannot be used: ") and "ant/empty.png" in note for note in notes)


def test_of_a_resumed_store_only_missing_blocks_count(small, tmp_path) -> None:
    root = tmp_path / "root"
    done = extract(small, str(root))
    for name in ("train/000001", "test/000001"):
        (Path(done.uri) / f"blocks/{name}.json").unlink()
    found = foresee(small, str(root), shard=Shard(1, 2))
    assert (found.left, found.reused, found.left_to_others) == (8, 24, 8)
    assert found.bytes_left == found.bytes_total / 4


@pytest.mark.slow
def test_a_disk_that_cannot_hold_what_is_missing_is_refused_before_anything_is_written(
    small, tmp_path, monkeypatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    needed = foresee(small, str(tmp_path)).bytes_left
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda place: usage._replace(free=needed - 1))
    for refused in (lambda: extract(small, str(tmp_path / "root")), lambda: foresee(small, str(tmp_path / "root"))):
        with pytest.raises(InvalidInputError, match=r"needs 0\.00 GB but its disk has 0\.00 GB free; make room"):
            refused()
    assert not list(tmp_path.rglob("*.zarr"))
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda place: usage._replace(free=needed))
    uri = extract(small, str(tmp_path / "root")).uri
    # A store that is there needs no room, and a resumed one that of its missing blocks.
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda place: usage._replace(free=0))
    assert extract(small, str(tmp_path / "root")).reused == N
    (Path(uri) / "blocks/train/000001.json").unlink()
    with pytest.raises(InvalidInputError, match="make room"):
        extract(small, str(tmp_path / "root"))


@pytest.mark.slow
def test_a_grown_store_counts_what_it_links_from_its_parent_as_there(small, tmp_path) -> None:
    parent = extract(small, str(tmp_path / "root"))
    with np.load(small.data) as arrays:
        grown = dict(arrays)
    for name in ("x_train", "y_train"):
        grown[name] = np.concatenate([grown[name], grown[name][:4]])
    grown["x_train"][40:] ^= 1
    np.savez(tmp_path / "grown.npz", **grown)
    parameters = small.model_copy(update={"data": str(tmp_path / "grown.npz"), "extend": parent.uri})
    found = foresee(parameters, str(tmp_path / "root"))
    assert (found.left, found.reused) == (4, N)
    assert found.bytes_left * 9 == found.bytes_total, "one block is new, eight are links"
    assert extract(parameters, str(tmp_path / "root")).extracted == found.left


def test_time_is_estimated_where_much_is_left_and_not_where_little_is(small, tmp_path) -> None:
    found = foresee(small, str(tmp_path))
    assert found.seconds is not None
    assert 0 < found.seconds < 60
    assert foresee(small, str(tmp_path), shard=Shard(1, 2)).seconds is None, "eight batches are not worth the trial"
    two = foresee(small.model_copy(update={"device": "cpu,cpu"}), str(tmp_path))
    assert two.seconds is not None


def test_memory_that_does_not_suffice_for_the_trial_leaves_the_time_open(small, tmp_path, monkeypatch) -> None:
    def too_large(*_) -> None:
        raise MemoryError

    monkeypatch.setattr(forecast.Forward, "__call__", too_large)
    assert foresee(small, str(tmp_path)).seconds is None


def test_object_storage_has_no_known_limit(small) -> None:
    assert foresee(small, "memory://forecast").bytes_free is None
