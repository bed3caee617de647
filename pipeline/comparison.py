"""Is one method better than another? Both are asked about the same samples, so the comparison is paired."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from store.errors import InvalidInputError

DRAWS = 10_000


class Comparison(NamedTuple):
    """Method a against method b on the same samples.

    Attributes
    ----------
    difference : float
        Accuracy of a less that of b.
    low, high : float
        Its 95 % interval by the paired bootstrap over samples.
    only_a, only_b : int
        Samples that a alone, and b alone, has right.
    p_value : float
        Of the exact sign test of McNemar: how likely so uneven a division of those samples is if both are equally good.
    """

    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    p_value: float


def compare(a: NDArray[np.bool_], b: NDArray[np.bool_], seed: int = 0) -> Comparison:
    """Compare two methods by which samples each has right.

    Parameters
    ----------
    a, b : ndarray of bool, shape (n,)
        Hits of each method on the same samples, in the same order.
    seed : int
        Of the bootstrap.

    Raises
    ------
    InvalidInputError
        If they are not of the same samples, or there is none.

    Examples
    --------
    >>> right = np.arange(100) < 80
    >>> worse = np.arange(100) < 60
    >>> compare(right, worse).only_a
    20
    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InvalidInputError(f"hits of shapes {a.shape} and {b.shape} are not of the same samples.")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    # Drawing samples with replacement draws how many of three kinds there are.
    drawn = np.random.default_rng(seed).multinomial(n, [only_a / n, only_b / n, (n - only_a - only_b) / n], DRAWS)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (0.025, 0.975))
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Comparison((only_a - only_b) / n, float(low), float(high), only_a, only_b, p_value)
