"""The one place that speaks Zarr: metadata documents out, small arrays in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from store.errors import DamagedStoreError
from store.objects import Objects
from store.spec import DIGEST_LENGTH, canonical_json, digest

METADATA = "zarr.json"


@dataclass(frozen=True)
class Blank:
    """An array created at its final shape whose chunks are written later.

    Attributes
    ----------
    shape, chunks : tuple of int
        Shape of the array and of its chunks.
    dtype : str
        Numpy type; absent chunks of a floating-point type read as NaN, never as zero.
    dimensions : tuple of str
        Name per dimension.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Filled:
    """A small array written whole, as one chunk.

    Attributes
    ----------
    values : ndarray or sequence of str
        The data.
    dimensions : tuple of str
        Name per dimension.
    """

    values: NDArray[Any] | Sequence[str]
    dimensions: tuple[str, ...]


Node = Blank | Filled


def documents(nodes: Mapping[str, Node], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return every object of a Zarr v3 group, by key, the group's own metadata last.

    Parameters
    ----------
    nodes : mapping of str to Blank or Filled
        The arrays by path; groups between are made as needed.
    attributes : mapping
        Attributes of the group; JSON values only.

    Returns
    -------
    dict of str to bytes
        Writing them in order publishes the group only once all of it is there. Metadata is consolidated, so that
        a reader opens the whole hierarchy with one request. The group's attribute ``documents`` holds a digest of
        every other object, ``metadata_digest`` one of its own document without that attribute.
    """
    held: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(held), attributes=dict(attributes))
    for path, node in nodes.items():
        if isinstance(node, Blank):
            group.create_array(
                path,
                shape=node.shape,
                chunks=node.chunks,
                dtype=node.dtype,
                serializer=BytesCodec(endian="little"),
                compressors=[Crc32cCodec()],
                filters=None,
                fill_value=np.nan if np.dtype(node.dtype).kind == "f" else 0,
                dimension_names=node.dimensions,
            )
        else:
            values = np.asarray(node.values)
            text = values.dtype.kind in "UOT"
            array = group.create_array(
                path,
                shape=values.shape,
                chunks=tuple(max(n, 1) for n in values.shape),
                dtype="str" if text else values.dtype,
                compressors=[Crc32cCodec()],
                filters=None,
                dimension_names=node.dimensions,
                config={"write_empty_chunks": True},
            )
            array[...] = values.astype(object) if text else values
    everything = {key: value.to_bytes() for key, value in held.items()}
    own = json.loads(everything.pop(METADATA))
    members = {k.removesuffix(f"/{METADATA}"): json.loads(v) for k, v in everything.items() if k.endswith(METADATA)}
    own["attributes"]["documents"] = {key: _sha256(value) for key, value in sorted(everything.items())}
    # Consolidated metadata as zarr-python writes it, without the warning it gives for every store.
    own["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": dict(sorted(members.items())),
    }
    own["attributes"]["metadata_digest"] = digest(own)
    everything[METADATA] = canonical_json(own).encode()
    return everything


def read_attributes(objects: Objects, path: str = "", *, verify: bool = True) -> dict[str, Any]:
    """Return a group's attributes.

    Parameters
    ----------
    objects : Objects
        Where the group is.
    path : str
        Path of the group.
    verify : bool
        Whether its metadata must be, byte for byte, what `documents` made.

    Raises
    ------
    FileNotFoundError
        If there is no such group.
    DamagedStoreError
        If its metadata is not what was written.
    """
    raw = objects.read(f"{path}/{METADATA}".lstrip("/"))
    attributes: dict[str, Any] = {}
    try:
        document = json.loads(raw)
        attributes = document["attributes"]
        if verify:
            whole = raw == canonical_json(document).encode()
            rest = {**document, "attributes": {k: v for k, v in attributes.items() if k != "metadata_digest"}}
            whole = whole and attributes["metadata_digest"] == digest(rest)
        else:
            whole = isinstance(attributes, dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedStoreError(
            f"the metadata of {objects.uri!r} ({path or 'root'}) is damaged: it is not what was written; "
            "restore it from a copy, or remove it and compute it again."
        )
    return attributes


def read_array(objects: Objects, path: str, known: Mapping[str, str], group: str = "") -> NDArray[Any]:
    """Return a whole small array that `documents` wrote.

    Parameters
    ----------
    objects : Objects
        Where the group is.
    path : str
        Path of the array inside its group.
    known : mapping of str to str
        The group's attribute ``documents``.
    group : str
        Path of the group.

    Raises
    ------
    DamagedStoreError
        If it is absent or not, byte for byte, what was written.
    """
    held = {}
    prototype = default_buffer_prototype()
    try:
        for key in (k for k in known if k.startswith(f"{path}/")):
            held[key.removeprefix(f"{path}/")] = raw = objects.read(f"{group}/{key}".lstrip("/"))
            if _sha256(raw) != known[key]:
                raise ValueError(f"{key!r} is not what was written")
        buffers = {key: prototype.buffer.from_bytes(value) for key, value in held.items()}
        array = zarr.open_array(MemoryStore(buffers), mode="r")
        values = np.asarray(array[...])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedStoreError(
            f"array {f'{group}/{path}'.lstrip('/')!r} of {objects.uri!r} is missing or damaged ({error}); "
            "restore it from a copy, or remove it and compute it again."
        ) from error
    return values


def check_documents(objects: Objects, known: Mapping[str, str], group: str = "") -> list[str]:
    """Return the keys among a group's ``documents`` whose objects are missing or not what was written."""
    wrong = []
    for key, expected in known.items():
        try:
            raw = objects.read(f"{group}/{key}".lstrip("/"))
        except FileNotFoundError:
            raw = b""
        if _sha256(raw) != expected:
            wrong.append(key)
    return wrong


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:DIGEST_LENGTH]
