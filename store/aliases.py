"""The names of the stores under a root: find the store that a person means, give it an alias, take the alias away."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError

from store.activations import open_store
from store.errors import ConflictError, DamagedStoreError, InvalidInputError, StoreNotFoundError, suggest
from store.hierarchy import METADATA
from store.layout import REMOVING
from store.objects import LocalObjects, Objects, join, open_objects
from store.spec import DIGEST_LENGTH, Frozen, canonical_json

SUFFIX = ".zarr"
ALIASES = "aliases"
MIN_PREFIX = 4
"""Digits of a fingerprint that are needed at least, so that a slip of the finger does not name a store."""
_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")


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
    if is_there(objects, METADATA) or is_there(objects, REMOVING):
        return text
    root, name = split_uri(text)
    if root is None:
        raise StoreNotFoundError(_not_found(text, ()))
    alias = _read_alias(root, name, options) if _ALIAS.fullmatch(name) else None
    if alias is not None:
        target = join(root, alias.store)
        if not is_there(open_objects(target, **options), METADATA):
            raise DamagedStoreError(
                f"alias {name!r} names store {target!r}, which is not there; `head2toe alias {root} {name} STORE "
                "--force` moves it to another store."
            )
        return target
    stores = [n.removesuffix(SUFFIX) for n in list_names(open_objects(root, **options)) if n.endswith(SUFFIX)]
    found = [n for n in stores if name and n.startswith(name) and _FINGERPRINT.fullmatch(n)]
    if found and len(name) < MIN_PREFIX:
        raise StoreNotFoundError(
            f"no activation store at {text!r}; of a fingerprint at least {MIN_PREFIX} digits are needed, such as "
            f"{found[0][:MIN_PREFIX]!r}."
        )
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
        path = os.path.normpath(os.path.expanduser(text))  # noqa: PTH111  (a path object would drop what normpath keeps)
        head, name = os.path.split(path if path not in {".", ".."} else os.path.realpath(path))
        return head or ".", name
    head, _, name = text.rstrip("/").rpartition("/")
    return (None if head.endswith(("/", ":")) else head), name


def list_aliases(root: str | os.PathLike[str], **options: Any) -> dict[str, Alias]:
    """Return the aliases of a root by name; those that cannot be read are left out."""
    found = {}
    for entry in list_names(open_objects(root, **options), ALIASES):
        name = entry.removesuffix(".json")
        try:
            alias = _read_alias(root, name, options) if entry.endswith(".json") and _ALIAS.fullmatch(name) else None
        except DamagedStoreError:
            alias = None
        if alias is not None:
            found[name] = alias
    return found


def set_alias(
    root: str | os.PathLike[str],
    name: str,
    store: str | os.PathLike[str],
    *,
    force: bool = False,
    dry_run: bool = False,
    **options: Any,
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
    dry_run : bool
        Write nothing.
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
    objects, key = open_objects(root, **options), alias_key(name)
    raw = canonical_json(alias).encode()
    try:
        if not is_there(objects, key) if dry_run else objects.create(key, raw):
            return alias
        if not force:
            before = _read_alias(root, name, options)
            if before is not None and (before.fingerprint, before.store) == (alias.fingerprint, alias.store):
                return before
            named = "nothing any more" if before is None else before.store
            raise ConflictError(f"alias {name!r} of {os.fspath(root)!r} names {named} already; --force moves it.")
        if not dry_run:
            objects.write(key, [raw])
    except OSError as error:
        raise InvalidInputError(
            f"cannot write alias {name!r} to {objects.uri!r}: {error.strerror or error}."
        ) from error
    return alias


def remove_alias(root: str | os.PathLike[str], name: str, *, dry_run: bool = False, **options: Any) -> None:
    """Take a name away, unless it is only tried; the store it names stays.

    Raises
    ------
    StoreNotFoundError
        If there is no such alias.
    InvalidInputError
        If the name cannot be an alias, or the root is not writable.
    """
    check_alias(name)
    objects, key = open_objects(root, **options), alias_key(name)
    if not is_there(objects, key):
        known = list_aliases(root, **options)
        hint = suggest(name, known) if known else "it has no aliases."
        raise StoreNotFoundError(f"root {objects.uri!r} has no alias {name!r}; {hint}")
    try:
        if not dry_run:
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
        If it has other characters than letters, digits and ``_.-``, begins with ``.`` or ``-``, is too long, or reads
        like the beginning of a fingerprint.
    """
    if re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},{DIGEST_LENGTH}}}", name):
        raise InvalidInputError(f"alias {name!r} cannot be used: it reads like the beginning of a fingerprint.")
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
        alias = Alias.model_validate_json(open_objects(root, **options).read(alias_key(name)))
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


def alias_key(name: str) -> str:
    """Return where an alias lies under its root."""
    return f"{ALIASES}/{name}.json"


def is_there(objects: Objects, key: str) -> bool:
    """Return whether there is an object, also where it may not be looked at."""
    try:
        return objects.exists(key)
    except PermissionError:
        # What is there but cannot be looked at is explained by whoever opens it.
        return True


def list_names(objects: Objects, prefix: str = "") -> list[str]:
    """Return the names under a prefix; what may not be read is told in one sentence."""
    try:
        return objects.names(prefix)
    except PermissionError:
        raise InvalidInputError(f"{objects.uri!r} cannot be read: permission denied.") from None
