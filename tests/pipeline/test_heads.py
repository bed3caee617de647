"""A head is at the optimum where there is one, stops by held-out samples where there is none, and refuses nonsense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from pipeline.heads import RefitParameters, fit_head, fit_heads, lbfgs, predict_labels
from pipeline.heads.lbfgs import fit_lbfgs, hold_out
from pipeline.scorers.adam import fit_adam
from store.errors import InvalidInputError

TO_THE_END = RefitParameters(validation_fraction=0, max_iterations=1000)


def overlapping(n: int = 400, m: int = 6, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return a problem whose classes no head tells apart, with columns of very different scales."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, m))
    logits = x @ rng.standard_normal((m, n_classes))
    y = (logits + 2 * rng.gumbel(size=logits.shape)).argmax(axis=1)
    return (x * np.geomspace(0.01, 10, m) + 3).astype(np.float32), y


def cross_entropy(x: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> float:
    """Return the loss in double precision, from its definition."""
    logits = x.astype(np.float64) @ coef + intercept
    logits -= logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize(("m", "n_classes"), [(6, 3), (40, 2), (12, 7)])
def test_the_optimum_is_that_of_scikit_learn_on_a_problem_that_is_not_separable(m, n_classes) -> None:
    x, y = overlapping(m=m, n_classes=n_classes)
    head = fit_head(x, y, n_classes, TO_THE_END)
    wide = x.astype(np.float64)
    wide = (wide - wide.mean(0)) / wide.std(0)  # where the oracle converges
    oracle = LogisticRegression(C=np.inf, tol=1e-9, max_iter=5000).fit(wide, y)
    rows = np.vstack([-oracle.coef_ / 2, oracle.coef_ / 2]) if n_classes == 2 else oracle.coef_
    shift = np.array([-0.5, 0.5]) * oracle.intercept_ if n_classes == 2 else oracle.intercept_
    theirs = cross_entropy(wide, y, rows.T, shift)
    assert head.facts["loss"] == pytest.approx(theirs, abs=1e-6)
    assert cross_entropy(x, y, head.coef, head.intercept) == pytest.approx(theirs, abs=1e-6)
    assert theirs > 0.1


def test_in_the_span_of_the_samples_the_iterates_are_the_same(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 300)).astype(np.float32), np.arange(50) % 4
    calls = []
    span = lbfgs._span
    monkeypatch.setattr(lbfgs, "_span", lambda values: calls.append(1) or span(values))
    options = {"max_iterations": 9, "validation_fraction": 0.2, "patience": 30, "seed": 0}
    inside, inside_b, facts = fit_lbfgs(x, y, 4, **options)
    assert calls
    monkeypatch.setattr(lbfgs, "EVALUATIONS", 0)
    outside, outside_b, other = fit_lbfgs(x, y, 4, **options)
    assert len(calls) == 1
    np.testing.assert_allclose(inside, outside, atol=1e-4 * np.abs(outside).max())
    np.testing.assert_allclose(inside_b, outside_b, atol=1e-4)
    assert facts["iterations"] == other["iterations"]
    assert facts["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)


def test_a_head_is_no_surer_than_held_out_samples_allow() -> None:
    """Pure noise is answered best by no answer: the head stays near chance where the bound alone would not."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 200)).astype(np.float32), rng.integers(0, 2, 60)
    facts = fit_head(x, y, 2, RefitParameters(max_iterations=200)).facts
    assert facts["loss"] > 0.5
    assert fit_head(x, y, 2, TO_THE_END).facts["loss"] < 1e-3


def test_a_stopped_head_is_that_of_its_iterations_divided_by_the_temperature() -> None:
    x, y = overlapping(n=80, m=300, n_classes=4)
    head = fit_head(x, y, 4)
    there = RefitParameters(max_iterations=head.facts["iterations"], validation_fraction=0)
    sure = fit_head(x, y, 4, there)
    temperature = head.facts["temperature"]
    assert temperature > 1
    np.testing.assert_allclose(head.coef * temperature, sure.coef, rtol=1e-9, atol=1e-12)
    assert head.facts["loss"] == pytest.approx(cross_entropy(x, y, head.coef, head.intercept), rel=1e-4)


def test_logits_are_softened_as_suits_the_samples_best_and_never_made_harder() -> None:
    x, y = overlapping()
    problem = lbfgs.Problem(torch.from_numpy(x), torch.from_numpy(y), 3)
    sure = 40 * problem.minimize(30).x
    loss, factor = problem.soften(sure)
    factors = np.geomspace(1e-3, 1, 400)
    losses = [problem.loss(each * sure) for each in factors]
    assert loss <= min(losses) + 1e-9
    assert factor == pytest.approx(factors[np.argmin(losses)], rel=0.02)
    shy = factor * sure / 2
    assert problem.soften(shy) == (problem.loss(shy), 1.0)


