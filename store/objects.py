"""Named byte objects at a location: the only code that touches a disk or a bucket."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from store.errors import InvalidInputError

UNFINISHED = ".unfinished"
STALE_SECONDS = 3600
Data = bytes | bytearray | memoryview
COALESCE_GAP = 64 * 1024
"""Remote ranges closer than this many bytes are fetched by one request."""


class Objects(Protocol):
    """Byte objects under one location, addressed by ``/``-separated keys.

    `read`, `load` and `read_rows` raise `FileNotFoundError` for an absent key. `write` replaces atomically; `create`
    writes only if the key is absent and says whether it did.
    """

    uri: str

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""

    def load(self, key: str) -> NDArray[np.uint8]:
        """Return all bytes of an object as a writable array, without a second copy where that can be."""

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> tuple[NDArray[np.uint8], int, int]:
        """Return chosen fixed-size rows, shape (len(rows), row_bytes), with the bytes and requests it took."""

    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Store the concatenated parts under the key, replacing what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Store data unless the key exists; return whether this call stored it."""

    def names(self, prefix: str) -> list[str]:
        """Return the sorted names directly under a prefix; empty if there are none."""

    def exists(self, key: str) -> bool:
        """Return whether an object of this key exists."""

    def sweep(self) -> None:
        """Remove what killed writers left unfinished."""

    def remove(self, prefix: str = "") -> None:
        """Remove an object, or everything under a prefix; all of it for the empty prefix."""


class LocalObjects:
    """Objects as files under a directory, written to a temporary name, synced, then renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def read(self, key: str) -> bytes:
        """Return all bytes of a file."""
        return (self.root / key).read_bytes()

    def load(self, key: str) -> NDArray[np.uint8]:
        """Return all bytes of a file, read straight into the array."""
        return np.fromfile(self.root / key, np.uint8)

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> tuple[NDArray[np.uint8], int, int]:
        """Gather rows through a memory map, so that only the pages of those rows are touched."""
        mapped = np.memmap(self.root / key, dtype=np.uint8, mode="r")
        whole = mapped[: len(mapped) // row_bytes * row_bytes].reshape(-1, row_bytes)
        return np.asarray(whole[rows]), len(rows) * row_bytes, 1

    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Write, sync and rename, so that a reader sees the old file or the new one, whole."""
        self._temporary(key, parts).replace(self.root / key)

    def create(self, key: str, data: bytes) -> bool:
        """Write, sync and link, which fails on an existing name, so that one of several writers wins."""
        temporary = self._temporary(key, [data])
        try:
            os.link(temporary, self.root / key)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_directory((self.root / key).parent)
        return True

    def _temporary(self, key: str, parts: Sequence[Data]) -> Path:
        # One folder for unfinished writes, so that what a killed writer leaves can be found and swept.
        temporary = self.root / UNFINISHED / uuid.uuid4().hex
        temporary.parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
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

    def names(self, prefix: str) -> list[str]:
        """Return names in a directory, without the folder of unfinished writes."""
        try:
            return sorted(n for n in os.listdir(self.root / prefix) if n != UNFINISHED)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, key: str) -> bool:
        """Return whether a file of this key exists."""
        return (self.root / key).is_file()

    def sweep(self) -> None:
        """Remove what writers killed more than an hour ago left unfinished."""
        for temporary in (self.root / UNFINISHED).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                    temporary.unlink()

    def remove(self, prefix: str = "") -> None:
        """Remove a file or a directory tree."""
        target = self.root / prefix
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


class FsspecObjects:
    """Objects on any fsspec file system: memory, S3 and the like."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, uri: str) -> None:
        self.fs = fs
        self.path = path.rstrip("/")
        self.uri = uri

    def _at(self, key: str) -> str:
        return f"{self.path}/{key}" if key else self.path

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""
        data: bytes = self.fs.cat_file(self._at(key))
        return data

    def load(self, key: str) -> NDArray[np.uint8]:
        """Return all bytes of an object, copied once since the file system's own are read-only."""
        return np.frombuffer(self.read(key), np.uint8).copy()

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> tuple[NDArray[np.uint8], int, int]:
        """Fetch rows as concurrent byte ranges, neighbours within a small gap sharing one request."""
        wanted, inverse = np.unique(rows, return_inverse=True)
        starts = wanted * row_bytes
        breaks = np.flatnonzero(np.diff(starts) > COALESCE_GAP + row_bytes) + 1
        first = np.concatenate(([0], breaks)) if len(starts) else np.empty(0, np.int64)
        last = np.concatenate((breaks, [len(starts)])) - 1 if len(starts) else first
        spans = [(int(starts[a]), int(starts[b]) + row_bytes) for a, b in zip(first, last, strict=True)]
        pieces = self.fs.cat_ranges(
            [self._at(key)] * len(spans), [s for s, _ in spans], [e for _, e in spans], on_error="raise"
        )
        out = np.empty((len(wanted), row_bytes), np.uint8)
        for a, b, piece in zip(first, last, pieces, strict=True):
            buffer = np.frombuffer(piece, np.uint8)
            offsets = starts[a : b + 1] - starts[a]
            for row, offset in zip(range(a, b + 1), offsets, strict=True):
                out[row] = buffer[offset : offset + row_bytes]
        return out[inverse], sum(e - s for s, e in spans), len(spans)

    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Store the parts as one object; object stores make it visible whole."""
        self.fs.pipe_file(self._at(key), b"".join(parts))

    def create(self, key: str, data: bytes) -> bool:
        """Store only if absent, by the file system's own conditional write."""
        try:
            self.fs.pipe_file(self._at(key), data, mode="create")
        except FileExistsError:
            return False
        return True

    def names(self, prefix: str) -> list[str]:
        """Return names under a prefix, read afresh."""
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(self._at(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(e).rstrip("/").rsplit("/", 1)[-1] for e in entries)

    def exists(self, key: str) -> bool:
        """Return whether an object of this key exists."""
        return bool(self.fs.isfile(self._at(key)))

    def sweep(self) -> None:
        """Do nothing: an unfinished upload never becomes an object."""

    def remove(self, prefix: str = "") -> None:
        """Remove everything under a prefix."""
        if self.fs.exists(self._at(prefix)):
            self.fs.rm(self._at(prefix), recursive=True)


def open_objects(uri: str | os.PathLike[str], **options: Any) -> Objects:
    """Open a location: a local path, or any URL fsspec knows (``memory://…``, ``s3://…``).

    Parameters
    ----------
    uri : str or path
        Where the objects are; nothing is created or checked yet.
    **options
        Passed to the fsspec file system, such as ``endpoint_url``.

    Raises
    ------
    InvalidInputError
        If no installed file system serves the URL's protocol.
    """
    text = os.fspath(uri)
    if "://" not in text or text.startswith("file://"):
        return LocalObjects(Path(text.removeprefix("file://")).expanduser())
    try:
        fs, path = url_to_fs(text, **options)
    except ImportError as error:
        raise InvalidInputError(f"cannot open {text!r}: {error}; `pip install head2toe-store[s3]` adds S3.") from error
    except ValueError as error:
        raise InvalidInputError(f"cannot open {text!r}: {error}; use a local path, s3:// or memory://.") from error
    return FsspecObjects(fs, path, text)


def join(root: str | os.PathLike[str], name: str) -> str:
    """Return the URI of `name` under `root`."""
    return f"{os.fspath(root).rstrip('/')}/{name}"


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
