"""Numbers for people."""

from __future__ import annotations


def human_bytes(n: float) -> str:
    """Return a size such as ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
