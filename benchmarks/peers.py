"""Other libraries with the same penalty, in an environment of their own: adelie needs numpy < 2.

Called by `benchmarks.selection` as ``python peers.py FOLDER LIBRARY TOLERANCE``; imports nothing of this project. The
folder holds ``x.npy`` (sample, feature), standardised, ``y.npy`` (sample, class), one-hot, and ``penalties.npy``.
Prints the seconds of the fit alone and writes the coefficients of every penalty, (penalty, feature, class), and the
intercepts beside them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    folder, library, tolerance = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    coef, intercept, seconds = FITS[library](x, y, np.load(folder / "penalties.npy"), tolerance)
    np.save(folder / "coef.npy", coef)
    np.save(folder / "intercept.npy", intercept)
    print(json.dumps({"seconds": seconds}))


def adelie_softmax(x: Any, y: Any, penalties: Any, tolerance: float) -> tuple[Any, Any, float]:
    import adelie

    (_, p), n_classes = x.shape, y.shape[1]
    x, y = np.asfortranarray(x, np.float64), np.asfortranarray(y, np.float64)
    start = time.perf_counter()
    fit = adelie.grpnet(
        x,
        adelie.glm.multinomial(y),
        penalty=np.ones(p),
        # Its loss is divided by the number of classes.
        lmda_path=penalties / n_classes,
        tol=tolerance,
        irls_tol=tolerance,
        early_exit=False,
        progress_bar=False,
        n_threads=2,
    )
    seconds = time.perf_counter() - start
    coef = np.stack([np.asarray(b.todense()).reshape(p, n_classes) for b in fit.betas])
    return coef, np.asarray(fit.intercepts).reshape(len(coef), n_classes), seconds


def sklearn_squared(x: Any, y: Any, penalties: Any, tolerance: float) -> tuple[Any, Any, float]:
    from sklearn.linear_model import MultiTaskLasso

    return _squared(MultiTaskLasso(alpha=penalties[-1], tol=tolerance, max_iter=100_000), x, y)


def celer_squared(x: Any, y: Any, penalties: Any, tolerance: float) -> tuple[Any, Any, float]:
    from celer import MultiTaskLasso

    return _squared(MultiTaskLasso(alpha=penalties[-1], tol=tolerance, max_iter=1000), x, y)


def _squared(model: Any, x: Any, y: Any) -> tuple[Any, Any, float]:
    x, y = np.asfortranarray(x, np.float64), np.asfortranarray(y, np.float64)
    start = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - start
    return model.coef_.T[None], np.asarray(model.intercept_)[None], seconds


FITS = {"adelie": adelie_softmax, "scikit-learn": sklearn_squared, "celer": celer_squared}

if __name__ == "__main__":
    main()
