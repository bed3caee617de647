"""Multinomial logistic regression with an l1 or l2 penalty over all features, in passes over the store."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute import Progress, map_tasks
from pipeline.group_lasso import ColumnSource
from pipeline.group_lasso.source import single_threaded_blas
from pipeline.memory import format_memory
from pipeline.scorers.columns import Matrix, column_ranges
from store.errors import InvalidInputError

Array = NDArray[np.float64]
LEAST_COLUMNS = 1024
MOST_PASSES = 30
COPIES = 3
"""Of the held columns: as read, centred, and squared."""
MOST_STEPS = 100
MOST_SWEEPS = 400
LEAST_CURVATURE = 1e-4
LEAST_FRACTION = 1e-4
PARTS = 4
"""Sums over all features that are held apart; fixed, so that the result does not depend on the number of threads."""


class Solved(NamedTuple):
    """A solution over all features.

    Attributes
    ----------
    relevance : ndarray of float64, shape (p,)
        ``‖W_j‖₂`` where W_j is not zero; for l1 elsewhere ``c_j / λ − 1 ≤ 0``.
    objective, loss : float
        Mean cross-entropy in nats with and without the penalty.
    penalty : float
        λ.
    excess : float
        By how much, in units of λ, the largest score over all features exceeds λ where the optimum has none above.
    """

    relevance: Array
    objective: float
    loss: float
    penalty: float
    excess: float = 0.0


def fit_l2(
    source: ColumnSource, labels: NDArray[np.int64], penalty: float, memory: int, progress: Progress | None
) -> Solved:
    """Minimise mean cross-entropy plus ``λ/2 Σ_j ‖W_j‖₂²`` in three passes.

    The solution lies in the span of the samples, so scikit-learn solves the problem in n coordinates with the same
    inner products; then ``W_j = X̃_jᵀ R / (n λ)`` with the residual R, which a pass turns into row norms. Held in memory
    are a few matrices of samples × samples, in double precision, and none of features.

    Raises
    ------
    InvalidInputError
        If those matrices take more than `memory` bytes.
    """
    from sklearn.linear_model import LogisticRegression

    n, n_classes = source.n_samples, int(labels.max()) + 1
    needed = 8 * (PARTS + 3) * n * n
    if needed > memory:
        raise InvalidInputError(
            f"scorer l2 needs the inner products of all {n:,} samples in memory, {format_memory(needed)} while it "
            f"works, more than the {format_memory(memory)} allowed; allow as much."
        )
    one_hot = np.eye(n_classes)[labels]
    source.first_pass(one_hot - one_hot.mean(axis=0))
    gram = _gram(source, progress)
    # With two classes scikit-learn penalises the difference w of the rows, of which each has half: ‖W‖² = ‖w‖²/2.
    strength = (2 if n_classes == 2 else 1) / (n * penalty)
    with single_threaded_blas():
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=20_000)
        basis = _span(gram)
        model.fit(basis, labels)
        log_p = np.asarray(model.predict_log_proba(basis), np.float64)
    residual = one_hot - np.exp(log_p)
    residual -= residual.mean(axis=0)
    relevance = source.correlate(residual[:, :, None])[:, 0] / (n * penalty)
    loss = -float(log_p[np.arange(n), labels].mean())
    return Solved(relevance, loss + penalty / 2 * float((relevance**2).sum()), loss, penalty)


def fit_l1(
    source: ColumnSource,
    labels: NDArray[np.int64],
    *,
    penalty: float | None,
    penalty_ratio: float | None,
    tolerance: float,
    memory: int,
) -> Solved:
    """Minimise mean cross-entropy plus ``λ Σ_jk |W_jk|`` by growing a set of held columns until a pass finds no other.

    Off the support a feature has the relevance ``c_j / λ − 1`` with ``c_j = max_k |X̃_jᵀ R_k| / n``: how near it is to
    entering. Held in memory are the columns that ever came within reach, in float32, three times over.

    Parameters
    ----------
    source : ColumnSource
        Normalised features.
    labels : ndarray of int64, shape (n,)
        Class indices from 0 to K − 1.
    penalty, penalty_ratio : float, optional
        λ, or λ relative to the least one at which W is zero.
    tolerance : float
        Largest violation of the optimality conditions over all features, in units of λ.
    memory : int
        Bytes that held columns may take.

    Raises
    ------
    InvalidInputError
        If the columns within reach do not fit into `memory`.
    """
    n, n_classes = source.n_samples, int(labels.max()) + 1
    one_hot = np.eye(n_classes)[labels]
    residual = one_hot - one_hot.mean(axis=0)
    source.first_pass(residual)
    scores = _largest(source, residual)
    if penalty is None:
        penalty = (penalty_ratio or 0.0) * float(scores.max())
    held = np.empty(0, np.int64)
    coef = np.zeros((0, n_classes))
    loss = math.nan
    while True:
        reach = np.argsort(-scores, kind="stable")
        new = reach[~np.isin(reach, held)]
        wanted = new[scores[new] > penalty * (1 + tolerance)]
        if len(held) and (not len(wanted) or source.passes >= MOST_PASSES):
            break
        # The set at most doubles, since many violate the conditions only until a few are let in.
        wanted = new[: max(LEAST_COLUMNS, min(len(wanted), len(held)))]
        grown = np.sort(np.concatenate([held, wanted]))
        needed = COPIES * 4 * n * len(grown)
        if needed > memory:
            raise InvalidInputError(
                f"scorer l1 at λ = {penalty:.3g} needs {len(grown):,} columns of {n:,} samples in memory, "
                f"{format_memory(needed)} while it works, more than the {format_memory(memory)} allowed; allow more, "
                "or give a larger penalty."
            )
        start = np.zeros((len(grown), n_classes))
        start[np.searchsorted(grown, held)] = coef
        held = grown
        coef, residual, loss = _newton(source.columns(held), one_hot, start, penalty, tolerance / 2)
        scores = _largest(source, residual)
    lengths = np.linalg.norm(coef, axis=1)
    relevance = np.minimum(scores / penalty - 1, 0.0)
    relevance[held[lengths > 0]] = lengths[lengths > 0]
    excess = max(float(scores.max()) / penalty - 1, 0.0)
    return Solved(relevance, loss + penalty * float(np.abs(coef).sum()), loss, penalty, excess)


def _largest(source: ColumnSource, residual: Array) -> Array:
    """Return ``max_k |X̃_jᵀ R_k| / n``: classes stand where a path has penalties, each a norm over one column."""
    return source.correlate(residual[:, None, :]).max(axis=1) / source.n_samples


def _newton(
    columns: Matrix, one_hot: Array, start: Array, penalty: float, tolerance: float
) -> tuple[Array, Array, float]:
    """Return W, the residual and the loss of the l1 problem on held columns, by proximal Newton steps.

    Each step minimises the quadratic model of the loss, with softmax's exact Hessian, by coordinate descent, and is
    halved until the objective falls (Lee, Sun and Saunders, 2014). The intercept is one more column, not penalised.
    """
    n = len(one_hot)
    x = np.ones((columns.shape[1] + 1, n), np.float32)
    np.subtract(columns.T, columns.mean(axis=0, dtype=np.float64)[:, None], out=x[:-1], casting="same_kind")
    penalties = np.full(len(x), penalty, np.float32)
    penalties[-1] = 0
    w = np.vstack([start, np.log(one_hot.mean(axis=0))])

    def state(w: Array) -> tuple[float, float, Array]:
        logits = (w.T.astype(np.float32) @ x).T.astype(np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        loss = -float(log_p[one_hot > 0].mean())
        return loss + float(penalties @ np.abs(w).sum(axis=1)), loss, np.exp(log_p)

    squares = x * x
    with single_threaded_blas():
        objective, loss, p = state(w)
        for _ in range(MOST_STEPS):
            residual = one_hot - p
            gradient = x @ residual.astype(np.float32) / n
            violation = np.where(
                w != 0, np.abs(gradient - penalties[:, None] * np.sign(w)), np.abs(gradient) - penalties[:, None]
            )
            worst = float(violation.max()) / penalty
            if worst <= tolerance:
                break
            p32 = np.ascontiguousarray(p.T, np.float32)
            curvature = np.maximum(squares @ (p32 * (1 - p32)).T / n, LEAST_CURVATURE)
            moved, rest = w.astype(np.float32), np.ascontiguousarray(residual.T, np.float32)
            _minimise_model(
                x, p32, rest, moved, penalties, curvature, np.float32(penalty * max(worst / 10, tolerance / 2))
            )
            step, fraction = moved - w, 1.0
            while True:
                objective_there, loss_there, p_there = state(w + fraction * step)
                if objective_there < objective or fraction < LEAST_FRACTION:
                    break
                fraction /= 2
            if objective_there >= objective:
                break
            w, objective, loss, p = w + fraction * step, objective_there, loss_there, p_there
    residual = one_hot - p
    return w[:-1], residual - residual.mean(axis=0), loss


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "nnan"})
def _minimise_model(
    x: Matrix, p: Matrix, rest: Matrix, w: Matrix, penalties: Matrix, curvature: Matrix, tolerance: np.float32
) -> None:
    """Descend on the quadratic model over all coordinates in turn, and in between over those that are not zero.

    Shapes: x (m, n), p and rest (K, n), w and curvature (m, K); `rest` is the model's residual and follows `w`.
    """
    n, n_classes = x.shape[1], p.shape[0]
    every = True
    for _ in range(MOST_SWEEPS):
        largest = np.float32(0)
        for j in range(x.shape[0]):
            for k in range(n_classes):
                old = w[j, k]
                if old == 0 and not every:
                    continue
                slope = np.float32(0)
                for i in range(n):
                    slope += x[j, i] * rest[k, i]
                target = old * curvature[j, k] + slope / n
                size = max(abs(target) - penalties[j], np.float32(0)) / curvature[j, k]
                new = size if target > 0 else -size
                change = new - old
                if change == 0:
                    continue
                w[j, k] = new
                largest = max(largest, abs(change) * curvature[j, k])
                for c in range(n_classes):
                    if c == k:
                        for i in range(n):
                            rest[c, i] -= change * x[j, i] * p[k, i] * (1 - p[k, i])
                    else:
                        for i in range(n):
                            rest[c, i] += change * x[j, i] * p[k, i] * p[c, i]
        if largest <= tolerance and every:
            return
        every = bool(largest <= tolerance)


def _gram(source: ColumnSource, progress: Progress | None) -> Array:
    """Return X̃X̃ᵀ of centred columns, shape (n, n)."""
    n = source.n_samples
    ranges = column_ranges(source)

    def add(part: int) -> Array:
        total = torch.zeros((n, n), dtype=torch.float64)
        for features in ranges[part::PARTS]:
            rows = torch.tensor(source.columns(features).T)
            rows -= rows.mean(dim=1, keepdim=True)
            total += rows.T @ rows
        return total.numpy()

    stage = "inner products of all samples"
    return np.sum(map_tasks(add, range(PARTS), stage=stage, progress=progress), axis=0)


def _span(gram: Array) -> Array:
    """Return coordinates of the samples with the inner products of `gram`, shape (n, rank)."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values[-1], 0.0) * 1e-10
    return vectors[:, kept] * np.sqrt(values[kept])
