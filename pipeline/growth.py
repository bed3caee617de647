"""Growth: a store of more images takes over from a store of fewer what has not changed.

The grown store is a store of its own, with its own fingerprint. Samples of its parent come first and in the parent's
order, so that they fill the same blocks: whole blocks are linked (or copied, where files cannot be linked). Of other
blocks, as the parent's last one or those after a removed image, the old samples' values are copied one by one. Only new
or changed images are extracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import ImageData, ImageSplit
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.layout import ChunkRef, Layer, Split, norms_key, record_key, row_checksums_key
from store.local import LocalObjects
from store.records import encode_record
from store.spec import ExtractionSpec, Manifest


class Laid(Protocol):
    """A store, or one that is only planned: its layers and splits by name."""

    @property
    def layers(self) -> dict[str, Layer]: ...

    @property
    def splits(self) -> dict[str, Split]: ...


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

    @cached_property
    def _places(self) -> dict[str, dict[tuple[str, str], int]]:
        return {split: {s: i for i, s in enumerate(samples)} for split, samples in self.content.items()}

    @cached_property
    def _missing(self) -> dict[str, list[int]]:
        return self.store.missing()

    def _is_committed(self, split: str, block: int) -> bool:
        return block not in self._missing.get(split, ())

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
                    f"the store cannot grow from {self.store.uri!r}: the {part} is not the same; extend a store that "
                    "was extracted with the same backbone, weights, taps, pooling and preprocessing."
                )

    def check_samples(self, manifests: Mapping[str, Manifest]) -> None:
        """Refuse a parent that has none of the images.

        Raises
        ------
        InvalidInputError
            If no sample of the data is in the parent.
        """
        for split, manifest in manifests.items():
            known = self._places.get(split, {})
            if any(sample in known for sample in zip(manifest.ids, manifest.digests, strict=True)):
                return
        raise InvalidInputError(
            f"none of the images is in {self.store.uri!r}, so there is nothing to take over; extend a store of a part "
            "of this data, or leave --extend out."
        )

    def block_samples(self) -> dict[str, int]:
        """Return samples per block by split, which the grown store must share."""
        return {s.name: s.block_samples for s in self.store.splits.values()}

    def known(self, child: Laid, manifest: Manifest, split: str, block: int) -> NDArray[np.int64]:
        """Return where in the parent's split each sample of a block has committed values; −1 where it has none."""
        start, stop = child.splits[split].block_range(block)
        found = np.full(stop - start, -1, np.int64)
        old = self.store.splits.get(split)
        if old is None or {n: c.n_features for n, c in self.store.layers.items()} != {
            n: c.n_features for n, c in child.layers.items()
        }:
            return found
        place = self._places[split]
        for number, sample in enumerate(zip(manifest.ids[start:stop], manifest.digests[start:stop], strict=True)):
            position = place.get(sample, -1)
            if position >= 0 and self._is_committed(split, position // old.block_samples):
                found[number] = position
        return found

    def same_block(self, child: Laid, split: str, block: int, known: NDArray[np.int64]) -> bool:
        """Return whether a block is, sample by sample and chunk by chunk, the parent's block of the same number."""
        old, new = self.store.splits.get(split), child.splits[split]
        if old is None or block >= old.n_blocks or old.block_samples != new.block_samples:
            return False
        if self.store.layers != child.layers or old.block_range(block) != new.block_range(block):
            return False
        return bool(np.array_equal(known, np.arange(*new.block_range(block))))

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

    def values(self, split: str, positions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the verified values of some of the parent's samples, by layer, shape (feature, sample)."""
        size = self.store.splits[split].block_samples
        out = {n: np.empty((c.n_features, len(positions)), self.store.dtype) for n, c in self.store.layers.items()}
        for block in np.unique(positions // size):
            inside = positions // size == block
            rows = positions[inside] - block * size
            for name, layer in self.store.layers.items():
                for chunk in range(layer.n_chunks):
                    values = self.store.read_chunk(ChunkRef(split, name, chunk, int(block)))
                    out[name][slice(*layer.chunk_range(chunk)), inside] = values[:, rows]
        return out
