"""Every scorer over a store equals the library's function, or the definition, on the same values in memory."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_selection import VarianceThreshold, chi2, f_classif, mutual_info_classif
from sklearn.linear_model import LogisticRegression

from pipeline.group_lasso import ArraySource
from pipeline.scorers import SCORERS, TREES, Task, adam, columns, linear
from pipeline.scorers.adam import adam_step, fit_adam
from pipeline.scorers.columns import hold_rows
from store.errors import InvalidInputError


def problem(seed: int = 0, n: int = 80, p: int = 60, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return raw values, two of them constant and the last never negative, and labels that some know."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    x = rng.standard_normal((n, p)) + 2
    x[:, : k + 2] += 1.5 * rng.standard_normal((k, k + 2))[y]
    x[:, [7, 11]] = (0.0, -3.0)
    x[:, 12:] = np.maximum(x[:, 12:], 0)
    return x.astype(np.float32), y


def score(name: str, x: np.ndarray, y: np.ndarray, memory: int = 2**30, **options: Any) -> tuple[np.ndarray, dict]:
    """Return what a scorer makes of an array, standardised if it sees a normalization."""
    scorer = SCORERS[name]
    source = ArraySource(x, "standardize" if scorer.normalized else "none")
    return scorer.score(Task(source, y, {**scorer.options, **options}, memory, None))


def standardized(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    spread = wide.std(axis=0)
    return (wide - wide.mean(axis=0)) / np.where(spread > 0, spread, np.inf)


# ---------------------------------------------------------------- one feature at a time


@pytest.fixture(params=[1, 2**23], ids=["one column a task", "all columns in a task"])
def ranges(request, monkeypatch) -> None:
    monkeypatch.setattr(columns, "RANGE_BYTES", request.param)


@pytest.mark.usefixtures("ranges")
def test_variance_is_that_of_scikit_learn() -> None:
    x, y = problem()
    wide = x.astype(np.float64)
    np.testing.assert_allclose(score("variance", x, y)[0], VarianceThreshold(1e-30).fit(wide).variances_, rtol=1e-12)


@pytest.mark.usefixtures("ranges")
def test_anova_is_that_of_scikit_learn_and_constant_features_come_last() -> None:
    x, y = problem()
    varying = x.std(axis=0) > 0
    ours = score("f_classif", x, y)[0]
    np.testing.assert_allclose(ours[varying], f_classif(x[:, varying].astype(np.float64), y)[0], rtol=1e-12)
    assert (ours[~varying] == 0).all()


def test_a_feature_that_separates_the_classes_perfectly_is_first_and_finite() -> None:
    x, y = problem()
    x[:, 30] = y
    ours = score("f_classif", x, y)[0]
    assert ours.argmax() == 30
    assert np.isfinite(ours).all()


@pytest.mark.usefixtures("ranges")
def test_chi2_is_that_of_scikit_learn_where_no_value_is_negative_and_of_shifted_values_elsewhere() -> None:
    x, y = problem()
    ours, facts = score("chi2", x, y)
    varying = np.flatnonzero(x.std(axis=0) > 0)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(ours[12:], chi2(wide[:, 12:], y)[0], rtol=1e-12)
    shifted = wide - np.minimum(wide.min(axis=0), 0)
    np.testing.assert_allclose(ours[varying], chi2(shifted[:, varying], y)[0], rtol=1e-12)
    assert facts == {"shifted_features": int((x.min(axis=0) < 0).sum())}


def test_mutual_information_is_that_of_scikit_learn_whichever_features_are_read_together(monkeypatch) -> None:
    x, y = problem(p=14)
    ours = score("mutual_info", x, y)[0]
    varying = x.std(axis=0) > 0
    # The noise that breaks ties is 1e-10 of the values: it moves no neighbour here.
    theirs = mutual_info_classif(x[:, varying], y, discrete_features=False, random_state=1)
    np.testing.assert_allclose(ours[varying], theirs, rtol=1e-6, atol=1e-9)
    assert (ours[~varying] == 0).all()
    monkeypatch.setattr(columns, "RANGE_BYTES", 1)
    np.testing.assert_array_equal(score("mutual_info", x, y)[0], ours)


def test_random_scores_depend_on_the_seed_alone_and_never_choose_a_constant_feature() -> None:
    x, y = problem()
    first = score("random", x, y, seed=1)[0]
    np.testing.assert_array_equal(first, score("random", x + 1, y, seed=1)[0])
    assert not np.array_equal(first, score("random", x, y, seed=2)[0])
    assert (np.flatnonzero(first == 0) == [7, 11]).all()


def test_extra_trees_are_those_of_scikit_learn_and_averaged_over_seeds() -> None:
    x, y = problem()
    forests = [ExtraTreesClassifier(TREES, random_state=seed).fit(x, y).feature_importances_ for seed in (3, 4)]
    ours = score("extra_trees", x, y, seed=3, average_over=2)[0]
    np.testing.assert_allclose(ours, np.mean(forests, axis=0), rtol=1e-12)


def test_features_that_must_be_held_but_do_not_fit_are_refused_with_the_least_memory() -> None:
    x, y = problem()
    with pytest.raises(InvalidInputError, match=r"80 samples of 60 features take 18\.75 KiB in float32, more than"):
        score("extra_trees", x, y, memory=4 * x.size - 1)
    score("extra_trees", x, y, memory=4 * x.size)
    with pytest.raises(InvalidInputError, match="needs the inner products of all 80 samples"):
        score("l2", x, y, memory=1000)
    with pytest.raises(InvalidInputError, match="needs 60 columns of 80 samples in memory"):
        score("l1", x, y, memory=1000)


def test_few_samples_are_scored_or_refused() -> None:
    x = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
    for name in SCORERS:
        if name in {"f_classif", "mutual_info"}:
            with pytest.raises(InvalidInputError, match=f"{name} needs a class with at least 2 training samples; all"):
                score(name, x, np.arange(4))
        assert np.isfinite(score(name, x, np.array([0, 0, 1, 2]), **({"steps": 3} if name == "adam" else {}))[0]).all()


# ---------------------------------------------------------------- l1 and l2


def objective(x: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean cross-entropy of a head, shape (p, K), and its residual."""
    logits = x @ coef + intercept
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return -float(log_p[np.arange(len(y)), y].mean()), np.eye(coef.shape[1])[y] - np.exp(log_p)


