"""Images with labels, split and described by a manifest, from a folder, an array file or scikit-learn's digits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.folders import list_folder, stratified_test_ids
from pipeline.images import ArrayImage, FileImage, ImageSource
from store.errors import InvalidInputError
from store.spec import Manifest

N_DIGITS_TEST = 797

_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageSplit:
    """Images of one split, read when asked for.

    Attributes
    ----------
    ids : tuple of str
        Unique name per image.
    labels : ndarray of int64, shape (sample,)
        Class index per image.
    sources : tuple of ImageSource
        Where each image comes from.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    sources: tuple[ImageSource, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB.

        Raises
        ------
        InvalidInputError
            If it cannot be read, naming it and what is wrong with it.
        """
        try:
            return self.sources[index].read()[1]
        except InvalidInputError as error:
            raise InvalidInputError(f"image {self.ids[index]!r} {error}; repair it or leave it out.") from error

    def manifest(self) -> Manifest:
        """Return ids, labels and content digests; every file is read once.

        Raises
        ------
        InvalidInputError
            If a file cannot be read or an id occurs twice.
        """

        def content(index: int) -> str:
            try:
                return self.sources[index].digest()
            except InvalidInputError as error:
                raise InvalidInputError(f"image {self.ids[index]!r} {error}.") from error

        return Manifest(self.ids, self.labels, tuple(_in_threads(content, len(self))))


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images.

    Attributes
    ----------
    name : str
        As given to `load_data`.
    class_names : tuple of str
        In the order of the labels.
    splits : dict of ImageSplit
        By name: "train", "test" and possibly "val".
    note : str
        How the splits were made, where that was not the data's own doing.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, ImageSplit]
    note: str = ""


def load_data(name: str) -> ImageData:
    """Return the data set of the given name.

    Parameters
    ----------
    name : str
        ``"digits"``: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, 1,000 for training and 797 for testing.
        ``"folder:<path>"`` or a path: see `pipeline.folders.list_folder` for the layouts. A path ending in ``.npz``:
        arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` and optionally ``x_val``, ``y_val``, the images uint8
        of shape (sample, height, width[, 1 or 3]).

    Returns
    -------
    ImageData
        Nothing of the images is read yet, except from arrays.

    Raises
    ------
    InvalidInputError
        If there is no such data set or it is not well formed.
    """
    if name == "digits":
        return _digits()
    path = Path(name.removeprefix("folder:")).expanduser()
    if path.suffix == ".npz":
        return _from_npz(name, path)
    if not name.startswith("folder:") and not path.is_dir():
        raise InvalidInputError(f"data {name!r} is no existing path; give 'digits', a folder or an .npz file.")
    listing = list_folder(path)
    splits = {
        split: _split([e.id for e in entries], [e.label for e in entries], [FileImage(e.path) for e in entries])
        for split, entries in listing.splits.items()
    }
    return ImageData(name, listing.class_names, splits, listing.note)


def scan(split: ImageSplit) -> tuple[Manifest | None, list[tuple[str, str]]]:
    """Read and decode every image once.

    Parameters
    ----------
    split : ImageSplit
        The images.

    Returns
    -------
    manifest : Manifest or None
        What `ImageSplit.manifest` returns; None if an image is bad.
    bad : list of (str, str)
        Id and reason for every image that cannot be used.
    """

    def check(index: int) -> tuple[str, str | None]:
        try:
            return split.sources[index].read()[0], None
        except InvalidInputError as error:
            return "", str(error)

    results = list(_in_threads(check, len(split)))
    bad = [(split.ids[i], reason) for i, (_, reason) in enumerate(results) if reason is not None]
    if bad:
        return None, bad
    return Manifest(split.ids, split.labels, tuple(content for content, _ in results)), []


def find_bad_images(split: ImageSplit) -> list[tuple[str, str]]:
    """Return id and reason for every image that is empty, truncated, too large, no image or unreadable."""
    return scan(split)[1]


def _in_threads(function: Callable[[int], _T], count: int) -> Iterator[_T]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, range(count))


def _split(ids: Sequence[str], labels: Sequence[int], sources: Sequence[ImageSource]) -> ImageSplit:
    if len(set(ids)) != len(ids):
        twice = next(name for position, name in enumerate(ids) if name in ids[:position])
        raise InvalidInputError(f"image {twice!r} is listed twice in one split; list every image once.")
    return ImageSplit(tuple(ids), np.asarray(labels, dtype=np.int64), tuple(sources))


def _digits() -> ImageData:
    data = load_digits()
    ids = [f"digits-{i:04d}" for i in range(len(data.target))]
    test = stratified_test_ids(ids, data.target.tolist(), N_DIGITS_TEST)
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    splits = {}
    for split in ("train", "test"):
        rows = [i for i, name in enumerate(ids) if (name in test) == (split == "test")]
        splits[split] = _split([ids[i] for i in rows], data.target[rows], [ArrayImage(pixels[i]) for i in rows])
    note = f"{N_DIGITS_TEST} digits, each class in proportion, chosen by the digest of their ids, are the test split"
    return ImageData("digits", tuple(str(n) for n in data.target_names), splits, note)


def _from_npz(name: str, path: Path) -> ImageData:
    if not path.is_file():
        raise InvalidInputError(f"data file {str(path)!r} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, BadZipFile) as error:
        raise InvalidInputError(f"data file {str(path)!r} cannot be read as plain arrays: {error}.") from error
    for key in ("x_train", "y_train", "x_test", "y_test"):
        if key not in arrays:
            raise InvalidInputError(f"data file {str(path)!r} has no {key!r}; it has {', '.join(sorted(arrays))}.")
    splits = {split: _array_split(split, arrays, path) for split in ("train", "val", "test") if f"x_{split}" in arrays}
    n_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    return ImageData(name, tuple(str(label) for label in range(n_classes)), splits)


def _array_split(split: str, arrays: Mapping[str, NDArray[np.generic]], path: Path) -> ImageSplit:
    where = f"of data file {str(path)!r}"
    images = arrays[f"x_{split}"]
    if f"y_{split}" not in arrays:
        raise InvalidInputError(f"'x_{split}' {where} has no labels; add 'y_{split}'.")
    labels = arrays[f"y_{split}"]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise InvalidInputError(
            f"'x_{split}' {where} is {images.dtype} of shape {images.shape}; "
            f"it must be uint8 of shape (sample, height, width) with 1 or 3 channels last, if any."
        )
    if labels.shape not in ((len(images),), (len(images), 1)) or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidInputError(
            f"'y_{split}' {where} is {labels.dtype} of shape {labels.shape}; "
            f"it must hold one whole number for each of the {len(images)} images."
        )
    if len(images) == 0 or labels.min() < 0:
        problem = "is empty" if len(images) == 0 else "has a negative label"
        raise InvalidInputError(f"split {split!r} {where} {problem}; classes are numbered from 0.")
    ids = [f"{split}-{i:06d}" for i in range(len(images))]
    return _split(ids, labels.ravel().tolist(), [ArrayImage(image) for image in images.astype(np.uint8, copy=False)])
