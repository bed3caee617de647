"""The one place that starts Dask: run a function over items, in parallel, with progress."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

Item = TypeVar("Item")
Value = TypeVar("Value")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""
TASKS_PER_WORKER = 16
MOST_TOGETHER = 8
"""Items of one task at most."""

_local = threading.local()


def map_tasks(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    *,
    stage: str,
    progress: Progress | None = None,
) -> list[Value]:
    """Return ``[function(item) for item in items]``, computed by Dask's threads.

    Parameters
    ----------
    function : callable
        Releases the GIL in its heavy parts, or threads do not help.
    items : sequence
        One task each.
    stage : str
        What to call the work in progress reports.
    progress : callable, optional
        Called after every item, from the thread that computed it, one at a time.

    Returns
    -------
    list
        In the order of the items, whatever the order of computation.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    # Dask takes 0.2 ms a task, as long as reading a few megabytes; but an interrupt waits for what has begun.
    together = max(1, min(MOST_TOGETHER, len(items) // (TASKS_PER_WORKER * workers)))
    lock, done = threading.Lock(), count(1)

    def alone(part: Sequence[Item]) -> list[Value]:
        # Parallelism is over tasks; inner thread pools would only fight for the same cores.
        torch.set_num_threads(1)
        values = []
        for item in part:
            values.append(function(item))
            if progress is not None:
                with lock:
                    progress(stage, next(done), len(items))
        return values

    task = delayed(alone, pure=False, traverse=False)
    parts = [items[start : start + together] for start in range(0, len(items), together)]
    with torch_threads(None):
        found = compute(*[task(part) for part in parts], scheduler="threads", num_workers=workers)
    return [value for part in found for value in part]


def scratch(n_bytes: int, purpose: str = "read") -> NDArray[np.uint8]:
    """Return working memory of this thread, shape (n_bytes,), overwritten by whoever asks next for this purpose.

    New pages for every chunk would take as long as reading it.
    """
    kept: NDArray[np.uint8] | None = getattr(_local, purpose, None)
    if kept is None or len(kept) < n_bytes:
        kept = np.empty(n_bytes, np.uint8)
        setattr(_local, purpose, kept)
    return kept[:n_bytes]


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Restore PyTorch's number of threads at the end, and set it to `number` until then, if given."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
