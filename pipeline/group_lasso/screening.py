"""The columns held in memory, and lazy bounds on their scores that spare most of the optimality checks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.budget import CHUNK_ELEMENTS, FETCH_ELEMENTS, MemoryPlan
from pipeline.group_lasso.kernels import centre_into
from pipeline.group_lasso.losses import Array
from pipeline.group_lasso.source import ColumnSource

Slots = NDArray[np.int64]


def spectral_norm(change: Array) -> float:
    """Return the largest singular value of a tall matrix of shape (n, K), through its K × K Gram matrix.

    Parameters
    ----------
    change : ndarray of shape (n, K)
        For example the difference of two residuals.

    Returns
    -------
    float
        ``max ‖change · u‖₂`` over unit u.
    """
    return float(np.sqrt(max(np.linalg.eigvalsh(change.T @ change)[-1], 0.0)))


class ColumnCache:
    """Centred float32 columns of the features that matter, within a fixed number of slots.

    Centring leaves the problem unchanged, because the intercept is free, and takes the intercept out of the inner
    loop's way. A score ``c_j = ‖X̃_jᵀR‖/n`` computed at an earlier residual is kept as the bound
    ``c_j + ‖X̃_j‖ ‖ΔR‖₂ / n``, and computed anew only if the bound does not settle the question asked.

    Parameters
    ----------
    source : ColumnSource
        Where columns come from.
    weights : ndarray of shape (n,)
        Sample weights with mean one; columns are centred by the weighted mean.
    norms : ndarray of shape (p,)
        Column norms from the first pass.
    plan : MemoryPlan
        How many columns may be held.
    """

    def __init__(self, source: ColumnSource, weights: Array, norms: Array, plan: MemoryPlan) -> None:
        self._source = source
        self._mean_weights = weights / source.n_samples
        self._norms = norms / source.n_samples
        self.plan = plan
        self.capacity = capacity = plan.capacity
        self.columns = np.empty((capacity, source.n_samples), dtype=np.float32)
        self.size = 0
        self._means = np.empty(capacity)
        self._feature = np.full(capacity, -1, dtype=np.int64)
        self._slot = np.full(source.n_features, -1, dtype=np.int64)
        self._score = np.empty(capacity)
        self._drift_then = np.empty(capacity)
        self._drift = 0.0
        self._residual: Array | None = None

    def snapshot(self) -> ColumnCache:
        """Return a cache of the same columns that bounds scores on its own, for use by another thread.

        Nothing may be fetched by either while the other is in use.
        """
        twin = copy.copy(self)
        twin._score, twin._drift_then = self._score[: self.size].copy(), self._drift_then[: self.size].copy()
        return twin

    @property
    def held(self) -> Slots:
        """Slots in use."""
        return np.arange(self.size)

    def slots(self, features: NDArray[np.int64]) -> Slots:
        """Return the slots of `features`, −1 where a feature is not held.

        Parameters
        ----------
        features : ndarray of shape (m,), int64
            Feature indices.

        Returns
        -------
        ndarray of shape (m,), int64
            Slots.
        """
        return self._slot[features]

    def features(self, slots: Slots) -> NDArray[np.int64]:
        """Return the features in `slots`.

        Parameters
        ----------
        slots : ndarray of shape (m,), int64
            Occupied slots.

        Returns
        -------
        ndarray of shape (m,), int64
            Feature indices.
        """
        return self._feature[slots]

    def means(self, slots: Slots) -> Array:
        """Return the means that were subtracted from the columns in `slots`.

        Parameters
        ----------
        slots : ndarray of shape (m,), int64
            Occupied slots.

        Returns
        -------
        ndarray of shape (m,), float64
            Weighted column means.
        """
        return self._means[slots]

    def require(self, features: NDArray[np.int64]) -> None:
        """Fetch what is missing of `features`, in place of the held columns with the lowest scores.

        Parameters
        ----------
        features : ndarray of shape (m,), int64
            Sorted feature indices.

        Raises
        ------
        InvalidInputError
            If they do not fit.
        """
        if len(features) > self.capacity:
            raise self.plan.too_small(len(features))
        missing = features[self._slot[features] < 0]
        free = self.capacity - self.size
        slots = np.arange(self.size, self.size + min(free, len(missing)))
        if len(missing) > free:
            evictable = np.ones(self.size, dtype=np.bool_)
            held = self._slot[features]
            evictable[held[held >= 0]] = False
            order = np.flatnonzero(evictable)
            order = order[np.argsort(self._score[order], kind="stable")][: len(missing) - free]
            self._slot[self._feature[order]] = -1
            slots = np.concatenate([slots, order])
        self.size = max(self.size, int(slots.max(initial=-1)) + 1)
        step = max(1, FETCH_ELEMENTS // self._source.n_samples)
        for start in range(0, len(missing), step):
            part = slice(start, start + step)
            fetched = np.ascontiguousarray(self._source.columns(missing[part]).T)
            centre_into(fetched, self._mean_weights, slots[part], self.columns, self._means)
        self._feature[slots] = missing
        self._slot[missing] = slots
        self._score[slots] = np.inf
        self._drift_then[slots] = self._drift

    def above(self, residual: Array, threshold: float) -> tuple[Slots, Array]:
        """Return the held columns whose score at `residual` exceeds `threshold`, the highest first.

        Parameters
        ----------
        residual : ndarray of shape (n, K)
            Its columns sum to zero.
        threshold : float
            In the units of λ.

        Returns
        -------
        slots : ndarray of shape (m,), int64
            Ties are in the order of the feature index.
        scores : ndarray of shape (m,), float64
            ``‖X̃_jᵀR‖/n``, or slightly more.
        """
        if self._residual is not None:
            self._drift += spectral_norm(residual - self._residual)
        self._residual = residual
        score, then = self._score[: self.size], self._drift_then[: self.size]
        norms = self._norms[self._feature[: self.size]]
        bound = score + norms * (self._drift - then)
        # What was computed at this very residual is known, unless it was only just fetched.
        open_slots = np.flatnonzero((bound > threshold) & ((then < self._drift) | np.isinf(score)))
        rough = np.ascontiguousarray(residual, dtype=np.float32)
        # The margin covers rounding in single precision; only where it leaves the answer open is double needed.
        margin = 1e-6 * float(np.linalg.norm(residual)) * norms
        for part, block in self.blocks(open_slots):
            chosen = open_slots[part]
            score[chosen] = np.linalg.norm(block @ rough, axis=1) / len(residual) + margin[chosen]
        then[open_slots] = self._drift
        unsure = np.flatnonzero((score > threshold) & (score <= threshold + 2 * margin))
        score[unsure] = np.linalg.norm(self.correlate(unsure, residual), axis=1)
        found = np.flatnonzero(score > threshold)
        order = np.lexsort((self._feature[found], -score[found]))
        return found[order], score[found[order]]

    def correlate(self, slots: Slots, residual: Array) -> Array:
        """Return ``X̃ᵀR/n`` for the columns in `slots`.

        Parameters
        ----------
        slots : ndarray of shape (m,), int64
            Occupied slots.
        residual : ndarray of shape (n, K)
            Any residual.

        Returns
        -------
        ndarray of shape (m, K), float64
            Accumulated in double precision.
        """
        out = np.empty((len(slots), residual.shape[1]))
        for part, block in self.blocks(slots):
            out[part] = block.astype(np.float64) @ residual
        return out / len(residual)

    def combine(self, slots: Slots, coef: Array) -> Array:
        """Return ``X̃ W`` for the columns in `slots`.

        Parameters
        ----------
        slots : ndarray of shape (m,), int64
            Occupied slots.
        coef : ndarray of shape (m, K)
            One row per slot.

        Returns
        -------
        ndarray of shape (n, K), float64
            Accumulated in double precision.
        """
        out = np.zeros((self.columns.shape[1], coef.shape[1]))
        for part, block in self.blocks(slots):
            out += block.astype(np.float64).T @ coef[part]
        return out

    def weighted_squares(self, slots: Slots, weights: Array) -> Array:
        """Return ``Σ_i x_ij² w_ik / n`` for the columns in `slots`.

        Parameters
        ----------
        slots : ndarray of shape (m,), int64
            Occupied slots.
        weights : ndarray of shape (n, L)
            Non-negative.

        Returns
        -------
        ndarray of shape (m, L), float64
            Accurate to single precision.
        """
        rough = np.ascontiguousarray(weights, dtype=np.float32)
        out = np.empty((len(slots), weights.shape[1]))
        for part, block in self.blocks(slots):
            out[part] = block**2 @ rough
        return out / len(weights)

    def blocks(self, slots: Slots) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the columns in `slots` some at a time, shape (some, n), and which of them these are."""
        step = max(1, CHUNK_ELEMENTS // self.columns.shape[1])
        for start in range(0, len(slots), step):
            part = slice(start, min(start + step, len(slots)))
            chosen = slots[part]
            contiguous = chosen[-1] - chosen[0] == len(chosen) - 1 and bool((np.diff(chosen) == 1).all())
            yield part, self.columns[chosen[0] : chosen[-1] + 1] if contiguous else self.columns[chosen]
