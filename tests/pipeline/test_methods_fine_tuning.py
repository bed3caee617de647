"""Fine-tuning and Scratch learn from the images of a store's samples, from nothing else, and the same every time."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbones import Backbone, load_backbone
from pipeline.datasets import ImageData, from_arrays
from pipeline.methods import FineTuning, Samples, Scratch
from pipeline.methods.training import Recipe
from pipeline.protocol import ProtocolParameters, cross_validate
from store import ActivationStore, create_store, open_store
from store.errors import InvalidInputError

N = {"train": 48, "test": 24}
COLOURS = ("red", "green", "blue")
FEW = {"learning_rates": (0.01,), "steps": (12,), "batch": 16}
TRAIN, TEST = (Samples(split, np.arange(n)) for split, n in N.items())


def pixels() -> dict[str, np.ndarray]:
    """Return noise in which the brightest colour is the class."""
    rng = np.random.default_rng(0)
    found = {}
    for split, n in N.items():
        found[split] = rng.integers(0, 160, (n, 32, 32, 3), np.uint8)
        found[split][np.arange(n), :, :, np.arange(n) % 3] += 60
    return found


def make_data(images: dict[str, np.ndarray] | None = None, **given: Any) -> ImageData:
    labels = {split: np.arange(n) % 3 for split, n in N.items()}
    return from_arrays(images or pixels(), **{"labels": labels, "class_names": COLOURS} | given)


def make_store(folder: Path, data: ImageData) -> ActivationStore:
    """Return a store of these samples, whose activations say nothing."""
    manifests = {name: split.manifest() for name, split in data.splits.items()}
    writer = create_store(folder / "made.zarr", {"embedding": 2}, N, manifests=manifests, class_names=COLOURS)
    for split, blocks in writer.missing().items():
        for block in blocks:
            start, stop = writer.store.splits[split].block_range(block)
            writer.write_block(split, block, {"embedding": np.zeros((2, stop - start), np.float16)})
    return open_store(folder / "made.zarr")


@cache
def backbone() -> Backbone:
    return load_backbone("test_resnet", "random:0", input_size=32)


@pytest.fixture
def data() -> ImageData:
    return make_data()


@pytest.fixture
def made(tmp_path, data) -> ActivationStore:
    return make_store(tmp_path, data)


def fit(method: FineTuning, seed: int = 0, train: Samples = TRAIN, held: Samples = TEST) -> list:
    found = list(method.fit(train, held, method.grid[0], seed))
    for prediction in found:
        prediction.facts.pop("seconds")
    return found


def test_a_batch_has_reshuffled_samples_and_the_rate_rises_and_falls() -> None:
    recipe = Recipe(0.1, steps=10, batch=4, warm_up=0.2, weight_decay=0.0, bfloat16=False)
    rows = recipe.rows(8, seed=1)
    assert rows.shape == (10, 4)
    for epoch in range(5):
        np.testing.assert_array_equal(np.sort(rows[2 * epoch : 2 * epoch + 2].ravel()), np.arange(8))
    assert (rows[:2] != rows[2:4]).any()
    assert recipe.rows(3, seed=1).shape == (10, 3)
    rates = [recipe.rate(step) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert (np.diff(rates[2:]) < 0).all()
    assert 0 < rates[-1] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("method", [FineTuning, Scratch])
def test_a_separable_task_is_learnt_and_learnt_the_same_again(made, data, method) -> None:
    trained = method(made, data, backbone(), **FEW | {"steps": (30,)})
    (first,), (again,) = fit(trained), fit(trained)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.facts == again.facts
    assert (first.labels == made.labels("test")).mean() > 0.8
    assert first.facts["images"] == 30 * 16
    assert first.facts["parameters"] > 300_000
    assert not first.facts["diverged"]
    assert fit(trained, seed=1)[0].facts["training_loss"] != first.facts["training_loss"]


@pytest.mark.slow
def test_settings_side_by_side_are_what_each_is_alone(made, data) -> None:
    both = FineTuning(made, data, backbone(), **FEW | {"learning_rates": (0.003, 0.01)})
    together = fit(both)
    alone = [next(both.fit(TRAIN, TEST, [setting], 0)) for setting in both.grid[0]]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.facts["training_loss"] == b.facts["training_loss"]


@pytest.mark.slow
def test_dropout_is_drawn_by_the_seed_even_side_by_side(made, data) -> None:
    model = copy.deepcopy(backbone().model)
    model.drop_rate = 0.5
    state = torch.get_rng_state()
    method = FineTuning(made, data, replace(backbone(), model=model), **FEW | {"learning_rates": (0.01, 0.01)})
    (a, b), (without, _) = fit(method), fit(replace(method, backbone=backbone()))
    assert a.facts == b.facts
    assert a.facts["training_loss"] != without.facts["training_loss"]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_images_that_do_not_fit_into_memory_are_read_for_each_batch(made, data) -> None:
    (held,), (read,) = (
        fit(FineTuning(made, data, backbone(), **FEW)),
        fit(FineTuning(made, data, backbone(), **FEW, memory=1)),
    )
    assert held.facts == read.facts
    np.testing.assert_array_equal(held.labels, read.labels)


@pytest.mark.slow
def test_an_image_held_out_has_no_influence_on_other_predictions(tmp_path, made, data) -> None:
    images = pixels()
    images["train"][40] = 255 - images["train"][40]
    changed = make_data(images)
    (tmp_path / "other").mkdir()
    other = make_store(tmp_path / "other", changed)
    train, held = Samples("train", np.arange(36)), Samples("train", np.arange(36, 48))
    (a,) = fit(FineTuning(made, data, backbone(), **FEW), train=train, held=held)
    (b,) = fit(FineTuning(other, changed, backbone(), **FEW), train=train, held=held)
    assert a.facts == b.facts
    np.testing.assert_array_equal(np.delete(a.labels, 4), np.delete(b.labels, 4))


@pytest.mark.slow
def test_a_rate_that_diverges_is_chance_and_a_fact(made, data) -> None:
    (found,) = fit(FineTuning(made, data, backbone(), **FEW | {"learning_rates": (1e30,)}))
    assert found.facts["diverged"]
    assert found.facts["training_loss"] is None
    assert found.facts["steps"] < 12
    assert len(set(found.labels.tolist())) == 1


@pytest.mark.slow
def test_the_protocol_chooses_the_rate_that_learns(made, data) -> None:
    method = FineTuning(made, data, backbone(), **FEW | {"learning_rates": (1e-6, 0.01)})
    result = cross_validate(method, made, ProtocolParameters(folds=2))
    assert result.settings["learning_rate"] == 0.01
    assert result.facts["steps"] == 12
    assert cross_validate(method, made, ProtocolParameters(folds=2)).reused


def test_identity_is_that_of_images_weights_and_preprocessing(made, data) -> None:
    method = FineTuning(made, data, backbone(), **FEW)
    assert method.identity["weights"] == backbone().spec.weights_digest
    other = load_backbone("test_resnet", "random:1", input_size=32)
    assert FineTuning(made, data, other).identity != method.identity
    assert Scratch(made, data, other).identity == Scratch(made, data, backbone()).identity
    half = load_backbone("test_resnet", "random:0", input_size=32, mean=(0.4,))
    assert FineTuning(made, data, half).identity != method.identity


def test_images_are_matched_by_id_in_any_order(made, data) -> None:
    order = np.random.default_rng(0).permutation(N["train"])
    turned = replace(data, splits={**data.splits, "train": data.splits["train"].subset(order)})
    a, b = (FineTuning(made, d, backbone()).images.batches("train", [np.arange(5)]) for d in (data, turned))
    assert torch.equal(next(a), next(b))


def test_images_that_are_not_those_of_the_store_are_refused(made) -> None:
    images = pixels()
    images["train"][7, 0, 0, 0] += 1
    labels = {split: np.arange(n) % 3 for split, n in N.items()}
    labels["test"][3] = 1
    short = make_data()
    short = replace(short, splits={**short.splits, "train": short.splits["train"].subset(range(46))})
    for data, message in (
        (
            make_data(images),
            "1 of the 48 images of 'train' in 'arrays' have other content than in store .*: 'train-000007'",
        ),
        (make_data(labels=labels), "1 of the 24 images of 'test' in 'arrays' have another label than in store"),
        (short, "data 'arrays' lacks 2 of the 48 samples of 'train' in store .*: 'train-000046', 'train-000047'; give"),
        (make_data(class_names=("red", "blue", "green")), "has the classes 'red', 'blue', 'green', but store"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            FineTuning(made, data, backbone())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rates": (0.0,)}, "learning rate 0.0 is not allowed"),
        ({"steps": (0,)}, "steps 0 is not allowed; it must be at least 1"),
        ({"batch": 1}, "batch 1 is not allowed; it must be at least 2"),
    ],
)
def test_values_that_cannot_be_are_refused(made, data, given, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        FineTuning(made, data, backbone(), **given)
