"""Objects as files under a directory."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from store.errors import InvalidInputError

if TYPE_CHECKING:
    from store.objects import Data, RowRequest, RowsRead

UNFINISHED = ".unfinished"
STALE_SECONDS = 3600
MAPPED_BYTES = 512 * 2**20
"""Bytes of files kept mapped: mapping one anew, page by page, takes longer than reading a few features from it."""
WRITERS = 8
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class _Maps:
    """Memory maps of the files opened last; a file that was replaced or has changed its size is mapped anew."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[int, int, int], NDArray[np.uint8]]] = {}
        self._n_bytes = 0
        self._lock = threading.Lock()

    def open(self, path: str) -> NDArray[np.uint8]:
        """Return the bytes of a file, read when they are looked at; an empty file has none."""
        now = os.stat(path)  # noqa: PTH116  (no path object for every file read)
        identity = (now.st_ino, now.st_mtime_ns, now.st_size)
        kept = self._kept.get(path)
        if kept is not None and kept[0] == identity:
            return kept[1]
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""
        finally:
            os.close(descriptor)
        content = np.frombuffer(mapped, np.uint8)
        with self._lock:
            self._drop(path)
            while self._kept and self._n_bytes + len(content) > MAPPED_BYTES:
                self._drop(next(iter(self._kept)))
            self._kept[path] = identity, content
            self._n_bytes += len(content)
        return content

    def _drop(self, path: str) -> None:
        if path in self._kept:
            self._n_bytes -= len(self._kept.pop(path)[1])


class LocalObjects:
    """Objects as files, written to a temporary name, synced, then renamed.

    A reader sees the old file or the new one, whole. A write that fails, for want of space or permission, leaves
    neither the object nor its temporary file. A process that is killed leaves a temporary file, which `sweep` removes
    once it is old. After a loss of power every object that `create` reported is there, and so is every object that
    was written before it: the names of files are synced then, all at once, instead of file by file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)
        self.options: dict[str, Any] = {}
        self._renamed: set[Path] = set()
        self._lock = threading.Lock()
        self._maps = _Maps()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalObjects, (self.root,)

    def __repr__(self) -> str:
        return f"LocalObjects({self.uri!r})"

    # ---------------------------------------------------------------- reading

    def read(self, key: str) -> bytes:
        """Return all bytes of a file."""
        return (self.root / key).read_bytes()

    def read_all(self, keys: Sequence[str]) -> list[bytes]:
        """Return all bytes of several files."""
        return [self.read(key) for key in keys]

    def load(self, key: str, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return all bytes of a file, read straight into the array; into `buffer` if they fit there."""
        with (self.root / key).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if buffer is None or len(buffer) < size:
                buffer = np.empty(size, np.uint8)
            return buffer[: file.readinto(buffer[:size].data)]

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> RowsRead:
        """Gather rows through a memory map, so that only the pages of those rows are touched."""
        content = self._maps.open(f"{self.uri}/{key}")
        n_rows = len(content) // row_bytes
        values = content[: n_rows * row_bytes].reshape(n_rows, row_bytes)[rows]
        return values, values.size, 1

    def read_many(self, requests: Sequence[RowRequest], row_bytes: int | Sequence[int]) -> Iterator[RowsRead]:
        """Gather rows file by file, each only when it is asked for."""
        widths = [row_bytes] * len(requests) if isinstance(row_bytes, int) else row_bytes
        for (key, rows), width in zip(requests, widths, strict=True):
            yield self.read_rows(key, rows, width)

    def names(self, prefix: str) -> list[str]:
        """Return names in a directory, without the folder of unfinished writes."""
        try:
            return sorted(n for n in os.listdir(self.root / prefix) if n != UNFINISHED)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, key: str) -> bool:
        """Return whether a file of this key exists."""
        return (self.root / key).is_file()

    # ---------------------------------------------------------------- writing

    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Write, sync and rename, so that a reader sees the old file or the new one, whole."""
        with self._explained():
            temporary = self._temporary(key, parts)
            try:
                temporary.replace(self.root / key)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        self._note((self.root / key).parent)

    def write_all(self, items: Iterable[tuple[str, Sequence[Data]]]) -> None:
        """Write several files, a few at a time, so that the disk is waited for less often."""
        with ThreadPoolExecutor(WRITERS) as threads:
            for _ in threads.map(lambda item: self.write(*item), items):
                pass

    def create(self, key: str, data: bytes) -> bool:
        """Write, sync and link, which fails on an existing name, so that one of several writers wins."""
        with self._explained():
            self._sync_names()
            temporary = self._temporary(key, [data])
            try:
                _link(temporary, self.root / key)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            self._note((self.root / key).parent)
            self._sync_names()
        return True

    def sweep(self) -> None:
        """Remove what writers killed more than an hour ago left unfinished."""
        for temporary in (self.root / UNFINISHED).glob("*"):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                    temporary.unlink()

    def remove(self, prefix: str = "") -> None:
        """Remove a file or a directory tree."""
        target = self.root / prefix
        with self._explained("removed from"):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _temporary(self, key: str, parts: Sequence[Data]) -> Path:
        # One folder for unfinished writes, so that what a killed writer leaves can be found and swept.
        temporary = self.root / UNFINISHED / uuid.uuid4().hex
        for folder in (temporary.parent, (self.root / key).parent):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                self._note(*(p for p in (folder, *folder.parents) if p.is_relative_to(self.root)), self.root.parent)
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _note(self, *folders: Path) -> None:
        with self._lock:
            self._renamed.update(folders)

    def _sync_names(self) -> None:
        """Make durable the names of all files written so far; the first sync pays, the others find nothing to do."""
        with self._lock:
            folders, self._renamed = self._renamed, set()
        for folder in folders:
            # A folder may be gone by now, may not be ours to open, or its file system may not sync folders.
            with contextlib.suppress(OSError):
                _sync_directory(folder)

    @contextlib.contextmanager
    def _explained(self, what: str = "written to") -> Iterator[None]:
        """Turn a full disk and a lack of permission into a sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise InvalidInputError(
                    f"{self.uri!r} cannot be {what}: {os.strerror(error.errno or 0).lower()}; make room and run the "
                    "same command again, nothing unfinished was committed and what was committed stays."
                ) from error
            if error.errno in _DENIED:
                raise InvalidInputError(
                    f"{self.uri!r} cannot be {what}: {os.strerror(error.errno or 0).lower()}; choose a root that is "
                    "writable, what was committed stays."
                ) from error
            raise


def _link(source: Path, target: Path) -> None:
    """Give a file a second name unless that name exists."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # exFAT and some network file systems have no links; exclusive creation is next best there: one writer wins,
        # but a crash in the middle leaves a record whose own digest does not hold, which a reader reports.
        with target.open("xb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
