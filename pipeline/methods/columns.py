"""A head on chosen columns, fitted on some samples and applied to others: what methods over a store share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads import RefitParameters, fit_heads, predict_labels
from pipeline.joined_store import joined_with
from pipeline.methods.interface import Prediction, Samples
from pipeline.normalization import fit_normalizer
from pipeline.store_source import read_samples
from store.activations import ActivationStore

Matrix = NDArray[np.float32]
ROWS = 4096
"""Samples whose columns are read at a time when a head is applied."""


class Columns:
    """Chosen columns of the samples to train on and of those to predict, the former read once.

    Parameters
    ----------
    store : ActivationStore
        The activations.
    indices : ndarray of int64, shape (m,)
        Columns by global index, increasing.
    train, held : Samples
        To fit on, and to predict.
    """

    def __init__(self, store: ActivationStore, indices: NDArray[np.int64], train: Samples, held: Samples) -> None:
        self.store, self.indices, self.train, self.held = store, indices, train, held
        self._read_before = store.reads.n_bytes
        self._train = read_samples(store, train.split, indices, train.rows)
        self._labels = store.labels(train.split)[train.rows]
        self._held: Matrix | None = None

    def fit(
        self, indices: NDArray[np.int64], normalization: str, several: Sequence[RefitParameters]
    ) -> Iterator[Prediction]:
        """Fit heads on some of the columns, by increasing global index, and predict the held samples by each.

        Facts have the number of ``features`` and of ``parameters``, and the ``bytes_read`` since the columns were
        first read, which other fits share.
        """
        at = np.searchsorted(self.indices, indices)
        raw = self._train[:, at]
        normalize = fit_normalizer(self.store, indices, normalization, raw)
        heads = fit_heads(normalize(raw), self._labels, len(self.store.class_names), several)
        parts = [[predict_labels(head, x) for head in heads] for x in map(normalize, self._parts(indices, at))]
        facts = {"features": len(indices), "bytes_read": self.store.reads.n_bytes - self._read_before}
        for head, labels in zip(heads, zip(*parts, strict=True), strict=True):
            size = head.coef.size + head.intercept.size
            yield Prediction(np.concatenate(labels), {**facts, "parameters": size, **head.facts})

    def _parts(self, indices: NDArray[np.int64], at: NDArray[np.int64]) -> Iterator[Matrix]:
        """Yield columns of the held samples: of a few samples kept for the next fit, of many read for each."""
        split, rows = self.held
        if len(rows) <= ROWS:
            if self._held is None:
                self._held = read_samples(self.store, split, self.indices, rows)
            yield self._held[:, at]
            return
        for start in range(0, len(rows), ROWS):
            yield read_samples(self.store, split, indices, rows[start : start + ROWS])


def lineage(store: ActivationStore) -> dict[str, Any]:
    """Return what says whose features a method uses."""
    return {"store": store.fingerprint, **joined_with(store)}


def refit_settings(parameters: RefitParameters) -> dict[str, Any]:
    """Return what a grid says of a refit: all but the seed, which is the protocol's."""
    return {name: value for name, value in parameters.chosen().items() if name != "seed"}
