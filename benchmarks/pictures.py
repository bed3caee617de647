"""Pictures of the result page, in the style of `pipeline.plots`; each function returns axes of a figure of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments import GROUPS, OFFSETS, Points
from pipeline.plots import GROUPS as COLOURS
from pipeline.plots import KEPT

GREY = "0.55"


def plot_fractions(fractions: Sequence[float], points: Points, groups: Sequence[str]) -> Axes:
    """Draw validation accuracy, shape (task, F), by the fraction of features kept."""
    axes = _axes("fraction F of all features kept", "accuracy on held-out folds, %")
    _draw_tasks(axes, fractions, points, groups)
    return _by_fraction(axes, fractions)


def plot_offsets(points: Points, groups: Sequence[str]) -> Axes:
    """Draw test accuracy, shape (task, offset), of a group of features by how many better groups were skipped."""
    axes = _axes(f"groups of 1/{GROUPS} of all features skipped, best first", "test accuracy, %")
    _draw_tasks(axes, OFFSETS, points, groups)
    axes.set_xticks(OFFSETS)
    return axes


def plot_donors(points: Points, tasks: Sequence[str]) -> Axes:
    """Draw what a selection made on another task costs: test accuracy, shape (task, donor), less that of the own."""
    axes = Figure((0.42 * len(tasks) + 2.4, 0.42 * len(tasks) + 1.6), layout="constrained").subplots()
    lost = points - np.diagonal(points)[:, None]
    limit = max(1.0, float(np.abs(lost).max()))
    image = axes.imshow(lost, cmap="RdBu", vmin=-limit, vmax=limit)
    for row, column in np.ndindex(lost.shape):
        dark = abs(lost[row, column]) > 0.6 * limit
        text = f"{round(float(lost[row, column]))}" if row != column else "·"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=8)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
    axes.set_xlabel("task whose selection is used")
    axes.set_ylabel("task that is tested")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="points against the task's own selection")
    return axes


def plot_layers(fractions: Sequence[float], points: Points) -> Axes:
    """Draw mean test accuracy, shape (task, F, 2), of the best features and of the best whole layers by fraction."""
    axes = _axes("fraction F of all features kept", "test accuracy, mean over tasks, %")
    for column, (label, colour) in enumerate((("best features", KEPT), ("best whole layers", GREY))):
        axes.plot(fractions, points[:, :, column].mean(0), color=colour, marker="o", markersize=4, label=label)
    axes.legend(frameon=False, fontsize=8)
    return _by_fraction(axes, fractions)


def _draw_tasks(axes: Axes, x: Sequence[float], points: Points, groups: Sequence[str]) -> None:
    """Draw a thin line per task in the colour of its group, and the mean on top."""
    colours = dict(zip(dict.fromkeys(groups), COLOURS, strict=False))
    for row, group in zip(points, groups, strict=True):
        axes.plot(x, row, color=colours[group], alpha=0.35, linewidth=1)
    for group, colour in colours.items():
        axes.plot([], [], color=colour, alpha=0.6, label=f"{group} task")
    axes.plot(x, points.mean(0), color="black", marker="o", markersize=4, label="mean over tasks")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _by_fraction(axes: Axes, fractions: Sequence[float]) -> Axes:
    axes.set_xscale("log")
    axes.set_xticks(fractions, [f"{fraction:g}" for fraction in fractions])
    axes.minorticks_off()
    return axes


def _axes(x: str, y: str) -> Axes:
    # A figure of its own canvas, as in `pipeline.plots`: no global state.
    axes = Figure((6.6, 3.8), layout="constrained").subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return axes
