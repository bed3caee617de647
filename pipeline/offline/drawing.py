"""From numbers to pixels: random streams per image, rasters sampled along affine maps, layers of colour.

An image depends on (seed, index) alone: neither on the batch it is drawn in nor on the process. What is drawn is taken
from small rasters by Pillow's bilinear sampling; all arithmetic on pixels works on whole batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
"""Height and width of every image, in pixels."""
EDGE = 0.5
"""Half the width, in pixels, over which a contour passes from inside to outside."""

FAR = 96
"""What is added to signed distances, so that 0 is far outside."""

Floats = NDArray[np.floating[Any]]


def streams(key: Sequence[int], indices: Sequence[int]) -> list[np.random.Generator]:
    """Return one random stream per image, a function of `key` and its index alone."""
    return [np.random.default_rng([*key, int(index)]) for index in indices]


def uniforms(generators: Sequence[np.random.Generator], width: int) -> Floats:
    """Return `width` uniform numbers from each stream, shape (image, width)."""
    return np.stack([generator.random(width, dtype=np.float32) for generator in generators])


def noise(generators: Sequence[np.random.Generator]) -> Floats:
    """Return standard normal numbers, shape (image, SIDE, SIDE)."""
    return np.stack([generator.standard_normal((SIDE, SIDE), dtype=np.float32) for generator in generators])


def between(low: float, high: float, uniform: Floats) -> Floats:
    """Return uniform numbers in [low, high)."""
    return (low + (high - low) * uniform).astype(np.float32)


def circle(uniform: Floats) -> Floats:
    """Return uniform angles in radians."""
    return between(0, 2 * np.pi, uniform)


def sample(
    rasters: Sequence[Image.Image],
    centres: Floats,
    angles: Floats,
    scales: Floats,
    mirrored: NDArray[np.bool] | None = None,
) -> Floats:
    """Draw each raster turned, scaled and moved.

    Parameters
    ----------
    rasters : sequence of Image, length image
        Square, mode "F"; what lies beyond the border reads 0.
    centres : ndarray, shape (image, 2)
        Where the raster's centre comes to lie, (x, y) in pixels.
    angles : ndarray, shape (image,)
        Rotation in radians, from x towards y.
    scales : ndarray, shape (image,)
        Pixels of the image per pixel of the raster.
    mirrored : ndarray, shape (image,), optional
        Whether the raster is mirrored before it is turned.

    Returns
    -------
    ndarray of float32, shape (image, SIDE, SIDE)
        The sampled values.
    """
    cos, sin = np.cos(angles.astype(np.float64)) / scales, np.sin(angles.astype(np.float64)) / scales
    flip = np.where(mirrored if mirrored is not None else np.zeros(len(rasters)), -1.0, 1.0)
    x, y = centres[:, 0].astype(np.float64), centres[:, 1].astype(np.float64)
    drawn = np.empty((len(rasters), SIDE, SIDE), np.float32)
    for i, raster in enumerate(rasters):
        half, a, b, f = raster.width / 2, cos[i], sin[i], flip[i]
        # Pillow wants the map from the image's coordinates to the raster's.
        place = (f * a, f * b, half - f * (a * x[i] + b * y[i]), -b, a, half - (a * y[i] - b * x[i]))
        turned = raster.transform((SIDE, SIDE), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)
        drawn[i] = np.asarray(turned)
    return drawn


def window(rasters: Sequence[Image.Image], place: Floats, angles: Floats, scales: Floats) -> Floats:
    """Sample a part of each raster that covers the whole image, `place` being uniform numbers, shape (image, 2)."""
    room = (rasters[0].width / 2 * scales / np.float32(np.sqrt(2)) - SIDE / 2)[:, None]
    return sample(rasters, SIDE / 2 + (2 * place - 1) * room, angles, scales)


def fill(distance: Floats, scales: Floats) -> Floats:
    """Return how much of each pixel lies inside, from sampled signed distances plus `FAR` in pixels of the raster."""
    return np.clip((distance - np.float32(FAR)) * (scales[:, None, None] / (2 * EDGE)) + np.float32(0.5), 0, 1)


def blend(below: Floats, above: Floats, share: Floats) -> Floats:
    """Lay colour over colour: `share` in [0, 1] of `above`, shapes (image, SIDE, SIDE, 3) and (image, SIDE, SIDE)."""
    return below + (above - below) * share[..., None]


def flat(colours: Floats) -> Floats:
    """Return one colour per image, shape (image, 3), as something to blend with."""
    return colours[:, None, None, :]


def ramp(angles: Floats) -> Floats:
    """Return a slope across each image, from −1 to 1 at most, shape (image, SIDE, SIDE)."""
    line = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2 * np.float32(np.sqrt(2)))
    cos, sin = (f(angles.astype(np.float64)).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cos * line[None, None, :] + sin * line[None, :, None]


def colours(u: Floats) -> tuple[Floats, Floats, Floats]:
    """Return three colours per image from uniform numbers, shape (image, 9): two to paint with, and a ground.

    The two differ by 0.3 to 0.65 in every channel, either being the lighter; the ground is light where they are dark
    on the whole, and dark where they are light.
    """
    dark = u[:, 0:3] * np.float32(0.55)
    light = dark + np.float32(0.3) + u[:, 3:6] * np.float32(0.35)
    first_is_light = u[:, 6:7] < 0.5
    light_ground = (dark + light).mean(axis=1, keepdims=True) < 1
    depth = u[:, 6:9] * np.float32(0.25)
    ground = np.where(light_ground, np.float32(0.95) - depth, depth + np.float32(0.05))
    return np.where(first_is_light, light, dark), np.where(first_is_light, dark, light), ground


def to_pixels(colour: Floats) -> NDArray[np.uint8]:
    """Return colours in [0, 1], clipped, as bytes."""
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
