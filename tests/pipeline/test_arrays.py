"""Arrays and tensors in Python are a data set like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.datasets import from_arrays
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from store import open_store
from store.errors import InvalidInputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "images",
    [
        RGB,
        torch.from_numpy(RGB.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(RGB).permute(0, 3, 1, 2),
    ],
    ids=["array", "tensor", "strided tensor"],
)
def test_arrays_and_tensors_of_the_same_images_are_the_same_data(images: Any) -> None:
    data = from_arrays({"train": images}, {"train": torch.tensor(LABELS)}, class_names=["ant", "bee"])
    for number, pixels in enumerate(RGB):
        np.testing.assert_array_equal(np.asarray(data.splits["train"].image(number)), pixels)
    reference = from_arrays({"train": RGB}, {"train": LABELS})
    assert data.splits["train"].manifest().spec() == reference.splits["train"].manifest().spec()
    assert (data.class_names, reference.class_names) == (("ant", "bee"), ("0", "1"))


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5)])
def test_grey_tensors_have_no_channel_or_one_in_front(shape: tuple[int, ...]) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (2, *shape), dtype=np.uint8))
    image = from_arrays({"train": images}, {"train": [0, 0]}).splits["train"].image(1)
    np.testing.assert_array_equal(np.asarray(image)[:, :, 2], images[1].reshape(4, 5))


def test_ids_may_be_given() -> None:
    data = from_arrays({"train": RGB}, {"train": LABELS}, ids={"train": list("abcdef")})
    assert data.splits["train"].ids == tuple("abcdef")
    assert from_arrays({"train": RGB}, {"train": LABELS}).splits["train"].ids[5] == "train-000005"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, "there are no images"),
        ({"images": {"train": RGB.astype(np.float32)}}, "split 'train' of 'arrays' are float32 of shape"),
        ({"images": {"train": torch.zeros(6, 3, 4, 5)}}, r"are torch\.float32 .*; they must be uint8"),
        ({"images": {"train": torch.zeros(6, 3, 4, 5, dtype=torch.bfloat16)}}, r"are torch\.bfloat16"),
        (
            {"images": {"train": RGB.transpose(0, 3, 1, 2)}},
            r"shape \(6, 3, 5, 4\).*last in arrays and first in tensors",
        ),
        (
            {"images": {"train": RGB[:0]}, "labels": {"train": []}},
            "labels of split 'train' .* must be one whole number",
        ),
        (
            {"images": {"train": RGB[:0]}, "labels": {"train": np.zeros(0, int)}},
            "split 'train' of 'arrays' has no images",
        ),
        ({"labels": {}}, "split 'train' of 'arrays' has no labels"),
        ({"labels": {"train": LABELS, "test": [0]}}, "labels are given for split 'test', which has no images"),
        ({"labels": {"train": LABELS[:5]}}, "one whole number for each of the 6 images"),
        ({"labels": {"train": [0.0, 1, 0, 1, 0, 1]}}, "are float64 of shape"),
        ({"labels": {"train": [None, 1, 0, 1, 0, 1]}}, "are object of shape"),
        ({"labels": {"train": [-1, 1, 0, 1, 0, 1]}}, "has a negative label"),
        ({"labels": {"train": [10**12, 1, 0, 1, 0, 1]}}, "label 1000000000000 of 'arrays' is no class"),
        ({"ids": {"train": list("abc")}}, "has 3 ids for 6 images"),
        ({"ids": {"train": list("abcdea")}}, "image 'a' is listed twice"),
        ({"class_names": ["ant"]}, "there are 1 class names but labels up to 1"),
        ({"class_names": ["ant", "ant"]}, "two classes have the name 'ant'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": {"train": RGB}, "labels": {"train": LABELS}} | changes
    with pytest.raises(InvalidInputError, match=message):
        from_arrays(**given)


def test_arrays_become_a_store_that_is_known_again(tmp_path: Path) -> None:
    data = from_arrays({"train": RGB, "test": RGB[:3]}, {"train": LABELS, "test": LABELS[:3]}, name="mine")
    parameters = ExtractionParameters(backbone="test_resnet", weights="random:0", data="mine", image_size=32)
    done = extract(parameters, str(tmp_path), data=data)
    assert (done.extracted, open_store(done.uri).provenance["data"]) == (9, "mine")
    assert extract(parameters, str(tmp_path), data=data).extracted == 0
    cluster = parameters.model_copy(update={"dask_address": "tcp://127.0.0.1:1"})
    with pytest.raises(InvalidInputError, match=r"'mine' is in this process alone.*leave dask_address out"):
        extract(cluster, str(tmp_path), data=data)


def test_a_class_with_one_training_sample_is_refused(tmp_path: Path) -> None:
    data = from_arrays({"train": RGB, "test": RGB}, {"train": [0, 0, 0, 0, 0, 1], "test": LABELS}, name="mine")
    parameters = ExtractionParameters(backbone="test_resnet", weights="random:0", data="mine", image_size=32)
    with pytest.raises(InvalidInputError, match="class '1' of 'mine' has 1 training sample"):
        extract(parameters, str(tmp_path), data=data)
