"""Pictures of a report: drawn once, as SVG that stands alone, or that takes the colours of the page it is part of."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from pipeline.plots import KEPT, plot_fractions, plot_kept_by_depth, plot_relevance
from pipeline.selection import Selection
from store.activations import ActivationStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3
"""Fractions that make a line."""
# What stands alone is black on white; on a page the text has its colour, and the paper is its own.
_COLOURS = {
    "#ffffff": "none",
    "#000000": "currentColor",
    "#666666": "var(--soft)",
    "#999999": "var(--soft)",
    "#cccccc": "var(--line)",
    KEPT: "var(--kept)",
    "#d55e00": "var(--other)",
}
_drawn: dict[tuple[str, str], list[Picture]] = {}
_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")


class Picture(NamedTuple):
    """A picture: a short name, a title, what it shows in words, the drawing as SVG on white, and a note below."""

    name: str
    title: str
    description: str
    svg: str
    note: str = ""

    @property
    def inline(self) -> Markup:
        """The drawing as a part of a page: named for screen readers, in the page's colours, without ids of its own."""
        ids = f"picture-{self.name}"
        svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", self.svg, flags=re.DOTALL)
        svg = re.sub(r'<g id="[^"]*_\d+">', "<g>", svg)
        svg = _COLOUR.sub(lambda found: f"{found[1]}: {_COLOURS.get(found[2], found[2])}", svg)
        named = f'<svg role="img" aria-labelledby="{ids}-title {ids}-text"'
        words = f'<title id="{ids}-title">{escape(self.title)}</title><desc id="{ids}-text">{escape(self.description)}'
        return Markup(re.sub(r"<svg([^>]*)>", lambda found: f"{named}{found[1]}>{words}</desc>", svg, count=1))


def draw_pictures(store: ActivationStore, selection: Selection) -> list[tuple[str, str, str]]:
    """Return the pictures of a selection: a short name, a title, and the drawing as SVG."""
    return [(each.name, each.title, each.svg) for each in selection_pictures(store, selection)]


def selection_pictures(store: ActivationStore, selection: Selection) -> list[Picture]:
    """Return the pictures of a selection; those of the last one are kept, as a run shows them twice."""
    key = store.uri, selection.digest
    if key not in _drawn:
        drawn = _draw(store, selection)
        _drawn.clear()
        _drawn[key] = drawn
    return list(_drawn[key])


def _draw(store: ActivationStore, selection: Selection) -> list[Picture]:
    counts = selection.per_layer(store)
    most = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])[:3]
    kept, support = len(selection.indices), selection.support
    where = ", ".join(f"{name} {counts[name]:,}" for name in most)
    of = f"{kept:,} of {store.n_features:,} features are kept"
    row = f"; {support:,} of all features are in the support" if support is not None else ""
    return [
        Picture(
            "kept-by-depth",
            "Kept features by depth of layer",
            f"A bar for each of {len(counts)} layers, from input to output. {of}, most of them in {where}.",
            _svg(plot_kept_by_depth(store, selection)),
        ),
        Picture(
            "relevance",
            "Relevance, sorted",
            f"Relevance of every feature by {selection.scorer}, from the highest to the lowest. {of}{row}.",
            _svg(plot_relevance(selection)),
        ),
    ]


def fractions_picture(accuracy: Mapping[float, float], linear: float | None, split: str) -> list[Picture]:
    """Return the picture of accuracy by the fraction of features kept, if there are enough of them; else nothing."""
    if len(accuracy) < FEWEST:
        return []
    lines: dict[str, Mapping[float, float] | float] = {"Head2Toe": accuracy}
    if linear is not None:
        lines["Linear"] = linear
    points = ", ".join(f"{100 * share:.1f} % at F = {fraction:.3g}" for fraction, share in accuracy.items())
    axes = plot_fractions(lines)
    axes.set_ylabel(f"accuracy on {split}, %")
    title = f"Accuracy on {split} by fraction of features kept"
    beside = "" if linear is None else f" Linear, which does not depend on it, has {100 * linear:.1f} %."
    note = (
        ": all stored heads that differ in nothing else. A fraction chosen by this picture is chosen on these samples."
    )
    return [Picture("fractions", title, f"Head2Toe: {points}.{beside}", _svg(axes), note)]


def _svg(axes: Axes) -> str:
    """Return a drawing as inline SVG; its text is escaped by matplotlib."""
    import matplotlib as mpl

    buffer = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    # A fixed salt makes element ids, and so the page, the same from run to run.
    with mpl.rc_context({"svg.hashsalt": "head2toe", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
