"""Exact group lasso over more features than fit in memory, with a certificate (design section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.group_lasso.budget import plan_memory
from pipeline.group_lasso.certificate import Certificate
from pipeline.group_lasso.losses import Array, Loss, SoftmaxLoss, SquaredLoss
from pipeline.group_lasso.path import Progress, Solution, TwoPassSolver
from pipeline.group_lasso.source import ArraySource, ColumnSource, FirstPass
from pipeline.memory import DEFAULT_MEMORY, parse_memory
from store.activations import ActivationStore
from store.errors import InvalidInputError

__all__ = ["ArraySource", "Certificate", "ColumnSource", "FirstPass", "GroupLassoResult", "group_lasso"]


@dataclass(frozen=True)
class GroupLassoResult:
    """A group-sparse linear model, the order of all features, and the evidence for both.

    Attributes
    ----------
    support : ndarray of shape (m,), int64
        Features with a non-zero row of W, sorted.
    support_coef : ndarray of shape (m, K), float64
        Their rows, with respect to normalised columns.
    intercept : ndarray of shape (K,), float64
        The intercept b; sums to zero for softmax.
    relevance : ndarray of shape (p,), float64
        ``‖W_j‖₂`` on the support; ``c_j / λ − 1 ≤ 0`` off it, so that larger means earlier. Ties go by index.
    certificate : Certificate
        Duality gap, violations, passes, bytes and seconds.
    classes : ndarray of shape (K,) or None
        Label of each column; None for real-valued targets.
    path : tuple of GroupLassoResult
        One result per penalty in the order asked for, the last equal to this one; empty for a single penalty.
    """

    support: NDArray[np.int64]
    support_coef: Array
    intercept: Array
    relevance: Array
    certificate: Certificate
    classes: NDArray[Any] | None = None
    path: tuple[GroupLassoResult, ...] = field(default=(), repr=False)

    @property
    def coef(self) -> Array:
        """W as a dense array of shape (p, K), float64."""
        dense = np.zeros((len(self.relevance), len(self.intercept)))
        dense[self.support] = self.support_coef
        return dense

    def decision_function(self, X: NDArray[Any]) -> Array:
        """Return ``X̃W + b``.

        Parameters
        ----------
        X : ndarray of shape (samples, p)
            Normalised as the training columns were.

        Returns
        -------
        ndarray of shape (samples, K), float64
            Logits, or predictions for the squared loss.

        Raises
        ------
        InvalidInputError
            If the number of features differs.
        """
        if X.ndim != 2 or X.shape[1] != len(self.relevance):
            message = f"X has shape {X.shape}; it must have {len(self.relevance)} columns, as in training."
            raise InvalidInputError(message)
        logits: Array = X[:, self.support].astype(np.float64) @ self.support_coef + self.intercept
        return logits


def group_lasso(
    X: NDArray[Any] | ColumnSource | ActivationStore | Sequence[ActivationStore],
    y: ArrayLike | None = None,
    *,
    loss: str = "softmax",
    normalization: str = "none",
    split: str = "train",
    penalty: float | None = None,
    penalty_ratio: float | Sequence[float] | None = None,
    penalties: Sequence[float] | None = None,
    keep: int | None = None,
    sample_weight: ArrayLike | None = None,
    tol: float = 1e-4,
    kkt_tol: float = 1e-3,
    memory: int | str = DEFAULT_MEMORY,
    dask_address: str | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> GroupLassoResult:
    """Minimise a convex loss plus ``λ Σ_j ‖W_j‖₂`` over all features, and prove it.

    With softmax the loss is ``(1/n) Σ_i v_i CE(y_i, softmax(Wᵀx̃_i + b))``, with squared
    ``(1/(2n)) Σ_i v_i ‖y_i − Wᵀx̃_i − b‖²``; the intercept b is free. Features are scanned twice in the ordinary case
    and never held as a whole; those in the model are held in single precision, and everything about them is summed in
    double. Results repeat to the last bit, whatever the number of threads.

    Parameters
    ----------
    X : ndarray of shape (n, p), ColumnSource, ActivationStore or sequence of ActivationStore
        Samples × features, a source of normalised columns, a store, or several stores of the same samples, whose
        features count in order and whose samples are matched by name, in the order of the first.
    y : array_like of shape (n,) or (n, K), optional
        Labels of any type, in one dimension. For the squared loss also real values: floating-point numbers in one or
        two dimensions. The labels of the first store if not given.
    loss : {"softmax", "squared"}
        The smooth part. With squared, integer, boolean or text labels are coded one-hot.
    normalization : {"none", "standardize", "unit_norm"}
        Of an array or a store; ``unit_norm`` needs the layers of a store. A ColumnSource brings its own.
    split : str
        The training samples of a store.
    penalty : float, optional
        λ.
    penalty_ratio : float or sequence of float, optional
        λ relative to λ_max, the least λ at which nothing is selected; several give a path. 0.1 if nothing else is said.
    penalties : sequence of float, optional
        Several λ; the result is the last, and its `path` holds all.
    keep : int, optional
        Choose λ so that at least this many features are selected.
    sample_weight : array_like of shape (n,), optional
        Non-negative; scaled to mean one, so that λ keeps its meaning.
    tol : float
        Largest duality gap, relative to the objective of the intercept alone. Below about 1e-7 the single precision of
        the columns shows, and the certificate is withheld.
    kkt_tol : float
        Largest violation of the optimality conditions over all features, in units of λ.
    memory : int or str
        What may be held in this process besides Python and its libraries: bytes, or text such as ``"2GiB"``. It decides
        how many columns are kept and how many threads scan a store.
    dask_address : str, optional
        A running Dask scheduler, such as ``tcp://host:8786``, whose workers scan the stores; they must reach them by
        the same URI. Columns are fetched and the problem is solved in this process.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` after each step.
    announce : callable, optional
        Called before the work with one sentence: what memory it will take.

    Returns
    -------
    GroupLassoResult
        The model, the relevance of all features and the certificate.

    Raises
    ------
    InvalidInputError
        If an argument cannot be used as given, or memory is too small.
    ClusterError
        If the cluster fails.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 200))
    >>> result = group_lasso(X, X[:, 7] > 0, penalty_ratio=0.5)
    >>> int(result.relevance.argmax()), result.certificate.certified
    (7, True)
    """
    for name, value in (("tol", tol), ("kkt_tol", kkt_tol)):
        _require_positive(name, value)
    n_bytes = parse_memory(memory)
    with _source(X, normalization, split, n_bytes, dask_address, progress) as source:
        if y is None:
            y = _labels(X, split)
        weights = _weights(sample_weight, source.n_samples)
        smooth, classes = _loss(loss, y, weights)
        if sum(choice is not None for choice in (penalty, penalty_ratio, penalties, keep)) > 1:
            raise InvalidInputError("More than one of penalty, penalty_ratio, penalties and keep is given; choose one.")
        if keep is not None and not 1 <= keep <= source.n_features:
            raise InvalidInputError(f"keep={keep} is impossible; valid choices are 1 to {source.n_features} features.")
        ratios = 0.1 if penalty_ratio is None else penalty_ratio
        wanted = penalty if penalty is not None else penalties if penalties is not None else ratios
        name = "penalty" if penalty is not None else "penalties" if penalties is not None else "penalty_ratio"
        values = [float(value) for value in np.atleast_1d(np.asarray(wanted, dtype=np.float64))]
        if not values:
            raise InvalidInputError(f"{name} is empty; give at least one value above 0.")
        for value in values:
            _require_positive(name, value)

        n_penalties = 1 if keep is not None else len(values)
        plan = plan_memory(source, smooth.targets.shape[1], n_penalties, keep or 0, n_bytes)
        if announce is not None:
            announce(str(plan))
        solver = TwoPassSolver(source, smooth, tol=tol, kkt_tol=kkt_tol, plan=plan, progress=progress)
        if keep is not None:
            return _result(solver.solve_for_size(keep), classes)
        scale = solver.penalty_max if name == "penalty_ratio" else 1.0
        results = tuple(_result(solution, classes) for solution in solver.solve([scale * value for value in values]))
        return replace(results[-1], path=results) if np.ndim(wanted) else results[-1]


@contextmanager
def _source(
    X: object, normalization: str, split: str, memory: int, dask_address: str | None, progress: Progress | None
) -> Iterator[ColumnSource]:
    several = isinstance(X, Sequence) and bool(X) and all(isinstance(store, ActivationStore) for store in X)
    if several or isinstance(X, ActivationStore):
        from pipeline.store_source import open_source  # it needs the protocol of this package

        stores = cast("ActivationStore | Sequence[ActivationStore]", X)
        with open_source(stores, normalization, split, progress, memory=memory, dask_address=dask_address) as opened:
            yield opened
        return
    if dask_address is not None:
        message = f"dask_address={dask_address!r} does not apply to a {type(X).__name__}; workers scan stores only."
        raise InvalidInputError(message)
    if isinstance(X, np.ndarray):
        yield ArraySource(X, normalization)
        return
    kind = type(X).__name__
    if not isinstance(X, ColumnSource):
        message = f"X is a {kind}; it must be an array of shape (samples, features), a source, a store or stores."
        raise InvalidInputError(message)
    if normalization != "none":
        message = f"normalization={normalization!r} does not apply to a {kind}, which brings its own columns."
        raise InvalidInputError(message)
    yield X


def _labels(X: object, split: str) -> NDArray[np.int64]:
    first = X[0] if isinstance(X, Sequence) else X
    if not isinstance(first, ActivationStore):
        raise InvalidInputError(f"y is not given, and a {type(X).__name__} has no labels of its own.")
    return first.labels(split)


def _result(solution: Solution, classes: NDArray[Any] | None) -> GroupLassoResult:
    return GroupLassoResult(
        solution.support, solution.coef, solution.intercept, solution.relevance, solution.certificate, classes
    )


def _require_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InvalidInputError(f"{name}={value!r} is not allowed; it must be a finite number above 0.")


def _weights(sample_weight: ArrayLike | None, n: int) -> Array:
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,):
        raise InvalidInputError(f"sample_weight has shape {weights.shape}; it must be ({n},), one weight per sample.")
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        worst = weights[~(weights >= 0)][0] if not (weights >= 0).all() else weights.max()
        raise InvalidInputError(f"sample_weight contains {worst}; weights must be finite, not negative and not all 0.")
    scaled: Array = weights / weights.mean()
    return scaled


def _loss(name: str, y: ArrayLike, weights: Array) -> tuple[Loss, NDArray[Any] | None]:
    if name not in ("softmax", "squared"):
        raise InvalidInputError(f"loss={name!r} is unknown; valid choices are 'softmax', 'squared'.")
    targets = np.asarray(y)
    n = len(weights)
    if targets.ndim not in (1, 2) or len(targets) != n:
        raise InvalidInputError(f"y has shape {targets.shape}; it must have one entry for each of the {n} samples.")
    real = targets.dtype.kind == "f"
    if real and not np.isfinite(targets).all():
        raise InvalidInputError("y has values that are not finite; remove those samples.")
    if name == "squared" and (real or targets.ndim == 2):
        values = targets.astype(np.float64).reshape(n, -1)
        if np.ptp(values[weights > 0], axis=0).max(initial=0.0) == 0:
            raise InvalidInputError("y is constant over the samples with positive weight; there is nothing to explain.")
        return SquaredLoss(values, weights), None
    if targets.ndim == 2:
        raise InvalidInputError(f"y has shape {targets.shape}; labels must have one dimension, one label per sample.")
    if real and (targets != np.round(targets)).any():
        raise InvalidInputError("y has fractional values, which are not labels; valid are labels, or loss='squared'.")
    classes, codes = np.unique(targets, return_inverse=True)
    if len(classes) < 2:
        raise InvalidInputError(f"y has one class only, {classes[0]!r}; at least 2 are needed.")
    mass = np.bincount(codes, weights)
    if mass.min() <= 0:
        message = f"y has class {classes[mass.argmin()]!r} only where sample_weight is 0; drop those samples."
        raise InvalidInputError(message)
    one_hot = np.eye(len(classes))[codes]
    return (SoftmaxLoss if name == "softmax" else SquaredLoss)(one_hot, weights), classes
