"""Generated activations of a deep network, with labels that depend on a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store import create_store
from store.spec import Manifest

WIDTH = 2000
N_TRUE = 200
RANK = 32


def layers(n: int, p: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """Yield layers of 2,000 features, shape (feature, sample): relu(latent · weights + noise).

    The latent variables, of low rank, are mixed and bent from each layer to the next.
    """
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, RANK)).astype(np.float32)
    for number, start in enumerate(range(0, p, WIDTH)):
        weights = rng.standard_normal((min(WIDTH, p - start), RANK), np.float32) / np.float32(RANK**0.5)
        values = weights @ latent.T + 0.5 * rng.standard_normal((len(weights), n), np.float32)
        yield f"layer{number:03d}", np.maximum(values, 0).astype(np.float16)
        mixed = np.tanh(latent @ rng.standard_normal((RANK, RANK), np.float32) / np.float32(RANK**0.5))
        latent = 0.9 * latent + 0.45 * mixed + 0.1 * rng.standard_normal((n, RANK), np.float32)


def problem(n: int, p: int, n_classes: int, seed: int = 0) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Return activations, shape (feature, sample), and labels that depend on 200 of the features."""
    values = np.concatenate([x for _, x in layers(n, p, seed)])
    rng = np.random.default_rng(seed + 1)
    true = values[np.sort(rng.choice(p, N_TRUE, replace=False))].astype(np.float32)
    true = (true - true.mean(axis=1, keepdims=True)) / (true.std(axis=1, keepdims=True) + 1e-6)
    logits = true.T @ rng.standard_normal((N_TRUE, n_classes), np.float32) / np.float32(N_TRUE**0.5)
    labels = (4 * logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    # Every class has a sample, whatever the draw.
    labels[:n_classes] = np.arange(n_classes)
    return values, labels


def standardized(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return the features as every library is given them: shape (sample, feature), Fortran order, standardised."""
    x = values.astype(np.float32)
    x -= x.mean(axis=1, keepdims=True)
    scale = x.std(axis=1, keepdims=True)
    x /= np.where(scale > 0, scale, 1)
    return x.T


def write_store(path: Path, n: int, p: int, n_classes: int, seed: int = 0) -> str:
    """Write a problem as a store and return its URI."""
    values, labels = problem(n, p, n_classes, seed)
    names = {f"layer{i:03d}": min(WIDTH, p - start) for i, start in enumerate(range(0, p, WIDTH))}
    ids = tuple(f"{seed}-{i:06d}" for i in range(n))
    manifest = Manifest(ids, labels, ids)
    writer = create_store(path, names, {"train": n}, manifests={"train": manifest})
    for block in writer.missing()["train"]:
        a, b = writer.store.splits["train"].block_range(block)
        writer.write_block(
            "train", block, {name: values[i * WIDTH : (i + 1) * WIDTH, a:b] for i, name in enumerate(names)}
        )
    return writer.uri
