"""Pictures of a selection; each function draws on given axes, or new ones, and returns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.selection import Selection
from store.activations import ActivationStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT = "#2f6db3"


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


def _axes(width: float, height: float) -> Axes:
    # A figure of its own canvas: no global state, so threads and notebooks are safe.
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained").subplots()


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes
