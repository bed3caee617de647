"""What other packages add through entry points: scorers, tap presets, data sources and poolings.

A name is looked up when it is asked for, and the package that gives it is imported then and not before. What this
package calls by a name, nobody else does: a clash is an error of that name alone, and all others go on working.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from store.errors import Head2ToeError, InvalidInputError
from store.spec import PluginSpec

Kind = Literal["scorer", "tap preset", "data source", "pooling"]
GROUPS: dict[Kind, str] = {
    "scorer": "head2toe.scorers",
    "tap preset": "head2toe.tap_presets",
    "data source": "head2toe.data_sources",
    "pooling": "head2toe.poolings",
}
"""Group of the entry points of each kind."""


@dataclass(frozen=True)
class Plugin:
    """Something that another package gives.

    Attributes
    ----------
    kind : str
        What it is, as a key of `GROUPS`.
    spec : PluginSpec
        Its name, and the distribution and version that it comes from.
    value : object
        What the entry point names.
    """

    kind: Kind
    spec: PluginSpec
    value: Any

    def __str__(self) -> str:
        return _describe(self.kind, self.spec)

    def require(self, fits: bool, wanted: str) -> None:
        """Refuse what is not of the form that its kind must have.

        Raises
        ------
        InvalidInputError
            If it does not fit.
        """
        if not fits:
            raise InvalidInputError(f"{self} is a {type(self.value).__name__}; it must be {wanted}.")


def find_plugin(kind: Kind, name: str, ours: Collection[str] = ()) -> Plugin | None:
    """Return what another package gives under a name, or None.

    Parameters
    ----------
    kind : str
        A key of `GROUPS`.
    name : str
        As the user gave it.
    ours : collection of str
        Names that have a meaning without plug-ins.

    Returns
    -------
    Plugin or None
        None if no installed package has an entry point of this name.

    Raises
    ------
    InvalidInputError
        If two give the name, it has a meaning already, or what gives it cannot be imported.
    """
    entries = _scan(tuple(sys.path)).get((GROUPS[kind], name), ())
    if not entries:
        return None
    specs = [_spec(kind, entry) for entry in entries]
    if len(specs) > 1 or name in ours:
        givers = " and ".join(f"{spec.distribution} {spec.version}" for spec in specs)
        other = " and means something else here already" if name in ours else ""
        raise InvalidInputError(
            f"{kind} {name!r} is given by {givers}{other}; uninstall one of them, or rename its entry point in group "
            f"{GROUPS[kind]!r}."
        )
    with blamed(kind, specs[0]):
        return Plugin(kind, specs[0], entries[0].load())


def plugin_names(kind: Kind) -> list[str]:
    """Return the names that other packages give, without importing any of them."""
    return sorted(name for group, name in _scan(tuple(sys.path)) if group == GROUPS[kind])


def require_installed(kind: Kind, spec: PluginSpec) -> Plugin:
    """Return the very plug-in with which something was made.

    Parameters
    ----------
    kind : str
        A key of `GROUPS`.
    spec : PluginSpec
        As it was written down.

    Raises
    ------
    InvalidInputError
        If it is not installed, or of another distribution or version.
    """
    found = find_plugin(kind, spec.name)
    if found is None or found.spec != spec:
        here = "" if found is None else f", not that of {found.spec.distribution} {found.spec.version},"
        raise InvalidInputError(
            f"{_describe(kind, spec)}{here} is needed; install {spec.distribution}=={spec.version}."
        )
    return found


@contextmanager
def blamed(kind: Kind, spec: PluginSpec) -> Iterator[None]:
    """Turn whatever goes wrong inside of another package into one sentence that names it.

    Raises
    ------
    InvalidInputError
        In place of any error but those of this project that are not about input.
    """
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"{_describe(kind, spec)} cannot be used: {error}") from error
    except Head2ToeError:
        raise
    except Exception as error:  # other people's code may raise anything
        reason = " ".join(str(error).split()).rstrip(".")
        shown = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        message = f"{_describe(kind, spec)} failed with {shown}; repair or uninstall it."
        raise InvalidInputError(message) from error


@cache
def _scan(path: tuple[str, ...]) -> dict[tuple[str, str], tuple[EntryPoint, ...]]:
    """Return entry points by group and name; reading all packages' takes milliseconds, so once per search path."""
    found: dict[tuple[str, str], tuple[EntryPoint, ...]] = {}
    for group in GROUPS.values():
        for entry in entry_points(group=group):
            key = group, entry.name
            found[key] = (*found.get(key, ()), entry)
    return found


def _spec(kind: Kind, entry: EntryPoint) -> PluginSpec:
    metadata = dict(entry.dist.metadata.items()) if entry.dist is not None else {}  # type: ignore[attr-defined]  # email.Message
    name, version = metadata.get("Name"), metadata.get("Version")
    if not name or not version:
        raise InvalidInputError(
            f"{kind} {entry.name!r} ({entry.value}) comes from a distribution without a name or a version, which "
            "results must be able to name; install it again."
        )
    return PluginSpec(name=entry.name, distribution=name, version=version)


def _describe(kind: Kind, spec: PluginSpec) -> str:
    return f"{kind} {spec.name!r} of {spec.distribution} {spec.version}"
