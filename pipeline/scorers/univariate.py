"""Scores of one feature at a time, in one pass over raw values: memory holds a few columns per thread."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress
from pipeline.group_lasso import ColumnSource
from pipeline.scorers.columns import Matrix, score_columns
from store.errors import InvalidInputError

Scores = NDArray[np.float64]
Measure = Callable[[NDArray[np.float64], NDArray[np.int64]], Scores]


def variance(values: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Return the variance over the samples; the labels do not matter."""
    return values.var(axis=0)


def f_classif(values: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Return scikit-learn's ANOVA F; a feature that separates the classes perfectly gets a huge finite number.

    Raises
    ------
    InvalidInputError
        If there is one sample per class, so that nothing varies within classes.
    """
    from sklearn.feature_selection import f_classif

    _require_pair(labels, "f_classif")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(f_classif(values, labels)[0], posinf=float(np.finfo(np.float32).max))


def chi2(values: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Return scikit-learn's χ² of values that are not negative."""
    from sklearn.feature_selection import chi2

    return np.nan_to_num(chi2(values, labels)[0])


def score_each(
    measure: Measure, source: ColumnSource, labels: NDArray[np.int64], progress: Progress | None
) -> tuple[Scores, dict[str, Any]]:
    """Score every feature by itself; a constant one has the score 0.

    Parameters
    ----------
    measure : callable
        From values of shape (n, m), float64, and labels to scores of shape (m,).
    source : ColumnSource
        Raw features.
    labels : ndarray of int64, shape (n,)
        Class indices.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    scores : ndarray of float64, shape (p,)
        Not negative.
    facts : dict
        For chi2 ``shifted_features``: it takes counts, so a feature with negative values has its least value, which
        is of training samples, subtracted; features without are scored as they are.
    """
    shift = measure is chi2

    def work(first: int, x: Matrix) -> tuple[Scores, int]:
        least = x.min(axis=0)
        scores = np.zeros(x.shape[1])
        varies = least < x.max(axis=0)
        if varies.any():
            values = x[:, varies].astype(np.float64)
            if shift:
                values -= np.minimum(least[varies], 0)
            scores[varies] = measure(values, labels)
        return scores, int((least < 0).sum())

    with warnings.catch_warnings():
        # Only a feature constant within each class is left for scikit-learn to warn of, and that is a good feature.
        warnings.filterwarnings("ignore", "Features .* are constant", UserWarning)
        found = score_columns(work, source, "scoring each feature", progress)
    scores = np.concatenate([s for s, _ in found])
    return scores, {"shifted_features": sum(n for _, n in found)} if shift else {}


def score_mutual_information(
    source: ColumnSource, labels: NDArray[np.int64], seed: int, progress: Progress | None
) -> Scores:
    """Return scikit-learn's estimate of each feature's mutual information with the label, in nats.

    The estimate adds a little noise to break ties; it is seeded per feature, so that the score does not depend on
    which features are read together.

    Raises
    ------
    InvalidInputError
        If there is one sample per class, so that none has a neighbour.
    """
    from sklearn.feature_selection import mutual_info_classif

    _require_pair(labels, "mutual_info")

    def work(first: int, x: Matrix) -> Scores:
        scores = np.zeros(x.shape[1])
        for j in np.flatnonzero(x.min(axis=0) < x.max(axis=0)):
            noise = np.random.RandomState([seed, first + int(j)])
            scores[j] = mutual_info_classif(x[:, [j]], labels, discrete_features=False, random_state=noise)[0]
        return scores

    return np.concatenate(score_columns(work, source, "scoring each feature", progress))


def score_at_random(source: ColumnSource, seed: int) -> Scores:
    """Return uniform random scores, the control; constant features get 0, which takes one pass to know."""
    norms = source.first_pass(np.zeros((source.n_samples, 1))).column_norms
    return np.where(norms > 0, np.random.default_rng(seed).random(source.n_features), 0.0)


def _require_pair(labels: NDArray[np.int64], scorer: str) -> None:
    if np.bincount(labels).max() < 2:
        raise InvalidInputError(
            f"scorer {scorer} needs a class with at least 2 training samples; all {len(labels):,} are of different "
            "classes."
        )
