"""Tasks of kinds that occur in photographs: letters, objects and materials."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.offline.drawing import (
    SIDE,
    between,
    blend,
    circle,
    colours,
    flat,
    noise,
    sample,
    streams,
    to_pixels,
    uniforms,
    window,
)
from pipeline.offline.source import ShapeClasses, shape_classes
from pipeline.offline.textures import random_textures, smooth_fields

LETTERS = tuple(string.ascii_uppercase)
N_SHAPES = 20
N_TEXTURES = 27
SEED_SHAPES, SEED_TEXTURES, SEED_LETTERS = 1001, 1002, 1003
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmss10",
    "cmtt10",
)
_GLYPH = 64


def shapes(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw shapes of unseen categories, one texture and one contour each."""
    return _shape_classes().images(indices, labels.tolist(), stream)


def textures(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw images full of one unseen pattern."""
    generators = streams((SEED_TEXTURES, stream), indices)
    u = uniforms(generators, 16)
    pattern = window([_textures()[label] for label in labels], u[:, 0:2], circle(u[:, 2]), between(0.8, 1.25, u[:, 3]))
    dark, light, _ = colours(u[:, 4:13])
    picture = blend(flat(dark), flat(light), pattern) * between(0.75, 1.15, u[:, 13])[:, None, None, None]
    return to_pixels(picture + (noise(generators) * between(0.02, 0.12, u[:, 14])[:, None, None])[..., None])


def letters(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a capital letter on a cloudy ground."""
    generators = streams((SEED_LETTERS, stream), indices)
    u = uniforms(generators, 22)
    glyphs = [_glyphs()[int(f * len(FONTS))][label] for f, label in zip(u[:, 0], labels, strict=True)]
    shown = sample(
        glyphs, SIDE / 2 + between(-9, 9, u[:, 1:3]), between(-0.3, 0.3, u[:, 3]), between(0.55, 0.95, u[:, 4])
    )
    grounds = [_grounds()[int(g * len(_grounds()))] for g in u[:, 5]]
    behind = window(grounds, u[:, 6:8], circle(u[:, 8]), between(0.7, 1.3, u[:, 9]))
    dark, light, _ = colours(u[:, 10:19])
    background = blend(flat(dark), flat(light), behind * between(0.1, 0.5, u[:, 19])[:, None, None])
    picture = blend(background, flat(light), shown)
    return to_pixels(picture + (noise(generators) * between(0, 0.06, u[:, 20])[:, None, None])[..., None])


@functools.cache
def _shape_classes() -> ShapeClasses:
    return shape_classes(SEED_SHAPES, N_SHAPES, n_contours=N_SHAPES, n_textures=N_SHAPES)


@functools.cache
def _textures() -> list[Image.Image]:
    return random_textures(np.random.default_rng(SEED_TEXTURES), N_TEXTURES)


@functools.cache
def _grounds() -> list[Image.Image]:
    return smooth_fields(np.random.default_rng(SEED_LETTERS), 16)


@functools.cache
def _glyphs() -> list[list[Image.Image]]:
    """Return every letter in every font, in the middle of its raster and of one height."""
    import matplotlib as mpl  # slow to import, and only its fonts are wanted

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return [[_glyph(ImageFont.truetype(folder / f"{font}.ttf", 48), letter) for letter in LETTERS] for font in FONTS]


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    drawn = Image.new("L", (_GLYPH, _GLYPH))
    left, top, right, bottom = font.getbbox(letter)
    middle = (_GLYPH / 2 - (left + right) / 2, _GLYPH / 2 - (top + bottom) / 2)
    ImageDraw.Draw(drawn).text(middle, letter, fill=255, font=font)
    return Image.fromarray(np.asarray(drawn, np.float32) / 255)
