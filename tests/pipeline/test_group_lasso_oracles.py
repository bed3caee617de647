"""The group lasso against independent solvers and over arbitrary data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from celer.homotopy import mtl_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import MultiTaskLasso

from pipeline.group_lasso import ArraySource, group_lasso

Array = NDArray[np.float64]


def softmax_objective(X: Array, Y: Array, W: Array, b: Array, penalty: float) -> float:
    log_sum = np.logaddexp.reduce(X @ W + b, axis=1)
    lengths = np.sqrt((W**2).sum(axis=1))
    return float((log_sum - (Y * (X @ W + b)).sum(axis=1)).mean()) + penalty * float(lengths.sum())


def proximal_gradient(X: Array, Y: Array, penalty: float, steps: int) -> tuple[Array, Array]:
    """Accelerated proximal gradient with restarts on the softmax problem: slow, short, and sharing no code."""
    n = len(X)
    means = X.mean(axis=0)
    Xc = X - means
    step = n / (0.5 * max(float(np.linalg.norm(Xc, 2)) ** 2, n))
    W, b = np.zeros((X.shape[1], Y.shape[1])), np.zeros(Y.shape[1])
    V, a, momentum = W, b, 1.0
    for _ in range(steps):
        logits = Xc @ V + a
        P = np.exp(logits - logits.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        forward = V + step * Xc.T @ (Y - P) / n
        lengths = np.linalg.norm(forward, axis=1, keepdims=True)
        W_new = forward * np.maximum(1 - step * penalty / np.maximum(lengths, 1e-300), 0)
        b_new = a + step * (Y - P).mean(axis=0)
        if ((V - W_new) * (W_new - W)).sum() + ((a - b_new) * (b_new - b)).sum() > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        V = W_new + (momentum - 1) / following * (W_new - W)
        a = b_new + (momentum - 1) / following * (b_new - b)
        W, b, momentum = W_new, b_new, following
    return W, b - means @ W


@pytest.mark.parametrize("ratio", [0.7, 0.2, 0.05])
def test_softmax_equals_slow_proximal_gradient(ratio: float) -> None:
    rng = np.random.default_rng(0)
    X = np.maximum(rng.normal(size=(80, 5)) @ rng.normal(size=(5, 60)) + rng.normal(size=(80, 60)), 0)
    y = (X[:, :3] + rng.gumbel(size=(80, 3))).argmax(axis=1)
    result = group_lasso(X, y, penalty_ratio=ratio, tol=1e-7, kkt_tol=1e-6)
    W, b = proximal_gradient(X, np.eye(3)[y], result.certificate.penalty, 6000)
    expected = softmax_objective(X, np.eye(3)[y], W, b, result.certificate.penalty)
    found = softmax_objective(X, np.eye(3)[y], result.coef, result.intercept, result.certificate.penalty)
    assert result.certificate.certified
    assert found == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(result.coef, W, atol=2e-3 * np.abs(W).max())
    assert result.support.tolist() == np.flatnonzero(np.linalg.norm(W, axis=1) > 1e-4).tolist()


def scikit_learn(X: Array, Y: Array, penalty: float) -> Array:
    return MultiTaskLasso(alpha=penalty, tol=1e-10, max_iter=100_000, fit_intercept=False).fit(X, Y).coef_.T


def celer(X: Array, Y: Array, penalty: float) -> Array:
    # Its function, since its classes call what scikit-learn no longer has.
    return mtl_path(np.asfortranarray(X), np.asfortranarray(Y), alphas=[penalty], tol=1e-12)[1][:, :, 0].T


@pytest.mark.parametrize("oracle", [scikit_learn, celer])
@pytest.mark.parametrize("ratio", [0.8, 0.3, 0.05])
def test_squared_loss_equals_other_libraries(ratio: float, oracle: Callable[[Array, Array, float], Array]) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 200)) + 3
    Y = X[:, :4] @ rng.normal(size=(4, 3)) + 0.1 * rng.normal(size=(60, 3))
    result = group_lasso(X, Y, loss="squared", penalty_ratio=ratio, tol=1e-7, kkt_tol=1e-6)
    penalty = result.certificate.penalty
    theirs = oracle(X - X.mean(axis=0), Y - Y.mean(axis=0), penalty)

    def objective(W: Array, b: Array) -> float:
        return float(((Y - X @ W - b) ** 2).sum() / (2 * len(X)) + penalty * np.linalg.norm(W, axis=1).sum())

    expected = objective(theirs, (Y - X @ theirs).mean(axis=0))
    assert objective(result.coef, result.intercept) == pytest.approx(expected, rel=1e-6)
    assert result.certificate.objective == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(result.coef, theirs, atol=1e-4)
    assert result.classes is None


def test_squared_loss_codes_labels_and_takes_one_real_target() -> None:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(60, 40))
    labels = np.array(["cat", "dog", "emu"])[X[:, :3].argmax(axis=1)]
    coded = group_lasso(X, labels, loss="squared", penalty_ratio=0.2)
    one_hot = (labels[:, None] == ["cat", "dog", "emu"]).astype(float)
    real = group_lasso(X, one_hot, loss="squared", penalty_ratio=0.2)
    np.testing.assert_array_equal(coded.coef, real.coef)
    assert coded.classes is not None
    assert coded.classes.tolist() == ["cat", "dog", "emu"]
    single = group_lasso(X, X[:, 5] + 1e-3 * X[:, 6], loss="squared", penalty_ratio=0.1)
    assert single.support.tolist() == [5]
    assert single.intercept.shape == (1,)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(8, 60),
    p=st.integers(1, 80),
    n_classes=st.integers(2, 6),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    spread=st.sampled_from([0.0, 2.0]),
    offset=st.sampled_from([0.0, 10.0]),
    duplicated=st.integers(0, 10),
    combined=st.integers(0, 10),
    low_rank=st.booleans(),
    weighted=st.booleans(),
    squared=st.booleans(),
    ratio=st.sampled_from([0.9, 0.3, 0.05, 0.01]),
    normalization=st.sampled_from(["none", "standardize"]),
    seed=st.integers(0, 2**16),
)
def test_any_data_is_solved_and_certified(
    n: int,
    p: int,
    n_classes: int,
    scale: float,
    spread: float,
    offset: float,
    duplicated: int,
    combined: int,
    low_rank: bool,
    weighted: bool,
    squared: bool,
    ratio: float,
    normalization: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * np.exp(spread * rng.normal(size=p)) + offset
    if low_rank:
        X = np.maximum(rng.normal(size=(n, 3)) @ rng.normal(size=(3, p)), 0) + 0.01 * rng.normal(size=(n, p)) + offset
    copies = X[:, rng.integers(p, size=duplicated)]
    mixtures = X @ rng.normal(size=(p, combined)) / p
    X = scale * np.hstack([X, copies, mixtures])
    y = rng.integers(n_classes, size=n)
    y[:2] = [0, 1]
    weights = rng.uniform(0.1, 2, size=n) if weighted else np.ones(n)
    weights /= weights.mean()
    loss = "squared" if squared else "softmax"
    source = ArraySource(X, normalization)
    result = group_lasso(source, y, loss=loss, penalty_ratio=ratio, sample_weight=weights)
    certificate = result.certificate
    assert certificate.certified, certificate
    assert source.passes <= 3
    columns = source.columns(np.arange(X.shape[1])).astype(np.float64)
    classes, codes = np.unique(y, return_inverse=True)
    logits = result.decision_function(columns)
    prediction = logits
    if not squared:
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        prediction = odds / odds.sum(axis=1, keepdims=True)
    R = weights[:, None] * (np.eye(len(classes))[codes] - prediction)
    scores = np.linalg.norm((columns - columns.mean(axis=0)).T @ R, axis=1) / n
    assert scores.max() <= certificate.penalty * 1.002
    if len(result.support):
        assert scores[result.support].min() >= certificate.penalty * 0.998
    assert np.abs(R.sum(axis=0)).max() < 1e-5 * n
