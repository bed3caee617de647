"""Statistics per feature over the training samples, in one Dask pass: moments, range and share of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute import Progress, scratch, workers
from pipeline.joined_store import JoinedStore
from store.activations import ActivationStore
from store.layout import ChunkRef, Split
from store.results import Result, find_result, write_result

Stripe = tuple[str, int]
"""A layer's name and the number of a chunk along its features: the unit of work of a pass."""
ARRAYS = ("mean", "m2", "minimum", "maximum", "zeros")


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
    zeros : ndarray of int64, shape (feature,)
        Samples whose value is exactly 0.
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    zeros: NDArray[np.int64]

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation with division by the count, so that standardised columns have the norm √n."""
        return np.sqrt(self.m2 / self.count)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Features with one value only; standardising makes them 0, and they are never selected."""
        return self.minimum == self.maximum

    @property
    def zero_share(self) -> NDArray[np.float64]:
        """Share of samples whose value is exactly 0, as after a ReLU."""
        return self.zeros / self.count


def block_moments(x: torch.Tensor) -> Moments:
    """Return the moments of a block of float32 values, shape (feature, sample); each row is left less its first value.

    The first value is within √n standard deviations of the mean, so the variance, as the difference of sums of what is
    left, loses at most n units in the last place of double precision.
    """
    n_features, n = x.shape
    mean, m2 = np.empty(n_features), np.empty(n_features)
    zeros = np.empty(n_features, np.int64)
    # Compiled loops do not vectorise the least and the most of floating-point numbers; PyTorch does.
    low, high = x.amin(1).numpy(), x.amax(1).numpy()
    _shift_rows(x.numpy(), mean, m2, zeros)
    return Moments(n, mean, m2, low, high, zeros)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "nnan"})
def _shift_rows(
    x: NDArray[np.float32],
    mean: NDArray[np.float64],
    m2: NDArray[np.float64],
    zeros: NDArray[np.int64],
) -> None:
    """Measure and shift row by row; nothing is left of a constant row, and so it has no deviation at all."""
    n = x.shape[1]
    for j in range(x.shape[0]):
        row = x[j]
        origin = row[0]
        none = np.int32(0)
        # Two loops of one width each take less time than one of both; the row stays in the first-level cache.
        for i in range(n):
            none += np.int32(row[i] == 0)
            row[i] -= origin
        total, squares = 0.0, 0.0
        for i in range(n):
            wide = np.float64(row[i])
            total += wide
            squares += wide * wide
        mean[j], m2[j], zeros[j] = origin + total / n, max(squares - total * total / n, 0.0), none


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
    return Moments(n, a.mean + delta * (b.count / n), m2, low, high, a.zeros + b.zeros)


def concatenate(parts: Sequence[Moments]) -> Moments:
    """Join the moments of consecutive features over the same samples."""
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS)
    return Moments(parts[0].count, *arrays)


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


def compute_statistics(
    store: ActivationStore,
    split: str = "train",
    progress: Progress | None = None,
    *,
    dask_address: str | None = None,
) -> Moments:
    """Return the statistics of a split, from the store if they are there, else by one pass that stores them.

    Parameters
    ----------
    store : ActivationStore
        A complete store; of a joined one each part keeps its own.
    split : str
        The samples to use; statistics for a head must come from training samples alone.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    dask_address : str, optional
        A running Dask scheduler, whose workers do the pass; threads of this process otherwise.

    Returns
    -------
    Moments
        Over all features, by global index.

    Raises
    ------
    DamagedStoreError
        If a chunk is not what was committed.
    InvalidInputError
        If there is no such split, or no such scheduler.
    ClusterError
        If the cluster fails.
    """
    if isinstance(store, JoinedStore):
        return concatenate(
            [compute_statistics(one, split, progress, dask_address=dask_address) for one in store.stores]
        )
    chosen = store.split(split)
    found = find_statistics(store, split)
    if found is not None:
        return found
    with workers(dask_address) as pool:
        parts = pool.map(_stripe_moments, store, chosen, stripes(store), stage="statistics", progress=progress)
    moments = concatenate(parts)
    save_statistics(store, split, moments)
    return moments


def _stripe_moments(store: ActivationStore, split: Split, stripe: Stripe) -> Moments:
    total: Moments | None = None
    for block in range(split.n_blocks):
        total = merge(total, block_moments(read_wide(store, ChunkRef(split.name, *stripe, block))))
    assert total is not None
    return total


def save_statistics(store: ActivationStore, split: str, moments: Moments) -> Result:
    """Store the statistics of a split beside the activations, with a summary of every layer among the facts."""
    arrays = {name: (getattr(moments, name), ("feature",)) for name in (*ARRAYS, "constant")}
    constant, share = moments.constant, moments.zero_share
    parts = {n: slice(a.offset, a.offset + a.n_features) for n, a in store.layers.items()}
    layers = {
        name: {
            "features": part.stop - part.start,
            "constant": int(constant[part].sum()),
            "zero_share": round(float(share[part].mean()), 6),
        }
        for name, part in parts.items()
    }
    facts = {"count": moments.count, "constant_features": int(constant.sum()), "layers": layers}
    return write_result(store, "statistics", _inputs(split), arrays, facts)


def find_statistics(store: ActivationStore, split: str) -> Moments | None:
    """Return the stored statistics of a split, or None."""
    result = find_result(store, "statistics", _inputs(split))
    if result is None:
        return None
    return Moments(int(result.facts["count"]), *(result.arrays[name] for name in ARRAYS))


def _inputs(split: str) -> dict[str, Any]:
    return {"split": split, "measures": list(ARRAYS)}
