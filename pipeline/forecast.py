"""What an extraction will take, said before it starts, and whether the place can hold it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.extraction_parameters import ExtractionParameters
from pipeline.forwarding import Forward, is_out_of_memory
from pipeline.loading import Loader
from pipeline.planning import Plan
from pipeline.settings import Settings
from pipeline.sharding import WHOLE, Shard, all_blocks
from store.activations import open_store
from store.claims import Block
from store.errors import InvalidInputError, StoreNotFoundError
from store.layout import CRC_BYTES, Layer, Split, plan_layers
from store.local import LocalObjects
from store.objects import open_objects

WORTH_TIMING = 16
"""Batches that must be left for one of them to be tried out, twice, before."""
RECORD_BYTES = 4096
"""What a commit record takes at least, on most file systems."""


@dataclass(frozen=True)
class Forecast:
    """What an extraction will do, before it does.

    Attributes
    ----------
    uri : str
        Where the store is or will be.
    samples : dict of str to int
        Samples by split.
    layers, features : int
        Layers, and features over all of them.
    reused : int
        Samples of this shard whose activations are there already, here or in the store this one grows from.
    left : int
        Samples of this shard that must go through the backbone.
    left_to_others : int
        Samples of other shards that are missing.
    bytes_total : int
        Bytes of the whole store on disk.
    bytes_left : int
        Bytes of all that is missing, whoever writes it.
    bytes_free : int or None
        Room at the root; None where no limit is known, as in object storage.
    seconds : float or None
        What this shard will take, estimated from one batch; None where none was tried, because little is left or
        because other machines do the work.
    notes : tuple of str
        Sentences on the images: what becomes of them, how they were split, and what is left out.
    """

    uri: str
    samples: dict[str, int]
    layers: int
    features: int
    reused: int
    left: int
    left_to_others: int
    bytes_total: int
    bytes_left: int
    bytes_free: int | None
    seconds: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """The blocks of a store that may not be begun yet, and those of one shard that are missing.

    Attributes
    ----------
    layers : dict of str to Layer
        Layers of the store.
    splits : dict of str to Split
        Splits of the store.
    mine : list of Block
        All blocks of the shard.
    missing : set of Block
        Blocks of the store that are not committed.
    begun : bool
        Whether the store exists.
    """

    layers: dict[str, Layer]
    splits: dict[str, Split]
    mine: list[Block]
    missing: set[Block]
    begun: bool

    @property
    def todo(self) -> list[Block]:
        """What is left to this shard, in order."""
        return [block for block in self.mine if block in self.missing]

    @classmethod
    def of(cls, plan: Plan, parameters: ExtractionParameters, shard: Shard = WHOLE) -> Outlook:
        """Look at what is there; nothing is written."""
        try:
            there = open_store(plan.uri, allow_incomplete=True)
        except StoreNotFoundError:
            layers, splits = plan_layers(
                {layer.name: layer.n_features for layer in plan.layers},
                {name: len(manifest.ids) for name, manifest in plan.manifests.items()},
                np.dtype(plan.spec.dtype).itemsize,
                parameters.block_size if plan.parent is None else plan.parent.block_samples(),
            )
            blocks = all_blocks(splits)
            missing, begun = set(blocks), False
        else:
            layers, splits = tuple(there.layers.values()), tuple(there.splits.values())
            blocks = all_blocks(splits)
            missing = {(split, block) for split, numbers in there.missing().items() for block in numbers}
            begun = True
        return cls({x.name: x for x in layers}, {x.name: x for x in splits}, shard.of(blocks), missing, begun)

    def size(self, blocks: Iterable[Block]) -> int:
        """Return how many samples some blocks hold."""
        ranges = [self.splits[split].block_range(block) for split, block in blocks]
        return sum(stop - start for start, stop in ranges)

    def n_bytes(self, blocks: Iterable[Block], itemsize: int) -> int:
        """Return what some blocks take on disk, with padding and checksums."""
        n_features = sum(layer.n_features for layer in self.layers.values())
        values = sum(layer.n_chunks * layer.chunk_features for layer in self.layers.values())
        chunks = sum(layer.n_chunks for layer in self.layers.values()) + 2
        total = 0
        for split, _ in blocks:
            n = self.splits[split].block_samples
            total += (values * itemsize + 4 * len(self.layers)) * n + 4 * n_features + CRC_BYTES * chunks + RECORD_BYTES
        return total


def forecast(plan: Plan, outlook: Outlook) -> Forecast:
    """Return what an extraction will take, its time left open."""
    mine = set(outlook.todo)
    left = to_write = 0
    itemsize = np.dtype(plan.spec.dtype).itemsize
    for block in outlook.missing:
        fresh, linked = _fresh(plan, outlook, block)
        left += fresh if block in mine else 0
        to_write += 0 if linked else outlook.n_bytes([block], itemsize)
    return Forecast(
        uri=plan.uri,
        samples={split.name: split.n_samples for split in outlook.splits.values()},
        layers=len(outlook.layers),
        features=plan.n_features,
        reused=outlook.size(outlook.mine) - left,
        left=left,
        left_to_others=outlook.size(outlook.missing - mine),
        bytes_total=outlook.n_bytes(all_blocks(outlook.splits.values()), itemsize),
        bytes_left=to_write,
        bytes_free=_free(plan.uri),
        seconds=None,
        notes=plan.notes,
    )


def _fresh(plan: Plan, outlook: Outlook, block: Block) -> tuple[int, bool]:
    """Return how many samples of a block must be computed, and whether the whole block is a link to the parent's."""
    if plan.parent is None:
        return outlook.size([block]), False
    split, number = block
    known = plan.parent.known(outlook, plan.manifests[split], split, number)
    local = isinstance(plan.parent.store.objects, LocalObjects)
    return int((known < 0).sum()), local and plan.parent.same_block(outlook, split, number, known)


