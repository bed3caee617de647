"""The two smooth losses as functions of the logits: values, predictions, optimal intercepts, dual values."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Loss(Protocol):
    """A smooth convex loss ``(1/n) Σ v_i ℓ(y_i, z_i)`` of logits z with a free intercept.

    Attributes
    ----------
    targets : ndarray of shape (n, K), float64
        One-hot labels or real values.
    weights : ndarray of shape (n,), float64
        Sample weights v, with mean one.
    softmax : bool
        Which curvature the kernels use: ``diag(p) − p pᵀ`` or the identity.
    """

    targets: Array
    weights: Array
    softmax: bool

    def value(self, logits: Array) -> float:
        """Return the loss at logits of shape (n, K)."""

    def predict(self, logits: Array) -> Array:
        """Return the predictions of shape (n, K): probabilities, or the logits themselves."""

    def intercept(self, logits: Array, start: Array) -> Array:
        """Return the b of shape (K,) that minimises the loss at ``logits + b``, searching from `start`."""

    def dual(self, residual: Array, scale: float) -> float:
        """Return the dual objective at ``θ = scale · residual``, where the residual sums to zero over the samples."""


def residual(loss: Loss, predictions: Array) -> Array:
    """Return the residual ``R = v ∘ (Y − P)``, minus n times the gradient of the loss with respect to the logits.

    Parameters
    ----------
    loss : Loss
        Gives targets and weights.
    predictions : ndarray of shape (n, K)
        From ``loss.predict``.

    Returns
    -------
    ndarray of shape (n, K), float64
        The residual.
    """
    return (loss.targets - predictions) * loss.weights[:, None]


class SoftmaxLoss:
    """Cross-entropy of softmax probabilities, ``ℓ = log Σ_k exp z_k − yᵀz``.

    Parameters
    ----------
    targets : ndarray of shape (n, K), float64
        One-hot labels.
    weights : ndarray of shape (n,), float64
        Non-negative, with mean one; every class has a positive total weight.
    """

    softmax = True

    def __init__(self, targets: Array, weights: Array) -> None:
        self.targets = targets
        self.weights = weights

    def value(self, logits: Array) -> float:
        """Return the mean weighted cross-entropy."""
        top = logits.max(axis=1)
        log_sum = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        return float(self.weights @ (log_sum - np.einsum("ik,ik->i", self.targets, logits))) / len(logits)

    def predict(self, logits: Array) -> Array:
        """Return the softmax probabilities."""
        odds: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return odds

    def intercept(self, logits: Array, start: Array) -> Array:
        """Return the optimal intercept, which sums to zero, by a damped Newton method in K variables."""
        n, n_classes = logits.shape
        b = start - start.mean()
        value = self.value(logits + b)
        for _ in range(100):
            p = self.predict(logits + b)
            weighted = p * self.weights[:, None]
            slope = (self.weights @ self.targets - weighted.sum(axis=0)) / n
            if np.abs(slope).max() <= 1e-14:
                break
            curvature = np.diag(weighted.sum(axis=0)) - p.T @ weighted
            # Adding a constant to all classes changes nothing: the added term removes that direction's singularity.
            step = np.linalg.solve(curvature / n + np.full((n_classes, n_classes), 1.0 / n_classes**2), slope)
            step *= min(1.0, 4.0 / np.abs(step).max())
            for _ in range(30):
                trial = self.value(logits + b + step)
                if trial <= value + 1e-15 * abs(value):
                    break
                step /= 2
            b, value = b + step, trial
            if np.abs(step).max() <= 1e-13 * max(1.0, float(np.abs(b).max())):
                break
        centred: Array = b - b.mean()
        return centred

    def dual(self, residual: Array, scale: float) -> float:
        """Return ``(1/n) Σ v_i H(q_i)`` with the entropy H of ``q = Y − θ/v = (1 − s) Y + s P``, inside the simplex."""
        v = self.weights[:, None]
        q = self.targets - scale * np.divide(residual, v, out=np.zeros_like(residual), where=v > 0)
        q = np.maximum(q, 0.0)
        entropy = -(q * np.log(np.where(q > 0, q, 1.0))).sum(axis=1)
        return float(self.weights @ entropy) / len(residual)


class SquaredLoss:
    """Half the squared error, ``ℓ = ½ ‖y − z‖²``.

    Parameters
    ----------
    targets : ndarray of shape (n, K), float64
        Real values, or one-hot labels.
    weights : ndarray of shape (n,), float64
        Non-negative, with mean one.
    """

    softmax = False

    def __init__(self, targets: Array, weights: Array) -> None:
        self.targets = targets
        self.weights = weights

    def value(self, logits: Array) -> float:
        """Return half the mean weighted squared error."""
        return float(self.weights @ ((self.targets - logits) ** 2).sum(axis=1)) / (2 * len(logits))

    def predict(self, logits: Array) -> Array:
        """Return the logits."""
        return logits

    def intercept(self, logits: Array, start: Array) -> Array:
        """Return the weighted mean of what is left to explain."""
        mean: Array = self.weights @ (self.targets - logits) / len(logits)
        return mean

    def dual(self, residual: Array, scale: float) -> float:
        """Return ``(1/n) Σ_i θ_iᵀy_i − ‖θ_i‖²/(2 v_i)``."""
        v = self.weights[:, None]
        theta = scale * residual
        squares = np.divide(theta**2, 2 * v, out=np.zeros_like(theta), where=v > 0)
        return float((theta * self.targets - squares).sum()) / len(residual)
