"""The offline benchmark: the same images everywhere, labels that say what is seen, and no image in two places."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, gaussian_filter, label, sum_labels

from pipeline.datasets import load_data
from pipeline.offline.drawing import SIDE
from pipeline.offline.source import N_CLASSES, SEED, shape_classes
from pipeline.offline.specialized import GRADES, N_STRIPES
from pipeline.offline.structured import FARTHEST, N_DISTANCES, N_LIGHTS, N_POSITIONS, N_SIZES, NEAREST
from pipeline.offline.tasks import SIZES, TASKS
from store.errors import InvalidInputError

DRAWN = [name for name, task in TASKS.items() if task.draw is not None]
MANY = 48
DIGESTS = """
import hashlib
from pipeline.offline.source import SEED, shape_classes
from pipeline.offline.tasks import TASKS
for name in ("letters", "cells", "count", "light"):
    print(hashlib.sha256(TASKS[name].images("train", [7, 3])[0].tobytes()).hexdigest())
print(hashlib.sha256(shape_classes(SEED).images([7, 3], [150, 2], 0).tobytes()).hexdigest())
"""


def drawn(name: str, count: int = MANY) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return images in [0, 1] and labels that no method sees."""
    images, labels = TASKS[name].images("design", range(count))
    return images / 255, labels


