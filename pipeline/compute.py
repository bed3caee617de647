"""The one place that starts Dask: run a function over items by threads or on a cluster, with progress."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import dask
import numpy as np
import torch
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from store.activations import ActivationStore, open_store
from store.errors import Head2ToeError, InvalidInputError, StoreNotFoundError

if TYPE_CHECKING:
    from distributed import Client, Future

Item = TypeVar("Item")
Value = TypeVar("Value")
Shared = TypeVar("Shared")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""
TASKS_PER_WORKER = 16
MOST_TOGETHER = 8
"""Items of one task at most."""
CONNECT_SECONDS = 5
WORKERS_SECONDS = 60
"""How long a scheduler may take to answer, and how long workers may take to join it."""

_local = threading.local()
_share: int | None = None


class ClusterError(Head2ToeError):
    """The cluster could not finish what it was asked; nothing was stored."""


class Workers(Protocol):
    """Where the tasks of a pass over a store run."""

    @property
    def n_threads(self) -> int:
        """Tasks of this process at a time, whose memory counts here; 0 if all run elsewhere."""

    def map(
        self,
        function: Callable[[ActivationStore, Shared, Item], Value],
        store: ActivationStore,
        shared: Shared,
        items: Sequence[Item],
        *,
        stage: str,
        progress: Progress | None = None,
    ) -> list[Value]:
        """Return ``[function(store, shared, item) for item in items]``; everything but the store may be pickled."""


@dataclass(frozen=True)
class Threads:
    """Threads of this process, as many as it may use cores or fewer."""

    n_threads: int

    def map(
        self,
        function: Callable[[ActivationStore, Shared, Item], Value],
        store: ActivationStore,
        shared: Shared,
        items: Sequence[Item],
        *,
        stage: str,
        progress: Progress | None = None,
    ) -> list[Value]:
        """Return ``[function(store, shared, item) for item in items]``."""
        return map_tasks(
            lambda item: function(store, shared, item), items, stage=stage, progress=progress, n_threads=self.n_threads
        )


class Cluster:
    """Workers of an existing Dask cluster; each opens a store once and keeps it open as long as this object lives.

    A task that was lost with its worker runs again elsewhere. Nothing that tasks need is held by one worker alone.

    Parameters
    ----------
    client : distributed.Client
        A connection.
    address : str
        What the user gave, for messages.
    """

    n_threads = 0

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._stores: dict[str, Future[ActivationStore]] = {}

    def map(
        self,
        function: Callable[[ActivationStore, Shared, Item], Value],
        store: ActivationStore,
        shared: Shared,
        items: Sequence[Item],
        *,
        stage: str,
        progress: Progress | None = None,
    ) -> list[Value]:
        """Return ``[function(store, shared, item) for item in items]``.

        Parameters
        ----------
        function : callable
            From a module that the workers can import.
        store : ActivationStore
            Workers open it by its URI and options.
        shared : object
            What all items need; sent once.
        items : sequence
            Sent to whoever computes them.
        stage, progress
            As in `map_tasks`; called from the calling thread.

        Raises
        ------
        ClusterError
            If the connection or too many workers were lost.
        InvalidInputError
            If the workers cannot open the store, or lack this package.
        """
        from distributed import CancelledError, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError

        at = f"the Dask cluster at {self._address}"
        futures: list[Future[list[Value]]] = []
        try:
            parts = divide(items, max(1, sum(self._client.nthreads().values())))
            if store.uri not in self._stores:
                place = _Place(store)
                self._stores[store.uri] = self._client.submit(_Place.open, place, pure=False)
            # Tasks, instead of data scattered to workers: what a lost worker held is made again.
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
                sent = self._client.submit(_itself, shared, pure=False)
                futures = self._client.map(
                    _on_worker, parts, function=function, store=self._stores[store.uri], shared=sent, pure=False
                )
            lengths = dict(zip(futures, map(len, parts), strict=True))
            done = 0
            for future in as_completed(futures, self._client.loop):
                if future.status != "finished":
                    future.result()  # raises, unless what was lost is made again
                for _ in range(lengths[future]):
                    done += 1
                    if progress is not None:
                        progress(stage, done, len(items))
            # All at once: a request for each would keep the scheduler as busy as a worker.
            return [value for values in self._client.gather(futures) for value in values]
        except ImportError as error:
            raise InvalidInputError(
                f"the workers of {at} lack what is installed here ({error}); install the same release there."
            ) from None
        except KilledWorker as error:
            raise ClusterError(
                f"{at} lost a worker at the same task again and again ({error.last_worker.address}); "
                "most often its memory was exceeded: a task needs about 100 MB per thread."
            ) from None
        except (CancelledError, CommClosedError, TimeoutError) as error:
            raise ClusterError(f"the connection to {at} was lost ({type(error).__name__}); start again.") from None
        except StoreNotFoundError as error:
            raise InvalidInputError(
                f"{at} does not see what is seen here ({error}); the store must lie where all workers reach it."
            ) from None
        finally:
            if futures and self._client.status == "running":
                self._client.cancel(futures, force=True)


class _Place:
    """Where a store is; its text leaves out the options, which may hold secrets, because workers log arguments."""

    def __init__(self, store: ActivationStore) -> None:
        self.uri = store.uri if "://" in store.uri else os.path.abspath(store.uri)  # noqa: PTH100  (no links resolved)
        self._options = store.objects.options

    def __repr__(self) -> str:
        return self.uri

    def open(self) -> ActivationStore:
        """Open the store, where this runs."""
        return open_store(self.uri, allow_incomplete=True, **self._options)


def _itself(value: Value) -> Value:
    return value


def _on_worker(
    part: Sequence[Item], function: Callable[[Any, Any, Item], Value], store: ActivationStore, shared: object
) -> list[Value]:
    torch.set_num_threads(1)
    return [function(store, shared, item) for item in part]


@contextmanager
def workers(dask_address: str | None = None, n_threads: int | None = None) -> Iterator[Workers]:
    """Provide what runs the tasks of passes: an existing cluster while the context lasts, or threads.

    Parameters
    ----------
    dask_address : str, optional
        Address of a running Dask scheduler, such as ``tcp://host:8786``.
    n_threads : int, optional
        Threads of this process to use without a cluster; as many as it may use cores if not given.

    Raises
    ------
    InvalidInputError
        If no scheduler answers there, or no worker joins it.
    """
    if dask_address is None:
        yield Threads(n_threads or n_cores())
        return
    try:
        from distributed import Client
    except ImportError:
        raise InvalidInputError(
            "a Dask cluster needs one more package: `pip install head2toe-store[cluster]`."
        ) from None
    try:
        client = Client(dask_address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"no Dask scheduler answers at {dask_address!r} within {CONNECT_SECONDS} s ({error}); give the address "
            "that `dask scheduler` prints, such as tcp://HOST:8786."
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError:
            raise InvalidInputError(
                f"the Dask scheduler at {dask_address!r} has no workers, nor got one within {WORKERS_SECONDS} s; "
                f"start some with `dask worker {dask_address}`."
            ) from None
        yield Cluster(client, dask_address)


def n_cores() -> int:
    """Return how many cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(allowed, _share or allowed)


