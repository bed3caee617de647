"""Domain affinity and gain: whether Head2Toe helps most where the source task has least to give (paper, figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from store.errors import InvalidInputError, suggest

if TYPE_CHECKING:
    from pipeline.protocol import Evaluation

LINEAR, SCRATCH, HEAD2TOE = "Linear", "Scratch", "Head2Toe"


@dataclass(frozen=True)
class TaskAffinity:
    """One target task.

    Attributes
    ----------
    task : str
        Its name.
    group : str
        Its group, such as VTAB's ``"natural"``, or empty.
    affinity : float
        Accuracy of Linear less that of Scratch, in points.
    gain : float
        Accuracy of Head2Toe less that of Linear, in points.
    """

    task: str
    group: str
    affinity: float
    gain: float


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of affinity and gain.

    Attributes
    ----------
    rho : float or None
        Spearman's; None of fewer than three tasks, or if all affinities or all gains are equal.
    p_value : float or None
        Two-sided, of the t distribution, which is rough for few tasks; None with `rho`.
    n : int
        Number of tasks.
    """

    rho: float | None
    p_value: float | None
    n: int

    def __str__(self) -> str:
        return f"Spearman {'undefined' if self.rho is None else f'{self.rho:+.2f}'}, n = {self.n}"


def domain_affinity(
    results: Mapping[str, Mapping[str, Evaluation | float]],
    groups: Mapping[str, str] | None = None,
    *,
    linear: str = LINEAR,
    scratch: str = SCRATCH,
    head2toe: str = HEAD2TOE,
) -> list[TaskAffinity]:
    """Return affinity and gain of each task, in the order given.

    Parameters
    ----------
    results : mapping of str to mapping of str to Evaluation or float
        By task and name of method: what it achieves, or its test accuracy from 0 to 1.
    groups : mapping of str to str, optional
        Group by task.
    linear, scratch, head2toe : str
        Names of the three methods.

    Raises
    ------
    InvalidInputError
        If a task lacks one of the three.

    Examples
    --------
    >>> domain_affinity({"digits": {"Linear": 0.75, "Scratch": 0.5, "Head2Toe": 1.0}})
    [TaskAffinity(task='digits', group='', affinity=25.0, gain=25.0)]
    """
    found = []
    for task, by_method in results.items():
        for name in (linear, scratch, head2toe):
            if name not in by_method:
                raise InvalidInputError(
                    f"task {task!r} has no result of method {name!r}, which affinity or gain needs; "
                    f"{suggest(name, by_method)}"
                )
        base, fresh, ours = (_accuracy(by_method[name]) for name in (linear, scratch, head2toe))
        group = (groups or {}).get(task, "")
        found.append(TaskAffinity(task, group, 100 * (base - fresh), 100 * (ours - base)))
    return found


def correlate_affinity(tasks: Sequence[TaskAffinity]) -> Correlation:
    """Return Spearman's rank correlation of affinity and gain over tasks."""
    affinities, gains = [task.affinity for task in tasks], [task.gain for task in tasks]
    if len(tasks) < 3 or np.ptp(affinities) == 0 or np.ptp(gains) == 0:
        return Correlation(None, None, len(tasks))
    result = spearmanr(affinities, gains)
    return Correlation(float(result.statistic), float(result.pvalue), len(tasks))


def _accuracy(result: Evaluation | float) -> float:
    return float(result) if isinstance(result, int | float) else result.accuracy
