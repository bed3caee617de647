"""Standardisation statistics: mean and variance per feature over the training samples, in one Dask pass."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute import Progress, map_tasks, scratch
from store.activations import ActivationStore
from store.layout import ChunkRef
from store.results import Result, find_result, write_result

Stripe = tuple[str, int]
"""A layer's name and the number of a chunk along its features: the unit of work of a pass."""


@dataclass(frozen=True)
class Moments:
    """Moments of some features over some samples, in double precision.

    Attributes
    ----------
    count : int
        Samples seen.
    mean : ndarray of float64, shape (feature,)
        Mean.
    m2 : ndarray of float64, shape (feature,)
        Sum of squared deviations from the mean; exactly 0 for a constant feature.
    minimum, maximum : ndarray of float32, shape (feature,)
        Range.
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation with division by the count, so that standardised columns have the norm √n."""
        return np.sqrt(self.m2 / self.count)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Features with one value only; standardising makes them 0, and they are never selected."""
        return self.minimum == self.maximum


def block_moments(x: torch.Tensor) -> Moments:
    """Return the moments of one block of float32 values, shape (feature, sample), and centre it in place."""
    n_features, n = x.shape
    mean, m2 = np.empty(n_features), np.empty(n_features)
    low, high = np.empty(n_features, np.float32), np.empty(n_features, np.float32)
    _centre_rows(x.numpy(), mean, m2, low, high)
    return Moments(n, mean, m2, low, high)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "nnan"})
def _centre_rows(
    x: NDArray[np.float32],
    mean: NDArray[np.float64],
    m2: NDArray[np.float64],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
) -> None:
    """Measure and centre row by row: a row stays in the first-level cache between its two loops."""
    n = x.shape[1]
    for j in range(x.shape[0]):
        row = x[j]
        total, least, most = 0.0, row[0], row[0]
        for i in range(n):
            total += row[i]
            least, most = min(least, row[i]), max(most, row[i])
        # A constant row is exactly zero after centring, whatever the rounding of its sum.
        centre = total / n if least < most else np.float64(least)
        squares = 0.0
        for i in range(n):
            deviation = row[i] - centre
            squares += deviation * deviation
            row[i] = np.float32(deviation)
        mean[j], m2[j], low[j], high[j] = centre, squares, least, most


def merge(a: Moments | None, b: Moments) -> Moments:
    """Merge the moments of two sets of samples (Chan, Golub and LeVeque, 1983).

    Parameters
    ----------
    a, b : Moments
        Of disjoint sets of samples; `a` may be None for none yet.
    """
    if a is None:
        return b
    n = a.count + b.count
    delta = b.mean - a.mean
    low, high = np.minimum(a.minimum, b.minimum), np.maximum(a.maximum, b.maximum)
    m2 = np.where(low == high, 0.0, a.m2 + b.m2 + delta**2 * (a.count * b.count / n))
    return Moments(n, a.mean + delta * (b.count / n), m2, low, high)


def concatenate(parts: list[Moments]) -> Moments:
    """Join the moments of consecutive features over the same samples."""
    return Moments(
        parts[0].count,
        np.concatenate([p.mean for p in parts]),
        np.concatenate([p.m2 for p in parts]),
        np.concatenate([p.minimum for p in parts]),
        np.concatenate([p.maximum for p in parts]),
    )


def stripes(store: ActivationStore) -> list[Stripe]:
    """Return the units of work of a pass, in the order of the global feature index."""
    return [(layer.name, chunk) for layer in store.layers.values() for chunk in range(layer.n_chunks)]


def read_wide(store: ActivationStore, ref: ChunkRef) -> torch.Tensor:
    """Return one chunk as a float32 tensor, shape (feature, sample), to use before this thread reads the next one.

    PyTorch widens half precision several times faster than NumPy, and the cast dominates a pass.
    """
    values = store.read_chunk(ref, scratch(store.chunk_bytes(ref)))
    wide = torch.from_numpy(scratch(4 * values.size, "widen")).view(torch.float32).view(values.shape)
    return wide.copy_(torch.from_numpy(values))


def compute_statistics(store: ActivationStore, split: str = "train", progress: Progress | None = None) -> Moments:
    """Return the statistics of a split, from the store if they are there, else by one pass that stores them.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    split : str
        The samples to use; statistics for a head must come from training samples alone.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Moments
        Over all features, by global index.

    Raises
    ------
    DamagedStoreError
        If a chunk is not what was committed.
    """
    found = find_statistics(store, split)
    if found is not None:
        return found
    blocks = range(store.split(split).n_blocks)

    def work(stripe: Stripe) -> Moments:
        total: Moments | None = None
        for block in blocks:
            total = merge(total, block_moments(read_wide(store, ChunkRef(split, *stripe, block))))
        assert total is not None
        return total

    moments = concatenate(map_tasks(work, stripes(store), stage="statistics", progress=progress))
    save_statistics(store, split, moments)
    return moments


def save_statistics(store: ActivationStore, split: str, moments: Moments) -> Result:
    """Store the statistics of a split beside the activations."""
    arrays = {k: (getattr(moments, k), ("feature",)) for k in ("mean", "m2", "minimum", "maximum")}
    facts = {"count": moments.count, "constant_features": int(moments.constant.sum())}
    return write_result(store, "statistics", {"split": split}, arrays, facts)


def find_statistics(store: ActivationStore, split: str) -> Moments | None:
    """Return the stored statistics of a split, or None."""
    result = find_result(store, "statistics", {"split": split})
    if result is None:
        return None
    a = result.arrays
    return Moments(int(result.facts["count"]), a["mean"], a["m2"], a["minimum"], a["maximum"])
