"""What a method is to the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Settings = Mapping[str, Any]
"""One point of a grid: JSON values by name."""


class Samples(NamedTuple):
    """Some samples of a split.

    Attributes
    ----------
    split : str
        Name of the split.
    rows : ndarray of int64, shape (n,)
        Their positions, increasing.
    """

    split: str
    rows: NDArray[np.int64]


class Prediction(NamedTuple):
    """What a fitted method says of samples.

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        Predicted class of each.
    facts : dict
        JSON values about the fit, such as the number of features.
    """

    labels: NDArray[np.int64]
    facts: dict[str, Any]


class Method(Protocol):
    """A way to learn a task from labelled samples, with settings to choose.

    Fitting must not depend on any sample but those it is given to train on, nor on the order in which settings are
    fitted, so that points that are stored may be left out.
    """

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that, with settings, samples and seed, decide a prediction."""

    @property
    def grid(self) -> Sequence[Sequence[Settings]]:
        """All settings, in batches that share work; of equally accurate settings the first is chosen."""

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        """Fit on `train` for each of some settings of one batch, in this order, and predict `held`.

        Parameters
        ----------
        train, held : Samples
            To fit on, and to predict.
        settings : sequence of mapping
            Of one batch of the grid.
        seed : int
            Of whatever is drawn.

        Yields
        ------
        Prediction
            One per setting, as soon as it is there.
        """
