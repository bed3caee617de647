"""The leap between sweeps: a step to the minimum among the rows that are not zero, told by the value of the model."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.group_lasso import ArraySource
from pipeline.group_lasso.budget import plan_memory
from pipeline.group_lasso.leap import Iterate, Model, leap
from pipeline.group_lasso.screening import ColumnCache

N, P, PENALTY = 60, 12, 0.02


class Problem:
    """A cache of all columns, a model at zero, and where some rows have moved to."""

    def __init__(self, softmax: bool, n_outputs: int, rows: list[int]) -> None:
        rng = np.random.default_rng(n_outputs)
        x = rng.normal(size=(N, P)).astype(np.float32)
        source = ArraySource(x, "standardize")
        norms = source.first_pass(np.zeros((N, n_outputs))).column_norms
        self.cache = ColumnCache(source, np.ones(N), norms, plan_memory(source, n_outputs, 1, P, 2**30))
        self.cache.require(np.arange(P))
        self.x: NDArray[np.float32] = self.cache.columns[:P]
        padded = n_outputs + n_outputs % 2, 64
        predictions, weights = np.zeros(padded, np.float32), np.zeros(64, np.float32)
        predictions[:n_outputs, :N] = rng.dirichlet(np.ones(n_outputs), N).T
        weights[:N] = 1 / N
        targets = np.eye(n_outputs)[rng.integers(0, n_outputs, N)] if softmax else rng.normal(size=(N, n_outputs))
        rest = targets - (predictions[:n_outputs, :N].T if softmax else targets.mean(axis=0))
        gradient = self.x @ (rest - rest.mean(axis=0)) / N
        self.model = Model(predictions, weights, softmax, np.zeros((P, n_outputs)), gradient, PENALTY)
        coef = np.zeros((P, n_outputs))
        coef[rows] = gradient[rows]
        self.now = self.at(coef, np.zeros(n_outputs))
        self.curvature = np.full(P, 1.0)

    def at(self, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> Iterate:
        """The iterate with these coefficients."""
        residual = np.zeros_like(self.model.predictions)
        logits = (coef.T @ self.x + intercept[:, None]).astype(np.float32)
        residual[: coef.shape[1], :N] = -self.model.curved(logits)
        return Iterate(coef, intercept, residual)

    def leap(self) -> Iterate:
        return leap(self.cache, np.arange(P), self.model, self.now, self.curvature, 1.0)


CASES = pytest.mark.parametrize(("softmax", "n_outputs"), [(True, 2), (True, 5), (False, 1), (False, 4)])


@CASES
def test_a_leap_lowers_the_model_and_keeps_its_gradient_in_step(softmax: bool, n_outputs: int) -> None:
    problem = Problem(softmax, n_outputs, [0, 3, 7, 8])
    further = problem.leap()
    assert problem.model.value(further) < problem.model.value(problem.now)
    exact = problem.at(further.coef, further.intercept)
    np.testing.assert_allclose(further.residual, exact.residual, atol=1e-6)
    assert not further.residual[n_outputs:].any()
    assert not further.residual[:, N:].any()
    # Rows that were zero are not its business.
    assert not further.coef[[1, 2, 4, 5, 6, 9, 10, 11]].any()


@CASES
def test_leaps_end_at_the_minimum_among_the_rows(softmax: bool, n_outputs: int) -> None:
    problem = Problem(softmax, n_outputs, [0, 3, 7, 8])
    for _ in range(30):
        problem.now = problem.leap()
    rows = np.flatnonzero(problem.now.coef.any(axis=1))
    assert len(rows)
    gradient = problem.model.gradient[rows] + problem.x[rows] @ problem.now.residual[:n_outputs, :N].T
    coef = problem.now.coef[rows]
    along = PENALTY * coef / np.linalg.norm(coef, axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, along, atol=1e-4 * PENALTY)
    np.testing.assert_allclose(problem.now.residual.sum(axis=1), 0, atol=1e-6)


def test_a_row_that_would_be_turned_round_becomes_zero() -> None:
    problem = Problem(True, 3, [0, 3])
    coef = problem.now.coef.copy()
    coef[0] *= -0.1
    problem.now = problem.at(coef, problem.now.intercept)
    further = problem.leap()
    assert not further.coef[0].any()
    np.testing.assert_allclose(further.residual, problem.at(further.coef, further.intercept).residual, atol=1e-6)


def test_columns_too_many_to_be_copied_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(True, 5, [0, 3, 7, 8])
    copied = problem.leap()
    monkeypatch.setattr("pipeline.group_lasso.leap.HELD_ELEMENTS", 0)
    for one, other in zip(copied, problem.leap(), strict=True):
        np.testing.assert_array_equal(one, other)
