"""Objects on any fsspec file system: memory, S3 and the like."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
import numpy as np
from fsspec.asyn import get_loop, sync
from numpy.typing import NDArray

from store import faults
from store.faults import Cause

if TYPE_CHECKING:
    from store.objects import Data, RowRequest, RowsRead

CONNECTIONS = 32
"""Requests under way at a time."""
UPLOADS = 8
"""Uploads under way at a time; each holds a copy of its object, of 16 MB at most."""
SMALL_GAP = 4096
"""Bytes that are read rather than skipped, whatever else: a few packets of the network."""
CLUSTER_ROWS = 4
"""Neighbouring rows, on average, from which on a selection is in clusters, not scattered."""
REQUEST_BYTES = 2**20
"""What one more request costs, in bytes that could be read instead; `plan_ranges` says how it is used.

A request waits about 25 ms for its first byte, which `CONNECTIONS` requests share, and takes about 2 ms of this
process's time whatever it brings (measured with s3fs): nearly 3 ms, in which 300 MB/s bring a megabyte.
"""
BATCH_BYTES = 256 * 2**20
"""What `read_many` fetches at a time, at most, so that its memory stays bounded."""
ATTEMPTS = 6
FIRST_DELAY = 0.2
"""Seconds before the second attempt; doubled before each further one, and varied by half of it."""
PATIENCE = 60.0
"""Seconds after which no further attempt is begun."""

Value = TypeVar("Value")
Item = TypeVar("Item")
_creating = threading.Lock()


class FsspecObjects:
    """Objects on an fsspec file system.

    Object stores make a written object visible whole, so nothing here writes a part. What fails for a reason that may
    pass (no answer, a broken connection, an answer cut short, status 429 or 5xx) is tried again a bounded number of
    times with growing delays; other failures, and those that do not pass, become one sentence.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, uri: str, options: dict[str, Any]) -> None:
        self.fs = fs
        self.path = path.rstrip("/")
        self.uri = uri
        self.options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.uri, self.options)

    def __repr__(self) -> str:
        return f"FsspecObjects({self.uri!r})"

    # ---------------------------------------------------------------- reading

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""
        return self.read_all([key])[0]

    def read_all(self, keys: Sequence[str]) -> list[bytes]:
        """Return all bytes of several objects, several requests under way at a time."""
        found: list[bytes] = [b""] * len(keys)

        async def one(position: int) -> None:
            found[position] = await self._fetch(keys[position])

        self._run(one, range(len(keys)))
        return found

    def load(self, key: str, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return all bytes of an object, copied once since the file system's own are read-only."""
        content = np.frombuffer(self.read(key), np.uint8)
        if buffer is None or len(buffer) < len(content):
            return content.copy()
        buffer[: len(content)] = content
        return buffer[: len(content)]

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> RowsRead:
        """Fetch rows as concurrent byte ranges; `plan_ranges` says which rows share a request."""
        return next(self.read_many([(key, rows)], row_bytes))

    def read_many(self, requests: Sequence[RowRequest], row_bytes: int | Sequence[int]) -> Iterator[RowsRead]:
        """Fetch rows of many objects as concurrent byte ranges, in batches of bounded size."""
        widths = [row_bytes] * len(requests) if isinstance(row_bytes, int) else list(row_bytes)
        first, size = 0, 0
        for number, ((_, rows), width) in enumerate(zip(requests, widths, strict=True)):
            span = (int(rows.max() - rows.min()) + 1) * width if len(rows) else 0
            if number > first and size + span > BATCH_BYTES:
                yield from self._read_batch(requests[first:number], widths[first:number])
                first, size = number, 0
            size += span
        yield from self._read_batch(requests[first:], widths[first:])

    def _read_batch(self, requests: Sequence[RowRequest], widths: Sequence[int]) -> Iterator[RowsRead]:
        wanted, inverse = [], []
        for _, rows in requests:
            unique, back = np.unique(rows, return_inverse=True)
            wanted.append(unique)
            inverse.append(back)
        found = [np.empty((len(rows), width), np.uint8) for rows, width in zip(wanted, widths, strict=True)]
        spent = [[0, 0] for _ in wanted]
        failed: dict[int, FileNotFoundError | ValueError] = {}

        async def one(span: tuple[int, int, int]) -> None:
            number, a, b = span
            rows, width = wanted[number][a:b], widths[number]
            start, end = int(rows[0]) * width, (int(rows[-1]) + 1) * width
            spent[number][0] += end - start
            spent[number][1] += 1
            try:
                piece = await self._fetch(requests[number][0], start, end)
            except (FileNotFoundError, ValueError) as error:
                failed.setdefault(number, error)
                return
            found[number][a:b] = np.frombuffer(piece, np.uint8).reshape(-1, width)[rows - rows[0]]

        self._run(one, plan_ranges(wanted, widths))
        for number, (values, back, (n_bytes, n_requests)) in enumerate(zip(found, inverse, spent, strict=True)):
            if number in failed:
                raise failed[number]
            in_order = len(back) == len(values) and bool((back[1:] > back[:-1]).all())
            yield values if in_order else values[back], n_bytes, n_requests

    async def _fetch(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        async def call() -> bytes:
            data: bytes = await self._call("cat_file", self._at(key), start=start, end=end)
            if start is not None and end is not None and len(data) != end - start:
                raise faults.ShortError(f"object {key!r} of {self.uri!r} ends before byte {end:,}")
            return data

        return await self._attempt("read", key, call)

    def names(self, prefix: str) -> list[str]:
        """Return names under a prefix, listed afresh, and without listing what lies deeper."""
        place = self._at(prefix)

        async def call() -> list[Any]:
            self.fs.invalidate_cache()
            return list(await self._call("ls", place, detail=False))

        try:
            entries = self._sync(lambda: self._attempt("listed", prefix, call))
        except FileNotFoundError:
            return []
        own = self.fs._strip_protocol(place).strip("/")
        found = (str(e).strip("/") for e in entries)
        return sorted(e.rsplit("/", 1)[-1] for e in found if e != own)

    def exists(self, key: str) -> bool:
        """Return whether an object of this key exists, asked afresh; a failure to find out is not an absence."""

        async def call() -> bool:
            self.fs.invalidate_cache()
            return bool((await self._call("info", self._at(key)))["type"] == "file")

        try:
            return self._sync(lambda: self._attempt("read", key, call))
        except FileNotFoundError:
            return False

    # ---------------------------------------------------------------- writing

    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Store the parts as one object; object stores make it visible whole."""
        self.write_all([(key, parts)])

    def write_all(self, items: Iterable[tuple[str, Sequence[Data]]]) -> None:
        """Store several objects, several uploads under way at a time."""

        async def one(item: tuple[str, Sequence[Data]]) -> None:
            key, parts = item
            data = b"".join(parts)
            await self._attempt("written", key, lambda: self._call("pipe_file", self._at(key), data))

        self._run(one, list(items), UPLOADS)

    def create(self, key: str, data: bytes) -> bool:
        """Store only if absent, by the file system's own conditional write (on S3, ``If-None-Match: *``).

        An object that is there already with the same bytes counts as this call's: it is, if the answer to an earlier
        attempt was lost, and nothing tells the two apart.
        """

        async def call() -> bool:
            try:
                await self._call("pipe_file", self._at(key), data, mode="create")
            except FileExistsError:
                return False
            return True

        # Object stores decide who is first; file systems in memory or behind a session look first and then write.
        with contextlib.nullcontext() if self.fs.async_impl else _creating:
            created = self._sync(lambda: self._attempt("written", key, call))
        return created or (self.fs.async_impl and self.read(key) == data)

    def sweep(self) -> None:
        """Do nothing: an unfinished upload never becomes an object."""

    def remove(self, prefix: str = "") -> None:
        """Remove an object or everything under a prefix.

        Raises
        ------
        StorageError
            If something is still there afterwards.
        """

        async def call() -> None:
            self.fs.invalidate_cache()
            await self._call("rm", self._at(prefix), recursive=True)

        try:
            self._sync(lambda: self._attempt("removed", prefix, call))
        except FileNotFoundError:
            return
        # Deleting many objects by one request reports failures only in the body of its answer.
        if self.names(prefix) or (prefix and self.exists(prefix)):
            raise faults.StorageError(f"{self.uri!r} could not be removed completely; run the same command again.")

    # ---------------------------------------------------------------- requests

    def _at(self, key: str) -> str:
        return f"{self.path}/{key}" if key else self.path

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self.fs.async_impl:
            return await getattr(self.fs, f"_{method}")(*arguments, **options)
        return await asyncio.to_thread(getattr(self.fs, method), *arguments, **options)

    def _sync(self, start: Callable[[], Awaitable[Value]]) -> Value:
        # The loop of this moment: after a fork, fsspec has another one or says that it cannot go on.
        value: Value = sync(self.fs.loop if self.fs.async_impl else get_loop(), start)
        return value

    def _run(
        self, one: Callable[[Item], Awaitable[None]], items: Sequence[Item], connections: int = CONNECTIONS
    ) -> None:
        """Call a coroutine function on every item, a bounded number at a time; the first failure stops all."""
        pending = iter(items)

        async def work() -> None:
            for item in pending:
                await one(item)

        async def work_together() -> None:
            # What is not asynchronous may not be safe to call from several threads either.
            number = min(connections, len(items)) if self.fs.async_impl else 1
            workers = [asyncio.ensure_future(work()) for _ in range(number)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

        self._sync(work_together)

    async def _attempt(self, verb: str, key: str, call: Callable[[], Awaitable[Value]]) -> Value:
        """Await a request, again if it fails for a reason that may pass, and explain what does not."""
        began, delay = time.monotonic(), FIRST_DELAY
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await call()
            except Exception as error:
                cause = faults.cause_of(error)
                last = attempt == ATTEMPTS or time.monotonic() - began > PATIENCE
                if cause is not Cause.PASSING or last:
                    if isinstance(error, faults.ShortError):
                        raise
                    if cause is Cause.ABSENT:
                        raise FileNotFoundError(errno.ENOENT, "no such object", key) from None
                    raise faults.explained(error, cause, self.uri, verb, attempt, self.options) from None
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            delay *= 2
        raise AssertionError("unreachable")


def plan_ranges(wanted: Sequence[NDArray[np.int64]], widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Choose which rows of which object share a request.

    Neighbouring rows always do, also over a gap of `SMALL_GAP`. Wider gaps are bridged, the smallest first, as long as

    - what is read stays within twice what is wanted: a selection in clusters never costs more than that; or
    - rows are scattered, so many that one request each would not be under way at a time, and bridging the gap is
      cheaper than one request more (`REQUEST_BYTES`): they are not read more slowly than whole chunks.

    Parameters
    ----------
    wanted : sequence of ndarray of int64
        Rows of each object, sorted, each once.
    widths : sequence of int
        Bytes of a row of each object.

    Returns
    -------
    list of (int, int, int)
        Number of the object and the positions [start, stop) in its wanted rows of each request.
    """
    sizes = np.array([len(rows) for rows in wanted], np.int64)
    n_rows = int(sizes.sum())
    if not n_rows:
        return []
    rows = np.concatenate(wanted)
    owner = np.repeat(np.arange(len(wanted)), sizes)
    width = np.asarray(widths, np.int64)[owner]
    gaps = (np.diff(rows) - 1) * width[1:]
    same = owner[1:] == owner[:-1]
    bridged = same & (gaps <= SMALL_GAP)
    n_requests = n_rows - int(bridged.sum())
    candidates = np.flatnonzero(same & ~bridged & (gaps <= REQUEST_BYTES))
    if n_requests <= max(CONNECTIONS, n_rows // CLUSTER_ROWS):
        candidates = candidates[np.argsort(gaps[candidates], kind="stable")]
        selected = int(width.sum())
        read = selected + int(gaps[bridged].sum()) + np.cumsum(gaps[candidates])
        candidates = candidates[: int(np.searchsorted(read, 2 * selected, side="right"))]
    bridged[candidates] = True
    cuts = np.flatnonzero(~bridged) + 1
    first, last = np.concatenate(([0], cuts)), np.concatenate((cuts, [n_rows]))
    before = (np.cumsum(sizes) - sizes)[owner[first]]
    return [(int(n), int(a), int(b)) for n, a, b in zip(owner[first], first - before, last - before, strict=True)]


def _reopened(uri: str, options: dict[str, Any]) -> Any:
    from store.objects import open_objects

    return open_objects(uri, **options)
