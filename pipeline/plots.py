"""Pictures of a selection; each function draws on given axes, or new ones, and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.affinity import TaskAffinity, correlate_affinity
from pipeline.selection import Selection
from store.activations import ActivationStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT = "#2f6db3"
GROUPS = ("#2f6db3", "#c2571a", "#3c8d40", "#7d5ba6", "#6b6b6b")
MARKERS = "osD^v"


def plot_kept_by_depth(store: ActivationStore, selection: Selection, axes: Axes | None = None) -> Axes:
    """Draw how many features are kept in each layer, in order of depth.

    Parameters
    ----------
    store : ActivationStore
        The store selected from.
    selection : Selection
        The kept features.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture.
    """
    counts = selection.per_layer(store)
    names, kept = list(counts), np.array(list(counts.values()))
    axes = axes or _axes(max(6.0, 0.22 * len(names)), 3.8)
    axes.bar(range(len(names)), kept, color=KEPT)
    step = max(1, len(names) // 40)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel("kept features")
    axes.set_xlabel("layer, from input to output")
    axes.set_title(f"{len(selection.indices):,} of {store.n_features:,} features kept, by depth of layer", fontsize=10)
    return _plain(axes)


def plot_relevance(selection: Selection, axes: Axes | None = None) -> Axes:
    """Draw the relevance of all features, sorted, with the kept ones marked.

    Parameters
    ----------
    selection : Selection
        The ranking.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture: values over the largest. Of a selection with a support, positive values are row norms on it;
        negative ones say how far a feature is from entering.
    """
    axes = axes or _axes(6.0, 3.8)
    order = np.argsort(-selection.relevance, kind="stable")
    ranked = selection.relevance[order]
    kept = np.flatnonzero(np.isin(order, selection.indices))
    # Row norms and distances from entering have different units; the largest norm becomes 1 to show both.
    scaled = np.where(ranked > 0, ranked / max(ranked[0], np.finfo(float).tiny), ranked)
    # Thinned on a logarithmic grid: a million points look the same and weigh a thousand times more.
    ranks = np.unique(np.geomspace(1, len(ranked), 2000).astype(int))
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvspan(kept[0] + 1, kept[-1] + 1, color=KEPT, alpha=0.12, linewidth=0, label=f"kept ({len(kept):,})")
    axes.plot(ranks, scaled[ranks - 1], color=KEPT)
    axes.set_xscale("log")
    axes.set_xlim(1, len(ranked))
    axes.set_xlabel("rank of feature")
    if selection.support is None:
        axes.set_ylabel("relevance / largest")
    else:
        # Zero is in the middle, so that each half can have its own label.
        axes.set_ylim(-1.08, 1.08)
        for height, label in ((0.75, "row norm / largest"), (0.25, "c / λ − 1")):
            axes.text(-0.13, height, label, rotation=90, va="center", ha="right", transform=axes.transAxes)
    if selection.support:
        label = f"support ({selection.support:,})"
        axes.axvline(selection.support, color="0.4", linewidth=1, linestyle=":", label=label)
    axes.set_title("relevance of all features, sorted", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return _plain(axes)


def plot_affinity(tasks: Sequence[TaskAffinity], axes: Axes | None = None) -> Axes:
    """Draw gain against domain affinity, a named point per task, as figure 1 of the paper does.

    Parameters
    ----------
    tasks : sequence of TaskAffinity
        At least one.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture; its title gives Spearman's correlation and the number of tasks.
    """
    axes = axes or _axes(7.0, 4.6)
    axes.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.75", linewidth=0.8, zorder=0)
    for number, group in enumerate(dict.fromkeys(task.group for task in tasks)):
        own = [task for task in tasks if task.group == group]
        color, marker = GROUPS[number % len(GROUPS)], MARKERS[number % len(MARKERS)]
        axes.scatter(
            [t.affinity for t in own], [t.gain for t in own], s=26, color=color, marker=marker, label=group or None
        )
    axes.margins(0.1, 0.12)
    axes.set_xlabel("domain affinity: accuracy of Linear − Scratch, points")
    axes.set_ylabel("gain: accuracy of Head2Toe − Linear, points")
    axes.set_title(f"gain against domain affinity ({correlate_affinity(tasks)})", fontsize=10)
    if any(task.group for task in tasks):
        axes.legend(frameon=False, fontsize=8)
    _name_points(axes, [task.task for task in tasks], [(task.affinity, task.gain) for task in tasks])
    return _plain(axes)


def _name_points(axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write each point's name right, left, above or below of it, where the least of the others is covered."""
    # A figure within a figure has no size of its own, says matplotlib's annotation.
    figure = axes.figure.get_size_inches() * 72 * 0.87  # type: ignore[union-attr]
    spans = [(low, high - low) for low, high in (axes.get_xlim(), axes.get_ylim())]
    at = np.array([[(v - low) / span for v, (low, span) in zip(p, spans, strict=True)] for p in points]) * figure
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


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _axes(width: float, height: float) -> Axes:
    # A figure of its own canvas: no global state, so threads and notebooks are safe.
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained").subplots()


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes
