"""Pictures of features: what layers hold, what is kept of them, how relevance falls, and how a support grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.plots.style import KEPT, SHADES, name_layers, name_values, new_axes, plain, short_name
from store.errors import InvalidInputError, suggest
from store.layout import locate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.group_lasso import GroupLassoResult
    from pipeline.selection import Selection
    from pipeline.statistics import Moments
    from store.activations import ActivationStore

MEASURES = {
    "mean": "mean, in units of the activations",
    "std": "σ, in units of the activations",
    "zero_share": "samples at exactly 0, %",
}
Measure = Literal["mean", "std", "zero_share"]


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
    axes = axes or new_axes(max(6.0, 0.22 * len(counts)))
    axes.bar(range(len(counts)), list(counts.values()), color=KEPT)
    name_layers(axes, list(counts))
    axes.set_ylabel("kept features")
    axes.set_title(f"{len(selection.indices):,} of {store.n_features:,} features kept, by depth of layer", fontsize=10)
    return plain(axes)


def plot_layer_statistics(
    store: ActivationStore, moments: Moments, measure: Measure = "std", axes: Axes | None = None
) -> Axes:
    """Draw how a statistic of features is distributed within each layer, in order of depth.

    Parameters
    ----------
    store : ActivationStore
        The store measured.
    moments : Moments
        What `pipeline.statistics.compute_statistics` returns of it.
    measure : {"std", "mean", "zero_share"}
        The statistic. Deviations have a logarithmic scale, and features without any are left out and counted.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture; a layer has its median, the middle half, and the middle 90 % of its features.

    Raises
    ------
    InvalidInputError
        If there is no such measure, or the statistics are of another number of features.
    """
    if measure not in MEASURES:
        raise InvalidInputError(f"measure={measure!r} is unknown; {suggest(measure, MEASURES)}")
    if len(moments.mean) != store.n_features:
        raise InvalidInputError(
            f"the statistics are of {len(moments.mean):,} features, but store {store.uri!r} has {store.n_features:,}."
        )
    values = 100 * moments.zero_share if measure == "zero_share" else getattr(moments, measure)
    left_out = moments.constant & (measure == "std")
    axes = axes or new_axes(max(7.6, 0.22 * len(store.layers)))
    for place, layer in enumerate(store.layers.values()):
        own = slice(layer.offset, layer.offset + layer.n_features)
        shown = values[own][~left_out[own]]
        if len(shown):
            low, first, middle, third, high = np.quantile(shown, (0.05, 0.25, 0.5, 0.75, 0.95))
            axes.vlines(place, low, high, color=KEPT, linewidth=1, label="5 to 95 % of the features")
            axes.vlines(place, first, third, color=KEPT, linewidth=5, alpha=0.45, label="25 to 75 %")
            axes.plot(place, middle, color="black", marker="o", markersize=3, linestyle="", label="median")
    name_layers(axes, list(store.layers))
    if measure == "std":
        axes.set_yscale("log")
    elif measure == "zero_share":
        axes.set_ylim(-3, 103)
    axes.set_ylabel(MEASURES[measure])
    without = f"; {left_out.sum():,} constant features left out" if left_out.any() else ""
    axes.set_title(f"{store.n_features:,} features over {moments.count:,} samples{without}", fontsize=10)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(
        list(handles.values()), list(handles), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return plain(axes)


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
    axes = axes or new_axes()
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
        # Zero is in the middle, so that each half can have its own label, left of the numbers.
        axes.set_ylim(-1.08, 1.08)
        for height, label in ((0.75, "row norm / largest"), (0.25, "c / λ − 1")):
            axes.annotate(
                label,
                (0, height),
                (-40, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                rotation=90,
                va="center",
                ha="right",
            )
    if selection.support:
        label = f"support ({selection.support:,})"
        axes.axvline(selection.support, color="0.4", linewidth=1, linestyle=":", label=label)
    axes.set_title("relevance of all features, sorted", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return plain(axes)


def plot_path(result: GroupLassoResult, store: ActivationStore | None = None, axes: Axes | None = None) -> Axes:
    """Draw how the support grows as λ falls, and from which depth its features come.

    Parameters
    ----------
    result : GroupLassoResult
        Of several penalties.
    store : ActivationStore, optional
        What was selected from: the support is divided into up to five ranges of layers.
    axes : Axes, optional
        Where to draw.

    Returns
    -------
    Axes
        The picture; λ falls from left to right.

    Raises
    ------
    InvalidInputError
        If the result has one penalty only, or is of another number of features than the store.
    """
    if len(result.path) < 2:
        raise InvalidInputError("a path needs several penalties; give `group_lasso` several, penalty_ratio=[0.5, 0.1].")
    if store is not None and len(result.relevance) != store.n_features:
        raise InvalidInputError(
            f"the result is of {len(result.relevance):,} features, but store {store.uri!r} has {store.n_features:,}."
        )
    axes = axes or new_axes()
    path = sorted(result.path, key=lambda each: -each.certificate.penalty)
    ratios = [each.certificate.penalty / each.certificate.penalty_max for each in path]
    if store is not None:
        names, layers = list(store.layers), tuple(store.layers.values())
        counts = np.zeros((len(names), len(path)), np.int64)
        for column, each in enumerate(path):
            for layer, positions in locate(layers, each.support):
                counts[names.index(layer.name), column] = len(positions)
        ranges = np.array_split(np.arange(len(names)), min(len(SHADES), len(names)))
        ends = [(short_name(names[own[0]]), short_name(names[own[-1]])) for own in ranges]
        labels = [first if first == last else f"{first} … {last}" for first, last in ends]
        shades = SHADES if len(ranges) > 1 else SHADES[1:]
        areas = axes.stackplot(ratios, [counts[own].sum(0) for own in ranges], colors=shades, alpha=0.8, labels=labels)
        # The deepest layers are on top, in the picture as in its legend.
        axes.legend(handles=areas[::-1], frameon=False, fontsize=8, loc="upper left", title="layers", title_fontsize=8)
    axes.plot(ratios, [len(each.support) for each in path], color="black", marker="o", markersize=4)
    axes.set_xlim(max(ratios), min(ratios))
    axes.set_ylim(bottom=0)
    name_values(axes, ratios)
    axes.set_xlabel("λ / λ_max, falling")
    axes.set_ylabel("features in the support")
    axes.set_title(f"support along {len(path)} penalties", fontsize=10)
    return plain(axes)
