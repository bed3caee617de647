"""One prox-Newton step: the quadratic model of the loss, descended in sweeps and extrapolated between them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.kernels import sweep
from pipeline.group_lasso.losses import Array, Loss
from pipeline.group_lasso.screening import ColumnCache, Slots

_SWEEPS = 300
_TRAIL = 4
_RELAXATION = 0.7  # of the bound on the curvature of softmax, while the model's objective falls: a fifth fewer sweeps
_VECTOR = 16  # single-precision values in a cache line


class _Iterate(NamedTuple):
    """Coefficients, change of intercept, and minus the change of the gradient in the logits.

    The last has the kernel's shape, with a row of zeros if K is odd and some columns of zeros after the n samples.
    """

    coef: Array
    intercept: Array
    residual: NDArray[np.float32]


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
    bound, intercept_curvature = _curvature(cache, loss, working, predictions)
    curvature = bound * _RELAXATION if loss.softmax else bound
    shape = n_outputs + n_outputs % 2, -(-n // _VECTOR) * _VECTOR
    fixed, weights = _aligned_zeros(shape), np.zeros(shape[1], dtype=np.float32)
    fixed[:n_outputs, :n], weights[:n] = predictions.T, loss.weights / n
    now = _Iterate(coef.copy(), np.zeros(n_outputs), _aligned_zeros(shape))
    trail: list[_Iterate] = []
    lowest = np.inf
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
        trail.append(_Iterate(now.coef.copy(), now.intercept.copy(), now.residual.copy()))
        if len(trail) == _TRAIL:
            leap = _extrapolated(trail)
            values = [_value(fixed, weights, loss.softmax, coef, gradient, penalty, iterate) for iterate in (leap, now)]
            if values[1] > lowest:
                curvature = bound
            lowest = min(values)
            if values[0] < values[1]:
                now.coef[:], now.intercept[:], now.residual[:] = leap
            trail.clear()
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


def _extrapolated(trail: list[_Iterate]) -> _Iterate:
    """Combine iterates so that their differences cancel best (Anderson; Bertrand and Massias 2021, algorithm 2)."""
    differences = np.array([(new.coef - old.coef).ravel() for old, new in pairwise(trail)])
    gram = differences @ differences.T
    if np.trace(gram) == 0:
        return trail[-1]
    gram[np.diag_indices_from(gram)] += 1e-10 * np.trace(gram)
    mix = np.linalg.solve(gram, np.ones(len(gram)))
    mix /= mix.sum()
    coef = np.tensordot(mix, np.array([iterate.coef for iterate in trail[1:]]), axes=1)
    intercept = np.tensordot(mix, np.array([iterate.intercept for iterate in trail[1:]]), axes=1)
    change = np.tensordot(mix.astype(np.float32), np.array([iterate.residual for iterate in trail[1:]]), axes=1)
    return _Iterate(coef, intercept, change)


def _value(
    predictions: NDArray[np.float32],
    weights: NDArray[np.float32],
    softmax: bool,
    start: Array,
    gradient: Array,
    penalty: float,
    iterate: _Iterate,
) -> float:
    """Return the objective of the model, up to a constant.

    Its curvature term follows from the change of the gradient, ``r = v p ∘ (z − pᵀz)`` at each sample for a change z of
    the logits: ``½ zᵀ diag(v) (diag p − p pᵀ) z = ½ Σ r² / (v p)``.
    """
    scale = predictions * weights if softmax else np.broadcast_to(weights, iterate.residual.shape)
    squares = np.divide(iterate.residual**2, scale, out=np.zeros_like(iterate.residual), where=scale > 0)
    length = float(np.linalg.norm(iterate.coef, axis=1).sum())
    decrease = float((gradient * (iterate.coef - start)).sum())
    return penalty * length - decrease + float(squares.sum(dtype=np.float64)) / 2
