"""Pictures of stores, selections and results; each function draws on given axes, or new ones, and returns them.

New axes are those of a figure of its own canvas: pyplot and its global state are left alone, so threads are safe. In a
notebook give axes of pyplot, or show ``axes.figure``.
"""

from pipeline.plots.accuracy import plot_affinity, plot_fractions
from pipeline.plots.features import plot_kept_by_depth, plot_layer_statistics, plot_path, plot_relevance
from pipeline.plots.style import GROUPS, KEPT, MARKERS

__all__ = [
    "GROUPS",
    "KEPT",
    "MARKERS",
    "plot_affinity",
    "plot_fractions",
    "plot_kept_by_depth",
    "plot_layer_statistics",
    "plot_path",
    "plot_relevance",
]
