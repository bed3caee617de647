"""Refit: train a fresh, unpenalised linear head on chosen columns, and measure it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads import RefitParameters, fit_head, predict_labels
from pipeline.normalization import check_normalization, fit_normalizer
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.results import Result, find_result, write_result

__all__ = ["Head", "RefitParameters", "refit"]

VERSION = 2
"""Part of a head's identity; raised when the same parameters come to give another head."""
ROWS = 4096
"""Samples whose columns are read at a time when a head is applied."""


@dataclass(frozen=True)
class Head:
    """A trained linear head and what it achieves.

    Attributes
    ----------
    digest : str
        Name of the head in the store.
    indices : ndarray of int64, shape (m,)
        Features it reads, by global index.
    coef : ndarray of float64, shape (m, class)
        Weights on normalised features.
    intercept : ndarray of float64, shape (class,)
        Biases.
    accuracy : dict of str to float
        Share of samples classified right, by split.
    facts : dict
        Iterations, seconds, bytes read and the like.
    reused : bool
        Whether this call found it in the store.
    """

    digest: str
    indices: NDArray[np.int64]
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    accuracy: dict[str, float]
    facts: dict[str, Any]
    reused: bool


def refit(
    store: ActivationStore,
    indices: NDArray[np.int64],
    *,
    features: Mapping[str, Any],
    normalization: str,
    parameters: RefitParameters | None = None,
    train: str = "train",
) -> Head:
    """Train a head on chosen columns and measure it on every split, or return the stored one.

    Only the chosen columns are read. With ``unit_norm`` the raw columns are gathered first and each layer's part is
    normalised anew, as the reference does; with ``standardize`` mean and deviation are those of the training samples.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    indices : ndarray of int64, shape (m,)
        Global indices of the columns.
    features : mapping
        What the columns are, for lineage, such as ``{"selection": digest}``, with ``"store": fingerprint`` if the
        selection is another store's; part of the head's identity.
    normalization : {"unit_norm", "standardize", "none"}
        What the head sees.
    parameters : RefitParameters, optional
        How it is trained.
    train : str
        The training split.

    Returns
    -------
    Head
        As now stored beside the activations.

    Raises
    ------
    InvalidInputError
        If the normalization is unknown, there is no such split, no column or one class only, or an index is out of
        range.
    """
    check_normalization(normalization)
    parameters = parameters or RefitParameters()
    indices = np.sort(np.asarray(indices, np.int64))
    if len(indices) and not 0 <= indices[0] <= indices[-1] < store.n_features:
        outside = indices[0] if indices[0] < 0 else indices[-1]
        raise InvalidInputError(f"feature {outside} does not exist in store {store.uri!r} of {store.n_features:,}.")
    inputs = head_inputs(features, normalization, parameters, train)
    found = find_result(store, "heads", inputs)
    if found is not None:
        return _head(found, reused=True)
    start, bytes_before, requests_before = time.perf_counter(), store.reads.n_bytes, store.reads.n_requests
    raw, y = store.columns(train, indices), store.labels(train)
    normalize = fit_normalizer(store, indices, normalization, raw)
    x = normalize(raw)
    fitted = fit_head(x, y, len(store.class_names), parameters)
    accuracy = {}
    for split in store.splits.values():
        hits = 0
        for row in range(0, split.n_samples, ROWS):
            rows = slice(row, min(row + ROWS, split.n_samples))
            part = x[rows] if split.name == train else normalize(store.columns(split.name, indices, rows))
            hits += int((predict_labels(fitted, part) == store.labels(split.name)[rows]).sum())
        accuracy[split.name] = hits / split.n_samples
    facts = {
        "accuracy": accuracy,
        **fitted.facts,
        "seconds": round(time.perf_counter() - start, 3),
        "bytes_read": store.reads.n_bytes - bytes_before,
        "requests": store.reads.n_requests - requests_before,
    }
    arrays = {
        "indices": (indices, ("feature",)),
        "coef": (fitted.coef, ("feature", "class")),
        "intercept": (fitted.intercept, ("class",)),
    }
    return _head(write_result(store, "heads", inputs, arrays, facts), reused=False)


def head_inputs(
    features: Mapping[str, Any], normalization: str, parameters: RefitParameters, train: str
) -> dict[str, Any]:
    """Return what identifies a head of a store; see `refit`."""
    return {
        "features": dict(features),
        "normalization": normalization,
        "parameters": parameters.chosen(),
        "train": train,
        "version": VERSION,
    }


def _head(result: Result, *, reused: bool) -> Head:
    a = result.arrays
    return Head(result.digest, a["indices"], a["coef"], a["intercept"], result.facts["accuracy"], result.facts, reused)
