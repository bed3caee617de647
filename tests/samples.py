"""A small data set of activations that several tests use."""

from __future__ import annotations

import numpy as np

from store import StoreWriter
from store.spec import Manifest

SPLITS = {"train": 90, "test": 37}
LAYERS = {"stem": 7, "blocks.0": 40, "blocks.1": 64, "pre_logits": 16}
CLASSES = ("ant", "bee", "cat")


def synthetic(seed: int = 0) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Manifest]]:
    """Return float16 activations by split and layer, shape (feature, sample), whose labels some features know."""
    rng = np.random.default_rng(seed)
    values: dict[str, dict[str, np.ndarray]] = {}
    manifests = {}
    directions = {name: rng.standard_normal((n, len(CLASSES))) for name, n in LAYERS.items()}
    for split, n in SPLITS.items():
        labels = rng.permutation(np.arange(n) % len(CLASSES))
        values[split] = {
            name: (0.6 * directions[name][:, labels] + rng.standard_normal((size, n)) + 1).astype(np.float16)
            for name, size in LAYERS.items()
        }
        ids = [f"{split}/{i:03d}é" for i in range(n)]
        manifests[split] = Manifest(ids, labels.astype(np.int64), [f"digest of {i}" for i in ids])
    return values, manifests


def write_all(writer: StoreWriter, values: dict[str, dict[str, np.ndarray]]) -> None:
    for split, blocks in writer.missing().items():
        for block in blocks:
            samples = slice(*writer.store.splits[split].block_range(block))
            writer.write_block(split, block, {name: v[:, samples] for name, v in values[split].items()})
