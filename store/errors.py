"""Errors a user can cause or must act on; each message is one sentence that names the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Head2ToeError(Exception):
    """Base of every error this project raises on purpose; its text is written for the user."""


class InvalidInputError(Head2ToeError):
    """An argument, a path or a data set cannot be used as given."""


class StoreNotFoundError(Head2ToeError):
    """No activation store, or no such result, at the given place."""


class FormatVersionError(Head2ToeError):
    """The store was written in a format version this release cannot read."""


class IncompleteStoreError(Head2ToeError):
    """Some blocks of the store were never committed."""


class DamagedStoreError(Head2ToeError):
    """Bytes on disk are missing or differ from what was committed."""


class ConflictError(Head2ToeError):
    """Something is already stored under this name with other content."""


class NotFiniteError(Head2ToeError):
    """Activations overflow the store's data type or are not numbers."""


class InterruptedExtractionError(Head2ToeError):
    """Extraction was stopped by the user; what was committed stays."""


def suggest(name: str, choices: Iterable[str], limit: int = 5) -> str:
    """Return a clause naming the near matches of `name`, or the valid choices if none is near.

    Parameters
    ----------
    name : str
        What the user typed.
    choices : iterable of str
        The valid names.
    limit : int
        How many names to list at most.

    Returns
    -------
    str
        For example ``"did you mean 'resnet18', 'resnet10t'?"``.
    """
    known = sorted(set(choices))
    near = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    # Of a digest, people type the beginning.
    near = near or [n for n in known if difflib.get_close_matches(name, [n[: len(name)]], cutoff=0.75)][:limit]
    if near:
        return "did you mean " + ", ".join(repr(n) for n in near) + "?"
    listed = ", ".join(repr(n) for n in known[:limit])
    return f"valid choices are {listed}" + (", …" if len(known) > limit else "") + "."