@pytest.mark.parametrize(("n", "p", "k"), [(80, 60, 3), (40, 90, 2), (90, 12, 4)])
def test_l2_reaches_the_optimum_of_scikit_learn(n, p, k) -> None:
    x, y = problem(n=n, p=p, k=k)
    wide, penalty = standardized(x), 0.03
    ours, facts = score("l2", x, y, penalty=penalty)
    oracle = LogisticRegression(C=(2 if k == 2 else 1) / (n * penalty), tol=1e-10, max_iter=10_000).fit(wide, y)
    # Two classes: the library's one row is the difference of the two rows of the symmetric solution.
    coef = np.stack([-oracle.coef_[0] / 2, oracle.coef_[0] / 2], axis=1) if k == 2 else oracle.coef_.T
    intercept = np.array([-0.5, 0.5]) * oracle.intercept_ if k == 2 else oracle.intercept_
    loss, residual = objective(wide, y, coef, intercept)
    np.testing.assert_allclose(wide.T @ residual / n, penalty * coef, atol=1e-6)  # the oracle is at the optimum
    np.testing.assert_allclose(ours, np.linalg.norm(coef, axis=1), rtol=1e-4, atol=1e-6)
    assert facts["objective"] == pytest.approx(loss + penalty / 2 * (coef**2).sum(), rel=1e-6)


@pytest.mark.parametrize(("n", "p", "k"), [(80, 60, 3), (40, 90, 2)])
def test_l1_reaches_the_optimum_of_scikit_learn(n, p, k, monkeypatch) -> None:
    monkeypatch.setattr(linear, "LEAST_COLUMNS", 8)  # the set of held columns has to grow
    x, y = problem(n=n, p=p, k=k)
    wide = standardized(x)
    ours, facts = score("l1", x, y, tolerance=1e-4)
    null = np.eye(k)[y] - np.bincount(y) / n
    penalty = facts["penalty"]
    assert penalty == pytest.approx(0.1 * np.abs(wide.T @ null).max() / n, rel=1e-5)
    if k > 2:
        oracle = LogisticRegression(solver="saga", C=1 / (n * penalty), l1_ratio=1.0, tol=1e-7, max_iter=50_000)
        oracle.fit(wide, y)
        coef, intercept = oracle.coef_.T, oracle.intercept_
        theirs = objective(wide, y, coef, intercept)[0] + penalty * np.abs(coef).sum()
        assert facts["objective"] == pytest.approx(theirs, rel=1e-5)
        strong = np.linalg.norm(coef, axis=1)
        np.testing.assert_allclose(ours[strong > 0.01], strong[strong > 0.01], rtol=0.02, atol=1e-3)
    assert facts["excess"] <= 1e-4
    assert 0 < (ours > 0).sum() < p
    assert (ours[~(ours > 0)] <= 0).all()
    assert ours[7] == ours[11] == -1  # constant: as far from entering as can be


