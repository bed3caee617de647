"""Images that are numbers already: arrays and tensors in Python, and array files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.image_data import ImageData, ImageSplit, make_split
from pipeline.images import ArrayImage
from pipeline.labels import numbered_classes
from store.errors import InvalidInputError


def from_arrays(
    images: Mapping[str, NDArray[np.uint8] | torch.Tensor],
    labels: Mapping[str, ArrayLike],
    *,
    ids: Mapping[str, Sequence[str]] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> ImageData:
    """Return a data set of images in memory, which `pipeline.extraction.extract` takes as its `data`.

    Parameters
    ----------
    images : mapping of str to array or tensor
        By split: uint8, an array of shape (sample, height, width[, 1 or 3]) or a tensor of shape
        (sample, [1 or 3, ]height, width), on any device.
    labels : mapping of str to array_like
        By split: class index per image, whole numbers from 0.
    ids : mapping of str to sequence of str, optional
        By split: unique name per image; ``<split>-<number>`` if not given.
    class_names : sequence of str, optional
        In the order of the labels; their numbers if not given.
    name : str
        What the store is said to be made of.

    Returns
    -------
    ImageData
        Views of the arrays; nothing is copied.

    Raises
    ------
    InvalidInputError
        If a shape or type does not fit, or labels are missing.

    Examples
    --------
    >>> x, y = np.zeros((6, 32, 32, 3), np.uint8), [0, 0, 0, 1, 1, 1]
    >>> data = from_arrays({"train": x, "test": x}, {"train": y, "test": y}, class_names=["cat", "dog"])
    >>> len(data.splits["train"])
    6
    """
    if not images:
        raise InvalidInputError("there are no images; give them by split, as {'train': …, 'test': …}.")
    for what, given in (("labels", labels), ("ids", ids or images)):
        odd = sorted(set(given) - set(images))
        if odd:
            raise InvalidInputError(f"{what} are given for split {odd[0]!r}, which has no images.")
    splits = {
        split: array_split(split, array, labels.get(split), None if ids is None else ids.get(split), f"of {name!r}")
        for split, array in images.items()
    }
    return ImageData(name, _names(splits, f"of {name!r}", class_names), splits)


def array_split(
    split: str,
    images: NDArray[Any] | torch.Tensor,
    labels: ArrayLike | None,
    ids: Sequence[str] | None = None,
    where: str = "",
) -> ImageSplit:
    """Return one split of images in memory; parameters and errors as for `from_arrays`."""
    pixels = _channels_last(images) if isinstance(images, torch.Tensor) else np.asarray(images)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))):
        raise InvalidInputError(
            f"images of split {split!r} {where} are {images.dtype} of shape {tuple(images.shape)}; they must be "
            "uint8 of shape (sample, height, width), with 1 or 3 channels, if any, last in arrays and first in tensors."
        )
    if labels is None:
        raise InvalidInputError(f"split {split!r} {where} has no labels; give a class number for each image.")
    classes = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if classes.shape not in ((len(pixels),), (len(pixels), 1)) or not np.issubdtype(classes.dtype, np.integer):
        raise InvalidInputError(
            f"labels of split {split!r} {where} are {classes.dtype} of shape {classes.shape}; "
            f"they must be one whole number for each of the {len(pixels)} images."
        )
    if len(pixels) == 0 or 0 in pixels.shape or classes.min() < 0:
        problem = "has no images" if 0 in pixels.shape else "has a negative label"
        raise InvalidInputError(f"split {split!r} {where} {problem}; classes are numbered from 0.")
    names = [f"{split}-{i:06d}" for i in range(len(pixels))] if ids is None else [str(n) for n in ids]
    if len(names) != len(pixels):
        raise InvalidInputError(f"split {split!r} {where} has {len(names)} ids for {len(pixels)} images.")
    return make_split(names, classes.ravel().astype(np.int64), [ArrayImage(image) for image in pixels])


def load_npz(name: str, path: Path) -> ImageData:
    """Return the data set in an array file.

    Parameters
    ----------
    name : str
        What the data set is called.
    path : Path
        Arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` and optionally ``x_val``, ``y_val``, as `from_arrays`
        takes them.

    Raises
    ------
    InvalidInputError
        If it cannot be read or is not well formed.
    """
    if not path.is_file():
        raise InvalidInputError(f"data file {str(path)!r} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise InvalidInputError(f"data file {str(path)!r} cannot be read as plain arrays: {error}.") from error
    for key in ("x_train", "y_train", "x_test", "y_test"):
        if key not in arrays:
            raise InvalidInputError(f"data file {str(path)!r} has no {key!r}; it has {', '.join(sorted(arrays))}.")
    if "x_val" in arrays and "y_val" not in arrays:
        raise InvalidInputError(f"'x_val' of data file {str(path)!r} has no labels; add 'y_val'.")
    where = f"of data file {str(path)!r}"
    splits = {
        split: array_split(split, arrays[f"x_{split}"], arrays[f"y_{split}"], where=where)
        for split in ("train", "val", "test")
        if f"x_{split}" in arrays
    }
    return ImageData(name, _names(splits, where), splits)


def _channels_last(images: torch.Tensor) -> NDArray[Any]:
    if images.dtype != torch.uint8:
        return np.empty(0)  # numpy has not all of torch's types, and none but this is wanted
    array = images.detach().cpu().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _names(splits: Mapping[str, ImageSplit], where: str, given: Sequence[str] | None = None) -> tuple[str, ...]:
    greatest = max(int(split.labels.max()) for split in splits.values())
    names = numbered_classes(greatest, where) if given is None else tuple(given)
    if len(names) <= greatest:
        raise InvalidInputError(f"there are {len(names)} class names but labels up to {greatest}; name every class.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"two classes have the name {twice!r}; give every class one of its own.")
    return names
