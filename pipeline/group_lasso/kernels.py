"""The inner loops, compiled: block coordinate descent on the model of a prox-Newton step, and centring of columns."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Sums may be reordered so that they vectorise; the order is fixed at compile time, so results repeat to the last bit.
# Not so where a loop also stores: it is compiled twice, for arrays that overlap and for others, and which one runs
# depends on where these lie in memory. There, and in sums of a few numbers, each operation is rounded as it is written.
_SUMS = {"reassoc", "contract", "nsz", "arcp"}


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _correlate(x: NDArray[np.float32], residual: NDArray[np.float32], total: NDArray[np.float64]) -> None:
    """Write the product of a column with each row of the residual, two rows at a time to load the column less often."""
    for k in range(0, len(residual), 2):
        r, r_next = residual[k], residual[k + 1]
        here, there = np.float32(0), np.float32(0)
        for i in range(len(x)):
            here += x[i] * r[i]
            there += x[i] * r_next[i]
        total[k], total[k + 1] = here, there


@njit(nogil=True, cache=True, fastmath={"contract"})
def _move(
    x: NDArray[np.float32],
    step: NDArray[np.float64],
    weights: NDArray[np.float32],
    predictions: NDArray[np.float32],
    softmax: bool,
    residual: NDArray[np.float32],
    scaled: NDArray[np.float32],
    mean_step: NDArray[np.float32],
) -> None:
    """Change the residual as a step along a column does; `scaled` and `mean_step` are working memory, shape (n,)."""
    n = len(x)
    for i in range(n):
        scaled[i] = x[i] * weights[i]
        mean_step[i] = 0
    if softmax:
        for k in range(0, len(residual), 2):
            d, d_next = np.float32(step[k]), np.float32(step[k + 1])
            p, p_next = predictions[k], predictions[k + 1]
            for i in range(n):
                mean_step[i] = (mean_step[i] + d * p[i]) + d_next * p_next[i]
        for i in range(n):
            mean_step[i] *= scaled[i]
    for k in range(len(residual)):
        d, p, r = np.float32(step[k]), predictions[k], residual[k]
        if softmax:
            for i in range(n):
                r[i] -= p[i] * (d * scaled[i] - mean_step[i])
        else:
            for i in range(n):
                r[i] -= d * scaled[i]


@njit(nogil=True, cache=True)
def sweep(
    columns: NDArray[np.float32],
    slots: NDArray[np.int64],
    predictions: NDArray[np.float32],
    weights: NDArray[np.float32],
    softmax: bool,
    gradient: NDArray[np.float64],
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    residual: NDArray[np.float32],
    curvature: NDArray[np.float64],
    intercept_curvature: float,
    penalty: float,
) -> float:
    """Descend on the quadratic model over the rows of `coef` in turn, then over the intercept, in place.

    The model of the softmax loss is exact to second order, ``S_i = v_i (diag(p_i) − p_i p_iᵀ)`` per sample; each
    block's K × K Hessian is replaced by a scalar, so every step is a closed-form group soft-threshold. If the scalar
    is at least the Hessian's largest eigenvalue, the model's objective does not rise.

    Parameters
    ----------
    columns : ndarray of shape (capacity, n), float32
        Cached columns, one per row, centred.
    slots : ndarray of shape (m,), int64
        Rows of `columns` in the working set.
    predictions : ndarray of shape (K or more, n or more), float32
        Probabilities at the expansion point; ignored for the squared loss. The number of rows is even, since they are
        taken in pairs, which halves how often a column is loaded; what exceeds K and n is zero.
    weights : ndarray of shape (n or more,), float32
        Sample weights divided by n.
    softmax : bool
        Which curvature.
    gradient : ndarray of shape (m, K), float64
        ``X̃_jᵀR/n`` at the expansion point, whose intercept is optimal.
    coef : ndarray of shape (m, K), float64
        Changed in place.
    intercept : ndarray of shape (K,), float64
        Changed in place.
    residual : ndarray of the shape of `predictions`, float32
        Minus the change of the model's gradient with respect to the logits since the expansion point: zero to begin
        with, and kept in step with `coef` and `intercept`. As only the change is in single precision, repeated model
        steps converge to double precision.
    curvature : ndarray of shape (m,), float64
        What stands for each block's Hessian; rows where it is zero are left alone.
    intercept_curvature : float
        The same for the intercept.
    penalty : float
        λ.

    Returns
    -------
    float
        The most that a step moved a gradient.
    """
    n, n_outputs, n_rows = columns.shape[1], gradient.shape[1], len(residual)
    target = np.empty(n_outputs)
    total = np.empty(n_rows)
    step = np.zeros(n_rows)
    ones = np.ones(n, dtype=np.float32)
    scaled = np.empty(n, dtype=np.float32)
    mean_step = np.empty(n, dtype=np.float32)
    worst = 0.0
    for a in range(len(slots) + 1):
        is_intercept = a == len(slots)
        h = intercept_curvature if is_intercept else curvature[a]
        if h <= 0:
            continue
        x = ones if is_intercept else columns[slots[a]]
        _correlate(x, residual, total)
        if is_intercept:
            for k in range(n_outputs):
                step[k] = total[k] / h
        else:
            length = 0.0
            for k in range(n_outputs):
                target[k] = coef[a, k] + (gradient[a, k] + total[k]) / h
                length += target[k] ** 2
            length = np.sqrt(length)
            shrink = 1 - penalty / (h * length) if h * length > penalty else 0.0
            for k in range(n_outputs):
                step[k] = shrink * target[k] - coef[a, k]
        moved = 0.0
        for k in range(n_outputs):
            moved += step[k] ** 2
        if moved == 0:
            continue
        worst = max(worst, h * np.sqrt(moved))
        for k in range(n_outputs):
            if is_intercept:
                intercept[k] += step[k]
            else:
                coef[a, k] += step[k]
        _move(x, step, weights, predictions, softmax, residual, scaled, mean_step)
    return worst


@njit(nogil=True, cache=True, fastmath=_SUMS)
def centre_into(
    fetched: NDArray[np.float32],
    weights: NDArray[np.float64],
    slots: NDArray[np.int64],
    columns: NDArray[np.float32],
    means: NDArray[np.float64],
) -> None:
    """Write columns, less their weighted means, into their slots, one after the other while it is in the cache.

    Parameters
    ----------
    fetched : ndarray of shape (m, n), float32
        Columns as the source gives them, one per row.
    weights : ndarray of shape (n,), float64
        Sample weights that sum to one.
    slots : ndarray of shape (m,), int64
        Where they go.
    columns : ndarray of shape (capacity, n), float32
        Where to; the rows in `slots` are overwritten.
    means : ndarray of shape (capacity,), float64
        The means that were subtracted; the entries in `slots` are overwritten.
    """
    for a in range(len(slots)):
        x, centred = fetched[a], columns[slots[a]]
        mean = 0.0
        for i in range(len(weights)):
            mean += weights[i] * x[i]
        for i in range(len(weights)):
            centred[i] = np.float32(x[i] - mean)
        means[slots[a]] = mean