def objects(image: NDArray[np.float64], bright: float = 0.5) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return areas and centres (x, y) of what is brighter than the ground in all channels."""
    parts, count = label(image.min(axis=2) > bright, np.ones((3, 3)))
    areas = sum_labels(np.ones(parts.shape), parts, range(1, count + 1))
    centres = np.array(center_of_mass(np.ones(parts.shape), parts, range(1, count + 1))).reshape(-1, 2)[:, ::-1] + 0.5
    return areas[areas > 3], centres[areas > 3]


def sprite(image: NDArray[np.float64]) -> NDArray[np.bool]:
    """Return which pixels belong to the single object: the largest part that differs from the ground."""
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3), image[:, :3].reshape(-1, 3)])
    smooth = gaussian_filter(image, (0.7, 0.7, 0))
    far = np.abs(smooth - np.median(border, axis=0)).max(axis=2)
    parts, count = label(far > 0.5 * np.quantile(far, 0.998))
    areas = sum_labels(np.ones(parts.shape), parts, range(1, count + 1))
    return parts == 1 + int(np.argmax(areas))


def share_right(found: list[bool]) -> float:
    return float(np.mean(found))


@pytest.mark.parametrize("name", DRAWN)
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(name: str) -> None:
    task = TASKS[name]
    batch, labels = task.images("train", range(12))
    for index in (0, 5, 11):
        alone, single = task.images("train", [index])
        assert np.array_equal(alone[0], batch[index])
        assert single[0] == labels[index]
    assert batch.shape == (12, SIDE, SIDE, 3)
    assert batch.dtype == np.uint8


@pytest.mark.slow
def test_a_source_image_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    classes = shape_classes(SEED)
    batch = classes.images(range(20, 26), [5, 9, 199, 0, 7, 5], 1)
    assert np.array_equal(classes.images([22], [199], 1)[0], batch[2])


@pytest.mark.slow
def test_another_process_draws_the_same_bytes() -> None:
    there = subprocess.run([sys.executable, "-c", DIGESTS], capture_output=True, text=True, check=True).stdout.split()
    here = [TASKS[name].images("train", [7, 3])[0] for name in ("letters", "cells", "count", "light")]
    here.append(shape_classes(SEED).images([7, 3], [150, 2], 0))
    assert there == [hashlib.sha256(images.tobytes()).hexdigest() for images in here]


@pytest.mark.parametrize("name", ["digits", pytest.param("orientation", marks=pytest.mark.slow)])
def test_a_task_is_loaded_with_balanced_classes_and_no_image_twice(name: str) -> None:
    data = load_data(f"offline/{name}")
    assert data.name == f"offline/{name}"
    assert data.group == TASKS[name].group
    assert {split: len(part) for split, part in data.splits.items()} == SIZES | (
        {"test": 797} if name == "digits" else {}
    )
    for part in data.splits.values():
        counts = np.bincount(part.labels, minlength=len(data.class_names))
        assert counts.max() - counts.min() <= (5 if name == "digits" else 1)
    content = [source.digest() for part in data.splits.values() for source in part.sources]
    assert len(set(content)) == len(content)


@pytest.mark.parametrize("name", DRAWN)
def test_training_and_test_images_of_a_class_share_nothing(name: str) -> None:
    task = TASKS[name]
    (train, labels), (test, same) = (task.images(split, range(40)) for split in ("train", "test"))
    assert np.array_equal(labels, same)
    assert len({image.tobytes() for image in (*train, *test)}) == 80


def test_the_groups_are_those_of_vtab_and_there_are_at_least_twelve_tasks() -> None:
    groups = [task.group for task in TASKS.values()]
    assert len(groups) >= 12
    assert {group: groups.count(group) >= 3 for group in groups} == dict.fromkeys(
        ("natural", "specialized", "structured"), True
    )


def test_an_unknown_task_is_refused_with_near_names() -> None:
    with pytest.raises(InvalidInputError, match=r"offline task 'positions' is unknown; did you mean 'position'"):
        load_data("offline/positions")


@pytest.mark.slow
def test_source_classes_are_pairs_of_which_neither_half_tells_the_class() -> None:
    pairs = shape_classes(SEED).pairs
    assert len({tuple(pair) for pair in pairs.tolist()}) == N_CLASSES
    assert np.bincount(pairs[:, 0]).min() >= 5
    assert np.bincount(pairs[:, 1]).min() >= 5


@pytest.mark.slow
def test_unseen_categories_have_contours_and_textures_of_their_own() -> None:
    source, unseen = shape_classes(SEED), shape_classes(1001, 20, 20, 20)
    for ours, theirs in ((source.contours, unseen.contours), (source.textures, unseen.textures)):
        known = {image.tobytes() for image in ours}
        assert not known & {image.tobytes() for image in theirs}


def test_count_is_the_number_of_connected_parts() -> None:
    images, labels = drawn("count")
    assert share_right([len(objects(i)[0]) == n + 1 for i, n in zip(images, labels, strict=True)]) > 0.97


def test_cells_are_the_number_of_connected_parts() -> None:
    images, labels = drawn("cells", 50)
    found = [
        label(gaussian_filter(image[:, :, 1], 0.5) > 0.3, np.ones((3, 3)))[1] == count + 1
        for image, count in zip(images, labels, strict=True)
    ]
    assert share_right(found) > 0.97


def test_position_is_the_column_of_the_centre() -> None:
    images, labels = drawn("position")
    step = (SIDE - 20) / N_POSITIONS
    columns = [(center_of_mass(sprite(image))[1] + 0.5 - 10) / step for image in images]
    off = np.abs(np.array(columns) - (labels + 0.5))
    assert np.median(off) < 0.4
    assert np.mean(off < 0.8) > 0.95


def test_size_is_the_area() -> None:
    images, labels = drawn("size", 96)
    area = np.array([sprite(image).sum() for image in images])
    means = [area[labels == k].mean() for k in range(N_SIZES)]
    assert np.all(np.diff(means) > 0)
    assert np.corrcoef(np.sqrt(area), labels)[0, 1] > 0.97


def test_distance_is_between_the_centres_of_two_parts() -> None:
    images, labels = drawn("distance")
    found = []
    for image, k in zip(images, labels, strict=True):
        _, centres = objects(image)
        assert len(centres) == 2
        apart = np.hypot(*(centres[0] - centres[1]))
        found.append(abs((apart - NEAREST) / (FARTHEST - NEAREST) * N_DISTANCES - (k + 0.5)) < 0.8)
    assert share_right(found) > 0.95


def test_relation_is_where_the_less_round_part_lies() -> None:
    images, labels = drawn("relation")
    directions = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    found = []
    for image, k in zip(images, labels, strict=True):
        bright = image.min(axis=2) > 0.5
        parts, count = label(bright, np.ones((3, 3)))
        areas = sum_labels(bright, parts, range(1, count + 1))
        two = 1 + np.argsort(areas)[-2:]
        centres = np.array(center_of_mass(bright, parts, two))[:, ::-1]
        away = [np.argwhere(parts == part)[:, ::-1] - centre for part, centre in zip(two, centres, strict=True)]
        spread = [(d**2).sum(axis=1).mean() / len(d) for d in away]  # 1 / 2π for a disc, more for a star
        star = int(np.argmax(spread))
        found.append(int(np.argmax(directions @ (centres[star] - centres[1 - star]))) == k)
    assert share_right(found) > 0.9


def test_orientation_turns_one_sprite_into_another() -> None:
    task = TASKS["orientation"]
    assert task.draw is not None
    index = [11] * 16
    images = task.draw(2, index, np.arange(16)) / 255
    masks = [sprite(image) for image in images]
    opposite = [
        np.sum((center_of_mass(a) - np.array(center_of_mass(b))) ** 2) for a, b in zip(masks, masks[8:], strict=False)
    ]
    assert max(opposite) < 1
    quarter = np.rot90(masks[0], -1)  # clockwise on the screen, from x towards y
    turned = np.argwhere(quarter) - np.array(center_of_mass(quarter))
    expected = np.argwhere(masks[4]) - np.array(center_of_mass(masks[4]))
    assert abs(np.cov(turned.T) - np.cov(expected.T)).max() < 2


def test_stripes_have_their_peak_of_power_in_the_direction_of_the_label() -> None:
    images, labels = drawn("stripes")
    away = np.minimum(np.arange(SIDE), SIDE - np.arange(SIDE))
    low = np.hypot(away[:, None], away[None, :]) < 4
    found = []
    for image, k in zip(images, labels, strict=True):
        grey = image.mean(axis=2)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(np.hanning(SIDE), np.hanning(SIDE))))
        power[low] = 0
        y, x = (np.fft.fftfreq(SIDE)[i] for i in np.unravel_index(np.argmax(power), power.shape))
        step = (np.degrees(np.arctan2(y, x)) % 180) / (180 / N_STRIPES)
        found.append(min(abs(step - k), N_STRIPES - abs(step - k)) < 0.75)
    assert share_right(found) > 0.7  # the weakest of them drown


def test_light_comes_from_where_the_ball_is_brightest() -> None:
    task = TASKS["light"]
    assert task.draw is not None
    images = task.draw(2, [4] * N_LIGHTS, np.arange(N_LIGHTS)) / 255
    ball = (images.max(axis=0) - images.min(axis=0)).max(axis=2) > 0.15
    centre = np.array(center_of_mass(ball))
    turns = []
    for image in images:
        y, x = np.array(center_of_mass(image.mean(axis=2) * ball)) - centre
        turns.append(np.degrees(np.arctan2(y, x)))
    off = (np.array(turns) - 45 * np.arange(N_LIGHTS) + 180) % 360 - 180
    assert np.abs(off).max() < 25


def test_a_defect_changes_a_small_part_of_the_surface_and_nothing_else() -> None:
    task = TASKS["defects"]
    assert task.draw is not None
    sound, defective = (task.draw(2, range(24), np.full(24, k)).astype(int) for k in (0, 1))
    changed = (sound != defective).any(axis=3).mean(axis=(1, 2))
    assert changed.min() > 0.002
    assert changed.max() < 0.12


def test_lesions_stay_within_their_grade() -> None:
    images, labels = drawn("lesions", 50)
    for image, grade in zip(images, labels, strict=True):
        # Lesions may touch each other, so that parts are never more than lesions.
        _, count = label(gaussian_filter(image[:, :, 0], 0.5) > 0.72)
        assert count <= GRADES[grade][1]


def test_letters_differ_by_letter_and_by_font() -> None:
    from pipeline.offline.natural import FONTS, LETTERS, _glyphs

    glyphs = [glyph.tobytes() for font in _glyphs() for glyph in font]
    assert len(set(glyphs)) == len(FONTS) * len(LETTERS)
