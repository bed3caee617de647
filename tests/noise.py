"""An extraction so small that it takes a moment: 64 images of noise in eight blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.extraction_parameters import ExtractionParameters

N, N_BLOCKS = 64, 8


def noise(folder: Path) -> ExtractionParameters:
    """Write the images below a folder and return how to extract them; the content is always the same."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (N, 32, 32, 3), np.uint8), np.arange(N) % 2
    path = folder / "noise.npz"
    if not path.exists():
        np.savez(path, x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    return ExtractionParameters(
        backbone="test_resnet",
        weights="random:0",
        taps=("act1", "logits"),
        data=str(path),
        image_size=32,
        batch_size=4,
        block_size=8,
        device="cpu",
    )


def contents(uri: str) -> dict[str, bytes]:
    """Return every chunk of a store by its key."""
    root = Path(uri)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("c/*/*")) if p.is_file()}
