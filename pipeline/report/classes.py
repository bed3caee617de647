"""What a stored head says of every sample, and how well it does class by class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress
from pipeline.normalization import fit_normalizer
from store.activations import ActivationStore
from store.layout import locate
from store.results import Result

ROWS = 4096
"""Samples that are classified at a time."""
MOST_CONFUSED = 20
"""Classes of which a whole table of confusions can be read."""
LISTED = 10
"""Classes, or confusions, that are shown of more."""
MOST = 1000
"""Classes that are listed at all, the hardest first."""


def classify(store: ActivationStore, head: Result, split: str, progress: Progress | None = None) -> NDArray[np.int64]:
    """Return the class that a stored head gives every sample of a split, reading its columns only.

    Parameters
    ----------
    store : ActivationStore
        The store beside which the head lies.
    head : Result
        Of kind ``heads``.
    split : str
        The samples.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    ndarray of int64, shape (sample,)
        Class indices.
    """
    indices, coef = head.arrays["indices"], head.arrays["coef"].astype(np.float32)
    normalization, train = head.inputs["normalization"], head.inputs["train"]
    # Every normalization treats layers apart, so that only one layer's columns are held at a time.
    parts = []
    for _, positions in locate(tuple(store.layers.values()), indices):
        own = indices[positions]
        measured = own if normalization == "standardize" else own[:0]
        raw = store.columns(train, measured)
        parts.append((positions, own, fit_normalizer(store, own, normalization, raw)))
    n = store.split(split).n_samples
    found = np.empty(n, np.int64)
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        logits = np.tile(head.arrays["intercept"].astype(np.float32), (rows.stop - start, 1))
        for positions, own, normalize in parts:
            logits += normalize(store.columns(split, own, rows)) @ coef[positions]
        found[rows] = logits.argmax(axis=1)
        if progress:
            progress(f"classifying the samples of {split}", rows.stop, n)
    return found


class ClassRow(NamedTuple):
    """How a class fares: its name, its samples, the share right with Head2Toe and with Linear if there is one."""

    name: str
    samples: int
    right: float
    linear: float | None


class Confusion(NamedTuple):
    """How many samples of one class are taken for another."""

    true: str
    taken_for: str
    samples: int


class ClassTables(NamedTuple):
    """What the report says of classes.

    Attributes
    ----------
    rows : list of ClassRow
        Every class that has samples; in order of their numbers if there are few, else the hardest first.
    names : list of str
        Of all classes, if there are few.
    matrix : list of list of int
        Samples by true and predicted class, if there are few classes.
    confusions : list of Confusion
        The most frequent ones, if there are many classes.
    """

    rows: list[ClassRow]
    names: list[str]
    matrix: list[list[int]]
    confusions: list[Confusion]


def class_tables(
    names: tuple[str, ...],
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    linear: NDArray[np.int64] | None = None,
) -> ClassTables:
    """Return how well samples are classified, class by class.

    Parameters
    ----------
    names : tuple of str
        Of the classes, by number.
    truth, predicted : ndarray of int64, shape (n,)
        Class of every sample, and what a head says of it.
    linear : ndarray of int64, shape (n,), optional
        What another head says.

    Examples
    --------
    >>> class_tables(("ant", "bee"), np.array([0, 0, 1]), np.array([0, 1, 1])).matrix
    [[1, 1], [0, 1]]
    """
    k = len(names)
    samples = np.bincount(truth, minlength=k)
    hits = np.bincount(truth[predicted == truth], minlength=k)
    others = None if linear is None else np.bincount(truth[linear == truth], minlength=k)
    rows = [
        ClassRow(names[i], int(n), float(hits[i] / n), None if others is None else float(others[i] / n))
        for i, n in enumerate(samples)
        if n
    ]
    if k <= MOST_CONFUSED:
        matrix = np.zeros((k, k), np.int64)
        np.add.at(matrix, (truth, predicted), 1)
        return ClassTables(rows, list(names), matrix.tolist(), [])
    wrong = predicted != truth
    pairs, counts = np.unique(np.stack([truth[wrong], predicted[wrong]]), axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:LISTED]
    confusions = [Confusion(names[pairs[0, i]], names[pairs[1, i]], int(counts[i])) for i in most]
    return ClassTables(sorted(rows, key=lambda row: row.right)[:MOST], [], [], confusions)
