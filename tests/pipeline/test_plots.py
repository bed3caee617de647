"""Pictures show the numbers they are given, with units, in colours all can tell apart and names all can read."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from samples import LAYERS

from pipeline.affinity import TaskAffinity
from pipeline.group_lasso import group_lasso
from pipeline.plots import (
    GROUPS,
    MARKERS,
    plot_affinity,
    plot_fractions,
    plot_kept_by_depth,
    plot_layer_statistics,
    plot_path,
    plot_relevance,
)
from pipeline.plots.style import SHADES, name_layers, new_axes, short_name
from pipeline.protocol import Evaluation
from pipeline.selection import Selection, select_features
from pipeline.statistics import Moments, compute_statistics
from store.errors import InvalidInputError

P = sum(LAYERS.values())
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "ordinary": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(color: str) -> np.ndarray:
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("colors", [GROUPS, SHADES], ids=["groups", "shades"])
def test_colours_differ_for_everybody(vision: str, colors: tuple[str, ...]) -> None:
    seen = [lab(np.clip(VISIONS[vision] @ linear(color), 0, 1)) for color in colors]
    # About ten times what a trained eye just tells apart.
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15


def test_lines_and_points_stand_out_from_white() -> None:
    contrast = [1.05 / (0.05 + linear(color) @ [0.2126, 0.7152, 0.0722]) for color in GROUPS]
    assert min(contrast) > 3


def texts_overlap(axes: Axes) -> list[tuple[str, str]]:
    """Return the pairs of texts of a drawn picture of which one covers some of the other."""
    figure: Any = axes.get_figure(root=True)
    figure.draw_without_rendering()
    legend = axes.get_legend()
    labels = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *(legend.get_texts() if legend else ())]
    texts = [t for t in [*labels, *axes.get_xticklabels(), *axes.get_yticklabels()] if t.get_text()]
    # Ticks outside of the limits are there, but not drawn.
    inside = axes.bbox.expanded(1.02, 1.02)
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    ticks = {id(t) for t in [*axes.get_xticklabels(), *axes.get_yticklabels()]}
    shown = [
        (text, box)
        for t, (text, box) in zip(texts, boxes, strict=True)
        if id(t) not in ticks
        or inside.x0 <= (box.x0 + box.x1) / 2 <= inside.x1
        or inside.y0 <= (box.y0 + box.y1) / 2 <= inside.y1
    ]
    shrunk = [(text, box.padded(-1)) for text, box in shown]
    return [(a[0], b[0]) for a, b in combinations(shrunk, 2) if a[1].overlaps(b[1])]


def selection(relevance: np.ndarray, keep: int, support: int | None) -> Selection:
    order = np.argsort(-relevance, kind="stable")
    return Selection("d", order[:keep], relevance, "group_lasso", "none", "train", support, {}, 0.0, False)


def moments(store: Any, seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    low = np.zeros(P, np.float32)
    return Moments(50, rng.normal(size=P), rng.gamma(2, 3, P), low, low + 1, rng.integers(0, 51, P))


def test_bars_are_the_kept_features_of_each_layer(store) -> None:
    chosen = selection(np.linspace(1, -1, P), 20, 5)
    axes = plot_kept_by_depth(store, chosen)
    assert [bar.get_height() for bar in axes.patches] == [7, 13, 0, 0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(LAYERS)
    assert axes.get_ylabel() == "kept features"
    assert "20 of 127" in axes.get_title()
    assert texts_overlap(axes) == []


def test_relevance_marks_what_is_kept_and_the_support() -> None:
    axes = plot_relevance(selection(np.linspace(4, -1, 500), 450, 400))
    curve = axes.lines[1]
    np.testing.assert_allclose([max(curve.get_ydata()), min(curve.get_ydata())], [1, -1])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["kept (450)", "support (400)"]
    assert texts_overlap(axes) == []
    other = plot_relevance(selection(np.linspace(9, 3, 50), 5, None))
    assert other.get_ylabel() == "relevance / largest"


@pytest.mark.slow
def test_the_path_adds_up_to_the_support_at_every_penalty(store) -> None:
    ratios = [0.2, 0.6, 0.4]
    result = group_lasso(store, normalization="standardize", penalty_ratio=ratios)
    axes = plot_path(result, store)
    sizes = {ratio: len(each.support) for ratio, each in zip(ratios, result.path, strict=True)}
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(x, sorted(ratios, reverse=True))
    np.testing.assert_array_equal(y, [sizes[ratio] for ratio in sorted(ratios, reverse=True)])
    assert len(axes.collections) == len(LAYERS)
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]
    assert tops[-1] == sizes[0.2]
    stem = sum(feature < LAYERS["stem"] for feature in result.path[0].support)
    assert tops[0] == max(stem, 0)
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == list(LAYERS)[::-1]
    assert texts_overlap(axes) == []
    assert not plot_path(result).collections
    with pytest.raises(InvalidInputError, match="several penalties"):
        plot_path(result.path[0])
    with pytest.raises(InvalidInputError, match=r"127 features, but store .* has 3"):
        plot_path(result, SimpleNamespace(n_features=3, uri="u", layers={}))  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", ["std", "mean", "zero_share"])
def test_statistics_have_the_median_of_each_layer(store, measure) -> None:
    found = moments(store)
    axes = plot_layer_statistics(store, found, measure)
    values = {"std": found.std, "mean": found.mean, "zero_share": 100 * found.zero_share}[measure]
    drawn = [line.get_ydata()[0] for line in axes.lines]
    np.testing.assert_allclose(drawn, [np.median(values[store.layer_indices(name)]) for name in LAYERS])
    assert {"std": "σ", "mean": "mean", "zero_share": "%"}[measure] in axes.get_ylabel()
    assert texts_overlap(axes) == []


def test_constant_features_are_counted_and_have_no_deviation_to_show(store) -> None:
    found = moments(store)
    found.maximum[:9] = 0  # the whole first layer, and two features of the second
    found.m2[:9] = 0
    axes = plot_layer_statistics(store, found)
    assert len(axes.lines) == len(LAYERS) - 1
    assert "9 constant features left out" in axes.get_title()
    with pytest.raises(InvalidInputError, match=r"measure='stf' is unknown; did you mean 'std'"):
        plot_layer_statistics(store, found, "stf")  # type: ignore[arg-type]
    few = Moments(*(getattr(found, n) if n == "count" else getattr(found, n)[:3] for n in Moments.__annotations__))
    with pytest.raises(InvalidInputError, match="of 3 features"):
        plot_layer_statistics(store, few)


@pytest.mark.slow
def test_pictures_of_a_real_selection_can_be_read(store) -> None:
    chosen = select_features(store)
    for axes in (
        plot_kept_by_depth(store, chosen),
        plot_relevance(chosen),
        plot_layer_statistics(store, compute_statistics(store)),
    ):
        assert texts_overlap(axes) == []


def evaluation(points: list[tuple[float | None, float]]) -> Evaluation:
    rows = [{"settings": {"fraction": f} if f else {"layer": "x"}, "accuracy": a} for f, a in points]
    return Evaluation("m", "", {}, 0.875, 0.5, np.zeros(1, bool), rows, {}, {}, False)


def test_fractions_are_drawn_in_percent_and_an_evaluation_by_its_best_setting() -> None:
    accuracies = {
        "folds": evaluation([(0.1, 0.5), (0.1, 0.75), (0.01, 0.25)]),
        "heads": {0.1: 0.5, 0.05: 0.375},
        "Linear": 0.625,
        "Oracle": evaluation([(None, 0.5)]),
    }
    axes = plot_fractions(accuracies)
    lines = {line.get_label(): np.array(line.get_data(), float) for line in axes.lines}
    np.testing.assert_allclose(lines["folds"], [[0.01, 0.1], [25, 75]])
    np.testing.assert_allclose(lines["heads"], [[0.05, 0.1], [37.5, 50]])
    assert set(lines["Linear"][1]) == {62.5}
    assert set(lines["Oracle"][1]) == {87.5}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("fraction F of all features kept", "accuracy, %")
    assert plot_fractions({"m": accuracies["folds"]}).get_ylabel() == "accuracy on held-out folds, %"
    with pytest.raises(InvalidInputError, match="no accuracy of any fraction"):
        plot_fractions({"Linear": 0.5})


@pytest.mark.slow
def test_many_lines_and_near_fractions_can_be_told_apart() -> None:
    fractions = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.011, 0.012, 0.05, 0.1, 0.11]
    axes = plot_fractions({f"task {n}": {f: (n + f) / 30 for f in fractions} for n in range(12)})
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 12
    assert {marker for _, marker in looks} == set(MARKERS)
    assert texts_overlap(axes) == []


@pytest.mark.slow
def test_names_of_tasks_do_not_cover_each_other() -> None:
    """Figure 1 of the paper, digitised: 19 tasks, some of them close."""
    affinity = [40.9, 50.4, 43.7, 42.7, 74.4, -8.8, 32.5, 7.6, 7.0, 31.6, 2.2, 2.2, -16.6, 1.0, 30.8, -45.2, -0.6]
    gain = [-4.5, 0.7, 0.7, 3.4, -0.7, 34.1, -4.3, 1.3, 2.9, 3.4, 9.4, 11.3, 19.4, 7.1, 9.0, 23.7, 8.6]
    names = [f"a longer task {i}" for i in range(17)]
    groups = ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 6
    tasks = [TaskAffinity(*task) for task in zip(names, groups, affinity, gain, strict=True)]
    assert texts_overlap(plot_affinity(tasks)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("n", "width"), [(12, 6.0), (150, 9.0), (300, 4.0)])
def test_as_many_layers_are_named_as_there_is_room_for(n: int, width: float) -> None:
    axes = new_axes(width)
    name_layers(axes, [f"stages.{i}.blocks.{i}.attention.projection" for i in range(n)])
    named = [label.get_text() for label in axes.get_xticklabels()]
    assert named[0].startswith("stages.0.")
    assert len(named) >= min(n, 20)
    assert texts_overlap(axes) == []


def test_short_names_keep_both_ends() -> None:
    assert short_name("layer1.0.act1") == "layer1.0.act1"
    assert short_name("stages.2.blocks.11.attention.projection") == "stages.2.bloc…on.projection"


@pytest.mark.slow
def test_pictures_do_not_load_backbones() -> None:
    command = (
        "import sys, pipeline.plots; print(sorted({'timm', 'torchvision', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_pictures_are_drawn_on_the_axes_given(store) -> None:
    chosen = selection(np.linspace(1, -1, P), 20, 5)
    one, two, three, four, five = Figure().subplots(1, 5)
    assert plot_kept_by_depth(store, chosen, one) is one
    assert plot_relevance(chosen, two) is two
    assert plot_layer_statistics(store, moments(store), axes=three) is three
    assert plot_fractions({"a": {0.1: 0.5}}, four) is four
    assert plot_affinity([TaskAffinity("t", "", 1.0, 2.0)], five) is five
