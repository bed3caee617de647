"""Grey patterns of nine families, each drawn once as a raster large enough for any window of an image."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.offline.drawing import Floats

TILE = 224
"""Side of a raster in pixels: an image's diagonal at the largest scale, and room to move."""
FAMILIES = ("stripes", "waves", "checks", "dots", "rings", "bricks", "clouds", "grain", "flecks")
_SOFT = 2.5


def random_texture(rng: np.random.Generator, family: str) -> Image.Image:
    """Return a pattern.

    Parameters
    ----------
    rng : Generator
        Draws its period, proportions and disorder.
    family : str
        One of `FAMILIES`.

    Returns
    -------
    Image
        Mode "F", `TILE` pixels a side, values in [0, 1].
    """
    axis = np.arange(TILE, dtype=np.float64)
    x, y = np.meshgrid(axis, axis)
    period = rng.uniform(6, 15)
    u, v = x / period, y / period
    if family == "stripes":
        values = _bands(u, rng.uniform(0.25, 0.75))
    elif family == "waves":
        bend = rng.uniform(0.25, 0.6) * np.sin(2 * np.pi * v / rng.uniform(1.2, 3))
        values = _bands(u + bend, rng.uniform(0.3, 0.7))
    elif family == "checks":
        values = 0.5 + np.clip(_SOFT * np.sin(np.pi * u) * np.sin(np.pi * v * rng.uniform(0.5, 1)), -0.5, 0.5)
    elif family == "dots":
        shifted = u + 0.5 * (np.floor(v) % 2) * rng.integers(2)
        distance = np.hypot(shifted % 1 - 0.5, v % 1 - 0.5)
        values = np.clip((rng.uniform(0.2, 0.42) - distance) * period / 1.5 + 0.5, 0, 1)
    elif family == "rings":
        distance = np.hypot(u / 2 % 1 - 0.5, v / 2 % 1 - 0.5)
        values = _bands(distance * rng.uniform(2.5, 4.5), rng.uniform(0.35, 0.65))
    elif family == "bricks":
        height = v * rng.uniform(1, 2)
        along, joint = (u / 1.6 + 0.5 * (np.floor(height) % 2)) % 1, rng.uniform(0.12, 0.25)
        values = ((along > joint / 1.6) & (height % 1 > joint)).astype(np.float64)
    elif family == "clouds":
        values = _even(gaussian_filter(rng.standard_normal((TILE, TILE)), rng.uniform(2.5, 5)))
    elif family == "grain":
        values = _even(gaussian_filter(rng.standard_normal((TILE, TILE)), (rng.uniform(0.7, 1.2), rng.uniform(2, 7))))
    else:  # flecks
        field = _even(gaussian_filter(rng.standard_normal((TILE, TILE)), rng.uniform(1.2, 2.2)))
        values = np.clip((field - rng.uniform(0.6, 0.8)) * 8, 0, 1)
    return Image.fromarray(values.astype(np.float32))


def random_textures(rng: np.random.Generator, count: int) -> list[Image.Image]:
    """Return patterns of all families in turn."""
    return [random_texture(rng, FAMILIES[i % len(FAMILIES)]) for i in range(count)]


def smooth_fields(rng: np.random.Generator, count: int) -> list[Image.Image]:
    """Return clouds without a period of their own, for backgrounds."""
    return [
        Image.fromarray(_even(gaussian_filter(rng.standard_normal((TILE, TILE)), width)).astype(np.float32))
        for width in rng.uniform(4, 14, count)
    ]


def _bands(phase: Floats, share: float) -> Floats:
    return 0.5 + np.clip(_SOFT * (np.sin(2 * np.pi * phase) + np.sin(np.pi * (share - 0.5))), -0.5, 0.5)


def _even(field: Floats) -> Floats:
    """Return the field stretched to [0, 1] at two standard deviations."""
    return np.clip((field - field.mean()) / (4 * field.std()) + 0.5, 0, 1)
