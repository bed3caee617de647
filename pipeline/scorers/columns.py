"""Columns of a source a few at a time, or all of them at once where a scorer cannot do with less."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress, map_tasks
from pipeline.group_lasso import ColumnSource
from pipeline.memory import format_memory
from pipeline.store_source import StoreSource, read_samples
from store.activations import ActivationStore
from store.errors import InvalidInputError

Value = TypeVar("Value")
Matrix = NDArray[np.float32]
RANGE_BYTES = 8 * 2**20
"""Bytes of the columns of one task: enough to hide the cost of a request, few enough for every core to have some."""


def score_columns(
    function: Callable[[int, Matrix], Value], source: ColumnSource, stage: str, progress: Progress | None
) -> list[Value]:
    """Return what `map_columns` does of raw columns, computed where the store is scanned: on a cluster if there is one.

    The function travels, so it must not write to anything of this process.
    """
    if isinstance(source, StoreSource):
        shared = function, source.split.name, source.samples
        return source.pool.map(_on_raw, source.store, shared, column_ranges(source), stage=stage, progress=progress)
    return map_columns(function, source, stage, progress)


def _on_raw(
    store: ActivationStore,
    shared: tuple[Callable[[int, Matrix], Value], str, NDArray[np.int64] | None],
    features: NDArray[np.int64],
) -> Value:
    function, split, samples = shared
    return function(int(features[0]), read_samples(store, split, features, samples))


def map_columns(
    function: Callable[[int, Matrix], Value], source: ColumnSource, stage: str, progress: Progress | None
) -> list[Value]:
    """Return what a function makes of consecutive columns, computed by Dask, in the order of the features.

    Parameters
    ----------
    function : callable
        Gets the index of the first feature, and columns of shape (n, m), float32, in Fortran order, to keep or change.
    source : ColumnSource
        The features.
    stage : str
        What to call the work in progress reports.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    list
        One value per range; the ranges do not depend on the number of threads.
    """

    def work(features: NDArray[np.int64]) -> Value:
        return function(int(features[0]), source.columns(features))

    return map_tasks(work, column_ranges(source), stage=stage, progress=progress)


def column_ranges(source: ColumnSource) -> list[NDArray[np.int64]]:
    """Return all features, divided into the ranges of one task each."""
    step = max(1, RANGE_BYTES // (4 * source.n_samples))
    return np.split(np.arange(source.n_features), range(step, source.n_features, step))


def hold(source: ColumnSource, scorer: str, memory: int, progress: Progress | None) -> Matrix:
    """Return all columns, shape (n, p), in Fortran order.

    Raises
    ------
    InvalidInputError
        If they take more than `memory` bytes.
    """
    n, p = source.n_samples, source.n_features
    if 4 * n * p > memory:
        raise InvalidInputError(
            f"scorer {scorer} needs all features in memory at once: {n:,} samples of {p:,} features take "
            f"{format_memory(4 * n * p)} in float32, more than the {format_memory(memory)} allowed; allow as much, or "
            "choose a scorer that reads the store in passes, such as f_classif."
        )
    out = np.empty((p, n), np.float32).T
    _fill(out, source, progress)
    return out


def hold_rows(source: ColumnSource, memory: int, progress: Progress | None) -> Matrix:
    """Return all columns, shape (n, p), in C order: in memory, or in a temporary file if they take more than `memory`.

    Raises
    ------
    InvalidInputError
        If the folder of temporary files has no room for them.
    """
    shape = source.n_samples, source.n_features
    n_bytes = 4 * shape[0] * shape[1]
    if n_bytes <= memory:
        out = np.empty(shape, np.float32)
    else:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if n_bytes > free:
            raise InvalidInputError(
                f"batches of samples need {format_memory(n_bytes)} of float32 features, more than the "
                f"{format_memory(memory)} of memory allowed and the {format_memory(free)} free in {folder!r}; allow "
                "more memory, or set TMPDIR to a folder with room."
            )
        # The file has no name and goes with the array.
        with tempfile.TemporaryFile() as file:
            out = np.memmap(file, np.float32, "w+", shape=shape)
    _fill(out, source, progress)
    return out


def _fill(out: Matrix, source: ColumnSource, progress: Progress | None) -> None:
    def copy(first: int, x: Matrix) -> None:
        out[:, first : first + x.shape[1]] = x

    map_columns(copy, source, "reading all features", progress)
