"""The refit reads the selected columns only, and trains the head it says it trains."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.normalization import renormalize
from pipeline.refit import RefitParameters, _minimize, _Problem, fit_head, refit
from pipeline.selection import SelectionParameters, select_features


@pytest.mark.parametrize("normalization", ["unit_norm", "standardize", "none"])
def test_refit_reads_only_the_selected_columns(store, normalization) -> None:
    selection = select_features(store, SelectionParameters(normalization=normalization, keep=10))
    store.reads.reset()
    head = refit(store, selection.indices, features={"selection": selection.digest}, normalization=normalization)
    assert head.facts["bytes_read"] <= 10 * 2 * (90 + 2 * 37) + 127 * 6 * 8  # columns; statistics are results
    assert head.accuracy["test"] > 0.7
    assert head.coef.shape == (10, 3)


def test_a_stored_head_is_found(store) -> None:
    first = refit(store, np.arange(7), features={"layer": "stem"}, normalization="none")
    again = refit(store, np.arange(7), features={"layer": "stem"}, normalization="none")
    assert again.reused
    np.testing.assert_array_equal(first.coef, again.coef)


def test_unit_norm_is_taken_again_after_gathering_and_per_layer(store, values) -> None:
    indices = np.array([0, 3, 50, 60, 120])
    x = store.columns("train", indices)
    renormalize(store, indices, x)
    for part in ([0, 1], [2, 3], [4]):
        np.testing.assert_allclose(np.linalg.norm(x[:, part], axis=1), 1, rtol=1e-5)
    raw = values["train"][:, indices].astype(np.float64)
    np.testing.assert_allclose(x[:, :2], raw[:, :2] / np.linalg.norm(raw[:, :2], axis=1, keepdims=True), rtol=1e-5)


def test_zero_vectors_stay_zero(store) -> None:
    x = np.zeros((2, 3), np.float32)
    renormalize(store, np.array([0, 1, 2]), x)
    np.testing.assert_array_equal(x, 0)


def test_the_optimum_is_that_of_scikit_learn_on_a_problem_that_is_not_separable() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype(np.float32)
    y = (x[:, 0] + 1.5 * rng.standard_normal(400) > 0).astype(int) + (rng.random(400) < 0.3)
    problem = _Problem(x, y, 3)
    ours = float(_minimize(problem, 500).fun)
    oracle = LogisticRegression(C=np.inf, tol=1e-8, max_iter=2000).fit(x.astype(np.float64), y)
    flat = np.concatenate([oracle.coef_.T, oracle.intercept_[None]]).ravel()
    assert ours == pytest.approx(problem.loss(flat), abs=1e-6)


def test_the_number_of_iterations_is_chosen_by_held_out_loss() -> None:
    """Pure noise is fitted best by not fitting: the choice stops almost at once where the bound would not."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 200)).astype(np.float32), rng.integers(0, 2, 60)
    _, _, facts = fit_head(x, y, 2, RefitParameters(max_iterations=200))
    assert facts["iterations"] < 5
    assert facts["loss"] > 0.05


def test_one_sample_per_class_cannot_validate_and_says_so() -> None:
    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    _, _, facts = fit_head(x, y, 3, RefitParameters(max_iterations=5))
    assert facts["validation_loss"] is None
    assert facts["iterations"] == 5


def test_a_class_without_training_samples_is_never_predicted(store) -> None:
    x, y = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32), np.arange(40) % 2
    coef, intercept, _ = fit_head(x, y, 3, RefitParameters())
    assert 2 not in (x @ coef + intercept).argmax(1)
