"""Refit: train a fresh, unpenalised linear head on chosen columns, and measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import OptimizeResult, minimize

from pipeline.compute import torch_threads
from pipeline.normalization import NORMALIZATIONS, inverse, renormalize
from pipeline.statistics import compute_statistics
from store.activations import ActivationStore
from store.errors import InvalidInputError, suggest
from store.results import Result, find_result, write_result
from store.spec import Frozen

ROWS = 4096
"""Samples whose columns are read at a time when a head is applied."""
SMALL = 10**8
"""Multiplications per product below which one thread is faster than several."""


class RefitParameters(Frozen):
    """How a head is trained.

    Attributes
    ----------
    max_iterations : int
        Upper bound of L-BFGS iterations.
    validation_fraction : float
        Share of each class's training samples that chooses the number of iterations.
    patience : int
        Iterations without a better validation loss after which the choice is made.
    seed : int
        Chooses the validation samples.
    """

    max_iterations: Annotated[int, Field(ge=1)] = 500
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    patience: Annotated[int, Field(ge=1)] = 30
    seed: int = 0


@dataclass(frozen=True)
class Head:
    """A trained linear head and what it achieves.

    Attributes
    ----------
    digest : str
        Name of the head in the store.
    indices : ndarray of int64, shape (m,)
        Features it reads, by global index.
    coef : ndarray of float64, shape (m, class)
        Weights on normalised features.
    intercept : ndarray of float64, shape (class,)
        Biases.
    accuracy : dict of str to float
        Share of samples classified right, by split.
    facts : dict
        Iterations, seconds, bytes read and the like.
    reused : bool
        Whether this call found it in the store.
    """

    digest: str
    indices: NDArray[np.int64]
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    accuracy: dict[str, float]
    facts: dict[str, Any]
    reused: bool


def refit(
    store: ActivationStore,
    indices: NDArray[np.int64],
    *,
    features: Mapping[str, Any],
    normalization: str,
    parameters: RefitParameters | None = None,
    train: str = "train",
) -> Head:
    """Train a head on chosen columns and measure it on every split, or return the stored one.

    Only the chosen columns are read. With ``unit_norm`` the raw columns are gathered first and each layer's part is
    normalised anew, as the reference does; with ``standardize`` the statistics are those of the training split.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    indices : ndarray of int64, shape (m,)
        Global indices of the columns.
    features : mapping
        What the columns are, for lineage, such as ``{"selection": digest}``, with ``"store": fingerprint`` if the
        selection is another store's; part of the head's identity.
    normalization : {"unit_norm", "standardize", "none"}
        What the head sees.
    parameters : RefitParameters, optional
        How it is trained.
    train : str
        The training split.

    Returns
    -------
    Head
        As now stored beside the activations.

    Raises
    ------
    InvalidInputError
        If the normalization is unknown or there is no such split.
    """
    if normalization not in NORMALIZATIONS:
        raise InvalidInputError(f"normalization={normalization!r} is unknown; {suggest(normalization, NORMALIZATIONS)}")
    parameters = parameters or RefitParameters()
    inputs = {
        "features": dict(features),
        "normalization": normalization,
        "parameters": parameters.model_dump(mode="json"),
        "train": train,
    }
    found = find_result(store, "heads", inputs)
    if found is not None:
        return _head(found, reused=True)
    start, bytes_before, requests_before = time.perf_counter(), store.reads.n_bytes, store.reads.n_requests
    indices = np.sort(np.asarray(indices, np.int64))
    normalize = _normalizer(store, indices, normalization, train)
    n_classes = len(store.class_names)
    x, y = normalize(store.columns(train, indices)), store.labels(train)
    coef, intercept, fitting = fit_head(x, y, n_classes, parameters)
    accuracy = {}
    for split in store.splits.values():
        hits = 0
        for row in range(0, split.n_samples, ROWS):
            rows = slice(row, min(row + ROWS, split.n_samples))
            part = x[rows] if split.name == train else normalize(store.columns(split.name, indices, rows))
            hits += int((np.argmax(part @ coef + intercept, axis=1) == store.labels(split.name)[rows]).sum())
        accuracy[split.name] = hits / split.n_samples
    facts = {
        "accuracy": accuracy,
        **fitting,
        "seconds": round(time.perf_counter() - start, 3),
        "bytes_read": store.reads.n_bytes - bytes_before,
        "requests": store.reads.n_requests - requests_before,
    }
    arrays = {
        "indices": (indices, ("feature",)),
        "coef": (coef, ("feature", "class")),
        "intercept": (intercept, ("class",)),
    }
    return _head(write_result(store, "heads", inputs, arrays, facts), reused=False)


def fit_head(
    x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, parameters: RefitParameters
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Fit multinomial logistic regression without a penalty by full-batch L-BFGS.

    On separable data the loss has no minimum, so the number of iterations is the only regulariser: it is chosen by
    the loss on held-out samples, and the head is then trained afresh on all samples for that many iterations. The
    iterations run on centred columns of equal variance: without a penalty that is the same model in other
    coordinates, and better conditioned where columns hardly vary, as after ``unit_norm``.

    Parameters
    ----------
    x : ndarray of float32, shape (sample, feature)
        Normalised columns.
    y : ndarray of int64, shape (sample,)
        Class indices.
    n_classes : int
        Number of classes K.
    parameters : RefitParameters
        Bounds and seed.

    Returns
    -------
    coef : ndarray of float64, shape (feature, K)
        Weights.
    intercept : ndarray of float64, shape (K,)
        Biases.
    facts : dict
        ``iterations``, ``validation_loss`` (None if no class has two samples) and the final ``loss``, in nats.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    scale = inverse(x.std(axis=0, dtype=np.float64)).astype(np.float64)
    x = ((x - mean) * scale).astype(np.float32)
    held_out = _holdout(y, parameters)
    iterations, best_loss = parameters.max_iterations, np.inf
    if held_out.any():
        best, stale = 0, 0
        inner, outer = _Problem(x[~held_out], y[~held_out], n_classes), _Problem(x[held_out], y[held_out], n_classes)
        number = 0

        def watch(intermediate_result: OptimizeResult) -> None:
            nonlocal best_loss, best, stale, number
            number += 1
            loss = outer.loss(intermediate_result.x)
            if loss < best_loss:
                best_loss, best, stale = loss, number, 0
            else:
                stale += 1
            if stale >= parameters.patience:
                raise StopIteration

        _minimize(inner, parameters.max_iterations, watch)
        iterations = max(best, 1)
    solution = _minimize(_Problem(x, y, n_classes), iterations)
    weights = solution.x.reshape(-1, n_classes)
    coef = weights[:-1] * scale[:, None]
    facts = {
        "iterations": iterations,
        "validation_loss": float(best_loss) if held_out.any() else None,
        "loss": float(solution.fun),
    }
    return coef, weights[-1] - mean @ coef, facts


class _Problem:
    """Mean cross-entropy of a linear head over some samples, and its gradient."""

    def __init__(self, x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int) -> None:
        self.x, self.y = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y)
        self.n_classes = n_classes

    @property
    def operations(self) -> int:
        return self.x.numel() * self.n_classes

    @property
    def size(self) -> int:
        return (self.x.shape[1] + 1) * self.n_classes

    def logits(self, flat: NDArray[np.float64]) -> torch.Tensor:
        weights = torch.from_numpy(flat).reshape(-1, self.n_classes)
        return (self.x @ weights[:-1].float()).double() + weights[-1]

    def loss(self, flat: NDArray[np.float64]) -> float:
        return float(torch.nn.functional.cross_entropy(self.logits(flat), self.y))

    def loss_and_gradient(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_p = torch.log_softmax(self.logits(flat), dim=1)
        picked = log_p.gather(1, self.y[:, None])
        error = log_p.exp_()
        error[torch.arange(len(self.y)), self.y] -= 1
        error /= len(self.y)
        gradient = torch.cat([(self.x.T @ error.float()).double(), error.sum(0, keepdim=True)])
        return -float(picked.mean()), gradient.flatten().numpy()


def _minimize(
    problem: _Problem, iterations: int, callback: Callable[[OptimizeResult], None] | None = None
) -> OptimizeResult:
    # Threads of small products spend their time waiting for each other, many times over on a busy machine.
    with torch_threads(1 if problem.operations < SMALL else None):
        return minimize(
            problem.loss_and_gradient,
            np.zeros(problem.size),
            jac=True,
            method="L-BFGS-B",
            callback=callback,
            options={"maxiter": iterations, "maxfun": 10 * iterations, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-8},
        )


def _holdout(y: NDArray[np.int64], parameters: RefitParameters) -> NDArray[np.bool_]:
    rng = np.random.default_rng(parameters.seed)
    held = np.zeros(len(y), np.bool_)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        held[rng.permutation(members)[: int(len(members) * parameters.validation_fraction)]] = True
    return held


def _normalizer(
    store: ActivationStore, indices: NDArray[np.int64], normalization: str, train: str
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    if normalization == "standardize":
        moments = compute_statistics(store, train)
        mean, scale = moments.mean[indices].astype(np.float32), inverse(moments.std[indices])
        return lambda values: (values - mean) * scale
    if normalization == "unit_norm":

        def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
            renormalize(store, indices, values)
            return values

        return unit
    return lambda values: values


def _head(result: Result, *, reused: bool) -> Head:
    a = result.arrays
    return Head(result.digest, a["indices"], a["coef"], a["intercept"], result.facts["accuracy"], result.facts, reused)
