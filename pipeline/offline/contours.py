"""Silhouettes as signed distance fields: sharp at any size, because the edge is drawn after they are sampled."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from pipeline.offline.drawing import FAR, Floats

FIELD = 96
"""Side of a field in pixels."""
RADIUS = 24
"""Root mean square distance of a contour from its centre, in pixels of the field."""
LONGEST = 1.7
"""Distance that no point of a contour exceeds, in units of `RADIUS`."""
_FINER = 4
_POINTS = 720


def signed_distance(outline: Floats) -> Image.Image:
    """Return the field of a polygon.

    Parameters
    ----------
    outline : ndarray, shape (point, 2)
        Corners in units of `RADIUS` around the centre.

    Returns
    -------
    Image
        Mode "F", `FIELD` pixels a side: the distance to the polygon in pixels of the field, positive inside, plus
        `FAR`, so that what lies beyond the field and is read as 0 counts as far outside.
    """
    side = FIELD * _FINER
    drawn = Image.new("1", (side, side))
    corners = (np.asarray(outline, np.float64) * RADIUS + FIELD / 2) * _FINER
    ImageDraw.Draw(drawn).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    inside = np.asarray(drawn)
    distance = (distance_transform_edt(inside) - distance_transform_edt(~inside)) / _FINER
    coarse = distance.reshape(FIELD, _FINER, FIELD, _FINER).mean(axis=(1, 3)).astype(np.float32)
    return Image.fromarray(coarse + np.float32(FAR))


def random_outline(rng: np.random.Generator) -> Floats:
    """Return a silhouette of one of five families, scaled to unit root mean square radius, shape (point, 2)."""
    angle = np.linspace(0, 2 * np.pi, _POINTS, endpoint=False)
    family = rng.integers(5)
    if family == 0:  # a smooth closed curve
        order = np.arange(2, 7)
        size = rng.uniform(0.3, 1, 5) / order**0.8 * 0.55
        radius = 1 + (size * np.cos(order * angle[:, None] + rng.uniform(0, 2 * np.pi, 5))).sum(axis=1)
    elif family == 1:  # a star
        arms, depth, sharp = rng.integers(3, 9), rng.uniform(0.25, 0.65), rng.uniform(0.6, 1.6)
        wave = np.abs((angle * arms / (2 * np.pi)) % 1 - 0.5) * 2
        radius = 1 - depth * wave**sharp
    elif family == 2:  # a gear
        teeth, depth, width = rng.integers(4, 12), rng.uniform(0.2, 0.5), rng.uniform(0.35, 0.65)
        radius = np.where((angle * teeth / (2 * np.pi)) % 1 < width, 1, 1 - depth)
    elif family == 3:  # an irregular polygon
        corners = rng.integers(3, 8)
        at = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * np.pi / corners)
        points = np.stack([np.cos(at), np.sin(at)], axis=1) * rng.uniform(0.55, 1.2, corners)[:, None]
        return _unit(_along(points))
    else:  # a superellipse, possibly long or with a bite
        power, aspect, bite = rng.uniform(0.5, 5), rng.uniform(0.35, 1), rng.uniform(0, 0.6) * rng.integers(2)
        cos, sin = np.cos(angle), np.sin(angle)
        radius = (np.abs(cos) ** power + np.abs(sin / aspect) ** power) ** (-1 / power)
        radius = radius * (1 - bite * np.exp(-((np.minimum(angle, 2 * np.pi - angle) / 0.5) ** 2)))
    return _unit(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))


def _along(corners: Floats) -> Floats:
    """Return many points along a polygon."""
    share = np.linspace(0, 1, _POINTS // len(corners), endpoint=False)[:, None]
    return np.concatenate(
        [a + (b - a) * share for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    ).astype(np.float32)


def _unit(outline: Floats) -> Floats:
    centred = outline - (outline.min(axis=0) + outline.max(axis=0)) / 2
    squared = (centred**2).sum(axis=1)
    return (centred / max(np.sqrt(squared.mean()), np.sqrt(squared.max()) / LONGEST)).astype(np.float32)