def check_place(uri: str) -> None:
    """Make the folder that stores lie in, and refuse one that cannot be written to.

    Raises
    ------
    InvalidInputError
        If so.
    """
    objects = open_objects(uri)
    if not isinstance(objects, LocalObjects):
        return
    place = objects.root.absolute().parent
    occupied = next((p for p in [place, *place.parents] if p.exists() and not p.is_dir()), None)
    if occupied is not None:
        raise InvalidInputError(f"cannot write to {str(occupied)!r}: it is a file; choose a folder as the root.")
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell of read-only file systems, nor of the superuser's rights.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InvalidInputError(
            f"cannot write to {str(place)!r}: {(error.strerror or str(error)).lower()}; choose a root that is writable."
        ) from error


def check_space(found: Forecast) -> None:
    """Refuse a place that is too small for what is missing.

    Raises
    ------
    InvalidInputError
        If so.
    """
    if found.bytes_free is not None and found.bytes_left > found.bytes_free:
        raise InvalidInputError(
            f"what is missing of {found.uri!r} needs {found.bytes_left / 1e9:.2f} GB but its disk has "
            f"{found.bytes_free / 1e9:.2f} GB free; make room, or choose another root, fewer taps or a smaller target "
            "size."
        )


def _free(uri: str) -> int | None:
    objects = open_objects(uri)
    if not isinstance(objects, LocalObjects):
        return None
    place = next(p for p in Path(objects.root).absolute().parents if p.is_dir())
    return shutil.disk_usage(place).free


def estimate_seconds(
    found: Forecast, plan: Plan, outlook: Outlook, settings: Settings, devices: Sequence[torch.device]
) -> Forecast:
    """Return the forecast with the time that one batch on the real device suggests.

    It is an estimate: first reads may be slow, writing and other programs are not accounted for, nor is what compiling
    gains, and devices are taken to be equal.

    Parameters
    ----------
    found : Forecast
        What else is expected.
    plan : Plan
        The extraction.
    outlook : Outlook
        What is left to do.
    settings : Settings
        How batches are computed.
    devices : sequence of torch.device
        Where they will be; none if that is elsewhere.
    """
    if not devices or found.left < WORTH_TIMING * settings.batch_size:
        return found
    split, block = outlook.todo[0]
    start, stop = outlook.splits[split].block_range(block)
    indices = np.arange(start, min(stop, start + settings.batch_size))
    out = torch.empty((plan.n_features, len(indices)), dtype=getattr(torch, plan.spec.dtype))
    plain = settings.model_copy(update={"compile": False})
    try:
        with (
            Loader(plan.backbone, memory_format=settings.memory_format) as loader,
            Forward(plan.backbone.model, plan.layers, plain, devices[0]) as forward,
        ):
            clock = time.perf_counter()
            batch = loader.load(plan.data.splits[split], indices).result()
            reading = time.perf_counter() - clock
            for _ in range(2):  # the first batch of a shape is slow
                clock = time.perf_counter()
                for finish in [forward(batch, out) for _ in range(forward.n_at_once)]:
                    finish()
                computing = (time.perf_counter() - clock) / forward.n_at_once
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return found
    # Both overlap, and devices work side by side, but on a CPU all share its cores.
    spent = reading + computing if devices[0].type == "cpu" else max(reading, computing) / len(devices)
    return replace(found, seconds=spent / len(indices) * found.left)
