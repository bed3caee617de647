"""What an estimator is given: an array in memory, or samples of a store that are read when their columns are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from pipeline.group_lasso import ArraySource, ColumnSource
from pipeline.normalization import renormalize
from pipeline.store_source import open_source, read_samples
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.layout import Layer

ROWS = 4096
"""Samples of a store that are read at a time when a head is applied."""


class StoreSamples:
    """Samples of a store, of which scikit-learn's tools may take rows as of a matrix; nothing is read for that.

    Parameters
    ----------
    store : ActivationStore
        A complete store, or several joined ones.
    split : str
        Name of the split.
    rows : array_like of int, shape (n,), optional
        Which samples of the split, in which order; all if not given.

    Raises
    ------
    InvalidInputError
        If there is no such split.

    Examples
    --------
    >>> X = StoreSamples(store, "train")  # doctest: +SKIP
    >>> X.shape, X[:10].labels  # doctest: +SKIP
    """

    ndim = 2

    def __init__(self, store: ActivationStore, split: str = "train", rows: ArrayLike | None = None) -> None:
        count = store.split(split).n_samples
        self.store, self.split = store, split
        self.rows: NDArray[np.int64] = np.arange(count) if rows is None else np.asarray(rows, np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and features."""
        return len(self.rows), self.store.n_features

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of each sample, shape (n,)."""
        return self.store.labels(self.split)[self.rows]

    @property
    def layers(self) -> dict[str, Layer]:
        return self.store.layers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> StoreSamples:
        key = key[0] if isinstance(key, tuple) else key  # scikit-learn says X[rows, ...]
        return StoreSamples(self.store, self.split, np.atleast_1d(self.rows[key]))

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "samples of a store are no array, since all their features may not fit in memory; let a Head2ToeSelector "
            "choose features first."
        )

    def columns(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw columns, shape (n, m), reading only their bytes."""
        return read_samples(self.store, self.split, indices, self.rows)

    def source(self, normalization: str, memory: int) -> AbstractContextManager[ColumnSource]:
        """Provide normalised features; rows must increase."""
        whole = np.array_equal(self.rows, np.arange(self.store.split(self.split).n_samples))
        samples = None if whole else self.rows
        return open_source(self.store, normalization, self.split, memory=memory, samples=samples)

    def in_order(self, labels: NDArray[Any]) -> tuple[StoreSamples, NDArray[Any]]:
        """Return the samples as they lie in the store, with their labels.

        Raises
        ------
        InvalidInputError
            If a sample occurs twice.
        """
        order = np.argsort(self.rows, kind="stable")
        found = self[order]
        if (np.diff(found.rows) == 0).any():
            raise InvalidInputError(f"a sample of split {self.split!r} occurs twice; give every sample once.")
        return found, labels[order]

    def parts(self) -> Iterator[StoreSamples]:
        """Yield the samples a few at a time."""
        return (self[start : start + ROWS] for start in range(0, max(len(self), 1), ROWS))


class ArraySamples:
    """An array of shape (sample, feature), its features divided into layers.

    Parameters
    ----------
    x : ndarray of floats, shape (n, p)
        Checked by scikit-learn.
    layer_sizes : sequence of int, optional
        Features of each layer in turn; one layer if not given.

    Raises
    ------
    InvalidInputError
        If the sizes do not add up to the number of features.
    """

    def __init__(self, x: NDArray[Any], layer_sizes: Sequence[int] | None = None) -> None:
        self._x = x
        sizes = [int(size) for size in layer_sizes] if layer_sizes is not None else [x.shape[1]]
        if sum(sizes) != x.shape[1] or min(sizes, default=0) < 1:
            raise InvalidInputError(f"layer_sizes {sizes} must be positive and add up to {x.shape[1]}, X's features.")
        starts = accumulate(sizes[:-1], initial=0)
        self.layers = {str(i): Layer(str(i), n, at, n) for i, (n, at) in enumerate(zip(sizes, starts, strict=True))}

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples and features."""
        return self._x.shape

    def columns(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return raw columns, shape (n, m)."""
        return self._x[:, indices]

    def source(self, normalization: str, memory: int) -> AbstractContextManager[ColumnSource]:
        """Provide normalised features."""
        if normalization != "unit_norm":
            return nullcontext(ArraySource(self._x, normalization))
        values = self._x.astype(np.float32)
        renormalize(self, np.arange(values.shape[1]), values)
        return nullcontext(ArraySource(values))


Data = ArraySamples | StoreSamples


def as_store_samples(x: object) -> StoreSamples | None:
    """Return samples of a store, a bare store meaning its training samples, or None of anything else."""
    if isinstance(x, ActivationStore):
        return StoreSamples(x)
    return x if isinstance(x, StoreSamples) else None


@contextmanager
def value_errors() -> Iterator[None]:
    """Raise as `ValueError`, which is scikit-learn's custom, what this project says of wrong input."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        name = ".".join(map(str, first["loc"])) or "a parameter"
        raise ValueError(f"{name} is {first['input']!r} but should be {expected}.") from error
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


def plain(value: Any) -> Any:
    """Return a NumPy scalar, such as a grid of parameters holds, as Python's own."""
    item: Callable[[], Any] | None = getattr(value, "item", None) if isinstance(value, np.generic) else None
    return item() if item is not None else value
