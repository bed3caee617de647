"""The source task: 200 classes told apart by contour and texture, whatever their place, size, turn and colours.

As with ImageNet, a network that learns it well has no use in its last layer for where, how large and how turned an
object is; its earlier layers cannot do without. That is the situation the method is made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.offline.contours import RADIUS, random_outline, signed_distance
from pipeline.offline.drawing import (
    SIDE,
    between,
    blend,
    circle,
    colours,
    fill,
    flat,
    noise,
    ramp,
    sample,
    streams,
    to_pixels,
    uniforms,
    window,
)
from pipeline.offline.textures import random_textures, smooth_fields

N_CLASSES = 200
SEED = 2022
_N_BACKGROUNDS = 24
_WIDTH = 26


@dataclass(frozen=True)
class ShapeClasses:
    """Categories of textured shapes.

    Attributes
    ----------
    pairs : ndarray of int, shape (class, 2)
        Contour and texture of each class; several classes share either, so that neither alone tells a class.
    contours, textures, backgrounds : list of Image
        Rasters to draw from.
    seed : int
        What they, and the images, are drawn from.
    """

    pairs: NDArray[np.int64]
    contours: list[Image.Image]
    textures: list[Image.Image]
    backgrounds: list[Image.Image]
    seed: int

    def images(self, indices: Sequence[int], labels: Sequence[int], stream: int) -> NDArray[np.uint8]:
        """Draw images.

        Parameters
        ----------
        indices : sequence of int, length image
            An image is a function of seed, stream, index and label alone.
        labels : sequence of int, length image
            Class of each.
        stream : int
            Numbers of different streams share nothing: one for each split.

        Returns
        -------
        ndarray of uint8, shape (image, SIDE, SIDE, 3)
            RGB.
        """
        generators = streams((self.seed, stream), indices)
        u = uniforms(generators, _WIDTH)
        size, turn = between(8, 18, u[:, 0]), circle(u[:, 1])
        margin = size * np.float32(1.2)
        centres = margin[:, None] + u[:, 2:4] * (SIDE - 2 * margin[:, None])
        chosen = self.pairs[np.asarray(labels, np.int64)]
        scale = size / np.float32(RADIUS)
        contours = sample([self.contours[c] for c in chosen[:, 0]], centres, turn, scale, u[:, 4] < 0.5)
        # A texture grows with its object, but less, so that it can be told on small ones.
        grain = between(0.85, 1.15, u[:, 7]) * np.sqrt(size / 13)
        texture = window([self.textures[t] for t in chosen[:, 1]], u[:, 5:7], turn, grain)
        backgrounds = [self.backgrounds[int(b * _N_BACKGROUNDS)] for b in u[:, 8]]
        behind = window(backgrounds, u[:, 9:11], circle(u[:, 11]), between(0.7, 1.4, u[:, 12]))
        dark, light, ground = colours(u[:, 13:22])
        background = blend(flat(ground), flat(1 - ground), behind * between(0, 0.35, u[:, 22])[:, None, None])
        object_ = blend(flat(dark), flat(light), texture)
        picture = blend(background, object_, fill(contours, scale))
        picture *= (1 + ramp(circle(u[:, 23])) * between(0, 0.35, u[:, 24])[:, None, None])[..., None]
        picture += (noise(generators) * between(0, 0.06, u[:, 25])[:, None, None])[..., None]
        return to_pixels(picture)


def shape_classes(seed: int, n_classes: int = N_CLASSES, n_contours: int = 40, n_textures: int = 27) -> ShapeClasses:
    """Draw categories: the same ones for the same arguments.

    Parameters
    ----------
    seed : int
        `SEED` for the source task; any other gives categories that it has not seen.
    n_classes, n_contours, n_textures : int
        How many classes, and of how many contours and textures they are made.

    Raises
    ------
    ValueError
        If there are fewer pairs of contour and texture than classes.
    """
    if n_classes > n_contours * n_textures:
        raise ValueError(f"{n_contours} contours and {n_textures} textures make no {n_classes} classes.")
    rng = np.random.default_rng(seed)
    contours = [signed_distance(random_outline(rng)) for _ in range(n_contours)]
    textures = random_textures(rng, n_textures)
    backgrounds = smooth_fields(rng, _N_BACKGROUNDS)
    # Contours and textures in step, shifted by one at every turn: all occur about equally often and no pair twice.
    number, at_contour, at_texture = np.arange(n_classes), rng.permutation(n_contours), rng.permutation(n_textures)
    turn = number // n_contours
    pairs = np.stack([at_contour[number % n_contours], at_texture[(number + turn * 7) % n_textures]], axis=1)
    return ShapeClasses(pairs, contours, textures, backgrounds, seed)
