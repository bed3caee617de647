"""How the cost of exact selection grows with features, samples, classes and penalties, as docs/scaling.md shows it.

Every case is solved from a store, statistics included, once after a first case that warms up. The model's constants
are fitted to all cases at once: a pass takes ``n p (read + product · columns)`` seconds, where it multiplies by that
many columns of residuals, and the work in memory ``sweep · n · K · rows swept``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import nnls

from benchmarks.problems import write_store
from benchmarks.ratios import report
from pipeline.group_lasso import group_lasso
from pipeline.store_source import StoreSource
from store import open_store

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "scaling.png"
BASE = {"features": 100_000, "samples": 1000, "classes": 10, "penalties": 1}
GROWTH: dict[str, tuple[int, ...]] = {
    "features": (20_000, 50_000, 100_000, 200_000, 500_000),
    "samples": (250, 500, 1000, 2000, 4000),
    "classes": (2, 5, 10, 20, 50),
    "penalties": (1, 5, 10, 20),
}
PASSES, MEMORY = ("first pass", "scan"), ("fetch", "solve", "repair")


def main() -> None:
    cases = [BASE | {name: value} for name, values in GROWTH.items() for value in values]
    with tempfile.TemporaryDirectory() as folder:
        solve(Path(folder), BASE)
        rows = [solve(Path(folder), case) for case in cases]
    fit(rows)
    print("       p      n    K   λ  seconds    model  passes  in memory  support")
    for r in rows:
        print(
            f"{r['features']:8,} {r['samples']:6,} {r['classes']:4} {r['penalties']:3} {r['value']:8.2f} "
            f"{r['model']:8.2f} {r['in_passes']:7.2f} {r['in_memory']:10.2f} {r['support']:8,}"
        )
    draw(rows)
    report("scaling", rows)


def solve(folder: Path, case: dict[str, int]) -> dict[str, Any]:
    """Solve one case from a store of its own; several penalties go down to 0.05 λ_max, one is 0.1 λ_max."""
    path = folder / "-".join(str(case[name]) for name in ("features", "samples", "classes"))
    fresh = not path.exists()
    store = open_store(write_store(path, case["samples"], case["features"], case["classes"]) if fresh else str(path))
    store.objects.remove("results/statistics")
    ratios = np.geomspace(1, 0.05, case["penalties"] + 1)[1:] if case["penalties"] > 1 else np.array([0.1])
    start = time.perf_counter()
    result = group_lasso(StoreSource(store, "standardize"), store.labels("train"), penalty_ratio=list(ratios), tol=1e-3)
    seconds = time.perf_counter() - start
    certificates = [r.certificate for r in result.path]
    last = certificates[-1]
    return case | {
        "what": "exact selection, " + ", ".join(f"{value:,} {name}" for name, value in case.items()),
        "value": seconds,
        "wanted": "certified",
        "reached": all(c.certified for c in certificates),
        "in_passes": sum(last.seconds.get(stage, 0.0) for stage in PASSES),
        "in_memory": sum(last.seconds.get(stage, 0.0) for stage in MEMORY),
        "passes": last.passes,
        "support": last.support_size,
        "cached_columns": last.cached_columns,
        "swept": sum(c.sweeps * c.support_size for c in certificates),
    }


def fit(rows: list[dict[str, Any]]) -> None:
    """Add to each case what the model says; relative errors count alike, however long a case takes."""

    def constants(terms: list[list[float]], seconds: list[float]) -> np.ndarray:
        scale = np.array(seconds)[:, None]
        return nnls(np.array(terms) / scale, np.ones(len(seconds)))[0]

    def columns(r: dict[str, Any]) -> float:
        # The first pass multiplies by K columns, that for rough solutions by up to 3 K, later ones by K a penalty.
        later = (r["passes"] - 1) * r["penalties"]
        if r["passes"] > 2:
            later += min(r["penalties"], 3) - r["penalties"]
        return r["classes"] * (1 + later)

    passes = [[r["samples"] * r["features"] * r["passes"], r["samples"] * r["features"] * columns(r)] for r in rows]
    memory = [
        [r["samples"] * r["cached_columns"] * r["classes"], r["samples"] * r["classes"] * r["swept"]] for r in rows
    ]
    own_passes = constants(passes, [r["in_passes"] for r in rows])
    own_memory = constants(memory, [r["in_memory"] for r in rows])
    for r, a, b in zip(rows, passes, memory, strict=True):
        r["model"] = float(np.array(a) @ own_passes + np.array(b) @ own_memory)
    print("nanoseconds per value read, product, cached value and class, swept value and class:")
    print(*(f"{1e9 * value:.3g}" for value in (*own_passes, *own_memory)))


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw measured seconds, in passes and in memory, beside the model, one panel for what grows."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, GROWTH.items(), strict=True):
        own = [next(r for r in rows if all(r[k] == v for k, v in (BASE | {name: value}).items())) for value in values]
        axis.plot(values, [r["value"] for r in own], "o", color="black", label="measured")
        axis.plot(values, [r["model"] for r in own], "-", color="tab:orange", label="model")
        axis.plot(values, [r["in_passes"] for r in own], "--", color="tab:blue", label="in passes over the store")
        axis.plot(values, [r["in_memory"] for r in own], ":", color="tab:green", label="in memory")
        axis.set(xscale="log", yscale="log", xlabel=f"number of {name}")
        axis.set_xticks(values, [f"{v:,}" for v in values], rotation=30)
        axis.minorticks_off()
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False, fontsize=8)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
