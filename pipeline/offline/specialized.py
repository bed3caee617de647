"""Tasks of instruments: inspection of surfaces, directions in noise, microscopy, pictures of the eye."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.offline.contours import RADIUS, random_outline, signed_distance
from pipeline.offline.drawing import (
    SIDE,
    Floats,
    between,
    circle,
    fill,
    noise,
    ramp,
    sample,
    streams,
    to_pixels,
    uniforms,
    window,
)
from pipeline.offline.structured import scatter
from pipeline.offline.textures import random_texture, smooth_fields

SEED = 1200
N_STRIPES, N_CELLS, N_GRADES = 12, 10, 5
CELL_TYPES = ("round", "long", "lobed", "ring", "dividing", "spotted")
GRADES = ((0, 0), (1, 2), (3, 5), (6, 9), (10, 14))
"""Least and greatest number of lesions of each grade."""
SURFACES = ("grain", "bricks", "stripes", "checks", "dots", "waves")


def defects(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a surface; label 1 has a scratch, a stain or a pit."""
    generators, u = _begin(1, stream, indices)
    surface = [_surfaces()[int(k * len(_surfaces()))] for k in u[:, 0]]
    pattern = window(surface, u[:, 1:3], between(-0.1, 0.1, u[:, 3]), between(0.7, 1, u[:, 4]))
    grey = between(0.3, 0.5, u[:, 5])[:, None, None] + pattern * between(0.1, 0.3, u[:, 6])[:, None, None]
    grey = grey + ramp(circle(u[:, 7])) * between(0, 0.12, u[:, 8])[:, None, None]
    flaws = [_flaws()[int(k * len(_flaws()))] for k in u[:, 9]]
    scale = between(5, 10, u[:, 10]) / np.float32(RADIUS)
    share = fill(sample(flaws, between(12, SIDE - 12, u[:, 11:13]), circle(u[:, 13]), scale), scale)
    strength = between(0.2, 0.45, u[:, 14]) * np.where(u[:, 15] < 0.5, -1, 1).astype(np.float32) * labels
    grey = grey + share * strength.astype(np.float32)[:, None, None]
    return _finish(generators, grey, between(0.95, 1.05, u[:, 16:19]), between(0.01, 0.05, u[:, 19]))


