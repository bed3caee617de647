"""Blocks of a store: images read ahead, forwarded batch by batch, and written while the next block is computed.

Three stages run at once: threads read `LOOK_AHEAD` batches ahead, also across the end of a block; this thread
forwards, or has a thread per core do so; one thread writes. However many blocks there are, few are in memory: the one
being filled, the one begun after it, and the one being written; of blocks hardly larger than a batch `LOOK_AHEAD` + 2.
A block that is full waits until the one before is written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checksums import checksum_rows
from pipeline.filling import Filling
from pipeline.forwarding import Forward, is_out_of_memory
from pipeline.loading import Loader, Loading
from pipeline.norms import compiled_norms
from pipeline.planning import Plan
from pipeline.settings import Settings
from store.claims import Block, Claims
from store.errors import InvalidInputError
from store.records import BlockRecord
from store.writer import StoreWriter

POLL_SECONDS = 0.5
"""How often to look again when every missing block is being written by others."""
LOOK_AHEAD = 3
"""Batches that are read ahead."""


def write_blocks(
    plan: Plan, writer: StoreWriter, todo: Sequence[Block], device: torch.device, workers: int | None = None
) -> Iterator[tuple[Block, int]]:
    """Yield each missing block once it is committed, and how many of its samples went through the backbone for it.

    Batches are computed as the store's settings say. If one does not fit into memory, its block is begun again with
    batches of half the size, which all that follow have too; commit records tell. Blocks that another writer has
    claimed are left to it; whatever it gives up is taken over. Closing the iterator commits what is whole.

    Parameters
    ----------
    plan : Plan
        The extraction.
    writer : StoreWriter
        The begun store.
    todo : sequence of Block
        What to write.
    device : device
        Where to compute.
    workers : int, optional
        Threads that read images; as many as there are cores if not given.

    Raises
    ------
    InvalidInputError
        If an image cannot be read, or a single one does not fit into memory.
    NotFiniteError
        If a layer overflows the store's type.
    """
    settings = Settings.of(writer.store.provenance)
    writer.checksum_rows, writer.layer_norms = checksum_rows, compiled_norms
    model, layers = plan.backbone.model, plan.layers
    with (
        Claims(writer.store.objects) as claims,
        ThreadPoolExecutor(1, "writer") as writing,
        Loader(plan.backbone, workers, pinned=device.type == "cuda", memory_format=settings.memory_format) as loader,
        Forward(model, layers, settings, device) as forward,
    ):
        yield from _Run(plan, writer, todo, settings.batch_size, claims, writing, loader, forward).blocks()


class _Run:
    """One call of `write_blocks`: what is under way in each stage."""

    def __init__(
        self,
        plan: Plan,
        writer: StoreWriter,
        todo: Sequence[Block],
        batch_size: int,
        claims: Claims,
        writing: ThreadPoolExecutor,
        loader: Loader,
        forward: Forward,
    ) -> None:
        self._plan, self._writer, self._batch_size = plan, writer, batch_size
        self._claims, self._thread, self._loader, self._forward = claims, writing, loader, forward
        self._waiting = deque(todo)
        self._look_again = 0.0
        self._found: list[Block] = []
        self._filling: deque[Filling] = deque()
        self._reading: deque[tuple[Filling, NDArray[np.int64], Loading]] = deque()
        self._computing: deque[tuple[Filling, Callable[[], None]]] = deque()
        self._writing: tuple[Filling, Future[BlockRecord | None]] | None = None

    def blocks(self) -> Iterator[tuple[Block, int]]:
        while self._waiting or self._filling or self._writing:
            while len(self._reading) <= LOOK_AHEAD and (block := self._next_to_read()):
                self._reading.append((block, *block.load(self._loader)))
            while self._found:
                yield self._found.pop(), 0
            if self._reading:
                self._compute(*self._reading.popleft())
            elif self._computing:
                self._finish_last()
            elif not self._filling and not self._writing and self._waiting:
                time.sleep(POLL_SECONDS)
            full = bool(self._filling) and self._filling[0].n_left == 0
            yield from self._written(wait=full or not (self._reading or self._computing))
            if full:
                block = self._filling.popleft()
                self._writing = block, self._thread.submit(self._commit, block)

    def _next_to_read(self) -> Filling | None:
        """Return the next block with unread images; one is claimed only when those before it are all being read."""
        for block in self._filling:
            if block.unread:
                return block
        if len(self._filling) > LOOK_AHEAD or time.monotonic() < self._look_again:
            return None
        for _ in range(len(self._waiting)):
            key = self._waiting.popleft()
            if self._writer.store.is_committed(*key):
                self._found.append(key)
            elif self._claims.take(*key):
                # Who held it until this moment may have released it because it is written.
                if self._writer.store.is_committed(*key):
                    self._claims.release(*key)
                    self._found.append(key)
                    continue
                self._filling.append(Filling(self._plan, self._writer.store, key, self._batch_size))
                # A block all of whose samples are known has nothing to read.
                return self._filling[-1] if self._filling[-1].unread else None
            else:
                self._waiting.append(key)
        self._look_again = time.monotonic() + POLL_SECONDS
        return None

    def _compute(self, block: Filling, places: NDArray[np.int64], loading: Loading) -> None:
        clock = time.perf_counter()
        images = loading.result()
        began = time.perf_counter()
        block.seconds["read"] += began - clock
        try:
            self._computing.append((block, block.forward(self._forward, places, images)))
            while len(self._computing) > self._forward.n_behind:
                self._finish()
        except (RuntimeError, MemoryError) as error:
            self._halve(block, error)
        block.seconds["forward"] += time.perf_counter() - began

    def _finish(self) -> None:
        block, wait = self._computing.popleft()
        wait()
        block.n_left -= 1

    def _finish_last(self) -> None:
        block, began = self._computing[0][0], time.perf_counter()
        try:
            self._finish()
        except (RuntimeError, MemoryError) as error:
            self._halve(block, error)
        block.seconds["forward"] += time.perf_counter() - began

    def _halve(self, block: Filling, error: Exception) -> None:
        """Begin all blocks again that are not full, with smaller batches, if memory did not suffice."""
        while self._computing:
            with suppress(RuntimeError, MemoryError):
                self._finish()
        if not is_out_of_memory(error):
            raise error
        self._batch_size = block.batch_size // 2
        if not self._batch_size:
            raise InvalidInputError(
                "not even one image at a time fits into the memory of the device; choose a smaller image size, "
                "a smaller backbone or another device."
            )
        for *_, loading in self._reading:
            loading.cancel()
        self._reading.clear()
        for other in self._filling:
            if other.n_left:
                other.begin(self._batch_size)

    def _written(self, wait: bool) -> Iterator[tuple[Block, int]]:
        """Yield the block that was being written, if it is; otherwise wait for it if asked to."""
        if self._writing is None or not (wait or self._writing[1].done()):
            return
        block, future = self._writing
        clock = time.perf_counter()
        record = future.result()
        if self._filling:
            self._filling[0].seconds["wait"] = time.perf_counter() - clock
        self._writing = None
        if record is None:
            self._waiting.append(block.key)
        else:
            yield block.key, block.n_fresh

    def _commit(self, block: Filling) -> BlockRecord | None:
        try:
            if not self._claims.holds(*block.key):
                return None
            return self._writer.write_block(*block.key, block.values, block.seconds, block.batch_size)
        finally:
            self._claims.release(*block.key)
