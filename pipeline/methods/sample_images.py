"""The images of a store's samples as tensors: matched by id, checked by content, decoded once if they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones import Backbone
from pipeline.datasets import ImageData, ImageSplit
from pipeline.loading import Loader, Loading
from store.activations import ActivationStore
from store.errors import InvalidInputError

SHOWN = 3
"""Names of images that a message lists."""


class SampleImages:
    """Images in the order of a store's samples, preprocessed for a backbone.

    Parameters
    ----------
    store : ActivationStore
        Says which samples there are.
    data : ImageData
        The images, in any order; those that the store does not have are left out.
    backbone : Backbone
        Whose preprocessing is applied.
    memory : int
        Bytes that decoded images of a split may take.

    Raises
    ------
    InvalidInputError
        If classes, a label or the content of an image differ, or an image is not there.
    """

    def __init__(self, store: ActivationStore, data: ImageData, backbone: Backbone, memory: int) -> None:
        if data.class_names != store.class_names:
            raise InvalidInputError(
                f"data {data.name!r} has the classes {_shown(data.class_names)}, but store {store.uri!r} has "
                f"{_shown(store.class_names)}; give the data that the store was made of."
            )
        self._splits = {name: _match(store, name, data) for name in store.splits}
        self._backbone = backbone
        self._memory = memory
        self._held: dict[str, Tensor] = {}

    def hold(self, split: str) -> None:
        """Decode all images of a split for later use, if they fit into memory."""
        n_bytes = 4 * len(self._splits[split]) * prod(self._backbone.preprocessing.input_size)
        if split not in self._held and n_bytes <= self._memory:
            (self._held[split],) = self.batches(split, [np.arange(len(self._splits[split]))])

    def batches(self, split: str, rows: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield the images of some samples for each of several batches, shape (batch, channels, height, width)."""
        if split in self._held:
            for own in rows:
                yield self._held[split][torch.from_numpy(own)].contiguous(memory_format=torch.channels_last)
            return
        with Loader(self._backbone, memory_format=torch.channels_last) as loader:
            ahead: Loading | None = None
            for own in rows:
                ready, ahead = ahead, loader.load(self._splits[split], own)
                if ready is not None:
                    yield ready.result()
            if ahead is not None:
                yield ahead.result()


def _match(store: ActivationStore, split: str, data: ImageData) -> ImageSplit:
    """Return the images of a split in the order of the store, each of which must be the one it was made of."""
    ids = store.ids(split)
    given = data.splits.get(split)
    place = {} if given is None else {name: row for row, name in enumerate(given.ids)}
    absent = [name for name in ids if name not in place]
    if given is None or absent:
        raise InvalidInputError(
            f"data {data.name!r} lacks {len(absent):,} of the {len(ids):,} samples of {split!r} in store "
            f"{store.uri!r}: {_shown(absent)}; give the data that the store was made of."
        )
    images = given.subset([place[name] for name in ids])
    contents = images.manifest().digests
    for what, ours, theirs in (
        ("another label", images.labels, store.labels(split)),
        ("other content", contents, store.digests(split)),
    ):
        differing = [name for name, a, b in zip(ids, ours, theirs, strict=True) if a != b]
        if differing:
            raise InvalidInputError(
                f"{len(differing):,} of the {len(ids):,} images of {split!r} in {data.name!r} have {what} than in "
                f"store {store.uri!r}: {_shown(differing)}; give the data that the store was made of, or extract again."
            )
    return images


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
