"""The normalizations of the method (design section 6): what the head and the selection see instead of raw values."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from store.activations import ActivationStore
from store.layout import locate

Normalization = Literal["unit_norm", "standardize", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


def inverse(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return 1 / values, and 0 where a value is 0, so that empty vectors and constant features stay zero."""
    wide = np.asarray(values, np.float64)
    return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide > 0).astype(np.float32)


def renormalize(store: ActivationStore, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Divide each layer's selected sub-vector by its L2 norm, in place: what the reference does in the refit.

    Parameters
    ----------
    store : ActivationStore
        Says which layer an index belongs to.
    indices : ndarray of int64, shape (m,)
        Global indices of the columns.
    values : ndarray of float32, shape (sample, m)
        Raw values of those columns; overwritten.
    """
    for _, positions in locate(tuple(store.layers.values()), indices):
        part = values[:, positions]
        values[:, positions] = part * inverse(np.linalg.norm(part, axis=1))[:, None]