def share_cores(n_processes: int) -> None:
    """Let this process use its share of the cores, one at least, beside others that do the same."""
    global _share
    _share = max(1, n_cores() // n_processes)
    torch.set_num_threads(_share)
    threadpool_limits(_share)


def divide(items: Sequence[Item], n_threads: int) -> list[Sequence[Item]]:
    """Divide items into the parts that become tasks.

    Dask takes 0.2 ms a task, as long as reading a few megabytes; but an interrupt waits for what has begun.
    """
    together = max(1, min(MOST_TOGETHER, len(items) // (TASKS_PER_WORKER * n_threads)))
    return [items[start : start + together] for start in range(0, len(items), together)]


def map_tasks(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    *,
    stage: str,
    progress: Progress | None = None,
    n_threads: int | None = None,
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
    n_threads : int, optional
        As many as this process may use cores if not given.

    Returns
    -------
    list
        In the order of the items, whatever the order of computation.
    """
    threads = n_threads or n_cores()
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
    with torch_threads(None):
        found = compute(*[task(part) for part in divide(items, threads)], scheduler="threads", num_workers=threads)
    return [value for part in found for value in part]


def scratch(n_bytes: int, purpose: str = "read") -> NDArray[np.uint8]:
    """Return working memory of this thread, shape (n_bytes,), overwritten by whoever asks next for this purpose.

    New pages for every chunk would take as long as reading it. It begins where a vector register's load may, as all
    memory of PyTorch does: the last bits of a matrix product depend on that.
    """
    kept: NDArray[np.uint8] | None = getattr(_local, purpose, None)
    if kept is None or len(kept) < n_bytes:
        kept = torch.empty(n_bytes, dtype=torch.uint8).numpy()
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
