"""Tasks about the layout of a scene: where, how turned, how large, how many, how far, in which relation, how lit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.offline.contours import RADIUS, random_outline, signed_distance
from pipeline.offline.drawing import (
    SIDE,
    Floats,
    between,
    blend,
    circle,
    colours,
    fill,
    flat,
    noise,
    sample,
    streams,
    to_pixels,
    uniforms,
    window,
)
from pipeline.offline.textures import smooth_fields

SEED = 1100
N_POSITIONS, N_ORIENTATIONS, N_SIZES, N_COUNTS, N_DISTANCES, N_LIGHTS = 16, 16, 8, 8, 6, 8
RELATIONS = ("left", "right", "above", "below")
SMALLEST, LARGEST = 4.0, 16.0
"""Range of sizes: radius in pixels of the disc of the same area."""
NEAREST, FARTHEST = 14.0, 44.0
"""Range of distances in pixels."""
_MARGIN = 10
_GAP = 1.35
_ATTEMPTS = 60


def position(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a sprite whose centre lies in the column of its label, anywhere from top to bottom."""
    generators, u = _begin(1, stream, indices)
    step = (SIDE - 2 * _MARGIN) / N_POSITIONS
    centres = np.stack([_MARGIN + (labels + u[:, 0]) * step, between(_MARGIN, SIDE - _MARGIN, u[:, 1])], axis=1)
    return _one_sprite(generators, u, centres, circle(u[:, 2]), between(5, 6.5, u[:, 3]))


