"""A grown data set re-uses every committed value of its unchanged images and extracts the others only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.loading import Loader
from pipeline.verification import verify_store
from store import open_store
from store.errors import InvalidInputError


def write_images(folder: Path, numbers: range, seed: int = 0) -> None:
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        for split in ("train", "test"):
            target = folder / split / ("ant" if number % 2 else "bee")
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(target / f"{number:03d}.png")


def parameters(folder: Path, **changes: object) -> ExtractionParameters:
    chosen = {"backbone": "test_resnet", "weights": "random:0", "data": str(folder), "image_size": 32}
    return ExtractionParameters(**(chosen | {"block_size": 8, "batch_size": 4} | changes))


@pytest.fixture
def forwarded(monkeypatch) -> list[int]:
    """Sizes of the batches that went through the backbone."""
    sizes: list[int] = []
    load = Loader.load

    def counting(loader, images, indices):
        sizes.append(len(indices))
        return load(loader, images, indices)

    monkeypatch.setattr(Loader, "load", counting)
    return sizes


def test_only_new_images_go_through_the_backbone_and_old_values_stay(tmp_path, forwarded) -> None:
    write_images(tmp_path / "data", range(20))
    small = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    assert sum(forwarded) == 40
    # Names that sort before the old ones: the order of the parent must win over that of the folder.
    for number in range(5):
        image = Image.fromarray(np.random.default_rng([9, number]).integers(0, 256, (32, 32, 3), np.uint8))
        image.save(tmp_path / "data/train/ant" / f"000-new{number}.png")
    forwarded.clear()
    grown = extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "root"))
    assert sum(forwarded) == grown.extracted == 5
    assert grown.uri != small.uri
    old, new = open_store(small.uri), open_store(grown.uri)
    assert new.ids("train")[:20] == old.ids("train")
    everything = np.arange(old.n_features)
    np.testing.assert_array_equal(new.columns("train", everything)[:20], old.columns("train", everything))
    np.testing.assert_array_equal(new.columns("test", everything), old.columns("test", everything))
    assert new.provenance["parent"] == old.fingerprint
    assert verify_store(new) == []
    # New values are those of a fresh extraction, up to the rounding of another batch.
    fresh = open_store(extract(parameters(tmp_path / "data"), str(tmp_path / "fresh")).uri)
    place = [fresh.ids("train").index(i) for i in new.ids("train")]
    np.testing.assert_allclose(
        new.columns("train", everything), fresh.columns("train", everything)[place], rtol=5e-3, atol=5e-3
    )


def test_growing_again_without_new_images_extracts_nothing(tmp_path, forwarded) -> None:
    write_images(tmp_path / "data", range(10))
    small = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    write_images(tmp_path / "data", range(10, 14))
    grown = extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "root"))
    forwarded.clear()
    again = extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "root"))
    assert (again.uri, again.extracted, sum(forwarded)) == (grown.uri, 0, 0)


def test_a_changed_image_is_extracted_again(tmp_path) -> None:
    write_images(tmp_path / "data", range(20))
    small = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    changed = next((tmp_path / "data/train/bee").glob("*.png"))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(changed)
    grown = extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "root"))
    old, new = open_store(small.uri), open_store(grown.uri)
    row = next(i for i, name in enumerate(new.ids("train")) if name.endswith(changed.name))
    everything = np.arange(old.n_features)
    assert not np.array_equal(new.columns("train", everything)[row], old.columns("train", everything)[row])
    assert grown.extracted == 1


def test_removed_images_cost_no_forward_pass_of_others(tmp_path, forwarded) -> None:
    write_images(tmp_path / "data", range(20))
    small = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    next((tmp_path / "data/train/bee").glob("*.png")).unlink()
    forwarded.clear()
    grown = extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "root"))
    assert sum(forwarded) == grown.extracted == 0
    old, new = open_store(small.uri), open_store(grown.uri)
    place = [old.ids("train").index(i) for i in new.ids("train")]
    everything = np.arange(old.n_features)
    np.testing.assert_array_equal(new.columns("train", everything), old.columns("train", everything)[place])
    assert verify_store(new) == []


def test_a_parent_without_any_of_the_images_is_refused(tmp_path) -> None:
    write_images(tmp_path / "data", range(6))
    write_images(tmp_path / "other", range(6), seed=1)
    small = extract(parameters(tmp_path / "other"), str(tmp_path / "root"))
    with pytest.raises(InvalidInputError, match="none of the images is in"):
        extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "root"))


def test_a_parent_of_another_kind_is_refused_by_the_part_that_differs(tmp_path) -> None:
    write_images(tmp_path / "data", range(6))
    small = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    with pytest.raises(InvalidInputError, match="the backbone is not the same"):
        extract(parameters(tmp_path / "data", extend=small.uri, weights="random:1"), str(tmp_path / "root"))
    with pytest.raises(InvalidInputError, match="the pooling is not the same"):
        extract(parameters(tmp_path / "data", extend=small.uri, target_sizes=(64,)), str(tmp_path / "root"))
