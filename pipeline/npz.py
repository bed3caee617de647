"""Read the arrays of an ``.npz`` file by rows, without unpacking more of them than is needed."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from store.errors import InvalidInputError

LABELS, IDS = "labels", "ids"
DEFAULT_SPLIT = "train"
PIECE_BYTES = 2**18
"""What is decompressed at a time."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open an ``.npz`` file; what is wrong with it is told in one sentence."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InvalidInputError(f"{str(path)!r} is empty.")
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InvalidInputError(f"{str(path)!r} does not exist.") from None
    except (zipfile.BadZipFile, IsADirectoryError):
        raise InvalidInputError(
            f"{str(path)!r} is not an .npz file, a zip archive of arrays as numpy.savez writes it, or is cut short."
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error


def sort_members(
    archive: zipfile.ZipFile, path: str, stack: ExitStack
) -> tuple[dict[str, dict[str, Member]], dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return layers, labels and ids by split."""
    names = archive.namelist()
    if not names:
        raise InvalidInputError(f"{path!r} holds no arrays.")
    for name in names:
        if not name.endswith(".npy") or names.count(name) > 1:
            raise InvalidInputError(f"{path!r} holds {name!r}, which is not an array or is there twice.")
    keys = [name.removesuffix(".npy") for name in names]
    with_split = [key for key in keys if "/" in key]
    if with_split and len(with_split) < len(keys):
        odd = next(key for key in keys if "/" not in key)
        raise InvalidInputError(
            f"{path!r} holds both {odd!r} and {with_split[0]!r}; name all arrays '<split>/<layer>', or none."
        )
    arrays: dict[str, dict[str, Member]] = {}
    labels: dict[str, NDArray[Any]] = {}
    ids: dict[str, NDArray[Any]] = {}
    for key in keys:
        split, _, layer = key.rpartition("/") if with_split else (DEFAULT_SPLIT, "", key)
        member = Member(archive, key, path, stack)
        if layer == LABELS:
            labels[split] = member.whole()
        elif layer == IDS:
            ids[split] = member.whole()
        else:
            arrays.setdefault(split, {})[layer] = member
    if not arrays:
        raise InvalidInputError(f"{path!r} holds no layers, only {', '.join(map(repr, sorted(keys)))}.")
    return arrays, labels, ids


class Member:
    """An array inside an archive, of which rows are read one after the other without unpacking all of it."""

    def __init__(self, archive: zipfile.ZipFile, key: str, path: str, stack: ExitStack) -> None:
        self._archive, self._name, self._key, self._path = archive, f"{key}.npy", key, path
        with self._telling():
            self._file = cast(zipfile.ZipExtFile, stack.enter_context(archive.open(self._name)))
            major, _ = npy.read_magic(self._file)
            if major not in {1, 2}:
                raise ValueError(f"version {major} of the array format is not supported")
            read_header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
            self.shape, self._fortran, self.dtype = read_header(self._file)
            self._data = self._file.tell()
        if self.dtype.hasobject:
            raise InvalidInputError(
                f"array {key!r} of {path!r} holds Python objects, which are never loaded; save it as numbers or as "
                "strings."
            )
        self._held: NDArray[Any] | None = None

    def whole(self) -> NDArray[Any]:
        """Return all of the array."""
        with self._telling(), self._archive.open(self._name) as file:
            return np.asarray(npy.read_array(file, allow_pickle=False))

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return consecutive rows."""
        start, stop, _ = rows.indices(self.shape[0])
        if self._fortran:
            if self._held is None:
                self._held = self.whole()
            return self._held[start:stop]
        row_bytes = self.dtype.itemsize * self.shape[1]
        with self._telling():
            self._file.seek(self._data + start * row_bytes)
            raw = np.empty((stop - start) * row_bytes, np.uint8)
            done = 0
            # `read` would join what it gets piece by piece, at the cost of a copy of all before for each.
            while done < len(raw):
                piece = self._file.read1(min(len(raw) - done, PIECE_BYTES))
                if not piece:
                    raise EOFError(f"it ends after {done:,} of {len(raw):,} bytes")
                raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
            # The archive's own checksum is looked at only on reading past the end.
            if stop == self.shape[0] and self._file.read(1):
                raise ValueError("it is longer than its header says")
        return raw.view(self.dtype).reshape(stop - start, self.shape[1])

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            why = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
            raise InvalidInputError(f"array {self._key!r} of {self._path!r} is damaged: {why}.") from error
