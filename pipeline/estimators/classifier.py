"""`Head2ToeEstimator`: selection and refit as one scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.estimators.data import ArraySamples, Data, StoreSamples, as_store_samples, value_errors
from pipeline.estimators.selector import FLOATS, Head2ToeSelector
from pipeline.heads import RefitParameters, fit_head
from pipeline.memory import DEFAULT_MEMORY
from pipeline.normalization import inverse, renormalize
from store.activations import ActivationStore


class Head2ToeEstimator(ClassifierMixin, Head2ToeSelector):  # type: ignore[misc]  # scikit-learn has no types
    """Select features as `Head2ToeSelector` does, then train a fresh, unpenalised linear head on them (section 8).

    The head sees the kept columns normalised: of `unit_norm` each layer's kept part anew, of `standardize` with mean
    and deviation of the training samples. Nothing is stored beside the activations; `head2toe select` and `refit` do
    that. It is a transformer, too, that gives the kept columns.

    Parameters
    ----------
    keep, fraction, scorer, normalization, penalty_ratio, penalty, tolerance, steps, learning_rate, seed, average_over
        As for `Head2ToeSelector`.
    layer_sizes, memory
        As for `Head2ToeSelector`.
    refit : RefitParameters, optional
        How the head is trained; L-BFGS with early stopping if not given.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Labels, sorted.
    coef_ : ndarray of float64, shape (K, m)
        Weights on the normalised kept columns, in the order in which they lie in X.
    intercept_ : ndarray of float64, shape (K,)
        Biases.
    mean_, scale_ : ndarray of float64, shape (m,)
        For ``standardize``: mean, and inverse deviation, 0 where a column is constant.
    head_facts_ : dict
        Loss, iterations and the like of the refit.
    relevance_, indices_, certificate_, n_features_in_, feature_names_in_
        As for `Head2ToeSelector`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> bool(Head2ToeEstimator(keep=16).fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.75)
    True
    """

    def __init__(
        self,
        *,
        keep: int | None = None,
        fraction: float | None = None,
        scorer: str = "group_lasso",
        normalization: str = "standardize",
        penalty_ratio: float | None = None,
        penalty: float | None = None,
        tolerance: float | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        seed: int | None = None,
        average_over: int | None = None,
        layer_sizes: Sequence[int] | None = None,
        memory: int | str = DEFAULT_MEMORY,
        refit: RefitParameters | None = None,
    ) -> None:
        super().__init__(
            keep=keep,
            fraction=fraction,
            scorer=scorer,
            normalization=normalization,
            penalty_ratio=penalty_ratio,
            penalty=penalty,
            tolerance=tolerance,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            average_over=average_over,
            layer_sizes=layer_sizes,
            memory=memory,
        )
        self.refit = refit

    def fit(self, X: ArrayLike | ActivationStore | StoreSamples, y: ArrayLike | None = None) -> Self:
        """Rank all features, keep the best, and train a head on them.

        Parameters
        ----------
        X : array_like of shape (n, p), ActivationStore or StoreSamples
            The training samples.
        y : array_like of shape (n,), optional
            Their labels, of any type; a store has its own.

        Returns
        -------
        Head2ToeEstimator
            This object.

        Raises
        ------
        ValueError
            If data or a parameter cannot be used as given.
        """
        with value_errors():
            data, labels = self._training(X, y)
            self.classes_, codes = np.unique(labels, return_inverse=True)
            self._select(data, codes)
            raw = data.columns(np.sort(self.indices_))
            if self.normalization == "standardize":
                wide = raw.astype(np.float64)
                # The deviation of equal numbers can come out a little above 0.
                deviation = np.where(np.ptp(wide, axis=0) > 0, wide.std(axis=0), 0.0)
                self.mean_, self.scale_ = wide.mean(axis=0), inverse(deviation).astype(np.float64)
            head = fit_head(self._normalized(data, raw), codes.astype(np.int64), len(self.classes_), self.refit)
        self.coef_, self.intercept_, self.head_facts_ = head.coef.T, head.intercept, head.facts
        return self

    def decision_function(self, X: ArrayLike | ActivationStore | StoreSamples) -> NDArray[np.float64]:
        """Return logits, shape (n, K); of two classes the second's less the first's, shape (n,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike | ActivationStore | StoreSamples) -> NDArray[np.float64]:
        """Return the probability of each class, shape (n, K)."""
        probabilities: NDArray[np.float64] = softmax(self._logits(X), axis=1)
        return probabilities

    def predict_log_proba(self, X: ArrayLike | ActivationStore | StoreSamples) -> NDArray[np.float64]:
        """Return the logarithm of the probability of each class, shape (n, K)."""
        logarithms: NDArray[np.float64] = log_softmax(self._logits(X), axis=1)
        return logarithms

    def predict(self, X: ArrayLike | ActivationStore | StoreSamples) -> NDArray[Any]:
        """Return the most probable label of each sample, shape (n,)."""
        best = self._logits(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def score(
        self,
        X: ArrayLike | ActivationStore | StoreSamples,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the share of samples that are classified right; a store has labels of its own."""
        samples = as_store_samples(X)
        own = samples.labels if y is None and samples is not None else y
        return float(super().score(X, own, sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Of the two or three columns of scikit-learn's checks a small share is one, which cannot tell classes apart.
        tags.classifier_tags.poor_score = self.keep is None and (self.fraction is None or self.fraction < 1)
        return tags

    def _logits(self, x: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        kept = np.sort(self.indices_)
        parts = []
        for part in self._parts(x):
            values = self._normalized(part, part.columns(kept)).astype(np.float64)
            parts.append(values @ self.coef_.T + self.intercept_)
        return np.concatenate(parts)

    def _parts(self, x: Any) -> Iterator[Data]:
        if (samples := as_store_samples(x)) is not None:
            self._check_count(samples)
            yield from samples.parts()
        else:
            yield ArraySamples(validate_data(self, x, dtype=FLOATS, reset=False), self.layer_sizes)

    def _normalized(self, data: Data, raw: NDArray[Any]) -> NDArray[np.float32]:
        if self.normalization == "standardize":
            return ((raw.astype(np.float64) - self.mean_) * self.scale_).astype(np.float32)
        values = raw.astype(np.float32)
        if self.normalization == "unit_norm":
            renormalize(data, np.sort(self.indices_), values)
        return values
