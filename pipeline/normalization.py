"""The normalizations of the method (design section 6): what the head and the selection see instead of raw values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.statistics import block_moments
from store.errors import InvalidInputError, suggest
from store.layout import Layer, locate

Normalization = Literal["unit_norm", "standardize", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


class Layered(Protocol):
    """Features in layers, such as a store's."""

    @property
    def layers(self) -> Mapping[str, Layer]: ...


def inverse(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return 1 / values, and 0 where a value is 0, so that empty vectors and constant features stay zero."""
    wide = np.asarray(values, np.float64)
    return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide > 0).astype(np.float32)


def renormalize(store: Layered, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Divide each layer's selected sub-vector by its L2 norm, in place: what the reference does in the refit.

    Parameters
    ----------
    store : ActivationStore or Layered
        Says which layer an index belongs to.
    indices : ndarray of int64, shape (m,)
        Global indices of the columns.
    values : ndarray of float32, shape (sample, m)
        Raw values of those columns; overwritten.
    """
    for _, positions in locate(tuple(store.layers.values()), indices):
        part = values[:, positions]
        values[:, positions] = part * inverse(np.linalg.norm(part, axis=1))[:, None]


def fit_normalizer(
    store: Layered, indices: NDArray[np.int64], normalization: str, raw: NDArray[np.float32]
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return what makes gathered columns what a head sees, with statistics of given training samples alone.

    Parameters
    ----------
    store : ActivationStore or Layered
        Says which layer an index belongs to.
    indices : ndarray of int64, shape (m,)
        Global indices of the columns.
    normalization : {"unit_norm", "standardize", "none"}
        As in section 6 of the design.
    raw : ndarray of float32, shape (sample, m)
        Raw values of those columns for the training samples; not changed.

    Returns
    -------
    callable
        From raw columns of any samples, shape (sample, m), to new, normalised ones.

    Raises
    ------
    InvalidInputError
        If the normalization is unknown.
    """
    check_normalization(normalization)
    if normalization == "standardize":
        moments = block_moments(torch.tensor(raw.T))
        mean, scale = moments.mean.astype(np.float32), inverse(moments.std)
        return lambda values: (values - mean) * scale

    def apply(values: NDArray[np.float32]) -> NDArray[np.float32]:
        values = values.copy(order="K")
        if normalization == "unit_norm":
            renormalize(store, indices, values)
        return values

    return apply


def check_normalization(name: str) -> None:
    """Refuse a normalization that is unknown.

    Raises
    ------
    InvalidInputError
        If it is.
    """
    if name not in NORMALIZATIONS:
        raise InvalidInputError(f"normalization={name!r} is unknown; {suggest(name, NORMALIZATIONS)}")
