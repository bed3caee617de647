"""A leap between sweeps: Newton's step for the rows that are not zero, by preconditioned conjugate gradients.

Sweeps find out soon which rows are zero, and take long for the rest. Among rows that are not zero the model is smooth,
and a step over all of them at once costs a few products of matrices (Bareilles, Iutzeler and Malick 2023, "Newton
acceleration on manifolds identified by proximal gradient methods"; truncated as by Steihaug 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.budget import HELD_ELEMENTS
from pipeline.group_lasso.losses import Array
from pipeline.group_lasso.screening import ColumnCache, Slots

_ITERATIONS = 10
_REDUCTION = 0.03  # of the squared error; what is left is for the next leap, from where the sweeps have led
_ALONG = 0.1  # of the bound on the curvature: about what it is

Single = NDArray[np.float32]


class Model(NamedTuple):
    """The second-order model of the loss at an expansion point, and the penalty.

    Attributes
    ----------
    predictions : ndarray of shape (K or more, n or more), float32
        Probabilities there; what exceeds K and n is zero.
    weights : ndarray of shape (n or more,), float32
        Sample weights divided by n.
    softmax : bool
        Which curvature.
    coef, gradient : ndarray of shape (m, K)
        The coefficients there, and ``X̃ᵀR/n``.
    penalty : float
        λ.
    """

    predictions: Single
    weights: Single
    softmax: bool
    coef: Array
    gradient: Array
    penalty: float

    def curved(self, logits: Single) -> Single:
        """Return what a change z of the logits does to their gradient: ``v p ∘ (z − pᵀz) / n`` for softmax.

        Parameters
        ----------
        logits : ndarray of shape (K, n), float32
            Overwritten by the result.
        """
        n_outputs, n = logits.shape
        if self.softmax:
            p = self.predictions[:n_outputs, :n]
            logits *= p
            logits -= p * logits.sum(axis=0)
        logits *= self.weights[:n]
        return logits

    def value(self, iterate: Iterate) -> float:
        """Return the objective of the model, up to a constant.

        Its curvature term follows from the change of the gradient, ``r = v p ∘ (z − pᵀz)`` at each sample for a change
        z of the logits: ``½ zᵀ diag(v) (diag p − p pᵀ) z = ½ Σ r² / (v p)``.
        """
        residual = iterate.residual
        scale = self.predictions * self.weights if self.softmax else np.broadcast_to(self.weights, residual.shape)
        squares = np.divide(residual**2, scale, out=np.zeros_like(residual), where=scale > 0)
        length = float(np.linalg.norm(iterate.coef, axis=1).sum())
        decrease = float((self.gradient * (iterate.coef - self.coef)).sum())
        return self.penalty * length - decrease + float(squares.sum(dtype=np.float64)) / 2


class Iterate(NamedTuple):
    """Coefficients, change of intercept, and minus the change of the gradient in the logits.

    The last has the kernel's shape, with a row of zeros if K is odd and some columns of zeros after the n samples.
    """

    coef: Array
    intercept: Array
    residual: Single


def leap(
    cache: ColumnCache, working: Slots, model: Model, now: Iterate, curvature: Array, intercept_curvature: float
) -> Iterate:
    """Take Newton's step from where the sweeps are, over the rows that are not zero and the intercept.

    A row that the step would turn by more than a right angle becomes zero: it would have stopped there.

    Parameters
    ----------
    cache : ColumnCache
        Holds the working set.
    working : ndarray of shape (m,), int64
        Slots of the working set.
    model : Model
        What is minimised.
    now : Iterate
        Where the sweeps are; not changed. Some of its rows are not zero.
    curvature : ndarray of shape (m,)
        Bounds on the largest eigenvalue of each row's Hessian.
    intercept_curvature : float
        The same for the intercept.

    Returns
    -------
    Iterate
        Not always a better one: the model's value tells.
    """
    n, n_outputs = cache.columns.shape[1], model.coef.shape[1]
    rows = np.flatnonzero(now.coef.any(axis=1))
    blocks = _blocks(cache, working[rows])
    length = np.linalg.norm(now.coef[rows], axis=1, keepdims=True)
    unit = (now.coef[rows] / length).astype(np.float32)
    bend = (model.penalty / length).astype(np.float32)
    stiff = (_ALONG * curvature[rows, None]).astype(np.float32)
    stiff_intercept = np.float32(_ALONG * intercept_curvature)

    def along(step: Single) -> Single:
        return unit * np.einsum("jk,jk->j", unit, step)[:, None]

    def changed(step: Single, shift: Single) -> Single:
        logits = np.repeat(shift[:, None], n, axis=1)
        for part, block in blocks():
            logits += step[part].T @ block
        return model.curved(logits)

    def products(residual: Single) -> Single:
        out = np.empty((len(rows), n_outputs), dtype=np.float32)
        for part, block in blocks():
            out[part] = block @ residual.T
        return out

    residual = now.residual[:n_outputs, :n]
    error = (model.gradient[rows] + products(residual) - model.penalty * unit).astype(np.float32)
    error_intercept = residual.sum(axis=1)
    step, shift = np.zeros_like(error), np.zeros_like(error_intercept)
    direction, turn = np.zeros_like(error), np.zeros_like(error_intercept)
    enough, before = 0.0, np.inf
    for _ in range(_ITERATIONS):
        radial = along(error)
        scaled, scaled_intercept = radial / stiff + (error - radial) / (stiff + bend), error_intercept / stiff_intercept
        size = float(np.vdot(error, scaled) + np.vdot(error_intercept, scaled_intercept))
        if size <= enough:
            break
        enough = enough or _REDUCTION * size
        direction = scaled + np.float32(size / before) * direction
        turn = scaled_intercept + np.float32(size / before) * turn
        before = size
        response = changed(direction, turn)
        bent = products(response) + bend * (direction - along(direction))
        bent_intercept = response.sum(axis=1)
        curving = float(np.vdot(direction, bent) + np.vdot(turn, bent_intercept))
        if curving <= 0:
            break
        far = np.float32(size / curving)
        step += far * direction
        shift += far * turn
        error -= far * bent
        error_intercept -= far * bent_intercept
    coef = now.coef.copy()
    moved = coef[rows] + step
    moved[np.einsum("jk,jk->j", moved, coef[rows]) <= 0] = 0
    step = (moved - coef[rows]).astype(np.float32)
    coef[rows] = moved
    rest = now.residual.copy()
    rest[:n_outputs, :n] -= changed(step, shift)
    return Iterate(coef, now.intercept + shift, rest)


def _blocks(cache: ColumnCache, slots: Slots) -> Callable[[], Iterable[tuple[slice, Single]]]:
    """Return what gives the columns in parts, from a copy if they are few."""
    if len(slots) * cache.columns.shape[1] > HELD_ELEMENTS:
        return lambda: cache.blocks(slots)
    held = list(cache.blocks(slots))
    return lambda: held
