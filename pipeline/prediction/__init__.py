"""Prediction: a head and as much of its backbone as it needs, for images that were never in a store.

>>> from pipeline.prediction import export_classifier, load_classifier, predict_images
>>> classifier = load_classifier("demo/fa7c", "3f2a")  # doctest: +SKIP
>>> predict_images(classifier, ["photo.jpg", "folder"]).predictions[0].label  # doctest: +SKIP
'7'
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.prediction.artifact import HEAD, RECIPE, export_classifier, foresee_export, read_artifact
from pipeline.prediction.classifier import Head2ToeClassifier
from pipeline.prediction.from_store import classifier_from_store
from pipeline.prediction.images import Prediction, Predictions, predict_images
from store.activations import open_store
from store.aliases import resolve_store
from store.errors import InvalidInputError

__all__ = [
    "Head2ToeClassifier",
    "Prediction",
    "Predictions",
    "export_classifier",
    "foresee_export",
    "load_classifier",
    "predict_images",
]


def load_classifier(
    place: str | os.PathLike[str],
    head: str | None = None,
    *,
    weights: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> Head2ToeClassifier:
    """Return the classifier of a head in a store, or of an exported folder.

    Parameters
    ----------
    place : str or path
        An activation store, as `store.aliases.resolve_store` takes it, or a folder that `export_classifier` wrote.
    head : str, optional
        Digest of a head of the store, or its beginning; the newest on a selection if not given.
    weights : str, optional
        Where the backbone's weights are, as for `pipeline.backbones.load_backbone`, if no longer where they were; they
        must be the same.
    announce : callable, optional
        Called with a sentence on the head that is taken of a store if none is given.

    Returns
    -------
    Head2ToeClassifier
        On the CPU.

    Raises
    ------
    InvalidInputError
        If a folder is given with `head`, is damaged, or the backbone's weights are not those of the head.
    StoreNotFoundError
        If there is no such store or head.
    """
    if not any(Path(place, name).is_file() for name in (RECIPE, HEAD)):
        return classifier_from_store(open_store(resolve_store(place)), head, weights=weights, announce=announce)
    if head is not None:
        raise InvalidInputError(f"{os.fspath(place)!r} is an exported classifier, of one head; leave --head out.")
    return read_artifact(place, weights=weights)
