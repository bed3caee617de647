"""Where columns come from: the protocol the solver talks to, and its implementation over an array in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from store.errors import InvalidInputError

Normalization = Literal["none", "standardize"]

_BLOCK_ELEMENTS = 1 << 18  # a float64 block of 2 MiB stays in the second-level cache


class FirstPass(NamedTuple):
    """What the first pass over all features leaves behind.

    Attributes
    ----------
    scores : ndarray of shape (p,), float64
        ``‖X̃_jᵀ R‖₂``, not divided by the number of samples.
    column_norms : ndarray of shape (p,), float64
        ``‖X̃_j‖₂``, or the tighter ``‖X̃_j − mean(X̃_j)‖₂``: either bounds how far a score can move, because the
        residuals of a free intercept sum to zero over the samples.
    """

    scores: NDArray[np.float64]
    column_norms: NDArray[np.float64]


@runtime_checkable
class ColumnSource(Protocol):
    """Normalised features that can be scanned as a whole or fetched by index, but are never held by the solver.

    `first_pass` is called once and first; `correlate` and `columns` follow. Every method must return the same bits
    for the same arguments, whatever the number of threads. Residual columns sum to zero over the samples.
    """

    @property
    def n_samples(self) -> int:
        """Number of samples n."""

    @property
    def n_features(self) -> int:
        """Number of features p."""

    @property
    def bytes_read(self) -> int:
        """Bytes of feature data read so far."""

    @property
    def passes(self) -> int:
        """Scans of all features so far: calls of `first_pass` and `correlate`."""

    def scan_bytes(self, n_outputs: int) -> int:
        """Return the bytes of memory that a scan with so many residual columns, K · L, needs in this process."""

    def first_pass(self, residual: NDArray[np.float64]) -> FirstPass:
        """Score every feature against one residual and measure the columns, in one scan.

        Parameters
        ----------
        residual : ndarray of shape (n, K), float64
            Residual of the intercept-only model.

        Returns
        -------
        FirstPass
            Scores and column norms of all p features.
        """

    def correlate(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score every feature against several residuals, in one scan.

        Parameters
        ----------
        residuals : ndarray of shape (n, K, L), float64
            One residual per penalty.

        Returns
        -------
        ndarray of shape (p, L), float64
            ``‖X̃_jᵀ R_l‖₂``, not divided by the number of samples.
        """

    def columns(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fetch normalised columns.

        Parameters
        ----------
        indices : ndarray of shape (m,), int64
            Features, in any order, without repetition.

        Returns
        -------
        ndarray of shape (n, m), float32, Fortran order
            The columns in the order asked for.
        """


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def single_threaded_blas() -> AbstractContextManager[Any]:
    """Return a context in which matrix products do not depend on the number of threads, to the last bit.

    Returns
    -------
    context manager
        Limits the BLAS libraries of this process to one thread while it is entered.
    """
    limited: AbstractContextManager[Any] = _blas().limit(limits=1, user_api="blas")
    return limited


class ArraySource:
    """Features held in memory as one array.

    Parameters
    ----------
    X : ndarray of shape (n, p), float16, float32 or float64
        Rows are samples. Not copied, not modified.
    normalization : {"none", "standardize"}
        ``standardize`` subtracts the mean and divides by the standard deviation (division by n); constant columns
        become zero.

    Raises
    ------
    InvalidInputError
        If the array has another shape or type, or the normalization is unknown; from the first scan, if a value is
        not finite.

    Examples
    --------
    >>> import numpy as np
    >>> ArraySource(np.eye(3), "standardize").columns(np.array([0])).round(2).T
    array([[ 1.41, -0.71, -0.71]], dtype=float32)
    """

    def __init__(self, X: NDArray[Any], normalization: str = "none") -> None:
        if normalization not in ("none", "standardize"):
            message = f"normalization={normalization!r} is unknown here; valid choices are 'none', 'standardize'."
            raise InvalidInputError(message)
        if X.ndim != 2 or 0 in X.shape:
            message = f"X has shape {X.shape}; it must be a non-empty matrix of shape (samples, features)."
            raise InvalidInputError(message)
        if X.dtype not in (np.float16, np.float32, np.float64):
            message = f"X has dtype {X.dtype}; valid choices are float16, float32, float64."
            raise InvalidInputError(message)
        self._X = X
        self._standardize = normalization == "standardize"
        self._statistics: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._bytes_read = 0
        self._passes = 0

    @property
    def n_samples(self) -> int:
        """Number of samples n."""
        return int(self._X.shape[0])

    @property
    def n_features(self) -> int:
        """Number of features p."""
        return int(self._X.shape[1])

    @property
    def bytes_read(self) -> int:
        """Bytes of the array read so far."""
        return self._bytes_read

    @property
    def passes(self) -> int:
        """Scans of the whole array so far."""
        return self._passes

    def scan_bytes(self, n_outputs: int) -> int:
        """Return the bytes of memory that a scan with so many residual columns needs: two blocks per thread."""
        width = min(self.n_features, max(8, _BLOCK_ELEMENTS // self.n_samples))
        return 16 * (os.cpu_count() or 1) * width * (self.n_samples + n_outputs)

    def first_pass(self, residual: NDArray[np.float64]) -> FirstPass:
        """Score every feature against one residual; column norms are those of the centred columns.

        Parameters
        ----------
        residual : ndarray of shape (n, K), float64
            Residual of the intercept-only model.

        Returns
        -------
        FirstPass
            Scores and centred column norms of all p features.

        Raises
        ------
        InvalidInputError
            If a value is not finite.
        """
        n, p = self._X.shape
        scores, means, deviations = np.empty(p), np.empty(p), np.empty(p)

        def scan(part: slice) -> None:
            block = self._X[:, part].astype(np.float64)
            origin = block[0].copy()
            block -= origin  # makes a constant column exactly zero and the variance below well conditioned
            shift = block.sum(axis=0) / n
            variance = np.einsum("ij,ij->j", block, block) / n - shift**2
            means[part] = origin + shift
            deviations[part] = np.sqrt(np.maximum(variance, 0.0))
            scores[part] = np.linalg.norm(block.T @ residual - np.outer(shift, residual.sum(axis=0)), axis=1)

        def quietly(part: slice) -> None:  # the setting is one per thread
            with np.errstate(invalid="ignore", over="ignore"):
                scan(part)

        self._scan(quietly)
        if not np.isfinite(deviations).all():
            feature = int(np.flatnonzero(~np.isfinite(deviations))[0])
            message = f"X has a value that is not finite, or too large to square, in feature {feature}; replace it."
            raise InvalidInputError(message)
        if not self._standardize:
            self._statistics = np.zeros(p), np.ones(p)
            return FirstPass(scores, deviations * np.sqrt(n))
        inverse = np.divide(1.0, deviations, out=np.zeros(p), where=deviations > 0)
        self._statistics = means, inverse
        return FirstPass(scores * inverse, np.where(deviations > 0, np.sqrt(n), 0.0))

    def correlate(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score every feature against several residuals.

        Parameters
        ----------
        residuals : ndarray of shape (n, K, L), float64
            One residual per penalty.

        Returns
        -------
        ndarray of shape (p, L), float64
            ``‖X̃_jᵀ R_l‖₂``.
        """
        n, n_outputs, n_penalties = residuals.shape
        means, inverse = self._measured()
        stacked = np.ascontiguousarray(residuals).reshape(n, -1)
        total = stacked.sum(axis=0)
        scores = np.empty((self.n_features, n_penalties))

        def scan(part: slice) -> None:
            products = self._X[:, part].astype(np.float64).T @ stacked - np.outer(means[part], total)
            squares = (products**2).reshape(-1, n_outputs, n_penalties).sum(axis=1)
            scores[part] = np.sqrt(squares) * inverse[part, None]

        self._scan(scan)
        return scores

    def columns(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fetch normalised columns.

        Parameters
        ----------
        indices : ndarray of shape (m,), int64
            Features, in any order.

        Returns
        -------
        ndarray of shape (n, m), float32, Fortran order
            The columns in the order asked for.
        """
        means, inverse = self._measured()
        out = np.empty((self.n_samples, len(indices)), dtype=np.float32, order="F")

        def fetch(part: slice) -> None:
            chosen = indices[part]
            first, last = int(chosen[0]), int(chosen[-1]) + 1
            contiguous = last - first == len(chosen) and bool((np.diff(chosen) == 1).all())
            raw = self._X[:, first:last] if contiguous else self._X[:, chosen]
            block = raw.astype(np.float64)
            block -= means[chosen]
            block *= inverse[chosen]
            out.T[part] = block.T

        self._each_block(len(indices), fetch)
        self._bytes_read += self._X.itemsize * out.size
        return out

    def _measured(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._statistics is None:
            self.first_pass(np.zeros((self.n_samples, 1)))
        assert self._statistics is not None
        return self._statistics

    def _scan(self, work: Callable[[slice], None]) -> None:
        self._each_block(self.n_features, work)
        self._passes += 1
        self._bytes_read += self._X.nbytes

    def _each_block(self, count: int, work: Callable[[slice], None]) -> None:
        """Run `work` on fixed ranges of features, so that the result does not depend on how many threads there are."""
        width = max(8, _BLOCK_ELEMENTS // self.n_samples)

        def parts() -> Iterator[slice]:
            return (slice(start, min(start + width, count)) for start in range(0, count, width))

        with single_threaded_blas(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(work, parts()):
                pass
