"""What all pictures share: colours that colour-blind people can tell apart, and names that do not cover each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT = "#0072b2"
GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#4d4d4d")
"""Okabe and Ito's colours that have a contrast of 3 to white, and a dark grey."""
MARKERS = "osD^v"
SHADES = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Five colours of matplotlib's viridis, for what has an order."""
LONGEST = 28
"""Letters that a layer's name has in a picture."""


def new_axes(width: float = 6.4, height: float = 3.8) -> Axes:
    """Return axes of a figure of its own canvas, so that there is no global state."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained").subplots()


def plain(axes: Axes) -> Axes:
    """Take away the lines above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Write the names of layers, one per unit of x, below; only every second, third … where there is no room for all.

    Parameters
    ----------
    axes : Axes
        Its size says how much room there is.
    names : sequence of str
        In order of depth.
    """
    line = 9.5  # points from one line of 7 points to the next
    step = math.ceil(len(names) * line / _size(axes)[0])
    shown = [short_name(name) for name in names[::step]]
    axes.set_xticks(range(0, len(names), step), shown, rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("layer, from input to output")


def short_name(name: str) -> str:
    """Return a layer's name, without its middle if it is long: the beginning and the end tell layers apart."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def name_values(axes: Axes, values: Sequence[float]) -> None:
    """Give x a logarithmic scale with a tick at each of some increasing values that is not too near to the one before.

    Parameters
    ----------
    axes : Axes
        With everything drawn that decides its limits.
    values : sequence of float
        Such as all fractions tried.
    """
    axes.set_xscale("log")
    places = axes.transData.transform([(value, 0.0) for value in values])[:, 0]
    room = 32 / 72 * axes.get_figure(root=True).dpi  # type: ignore[union-attr]  # all axes have one
    named = [0]
    for number, place in enumerate(places):
        if abs(place - places[named[-1]]) >= room:
            named.append(number)
    axes.minorticks_off()
    axes.set_xticks([values[number] for number in named], [f"{values[number]:.3g}" for number in named])


def name_points(axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write each point's name right, left, above or below of it, where the least of the others is covered."""
    size = _size(axes)
    spans = [(low, high - low) for low, high in (axes.get_xlim(), axes.get_ylim())]
    at = np.array([[(v - low) / span for v, (low, span) in zip(p, spans, strict=True)] for p in points]) * size
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    for name, point, (x, y) in zip(names, points, at, strict=True):
        width, height = 4.0 * len(name), 8.0
        choices = {
            (5, 0, "left", "center"): (x + 5, y - 4, x + 5 + width, y + 4),
            (-5, 0, "right", "center"): (x - 5 - width, y - 4, x - 5, y + 4),
            (0, 5, "center", "bottom"): (x - width / 2, y + 5, x + width / 2, y + 5 + height),
            (0, -5, "center", "top"): (x - width / 2, y - 5 - height, x + width / 2, y - 5),
        }
        best = min(choices, key=lambda choice: sum(_overlap(choices[choice], other) for other in taken))
        taken.append(choices[best])
        across, up, ha, va = best
        axes.annotate(name, point, (across, up), textcoords="offset points", ha=ha, va=va, fontsize=7.5)


def _size(axes: Axes) -> tuple[float, float]:
    """Return width and height of the axes in points, as they are before labels take their room."""
    scale = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]  # all axes have one
    return axes.bbox.width * scale, axes.bbox.height * scale


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
