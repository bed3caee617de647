"""Image files in, labels and probabilities out: read by threads, batch by batch, past those that cannot be used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute import Progress, n_cores, torch_threads
from pipeline.devices import find_device
from pipeline.forwarding import is_out_of_memory, keep_freed_memory
from pipeline.images import SUFFIXES, FileImage
from pipeline.prediction.classifier import Head2ToeClassifier
from pipeline.tuning import CLUSTER_BATCH_SIZE, CPU_BATCH_SIZE
from store.errors import InvalidInputError

LOOK_AHEAD = 2
"""Batches that are read ahead."""
Read = Tensor | InvalidInputError


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes
    ----------
    image : str
        The file.
    label : str
        The most probable class.
    probability : float
        Of that class.
    probabilities : ndarray of float32, shape (class,)
        Of all classes, in the classifier's order.
    """

    image: str
    label: str
    probability: float
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of some images.

    Attributes
    ----------
    class_names : tuple of str
        In the order of the probabilities.
    predictions : list of Prediction
        In the order of the files, but for those that could not be used.
    problems : list of (str, str)
        Each file that could not be used, and what is wrong with it, a clause without subject.
    """

    class_names: tuple[str, ...]
    predictions: list[Prediction]
    problems: list[tuple[str, str]]


def predict_images(
    classifier: Head2ToeClassifier,
    paths: Sequence[str | os.PathLike[str]],
    *,
    batch_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Classify image files.

    Parameters
    ----------
    classifier : Head2ToeClassifier
        It is moved to the device.
    paths : sequence of str or path
        Images, and folders whose images are taken, in order of name, with those of the folders below.
    batch_size : int, optional
        Images per forward pass; halved if memory does not suffice. 16 on the CPU, 64 elsewhere if not given.
    device : str
        ``auto``, a GPU if there is one, or any torch device.
    workers : int, optional
        Threads that read images; as many as there are cores if not given.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Predictions
        Of every image that can be read; the others are named in it.

    Raises
    ------
    InvalidInputError
        If no path is given, the device cannot be used, or not even one image fits into its memory.
    """
    there = find_device(device)
    size = batch_size or (CPU_BATCH_SIZE if there.type == "cpu" else CLUSTER_BATCH_SIZE)
    layout = torch.channels_last if classifier.recipe.channels_last else torch.contiguous_format
    classifier = classifier.to(there).to(memory_format=layout).eval()
    if there.type == "cpu":
        keep_freed_memory()
    names, problems = find_images(paths)
    found: list[Prediction] = []
    done = 0
    for part in _read(classifier, names, size, workers or n_cores()):
        good = [(name, image) for name, image in part if isinstance(image, Tensor)]
        problems += [(name, str(image)) for name, image in part if isinstance(image, InvalidInputError)]
        if good:
            batch = torch.stack([image for _, image in good]).contiguous(memory_format=layout)
            logits = _logits(classifier, batch)
            for (name, _), row, values in zip(good, logits.softmax(1).numpy(), logits, strict=True):
                if not values.isfinite().all():
                    problems.append((name, f"gives features that {classifier.recipe.dtype} cannot hold"))
                    continue
                best = int(row.argmax())
                found.append(Prediction(name, classifier.class_names[best], float(row[best]), row))
        done += len(part)
        if progress:
            progress("classifying images", done, len(names))
    return Predictions(classifier.class_names, found, problems)


def find_images(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the image files that paths mean, and what is wrong with each path that means none.

    A file is taken whatever its name. In folders, hidden files and folders and those that are no images by their
    ending are passed over, and links to folders are not followed.

    Raises
    ------
    InvalidInputError
        If no path is given.
    """
    if not paths:
        raise InvalidInputError("no image is given; name image files or folders of them.")
    names: list[str] = []
    problems: list[tuple[str, str]] = []
    for given in paths:
        if "://" in os.fspath(given):
            problems.append((_shown(given), "is a URL; images are read from files, so download it first"))
            continue
        path = Path(given)
        if not path.is_dir():
            names.append(str(path))
            continue
        below = sorted(_below(path, problems))
        if not below:
            problems.append((_shown(path), f"is a folder without images; endings read are {', '.join(SUFFIXES)}"))
        names += below
    return names, problems


def _below(folder: Path, problems: list[tuple[str, str]]) -> Iterator[str]:
    def note(error: OSError) -> None:
        problems.append((_shown(error.filename), f"cannot be read: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield str(Path(place, name))


def _read(
    classifier: Head2ToeClassifier, names: Sequence[str], batch_size: int, workers: int
) -> Iterator[list[tuple[str, Read]]]:
    """Yield batches of files with their preprocessed image or what is wrong with it, reading a few batches ahead."""

    def read(name: str) -> Read:
        try:
            return classifier.transform(FileImage(Path(name)).read())
        except InvalidInputError as error:
            return error

    waiting = iter(names)
    ahead: deque[tuple[str, Future[Read]]] = deque()
    # Threads are parallel over images, each with one thread of PyTorch's.
    with torch_threads(None), ThreadPoolExecutor(workers, "reader", torch.set_num_threads, (1,)) as pool:
        try:
            while True:
                room = (1 + LOOK_AHEAD) * batch_size - len(ahead)
                ahead.extend((name, pool.submit(read, name)) for name in islice(waiting, room))
                if not ahead:
                    return
                batch = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
                yield [(_shown(name), future.result()) for name, future in batch]
        finally:
            for _, future in ahead:
                future.cancel()


def _shown(path: str | os.PathLike[str]) -> str:
    """Return the name of a file as text that can be printed, whatever bytes it consists of."""
    return os.fsencode(path).decode(errors="replace")


def _logits(classifier: Head2ToeClassifier, batch: Tensor) -> Tensor:
    """Return logits on the CPU, in halves if memory does not suffice."""
    try:
        return classifier(batch).cpu()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise InvalidInputError(
                "not even one image at a time fits into the memory of the device; give --device cpu."
            ) from error
    half = len(batch) // 2
    return torch.cat([_logits(classifier, batch[:half]), _logits(classifier, batch[half:])])
