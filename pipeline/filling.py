"""A block of a store on its way from images to values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.forwarding import Forward
from pipeline.loading import Loader, Loading
from pipeline.planning import Plan
from store.activations import ActivationStore
from store.claims import Block


class Filling:
    """A block whose images are read and forwarded, batch by batch.

    Samples that the store's parent has are copied, the others go through the backbone. Batches are counted from the
    block's first new sample, so that whoever fills it, and whenever, arrives at the same bytes.

    Parameters
    ----------
    plan : Plan
        The extraction.
    store : ActivationStore
        The begun store.
    key : Block
        Split and number of the block.
    batch_size : int
        Images per forward pass.

    Attributes
    ----------
    n_fresh : int
        Samples that go through the backbone.
    n_left : int
        Batches whose features are not there yet.
    seconds : dict of str to float
        Time spent on the block by activity.
    """

    def __init__(self, plan: Plan, store: ActivationStore, key: Block, batch_size: int) -> None:
        split, block = self.key = key
        self._plan, self._store = plan, store
        self._start, stop = store.splits[split].block_range(block)
        self._known = np.full(stop - self._start, -1)
        if plan.parent is not None:
            self._known = plan.parent.known(store, plan.manifests[split], split, block)
        self._fresh = np.flatnonzero(self._known < 0)
        self.n_fresh = len(self._fresh)
        self.begin(batch_size)

    def begin(self, batch_size: int) -> None:
        """Begin, or begin again, with batches of some size."""
        self.batch_size = batch_size
        self.unread = deque(self._fresh[i : i + batch_size] for i in range(0, self.n_fresh, batch_size))
        self.n_left = len(self.unread)
        self.seconds = {"read": 0.0, "forward": 0.0}

    def load(self, loader: Loader) -> tuple[NDArray[np.int64], Loading]:
        """Begin to read the next batch; return its samples, as places within the block, and the images to come."""
        places = self.unread.popleft()
        return places, loader.load(self._plan.data.splits[self.key[0]], self._start + places)

    def forward(self, forward: Forward, places: NDArray[np.int64], images: torch.Tensor) -> Callable[[], None]:
        """Begin to compute a batch; return what waits until its features are among the values."""
        values = torch.from_numpy(self._values)
        first, last = int(places[0]), int(places[-1]) + 1
        if last - first == len(places):
            return forward(images, values[:, first:last])
        # Samples of the parent lie in between.
        out = torch.empty((len(values), len(places)), dtype=values.dtype)
        finish = forward(images, out)

        def scatter() -> None:
            finish()
            values[:, torch.from_numpy(places)] = out

        return scatter

    @property
    def values(self) -> dict[str, NDArray[Any]]:
        """Each layer's values, shape (feature, sample)."""
        return self._by_layer(self._values)

    @cached_property
    def _values(self) -> NDArray[Any]:
        """All layers, one below the other; memory is taken when the first batch is computed."""
        values = np.empty((self._store.n_features, len(self._known)), self._store.dtype)
        old = np.flatnonzero(self._known >= 0)
        if len(old):
            assert self._plan.parent is not None
            layers = self._by_layer(values)
            for name, theirs in self._plan.parent.values(self.key[0], self._known[old]).items():
                layers[name][:, old] = theirs
        return values

    def _by_layer(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {n: values[c.offset : c.offset + c.n_features] for n, c in self._store.layers.items()}