def test_held_out_samples_are_their_share_of_all_and_no_class_is_held_out_whole() -> None:
    y = np.concatenate([np.arange(300), np.arange(300), np.arange(200), [300]])
    held = hold_out(y, 0.2, seed=0)
    assert held.sum() == pytest.approx(0.2 * len(y), rel=0.15)
    assert set(y[~held]) == set(range(301))
    exact = hold_out(np.arange(100) % 5, 0.2, seed=1)
    np.testing.assert_array_equal(np.bincount(np.arange(100)[exact] % 5), 4)


def test_one_sample_per_class_cannot_validate_and_says_so() -> None:
    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    facts = fit_head(x, y, 3, RefitParameters(max_iterations=5)).facts
    assert facts["validation_loss"] is None
    assert facts["iterations"] <= 5


@pytest.mark.parametrize("parameters", [RefitParameters(), RefitParameters(optimizer="adam", steps=300)])
def test_a_class_without_training_samples_is_never_predicted(parameters) -> None:
    x, y = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32), np.arange(40) % 2
    head = fit_head(x, y, 3, parameters)
    assert head.coef.shape == (4, 3)
    assert 2 not in predict_labels(head, x)


def test_a_column_that_differs_by_rounding_alone_gets_no_weight() -> None:
    x, y = overlapping()
    last = np.nextafter(np.ones((len(x), 1), np.float32), (y[:, None] == 0).astype(np.float32) * 2)
    head = fit_head(np.hstack([x, last]), y, 3)
    alone = fit_head(x, y, 3)
    assert not head.coef[-1].any()
    np.testing.assert_allclose(head.coef[:-1], alone.coef, rtol=1e-6)


def test_adam_is_the_recipe_of_the_selection_without_its_penalty() -> None:
    x, y = overlapping()
    head = fit_head(x, y, 3, RefitParameters(optimizer="adam", learning_rate=0.1, steps=40, seed=3))
    same = fit_adam(x, y, penalty=0.0, learning_rate=0.1, steps=40, seed=3)
    np.testing.assert_array_equal(head.coef, same.coef)
    assert head.facts == {"steps": 40, "loss": same.loss}
    assert same.loss == same.objective
    assert (fit_head(x, y, 3, RefitParameters(optimizer="adam", steps=40, seed=4)).coef != head.coef).any()


def test_adam_comes_near_the_optimum_with_time_and_never_below() -> None:
    x, y = overlapping()
    x = (x - x.mean(0)) / x.std(0)
    best = fit_head(x, y, 3, TO_THE_END).facts["loss"]
    few, many = (fit_head(x, y, 3, RefitParameters(optimizer="adam", steps=s)).facts["loss"] for s in (20, 1000))
    assert few > many > best - 1e-6
    assert many == pytest.approx(best, abs=1e-2)


def test_what_no_head_can_be_fitted_to_is_refused() -> None:
    x, y = np.ones((4, 2), np.float32), np.array([0, 0, 1, 1])
    with pytest.raises(InvalidInputError, match="no columns are selected; a head needs at least one"):
        fit_head(x[:, :0], y, 2)
    with pytest.raises(InvalidInputError, match="all 4 training samples are of one class, number 1"):
        fit_head(x, np.ones(4, np.int64), 2)
    x[2, 1] = np.inf
    with pytest.raises(
        InvalidInputError, match="1 of 2 columns have values that are not finite, the first of them col"
    ):
        fit_head(x, y, 2)


def test_parameters_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="optimizer 'adm' is unknown; did you mean 'adam'"):
        RefitParameters(optimizer="adm")
    with pytest.raises(InvalidInputError, match="steps does not apply to optimizer lbfgs, only to adam; leave it out"):
        RefitParameters(steps=5)
    with pytest.raises(InvalidInputError, match="patience does not apply to optimizer adam, only to lbfgs"):
        RefitParameters(optimizer="adam", patience=5)
    with pytest.raises(ValidationError):
        RefitParameters(optimizer="adam", learning_rate=-1)


def test_heads_that_share_a_descent_are_those_of_their_own() -> None:
    x, y = overlapping(n=80, m=300, n_classes=4)
    several = [RefitParameters(max_iterations=stop, validation_fraction=0) for stop in (7, 1, 25)]
    several += [RefitParameters(max_iterations=9), RefitParameters(optimizer="adam", steps=5)]
    for shared, parameters in zip(fit_heads(x, y, 4, several), several, strict=True):
        options = parameters.chosen()
        if options.pop("optimizer") == "lbfgs":
            coef, intercept, facts = fit_lbfgs(x, y, 4, **options)
            np.testing.assert_array_equal(shared.coef, coef)
            np.testing.assert_array_equal(shared.intercept, intercept)
            assert shared.facts == facts
        else:
            assert shared.facts["steps"] == 5


def test_a_descent_that_ends_early_is_all_that_longer_ones_are() -> None:
    x, y = overlapping(n=300, m=2, n_classes=2)
    few, many = fit_heads(x, y, 2, [RefitParameters(max_iterations=m, validation_fraction=0) for m in (200, 400)])
    assert few.facts == many.facts
    assert few.facts["iterations"] < 200
