"""An activation store as a `ColumnSource`: normalised on the fly, scanned by Dask, never held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute import Item, Progress, Shared, Threads, Value, Workers, n_cores, workers
from pipeline.group_lasso.source import ColumnSource, FirstPass
from pipeline.joined_source import JoinedSource
from pipeline.joined_store import JoinedStore, join_stores
from pipeline.layer_view import LayerView
from pipeline.memory import DEFAULT_MEMORY
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
from store.layout import ChunkRef, Split, locate

_USUAL_OUTPUTS = 64


@dataclass(frozen=True)
class _Scan:
    """What every task of a pass needs: the samples, their residuals, and what makes raw values normalised.

    Attributes
    ----------
    split : Split
        Where the samples are.
    samples : ndarray of int64, shape (n,), or None
        Which of them, increasing; all if None.
    weights : ndarray of float32, shape (K · L, n)
        Residuals, K outputs at L penalties.
    inverse_norms : ndarray of float32, shape (layer, n), or None
        For ``unit_norm``.
    """

    split: Split
    samples: NDArray[np.int64] | None
    weights: NDArray[np.float32]
    inverse_norms: NDArray[np.float32] | None

    @property
    def blocks(self) -> list[int]:
        """Blocks that hold some of the samples."""
        return [block for block in range(self.split.n_blocks) if self.within(block).start < self.within(block).stop]

    def within(self, block: int) -> slice:
        """Return which of the samples a block holds."""
        start, stop = self.split.block_range(block)
        return slice(start, stop) if self.samples is None else slice(*np.searchsorted(self.samples, (start, stop)))

    def read(self, store: ActivationStore, stripe: Stripe, block: int) -> torch.Tensor:
        """Return a chunk's values, shape (feature, sample), to use before this thread reads the next one."""
        x = read_wide(store, ChunkRef(self.split.name, *stripe, block))
        if self.samples is not None:
            own = self.samples[self.within(block)] - self.split.block_range(block)[0]
            x = x.index_select(1, torch.from_numpy(own))
        if self.inverse_norms is not None:
            row = list(store.layers).index(stripe[0])
            x.mul_(torch.from_numpy(self.inverse_norms[row, self.within(block)]))
        return x

    def products(self, shifted: torch.Tensor, origin: torch.Tensor, block: int) -> torch.Tensor:
        """Return RᵀX over a block, shape (K · L, feature), of what was left of values, and of what they are less of.

        Without what all samples have in common, single precision loses nothing that matters.
        """
        # A copy, since the last bits of a product depend on where in memory its factors begin.
        own = torch.from_numpy(self.weights[:, self.within(block)]).clone(memory_format=torch.contiguous_format)
        # With the few residuals on the left it takes a third of the time of the same product the other way round.
        return (own @ shifted.T).double().addr_(own.sum(1, dtype=torch.float64), origin)


class _Scored(NamedTuple):
    moments: Moments
    norms: NDArray[np.float64]


def _score_and_measure(store: ActivationStore, scan: _Scan, stripe: Stripe) -> _Scored:
    moments: Moments | None = None
    products: torch.Tensor | None = None
    for block in scan.blocks:
        x = scan.read(store, stripe, block)
        origin = x[:, 0].double()
        moments = merge(moments, block_moments(x))
        product = scan.products(x, origin, block)
        products = product if products is None else products.add_(product)
    assert moments is not None
    assert products is not None
    total = torch.from_numpy(scan.weights).sum(1, dtype=torch.float64)
    return _Scored(moments, _norms(products.addr_(total, torch.from_numpy(moments.mean), alpha=-1))[0])


def _score(store: ActivationStore, shared: tuple[_Scan, int], stripe: Stripe) -> NDArray[np.float64]:
    scan, n_penalties = shared
    first: torch.Tensor | None = None
    products: torch.Tensor | None = None
    for block in scan.blocks:
        x = scan.read(store, stripe, block)
        origin = x[:, 0].double()
        # Residuals sum to zero over all samples, so that one number less of a feature makes no difference.
        first = origin if first is None else first
        product = scan.products(x.sub_(origin.float()[:, None]), origin - first, block)
        products = product if products is None else products.add_(product)
    assert products is not None
    return _norms(products, n_penalties)


