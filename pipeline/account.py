"""What an extraction took and what it showed, said in a sentence each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.settings import Settings
from store.activations import ActivationStore
from store.layout import ChunkRef
from store.records import BlockRecord

_ADVICE = {
    "reading": "more --workers or a faster disk would help.",
    "the backbone": "reading and writing keep up with it.",
    "writing": "a faster disk, fewer taps or a smaller target size would help.",
}


@dataclass
class Account:
    """Where the time of an extraction goes.

    Reading, forwarding and writing run at once, so what counts is how long the thread that forwards spent on it and
    on waiting for the two others.

    Attributes
    ----------
    seconds : dict of str to float
        By activity, over all blocks written so far.
    batch_sizes : set of int
        Images per forward pass of these blocks.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ADVICE, 0.0))
    batch_sizes: set[int] = field(default_factory=set)
    _last_write: float = 0.0

    def add(self, record: BlockRecord) -> None:
        """Count a block that was committed."""
        spent = record.seconds
        # Nothing is computed any more while the last block is written.
        written = self.seconds["writing"] - self._last_write + spent.get("wait", 0.0)
        self._last_write = spent.get("write", 0.0)
        self.seconds = {
            "reading": self.seconds["reading"] + spent.get("read", 0.0),
            "the backbone": self.seconds["the backbone"] + spent.get("forward", 0.0),
            "writing": written + self._last_write,
        }
        if record.batch_size is not None:
            self.batch_sizes.add(record.batch_size)

    @property
    def shares(self) -> dict[str, float]:
        """Each activity's share of the time."""
        total = sum(self.seconds.values())
        return {name: spent / total if total else 0.0 for name, spent in self.seconds.items()}

    def brief(self) -> str:
        """Return the activity that takes longest, such as ``"reading 71 %"``."""
        name, share = max(self.shares.items(), key=lambda item: item[1])
        return f"{name} {share:.0%}".replace("%", " %")

    def bottleneck(self) -> str:
        """Return a sentence on the activity that took longest; empty if nothing was done."""
        if not any(self.seconds.values()):
            return ""
        name, share = max(self.shares.items(), key=lambda item: item[1])
        return f"{name} took {100 * share:.0f} % of the time: {_ADVICE[name]}"

    def notes(self, settings: Settings) -> list[str]:
        """Say if batches were smaller than they should have been."""
        smallest = min(self.batch_sizes, default=settings.batch_size)
        if smallest >= settings.batch_size:
            return []
        return [f"batches of {settings.batch_size} images did not fit into memory; they were halved to {smallest}."]


def constant_layers(store: ActivationStore) -> tuple[str, ...]:
    """Return the layers of a complete store that have the same values for every sample of every split.

    They tell nothing of an image; as a rule something is wrong with the weights or the input.
    """
    if sum(split.n_samples for split in store.splits.values()) < 2:
        return ()
    ranges = [(norms.min(axis=1), norms.max(axis=1)) for norms in map(store.norms, store.splits)]
    low, high = np.min([r[0] for r in ranges], axis=0), np.max([r[1] for r in ranges], axis=0)
    # Equal vectors have equal norms, so all but a few layers need no further look.
    suspects = [name for name, equal in zip(store.layers, low == high, strict=True) if equal]
    return tuple(name for name in suspects if _is_constant(store, name))


def _is_constant(store: ActivationStore, name: str) -> bool:
    for chunk in range(store.layers[name].n_chunks):
        first = None
        for split in store.splits.values():
            for block in range(split.n_blocks):
                values = store.read_chunk(ChunkRef(split.name, name, chunk, block))
                first = values[:, :1] if first is None else first
                if (values != first).any():
                    return False
    return True
