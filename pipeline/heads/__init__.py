"""Heads: multinomial logistic regression without a penalty, and the ways to fit one (design section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from store.errors import InvalidInputError, suggest
from store.spec import Frozen

__all__ = ["FittedHead", "RefitParameters", "fit_head", "fit_heads", "predict_labels"]

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "lbfgs": {"max_iterations": 500, "validation_fraction": 0.2, "patience": 15},
    "adam": {"learning_rate": 0.01, "steps": 500},
}
"""Every optimizer by name: the parameters that matter to it, and their defaults."""


class RefitParameters(Frozen):
    """How a head is trained; what is None has the optimizer's own default.

    Attributes
    ----------
    optimizer : str
        ``lbfgs``: all samples at once, stopped and calibrated by held-out samples; or ``adam``: the paper's recipe,
        batches of 128, cosine decay to 0, weights from Glorot's uniform distribution.
    max_iterations : int, optional
        Upper bound of L-BFGS iterations: 500.
    validation_fraction : float, optional
        Share of the training samples that chooses the number of L-BFGS iterations: 0.2. At 0 there is no choice, and
        `max_iterations` are made, or as many as it takes to converge.
    patience : int, optional
        Iterations of L-BFGS without a better validation loss after which the choice is made: 15.
    learning_rate : float, optional
        Of Adam at its first step: 0.01.
    steps : int, optional
        Steps of Adam: 500.
    seed : int
        Chooses the validation samples; or Adam's first weights and its batches.

    Raises
    ------
    InvalidInputError
        If the optimizer is unknown, or a value is given that does not matter to it.
    """

    optimizer: str = "lbfgs"
    max_iterations: Annotated[int, Field(ge=1)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # Not a ValueError, so that pydantic lets it through to the user as it is.
        if self.optimizer not in OPTIMIZERS:
            raise InvalidInputError(f"optimizer {self.optimizer!r} is unknown; {suggest(self.optimizer, OPTIMIZERS)}")
        for whose, options in OPTIMIZERS.items():
            for name in options:
                if whose != self.optimizer and getattr(self, name) is not None:
                    raise InvalidInputError(
                        f"{name} does not apply to optimizer {self.optimizer}, only to {whose}; leave it out."
                    )
        return self

    def chosen(self) -> dict[str, Any]:
        """Return a value for each parameter that matters to the optimizer: what identifies a fit."""
        given = {name: getattr(self, name) for name in OPTIMIZERS[self.optimizer]}
        values = {
            name: default if given[name] is None else given[name]
            for name, default in OPTIMIZERS[self.optimizer].items()
        }
        return {"optimizer": self.optimizer, **values, "seed": self.seed}


class FittedHead(NamedTuple):
    """A head on normalised columns.

    Attributes
    ----------
    coef : ndarray of float64, shape (m, K)
        Weights.
    intercept : ndarray of float64, shape (K,)
        Biases.
    facts : dict
        The final ``loss``, mean cross-entropy in nats; of L-BFGS ``iterations``, ``temperature`` and
        ``validation_loss`` (None if nothing was held out), of Adam ``steps``.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    facts: dict[str, Any]


def fit_head(
    x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, parameters: RefitParameters | None = None
) -> FittedHead:
    """Fit multinomial logistic regression without a penalty, from a fresh start.

    Parameters
    ----------
    x : ndarray of float32, shape (n, m)
        Normalised columns; not changed.
    y : ndarray of int64, shape (n,)
        Class indices from 0 to K − 1.
    n_classes : int
        Number of classes K; some may have no sample.
    parameters : RefitParameters, optional
        How it is fitted.

    Returns
    -------
    FittedHead
        The head.

    Raises
    ------
    InvalidInputError
        If there is no column, one class only, or a value that is not finite.

    Examples
    --------
    >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    >>> head = fit_head(x, np.array([0, 0, 1, 1]), 2)
    >>> predict_labels(head, x).tolist()
    [0, 0, 1, 1]
    """
    (head,) = fit_heads(x, y, n_classes, [parameters or RefitParameters()])
    return head


def fit_heads(
    x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, several: Sequence[RefitParameters]
) -> list[FittedHead]:
    """Fit a head for each of several parameters, as `fit_head` does.

    Those of L-BFGS that hold no samples out differ in nothing but how far they go, and share one descent.
    """
    if not x.shape[1]:
        raise InvalidInputError("no columns are selected; a head needs at least one.")
    if len(seen := np.unique(y)) < 2:
        raise InvalidInputError(
            f"all {len(y):,} training samples are of one class, number {seen[0]}; a head needs at least 2 classes."
        )
    wrong = np.flatnonzero(~np.isfinite(x).all(axis=0))
    if len(wrong):
        raise InvalidInputError(
            f"{len(wrong):,} of {x.shape[1]:,} columns have values that are not finite, the first of them column "
            f"{wrong[0]}; leave them out."
        )
    from pipeline.heads.lbfgs import fit_stops

    options = [parameters.chosen() for parameters in several]
    stops = sorted({o["max_iterations"] for o in options if o.get("validation_fraction") == 0})
    shared = dict(zip(stops, fit_stops(x, y, n_classes, stops), strict=True)) if stops else {}
    return [
        FittedHead(*shared[o["max_iterations"]]) if o.get("validation_fraction") == 0 else _fit(x, y, n_classes, o)
        for o in options
    ]


def _fit(x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, options: dict[str, Any]) -> FittedHead:
    if options.pop("optimizer") == "lbfgs":
        from pipeline.heads.lbfgs import fit_lbfgs

        return FittedHead(*fit_lbfgs(x, y, n_classes, **options))
    from pipeline.scorers.adam import fit_adam

    fitted = fit_adam(np.ascontiguousarray(x, np.float32), y, penalty=0.0, n_classes=n_classes, **options)
    facts = {"steps": options["steps"], "loss": fitted.loss}
    return FittedHead(fitted.coef.astype(np.float64), fitted.intercept.astype(np.float64), facts)


def predict_labels(head: FittedHead, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the most probable class of each sample, shape (n,), from normalised columns of shape (n, m)."""
    return np.argmax(x @ head.coef.astype(np.float32) + head.intercept, axis=1)
