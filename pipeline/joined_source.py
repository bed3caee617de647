"""Features of several sources side by side as one `ColumnSource`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso.source import ColumnSource, FirstPass

Part = TypeVar("Part")


class JoinedSource:
    """The features of several sources, in order, over the same samples.

    Parameters
    ----------
    sources : sequence of ColumnSource
        At least one.
    rows : sequence of ndarray of int64, shape (n,)
        By source, where each sample of the first one is.
    """

    def __init__(self, sources: Sequence[ColumnSource], rows: Sequence[NDArray[np.int64]]) -> None:
        self.sources = list(sources)
        self._rows = list(rows)
        self._back = [np.argsort(own) for own in rows]
        self._offsets = np.cumsum([0, *(source.n_features for source in sources)])

    @property
    def n_samples(self) -> int:
        """Number of samples n."""
        return self.sources[0].n_samples

    @property
    def n_features(self) -> int:
        """Number of features p over all sources."""
        return int(self._offsets[-1])

    @property
    def bytes_read(self) -> int:
        """Bytes of feature data read so far, from all sources."""
        return sum(source.bytes_read for source in self.sources)

    @property
    def passes(self) -> int:
        """Scans of all features so far."""
        return max(source.passes for source in self.sources)

    def scan_bytes(self, n_outputs: int) -> int:
        """Return the bytes of memory that a scan with so many residual columns needs; sources are scanned in turn."""
        return max(source.scan_bytes(n_outputs) for source in self.sources)

    def first_pass(self, residual: NDArray[np.float64]) -> FirstPass:
        """Score every feature of every source against one residual, shape (n, K), and measure the columns."""
        parts = self._each(lambda source, back: source.first_pass(residual[back]))
        return FirstPass(
            np.concatenate([part.scores for part in parts]), np.concatenate([part.column_norms for part in parts])
        )

    def correlate(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score every feature of every source against residuals of shape (n, K, L); returns shape (p, L)."""
        return np.concatenate(self._each(lambda source, back: source.correlate(residuals[back])))

    def columns(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fetch normalised columns of shape (n, m), Fortran order, in the order of the indices."""
        values = np.empty((self.n_samples, len(indices)), np.float32, order="F")
        owner = np.searchsorted(self._offsets, indices, side="right") - 1
        for number, (source, rows) in enumerate(zip(self.sources, self._rows, strict=True)):
            own = np.flatnonzero(owner == number)
            if len(own):
                values[:, own] = source.columns(indices[own] - self._offsets[number])[rows]
        return values

    def _each(self, call: Callable[[ColumnSource, NDArray[np.int64]], Part]) -> list[Part]:
        return [call(source, back) for source, back in zip(self.sources, self._back, strict=True)]
