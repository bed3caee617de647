"""Bytes: what a user allows, and what this process has used."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from store.errors import InvalidInputError

DEFAULT_MEMORY = 2 * 2**30
_STATUS = Path("/proc/self/status")


def parse_memory(value: int | str) -> int:
    """Return a number of bytes, given as such or as text like ``2GiB`` or ``500 MB``.

    Raises
    ------
    InvalidInputError
        If it is not a positive size.

    Examples
    --------
    >>> parse_memory("1.5 GiB")
    1610612736
    """
    from dask.utils import parse_bytes

    try:
        n_bytes = parse_bytes(value) if isinstance(value, str) else int(value)
    except (ValueError, OverflowError, TypeError):
        n_bytes = 0
    if n_bytes <= 0:
        raise InvalidInputError(f"memory={value!r} is not a size; give bytes, or text such as '2GiB' or '500 MB'.")
    return n_bytes


def format_memory(n_bytes: int) -> str:
    """Return a size such as ``1.50 GiB``, never less than it is, so that it may be given as a budget."""
    for name, unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= unit:
            return f"{-(-n_bytes * 100 // unit) / 100:.2f} {name}"
    return f"{n_bytes} B"


def peak_bytes() -> int:
    """Return the most memory this process has had at once since it began, its libraries included.

    It is the peak of the resident set, which counts pages of files that happen to be mapped.
    """
    try:
        text = _STATUS.read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
