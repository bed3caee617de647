"""L-BFGS over all samples at once, in as few coordinates as the samples span, stopped by held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize, minimize_scalar

from pipeline.compute import torch_threads
from pipeline.group_lasso.source import single_threaded_blas
from pipeline.normalization import inverse

Array = NDArray[np.float64]
SMALL = 3 * 10**8
"""Multiplications per product below which one thread is faster than several."""
EVALUATIONS = 50
"""Of the loss, as a fit usually takes."""
WIDTH = 1024
"""Columns that are widened to double precision at a time."""
NOTHING = 1e-10
"""Square of the extent of the samples along a direction, relative to the largest, below which there is none."""
ROUNDING = 4 * np.finfo(np.float32).eps
"""Deviation relative to the mean that a column has by rounding alone."""
SOFTEST = 1e-3
"""Least factor of logits that is looked at."""
MEMORY = 10
"""Pairs of steps and changes of gradient from which L-BFGS estimates the curvature."""


def fit_lbfgs(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    n_classes: int,
    *,
    max_iterations: int,
    validation_fraction: float,
    patience: int,
    seed: int,
) -> tuple[Array, Array, dict[str, Any]]:
    """Minimise mean cross-entropy from zero, in as many iterations as held-out samples find best.

    On separable data the loss has no minimum, so the number of iterations is the only regulariser: it is chosen by
    the loss on held-out samples, and the head is then trained afresh on all samples for that many iterations. As a
    head grows sure of itself before it stops getting better, that loss is of logits made as much softer as suits the
    held-out samples best (temperature scaling, Guo et al., ICML 2017), and the head is made softer likewise. The
    iterations run on centred columns of equal variance: without a penalty that is the same model in other
    coordinates, and better conditioned where columns hardly vary, as after ``unit_norm``. With many more columns than
    samples they run in an orthonormal basis of what the samples span, which no iterate from zero ever leaves: the
    iterates are the same, at a cost of n² instead of n·m per class.

    Parameters
    ----------
    x : ndarray of float32, shape (n, m)
        Normalised columns.
    y : ndarray of int64, shape (n,)
        Class indices.
    n_classes : int
        Number of classes K.
    max_iterations : int
        Upper bound of iterations.
    validation_fraction : float
        Share of the samples that chooses the number of iterations; at 0 nothing is chosen.
    patience : int
        Iterations without a better validation loss after which the choice is made.
    seed : int
        Chooses the validation samples.

    Returns
    -------
    coef : ndarray of float64, shape (m, K)
        Weights.
    intercept : ndarray of float64, shape (K,)
        Biases.
    facts : dict
        ``iterations``, ``temperature`` by which logits were divided, ``validation_loss`` (None if nothing was held
        out) and the final ``loss``, in nats.
    """
    space = _Space(x, y, n_classes)
    iterations, best_loss, factor = max_iterations, None, 1.0
    held = torch.from_numpy(hold_out(y, validation_fraction, seed))
    if held.any():
        inner = Problem(space.values[~held], space.labels[~held], n_classes)
        outer = Problem(space.values[held], space.labels[held], n_classes)
        iterations, best_loss, factor = _best_stop(inner, outer, max_iterations, patience)
    problem = Problem(space.values, space.labels, n_classes)
    solution = problem.minimize(iterations)
    flat = factor * solution.x
    facts = {
        "iterations": int(solution.nit),
        "temperature": 1 / factor,
        "validation_loss": best_loss,
        "loss": float(solution.fun) if factor == 1 else problem.loss(flat),
    }
    return *space.head(flat), facts


def fit_stops(
    x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, stops: Sequence[int]
) -> list[tuple[Array, Array, dict[str, Any]]]:
    """Return what `fit_lbfgs` does without held-out samples for several bounds of iterations, from one descent."""
    space = _Space(x, y, n_classes)
    passed: list[tuple[Array, float]] = []

    def keep(intermediate_result: OptimizeResult) -> None:
        passed.append((intermediate_result.x.copy(), float(intermediate_result.fun)))

    last = Problem(space.values, space.labels, n_classes).minimize(max(stops), keep)
    passed = passed or [(last.x, float(last.fun))]
    ends = [min(stop, len(passed)) for stop in stops]
    return [
        (
            *space.head(passed[end - 1][0]),
            {
                "iterations": min(end, int(last.nit)),
                "temperature": 1.0,
                "validation_loss": None,
                "loss": passed[end - 1][1],
            },
        )
        for end in ends
    ]


class _Space:
    """The coordinates in which iterations run, and the way back from there."""

    def __init__(self, x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int) -> None:
        self.n_classes = n_classes
        self._mean = mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        values = torch.from_numpy(x - mean)
        deviation = np.sqrt(np.square(values.numpy()).mean(axis=0, dtype=np.float64))
        deviation[deviation <= ROUNDING * np.abs(mean)] = 0  # as ±1, which unit norm makes of a layer's only feature
        self._scale = torch.from_numpy(inverse(deviation))
        values *= self._scale
        self.values, self._columns = values, values
        self._back: torch.Tensor | None = None
        self.labels = torch.from_numpy(y)
        n, m = values.shape
        # Multiplications saved in all usual evaluations, against those of inner products and their eigenvectors.
        if EVALUATIONS * n_classes * (m - n) > n * (m + 5 * n):
            self.values, self._back = _span(values)

    def head(self, flat: Array) -> tuple[Array, Array]:
        """Return weights of shape (m, K) and biases of shape (K,) for the columns as they were given."""
        weights, intercept = split(torch.from_numpy(flat), self.n_classes)
        rows = weights.T
        if self._back is not None:
            rows = (self._columns.T @ (self._back @ weights.T).float()).double()
        coef = (rows * self._scale[:, None].double()).numpy()
        return coef, intercept.numpy() - self._mean.astype(np.float64) @ coef


def _span(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates of the samples in an orthonormal basis V of their span, and B such that V = xᵀB."""
    gram = torch.zeros(len(x), len(x), dtype=torch.float64)
    for part in x.split(WIDTH, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    with single_threaded_blas():
        squares, vectors = map(torch.from_numpy, np.linalg.eigh(gram.numpy()))
    kept = squares > squares[-1] * NOTHING
    lengths = squares[kept].sqrt()
    return (vectors[:, kept] * lengths).float(), vectors[:, kept] / lengths


def hold_out(y: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples are held out, shape (n,): of each class its share, rounded up or down at random.

    A class keeps at least one sample, and is not held out at all if it has only one.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(y), np.bool_)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        held[members[: min(int(len(members) * fraction + rng.random()), len(members) - 1)]] = True
    return held


def _best_stop(inner: Problem, outer: Problem, max_iterations: int, patience: int) -> tuple[int, float, float]:
    """Return the iteration on `inner` whose softened loss on `outer` is least, that loss, and the factor of logits."""
    found: list[tuple[float, float]] = []

    def watch(intermediate_result: OptimizeResult) -> None:
        found.append(outer.soften(intermediate_result.x))
        if len(found) - found.index(min(found)) > patience:
            raise StopIteration

    inner.minimize(max_iterations, watch)
    best = found.index(min(found)) if found else 0
    return best + 1, *(found[best] if found else outer.soften(np.zeros(outer.size)))


class Problem:
    """Mean cross-entropy of a linear head over some samples, its gradient, and its minimum.

    Parameters
    ----------
    x : Tensor of float32, shape (n, m)
        Columns.
    y : Tensor of int64, shape (n,)
        Class indices.
    n_classes : int
        Number of classes K.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, n_classes: int) -> None:
        self.x, self.y, self.n_classes = x.contiguous(), y, n_classes

    @property
    def size(self) -> int:
        """Number of weights and biases, (m + 1) K."""
        return (self.x.shape[1] + 1) * self.n_classes

    def loss(self, flat: Array) -> float:
        """Return the loss at weights and biases of shape (K m + K,), class by class, in nats."""
        return float(torch.nn.functional.cross_entropy(self._logits(flat).T, self.y))

    def loss_and_gradient(self, flat: Array) -> tuple[float, Array]:
        """Return the loss and its gradient: products in single precision, everything summed in double."""
        log_p = torch.log_softmax(self._logits(flat), dim=0)
        own = self.y, torch.arange(len(self.y))
        loss = -float(log_p[own].mean())
        error = log_p.exp_()
        error[own] -= 1
        error /= len(self.y)
        gradient = torch.cat([(error.float() @ self.x).double().flatten(), error.sum(1)])
        return loss, gradient.numpy()

    def soften(self, flat: Array) -> tuple[float, float]:
        """Return the least loss of all multiples of the logits by at most one, and that factor."""
        logits = self._logits(flat)

        def loss(log_factor: float) -> float:
            return float(torch.nn.functional.cross_entropy(np.exp(log_factor) * logits.T, self.y))

        least = minimize_scalar(loss, bounds=(np.log(SOFTEST), 0.0), method="bounded", options={"xatol": 1e-5})
        # The search never tries its bounds.
        as_it_is = loss(0.0)
        return (as_it_is, 1.0) if as_it_is <= least.fun else (float(least.fun), float(np.exp(least.x)))

    def minimize(self, iterations: int, callback: Callable[[OptimizeResult], None] | None = None) -> OptimizeResult:
        """Descend from zero, for so many iterations at most."""
        # Threads of small products spend their time waiting for each other, many times over on a busy machine.
        with torch_threads(1 if self.x.numel() * self.n_classes < SMALL else None), single_threaded_blas():
            return minimize(
                self.loss_and_gradient,
                np.zeros(self.size),
                jac=True,
                method="L-BFGS-B",
                callback=callback,
                options={
                    "maxiter": iterations,
                    "maxfun": 10 * iterations,
                    "maxcor": MEMORY,
                    "ftol": 1e-12,
                    "gtol": 1e-8,
                },
            )

    def _logits(self, flat: Array) -> torch.Tensor:
        # With the few classes on the left it takes a quarter of the time of the same product the other way round.
        weights, intercept = split(torch.from_numpy(flat), self.n_classes)
        return (weights.float() @ self.x.T).double() + intercept[:, None]


def split(flat: torch.Tensor, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of weights, shape (K, m), and biases, shape (K,)."""
    return flat[:-n_classes].view(n_classes, -1), flat[-n_classes:]
