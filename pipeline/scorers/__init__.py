"""What ranks features: the exact group lasso, and the scorers it is compared with, all on the same store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress
from pipeline.group_lasso import ColumnSource, group_lasso

Array = NDArray[np.float64]
TREES = 50
"""As many as the reference grows."""


@dataclass(frozen=True)
class Task:
    """What a scorer works on.

    Attributes
    ----------
    source : ColumnSource
        The features: normalised, or raw for a scorer that does not see the normalization.
    labels : ndarray of int64, shape (n,)
        Class indices, from 0 to K − 1 without gaps.
    options : mapping
        A value for each of the scorer's options.
    memory : int
        Bytes that held features may take.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    announce : callable, optional
        Called with a sentence on the memory that will be taken.
    """

    source: ColumnSource
    labels: NDArray[np.int64]
    options: Mapping[str, Any]
    memory: int
    progress: Progress | None
    announce: Callable[[str], None] | None = None


Scored = tuple[Array, dict[str, Any]]
"""Relevance of every feature, shape (p,), and what there is to say about it."""


@dataclass(frozen=True)
class Scorer:
    """A way to rank features.

    Attributes
    ----------
    score : callable
        From a `Task` to relevance and facts.
    options : mapping
        Names of the selection's parameters that matter to it, and their defaults.
    normalized : bool
        Whether it sees normalised features; raw ones otherwise, as in the reference.
    row_norms : bool
        Whether a positive relevance is the norm of a row of W, whose square is the reference's score.
    exact : bool
        Whether its result comes with a certificate.
    sparse : bool
        Whether it has a support: rows of W that are not zero among rows that are.
    """

    score: Callable[[Task], Scored]
    options: Mapping[str, Any] = field(default_factory=dict)
    normalized: bool = False
    row_norms: bool = False
    exact: bool = False
    sparse: bool = False


def _group_lasso(task: Task) -> Scored:
    options = task.options
    chosen = "penalty" if options["penalty"] else "penalty_ratio"
    result = group_lasso(
        task.source,
        task.labels,
        tol=options["tolerance"],
        memory=task.memory,
        progress=_solving(task.progress),
        announce=task.announce,
        **{chosen: options[chosen]},
    )
    return result.relevance, result.certificate.to_json()


def _adam(task: Task) -> Scored:
    """Hold all features in float32, in a temporary file if memory is short, since batches are random samples."""
    from pipeline.scorers.adam import fit_adam
    from pipeline.scorers.columns import hold_rows

    options = task.options
    norms = task.source.first_pass(np.zeros((task.source.n_samples, 1))).column_norms
    x = hold_rows(task.source, task.memory, task.progress)
    runs = [
        fit_adam(
            x,
            task.labels,
            penalty=options["penalty"],
            learning_rate=options["learning_rate"],
            steps=options["steps"],
            seed=seed,
            progress=task.progress,
        )
        for seed in _seeds(options)
    ]
    # The reference averages squared row norms.
    squares = np.mean([np.square(run.coef, dtype=np.float64).sum(axis=1) for run in runs], axis=0)
    means = {name: float(np.mean([getattr(run, name) for run in runs])) for name in ("objective", "loss")}
    # Without a proximal step the row of a constant feature is what Adam's last steps leave behind.
    return np.where(norms > 0, np.sqrt(squares), 0.0), {**means, "penalty": options["penalty"]}


def _l1(task: Task) -> Scored:
    from pipeline.scorers.linear import fit_l1

    options = {name: task.options[name] for name in ("penalty", "penalty_ratio", "tolerance")}
    relevance, *facts = fit_l1(task.source, task.labels, **options, memory=task.memory)
    return relevance, dict(zip(("objective", "loss", "penalty", "excess"), facts, strict=True))


def _l2(task: Task) -> Scored:
    from pipeline.scorers.linear import fit_l2

    relevance, *facts = fit_l2(task.source, task.labels, task.options["penalty"], task.memory, task.progress)
    return relevance, dict(zip(("objective", "loss", "penalty"), facts, strict=False))


def _extra_trees(task: Task) -> Scored:
    """Hold all raw features in float32; a forest looks at any of them at any time."""
    from sklearn.ensemble import ExtraTreesClassifier

    from pipeline.scorers.columns import hold

    x = hold(task.source, "extra_trees", task.memory, task.progress)
    forests = (ExtraTreesClassifier(TREES, n_jobs=-1, random_state=seed) for seed in _seeds(task.options))
    return np.mean([forest.fit(x, task.labels).feature_importances_ for forest in forests], axis=0), {}


def _mutual_info(task: Task) -> Scored:
    from pipeline.scorers.univariate import score_mutual_information

    runs = [score_mutual_information(task.source, task.labels, s, task.progress) for s in _seeds(task.options)]
    return np.mean(runs, axis=0), {}


def _random(task: Task) -> Scored:
    from pipeline.scorers.univariate import score_at_random

    return score_at_random(task.source, task.options["seed"]), {}


def _each(name: str) -> Callable[[Task], Scored]:
    def score(task: Task) -> Scored:
        from pipeline.scorers import univariate

        return univariate.score_each(getattr(univariate, name), task.source, task.labels, task.progress)

    return score


def _seeds(options: Mapping[str, Any]) -> range:
    return range(options["seed"], options["seed"] + options["average_over"])


def _solving(progress: Progress | None) -> Progress | None:
    """Pass on the solver's steps in memory; the source reports its own passes, task by task."""
    if progress is None:
        return None

    def forward(stage: str, done: int, total: int) -> None:
        if stage == "solve":
            progress("solving for each penalty in memory", done, total)

    return forward


_SEEDED = {"seed": 0, "average_over": 1}
SCORERS: Mapping[str, Scorer] = {
    "group_lasso": Scorer(
        _group_lasso,
        {"penalty_ratio": 0.1, "penalty": None, "tolerance": 1e-4},
        normalized=True,
        row_norms=True,
        exact=True,
        sparse=True,
    ),
    "adam": Scorer(
        _adam, {"penalty": 1e-4, "learning_rate": 0.1, "steps": 500, **_SEEDED}, normalized=True, row_norms=True
    ),
    "l1": Scorer(
        _l1, {"penalty_ratio": 0.1, "penalty": None, "tolerance": 1e-3}, normalized=True, row_norms=True, sparse=True
    ),
    "l2": Scorer(_l2, {"penalty": 1e-4}, normalized=True, row_norms=True),
    "variance": Scorer(_each("variance")),
    "chi2": Scorer(_each("chi2")),
    "f_classif": Scorer(_each("f_classif")),
    "mutual_info": Scorer(_mutual_info, _SEEDED),
    "extra_trees": Scorer(_extra_trees, _SEEDED),
    "random": Scorer(_random, {"seed": 0}, normalized=True),
}
"""Every scorer by name."""
