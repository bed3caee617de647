"""The inner loops, compiled: block coordinate descent on the model of a prox-Newton step, and centring of columns."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Sums may be reordered so that they vectorise; the order is fixed at compile time, so results repeat to the last bit.
_REORDER = {"reassoc", "contract", "nsz", "arcp"}


@njit(nogil=True, cache=True, fastmath=_REORDER)
def descend(
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
    tolerance: float,
    max_sweeps: int,
) -> tuple[int, bool]:
    """Minimise the quadratic model over the rows of `coef` and the intercept, in place, by cyclic descent.

    The model of the softmax loss is exact to second order, ``S_i = v_i (diag(p_i) − p_i p_iᵀ)`` per sample; each
    block's K × K Hessian is majorised by a scalar, so every step is a closed-form group soft-threshold and the model's
    objective never rises. Sweeps alternate: one over all rows, then some over the non-zero rows only.

    Parameters
    ----------
    columns : ndarray of shape (capacity, n), float32
        Cached columns, one per row, centred.
    slots : ndarray of shape (m,), int64
        Rows of `columns` in the working set.
    predictions : ndarray of shape (K, n), float32
        Probabilities at the expansion point; ignored for the squared loss.
    weights : ndarray of shape (n,), float32
        Sample weights divided by n.
    softmax : bool
        Which curvature.
    gradient : ndarray of shape (m, K), float64
        ``X̃_jᵀR/n`` at the expansion point, whose intercept is optimal.
    coef : ndarray of shape (m, K), float64
        Start, and on return the minimiser.
    intercept : ndarray of shape (K,), float64
        Start, and on return the minimiser.
    residual : ndarray of shape (K, n), float32
        Minus the change of the model's gradient with respect to the logits since the expansion point: zero to begin
        with, and kept in step with `coef` and `intercept`. As only the change is in single precision, repeated model
        steps converge to double precision.
    curvature : ndarray of shape (m,), float64
        A bound on the largest eigenvalue of each block Hessian; rows with bound zero are left alone.
    intercept_curvature : float
        The same for the intercept.
    penalty : float
        λ.
    tolerance : float
        Stop when a sweep over all rows moves no gradient by more than this.
    max_sweeps : int
        Stop after this many sweeps.

    Returns
    -------
    sweeps : int
        Number of sweeps.
    settled : bool
        Whether the tolerance was met.
    """
    n, n_outputs = len(weights), gradient.shape[1]
    target = np.empty(n_outputs)
    step = np.empty(n_outputs)
    scaled = np.empty(n, dtype=np.float32)
    mean_step = np.empty(n, dtype=np.float32)
    active = np.empty(len(slots), dtype=np.bool_)
    full = True
    since_full = 0
    sweeps = 0
    while sweeps < max_sweeps:
        sweeps += 1
        worst = 0.0
        for a in range(len(slots) + 1):
            is_intercept = a == len(slots)
            if is_intercept:
                h = intercept_curvature
                for k in range(n_outputs):
                    total = np.float32(0)
                    for i in range(n):
                        total += residual[k, i]
                    step[k] = total / h
                for i in range(n):
                    scaled[i] = weights[i]
            else:
                if not (full or active[a]) or curvature[a] <= 0:
                    continue
                h = curvature[a]
                x = columns[slots[a]]
                length = 0.0
                for k in range(n_outputs):
                    total = np.float32(0)
                    for i in range(n):
                        total += x[i] * residual[k, i]
                    target[k] = coef[a, k] + (gradient[a, k] + total) / h
                    length += target[k] ** 2
                length = np.sqrt(length)
                shrink = 1 - penalty / (h * length) if h * length > penalty else 0.0
                active[a] = shrink > 0
                for k in range(n_outputs):
                    step[k] = shrink * target[k] - coef[a, k]
                for i in range(n):
                    scaled[i] = x[i] * weights[i]
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
            if softmax:
                for i in range(n):
                    mean_step[i] = 0
                for k in range(n_outputs):
                    d = np.float32(step[k])
                    for i in range(n):
                        mean_step[i] += d * predictions[k, i]
                for i in range(n):
                    mean_step[i] *= scaled[i]
                for k in range(n_outputs):
                    d = np.float32(step[k])
                    for i in range(n):
                        residual[k, i] -= predictions[k, i] * (d * scaled[i] - mean_step[i])
            else:
                for k in range(n_outputs):
                    d = np.float32(step[k])
                    for i in range(n):
                        residual[k, i] -= d * scaled[i]
        if full and worst <= tolerance:
            return sweeps, True
        since_full = 0 if full else since_full + 1
        full = worst <= tolerance or since_full >= 8
    return sweeps, False


@njit(nogil=True, cache=True, fastmath=_REORDER)
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
