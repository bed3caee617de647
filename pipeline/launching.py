"""Several processes on one store: one per device of this machine, or the workers of a Dask cluster.

Whoever starts them has planned the extraction and created the store. Each process plans it again for itself, which
proves that it sees the same data and weights, and then writes the blocks it is given as a process alone would
(`pipeline.block_writing`). What it commits stays, whatever becomes of it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import chdir, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from pipeline.block_writing import write_blocks
from pipeline.compute import MOST_TOGETHER, Progress, n_cores, workers
from pipeline.devices import find_device
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.planning import Plan, plan_extraction
from pipeline.sharding import Shard
from store import errors
from store.activations import ActivationStore, open_store
from store.claims import Block
from store.errors import Head2ToeError, InvalidInputError
from store.spec import Frozen
from store.writer import StoreWriter

FEW_TASKS = 32
"""A cluster's tasks hold one block each until there would be more than so many of them."""
STOP_SECONDS = 300
"""How long a process that was told to stop may take to commit what it has begun."""


class Order(Frozen):
    """What another process needs to know to write blocks of a store.

    Attributes
    ----------
    parameters : ExtractionParameters
        As given by the user; `device` is for the process that reads them.
    root : str
        Where stores lie.
    uri : str
        The store, which the process must arrive at by itself.
    folder : str
        Where relative paths begin.
    """

    parameters: ExtractionParameters
    root: str
    uri: str
    folder: str

    def plan(self) -> Plan:
        """Plan the extraction once more, where this runs.

        Raises
        ------
        InvalidInputError
            If data, weights or anything else that identifies the extraction differs here.
        """
        plan = plan_extraction(self.parameters, self.root)
        if plan.uri != self.uri:
            raise InvalidInputError(
                f"{socket.gethostname()!r} sees another extraction than the one begun ({plan.uri!r}, not "
                f"{self.uri!r}): its images, weights or packages differ; make them the same everywhere."
            )
        return plan


# ---------------------------------------------------------------- processes of this machine


def write_on_devices(
    order: Order, todo: Sequence[Block], devices: Sequence[torch.device]
) -> Iterator[tuple[Block, int]]:
    """Yield blocks as processes, one per device, commit them, and how many of their samples were forwarded.

    Processes are started afresh, not forked, and each takes its shard of the blocks. Closing the iterator, as any
    error and Ctrl-C do, makes them commit what is whole and end; so does the death of this process.

    Raises
    ------
    Head2ToeError
        If one of them fails; what was committed stays.
    """
    events: queue.SimpleQueue[tuple[_Child, dict[str, Any] | None]] = queue.SimpleQueue()
    children: list[_Child] = []
    try:
        n = min(len(devices), len(todo))
        for number, device in enumerate(devices[:n], start=1):
            children.append(_Child(order, device, Shard(number, n).of(list(todo)), n, events))
        running = len(children)
        while running:
            child, event = events.get()
            if event is None:
                child.check()
                running -= 1
            elif "error" in event:
                # Only names of our own errors are sent.
                raise getattr(errors, event["error"], Head2ToeError)(f"device {child.device}: {event['message']}")
            else:
                split, block = event["block"]
                yield (split, block), event["fresh"]
    finally:
        for child in children:
            child.stop()
        for child in children:
            child.end()


