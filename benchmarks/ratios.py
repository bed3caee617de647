"""Timing by turns: candidates alternate in one run, so that a change of the machine's speed hits all of them."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def alternate(candidates: Mapping[str, Callable[[], Any]], runs: int = 5) -> dict[str, float]:
    """Return the median seconds of each candidate over `runs` rounds, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(name: str | None, rows: list[dict[str, Any]]) -> None:
    """Print measured figures beside what they must reach; given a name, keep them with date and versions."""
    for row in rows:
        verdict = "" if row.get("reached") is None else ("ok" if row["reached"] else "NOT REACHED")
        line = (
            f"{row['what']:72s} {row['value']:>10.3g}   {row.get('wanted', ''):10s} {verdict:12s} {row.get('note', '')}"
        )
        print(line.rstrip())
    if name is None:
        return
    RESULTS.mkdir(exist_ok=True)
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {p: version(p) for p in ("numpy", "torch", "zarr", "dask")},
        "rows": rows,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def at_most(what: str, value: float, bound: float, note: str = "") -> dict[str, Any]:
    """Return a row for a ratio that should not exceed `bound`."""
    return {"what": what, "value": value, "wanted": f"<= {bound:g}", "reached": value <= bound, "note": note}


def at_least(what: str, value: float, bound: float, note: str = "") -> dict[str, Any]:
    """Return a row for a ratio that should reach `bound`."""
    return {"what": what, "value": value, "wanted": f">= {bound:g}", "reached": value >= bound, "note": note}
