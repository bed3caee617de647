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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from store.errors import InvalidInputError

if TYPE_CHECKING:
    from store.objects import Data, RowRequest, RowsRead

UNFINISHED = ".unfinished"
STALE_SECONDS = 3600
FEW_ROWS = 64
"""Rows per file up to which reading each is faster than mapping the file."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


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

    def load(self, key: str) -> NDArray[np.uint8]:
        """Return all bytes of a file, read straight into the array."""
        return np.fromfile(self.root / key, np.uint8)

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> RowsRead:
        """Read a few rows one by one, many through a memory map: either way only those rows are touched."""
        # The plain calls: np.memmap and pathlib take several times as long as the reading itself.
        descriptor = os.open(f"{self.uri}/{key}", os.O_RDONLY)
        try:
            n_rows = os.fstat(descriptor).st_size // row_bytes
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n_rows:
                raise IndexError(f"{key!r} holds {n_rows} rows")
            if len(rows) <= FEW_ROWS:
                values = np.empty((len(rows), row_bytes), np.uint8)
                flat = values.reshape(-1).data
                for number, row in enumerate(rows.tolist()):
                    os.preadv(descriptor, [flat[number * row_bytes : (number + 1) * row_bytes]], row * row_bytes)
                return values, values.size, 1
            if len(rows) and (rows.max() >= n_rows or rows.min() < 0):
                raise IndexError(f"{key!r} holds {n_rows:,} rows, not all that were asked for")
            with mmap.mmap(descriptor, n_rows * row_bytes, access=mmap.ACCESS_READ) as mapped:
                whole = np.frombuffer(mapped, np.uint8).reshape(n_rows, row_bytes)
                values = whole[rows]
                del whole  # a map cannot be closed while an array looks into it
        finally:
            os.close(descriptor)
        return values, len(rows) * row_bytes, 1

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
        """Write several files, one after the other."""
        for key, parts in items:
            self.write(key, parts)

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
