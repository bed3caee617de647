"""The backbone at work: a batch goes in, every layer's pooled features come out, feature-major and on the host."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from pipeline.compute import n_cores
from pipeline.settings import Settings
from pipeline.taps import Capture, PlannedLayer
from store.errors import InvalidInputError

MOST_AT_ONCE = 8
"""Batches that a CPU computes at once at most; each has its own activations in memory."""
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD = -3, -1, -2
"""Of glibc's malloc.h."""

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """Context in which batches go through a model and their features into memory of the host.

    On a GPU nothing waits: the copy from the device is under way, on a stream of its own, while the next batch is
    computed. On the CPU each layer is written where it belongs as soon as it is pooled, and every core computes a batch
    of its own: cores that share a batch wait for each other, above all when one of them has to write or to read.

    Parameters
    ----------
    model : Module
        A frozen model in evaluation mode.
    layers : sequence of PlannedLayer
        What to capture.
    settings : Settings
        How to compute.
    device : device
        Where to compute; the model is moved there.

    Examples
    --------
    >>> with Forward(model, layers, Settings(batch_size=2), device) as forward:  # doctest: +SKIP
    ...     finish = forward(batch, out)
    ...     finish()
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[PlannedLayer], settings: Settings, device: torch.device
    ) -> None:
        self._device = device
        self._settings = settings
        self._model = model.to(device).to(memory_format=settings.memory_format)
        # What is compiled is compiled once, and shares its work among the cores.
        self.n_at_once = min(n_cores(), MOST_AT_ONCE) if device.type == "cpu" and not settings.compile else 1
        # Copies have hooks of their own, and the weights of the original.
        weights = {id(t): t for t in chain(self._model.parameters(), self._model.buffers())}
        copies = [copy.deepcopy(self._model, dict(weights)) for _ in range(1, self.n_at_once)]
        self._captures = [Capture(one, layers) for one in (self._model, *copies)]
        self._idle: SimpleQueue[Capture] = SimpleQueue()
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def n_behind(self) -> int:
        """How many batches may be under way while the next is begun."""
        return self.n_at_once if self.n_at_once > 1 else 0 if self._copying is None else 1

    def __enter__(self) -> Self:
        if self._device.type == "cpu":
            keep_freed_memory()
        for capture in self._captures:
            capture.__enter__()
            self._idle.put(capture)
        if self._settings.compile:
            # Hooks are part of what is compiled, so they come first.
            self._captures[0].model = cast(nn.Module, torch.compile(self._model, dynamic=False))
        threads = max(1, n_cores() // self.n_at_once)
        self._threads = ThreadPoolExecutor(self.n_at_once, "forward", torch.set_num_threads, (threads,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        for capture in self._captures:
            capture.__exit__(kind, error, traceback)

    def __call__(self, batch: Tensor, out: Tensor) -> Callable[[], None]:
        """Begin to compute the features of a batch.

        Parameters
        ----------
        batch : Tensor
            Preprocessed images in memory of the host, shape (batch, channels, height, width).
        out : Tensor
            Where the features go, shape (feature, batch), layer by layer; float16 or float32.

        Returns
        -------
        callable
            Waits until the features are in `out`. Until it has returned, `out` must not be read.

        Raises
        ------
        OutOfMemoryError, MemoryError, RuntimeError
            If the batch is too large for the device (see `is_out_of_memory`); from here or from what is returned.
        InvalidInputError
            If the model cannot be compiled.
        """
        if self.n_at_once > 1:
            return self._threads.submit(self._compute, batch, out).result
        if self._device.type == "cpu":
            self._compute(batch, out)
            return _nothing
        with torch.inference_mode():
            return self._transfer(batch, out)

    def _transfer(self, batch: Tensor, out: Tensor) -> Callable[[], None]:
        there = torch.empty(out.shape, dtype=out.dtype, device=self._device)
        self._compute(batch.to(self._device, non_blocking=True), there)
        if self._copying is None:
            out.copy_(there)
            return _nothing
        pinned = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        self._copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copying):
            pinned.copy_(there, non_blocking=True)
            there.record_stream(self._copying)
            copied = self._copying.record_event()

        def finish() -> None:
            copied.synchronize()
            out.copy_(pinned)

        return finish

    @torch.inference_mode()
    def _compute(self, batch: Tensor, out: Tensor) -> None:
        capture = self._idle.get()
        try:
            with self._autocast():
                if not self._settings.compile:
                    capture.into(batch, out)
                    return
                features = capture(self._padded(batch))
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InvalidInputError(
                f"the backbone cannot be compiled here: {reason.rstrip('.')}; leave --compile out."
            ) from error
        finally:
            self._idle.put(capture)
        row = 0
        for values in features.values():
            out[row : row + values.shape[1]].copy_(values[: len(batch)].T)
            row += values.shape[1]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._settings.autocast == "none":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=_TYPES[self._settings.autocast])

    def _padded(self, batch: Tensor) -> Tensor:
        """Fill a short batch up: every shape is compiled anew, and its results may differ in the last digits."""
        short = self._settings.batch_size - len(batch)
        return torch.cat([batch, batch.new_zeros((short, *batch.shape[1:]))]) if short else batch


def keep_freed_memory() -> None:
    """Let the C library keep the memory of activations for the next ones.

    Hooks change the order in which memory is freed, and with it how often glibc gives it back to the system: new pages
    in every layer made ViT-Tiny take 17 % longer than the bare model, 2 % without. Arenas of threads, of 64 MiB each,
    go by the padding instead: for ResNet-18 in two threads, 1,000 new pages an image without it, 100 with it.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_TOP_PAD, 2**26)
        library.mallopt(_M_MMAP_THRESHOLD, 2**30)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _nothing() -> None:
    """Nothing is left to wait for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, of the device or the host, did not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
