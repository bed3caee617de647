"""L2 norms of the samples of a block, compiled: one pass over half precision, without holding the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from store.writer import LEAST_SQUARE_OF_INFINITY, PART_VALUES, layer_norms


def compiled_norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return what `store.writer.layer_norms` does, with the same bits.

    Parameters
    ----------
    values : ndarray, shape (feature, sample)
        As stored; anything but native float16 is left to `layer_norms`.

    Returns
    -------
    ndarray of float32, shape (sample,)
        The norms; not finite where a value is not.
    """
    if values.dtype != np.float16:
        return layer_norms(values)
    total = np.zeros(values.shape[1])
    bits = np.ascontiguousarray(values).view(np.int16)
    for part in np.array_split(bits, max(1, values.size // PART_VALUES)):
        squares = np.zeros(part.shape[1], np.float32)
        _add_squares(part, squares)
        if squares.max(initial=0) >= LEAST_SQUARE_OF_INFINITY:
            return layer_norms(values)
        total += squares
    return np.sqrt(total).astype(np.float32)


@njit(nogil=True, cache=True)
def _add_squares(halves: NDArray[np.int16], squares: NDArray[np.float32]) -> None:
    """Add the squares of each column, row by row, widened as `store.layout.widen` does."""
    wide = np.empty(halves.shape[1], np.float32)
    bits = wide.view(np.int32)
    for row in range(halves.shape[0]):
        for column in range(halves.shape[1]):
            bits[column] = (np.int32(halves[row, column]) & np.int32(0x7FFF)) << np.int32(13)
        for column in range(halves.shape[1]):
            value = wide[column] * np.float32(2.0**112)
            squares[column] += value * value
