"""What ranks features: the exact group lasso, and the scorers it is compared with, all on the same store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress
from pipeline.group_lasso import ColumnSource, group_lasso
from pipeline.plugins import Plugin, blamed, find_plugin, plugin_names
from store.errors import InvalidInputError, suggest
from store.spec import PluginSpec, canonical_json

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
    plugin : PluginSpec, optional
        Where it comes from, if an entry point of group ``head2toe.scorers`` names it; `find_scorer` fills it in.
    """

    score: Callable[[Task], Scored]
    options: Mapping[str, Any] = field(default_factory=dict)
    normalized: bool = False
    row_norms: bool = False
    exact: bool = False
    sparse: bool = False
    plugin: PluginSpec | None = None

    def identity(self, name: str) -> dict[str, Any]:
        """Return what says in a result which scorer this is: its name and, of a plug-in, distribution and version."""
        return {"scorer": name} | ({"plugin": self.plugin.model_dump()} if self.plugin else {})


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
"""Every scorer of this package by name."""
OPTIONS = frozenset(name for scorer in SCORERS.values() for name in scorer.options)


def find_scorer(name: str) -> Scorer:
    """Return a scorer by name: this package's, or that of an installed plug-in.

    Raises
    ------
    InvalidInputError
        If there is none, or the plug-in cannot be used.
    """
    plugin = find_plugin("scorer", name, SCORERS)
    if plugin is not None:
        return _from_outside(plugin)
    if name not in SCORERS:
        known = [*SCORERS, *plugin_names("scorer")]
        raise InvalidInputError(f"scorer {name!r} is unknown; {suggest(name, known, len(known))}")
    return SCORERS[name]


def _from_outside(plugin: Plugin) -> Scorer:
    """Return another package's scorer, whose relevance and facts are looked at before they are believed."""
    plugin.require(isinstance(plugin.value, Scorer), "a pipeline.scorers.Scorer")
    given: Scorer = plugin.value
    if odd := sorted(set(given.options) - OPTIONS):
        raise InvalidInputError(f"{plugin} has an option {odd[0]!r}, which selections do not have; {_options()}")
    if given.exact:
        raise InvalidInputError(f"{plugin} says that it is exact; only group_lasso comes with a certificate.")

    def score(task: Task) -> Scored:
        with blamed(plugin.kind, plugin.spec):
            values, facts = given.score(task)
            relevance = np.asarray(values, np.float64)
            wanted = (task.source.n_features,)
            if relevance.shape != wanted or not np.isfinite(relevance).all():
                raise InvalidInputError(
                    f"its relevance, of shape {relevance.shape}, must be finite and of shape {wanted}."
                )
            canonical_json(facts)  # they are stored beside the selection
        return relevance, dict(facts)

    return replace(given, score=score, plugin=plugin.spec)


def _options() -> str:
    return f"valid are {', '.join(sorted(OPTIONS))}."