def _norms(products: torch.Tensor, n_penalties: int = 1) -> NDArray[np.float64]:
    """Return the norms over the K outputs of products of shape (K · L, feature), shape (L, feature)."""
    return products.view(-1, n_penalties, products.shape[1]).square_().sum(0).sqrt_().numpy()


class StoreSource:
    """The features of one split of a store, normalised, as the solver wants them.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    normalization : {"unit_norm", "standardize", "none"}
        As in section 6 of the design; statistics come from the training samples alone.
    split : str
        The training samples.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` during passes.
    pool : Workers, optional
        Who scans: the threads of this process, as many as it may use cores, if not given.
    samples : ndarray of int64, shape (n,), optional
        Which samples of the split are used, as for a fold, in increasing order; all if not given. Of the others nothing
        has any influence, on statistics either.
    """

    def __init__(
        self,
        store: ActivationStore,
        normalization: Normalization,
        split: str = "train",
        progress: Progress | None = None,
        pool: Workers | None = None,
        samples: NDArray[np.int64] | None = None,
    ) -> None:
        self.store = store
        self.normalization = normalization
        self.split = store.split(split)
        self.samples = samples
        self.progress = progress
        self.pool = pool or Threads(n_cores())
        self.passes = 0
        self.bytes_read = 0
        self._inverse_norms: NDArray[np.float32] | None = None
        if normalization == "unit_norm":
            self._inverse_norms = inverse(store.norms(split)[:, slice(None) if samples is None else samples])
        self._rows = {name: row for row, name in enumerate(store.layers)}
        self._mean = np.zeros(store.n_features)
        self._scale = np.ones(store.n_features)

    @property
    def n_samples(self) -> int:
        """Number of samples n."""
        return self.split.n_samples if self.samples is None else len(self.samples)

    @property
    def n_features(self) -> int:
        """Number of features p."""
        return self.store.n_features

    def scan_bytes(self, n_outputs: int) -> int:
        """Return the bytes that a scan with so many residual columns needs in this process: none on a cluster."""
        return self.pool.n_threads * thread_bytes(self.store, self.split, n_outputs)

    def first_pass(self, residual: NDArray[np.float64]) -> FirstPass:
        """Score every feature against one residual and measure the columns; keeps the statistics of a split if new.

        Parameters
        ----------
        residual : ndarray of float64, shape (n, K)
            Residual of the intercept-only model.

        Returns
        -------
        FirstPass
            Scores and centred column norms of all p features.
        """
        scored = self._map(_score_and_measure, self._scan(residual), stripes(self.store))
        moments = concatenate([s.moments for s in scored])
        self._mean = moments.mean
        if self.normalization == "standardize":
            self._scale = inverse(moments.std).astype(np.float64)
        whole = self.samples is None and self.normalization != "unit_norm"
        if whole and find_statistics(self.store, self.split.name) is None:
            save_statistics(self.store, self.split.name, moments)
        scores = np.concatenate([s.norms for s in scored])
        return FirstPass(scores * self._scale, np.sqrt(moments.m2) * self._scale)

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
        n, _, n_penalties = residuals.shape
        shared = self._scan(residuals.reshape(n, -1)), n_penalties
        norms = np.concatenate(self._map(_score, shared, stripes(self.store)), axis=1).T
        norms *= self._scale[:, None]
        return norms

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
        before = self.store.reads.n_bytes
        values = read_samples(self.store, self.split.name, indices, self.samples)
        self.bytes_read += self.store.reads.n_bytes - before
        if self._inverse_norms is not None:
            for layer, positions in locate(tuple(self.store.layers.values()), indices):
                values[:, positions] *= self._inverse_norms[self._rows[layer.name]][:, None]
        elif self.normalization == "standardize":
            values -= self._mean[indices].astype(np.float32)
            values *= self._scale[indices].astype(np.float32)
        return values

    def _scan(self, residuals: NDArray[np.float64]) -> _Scan:
        return _Scan(self.split, self.samples, np.ascontiguousarray(residuals.T, np.float32), self._inverse_norms)

    def _map(
        self,
        function: Callable[[ActivationStore, Shared, Item], Value],
        shared: Shared,
        items: Sequence[Item],
    ) -> list[Value]:
        stage = f"pass {self.passes + 1} over all features"
        found = self.pool.map(function, self.store, shared, items, stage=stage, progress=self.progress)
        self.passes += 1
        self.bytes_read += sum(self.store.chunk_bytes(ref) for ref in self.store.chunks(self.split.name))
        return found


