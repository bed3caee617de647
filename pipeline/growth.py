"""Growth: a store of more images takes over from a store of fewer what has not changed.

The grown store is a store of its own, with its own fingerprint. Samples of its parent come first and in the parent's
order, so that they fill the same blocks: whole blocks are linked (or copied, where files cannot be linked), and of the
parent's last, partly filled block the old samples' values are taken over. Only new or changed images are extracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import ImageData, ImageSplit
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.layout import ChunkRef, norms_key, record_key, row_checksums_key
from store.local import LocalObjects
from store.records import encode_record
from store.spec import ExtractionSpec, Manifest


@dataclass(frozen=True)
class Parent:
    """A store that another one grows from.

    Attributes
    ----------
    store : ActivationStore
        The parent, possibly incomplete.
    content : dict of str to tuple
        (id, content digest) of each of its samples, by split.
    """

    store: ActivationStore
    content: dict[str, tuple[tuple[str, str], ...]]

    @classmethod
    def of(cls, store: ActivationStore) -> Parent:
        """Read what the samples of a store are."""
        content = {s: tuple(zip(store.ids(s), store.digests(s), strict=True)) for s in store.splits}
        return cls(store, content)

    def order(self, data: ImageData) -> ImageData:
        """Return the same images with the parent's samples first, in the parent's order."""
        return replace(data, splits={name: self._ordered(name, split) for name, split in data.splits.items()})

    def _ordered(self, name: str, split: ImageSplit) -> ImageSplit:
        place = {sample: number for number, (sample, _) in enumerate(self.content.get(name, ()))}
        order = sorted(range(len(split)), key=lambda i: (place.get(split.ids[i], len(place)), i))
        return ImageSplit(
            tuple(split.ids[i] for i in order), split.labels[order], tuple(split.sources[i] for i in order)
        )

    def check(self, spec: ExtractionSpec) -> None:
        """Refuse a parent whose activations are of another kind.

        Raises
        ------
        InvalidInputError
            If anything but the data differs.
        """
        theirs = self.store.spec
        for part in ("kind", "backbone", "preprocessing", "taps", "pooling", "dtype"):
            if getattr(theirs, part, None) != getattr(spec, part):
                raise InvalidInputError(
                    f"the store cannot grow from {self.store.uri!r}: their {part} differ; extend a store that was "
                    "extracted with the same backbone, weights, taps, pooling and preprocessing."
                )

    def block_samples(self) -> dict[str, int]:
        """Return samples per block by split, which the grown store must share."""
        return {s.name: s.block_samples for s in self.store.splits.values()}

    def unchanged(self, child: ActivationStore, manifest: Manifest, split: str, block: int) -> int:
        """Return how many leading samples of a block are those of the parent's block, if that was committed."""
        old = self.store.splits.get(split)
        if old is None or block >= old.n_blocks or old.block_samples != child.splits[split].block_samples:
            return 0
        if self.store.layers != child.layers or not self.store.is_committed(split, block):
            return 0
        start, stop = child.splits[split].block_range(block)
        ours = zip(manifest.ids[start:stop], manifest.digests[start:stop], strict=True)
        theirs = self.content[split][start : old.block_range(block)[1]]
        pairs = zip(ours, theirs, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def adopt(self, child: ActivationStore, split: str, block: int) -> None:
        """Make a block of the parent, which has the very same samples, a block of the grown store."""
        record = self.store.record(split, block)
        keys = [ChunkRef(split, n, c, block).key for n, layer in child.layers.items() for c in range(layer.n_chunks)]
        for key in [*keys, norms_key(split, block), row_checksums_key(split, block)]:
            self._copy(child, key)
        child.objects.create(record_key(split, block), encode_record(record))

    def _copy(self, child: ActivationStore, key: str) -> None:
        old, new = self.store.objects, child.objects
        if isinstance(old, LocalObjects) and isinstance(new, LocalObjects):
            target = new.root / key
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Chunks are replaced, never changed in place, so two stores may share one file.
                target.hardlink_to(old.root / key)
            except FileExistsError:
                return
            except OSError:
                new.write(key, [old.read(key)])
        else:
            new.write(key, [old.read(key)])

    def values(self, split: str, block: int, count: int) -> dict[str, NDArray[Any]]:
        """Return the parent's verified values of a block's first samples, by layer, shape (feature, sample)."""
        return {
            name: np.concatenate(
                [self.store.read_chunk(ChunkRef(split, name, c, block))[:, :count] for c in range(layer.n_chunks)]
            )
            for name, layer in self.store.layers.items()
        }
