"""AllLayers: one penalised linear model over all features of all layers, whose own solution predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.compute import map_tasks
from pipeline.group_lasso import ColumnSource, group_lasso
from pipeline.group_lasso.source import single_threaded_blas
from pipeline.layer_view import of_target_size
from pipeline.memory import DEFAULT_MEMORY, format_memory
from pipeline.methods.columns import ROWS, lineage
from pipeline.methods.interface import Prediction, Samples, Settings
from pipeline.normalization import check_normalization, fit_normalizer
from pipeline.scorers.columns import column_ranges
from pipeline.scorers.linear import _newton, fit_l1
from pipeline.store_source import open_source, read_samples
from store.activations import ActivationStore
from store.errors import InvalidInputError, suggest

Array = NDArray[np.float64]
PARTS = 4
"""Sums over all features that are held apart; fixed, so that the result does not depend on the number of threads."""
L1_TOLERANCE = 1e-3
MOST_STEPS = 1000


@dataclass(frozen=True)
class AllLayers:
    """A linear model on all features of all layers, with the penalty that keeps it from learning by heart.

    Predictions are those of the minimiser of mean cross-entropy plus the penalty, without a refit. Penalties of one
    target size and normalization share their passes over the store.

    Attributes
    ----------
    store : ActivationStore
        The activations.
    penalty : str
        ``group``: λ Σ_j ‖W_j‖₂. ``l1``: λ Σ_jk |W_jk|. ``l2``: λ/2 Σ_j ‖W_j‖₂².
    strengths : sequence of float, optional
        λ to choose from, relative to the least one at which W is zero, or of ``l2`` to the mean squared norm of the
        centred samples, decreasing; `STRENGTHS` if not given.
    normalizations : sequence of str
        To choose from.
    target_sizes : sequence of int or None
        T, to choose from if the store holds several; None is all its layers.
    name : str, optional
        What tables call it.
    memory : int
        Bytes of features that may be held at once.

    Raises
    ------
    InvalidInputError
        If the penalty or a normalization is unknown, or a strength is not positive.
    """

    store: ActivationStore
    penalty: str = "group"
    strengths: Sequence[float] | None = None
    normalizations: Sequence[str] = ("unit_norm", "standardize")
    target_sizes: Sequence[int | None] = (None,)
    name: str = ""
    memory: int = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        if self.penalty not in _SOLVERS:
            raise InvalidInputError(f"penalty {self.penalty!r} is unknown; {suggest(self.penalty, _SOLVERS)}")
        for strength in self.strengths or ():
            if not 0 < strength < float("inf"):
                raise InvalidInputError(f"strength {strength!r} is not allowed; it must be a finite number above 0.")
        for normalization in self.normalizations:
            check_normalization(normalization)
        object.__setattr__(self, "name", self.name or f"All layers, {self.penalty}")

    @property
    def identity(self) -> dict[str, Any]:
        """The store and the penalty; settings say the rest."""
        return {**lineage(self.store), "penalty": self.penalty}

    @property
    def grid(self) -> list[list[Settings]]:
        """One batch per target size and normalization."""
        strengths = STRENGTHS[self.penalty] if self.strengths is None else self.strengths
        return [
            [{"target_size": size, "normalization": name, "strength": float(strength)} for strength in strengths]
            for size in self.target_sizes
            for name in self.normalizations
        ]

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        """Solve the problem for each strength, as `Method.fit` says."""
        store, normalization = of_target_size(self.store, settings[0]["target_size"]), settings[0]["normalization"]
        classes, codes = np.unique(store.labels(train.split)[train.rows], return_inverse=True)
        if len(classes) < 2:
            raise InvalidInputError(f"all {len(codes):,} training samples are of one class; at least 2 are needed.")
        view = _Held(store, normalization, train, held)
        with open_source(store, normalization, train.split, memory=self.memory, samples=train.rows) as source:
            strengths = [setting["strength"] for setting in settings]
            for predicted, facts in _SOLVERS[self.penalty](source, codes, strengths, view, self.memory):
                yield Prediction(classes[predicted], facts)


class _Held:
    """Columns of the samples to predict, normalised as those trained on are, with their statistics."""

    def __init__(self, store: ActivationStore, normalization: str, train: Samples, held: Samples) -> None:
        self._store, self._normalization, self._train, self._held = store, normalization, train, held
        self._opened: dict[tuple[int, int], ColumnSource] = {}

    def __len__(self) -> int:
        return len(self._held.rows)

    def columns(self, indices: NDArray[np.int64], samples: slice = slice(None)) -> NDArray[np.float32]:
        """Return columns of some of the samples, shape (n, m)."""
        rows = self._held.rows[samples]
        if self._normalization == "standardize":
            raw = read_samples(self._store, self._train.split, indices, self._train.rows)
            normalize = fit_normalizer(self._store, indices, self._normalization, raw)
            return normalize(read_samples(self._store, self._held.split, indices, rows))
        which = samples.indices(len(self))[:2]
        if which not in self._opened:
            with open_source(self._store, self._normalization, self._held.split, samples=rows) as source:
                self._opened[which] = source
        return self._opened[which].columns(indices)

    def predict(self, indices: NDArray[np.int64], coef: Array, intercept: Array) -> NDArray[np.int64]:
        """Return the most probable class of each sample, by weights of shape (m, K), reading some samples at a time."""
        parts = [slice(start, start + ROWS) for start in range(0, len(self), ROWS)]
        logits = [self.columns(indices, part).astype(np.float64) @ coef + intercept for part in parts]
        return np.argmax(np.concatenate(logits), axis=1)


Solve = Callable[
    [ColumnSource, NDArray[np.int64], Sequence[float], _Held, int], Iterator[tuple[NDArray[np.int64], dict[str, Any]]]
]


def _group(
    source: ColumnSource, codes: NDArray[np.int64], strengths: Sequence[float], held: _Held, memory: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    for found in group_lasso(source, codes, penalty_ratio=strengths, memory=memory).path:
        predicted = held.predict(found.support, found.support_coef, found.intercept)
        yield predicted, {"features": len(found.support), "certified": found.certificate.certified}


def _l1(
    source: ColumnSource, codes: NDArray[np.int64], strengths: Sequence[float], held: _Held, memory: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    one_hot = np.eye(int(codes.max()) + 1)[codes]
    for strength in strengths:
        found = fit_l1(source, codes, penalty=None, penalty_ratio=strength, tolerance=L1_TOLERANCE, memory=memory)
        support = np.flatnonzero(found.relevance > 0)
        # Of the solution over all features the scorer keeps the norms of rows; the rows follow from their support.
        columns = source.columns(support)
        start = np.zeros((len(support), one_hot.shape[1]))
        coef, _, loss = _newton(columns, one_hot, start, found.penalty, L1_TOLERANCE / 2)
        predicted = held.predict(support, coef, _intercept(columns @ coef, one_hot))
        facts = {"features": len(support), "loss": loss, "penalty": found.penalty, "excess": found.excess}
        yield predicted, facts


def _intercept(logits: Array, one_hot: Array) -> Array:
    """Return the best intercept besides given logits, at which the mean probability of each class is its share."""
    intercept: Array = np.zeros(logits.shape[1])
    for _ in range(MOST_STEPS):
        step = np.log(one_hot.mean(axis=0)) - np.log(softmax(logits + intercept, axis=1).mean(axis=0))
        intercept += step
        if np.abs(step).max() < 1e-9:
            break
    return intercept


def _l2(
    source: ColumnSource, codes: NDArray[np.int64], strengths: Sequence[float], held: _Held, memory: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """Solve in the span of the training samples, where the solution lies, with coordinates from inner products."""
    from sklearn.linear_model import LogisticRegression

    products = _products(source, held, memory)
    n, n_classes = len(codes), int(codes.max()) + 1
    own, theirs = products[:n], products[n:]
    values, vectors = np.linalg.eigh(own)
    kept = values > max(values[-1], 0.0) * 1e-10
    scale = np.sqrt(values[kept])
    basis, seen = vectors[:, kept] * scale, theirs @ vectors[:, kept] / scale
    for strength in strengths:
        penalty = strength * float(np.trace(own)) / n
        # With two classes scikit-learn penalises the difference w of the rows, of which each has half: ‖W‖² = ‖w‖²/2.
        model = LogisticRegression(C=(2 if n_classes == 2 else 1) / (n * penalty), tol=1e-6, max_iter=20_000)
        with single_threaded_blas():
            model.fit(basis, codes)
            log_p = model.predict_log_proba(basis)
            predicted = model.predict(seen)
        loss = -float(log_p[np.arange(n), codes].mean())
        yield predicted, {"features": source.n_features, "loss": loss, "penalty": penalty}


def _products(source: ColumnSource, held: _Held, memory: int) -> Array:
    """Return inner products of the samples trained on, and below them those to predict, with those trained on.

    Columns are centred at the mean of the samples trained on, since the intercept is free; shape (n + held, n).
    """
    n, total = source.n_samples, source.n_samples + len(held)
    needed = 8 * (PARTS + 3) * n * total
    if needed > memory:
        raise InvalidInputError(
            f"an l2 penalty needs the inner products of {n:,} with {total:,} samples in memory, "
            f"{format_memory(needed)} while it works, more than the {format_memory(memory)} allowed; allow as much."
        )
    source.first_pass(np.zeros((n, 1)))
    ranges = column_ranges(source)

    def add(part: int) -> Array:
        found = np.zeros((total, n))
        for features in ranges[part::PARTS]:
            own = source.columns(features).astype(np.float64)
            mean = own.mean(axis=0)
            own -= mean
            found[:n] += own @ own.T
            found[n:] += (held.columns(features) - mean) @ own.T
        return found

    with single_threaded_blas():
        return np.sum(map_tasks(add, range(PARTS), stage="inner products of all samples"), axis=0)


_SOLVERS: Mapping[str, Solve] = {"group": _group, "l1": _l1, "l2": _l2}
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "group": (0.3, 0.1, 0.03, 0.01),
    "l1": (0.3, 0.1, 0.03, 0.01),
    "l2": (1.0, 0.1, 0.01, 0.001),
}
"""What is tried of each penalty."""
