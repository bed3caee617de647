"""`Head2ToeSelector`: the method's selection as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from pipeline.estimators.data import ArraySamples, Data, StoreSamples, as_store_samples, plain, value_errors
from pipeline.memory import DEFAULT_MEMORY, parse_memory
from pipeline.normalization import check_normalization
from pipeline.ranking import order_features
from pipeline.scorers import OPTIONS, Task, find_scorer
from pipeline.selection_parameters import DEFAULT_FRACTION, SelectionParameters
from store.activations import ActivationStore
from store.errors import InvalidInputError

FLOATS = (np.float64, np.float32, np.float16)


class Head2ToeSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Keep the features that an exact group lasso, or another scorer, finds most relevant (design section 7).

    `fit` takes an array of shape (sample, feature) and labels; or a store, meaning its training samples, or
    `StoreSamples`, whose labels are their own unless others are given. A store is scanned, never held in memory.

    Parameters
    ----------
    keep : int, optional
        Number of features to keep.
    fraction : float, optional
        Share of all features to keep, at least one; 0.05 if neither it nor `keep` is given.
    scorer : str
        What ranks features: one of `pipeline.scorers.SCORERS`, or an installed plug-in's.
    normalization : {"standardize", "unit_norm", "none"}
        What the scorers that fit a model see; the columns that `transform` gives are raw.
    penalty_ratio : float, optional
        λ relative to the least one that keeps nothing; 0.1 for `group_lasso` and `l1`.
    penalty : float, optional
        λ as an absolute coefficient, in place of the ratio.
    tolerance, steps, learning_rate, seed, average_over : optional
        As `pipeline.selection_parameters.SelectionParameters` has them; None is the scorer's own default.
    layer_sizes : sequence of int, optional
        Features of each layer of an array in turn, by which `unit_norm` divides it; one layer if not given.
    memory : int or str
        Bytes of features that may be held at once, or text such as ``"2GiB"``.

    Attributes
    ----------
    relevance_ : ndarray of float64, shape (p,)
        Score of every feature; positive on the support of the group lasso, and not positive off it.
    indices_ : ndarray of int64, shape (m,)
        Kept features, most relevant first.
    certificate_ : dict
        Optimality over all features; of any scorer but `group_lasso` ``certified`` is false.
    n_features_in_ : int
        Number of features p.
    feature_names_in_ : ndarray of str, shape (p,)
        Names of the columns of a data frame.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> Head2ToeSelector(keep=8).fit_transform(X[:200], y[:200]).shape
    (200, 8)
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
    ) -> None:
        self.keep = keep
        self.fraction = fraction
        self.scorer = scorer
        self.normalization = normalization
        self.penalty_ratio = penalty_ratio
        self.penalty = penalty
        self.tolerance = tolerance
        self.steps = steps
        self.learning_rate = learning_rate
        self.seed = seed
        self.average_over = average_over
        self.layer_sizes = layer_sizes
        self.memory = memory

    def fit(self, X: ArrayLike | ActivationStore | StoreSamples, y: ArrayLike | None = None) -> Self:
        """Rank all features and choose the best.

        Parameters
        ----------
        X : array_like of shape (n, p), ActivationStore or StoreSamples
            The training samples.
        y : array_like of shape (n,), optional
            Their labels, of any type; a store has its own.

        Returns
        -------
        Head2ToeSelector
            This object.

        Raises
        ------
        ValueError
            If data or a parameter cannot be used as given.
        """
        with value_errors():
            data, labels = self._training(X, y)
            self._select(data, np.unique(labels, return_inverse=True)[1])
        return self

    def transform(self, X: ArrayLike | ActivationStore | StoreSamples) -> NDArray[Any]:
        """Return the kept columns, as they are, in the order in which they lie in X.

        Parameters
        ----------
        X : array_like of shape (n, p), ActivationStore or StoreSamples
            Any samples; of a store only the kept columns are read.

        Returns
        -------
        ndarray of shape (n, m)
            Of the type of X; float32 from a store.

        Raises
        ------
        ValueError
            If X has other features than in `fit`.
        """
        samples = as_store_samples(X)
        if samples is None:
            return super().transform(X)
        check_is_fitted(self)
        self._check_count(samples)
        return samples.columns(self.get_support(indices=True))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask = np.zeros(self.n_features_in_, bool)
        mask[self.indices_] = True
        return mask

    def _training(self, x: Any, y: Any) -> tuple[Data, NDArray[Any]]:
        """Return the samples and their labels, both checked, and remember the features."""
        data: Data
        if (samples := as_store_samples(x)) is not None:
            labels = samples.labels if y is None else column_or_1d(y, warn=True)
            check_consistent_length(samples, labels)
            data, labels = samples.in_order(labels)
            self.n_features_in_ = samples.shape[1]
            self.__dict__.pop("feature_names_in_", None)
        else:
            array, labels = validate_data(self, x, y, dtype=FLOATS)
            data = ArraySamples(array, self.layer_sizes)
        check_classification_targets(labels)
        if len(classes := np.unique(labels)) < 2:
            raise InvalidInputError(
                f"y has one class only, {str(classes[0])!r}, in {len(labels)} sample(s); at least 2 classes are needed."
            )
        return data, labels

    def _select(self, data: Data, codes: NDArray[np.int64]) -> None:
        names = ("scorer", "normalization", "keep", "fraction", *sorted(OPTIONS))
        parameters = SelectionParameters(**{name: plain(getattr(self, name)) for name in names})
        check_normalization(parameters.normalization)
        scorer, memory, p = find_scorer(parameters.scorer), parse_memory(self.memory), data.shape[1]
        share = DEFAULT_FRACTION if parameters.fraction is None else parameters.fraction
        count = 1 if parameters.keep is None and p * share < 1 else parameters.count(p)
        seen = parameters.normalization if scorer.normalized else "none"
        with data.source(seen, memory) as source:
            relevance, facts = scorer.score(Task(source, codes.astype(np.int64), parameters.ranking(), memory, None))
        self.relevance_ = relevance
        self.certificate_ = facts if scorer.exact else {"certified": False, **facts}
        self.indices_ = order_features(relevance, tuple(data.layers.values()))[:count]

    def _check_count(self, samples: StoreSamples) -> None:
        if samples.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {samples.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
