"""The order of features is total, and bends as the reference bends it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ranking import order_features
from store.layout import Layer

LAYERS = (Layer("a", 3, 0, 3), Layer("b", 1, 3, 1), Layer("c", 4, 4, 4))
RELEVANCE = np.array([0.5, -0.2, -0.1, 0.4, 0.0, 0.6, -0.1, -0.3])


@given(st.lists(st.sampled_from([0.5, 0.1, 0.0, -0.25, -1.0]), min_size=8, max_size=8))
def test_the_order_is_by_relevance_and_ties_go_by_index(relevance) -> None:
    order = order_features(np.array(relevance), LAYERS)
    assert list(order) == sorted(range(8), key=lambda j: (-relevance[j], j))


def test_scores_move_towards_the_mean_of_their_layer_as_in_the_reference() -> None:
    scores = np.maximum(RELEVANCE, 0)
    means = np.array([0.5 / 3] * 3 + [0.4] + [0.15] * 4)
    for coefficient in (0.3, 0.8):
        mixed = (1 - coefficient) * scores + coefficient * means
        expected = sorted(range(8), key=lambda j: (-mixed[j], -RELEVANCE[j], j))
        assert list(order_features(RELEVANCE, LAYERS, layer_mean=coefficient)) == expected


def test_row_norms_are_squared_before_they_are_mixed() -> None:
    squares = np.maximum(RELEVANCE, 0) ** 2
    means = np.array([0.25 / 3] * 3 + [0.16] + [0.09] * 4)
    mixed = 0.5 * squares + 0.5 * means
    expected = sorted(range(8), key=lambda j: (-mixed[j], -RELEVANCE[j], j))
    assert list(order_features(RELEVANCE, LAYERS, row_norms=True, layer_mean=0.5)) == expected


def test_whole_layers_follow_each_other_by_their_mean_and_inside_by_relevance() -> None:
    assert list(order_features(RELEVANCE, LAYERS, whole_layers=True)) == [3, 0, 2, 1, 5, 4, 6, 7]


def test_layers_of_the_same_mean_stay_apart_in_order_of_depth() -> None:
    assert list(order_features(np.array([-1, -2, -3, -1, -2, -1, -3, -1.0]), LAYERS, whole_layers=True)) == [
        *(0, 1, 2, 3),
        *(5, 7, 4, 6),
    ]
