"""Folds: parts of the training samples, each held out once to choose settings by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.errors import InvalidInputError, suggest
from store.spec import Frozen

ORDERS = ("stratified", "in_order")


class ProtocolParameters(Frozen):
    """How settings are chosen.

    Attributes
    ----------
    folds : int
        Parts of the training samples, each held out once.
    order : str
        ``stratified``: every class is dealt evenly over the folds, at random; ``in_order``: folds are consecutive.
    seed : int
        Of the folds, and of whatever methods draw.
    train, test : str
        Names of the splits.

    Raises
    ------
    InvalidInputError
        If the order is unknown or there are fewer than 2 folds.
    """

    folds: int = 5
    order: str = "stratified"
    seed: int = 0
    train: str = "train"
    test: str = "test"

    def model_post_init(self, context: Any) -> None:
        """Refuse what cannot be used."""
        if self.order not in ORDERS:
            raise InvalidInputError(f"order {self.order!r} of folds is unknown; {suggest(self.order, ORDERS)}")
        if self.folds < 2:
            raise InvalidInputError(f"folds={self.folds} leaves nothing to train on or to choose by; give at least 2.")


def make_folds(
    labels: NDArray[np.int64], n_folds: int = 5, order: str = "stratified", seed: int = 0
) -> list[NDArray[np.int64]]:
    """Return the held-out samples of each fold, increasing; every sample is in one fold, and sizes differ by 1 at most.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        Classes. Stratified folds have, of each class, numbers that differ by 1 at most.
    n_folds : int
        Number of folds.
    order : {"stratified", "in_order"}
        How samples are divided.
    seed : int
        Of stratified folds.

    Raises
    ------
    InvalidInputError
        If there are fewer samples than folds.
    """
    if len(labels) < n_folds:
        raise InvalidInputError(f"{len(labels)} training samples cannot be divided into {n_folds} folds; give fewer.")
    if order == "in_order":
        return list(np.array_split(np.arange(len(labels)), n_folds))
    drawn = np.random.default_rng(seed).permutation(len(labels))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    return [np.sort(by_class[fold::n_folds]) for fold in range(n_folds)]
