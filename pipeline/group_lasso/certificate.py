"""What proves a solution: duality gap and worst violation of the optimality conditions over all features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.group_lasso.losses import Array, Loss, residual


class Optimality(NamedTuple):
    """How far a point is from the optimum.

    Attributes
    ----------
    objective : float
        ``loss + λ Σ_j ‖W_j‖₂``.
    gap : float
        Objective minus a dual-feasible value: the objective exceeds the optimum by no more.
    kkt : float
        Worst violation of the optimality conditions, in units of λ.
    """

    objective: float
    gap: float
    kkt: float


def optimality(
    loss: Loss, penalty: float, coef: Array, logits: Array, support_gradient: Array, largest_score: float
) -> Optimality:
    """Measure a point against the optimality conditions (design section 7) and the Fenchel dual.

    With the residual R = v ∘ (Y − P), the conditions are ``X̃_jᵀR/n = λ W_j/‖W_j‖`` on the support,
    ``‖X̃_jᵀR‖/n ≤ λ`` elsewhere and ``Σ_i R_i = 0``. The dual point is ``θ = s R`` with
    ``s = min(1, λ / max_j ‖X̃_jᵀR‖ · n)``, which is feasible and, for softmax, keeps ``Y − θ/v = (1 − s) Y + s P`` in
    the simplex.

    Parameters
    ----------
    loss : Loss
        The smooth part.
    penalty : float
        λ > 0.
    coef : ndarray of shape (m, K)
        Rows of W on the support; rows of zeros count as off it.
    logits : ndarray of shape (n, K)
        ``X̃W + b``.
    support_gradient : ndarray of shape (m, K)
        ``X̃_jᵀR/n`` for the same rows.
    largest_score : float
        ``max_j ‖X̃_jᵀR‖/n`` over all p features, or a bound above it.

    Returns
    -------
    Optimality
        Objective, duality gap and worst violation.
    """
    rest = residual(loss, loss.predict(logits))
    lengths = np.linalg.norm(coef, axis=1)
    objective = loss.value(logits) + penalty * float(lengths.sum())
    on = lengths > 0
    stationarity = support_gradient[on] - penalty * coef[on] / lengths[on, None]
    worst = max(
        float(np.linalg.norm(stationarity, axis=1).max(initial=0.0)) / penalty,
        largest_score / penalty - 1,
        float(np.abs(rest.sum(axis=0)).max() / max(float(np.abs(rest).sum()), np.finfo(float).tiny)),
    )
    scale = min(1.0, penalty / largest_score) if largest_score > 0 else 1.0
    return Optimality(objective, max(objective - loss.dual(rest, scale), 0.0), max(worst, 0.0))


@dataclass(frozen=True)
class Certificate:
    """Evidence that a result is the optimum, and what it cost.

    Attributes
    ----------
    certified : bool
        Whether the relative gap and the violation meet the tolerances over all features. Never true on a guess.
    note : str
        What is unusual about this result; empty in the ordinary case.
    penalty, penalty_max : float
        λ, and the least λ at which nothing is selected.
    objective, null_objective : float
        At the result, and at the intercept alone.
    duality_gap : float
        The objective exceeds the optimum by no more than this.
    relative_gap : float
        ``duality_gap / null_objective``.
    kkt_violation : float
        Worst violation over all p features, in units of λ; an upper bound where a feature was not scanned again after
        the last repair.
    score_slack : float
        By how much, in units of λ, a feature's relevance off the support may differ from its value at the result:
        zero unless the result was repaired after the last scan.
    support_size, n_features, n_samples : int
        Number of selected features, of all features, and of samples.
    passes, bytes_read : int
        Scans of all features, and bytes of feature data read, by the whole call.
    cached_columns, cached_bytes : int
        Columns held in memory at the end, and their size.
    projected_bytes : int
        What the call was expected to hold in this process, worked out beforehand, without Python and its libraries.
    process_peak_bytes : int
        The most memory the whole process had at once, since it began and whatever for, as measured at the end.
    newton_steps, sweeps : int
        Outer and inner iterations spent on this penalty since the previous one on the path.
    seconds : dict of str to float
        Wall time of the whole call per stage.
    """

    certified: bool
    note: str
    penalty: float
    penalty_max: float
    objective: float
    null_objective: float
    duality_gap: float
    relative_gap: float
    kkt_violation: float
    score_slack: float
    support_size: int
    n_features: int
    n_samples: int
    passes: int
    bytes_read: int
    cached_columns: int
    cached_bytes: int
    projected_bytes: int
    process_peak_bytes: int
    newton_steps: int
    sweeps: int
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as a dict of plain JSON values.

        Returns
        -------
        dict
            One entry per attribute.
        """
        return asdict(self)