def stripes(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a wave in noise, running in the label's direction up to a quarter of a step."""
    generators, u = _begin(2, stream, indices)
    turn = (labels + between(-0.25, 0.25, u[:, 0])) * (np.pi / N_STRIPES)
    waves = SIDE * np.sqrt(2) / between(5, 12, u[:, 1])
    phase = np.pi * waves[:, None, None] * ramp(turn.astype(np.float32)) + circle(u[:, 2])[:, None, None]
    grey = between(0.35, 0.65, u[:, 3])[:, None, None] + np.sin(phase) * between(0.06, 0.2, u[:, 4])[:, None, None]
    return _finish(generators, grey, between(0.8, 1.2, u[:, 5:8]), between(0.1, 0.25, u[:, 8]))


def cells(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw as many cells as the label says, plus one, bright on a dark ground and apart from each other."""
    generators, u = _begin(3, stream, indices)
    glow = _clouds(u[:, 0:4]) * between(0, 0.12, u[:, 4])[:, None, None] + np.float32(0.05)
    found = [scatter(g, int(label) + 1, 2.6, 4.2, 1.6) for g, label in zip(generators, labels, strict=True)]
    for slot, v in enumerate(np.split(uniforms(generators, 4 * N_CELLS), N_CELLS, axis=1)):
        rows = np.flatnonzero(labels >= slot)
        here, v = np.array([found[i][slot] for i in rows]).reshape(-1, 3), v[rows]
        body = [_bodies()[int(k * len(_bodies()))] for k in v[:, 0]]
        glow[rows] += _soft(body, here, v[:, 1]) * between(0.5, 0.85, v[:, 2])[:, None, None]
    tint = np.where(u[:, 5:6] < 0.5, between(0.1, 0.5, u[:, 6:9]), between(0.6, 1, u[:, 6:9]))
    tint[:, 1] = 1
    return _finish(generators, _blurred(glow), tint, between(0.01, 0.04, u[:, 9]))


def cell_types(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw one cell of the label's type among specks of dirt, dark on a light ground as if it were stained."""
    generators, u = _begin(4, stream, indices)
    radius = between(7, 12, u[:, 0])
    centres = SIDE / 2 + (2 * u[:, 1:3] - 1) * (SIDE / 2 - 1.6 * radius)[:, None]
    turn, scale = circle(u[:, 3]), radius / np.float32(RADIUS)
    body = fill(sample([_types()[label][0] for label in labels], centres, turn, scale), scale)
    kernel = fill(sample([_types()[label][1] for label in labels], centres, turn, scale), scale)
    sign = np.where(labels == CELL_TYPES.index("ring"), -1, 1).astype(np.float32)
    stain = body * between(0.2, 0.4, u[:, 4])[:, None, None]
    stain = stain + kernel * (sign * between(0.16, 0.28, u[:, 5]))[:, None, None]
    for v in np.split(uniforms(generators, 6 * 3), 3, axis=1):
        speck = [_bodies()[int(k * len(_bodies()))] for k in v[:, 0]]
        at = np.concatenate([between(2, SIDE - 2, v[:, 1:3]), between(0.8, 2, v[:, 3:4])], axis=1)
        stain = stain + _soft(speck, at, v[:, 4]) * between(0, 0.4, v[:, 5])[:, None, None]
    stain = _blurred(np.minimum(stain, np.float32(0.8))) + _clouds(u[:, 6:10]) * np.float32(0.12)
    absorbed = stain[..., None] * between(0.4, 1.2, u[:, 10:13])[:, None, None, :]
    grain = (noise(generators) * between(0.01, 0.05, u[:, 13])[:, None, None])[..., None]
    return to_pixels(between(0.8, 0.95, u[:, 14])[:, None, None, None] - absorbed + grain)


def lesions(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a dim disc with vessels and as many bright lesions as its grade allows."""
    generators, u = _begin(5, stream, indices)
    least, most = np.array(GRADES)[labels].T
    number = least + (u[:, 0] * (most - least + 1)).astype(np.int64)
    at = np.full((len(labels), 2), SIDE / 2, np.float32) + between(-3, 3, u[:, 1:3])
    reach = between(25, 29, u[:, 3])
    disc = fill(sample([_bodies()[0]] * len(labels), at, circle(u[:, 4]), reach / RADIUS), reach / RADIUS)
    vessels = window([_vessels()] * len(labels), u[:, 5:7], circle(u[:, 7]), between(0.7, 1.1, u[:, 8]))
    grey = between(0.35, 0.55, u[:, 9])[:, None, None] - vessels * between(0.05, 0.18, u[:, 10])[:, None, None]
    grey = grey + ramp(circle(u[:, 11])) * between(0, 0.12, u[:, 12])[:, None, None]
    slots = GRADES[-1][1]
    for slot, v in enumerate(np.split(uniforms(generators, 6 * slots), slots, axis=1)):
        rows = np.flatnonzero(number > slot)
        v = v[rows]
        away, direction = reach[rows] * np.float32(0.85) * np.sqrt(v[:, 0]), circle(v[:, 1])
        place = at[rows] + away[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
        spot = np.concatenate([place, between(1.0, 2.2, v[:, 2:3])], axis=1)
        body = [_bodies()[int(k * len(_bodies()))] for k in v[:, 3]]
        grey[rows] = np.maximum(grey[rows], _soft(body, spot, v[:, 4]) * between(0.75, 1, v[:, 5])[:, None, None])
    tint = np.stack([between(0.9, 1, u[:, 13]), between(0.5, 0.8, u[:, 14]), between(0.2, 0.5, u[:, 15])], axis=1)
    return _finish(generators, _blurred(grey * disc), tint, between(0.01, 0.04, u[:, 16]))


def _begin(task: int, stream: int, indices: Sequence[int]) -> tuple[list[np.random.Generator], Floats]:
    generators = streams((SEED, task, stream), indices)
    return generators, uniforms(generators, 24)


def _finish(
    generators: Sequence[np.random.Generator], grey: Floats, tint: Floats, strength: Floats
) -> NDArray[np.uint8]:
    grainy = grey + noise(generators) * strength[:, None, None]
    return to_pixels(grainy[..., None] * tint[:, None, None, :])


def _soft(shapes: Sequence[Image.Image], places: Floats, turn: Floats) -> Floats:
    """Draw each shape at (x, y) with its radius."""
    scale = (places[:, 2] / np.float32(RADIUS)).astype(np.float32)
    return fill(sample(shapes, places[:, :2], circle(turn), scale), scale)


def _blurred(grey: Floats) -> Floats:
    return gaussian_filter(grey, (0, 0.7, 0.7))


def _clouds(u: Floats) -> Floats:
    fields = [_fields()[int(k * len(_fields()))] for k in u[:, 0]]
    return window(fields, u[:, 1:3], circle(u[:, 3]), np.ones(len(u), np.float32))


@functools.cache
def _fields() -> list[Image.Image]:
    return smooth_fields(np.random.default_rng(SEED), 16)


@functools.cache
def _surfaces() -> list[Image.Image]:
    rng = np.random.default_rng(SEED + 1)
    return [random_texture(rng, family) for family in SURFACES for _ in range(3)]


@functools.cache
def _vessels() -> Image.Image:
    """Return thin bent lines: where a smooth field passes through its middle."""
    field = np.asarray(smooth_fields(np.random.default_rng(SEED + 2), 1)[0])
    return Image.fromarray(np.exp(-(((field - np.float32(0.5)) / np.float32(0.03)) ** 2)))


def _ellipse(along: float, across: float, x: float = 0, y: float = 0) -> Floats:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    return np.stack([x + along * np.cos(t), y + across * np.sin(t)], axis=1).astype(np.float32)


@functools.cache
def _bodies() -> list[Image.Image]:
    return [signed_distance(_ellipse(1 / a, a)) for a in (1.0, 0.95, 0.9, 0.85, 0.8)]


@functools.cache
def _flaws() -> list[Image.Image]:
    """Return scratches, pits and stains."""
    rng = np.random.default_rng(SEED + 3)
    scratches = [_ellipse(along, 0.09) for along in (1.2, 1.45, 1.7)]
    pits = [_ellipse(0.45, 0.4), _ellipse(0.6, 0.5)]
    stains = [random_outline(rng) * np.float32(0.8) for _ in range(4)]
    return [signed_distance(outline) for outline in (*scratches, *pits, *stains)]


@functools.cache
def _types() -> list[tuple[Image.Image, Image.Image]]:
    """Return body and kernel of each type of cell."""
    t = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    ray = np.stack([np.cos(t), np.sin(t)], axis=1)
    lobed = (ray * (1 + 0.28 * np.cos(3 * t))[:, None]).astype(np.float32)
    waist = (ray * (0.62 + 0.75 * np.cos(t) ** 2)[:, None]).astype(np.float32)
    bodies = (_ellipse(1, 1), _ellipse(1.6, 0.62), lobed, _ellipse(1, 1), waist, _ellipse(1, 1))
    round_ = signed_distance(_ellipse(0.42, 0.42))
    pair = [np.asarray(signed_distance(_ellipse(0.36, 0.36, x))) for x in (-0.75, 0.75)]
    hole, spot = signed_distance(_ellipse(0.55, 0.55)), signed_distance(_ellipse(0.24, 0.24, 0.5))
    kernels = (round_, round_, round_, hole, Image.fromarray(np.maximum(*pair)), spot)
    return [(signed_distance(b), k) for b, k in zip(bodies, kernels, strict=True)]
