"""Head2Toe: features selected over all layers, and a fresh head on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso import ColumnSource, group_lasso
from pipeline.heads import RefitParameters
from pipeline.layer_view import of_target_size
from pipeline.memory import DEFAULT_MEMORY
from pipeline.methods.columns import Columns, lineage, refit_settings
from pipeline.methods.interface import Prediction, Samples, Settings
from pipeline.normalization import check_normalization
from pipeline.ranking import order_features
from pipeline.scorers import Task, find_scorer
from pipeline.selection_parameters import SelectionParameters
from pipeline.store_source import open_source
from store.activations import ActivationStore

FRACTIONS = (0.005, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Head2Toe:
    """Selection by a scorer, then a refit on the best features.

    Settings of one target size and normalization share the scan of the store, λ of the group lasso one path, fractions
    one ranking and its columns.

    Attributes
    ----------
    store : ActivationStore
        The activations.
    scorer : str
        One of `pipeline.scorers.SCORERS`, or an installed plug-in's.
    options : sequence of mapping
        Options of the scorer to choose from, as `SelectionParameters` has them; seeds are the protocol's.
    fractions : sequence of float
        F, to choose from; at least one feature is kept.
    normalizations : sequence of str
        To choose from.
    target_sizes : sequence of int or None
        T, to choose from if the store holds several; None is all its layers.
    refits : sequence of RefitParameters
        To choose from; their seed is the protocol's.
    name : str
        What tables call it.
    memory : int
        Bytes of features that may be held at once.
    """

    store: ActivationStore
    scorer: str = "group_lasso"
    options: Sequence[Mapping[str, Any]] = ({"penalty_ratio": 0.3}, {"penalty_ratio": 0.1}, {"penalty_ratio": 0.03})
    fractions: Sequence[float] = FRACTIONS
    normalizations: Sequence[str] = ("unit_norm",)
    target_sizes: Sequence[int | None] = (None,)
    refits: Sequence[RefitParameters] = (RefitParameters(),)
    name: str = "Head2Toe"
    memory: int = DEFAULT_MEMORY

    @property
    def identity(self) -> dict[str, Any]:
        """The store and the scorer; settings say the rest."""
        return {**lineage(self.store), **find_scorer(self.scorer).identity(self.scorer)}

    @property
    def grid(self) -> list[list[Settings]]:
        """One batch per target size and normalization."""
        return [self._batch(size, name) for size in self.target_sizes for name in self.normalizations]

    def _batch(self, size: int | None, normalization: str) -> list[Settings]:
        check_normalization(normalization)
        return [
            {
                "target_size": size,
                "normalization": normalization,
                "ranking": self._ranking(options),
                "fraction": parameters.fraction,
                "refit": refit_settings(refit),
            }
            for options in self.options
            for parameters in (SelectionParameters(scorer=self.scorer, fraction=f, **options) for f in self.fractions)
            for refit in self.refits
        ]

    def _ranking(self, options: Mapping[str, Any]) -> dict[str, Any]:
        ranking = SelectionParameters(scorer=self.scorer, **options).ranking()
        return {name: ranking[name] for name in find_scorer(self.scorer).options if name != "seed"}

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        """Rank features once for all settings, and fit a head for each, as `Method.fit` says."""
        store = of_target_size(self.store, settings[0]["target_size"])
        normalization = settings[0]["normalization"]
        rankings = [ranking for ranking, _ in groupby(setting["ranking"] for setting in settings)]
        labels = store.labels(train.split)[train.rows]
        seen = normalization if find_scorer(self.scorer).normalized else "none"
        with open_source(store, seen, train.split, memory=self.memory, samples=train.rows) as source:
            relevances = self._rank(source, np.unique(labels, return_inverse=True)[1], rankings, seed)
            scanned = source.bytes_read
        for relevance, (_, group) in zip(relevances, groupby(settings, lambda s: s["ranking"]), strict=True):
            order = order_features(relevance, tuple(store.layers.values()))
            refits = [
                (np.sort(order[: max(1, int(len(order) * fraction + 1e-9))]), [s["refit"] for s in sharing])
                for fraction, sharing in groupby(group, lambda setting: float(setting["fraction"]))
            ]
            columns = Columns(store, max((indices for indices, _ in refits), key=len), train, held)
            support = {"support": int((relevance > 0).sum())} if find_scorer(self.scorer).sparse else {}
            for indices, several in refits:
                heads = [RefitParameters(**refit, seed=seed) for refit in several]
                for predicted, facts in columns.fit(indices, normalization, heads):
                    yield Prediction(predicted, {**facts, **support, "bytes_read": facts["bytes_read"] + scanned})

    def _rank(
        self, source: ColumnSource, codes: NDArray[np.int64], rankings: Sequence[Mapping[str, Any]], seed: int
    ) -> list[NDArray[np.float64]]:
        """Return the relevance of all features for each ranking; several λ of the group lasso are one path."""
        if self.scorer == "group_lasso" and len({ranking["tolerance"] for ranking in rankings}) == 1:
            for name in ("penalty_ratio", "penalty"):
                values = [ranking[name] for ranking in rankings]
                if None not in values:
                    chosen = {"penalties" if name == "penalty" else name: values, "tol": rankings[0]["tolerance"]}
                    return [r.relevance for r in group_lasso(source, codes, memory=self.memory, **chosen).path]
        scorer = find_scorer(self.scorer)
        seeded = {"seed": seed} if "seed" in scorer.options else {}
        tasks = (Task(source, codes, {**ranking, **seeded}, self.memory, None) for ranking in rankings)
        return [scorer.score(task)[0] for task in tasks]
