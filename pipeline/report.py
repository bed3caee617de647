"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.plots import plot_kept_by_depth, plot_relevance
from pipeline.selection import Selection
from store.activations import ActivationStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render_report(
    store: ActivationStore,
    selection: Selection,
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
) -> str:
    """Return the page that shows a run.

    Parameters
    ----------
    store : ActivationStore
        The activations.
    selection : Selection
        What was kept.
    rows : sequence of mapping
        The result table: ``method``, ``features``, ``accuracy`` (share, on the test split), ``seconds``, ``head``.
    seconds : mapping of str to float
        Time by stage.
    notes : sequence of str
        Sentences the reader must not miss, such as that the weights are random.

    Returns
    -------
    str
        HTML; needs no other file and no network.
    """
    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        store=store.summary,
        selection=selection,
        rows=rows,
        seconds=seconds,
        notes=notes,
        pictures=[(title, Markup(svg)) for _, title, svg in draw_pictures(store, selection)],
        layers=[(layer, kept) for layer, kept in selection.per_layer(store).items() if kept],
    )


def draw_pictures(store: ActivationStore, selection: Selection) -> list[tuple[str, str, str]]:
    """Return the pictures of a selection: a short name, a title, and the drawing as SVG."""
    return [
        ("kept-by-depth", "Kept features by depth of layer", _svg(plot_kept_by_depth(store, selection))),
        ("relevance", "Relevance, sorted", _svg(plot_relevance(selection))),
    ]


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
