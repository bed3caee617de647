"""The stores under a root: list them, find one by a short name, give it an alias, describe its results, remove it."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from store import hierarchy
from store.activations import ActivationStore, open_store
from store.errors import (
    ConflictError,
    DamagedStoreError,
    Head2ToeError,
    InvalidInputError,
    StoreNotFoundError,
    suggest,
)
from store.hierarchy import METADATA
from store.layout import REMOVING
from store.objects import UNFINISHED, LocalObjects, Objects, join, open_objects
from store.records import read_record
from store.results import Kind, list_results
from store.spec import DIGEST_LENGTH, FORMAT, FORMAT_VERSION, Frozen, canonical_json

SUFFIX = ".zarr"
ALIASES = "aliases"
MIN_PREFIX = 4
"""Digits of a fingerprint that are needed at least, so that a slip of the finger does not name a store."""
RESULT_KINDS: tuple[Kind, ...] = get_args(Kind)
_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")
_OWN_NAMES = {METADATA, REMOVING, UNFINISHED, "blocks", "results", "claims"}
# What a damaged document can raise when it parses but does not hold what it should.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


class Alias(Frozen):
    """A name people gave to a store.

    Attributes
    ----------
    name : str
        The alias.
    fingerprint : str
        The store's identity when the alias was set.
    store : str
        The store's name under the root, such as ``"3f2a….zarr"``.
    created : str
        When, as an ISO date.
    """

    name: str
    fingerprint: str
    store: Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]
    created: str


@dataclass(frozen=True)
class Removed:
    """What a removal took away.

    Attributes
    ----------
    uri : str
        Where the store was.
    fingerprint : str or None
        Its identity, unless its metadata could not be read.
    selections, heads : int
        Results that went with it.
    aliases : tuple of str
        Names that pointed to it and are gone too.
    """

    uri: str
    fingerprint: str | None
    selections: int
    heads: int
    aliases: tuple[str, ...]


# -------------------------------------------------------------------- listing


def list_stores(root: str | os.PathLike[str], **options: Any) -> list[dict[str, Any]]:
    """Return a row for every store under a root, by name; a store that cannot be opened is a row with the reason.

    Parameters
    ----------
    root : str or path
        Folder or URL.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    list of dict
        ``uri``, ``aliases`` and ``state``: ``complete`` or ``incomplete``, with `ActivationStore.summary`; otherwise
        ``damaged``, ``unreadable``, ``half removed`` or ``no store``, with a ``reason``.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at all at `root`, or it is a store itself.
    """
    objects = open_objects(root, **options)
    names = _names(objects)
    if not names:
        raise StoreNotFoundError(
            f"{os.fspath(root)!r} does not exist or is empty; `head2toe extract --root {os.fspath(root)}` makes a "
            "store."
        )
    if METADATA in names:
        raise StoreNotFoundError(f"{os.fspath(root)!r} is a store itself, not a root; use `head2toe show` for it.")
    aliases = list_aliases(root, **options)
    rows = []
    for name in names:
        if name.endswith(SUFFIX):
            own = [a.name for a in aliases.values() if a.store == name]
            rows.append({**_row(join(root, name), options), "aliases": own})
    return rows


def _row(uri: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if _half_removed(open_objects(uri, **options)):
            return {"uri": uri, "state": "half removed", "reason": f"`head2toe remove {uri}` finishes the removal."}
        store = open_store(uri, allow_incomplete=True, **options)
        return {**store.summary, "state": "incomplete" if store.missing() else "complete"}
    except DamagedStoreError as error:
        return {"uri": uri, "state": "damaged", "reason": str(error)}
    except StoreNotFoundError as error:
        return {"uri": uri, "state": "no store", "reason": str(error)}
    except (Head2ToeError, OSError) as error:
        return {"uri": uri, "state": "unreadable", "reason": str(error)}
    except _MALFORMED as error:
        return {"uri": uri, "state": "damaged", "reason": f"the metadata of store {uri!r} is damaged ({error})."}


def describe_results(store: ActivationStore) -> dict[Kind, list[dict[str, Any]]]:
    """Return what is said of every result of a store, by kind, without reading the numbers.

    Parameters
    ----------
    store : ActivationStore
        The store the results lie beside.

    Returns
    -------
    dict of str to list of dict
        ``digest``, ``inputs``, ``facts`` and ``created`` per result; ``digest`` and ``damaged``, which says how, for
        one that cannot be read.
    """
    return {
        kind: [_describe(store, f"results/{kind}/{name}", name) for name in list_results(store, kind)]
        for kind in RESULT_KINDS
    }


def _describe(store: ActivationStore, path: str, name: str) -> dict[str, Any]:
    try:
        attributes = hierarchy.read_attributes(store.objects, path)
        inputs, facts = dict(attributes["inputs"]), dict(attributes["facts"])
    except (Head2ToeError, OSError, *_MALFORMED) as error:
        return {"digest": name, "damaged": str(error)}
    return {"digest": name, "inputs": inputs, "facts": facts, "created": attributes.get("created")}


# -------------------------------------------------------------------- names


def resolve_store(uri: str | os.PathLike[str], **options: Any) -> str:
    """Return the URI of the store that a person means.

    Parameters
    ----------
    uri : str or path
        A store's own path or URL; or ``<root>/<alias>``; or ``<root>/<beginning of a fingerprint>``, of at least four
        digits. The first of these that fits is taken.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    str
        Where the store is.

    Raises
    ------
    StoreNotFoundError
        If nothing fits, or several fingerprints begin so; near matches are named.
    DamagedStoreError
        If the alias of this name cannot be read, or names a store that is not there.
    """
    text = os.fspath(uri)
    objects = open_objects(text, **options)
    if _exists(objects, METADATA) or _exists(objects, REMOVING):
        return text
    root, name = split_uri(text)
    if root is None:
        raise StoreNotFoundError(_not_found(text, ()))
    alias = _read_alias(root, name, options) if _ALIAS.fullmatch(name) else None
    if alias is not None:
        target = join(root, alias.store)
        if not _exists(open_objects(target, **options), METADATA):
            raise DamagedStoreError(
                f"alias {name!r} names store {target!r}, which is not there; `head2toe alias {root} {name} STORE "
                "--force` moves it to another store."
            )
        return target
    stores = [n.removesuffix(SUFFIX) for n in _names(open_objects(root, **options)) if n.endswith(SUFFIX)]
    found = [n for n in stores if len(name) >= MIN_PREFIX and n.startswith(name) and _FINGERPRINT.fullmatch(n)]
    if len(found) == 1:
        return join(root, found[0] + SUFFIX)
    if found:
        raise StoreNotFoundError(
            f"{text!r} is ambiguous: {len(found)} fingerprints begin so; give more digits, {suggest(name, found)}"
        )
    raise StoreNotFoundError(_not_found(text, [*list_aliases(root, **options), *stores]))


def _not_found(text: str, known: Any) -> str:
    if not known:
        return f"no activation store at {text!r}; `head2toe list ROOT` shows what a root holds."
    return f"no activation store at {text!r}; {suggest(split_uri(text)[1], known)}"


def split_uri(uri: str | os.PathLike[str]) -> tuple[str | None, str]:
    """Return the root and the name of what is at a URI; the root is None where a URL has no folder above."""
    text = os.fspath(uri)
    if "://" not in text:
        path = os.path.normpath(os.path.expanduser(text))  # noqa: PTH111
        head, name = os.path.split(path if path not in {".", ".."} else os.path.realpath(path))
        return head or ".", name
    head, _, name = text.rstrip("/").rpartition("/")
    return (None if head.endswith(("/", ":")) else head), name


def list_aliases(root: str | os.PathLike[str], **options: Any) -> dict[str, Alias]:
    """Return the aliases of a root by name; those that cannot be read are left out."""
    found = {}
    for entry in _names(open_objects(root, **options), ALIASES):
        name = entry.removesuffix(".json")
        try:
            alias = _read_alias(root, name, options) if entry.endswith(".json") and _ALIAS.fullmatch(name) else None
        except DamagedStoreError:
            alias = None
        if alias is not None:
            found[name] = alias
    return found


def set_alias(
    root: str | os.PathLike[str], name: str, store: str | os.PathLike[str], *, force: bool = False, **options: Any
) -> Alias:
    """Give a store of a root a name.

    Parameters
    ----------
    root : str or path
        Folder or URL under which the store lies.
    name : str
        Letters, digits, ``_``, ``.`` and ``-``; up to 100 of them.
    store : str or path
        Anything `resolve_store` takes, or what comes after ``<root>/`` in it.
    force : bool
        Move an alias that names another store already.
    **options
        Passed to the fsspec file system.

    Returns
    -------
    Alias
        As now stored in ``<root>/aliases/<name>.json``.

    Raises
    ------
    InvalidInputError
        If the name cannot be used, or the store does not lie under the root.
    ConflictError
        If the alias names another store and `force` is false; nothing is changed.
    StoreNotFoundError
        If there is no such store.
    """
    check_alias(name)
    uri = _in_root(root, store, options)
    there = open_store(uri, allow_incomplete=True, **options)
    alias = Alias(
        name=name,
        fingerprint=there.fingerprint,
        store=split_uri(uri)[1],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    objects, key = open_objects(root, **options), _alias_key(name)
    raw = canonical_json(alias).encode()
    try:
        if objects.create(key, raw):
            return alias
        if not force:
            before = _read_alias(root, name, options)
            if before is not None and (before.fingerprint, before.store) == (alias.fingerprint, alias.store):
                return before
            named = "nothing any more" if before is None else before.store
            raise ConflictError(f"alias {name!r} of {os.fspath(root)!r} names {named} already; --force moves it.")
        objects.write(key, [raw])
    except OSError as error:
        raise InvalidInputError(
            f"cannot write alias {name!r} to {objects.uri!r}: {error.strerror or error}."
        ) from error
    return alias


def remove_alias(root: str | os.PathLike[str], name: str, **options: Any) -> None:
    """Take a name away; the store it names stays.

    Raises
    ------
    StoreNotFoundError
        If there is no such alias.
    InvalidInputError
        If the name cannot be an alias, or the root is not writable.
    """
    check_alias(name)
    objects, key = open_objects(root, **options), _alias_key(name)
    if not _exists(objects, key):
        known = list_aliases(root, **options)
        hint = suggest(name, known) if known else "it has no aliases."
        raise StoreNotFoundError(f"root {objects.uri!r} has no alias {name!r}; {hint}")
    try:
        objects.remove(key)
    except OSError as error:
        raise InvalidInputError(
            f"cannot remove alias {name!r} of {objects.uri!r}: {error.strerror or error}."
        ) from error


def check_alias(name: str) -> None:
    """Refuse a name that cannot be an alias.

    Raises
    ------
    InvalidInputError
        If it has other characters than letters, digits and ``_.-``, begins with ``.`` or ``-``, or is too long.
    """
    if not _ALIAS.fullmatch(name) or name.endswith(SUFFIX):
        raise InvalidInputError(
            f"alias {name!r} cannot be used; letters, digits and '_.-' are allowed, up to 100 of them, starting with "
            f"a letter, digit or '_', and not ending with {SUFFIX!r}."
        )


def _in_root(root: str | os.PathLike[str], store: str | os.PathLike[str], options: Mapping[str, Any]) -> str:
    """Return the URI of a store under `root` that `store` means."""
    try:
        uri = resolve_store(store, **options)
    except StoreNotFoundError:
        return resolve_store(join(root, os.fspath(store).strip("/")), **options)
    inside = join(root, split_uri(uri)[1])
    one, other = open_objects(uri, **options), open_objects(inside, **options)
    if isinstance(one, LocalObjects) and isinstance(other, LocalObjects):
        same = one.root.resolve() == other.root.resolve()
    else:
        same = one.uri.rstrip("/") == other.uri.rstrip("/")
    if not same:
        raise InvalidInputError(
            f"store {uri!r} does not lie in root {os.fspath(root)!r}; aliases name their root's stores."
        )
    return inside


def _read_alias(root: str | os.PathLike[str], name: str, options: Mapping[str, Any]) -> Alias | None:
    try:
        alias = Alias.model_validate_json(open_objects(root, **options).read(_alias_key(name)))
        whole = alias.name == name
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except PermissionError:
        raise InvalidInputError(f"alias {name!r} of {os.fspath(root)!r} cannot be read: permission denied.") from None
    except (ValidationError, ValueError):
        whole = False
    if not whole:
        raise DamagedStoreError(
            f"alias {name!r} of {os.fspath(root)!r} is damaged; `head2toe alias {os.fspath(root)} {name} STORE "
            "--force` writes it again."
        )
    return alias


def _alias_key(name: str) -> str:
    return f"{ALIASES}/{name}.json"


# -------------------------------------------------------------------- removing


def remove_store(uri: str | os.PathLike[str], *, force: bool = False, **options: Any) -> Removed:
    """Remove a store, its results and the aliases that name it; nothing that is not an activation store.

    The root's metadata goes first and the commit records before the data, so that what an interrupted removal leaves
    is never opened as a store; the same call finishes it.

    Parameters
    ----------
    uri : str or path
        The store's own place.
    force : bool
        Remove it although it has selections or heads, a writer claims blocks of it, it was written in another format
        version, or it holds something that is not part of a store.
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
    counts = {kind: _count_results(objects, kind) for kind in RESULT_KINDS}
    if not force and not _half_removed(objects):
        _check_removal(objects, attributes, counts)
    root, name = split_uri(objects.uri)
    pointing: tuple[str, ...] = ()
    try:
        _mark(objects, fingerprint)
        objects.remove(METADATA)
        if root is not None:
            pointing = tuple(a.name for a in list_aliases(root, **options).values() if a.store == name)
            for alias in pointing:
                open_objects(root, **options).remove(_alias_key(alias))
        rest = [n for n in objects.names("") if n not in {REMOVING, "blocks"}]
        for part in ("blocks", *rest, UNFINISHED):
            objects.remove(part)
        objects.remove()
    except OSError as error:
        raise InvalidInputError(
            f"cannot remove all of {objects.uri!r}: {error.strerror or error}; `head2toe remove {objects.uri}` goes on."
        ) from error
    return Removed(objects.uri, fingerprint, counts["selections"], counts["heads"], pointing)


