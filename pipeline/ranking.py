"""From relevance to kept features: one total order, and the reference's ways to bend it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from store.layout import Layer


def order_features(
    relevance: NDArray[np.float64],
    layers: Sequence[Layer],
    *,
    row_norms: bool = False,
    layer_mean: float = 0.0,
    whole_layers: bool = False,
) -> NDArray[np.int64]:
    """Return all features from the most relevant to the least; ties go by relevance, then by index.

    Parameters
    ----------
    relevance : ndarray of float64, shape (p,)
        As a scorer gives it; what is not positive only says how near a feature is to mattering.
    layers : sequence of Layer
        Divide the features, in order.
    row_norms : bool
        Whether a positive relevance is a row's norm: then `layer_mean` mixes its squares, as the reference does.
    layer_mean : float
        The reference's ``mean_interpolation_coef`` a: scores s become ``(1 − a) s + a · (mean s of the layer)``.
    whole_layers : bool
        Order layers by their mean score, the norm itself for rows, and features by their layer first.

    Returns
    -------
    ndarray of int64, shape (p,)
        Feature indices.
    """
    scores = np.maximum(relevance, 0.0)
    bounds = [layer.offset for layer in layers]
    sizes = [layer.n_features for layer in layers]
    if whole_layers:
        means = np.add.reduceat(scores, bounds) / sizes
        place = np.empty(len(layers))
        place[np.argsort(-means, kind="stable")] = np.arange(len(layers))
        scores = np.repeat(-place, sizes)
    elif layer_mean > 0:
        scores = scores**2 if row_norms else scores
        means = np.add.reduceat(scores, bounds) / sizes
        scores = (1 - layer_mean) * scores + layer_mean * np.repeat(means, sizes)
    # The last key counts first, and the sort is stable, so that equal features keep the order of their indices.
    return np.lexsort((-relevance, -scores)).astype(np.int64)
