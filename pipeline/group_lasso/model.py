"""One prox-Newton step: the quadratic model of the loss, descended in sweeps, with leaps between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.kernels import sweep
from pipeline.group_lasso.leap import Iterate, Model, leap
from pipeline.group_lasso.losses import Array, Loss
from pipeline.group_lasso.screening import ColumnCache, Slots

_SWEEPS = 300
_BETWEEN_LEAPS = 2
_VECTOR = 16  # single-precision values in a cache line


def minimise_model(
    cache: ColumnCache,
    loss: Loss,
    working: Slots,
    coef: Array,
    predictions: Array,
    gradient: Array,
    penalty: float,
    tolerance: float,
) -> tuple[Array, Array, int]:
    """Minimise the second-order model of the loss plus the penalty, roughly.

    Parameters
    ----------
    cache : ColumnCache
        Holds the working set.
    loss : Loss
        Gives the weights and the kind of curvature.
    working : ndarray of shape (m,), int64
        Slots of the working set.
    coef : ndarray of shape (m, K)
        The expansion point; its intercept is optimal.
    predictions : ndarray of shape (n, K)
        There.
    gradient : ndarray of shape (m, K)
        ``X̃ᵀR/n`` there.
    penalty : float
        λ.
    tolerance : float
        Stop when a sweep moves no gradient by more than this.

    Returns
    -------
    change : ndarray of shape (m, K), float64
        Of the coefficients.
    shift : ndarray of shape (K,), float64
        Of the intercept.
    sweeps : int
        Spent.
    """
    n, n_outputs = predictions.shape
    curvature, intercept_curvature = _curvature(cache, loss, working, predictions)
    shape = n_outputs + n_outputs % 2, -(-n // _VECTOR) * _VECTOR
    fixed, weights = _aligned_zeros(shape), np.zeros(shape[1], dtype=np.float32)
    fixed[:n_outputs, :n], weights[:n] = predictions.T, loss.weights / n
    model = Model(fixed, weights, loss.softmax, coef, gradient, penalty)
    now = Iterate(coef.copy(), np.zeros(n_outputs), _aligned_zeros(shape))
    sweeps = 0
    while sweeps < _SWEEPS:
        sweeps += 1
        moved = sweep(
            cache.columns,
            working,
            fixed,
            weights,
            loss.softmax,
            gradient,
            now.coef,
            now.intercept,
            now.residual,
            curvature,
            intercept_curvature,
            penalty,
        )
        if moved <= tolerance:
            break
        if sweeps % _BETWEEN_LEAPS == 0 and now.coef.any():
            further = leap(cache, working, model, now, curvature, intercept_curvature)
            if model.value(further) < model.value(now):
                now.coef[:], now.intercept[:], now.residual[:] = further
    return now.coef - coef, now.intercept, sweeps


def _aligned_zeros(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return zeros whose rows begin with a cache line, as vectors that do not straddle two are loaded faster."""
    size = shape[0] * shape[1]
    room = np.zeros(size + _VECTOR, dtype=np.float32)
    start = -(room.ctypes.data // room.itemsize) % _VECTOR
    return room[start : start + size].reshape(shape)


def _curvature(cache: ColumnCache, loss: Loss, working: Slots, predictions: Array) -> tuple[Array, float]:
    """Bound the largest eigenvalue of every block Hessian ``Σ_i x_ij² S_i / n``, and of the intercept's."""
    v = loss.weights[:, None]
    if not loss.softmax:
        return cache.weighted_squares(working, v)[:, 0] * (1 + 1e-5), 1.0
    # S = v (diag p − p pᵀ) has two bounds: drop p pᵀ, or Gershgorin's discs.
    bounds = np.hstack([v * predictions, 2 * v * predictions * (1 - predictions)])
    shape = 2, predictions.shape[1]
    squares = cache.weighted_squares(working, bounds).reshape(-1, *shape)
    return squares.max(axis=2).min(axis=1) * (1 + 1e-5), float(bounds.mean(axis=0).reshape(shape).max(axis=1).min())
