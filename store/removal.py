"""Remove a store, its results and its aliases, so that an interrupted removal leaves nothing that opens as a store."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.aliases import alias_key, list_aliases, list_names, split_uri
from store.catalogue import MALFORMED, RESULT_KINDS, count_results, half_removed
from store.errors import ConflictError, DamagedStoreError, InvalidInputError, StoreNotFoundError
from store.hierarchy import METADATA
from store.layout import REMOVING
from store.objects import UNFINISHED, LocalObjects, Objects, open_objects
from store.records import read_record
from store.results import Kind
from store.spec import FORMAT, FORMAT_VERSION, canonical_json

_OWN_NAMES = {METADATA, REMOVING, UNFINISHED, "blocks", "results", "claims"}


@dataclass(frozen=True)
class Removed:
    """What a removal took away.

    Attributes
    ----------
    uri : str
        Where the store was.
    fingerprint : str or None
        Its identity, unless its metadata could not be read.
    selections, heads, protocols : int
        Results that went with it.
    aliases : tuple of str
        Names that pointed to it and are gone too.
    """

    uri: str
    fingerprint: str | None
    selections: int
    heads: int
    protocols: int
    aliases: tuple[str, ...]


def remove_store(uri: str | os.PathLike[str], *, force: bool = False, dry_run: bool = False, **options: Any) -> Removed:
    """Remove a store, its results and the aliases that name it; nothing that is not an activation store.

    The root's metadata goes first and the commit records before the data, so that what an interrupted removal leaves
    is never opened as a store; the same call finishes it.

    Parameters
    ----------
    uri : str or path
        The store's own place.
    force : bool
        Remove it although it has selections, heads, protocols or points of one, a writer claims blocks of it, it was
        written in another format version, or it holds something that is not part of a store.
    dry_run : bool
        Only say what would be removed, or why not.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    Removed
        What is gone.

    Raises
    ------
    StoreNotFoundError
        If what is there is not an activation store; nothing is removed.
    ConflictError
        If something speaks against it and `force` is false; nothing is removed.
    InvalidInputError
        If the place is not writable, or a symbolic link.
    """
    objects = open_objects(uri, **options)
    if isinstance(objects, LocalObjects) and objects.root.is_symlink():
        raise InvalidInputError(f"{objects.uri!r} is a symbolic link; remove the store it points to.")
    attributes = _claimed_attributes(objects)
    known = attributes.get("fingerprint")
    fingerprint = known if isinstance(known, str) else None
    counts = {kind: count_results(objects, kind) for kind in RESULT_KINDS}
    if not force and not half_removed(objects):
        _check_removal(objects, attributes, counts)
    root, name = split_uri(objects.uri)
    pointing: tuple[str, ...] = ()
    try:
        if not dry_run:
            _mark(objects, fingerprint)
            objects.remove(METADATA)
        if root is not None:
            pointing = tuple(a.name for a in list_aliases(root, **options).values() if a.store == name)
        if not dry_run:
            for alias in pointing:
                open_objects(str(root), **options).remove(alias_key(alias))
            rest = [n for n in objects.names("") if n not in {REMOVING, "blocks"}]
            for part in ("blocks", *rest, UNFINISHED):
                objects.remove(part)
            objects.remove()
    except OSError as error:
        raise InvalidInputError(
            f"cannot remove all of {objects.uri!r}: {error.strerror or error}; `head2toe remove {objects.uri}` goes on."
        ) from error
    return Removed(objects.uri, fingerprint, counts["selections"], counts["heads"], counts["protocols"], pointing)


def _claimed_attributes(objects: Objects) -> dict[str, Any]:
    """Return the attributes of what says of itself that it is an activation store, undamaged or not."""
    try:
        raw = objects.read(REMOVING if half_removed(objects) else METADATA)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise StoreNotFoundError(f"no activation store at {objects.uri!r}; nothing was removed.") from None
    except PermissionError:
        raise InvalidInputError(f"{objects.uri!r} cannot be read: permission denied; nothing was removed.") from None
    try:
        document = json.loads(raw)
        attributes = dict(document if "format" in document else document["attributes"])
    except MALFORMED:
        # The commit records carry a digest of themselves, so that one of them is proof enough.
        if any(_is_record(objects, split, block) for split in list_names(objects, "blocks") for block in (0, 1)):
            return {}
        raise StoreNotFoundError(
            f"the metadata at {objects.uri!r} cannot be read, so it cannot be known to be an activation store; nothing "
            "was removed: remove the folder by hand if it is one."
        ) from None
    if attributes.get("format") != FORMAT:
        raise StoreNotFoundError(f"{objects.uri!r} is not an activation store; nothing was removed.")
    return attributes


def _check_removal(objects: Objects, attributes: Mapping[str, Any], counts: Mapping[Kind, int]) -> None:
    def refuse(reason: str) -> None:
        raise ConflictError(f"store {objects.uri!r} {reason}; nothing was removed: --force removes it all the same.")

    if attributes and attributes.get("format_version") != FORMAT_VERSION:
        refuse(f"has format version {attributes.get('format_version')!r}, which this release does not know")
    parts = [_counted(counts[kind], kind) for kind in RESULT_KINDS if kind != "statistics" and counts[kind]]
    if parts:
        refuse(f"has {' and '.join(filter(None, (', '.join(parts[:-1]), parts[-1])))}")
    claimed = sum(
        bool(objects.names(f"claims/{s}/{b}"))
        for s in list_names(objects, "claims")
        for b in objects.names(f"claims/{s}")
    )
    if claimed:
        refuse(f"may be being written, {_counted(claimed, 'blocks')} of it claimed")
    try:
        splits = {row["name"] for row in attributes["splits"]}
    except MALFORMED:
        splits = None
    foreign = [n for n in objects.names("") if n not in _OWN_NAMES and splits is not None and n not in splits]
    if foreign:
        refuse(f"holds {foreign[0]!r}, which is no part of it")


def _mark(objects: Objects, fingerprint: str | None) -> None:
    try:
        objects.write(REMOVING, [canonical_json({"format": FORMAT, "fingerprint": fingerprint}).encode()])
    except (OSError, InvalidInputError) as error:
        # A full disk must not keep anyone from making room.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise


def _counted(number: int, things: str) -> str:
    return f"{number} {things if number != 1 else things.removesuffix('s')}"


def _is_record(objects: Objects, split: str, block: int) -> bool:
    try:
        read_record(objects, split, block)
    except (DamagedStoreError, OSError):
        return False
    return True