def _claimed_attributes(objects: Objects) -> dict[str, Any]:
    """Return the attributes of what says of itself that it is an activation store, undamaged or not."""
    try:
        raw = objects.read(REMOVING if _half_removed(objects) else METADATA)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise StoreNotFoundError(f"no activation store at {objects.uri!r}; nothing was removed.") from None
    except PermissionError:
        raise InvalidInputError(f"{objects.uri!r} cannot be read: permission denied; nothing was removed.") from None
    try:
        document = json.loads(raw)
        attributes = dict(document if "format" in document else document["attributes"])
    except _MALFORMED:
        # The commit records carry a digest of themselves, so that one of them is proof enough.
        if any(_is_record(objects, split, block) for split in _names(objects, "blocks") for block in (0, 1)):
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
    if counts["selections"] or counts["heads"]:
        parts = [_counted(counts[kind], kind) for kind in RESULT_KINDS if kind != "statistics" and counts[kind]]
        refuse(f"has {' and '.join(parts)}")
    claimed = sum(
        bool(objects.names(f"claims/{s}/{b}")) for s in _names(objects, "claims") for b in objects.names(f"claims/{s}")
    )
    if claimed:
        refuse(f"may be being written, {_counted(claimed, 'blocks')} of it claimed")
    try:
        splits = {row["name"] for row in attributes["splits"]}
    except _MALFORMED:
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


def _count_results(objects: Objects, kind: Kind) -> int:
    return sum(_exists(objects, f"results/{kind}/{name}/{METADATA}") for name in _names(objects, f"results/{kind}"))


def _is_record(objects: Objects, split: str, block: int) -> bool:
    try:
        read_record(objects, split, block)
    except (DamagedStoreError, OSError):
        return False
    return True


def _half_removed(objects: Objects) -> bool:
    return _exists(objects, REMOVING) and not _exists(objects, METADATA)


def _exists(objects: Objects, key: str) -> bool:
    try:
        return objects.exists(key)
    except PermissionError:
        # What is there but cannot be looked at is explained by whoever opens it.
        return True


def _names(objects: Objects, prefix: str = "") -> list[str]:
    try:
        return objects.names(prefix)
    except PermissionError:
        raise InvalidInputError(f"{objects.uri!r} cannot be read: permission denied.") from None
