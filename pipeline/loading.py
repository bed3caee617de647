"""Batches of images, read and decoded by threads ahead of their use.

Threads, not processes: decoding, resizing and copying release the interpreter's lock, nothing is copied between
processes, no worker imports PyTorch for seconds and hundreds of megabytes first, and nothing forks a process that has
threads of its own.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones import Backbone
from pipeline.compute import n_cores, torch_threads
from pipeline.datasets import ImageSplit


@dataclass(frozen=True)
class Loading:
    """A batch that is being read.

    Attributes
    ----------
    batch : Tensor
        Where it is put, shape (batch, channels, height, width), float32.
    parts : tuple of Future
        The parts that are under way.
    """

    batch: Tensor
    parts: tuple[Future[None], ...]

    def result(self) -> Tensor:
        """Return the batch once it is whole, or raise what went wrong in reading it."""
        for part in self.parts:
            part.result()
        return self.batch

    def cancel(self) -> None:
        """Give up what has not begun."""
        for part in self.parts:
            part.cancel()


class Loader:
    """Context with threads that read, decode and preprocess images.

    Parameters
    ----------
    backbone : Backbone
        Whose preprocessing is applied.
    workers : int, optional
        Threads; as many as there are cores if not given.
    pinned : bool
        Whether batches lie in memory that a GPU copies from while it computes.
    memory_format : torch.memory_format
        How batches lie in memory.
    """

    def __init__(
        self,
        backbone: Backbone,
        workers: int | None = None,
        *,
        pinned: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._transform = backbone.transform
        self._image_shape = backbone.preprocessing.input_size
        self._workers = workers or n_cores()
        self._pinned = pinned
        self._format = memory_format

    def __enter__(self) -> Self:
        # Threads are parallel over images: each with threads of its own would only fight for the same cores.
        self._threads = ThreadPoolExecutor(self._workers, "reader", torch.set_num_threads, (1,))
        self._restored = torch_threads(None)
        self._restored.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._restored.__exit__(kind, error, traceback)

    def load(self, images: ImageSplit, indices: NDArray[np.int64]) -> Loading:
        """Begin to read the images of some indices; every thread takes a share."""
        batch = torch.empty((len(indices), *self._image_shape), pin_memory=self._pinned, memory_format=self._format)

        def fill(first: int, last: int) -> None:
            for place in range(first, last):
                batch[place] = self._transform(images.image(int(indices[place])))

        step = -(-len(indices) // self._workers)
        starts = range(0, len(indices), step)
        return Loading(batch, tuple(self._threads.submit(fill, i, min(i + step, len(indices))) for i in starts))
