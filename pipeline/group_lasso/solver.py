"""The optimum at one penalty over the cached columns: working sets around a prox-Newton method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.certificate import Optimality, optimality
from pipeline.group_lasso.losses import Array, Loss, residual
from pipeline.group_lasso.model import minimise_model
from pipeline.group_lasso.screening import ColumnCache, Slots

_NEWTON_STEPS = 100
_STALLED_STEPS = 15  # without halving the error: rounding is all that is left
_FORCING = 0.1  # how much more exact than the point the model is minimised
_ENOUGH = 0.2  # of what is wanted, as rows that were not moved last have moved
_COARSEST = 0.5
_LEAST_GROWTH = 32


class Accuracy(NamedTuple):
    """When a point is good enough.

    Attributes
    ----------
    gap : float
        Duality gap, absolute.
    kkt : float
        Worst violation of the optimality conditions, in units of λ.
    """

    gap: float
    kkt: float


@dataclass(frozen=True)
class Point:
    """A model, its place on the path and what it took to get there from the previous one.

    Attributes
    ----------
    penalty : float
        λ.
    support : ndarray of shape (m,), int64
        Features with a non-zero row, sorted.
    coef : ndarray of shape (m, K), float64
        Their rows.
    intercept : ndarray of shape (K,), float64
        With respect to centred columns.
    logits, residual : ndarray of shape (n, K), float64
        ``X̃W + b``, and ``v ∘ (Y − P)`` there; the residual's columns sum to zero.
    accuracy : Accuracy
        What was demanded of it.
    newton_steps, sweeps : int
        Outer and inner iterations since the previous penalty on the path.
    """

    penalty: float
    support: NDArray[np.int64]
    coef: Array
    intercept: Array
    logits: Array
    residual: Array
    accuracy: Accuracy
    newton_steps: int = 0
    sweeps: int = 0

    def objective(self, loss: Loss, penalty: float | None = None) -> float:
        """Return the objective, at this point's penalty or at another one.

        Parameters
        ----------
        loss : Loss
            The smooth part.
        penalty : float, optional
            The other λ.

        Returns
        -------
        float
            ``loss + λ Σ_j ‖W_j‖₂``.
        """
        length = float(np.linalg.norm(self.coef, axis=1).sum())
        return loss.value(self.logits) + (self.penalty if penalty is None else penalty) * length


def null_point(loss: Loss, penalty: float) -> Point:
    """Return the intercept-only model.

    Parameters
    ----------
    loss : Loss
        The smooth part.
    penalty : float
        λ to write on it.

    Returns
    -------
    Point
        With an empty support.
    """
    n, n_outputs = loss.targets.shape
    b = loss.intercept(np.zeros((n, n_outputs)), np.zeros(n_outputs))
    logits = np.tile(b, (n, 1))
    nothing = np.empty(0, dtype=np.int64)
    rest = residual(loss, loss.predict(logits))
    return Point(penalty, nothing, np.empty((0, n_outputs)), b, logits, rest, Accuracy(0.0, 0.0))


def approach(cache: ColumnCache, loss: Loss, start: Point, penalty: float, accuracy: Accuracy) -> Point:
    """Lower the penalty by one step: minimise over the support and, by the strong rule, ``c_j ≥ 2λ − λ_previous``.

    At most as many features join as the support has, those with the highest scores.

    Parameters
    ----------
    cache : ColumnCache
        Holds the support of `start`.
    loss : Loss
        The smooth part.
    start : Point
        A solution at a larger penalty.
    penalty : float
        λ > 0.
    accuracy : Accuracy
        Demanded over the working set only.

    Returns
    -------
    Point
        A place to start `minimise` from.
    """
    working = cache.slots(start.support)
    working, _ = _joined(cache, working, start, 2 * penalty - start.penalty)
    return _newton(cache, loss, working, start, penalty, accuracy)


def minimise(cache: ColumnCache, loss: Loss, start: Point, accuracy: Accuracy) -> Point:
    """Minimise over all cached columns: violators join the support until none is left.

    Parameters
    ----------
    cache : ColumnCache
        Holds the support of `start`.
    loss : Loss
        The smooth part.
    start : Point
        A point at the same penalty.
    accuracy : Accuracy
        Demanded over the cached columns.

    Returns
    -------
    Point
        Meets `accuracy`, or is the best that double precision gives; `start` itself if it does.
    """
    point = start
    working = cache.slots(start.support)
    while True:
        limit = point.penalty * (1 + allowed_excess(point, accuracy))
        joined, highest = _joined(cache, working, point, limit)
        if len(joined) == len(working) and point.accuracy == accuracy:
            return point
        # While violators keep coming, a solution over the working set is only a step on the way to them.
        enough = Accuracy(np.inf, _FORCING * (highest / point.penalty - 1)) if highest > limit else accuracy
        working = joined
        point = _newton(cache, loss, working, point, point.penalty, enough if enough.kkt > accuracy.kkt else accuracy)


def _joined(cache: ColumnCache, working: Slots, point: Point, threshold: float) -> tuple[Slots, float]:
    """Add the highest scores above the threshold to the working set; return it with the highest of those scores."""
    candidates, scores = cache.above(point.residual, threshold)
    fresh = ~np.isin(candidates, working)
    most = max(_LEAST_GROWTH, len(point.support))
    return np.concatenate([working, candidates[fresh][:most]]), float(scores[fresh].max(initial=0.0))


def allowed_excess(point: Point, accuracy: Accuracy) -> float:
    """Return how far above λ, in units of λ, a score off the working set may be.

    A score of ``(1 + ε) λ`` scales the dual point by ``1 / (1 + ε)``, which costs ``ε λ Σ_j ‖W_j‖`` of duality gap to
    first order; half of the accuracy is left to the working set.

    Parameters
    ----------
    point : Point
        A solution on its working set.
    accuracy : Accuracy
        Demanded overall.

    Returns
    -------
    float
        The excess ε.
    """
    term = point.penalty * float(np.linalg.norm(point.coef, axis=1).sum())
    return 0.5 * min(accuracy.kkt, accuracy.gap / term if term > 0 else np.inf)


def measure(cache: ColumnCache, loss: Loss, point: Point, largest_score: float) -> Optimality:
    """Measure a point whose largest score is known or bounded.

    Parameters
    ----------
    cache : ColumnCache
        Holds the support.
    loss : Loss
        The smooth part.
    point : Point
        The model.
    largest_score : float
        ``max_j ‖X̃_jᵀR‖/n`` over all features as the source tells it, or a bound above it.

    Returns
    -------
    Optimality
        Objective, gap and violation.
    """
    gradient = cache.correlate(cache.slots(point.support), point.residual)
    largest = max(largest_score, float(np.linalg.norm(gradient, axis=1).max(initial=0.0)))
    return optimality(loss, point.penalty, point.coef, point.logits, gradient, largest)


def _newton(cache: ColumnCache, loss: Loss, working: Slots, start: Point, penalty: float, accuracy: Accuracy) -> Point:
    """Minimise over the columns in the slots `working`, which include the support of `start`."""
    coef = np.zeros((len(working), loss.targets.shape[1]))
    if len(start.support):
        order = np.argsort(working, kind="stable")
        coef[order[np.searchsorted(working, cache.slots(start.support), sorter=order)]] = start.coef
    intercept, logits = start.intercept, start.logits.copy()
    sweeps = 0
    best, best_step = np.inf, 0
    forcing, previous = _FORCING, np.inf
    for step in range(_NEWTON_STEPS + 1):
        refined = loss.intercept(logits - intercept, intercept)
        logits += refined - intercept
        intercept = refined
        predictions = loss.predict(logits)
        rest = residual(loss, predictions)
        gradient = cache.correlate(working, rest)
        largest = float(np.linalg.norm(gradient, axis=1).max(initial=0.0))
        state = optimality(loss, penalty, coef, logits, gradient, largest)
        excess = max(state.kkt / accuracy.kkt, state.gap / accuracy.gap)
        if excess < best / 2:
            best, best_step = excess, step
        if excess <= 0.5 or step - best_step >= _STALLED_STEPS or step == _NEWTON_STEPS:
            break
        # A sweep that moves little may still be far from the model's minimum: insist if the last step gained little.
        forcing = _FORCING if state.kkt < previous / 2 else forcing / 10
        previous = state.kkt
        # No more exact than what is wanted of the point, whose gap and violation fall with the model's.
        tolerance = max(forcing, 1e-6, min(_ENOUGH / excess, _COARSEST)) * state.kkt * penalty
        change, shift, spent = minimise_model(cache, loss, working, coef, predictions, gradient, penalty, tolerance)
        sweeps += spent
        movement = cache.combine(working, change) + shift
        length = _line_search(loss, logits, movement, coef, change, rest, penalty, state.objective)
        if length == 0:
            break
        coef += length * change
        intercept = intercept + length * shift
        logits += length * movement
    kept = np.flatnonzero(coef.any(axis=1))
    kept = kept[np.argsort(cache.features(working[kept]))]
    support = cache.features(working[kept])
    steps, sweeps = start.newton_steps + step, start.sweeps + sweeps
    return Point(penalty, support, coef[kept], intercept, logits, rest, accuracy, steps, sweeps)


def _line_search(
    loss: Loss,
    logits: Array,
    movement: Array,
    coef: Array,
    change: Array,
    rest: Array,
    penalty: float,
    objective: float,
) -> float:
    """Return the first of 1, ½, ¼ … that decreases the objective enough, or 0 if rounding hides any decrease."""
    before = float(np.linalg.norm(coef, axis=1).sum())
    after = float(np.linalg.norm(coef + change, axis=1).sum())
    slope = -float((rest * movement).sum()) / len(rest) + penalty * (after - before)
    length = 1.0
    while length > 1e-6:
        term = penalty * float(np.linalg.norm(coef + length * change, axis=1).sum())
        if loss.value(logits + length * movement) + term <= objective + 0.1 * length * slope + 1e-14 * abs(objective):
            return length
        length /= 2
    return 0.0