class _Child:
    """A process that writes blocks with one device; reports what it commits, and why it fails, line by line."""

    def __init__(
        self,
        order: Order,
        device: torch.device,
        blocks: list[Block],
        n_together: int,
        events: queue.SimpleQueue[tuple[_Child, dict[str, Any] | None]],
    ) -> None:
        self.device = device
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        # The same modules as here, wherever they come from.
        code = f"import sys; sys.path[:] = {sys.path!r}; from pipeline.launching import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            cwd=order.folder,
            # A terminal's Ctrl-C goes to this process alone, which then stops the others once.
            start_new_session=True,
        )
        told = {"order": order.model_dump(mode="json"), "device": str(device), "blocks": blocks, "together": n_together}
        self._tell(json.dumps(told).encode() + b"\n")
        self._listening = threading.Thread(target=self._listen, args=(events,), name=f"device {device}", daemon=True)
        self._listening.start()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, and `check` will say why
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self, events: queue.SimpleQueue[tuple[_Child, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, None))

    def check(self) -> None:
        """Raise an error if the process has failed."""
        code = self._process.wait()
        if code == 0:
            return
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        reason = f"ended with code {code}" + (f" ({lines[-1].strip().rstrip('.')})" if lines else "")
        if code < 0:
            name = signal.Signals(-code).name
            reason = f"was killed by {name}" + (", most often for want of memory" if name == "SIGKILL" else "")
        raise Head2ToeError(
            f"the process of device {self.device} {reason}; what was committed stays, run the same command again."
        )

    def stop(self) -> None:
        """Tell the process to commit what it has begun and end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> None:
        """Wait for the end of the process; kill it if that takes too long or is interrupted."""
        assert self._process.stdout is not None
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._listening.join()
            self._process.stdout.close()
            self._messages.close()


def main() -> NoReturn:
    """Do what a line on standard input says, report on standard output, and stop when the input is closed."""
    # Whatever a library prints must not come between the reports.
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_work(sys.stdin, reports))


def _work(orders: IO[str], reports: IO[str]) -> int:
    def report(**event: Any) -> None:
        reports.write(json.dumps(event) + "\n")
        reports.flush()

    told = json.loads(orders.readline())
    finished = threading.Event()
    threading.Thread(target=_stop_at_end, args=(orders, finished), name="orders", daemon=True).start()
    try:
        cores = max(1, n_cores() // told["together"])
        torch.set_num_threads(min(torch.get_num_threads(), cores))
        device = find_device(told["device"])
        order = Order.model_validate(told["order"])
        plan = order.plan()
        writer = StoreWriter(open_store(plan.uri, allow_incomplete=True))
        blocks = [(split, number) for split, number in told["blocks"]]
        for block, fresh in write_blocks(plan, writer, blocks, device, order.parameters.workers or cores):
            report(block=block, fresh=fresh)
    except Head2ToeError as error:
        report(error=type(error).__name__, message=str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        finished.set()
    return 0


def _stop_at_end(orders: IO[str], finished: threading.Event) -> None:
    os.read(orders.fileno(), 1)
    if not finished.is_set():
        os.kill(os.getpid(), signal.SIGINT)


# ---------------------------------------------------------------- a Dask cluster

_one_at_a_time = threading.Lock()
_plans: dict[str, Plan] = {}


def write_on_cluster(
    order: Order, store: ActivationStore, todo: Sequence[Block], progress: Progress | None = None
) -> Iterator[tuple[Block, int]]:
    """Yield blocks once all of them were committed by the workers of an existing Dask cluster.

    A task is a few blocks in a row. One that was lost with its worker runs again elsewhere and writes what is still
    missing of them. On Ctrl-C no more tasks begin; those under way on workers end by themselves.

    Raises
    ------
    Head2ToeError
        If there is no such cluster, or a worker sees other data or weights, or fails; what was committed stays.
    """
    together = max(1, min(MOST_TOGETHER, len(todo) // FEW_TASKS))
    tasks = [list(todo[start : start + together]) for start in range(0, len(todo), together)]
    with workers(order.parameters.dask_address) as cluster:
        found = cluster.map(write_task, store, order, tasks, stage="extracting on the cluster", progress=progress)
    for blocks, fresh in zip(tasks, found, strict=True):
        yield from zip(blocks, fresh, strict=True)


def write_task(store: ActivationStore, order: Order, blocks: Sequence[Block]) -> list[int]:
    """Write some blocks, where this runs, and return how many samples of each were forwarded.

    The plan is made once per process. A process computes one task at a time, since all share its device.
    """
    with _one_at_a_time, chdir(order.folder) if Path(order.folder).is_dir() else nullcontext():
        key = order.model_dump_json()
        if key not in _plans:
            _plans.clear()
            _plans[key] = order.plan()
        device = find_device(order.parameters.device)
        fresh = dict(write_blocks(_plans[key], StoreWriter(store), list(blocks), device, order.parameters.workers))
    return [fresh[block] for block in blocks]
