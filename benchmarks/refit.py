"""What fitting a head costs: many classes over many columns, and against scikit-learn at the same objective."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.ratios import alternate, at_least, at_most, report
from pipeline.heads import RefitParameters, fit_head

SECONDS = 60
"""More are minutes."""
SHAPES = {
    "separable": (1000, 500, 10, 4.0),
    "not separable": (5000, 200, 10, 0.5),
    "many classes": (1000, 2000, 100, 4.0),
}
"""Samples, columns and classes, and the size of logits relative to their noise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="timed rounds of each ratio")
    runs = parser.parse_args().runs
    report("refit", [*wide(), *(row for name in SHAPES for row in against(name, runs))])


def wide() -> list[dict[str, Any]]:
    """1,000 samples, 10,000 columns, 397 classes: the stop chosen by held-out samples, then the fit."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(397), rng.integers(0, 397, 603)])
    x = rng.standard_normal((1000, 10_000), np.float32) + 0.3 * rng.standard_normal((397, 10_000), np.float32)[y]
    rows = []
    for parameters in (RefitParameters(), RefitParameters(optimizer="adam")):
        start = time.perf_counter()
        facts = fit_head(x, y, 397, parameters).facts
        seconds = time.perf_counter() - start
        note = ", ".join(f"{name} {value:.3g}" for name, value in facts.items())
        what = f"n=1,000 m=10,000 K=397, {parameters.optimizer}: seconds"
        rows.append(at_most(what, seconds, SECONDS, note=note))
    return rows


def against(name: str, runs: int) -> list[dict[str, Any]]:
    """Stop ours at the first iteration whose objective is at most that of scikit-learn's default tolerance."""
    n, m, n_classes, strength = SHAPES[name]
    x, y = problem(n, m, n_classes, strength)

    def theirs() -> LogisticRegression:
        return LogisticRegression(C=np.inf, max_iter=10_000).fit(x, y)

    model = theirs()
    wanted = -model.predict_log_proba(x.astype(np.float64))[np.arange(n), y].mean()
    iterations, loss = 0, np.inf
    while loss > wanted * (1 + 1e-7):
        iterations += 1
        loss = fit_head(x, y, n_classes, _ours(iterations)).facts["loss"]
    seconds = alternate({"ours": lambda: fit_head(x, y, n_classes, _ours(iterations)), "theirs": theirs}, runs)
    what = f"n={n:,} m={m:,} K={n_classes}, {name}: scikit-learn / ours"
    note = (
        f"objective {wanted:.4g}; ours {seconds['ours']:.2f} s in {iterations}, theirs in {model.n_iter_[0]} iterations"
    )
    return [at_least(what, seconds["theirs"] / seconds["ours"], 1, note=note)]


def problem(n: int, m: int, n_classes: int, strength: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return standardised columns and labels drawn from a linear model of them; every class has a sample."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, m), np.float32)
    logits = strength * x @ rng.standard_normal((m, n_classes), np.float32) / np.float32(m**0.5)
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    y[:n_classes] = np.arange(n_classes)
    return x, y


def _ours(iterations: int) -> RefitParameters:
    return RefitParameters(max_iterations=iterations, validation_fraction=0)


if __name__ == "__main__":
    main()
