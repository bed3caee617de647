"""An activation store as a `ColumnSource`: normalised on the fly, scanned by Dask, never held in memory."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute import Progress, map_tasks
from pipeline.group_lasso.source import FirstPass
from pipeline.normalization import NORMALIZATIONS, Normalization, inverse
from pipeline.statistics import (
    Moments,
    Stripe,
    block_moments,
    concatenate,
    find_statistics,
    merge,
    read_wide,
    save_statistics,
    stripes,
)
from store.activations import ActivationStore
from store.errors import InvalidInputError, suggest
from store.layout import ChunkRef, locate


class _Scanned(NamedTuple):
    moments: Moments
    products: NDArray[np.float64]


class StoreSource:
    """The features of one split of a store, normalised, as the solver wants them.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    normalization : {"unit_norm", "standardize", "none"}
        As in section 6 of the design; statistics come from `split` alone.
    split : str
        The training samples.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` during passes.
    """

    def __init__(
        self,
        store: ActivationStore,
        normalization: Normalization,
        split: str = "train",
        progress: Progress | None = None,
    ) -> None:
        self.store = store
        self.normalization = normalization
        self.split = store.split(split)
        self.progress = progress
        self.passes = 0
        self._bytes_at_start = store.reads.n_bytes
        self._inverse_norms = inverse(store.norms(split)) if normalization == "unit_norm" else None
        self._rows = {name: row for row, name in enumerate(store.layers)}
        self._mean = np.zeros(store.n_features)
        self._scale = np.ones(store.n_features)

    @property
    def n_samples(self) -> int:
        """Number of samples n."""
        return self.split.n_samples

    @property
    def n_features(self) -> int:
        """Number of features p."""
        return self.store.n_features

    @property
    def bytes_read(self) -> int:
        """Bytes of activations read so far."""
        return self.store.reads.n_bytes - self._bytes_at_start

    def first_pass(self, residual: NDArray[np.float64]) -> FirstPass:
        """Score every feature against one residual and measure the columns; keeps the split's statistics if new.

        Parameters
        ----------
        residual : ndarray of float64, shape (n, K)
            Residual of the intercept-only model.

        Returns
        -------
        FirstPass
            Scores and centred column norms of all p features.
        """
        weights = torch.from_numpy(residual.astype(np.float32))

        def work(stripe: Stripe) -> _Scanned:
            moments: Moments | None = None
            products: NDArray[np.float64] | None = None
            for block in range(self.split.n_blocks):
                x = self._read(stripe, block)
                part = block_moments(x)
                own = weights[slice(*self.split.block_range(block))]
                product = (x @ own).double() + torch.from_numpy(part.mean)[:, None] * own.double().sum(0)
                moments = merge(moments, part)
                products = product.numpy() if products is None else products + product.numpy()
            assert moments is not None
            assert products is not None
            return _Scanned(moments, products)

        scanned = map_tasks(work, stripes(self.store), stage="pass 1 over all features", progress=self.progress)
        self.passes += 1
        moments = concatenate([s.moments for s in scanned])
        self._mean = moments.mean
        if self.normalization == "standardize":
            self._scale = inverse(moments.std).astype(np.float64)
        if self.normalization != "unit_norm" and find_statistics(self.store, self.split.name) is None:
            save_statistics(self.store, self.split.name, moments)
        total = weights.double().sum(0).numpy()
        products = np.concatenate([s.products for s in scanned]) - self._mean[:, None] * total
        return FirstPass(np.linalg.norm(products, axis=1) * self._scale, np.sqrt(moments.m2) * self._scale)

    def correlate(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score every feature against several residuals, in one pass.

        Parameters
        ----------
        residuals : ndarray of float64, shape (n, K, L)
            One residual per penalty.

        Returns
        -------
        ndarray of float64, shape (p, L)
            Norms of the products, not divided by n.
        """
        n, k, n_penalties = residuals.shape
        weights = torch.from_numpy(residuals.reshape(n, k * n_penalties).astype(np.float32))
        mean = torch.from_numpy(self._mean.astype(np.float32))

        def work(stripe: Stripe) -> NDArray[np.float64]:
            layer = self.store.layers[stripe[0]]
            f0, f1 = (layer.offset + f for f in layer.chunk_range(stripe[1]))
            total = torch.zeros((f1 - f0, k * n_penalties), dtype=torch.float64)
            for block in range(self.split.n_blocks):
                x = self._read(stripe, block).sub_(mean[f0:f1, None])
                total += x @ weights[slice(*self.split.block_range(block))]
            norms: NDArray[np.float64] = total.reshape(-1, k, n_penalties).norm(dim=1).numpy()
            return norms

        stage = f"pass {self.passes + 1} over all features"
        norms = np.concatenate(map_tasks(work, stripes(self.store), stage=stage, progress=self.progress))
        self.passes += 1
        return norms * self._scale[:, None]

    def columns(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fetch normalised columns, reading only their bytes.

        Parameters
        ----------
        indices : ndarray of int64, shape (m,)
            Features, in any order.

        Returns
        -------
        ndarray of float32, shape (n, m), Fortran order
            The columns in the order asked for.
        """
        values = self.store.columns(self.split.name, indices)
        if self._inverse_norms is not None:
            for layer, positions in locate(tuple(self.store.layers.values()), indices):
                values[:, positions] *= self._inverse_norms[self._rows[layer.name]][:, None]
        elif self.normalization == "standardize":
            values -= self._mean[indices].astype(np.float32)
            values *= self._scale[indices].astype(np.float32)
        return values

    def _read(self, stripe: Stripe, block: int) -> torch.Tensor:
        x = read_wide(self.store, ChunkRef(self.split.name, *stripe, block))
        if self._inverse_norms is not None:
            own = self._inverse_norms[self._rows[stripe[0]], slice(*self.split.block_range(block))]
            x.mul_(torch.from_numpy(own))
        return x


def open_source(
    store: ActivationStore, normalization: str, split: str = "train", progress: Progress | None = None
) -> StoreSource:
    """Return a store's split as a source, after checking the normalization's name.

    Raises
    ------
    InvalidInputError
        If the normalization is unknown.
    """
    if normalization not in NORMALIZATIONS:
        raise InvalidInputError(f"normalization={normalization!r} is unknown; {suggest(normalization, NORMALIZATIONS)}")
    return StoreSource(store, cast("Normalization", normalization), split, progress)
