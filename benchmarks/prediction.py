"""Prediction against the bare forward pass of the whole backbone, fed the same batches from memory.

A head that reads all layers must cost hardly more than the bare model, and one that reads early layers less than it.
Kept figures have the kind of device in their file's name.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.ratios import alternate, at_most, report
from pipeline.backbones import Backbone, load_backbone
from pipeline.devices import find_device
from pipeline.forwarding import keep_freed_memory
from pipeline.prediction import Head2ToeClassifier
from pipeline.prediction.recipe import Recipe, SelectedLayer
from pipeline.taps import PlannedLayer, plan_layers, resolve_taps
from store.spec import PoolingSpec

BACKBONES = {"resnet50": 512, "vit_tiny_patch16_224": 768}
"""Backbones and target sizes."""
SHARE, N_CLASSES = 0.05, 100
ALL, LESS = 1.1, 1.0
"""What a head on all layers may cost, and one on the first half of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="timed rounds of each ratio")
    parser.add_argument("--batch-size", type=int, default=None, help="images per batch; 16 on the CPU, 256 on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", action="append", choices=BACKBONES, help="repeatable; all if not given")
    parser.add_argument("--note", default="", help="on the machine, kept with every figure, such as 'loaded'")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results")
    given = parser.parse_args()
    device = find_device(given.device)
    if device.type == "cpu":
        keep_freed_memory()  # as `predict` does
    size = given.batch_size or (16 if device.type == "cpu" else 256)
    rows = [row for name in given.backbone or BACKBONES for row in ratios(name, device, size, given.runs, given.note)]
    report(f"prediction-{device.type}" if given.keep else None, rows)


def ratios(name: str, device: torch.device, batch_size: int, runs: int, note: str) -> list[dict[str, Any]]:
    """Compare two heads with the bare model, each in turn."""
    backbone = load_backbone(name, "random:0")
    size = backbone.preprocessing.input_size
    taps = resolve_taps(backbone.model, input_size=size)
    planned = plan_layers(backbone.model, taps, PoolingSpec(target_sizes=(BACKBONES[name],)), size)
    used = {"all layers": planned, "the first half of the layers": planned[: len(planned) // 2]}
    heads = {what: head(backbone, layers).to(device) for what, layers in used.items()}
    model = backbone.model.to(device).to(memory_format=torch.channels_last)
    images = torch.randn((batch_size, *size)).to(device).contiguous(memory_format=torch.channels_last)
    precision = next(iter(heads.values())).recipe.autocast

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=precision == "fp16"):
            model(images)
        wait()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def call(one: Head2ToeClassifier) -> None:
        one(images)
        wait()

    seconds = alternate(
        {"bare": bare, **{what: lambda one=one: call(one) for what, one in heads.items()}},  # type: ignore[misc]  # of a lambda
        runs,
    )
    bounds = zip(heads, (ALL, LESS), strict=True)
    return [
        at_most(
            f"{name}, batch {batch_size}, {device.type}: predict from {what} / bare forward pass",
            seconds[what] / seconds["bare"],
            bound,
            note=", ".join(filter(None, (f"bare {batch_size / seconds['bare']:.3g} images/s", note))),
        )
        for what, bound in bounds
    ]


def head(backbone: Backbone, layers: tuple[PlannedLayer, ...]) -> Head2ToeClassifier:
    """Return a head of random numbers on some features of each layer, as on a GPU a store of half precision has it."""
    rng = torch.Generator().manual_seed(0)
    counts = [max(1, int(SHARE * layer.n_features)) for layer in layers]
    chosen = [torch.randperm(layer.n_features, generator=rng)[:n] for layer, n in zip(layers, counts, strict=True)]
    m = sum(counts)
    recipe = Recipe(
        backbone=backbone.name,
        weights=backbone.weights,
        backbone_spec=backbone.spec,
        preprocessing=backbone.preprocessing,
        layers=tuple(SelectedLayer.of(layer, n) for layer, n in zip(layers, counts, strict=True)),
        dtype="float16",
        autocast="fp16" if torch.cuda.is_available() else "none",
        channels_last=True,
        normalization="standardize",
        class_names=tuple(map(str, range(N_CLASSES))),
        accuracy={},
        lineage={},
    )
    tensors = {
        "indices": torch.cat([one.sort().values for one in chosen]),
        "coef": torch.randn(m, N_CLASSES, generator=rng),
        "intercept": torch.zeros(N_CLASSES),
        "mean": torch.zeros(m),
        "scale": torch.ones(m),
    }
    return Head2ToeClassifier(backbone, recipe, tensors)


if __name__ == "__main__":
    main()
