"""The offline benchmark: sixteen target tasks in VTAB's three groups, 1,000 training images each, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.image_data import ImageData, make_split
from pipeline.images import ArrayImage
from pipeline.offline import natural, specialized, structured
from store.errors import InvalidInputError, suggest

PREFIX = "offline"
SIZES = {"train": 1000, "test": 2000}
STREAMS = {"train": 0, "test": 1, "design": 2}
"""Splits by stream; "design" is for looking at while a task is made, and no method ever sees it."""
CHUNK = 250

Draw = Callable[[int, Sequence[int], NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Task:
    """A target task.

    Attributes
    ----------
    name : str
        What `pipeline.datasets.load_data` knows it by, after ``offline/``.
    group : str
        ``"natural"``, ``"specialized"`` or ``"structured"``, as in VTAB.
    class_names : tuple of str
        In the order of the labels.
    description : str
        One sentence.
    draw : callable, optional
        From stream, indices and labels to images, uint8, shape (image, 64, 64, 3); None for real images.
    """

    name: str
    group: str
    class_names: tuple[str, ...]
    description: str
    draw: Draw | None

    def images(self, split: str, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return images and labels; every run of as many indices as classes holds each class once."""
        if self.draw is None:
            raise ValueError(f"{self.name} is not drawn.")
        labels = np.asarray(indices, np.int64) % len(self.class_names)
        return self.draw(STREAMS[split], indices, labels), labels


def _numbers(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(first, last + 1))


def _degrees(count: int, whole: int) -> tuple[str, ...]:
    return tuple(f"{round(i * whole / count, 1):g}°" for i in range(count))


TASKS = {
    task.name: task
    for task in (
        Task("digits", "natural", _numbers(0, 9), "Handwritten digits, real scans from scikit-learn.", None),
        Task(
            "letters",
            "natural",
            natural.LETTERS,
            "Capital letters in the fonts that ship with matplotlib, in any two colours, somewhat turned and moved.",
            natural.letters,
        ),
        Task(
            "shapes",
            "natural",
            _numbers(1, natural.N_SHAPES),
            "Textured shapes of categories that the source task does not have.",
            natural.shapes,
        ),
        Task(
            "textures",
            "natural",
            _numbers(1, natural.N_TEXTURES),
            "Patterns that the source task does not have, filling the image at any angle and in any two colours.",
            natural.textures,
        ),
        Task(
            "defects",
            "specialized",
            ("sound", "defective"),
            "A woven or ground surface, with or without a scratch, a stain or a pit.",
            specialized.defects,
        ),
        Task(
            "stripes",
            "specialized",
            _degrees(specialized.N_STRIPES, 180),
            "The direction of faint stripes in strong noise.",
            specialized.stripes,
        ),
        Task(
            "cells",
            "specialized",
            _numbers(1, specialized.N_CELLS),
            "How many cells lie in an image as of a microscope; none touch.",
            specialized.cells,
        ),
        Task(
            "cell-type",
            "specialized",
            specialized.CELL_TYPES,
            "What kind of cell lies in the image: round, long, lobed, ring-shaped, dividing or with a spot.",
            specialized.cell_types,
        ),
        Task(
            "lesions",
            "specialized",
            _numbers(0, specialized.N_GRADES - 1),
            "The grade of a disease, by how many bright lesions a dim disc has among harmless vessels.",
            specialized.lesions,
        ),
        Task(
            "position",
            "structured",
            _numbers(1, structured.N_POSITIONS),
            "In which of 16 columns a sprite's centre lies.",
            structured.position,
        ),
        Task(
            "orientation",
            "structured",
            _degrees(structured.N_ORIENTATIONS, 360),
            "How far a sprite is turned, in steps of 22.5 degrees.",
            structured.orientation,
        ),
        Task(
            "size",
            "structured",
            _numbers(1, structured.N_SIZES),
            "How large a sprite is, in eight steps.",
            structured.size,
        ),
        Task(
            "count",
            "structured",
            _numbers(1, structured.N_COUNTS),
            "How many objects lie in the image, whatever their kinds, sizes and colours.",
            structured.count,
        ),
        Task(
            "distance",
            "structured",
            _numbers(1, structured.N_DISTANCES),
            "How far apart two objects are, in six steps.",
            structured.distance,
        ),
        Task(
            "relation",
            "structured",
            structured.RELATIONS,
            "Whether the star lies left of, right of, above or below the disc.",
            structured.relation,
        ),
        Task(
            "light",
            "structured",
            _degrees(structured.N_LIGHTS, 360),
            "From which direction light falls on a bumpy ball, in steps of 45 degrees.",
            structured.light,
        ),
    )
}


def find_task(name: str) -> Task:
    """Return the task of a name, with or without ``offline/`` before it.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    bare = name.removeprefix(f"{PREFIX}/")
    if bare not in TASKS:
        raise InvalidInputError(f"offline task {bare!r} is unknown; {suggest(bare, TASKS)}")
    return TASKS[bare]


def draw_task(task: Task) -> ImageData:
    """Return a drawn task's training and test images.

    Parameters
    ----------
    task : Task
        Not one of real images.

    Returns
    -------
    ImageData
        1,000 and 2,000 images, every class equally often up to one.
    """
    splits = {}
    for split, count in SIZES.items():
        drawn = [task.images(split, range(s, min(s + CHUNK, count))) for s in range(0, count, CHUNK)]
        images = [ArrayImage(image) for batch, _ in drawn for image in batch]
        labels = np.concatenate([labels for _, labels in drawn])
        splits[split] = make_split([f"{task.name}-{split}-{i:04d}" for i in range(count)], labels, images)
    return ImageData(f"{PREFIX}/{task.name}", task.class_names, splits, group=task.group)