def read_samples(
    store: ActivationStore, split: str, indices: NDArray[np.int64], samples: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """Return chosen features of chosen samples of a split, or of all, shape (sample, m), in Fortran order."""
    if samples is None:
        return store.columns(split, indices)
    first = int(samples.min(initial=store.split(split).n_samples - 1))
    span = store.columns(split, indices, slice(first, int(samples.max(initial=first)) + 1))
    return np.take(span.T, samples - first, axis=1).T


def thread_bytes(store: ActivationStore, split: Split, n_outputs: int) -> int:
    """Return the bytes that one thread needs to scan: a chunk as stored, as widened, and its products."""
    largest = 0
    for layer in store.layers.values():
        values = layer.chunk_features * split.block_samples
        products = (
            layer.chunk_features * n_outputs * (np.dtype(np.float32).itemsize + 2 * np.dtype(np.float64).itemsize)
        )
        largest = max(largest, values * (store.dtype.itemsize + np.dtype(np.float32).itemsize) + products)
    return largest


@contextmanager
def open_source(
    stores: ActivationStore | Sequence[ActivationStore],
    normalization: str,
    split: str = "train",
    progress: Progress | None = None,
    *,
    memory: int = DEFAULT_MEMORY,
    dask_address: str | None = None,
    samples: NDArray[np.int64] | None = None,
) -> Iterator[ColumnSource]:
    """Provide a split of one store, or of several joined by the names of their samples, as a source.

    Parameters
    ----------
    stores : ActivationStore or sequence of ActivationStore
        Features count over the stores in order; samples are in the order of the first.
    normalization : str
        As in section 6 of the design.
    split : str
        The training samples.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` during passes.
    memory : int
        Bytes of this process, a quarter of which the threads that scan may use; at least one thread scans.
    dask_address : str, optional
        A running Dask scheduler, whose workers scan instead.
    samples : ndarray of int64, shape (n,), optional
        Which samples of the split of the first store are used, in increasing order; all if not given.

    Raises
    ------
    InvalidInputError
        If the normalization is unknown, the stores do not hold the same samples, or there is no such scheduler.
    """
    if normalization not in NORMALIZATIONS:
        raise InvalidInputError(f"normalization={normalization!r} is unknown; {suggest(normalization, NORMALIZATIONS)}")
    chosen = cast("Normalization", normalization)
    store = stores if isinstance(stores, ActivationStore) else join_stores(stores)
    each = store.stores if isinstance(store, JoinedStore) else [store]
    if dask_address is not None and any(isinstance(one, LayerView) for one in each):
        raise InvalidInputError("workers of a cluster see whole stores only; scan some of the layers without one.")
    hungry = max(thread_bytes(one, one.split(split), _USUAL_OUTPUTS) for one in each)
    rows = store.rows(split) if isinstance(store, JoinedStore) else []
    used: list[NDArray[np.int64] | None] = [samples] * len(each)
    if samples is not None and rows:
        used = [np.sort(own[samples]) for own in rows]
        # Where each of the chosen samples is among those of a store, which are read in its own order.
        rows = [np.argsort(np.argsort(own[samples])) for own in rows]
    with workers(dask_address, max(1, min(n_cores(), memory // 4 // hungry))) as pool:
        sources = [StoreSource(one, chosen, split, progress, pool, own) for one, own in zip(each, used, strict=True)]
        yield JoinedSource(sources, rows) if rows else sources[0]