def test_l1_at_a_penalty_that_keeps_nothing_orders_by_closeness() -> None:
    x, y = problem()
    ours, _ = score("l1", x, y, penalty=10.0, penalty_ratio=None)
    residual = np.eye(3)[y] - np.bincount(y) / len(y)
    closeness = np.abs(standardized(x).T @ residual).max(axis=1) / len(y)
    np.testing.assert_allclose(ours, closeness / 10 - 1, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- the reference recipe


@pytest.mark.slow  # PyTorch's optimisers take seconds to import
def test_the_update_is_the_librarys_with_the_references_epsilon() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = torch.zeros(5), torch.nn.Parameter(torch.zeros(5))
    moments = torch.zeros(5), torch.zeros(5)
    library = torch.optim.Adam([theirs])
    for step in range(1, 30):
        gradient = torch.tensor(1e-6 * rng.standard_normal(5), dtype=torch.float32)
        rate = 0.1 * (1 - step / 30)
        adam_step(ours, moments, gradient, step, rate)
        # ε added to the uncorrected root is ε / √(1 − β₂ᵗ) added to the corrected one.
        library.param_groups[0].update(lr=rate, eps=adam.EPSILON / math.sqrt(1 - adam.BETA2**step))
        theirs.grad = gradient
        library.step()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-5)


@pytest.mark.slow  # PyTorch's optimisers take seconds to import
def test_the_recipe_is_the_references(monkeypatch) -> None:
    """The same draws through automatic differentiation, on all features at once."""
    monkeypatch.setattr(adam, "SHARD", 16)
    x, y = problem(n=200)
    x = standardized(x).astype(np.float32)
    n, p, k, steps, penalty, rate = 200, 60, 3, 25, 0.01, 0.05
    fitted = fit_adam(x, y, penalty=penalty, learning_rate=rate, steps=steps, seed=5)

    rng = np.random.default_rng(5)
    limit = math.sqrt(6 / (p + k))
    w = torch.tensor(rng.uniform(-limit, limit, (p, k)), dtype=torch.float32, requires_grad=True)
    b = torch.zeros(k, requires_grad=True)
    optimizer = torch.optim.Adam([w, b], lr=rate, eps=1e-7)
    stream = np.concatenate([rng.permutation(n) for _ in range(steps * 128 // n)])
    for step in range(steps):
        rows = stream[128 * step : 128 * (step + 1)]
        logits = torch.from_numpy(x[rows]) @ w + b
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[rows])) + penalty * w.norm(dim=1).sum()
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(fitted.coef, w.detach().numpy(), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(fitted.intercept, b.detach().numpy(), rtol=1e-3, atol=2e-4)
    loss, _ = objective(x.astype(np.float64), y, fitted.coef.astype(np.float64), fitted.intercept)
    lengths = np.linalg.norm(fitted.coef.astype(np.float64), axis=1).sum()
    assert fitted.loss == pytest.approx(loss, rel=1e-5)
    assert fitted.objective == pytest.approx(loss + penalty * lengths, rel=1e-5)


def test_adam_never_beats_the_certified_optimum_and_comes_near_it_with_time() -> None:
    x, y = problem(n=120)
    best = score("group_lasso", x, y, penalty=0.02, penalty_ratio=None)[1]
    assert best["certified"]
    lower = best["objective"] - best["duality_gap"]
    few, many = (score("adam", x, y, penalty=0.02, steps=s, learning_rate=0.05)[1]["objective"] for s in (30, 600))
    assert lower <= many < few
    assert many == pytest.approx(best["objective"], rel=0.05)


def test_adam_averages_squared_norms_over_seeds_and_forgets_constant_features() -> None:
    x, y = problem()
    runs = [score("adam", x, y, steps=5, seed=seed)[0] for seed in (0, 1)]
    both, facts = score("adam", x, y, steps=5, average_over=2)
    np.testing.assert_allclose(both**2, np.mean(np.square(runs), axis=0))
    assert (both == 0).sum() == 2
    assert facts["penalty"] == 1e-4


def test_features_that_do_not_fit_into_memory_are_read_from_a_file_with_the_same_result(monkeypatch, tmp_path) -> None:
    x, y = problem()
    held = score("adam", x, y, steps=5)[0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert isinstance(hold_rows(ArraySource(x, "none"), 100, None), np.memmap)
    np.testing.assert_array_equal(score("adam", x, y, steps=5, memory=100)[0], held)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(columns.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(InvalidInputError, match="set TMPDIR to a folder with room"):
        score("adam", x, y, steps=5, memory=100)
