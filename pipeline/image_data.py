"""Labelled images in splits, whatever they come from: read when asked for, from several threads and processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import ImageSource, place_of
from store.errors import InvalidInputError
from store.spec import Manifest

MOST_WAITING = 4096
MOST_NAMED = 20
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
            return self.sources[index].read()
        except InvalidInputError as error:
            raise InvalidInputError(f"image {self._place(index)!r} {error}; repair it or leave it out.") from error

    def subset(self, indices: Sequence[int]) -> ImageSplit:
        """Return the split of some images, in the order given."""
        return ImageSplit(
            tuple(self.ids[i] for i in indices),
            self.labels[np.asarray(indices, np.int64)],
            tuple(self.sources[i] for i in indices),
        )

    def manifest(self) -> Manifest:
        """Return ids, labels and content digests; every file is read once and none decoded.

        Raises
        ------
        InvalidInputError
            If a file cannot be read or an id occurs twice.
        """

        def content(index: int) -> str:
            try:
                return self.sources[index].digest()
            except InvalidInputError as error:
                raise InvalidInputError(f"image {self._place(index)!r} {error}.") from error

        return Manifest(self.ids, self.labels, tuple(in_threads(content, len(self))))

    def _place(self, index: int) -> str:
        return place_of(self.sources[index], self.ids[index])


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images.

    Attributes
    ----------
    name : str
        As given to `pipeline.datasets.load_data`.
    class_names : tuple of str
        In the order of the labels.
    splits : dict of ImageSplit
        By name: "train", "test" and possibly "val".
    note : str
        How the splits were made, where that was not the data's own doing.
    prescribed : bool
        The samples are those of a benchmark's own lists, in which a class may have one training sample or none.
    group : str
        Group of tasks of a benchmark, such as VTAB's ``"natural"``, or empty.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, ImageSplit]
    note: str = ""
    prescribed: bool = False
    group: str = ""

    def check_classes(self) -> None:
        """Refuse training data in which a class has a single sample, which cannot be both learnt from and tested on.

        Raises
        ------
        InvalidInputError
            If there is one, naming each such class.
        """
        if "train" not in self.splits or self.prescribed:
            return
        counts = np.bincount(self.splits["train"].labels, minlength=len(self.class_names))
        single = [self.class_names[label] for label in np.flatnonzero(counts == 1)]
        if single:
            more = f" and {len(single) - MOST_NAMED} more" if len(single) > MOST_NAMED else ""
            names = ", ".join(map(repr, single[:MOST_NAMED])) + more
            raise InvalidInputError(
                f"{'class' if len(single) == 1 else 'classes'} {names} of {self.name!r} "
                f"{'has 1 training sample' if len(single) == 1 else 'have 1 training sample each'}, too few for "
                "cross-validation; add images of it or leave the class out."
            )


def make_split(
    ids: Sequence[str], labels: Sequence[int] | NDArray[np.int64], sources: Sequence[ImageSource]
) -> ImageSplit:
    """Return a split of images whose ids are all different.

    Raises
    ------
    InvalidInputError
        If one is listed twice.
    """
    if len(set(ids)) != len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise InvalidInputError(f"image {twice!r} is listed twice in one split; list every image once.")
    return ImageSplit(tuple(ids), np.asarray(labels, dtype=np.int64), tuple(sources))


def in_threads(function: Callable[[int], _T], count: int) -> Iterator[_T]:
    """Yield what `function` returns for 0, 1, …, in this order, computed by several threads."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # The pool keeps an object for every call that waits, too many for millions of images.
        for start in range(0, count, MOST_WAITING):
            yield from pool.map(function, range(start, min(start + MOST_WAITING, count)))
