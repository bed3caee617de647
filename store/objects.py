"""Named byte objects at a location: what the rest of the store asks of a disk or a bucket, and how to open one."""

from __future__ import annotations

import ftplib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from store.errors import InvalidInputError
from store.local import UNFINISHED, LocalObjects
from store.remote import CONNECTIONS, FsspecObjects

__all__ = [
    "UNFINISHED",
    "Data",
    "FsspecObjects",
    "LocalObjects",
    "Objects",
    "RowRequest",
    "RowsRead",
    "join",
    "open_objects",
    "redact",
]

Data = bytes | bytearray | memoryview
RowRequest = tuple[str, NDArray[np.int64]]
"""Key of an object, and which of its fixed-size rows are wanted, in any order, duplicates allowed."""
RowsRead = tuple[NDArray[np.uint8], int, int]
"""The rows in the order asked for, shape (row, row_bytes), and the bytes and requests that it took."""

_SECRET = re.compile(r"(?<=://)[^/\s]*@")
_S3 = ("s3", "s3a")


class Objects(Protocol):
    """Byte objects under one location, addressed by ``/``-separated keys.

    Everything that reads raises `FileNotFoundError` for an absent key, and never returns a part of an object as if it
    were the whole. `write` replaces atomically; `create` writes only if the key is absent and says whether it did. A
    place that cannot be used as it is (no such bucket, no permission, no space) is an `InvalidInputError`; storage that
    does not answer, after bounded retries, is a `StorageError`. Whatever fails, an object is there whole or not at all.
    """

    uri: str
    options: dict[str, Any]
    """What `open_objects` needs besides the URI to open the same location again; may hold secrets: never show it."""

    def read(self, key: str) -> bytes:
        """Return all bytes of an object."""

    def read_all(self, keys: Sequence[str]) -> list[bytes]:
        """Return all bytes of several objects, requested concurrently where that helps."""

    def load(self, key: str, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return all bytes of an object as a writable array, without a second copy where that can be.

        The array may be a view of `buffer`, which saves the pages of a new one.
        """

    def read_rows(self, key: str, rows: NDArray[np.int64], row_bytes: int) -> RowsRead:
        """Return chosen fixed-size rows of one object; `IndexError` or `ValueError` if it is too short for them."""

    def read_many(self, requests: Sequence[RowRequest], row_bytes: int | Sequence[int]) -> Iterator[RowsRead]:
        """Yield what `read_rows` would return for each request, in order, fetching for all of them at once.

        The size of a row is one for all requests, or one for each.
        What is wrong with one object is raised when its turn comes, so that the caller knows which one it is.
        """

    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Store the concatenated parts under the key, replacing what was there."""

    def write_all(self, items: Iterable[tuple[str, Sequence[Data]]]) -> None:
        """Write several objects, concurrently where that helps; all are stored once it returns."""

    def create(self, key: str, data: bytes) -> bool:
        """Store data unless the key exists; return whether this call stored it."""

    def names(self, prefix: str) -> list[str]:
        """Return the sorted names directly under a prefix, as they are now; empty if there are none."""

    def exists(self, key: str) -> bool:
        """Return whether an object of this key exists now."""

    def sweep(self) -> None:
        """Remove what killed writers left unfinished."""

    def remove(self, prefix: str = "") -> None:
        """Remove an object, or everything under a prefix; all of it for the empty prefix."""


def open_objects(uri: str | os.PathLike[str], **options: Any) -> Objects:
    """Open a location: a local path, or any URL fsspec knows (``memory://…``, ``s3://bucket/…``).

    Parameters
    ----------
    uri : str or path
        Where the objects are; nothing is created or checked yet.
    **options
        Passed to the fsspec file system, such as ``endpoint_url``, ``key`` and ``secret`` of s3fs.

    Returns
    -------
    Objects
        The location. It travels by pickle, with its options.

    Raises
    ------
    InvalidInputError
        If no installed file system serves the URL's protocol, or the URL carries credentials.

    Notes
    -----
    S3 is configured, first found first used, by `options`; by fsspec's configuration (``FSSPEC_S3_ENDPOINT_URL``,
    ``FSSPEC_S3_KEY``, ``FSSPEC_S3_ANON=true`` for a public bucket, or a file in ``~/.config/fsspec``); by AWS's own
    variables and files (``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, ``AWS_DEFAULT_REGION``).
    Variables reach every process of a run, which options given in Python do not.
    """
    text = os.fspath(uri)
    if "://" not in text or text.startswith("file://"):
        return LocalObjects(Path(text.removeprefix("file://")).expanduser())
    shown = redact(text)
    if shown != text:
        raise InvalidInputError(
            f"cannot open {shown!r}: a URL must not carry credentials, since it is printed and stored; set them in the "
            "environment, for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    protocol, place = text.split("://", 1)
    if protocol in _S3:
        if not place.split("/", 1)[0]:
            raise InvalidInputError(f"{text!r} names no bucket; write s3://BUCKET/FOLDER.")
        options = _s3_options(options)
    try:
        fs, path = url_to_fs(text, **options)
    except ImportError as error:
        advice = "; `pip install head2toe-store[s3]` adds S3." if protocol in _S3 else "."
        raise InvalidInputError(f"cannot open {text!r}: {str(error).rstrip('.')}{advice}") from None
    except ValueError as error:
        raise InvalidInputError(f"cannot open {text!r}: {error}; use a local path, s3:// or memory://.") from error
    except ftplib.all_errors as error:  # the file system of FTP connects and logs in as soon as it is made
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"cannot open {text!r}: {reason}; look at the address and the network.") from error
    if protocol in _S3:
        # One policy of retries, that of `FsspecObjects`, instead of three inside one another.
        fs.retries = 1
    return FsspecObjects(fs, path, text, options)


def _s3_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of s3fs: what the user configured, no cache of listings, one attempt per request."""
    options = {**fsspec.config.conf.get("s3", {}), **given}
    in_client = (options.get("client_kwargs") or {}).get("endpoint_url")
    if not options.get("endpoint_url") and not in_client and not os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        # botocore reads these itself; naming them keeps fsspec from reusing a connection made for another endpoint.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint_url"] = endpoint
    options["use_listings_cache"] = False
    options["config_kwargs"] = {
        "connect_timeout": 10,
        "read_timeout": 30,
        "max_pool_connections": 2 * CONNECTIONS,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        **(options.get("config_kwargs") or {}),
    }
    # Objects are of 16 MB at most: s3fs need not ask for the size of each to split it.
    options.setdefault("max_concurrency", 1)
    return options


def redact(text: str) -> str:
    """Return a text with the credentials in its URLs replaced by ``***``.

    Examples
    --------
    >>> redact("s3://key:secret@bucket/path")
    's3://***@bucket/path'
    """
    return _SECRET.sub("***@", text)


def join(root: str | os.PathLike[str], name: str) -> str:
    """Return the URI of `name` under `root`."""
    return f"{os.fspath(root).rstrip('/')}/{name}"
