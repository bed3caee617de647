"""The one place that speaks Zarr: metadata documents out, small arrays in."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core import sync
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from store.errors import DamagedStoreError
from store.layout import BlockArray
from store.objects import Objects
from store.spec import DIGEST_LENGTH, canonical_json, digest

METADATA = "zarr.json"
SMALL_CODECS = frozenset({"bytes", "vlen-utf8", "crc32c"})
SMALL_TYPES = frozenset({"bool", "string", *(f"{k}{b}" for k in ("int", "uint", "float") for b in (8, 16, 32, 64))})


@atexit.register
def _end_thread_of_zarr(patience: float = 10.0) -> None:
    """Let zarr's thread end: zarr itself waits 0.2 s for it, and on a busy machine then prints a stack at exit."""
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(patience)


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


def documents(
    small: Mapping[str, Filled], attributes: Mapping[str, Any], blank: Iterable[BlockArray] = ()
) -> dict[str, bytes]:
    """Return every object of a Zarr v3 group, by key, the group's own metadata last.

    Parameters
    ----------
    small : mapping of str to Filled
        Arrays written whole, by path; groups between are made as needed.
    attributes : mapping
        Attributes of the group; JSON values only.
    blank : iterable of BlockArray
        Arrays created at their final shape whose chunks are written later; where there is none, a floating-point
        array reads as NaN, never as zero.

    Returns
    -------
    dict of str to bytes
        Writing them in order publishes the group only once all of it is there. Metadata is consolidated, so that
        a reader opens the whole hierarchy with one request. The group's attribute ``documents`` holds a digest of
        every other object, ``metadata_digest`` one of its own document without that attribute.
    """
    held: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(held), attributes=dict(attributes))
    for array in blank:
        group.create_array(
            array.path,
            shape=array.shape,
            chunks=array.chunks,
            dtype=array.dtype,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=np.nan if np.dtype(array.dtype).kind == "f" else 0,
            dimension_names=array.dimensions,
        )
    for path, filled in small.items():
        values = np.asarray(filled.values)
        text = values.dtype.kind in "UOT"
        made = group.create_array(
            path,
            shape=values.shape,
            chunks=tuple(max(n, 1) for n in values.shape),
            dtype="str" if text else values.dtype,
            compressors=[Crc32cCodec()],
            filters=None,
            dimension_names=filled.dimensions,
            config={"write_empty_chunks": True},
        )
        made[...] = values.astype(object) if text else values
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
            # Keys name objects inside the group, whoever wrote them.
            whole = whole and all(set(key.split("/")).isdisjoint({"", ".", ".."}) for key in attributes["documents"])
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
        _check_small(held)
        buffers = {key: prototype.buffer.from_bytes(value) for key, value in held.items()}
        array = zarr.open_array(MemoryStore(buffers), mode="r")
        values = np.asarray(array[...])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedStoreError(
            f"array {f'{group}/{path}'.lstrip('/')!r} of {objects.uri!r} is missing or damaged ({error}); "
            "restore it from a copy, or remove it and compute it again."
        ) from error
    return values


def check_arrays(objects: Objects, expected: Iterable[BlockArray]) -> None:
    """Check that the root's consolidated metadata describes the expected arrays, and no other codecs.

    Chunks are read without Zarr, so what plain Zarr would make of them must be the same.

    Raises
    ------
    DamagedStoreError
        If an array is missing or has another shape, chunk shape, type or codec.
    """
    members = json.loads(objects.read(METADATA)).get("consolidated_metadata", {}).get("metadata", {})
    for array in expected:
        found = members.get(array.path, {})
        described = {
            "shape": found.get("shape"),
            "chunks": found.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape"),
            "type": found.get("data_type"),
            "codecs": _codec_names(found),
        }
        wanted = {
            "shape": list(array.shape),
            "chunks": list(array.chunks),
            "type": array.dtype,
            "codecs": ["bytes", "crc32c"],
        }
        odd = next((name for name in wanted if described[name] != wanted[name]), None)
        if odd is not None:
            raise DamagedStoreError(
                f"array {array.path!r} of {objects.uri!r} has {odd} {described[odd]!r} in its metadata where the "
                f"store's layout needs {wanted[odd]!r}; it cannot be read safely."
            )


def _check_small(held: Mapping[str, bytes]) -> None:
    """Refuse metadata that would make Zarr run unknown codecs or reserve more memory than the chunk can fill."""
    metadata = json.loads(held[METADATA])
    if metadata.get("data_type") not in SMALL_TYPES:
        raise ValueError(f"data type {metadata.get('data_type')!r} is not used in a store")
    unknown = set(_codec_names(metadata)) - SMALL_CODECS
    if unknown:
        raise ValueError(f"codec {min(unknown)!r} is not used in a store")
    n_values = math.prod(int(n) for n in metadata["shape"])
    n_bytes = sum(len(raw) for key, raw in held.items() if key != METADATA)
    if not 0 <= n_values <= n_bytes:
        raise ValueError(f"a shape of {metadata['shape']} does not fit {n_bytes} bytes")


def _codec_names(metadata: Mapping[str, Any]) -> list[str]:
    return [str(codec.get("name")) for codec in metadata.get("codecs", ())]


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
