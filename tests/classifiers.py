"""Small classifiers and a small store of images that tests of prediction use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from pipeline.backbones import Backbone, load_backbone
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.image_data import ImageData, ImageSplit, make_split
from pipeline.images import ArrayImage
from pipeline.prediction import Head2ToeClassifier
from pipeline.prediction.recipe import Recipe, SelectedLayer
from pipeline.taps import PlannedLayer, plan_layers, resolve_taps
from store import ActivationStore, open_store
from store.spec import PoolingSpec

CLASSES = ("red | <b>", "green", "blue")
SIZE = 32


def pictures(n: int, seed: int) -> ImageSplit:
    """Return noise in which one colour, the class, is stronger."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    pixels = rng.integers(0, 200, (n, SIZE, SIZE, 3), np.uint8)
    pixels[np.arange(n), :, :, labels] += 55
    return make_split([f"{seed}/{i}" for i in range(n)], labels, [ArrayImage(p) for p in pixels])


DATA = ImageData("noise", CLASSES, {"train": pictures(24, 1), "test": pictures(9, 2)})


def extracted(backbone: str, root: Path) -> ActivationStore:
    """Return a store of the pictures above, by a backbone of random weights."""
    parameters = ExtractionParameters(
        backbone=backbone, weights="random:0", data="noise", image_size=SIZE, target_sizes=(64,), device="cpu"
    )
    return open_store(extract(parameters, str(root), data=DATA).uri)


@cache
def backbone() -> Backbone:
    return load_backbone("test_resnet", "shipped", input_size=SIZE)


@cache
def planned() -> tuple[PlannedLayer, ...]:
    model, size = backbone().model, (3, SIZE, SIZE)
    return plan_layers(model, resolve_taps(model, input_size=size), PoolingSpec(target_sizes=(64,)), size)


def classifier(normalization: str = "standardize", n_layers: int = 4) -> Head2ToeClassifier:
    """Return a classifier of random numbers on three features of each of the first layers."""
    rng = torch.Generator().manual_seed(0)
    layers = [SelectedLayer.of(layer, 3) for layer in planned()[:n_layers]]
    m = 3 * n_layers
    tensors = {
        "indices": torch.cat([torch.randperm(one.n_features, generator=rng)[:3].sort().values for one in layers]),
        "coef": torch.randn(m, len(CLASSES), generator=rng),
        "intercept": torch.randn(len(CLASSES), generator=rng),
    }
    if normalization == "standardize":
        tensors |= {"mean": torch.randn(m, generator=rng), "scale": torch.rand(m, generator=rng)}
    recipe = Recipe(
        backbone="test_resnet",
        weights="shipped",
        backbone_spec=backbone().spec,
        preprocessing=backbone().preprocessing,
        layers=tuple(layers),
        dtype="float16",
        autocast="none",
        channels_last=True,
        normalization=normalization,
        class_names=CLASSES,
        accuracy={"train": 1.0, "test": 0.875},
        lineage={"head": "abc", "features": {"selection": "def"}, "parameters": {}, "train": "train", "store": "123"},
    )
    return Head2ToeClassifier(backbone(), recipe, tensors)


def batch(n: int = 4) -> torch.Tensor:
    return torch.stack([backbone().transform(DATA.splits["train"].image(i)) for i in range(n)])