def orientation(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a sprite without symmetry of rotation, turned as its label says up to a quarter of a step."""
    generators, u = _begin(2, stream, indices)
    turn = ((labels + between(-0.25, 0.25, u[:, 2])) * (2 * np.pi / N_ORIENTATIONS)).astype(np.float32)
    return _one_sprite(generators, u, between(14, SIDE - 14, u[:, 0:2]), turn, between(7, 10, u[:, 3]))


def size(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a sprite as large as its label says, as far as it goes inside the image."""
    generators, u = _begin(3, stream, indices)
    radius = (SMALLEST + (labels + u[:, 3]) * ((LARGEST - SMALLEST) / N_SIZES)).astype(np.float32)
    room = np.maximum(SIDE / 2 - 1.5 * radius, 0)[:, None]
    return _one_sprite(generators, u, SIDE / 2 + (2 * u[:, 0:2] - 1) * room, circle(u[:, 2]), radius)


def count(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw as many bright objects on a dark ground as the label says, plus one, apart from each other."""
    generators, u = _begin(4, stream, indices)
    picture = _dark_ground(u)
    objects = [scatter(g, int(label) + 1, 2.8, 6.5, _GAP) for g, label in zip(generators, labels, strict=True)]
    for slot, v in enumerate(np.split(uniforms(generators, 5 * N_COUNTS), N_COUNTS, axis=1)):
        rows = np.flatnonzero(labels >= slot)
        here, v = np.array([objects[i][slot] for i in rows]).reshape(-1, 3), v[rows]
        shape = [_anything()[int(k * len(_anything()))] for k in v[:, 0]]
        share = _draw(shape, here[:, :2], circle(v[:, 1]), here[:, 2])
        picture[rows] = blend(picture[rows], flat(between(0.6, 1, v[:, 2:5])), share)
    return _finish(generators, picture, u[:, -1])


def distance(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw two objects as far apart as the label says."""
    generators, u = _begin(5, stream, indices)
    apart = NEAREST + (labels + u[:, 0]) * ((FARTHEST - NEAREST) / N_DISTANCES)
    pairs = [_pair(g, d, 0, 2 * np.pi) for g, d in zip(generators, apart, strict=True)]
    return _two_objects(generators, u, np.stack(pairs), _anything(), _anything())


def relation(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a star on the side of a disc that the label says, within 35 degrees."""
    generators, u = _begin(6, stream, indices)
    middle = np.array([np.pi, 0, 1.5 * np.pi, 0.5 * np.pi])[labels]
    spread = np.radians(35)
    pairs = [_pair(g, g.uniform(17, 36), m - spread, m + spread) for g, m in zip(generators, middle, strict=True)]
    return _two_objects(generators, u, np.stack(pairs), [_disc()], [_star()])


def light(stream: int, indices: Sequence[int], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw a ball with bumps, lit from the direction that the label says and from above."""
    generators, u = _begin(7, stream, indices)
    radius = between(15, 27, u[:, 0])
    centres = SIDE / 2 + (2 * u[:, 1:3] - 1) * (SIDE / 2 - radius)[:, None]
    axis = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    x = (axis[None, None, :] - centres[:, 0, None, None]) / radius[:, None, None]
    y = (axis[None, :, None] - centres[:, 1, None, None]) / radius[:, None, None]
    height = np.sqrt(np.maximum(1 - x**2 - y**2, 0))
    bumps = _window(u[:, 3:7]) * between(2, 7, u[:, 7])[:, None, None]
    slope_y, slope_x = np.gradient(bumps, axis=(1, 2))
    normal = np.stack([x - slope_x, y - slope_y, height + np.float32(0.05)])
    normal /= np.sqrt((normal**2).sum(axis=0))
    turn = (labels + between(-0.25, 0.25, u[:, 8])) * (2 * np.pi / N_LIGHTS)
    rise = between(0.35, 1.0, u[:, 9]).astype(np.float64)
    towards = np.stack([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)]).astype(np.float32)
    shade = np.maximum((normal * towards[:, :, None, None]).sum(axis=0), 0)
    inside = np.clip((1 - np.sqrt(x**2 + y**2)) * radius[:, None, None] + np.float32(0.5), 0, 1)
    albedo = between(0.4, 1, u[:, 10:13])
    ball = flat(albedo) * (np.float32(0.12) + np.float32(0.88) * shade)[..., None]
    ground = np.broadcast_to(flat(between(0.05, 0.75, u[:, 13:16])), ball.shape)
    return _finish(generators, blend(ground, ball, inside), u[:, -1])


def scatter(rng: np.random.Generator, number: int, smallest: float, largest: float, gap: float) -> Floats:
    """Place discs inside the image, none touching another.

    Parameters
    ----------
    rng : Generator
        Draws places and radii.
    number : int
        How many.
    smallest, largest : float
        Range of their radii in pixels.
    gap : float
        Discs stay as far apart as if they were this many times as large and two pixels more.

    Returns
    -------
    ndarray of float32, shape (number, 3)
        x, y and radius.
    """
    placed: list[tuple[float, float, float]] = []
    while len(placed) < number:
        placed = []
        for a, b, c in rng.random((_ATTEMPTS, 3)).tolist():
            radius = smallest + (largest - smallest) * c
            least = gap * radius + 1
            x, y = least + (SIDE - 2 * least) * a, least + (SIDE - 2 * least) * b
            if all(math.hypot(x - other[0], y - other[1]) > gap * (radius + other[2]) + 2 for other in placed):
                placed.append((x, y, radius))
            if len(placed) == number:
                break
    return np.array(placed, np.float32)


def _pair(rng: np.random.Generator, apart: float, first: float, last: float) -> Floats:
    """Return two places inside the image, so far apart and with the second in a direction between two angles."""
    while True:
        direction = rng.uniform(first, last)
        step = apart * np.array([np.cos(direction), np.sin(direction)])
        start = rng.uniform(_MARGIN - 2, SIDE - _MARGIN + 2, 2)
        if ((start + step >= _MARGIN - 2) & (start + step <= SIDE - _MARGIN + 2)).all():
            return np.stack([start, start + step]).astype(np.float32)


def _begin(task: int, stream: int, indices: Sequence[int]) -> tuple[list[np.random.Generator], Floats]:
    generators = streams((SEED, task, stream), indices)
    return generators, uniforms(generators, 32)


def _one_sprite(
    generators: Sequence[np.random.Generator], u: Floats, centres: Floats, turn: Floats, radius: Floats
) -> NDArray[np.uint8]:
    shape = [_sprites()[int(k * len(_sprites()))] for k in u[:, 4]]
    ink, _, ground = colours(u[:, 5:14])
    background = blend(flat(ground), flat(1 - ground), _window(u[:, 14:18]) * np.float32(0.15))
    picture = blend(background, flat(ink), _draw(shape, centres, turn, radius))
    return _finish(generators, picture, u[:, -1])


def _two_objects(
    generators: Sequence[np.random.Generator],
    u: Floats,
    pairs: Floats,
    first: Sequence[Image.Image],
    second: Sequence[Image.Image],
) -> NDArray[np.uint8]:
    picture = _dark_ground(u)
    for slot, choices in enumerate((first, second)):
        v = uniforms(generators, 6)
        shape = [choices[int(k * len(choices))] for k in v[:, 0]]
        share = _draw(shape, pairs[:, slot], circle(v[:, 1]), between(3.5, 5, v[:, 2]))
        picture = blend(picture, flat(between(0.6, 1, v[:, 3:6])), share)
    return _finish(generators, picture, u[:, -1])


def _dark_ground(u: Floats) -> Floats:
    ground = between(0.02, 0.3, u[:, 20:23])
    return blend(flat(ground), flat(ground + np.float32(0.3)), _window(u[:, 14:18]) * np.float32(0.3))


def _finish(generators: Sequence[np.random.Generator], picture: Floats, strength: Floats) -> NDArray[np.uint8]:
    return to_pixels(picture + (noise(generators) * between(0, 0.03, strength)[:, None, None])[..., None])


def _draw(shapes: Sequence[Image.Image], centres: Floats, turn: Floats, radius: Floats) -> Floats:
    scale = (radius / np.float32(RADIUS)).astype(np.float32)
    return fill(sample(shapes, centres, turn, scale), scale)


def _window(u: Floats) -> Floats:
    fields = [_fields()[int(k * len(_fields()))] for k in u[:, 0]]
    return window(fields, u[:, 1:3], circle(u[:, 3]), np.ones(len(u), np.float32))


@functools.cache
def _fields() -> list[Image.Image]:
    return smooth_fields(np.random.default_rng(SEED), 16)


@functools.cache
def _anything() -> list[Image.Image]:
    rng = np.random.default_rng(SEED + 1)
    return [signed_distance(random_outline(rng)) for _ in range(24)]


@functools.cache
def _sprites() -> list[Image.Image]:
    """Return a heart, an arrow and a drop, which no rotation maps to themselves, around their centres of area."""
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    heart = np.stack(
        [-(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)), 16 * np.sin(t) ** 3], 1
    )
    arrow = np.array([(10, 0), (1, 8), (1, 3), (-9, 3), (-9, -3), (1, -3), (1, -8)], float)
    drop = np.stack([np.cos(t), 0.75 * np.sin(t) * np.sin(t / 2) ** 1.5], 1)
    return [signed_distance(around_centre(outline)) for outline in (heart, arrow, drop)]


@functools.cache
def _disc() -> Image.Image:
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    return signed_distance(np.stack([np.cos(t), np.sin(t)], 1))


@functools.cache
def _star() -> Image.Image:
    t = np.arange(10) * (np.pi / 5)
    return signed_distance(np.stack([np.cos(t), np.sin(t)], 1) * np.tile([1.5, 0.6], 5)[:, None])


def around_centre(corners: NDArray[np.float64]) -> Floats:
    """Return a polygon with its area's centre at the origin and the area of a unit disc."""
    x, y = corners.T
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    cross = x * y_next - x_next * y
    area = cross.sum() / 2
    centre = np.array([((x + x_next) * cross).sum(), ((y + y_next) * cross).sum()]) / (6 * area)
    return ((corners - centre) / np.sqrt(abs(area) / np.pi)).astype(np.float32)
