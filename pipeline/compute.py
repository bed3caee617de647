"""The one place that starts Dask: run a function over items, in parallel, with progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed

Item = TypeVar("Item")
Value = TypeVar("Value")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""


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
        Called after every task.

    Returns
    -------
    list
        In the order of the items, whatever the order of computation.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)

    def alone(item: Item) -> Value:
        # Parallelism is over tasks; inner thread pools would only fight for the same cores.
        torch.set_num_threads(1)
        return function(item)

    task = delayed(alone, pure=False, traverse=False)
    with torch_threads(None), _Report(stage, len(items), progress):
        return list(compute(*[task(item) for item in items], scheduler="threads", num_workers=workers))


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


class _Report(Callback):
    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stage, self.total, self.done, self.progress = stage, total, 0, progress

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.stage, min(self.done, self.total), self.total)
