"""Extraction: images through the backbone once, every layer's pooled activations into a store."""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones import Backbone
from pipeline.compute import Progress
from pipeline.datasets import ImageSplit
from pipeline.planning import ExtractionParameters, Plan, check_images, check_space, plan_extraction
from pipeline.presets import PRE_LOGITS
from pipeline.taps import Capture
from store.activations import ActivationStore, open_store
from store.claims import Block, Claims
from store.errors import InterruptedExtractionError, InvalidInputError, StoreNotFoundError
from store.records import BlockRecord
from store.writer import StoreWriter, create_store

POLL_SECONDS = 0.5
"""How often to look again when every missing block is being written by others."""


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    uri : str
        Where the store is.
    fingerprint : str
        Its identity.
    extracted : int
        Samples that went through the backbone in this call.
    reused : int
        Samples whose blocks were there already.
    seconds : float
        Time of this call, in all.
    seconds_saved : float
        Time that reading and forwarding the re-used samples took when they were extracted.
    """

    uri: str
    fingerprint: str
    extracted: int
    reused: int
    seconds: float
    seconds_saved: float


def extract(parameters: ExtractionParameters, root: str, progress: Progress | None = None) -> Extraction:
    """Write the store of these parameters under `root`, or only what is missing of it.

    Parameters
    ----------
    parameters : ExtractionParameters
        What to extract.
    root : str
        Folder or URL under which stores lie.
    progress : callable, optional
        Called as ``progress(stage, done, total)``; samples during the extraction itself.

    Returns
    -------
    Extraction
        Where the store is and what was done.

    Raises
    ------
    InvalidInputError
        If anything cannot be used as given, or the disk cannot hold the store.
    NotFiniteError
        If a layer overflows the store's type.
    InterruptedExtractionError
        If the user stops it; committed blocks stay.
    """
    start = time.perf_counter()
    device = _device(parameters.device)
    plan = plan_extraction(parameters, root, progress)
    writer = _writer(plan, parameters, device)
    store = writer.store
    if plan.parent is not None:
        _adopt_blocks(plan, writer)
    todo = [(split, block) for split, blocks in writer.missing().items() for block in blocks]
    blocks = [(s.name, block) for s in store.splits.values() for block in range(s.n_blocks)]
    there = set(blocks) - set(todo)
    saved = sum(sum(store.record(*b).seconds.get(what, 0.0) for what in ("read", "forward")) for b in there)
    sizes = {(split, block): _size(store, split, block) for split, block in blocks}
    done = extracted = 0
    if todo:
        try:
            for block, fresh in _write_blocks(plan, writer, todo, device):
                done += sizes[block]
                extracted += fresh
                if progress:
                    progress("extracting images", done, sum(sizes[b] for b in todo))
        except KeyboardInterrupt:
            left = sum(len(b) for b in writer.missing().values())
            raise InterruptedExtractionError(
                f"extraction stopped; {len(blocks) - left} of {len(blocks)} blocks are committed in {plan.uri!r} "
                "and stay: run the same command again to resume."
            ) from None
    return Extraction(
        uri=plan.uri,
        fingerprint=store.fingerprint,
        extracted=extracted,
        reused=sum(sizes.values()) - extracted,
        seconds=time.perf_counter() - start,
        seconds_saved=saved,
    )


def _size(store: ActivationStore, split: str, block: int) -> int:
    start, stop = store.splits[split].block_range(block)
    return stop - start


def _writer(plan: Plan, parameters: ExtractionParameters, device: torch.device) -> StoreWriter:
    try:
        there = open_store(plan.uri, allow_incomplete=True)
    except StoreNotFoundError:
        check_space(plan)
        check_images(plan.data)
    else:
        there.objects.sweep()
        return StoreWriter(there)
    parent = None if plan.parent is None else plan.parent.store
    embedding = [layer.name for layer in plan.layers if layer.tap.name == PRE_LOGITS]
    provenance = {
        "backbone": plan.backbone.name,
        "weights": plan.backbone.weights,
        "data": plan.data.name,
        "embedding": embedding[-1] if embedding else None,
        "batch_size": parameters.batch_size if parent is None else parent.provenance["batch_size"],
        "device": _device_name(device),
        "parent": None if parent is None else parent.fingerprint,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "timm", "numpy", "zarr")},
    }
    return create_store(
        plan.uri,
        {layer.name: layer.n_features for layer in plan.layers},
        {name: len(m.ids) for name, m in plan.manifests.items()},
        manifests=plan.manifests,
        class_names=plan.data.class_names,
        spec=plan.spec,
        provenance=provenance,
        block_samples=parameters.block_size if plan.parent is None else plan.parent.block_samples(),
    )


def _adopt_blocks(plan: Plan, writer: StoreWriter) -> None:
    """Take over from the parent every missing block that it has as it is."""
    assert plan.parent is not None
    for split, blocks in writer.missing().items():
        for block in blocks:
            known = plan.parent.known(writer.store, plan.manifests[split], split, block)
            if plan.parent.same_block(writer.store, split, block, known):
                plan.parent.adopt(writer.store, split, block)


def _write_blocks(
    plan: Plan, writer: StoreWriter, todo: list[Block], device: torch.device
) -> Iterator[tuple[Block, int]]:
    """Yield each missing block once it is committed, and how many of its samples went through the backbone for it.

    One block is written while the next is computed. Blocks that another writer has claimed are left to it; whatever
    it gives up is taken over.
    """
    store = writer.store
    batch_size = int(store.provenance["batch_size"])
    model = plan.backbone.model.to(device)
    waiting, refused = deque(todo), 0
    pending: tuple[Block, int, Future[BlockRecord | None]] | None = None
    with (
        Claims(store.objects) as claims,
        ThreadPoolExecutor(1, "writer") as writing,
        ThreadPoolExecutor(max(2, os.cpu_count() or 1), "reader") as reading,
        Capture(model, plan.layers) as capture,
    ):
        while waiting or pending:
            new: tuple[Block, int, Future[BlockRecord | None]] | None = None
            if waiting:
                split, block = waiting.popleft()
                if store.is_committed(split, block):
                    yield (split, block), 0
                    continue
                if claims.take(split, block):
                    refused = 0
                    values, seconds, fresh = _compute_block(
                        plan, store, capture, split, block, batch_size=batch_size, device=device, reading=reading
                    )
                    new = (split, block), fresh, writing.submit(_commit, writer, claims, split, block, values, seconds)
                else:
                    waiting.append((split, block))
                    refused += 1
            if pending is not None:
                written, forwarded, future = pending
                if future.result() is None:
                    waiting.append(written)
                else:
                    yield written, forwarded
            pending = new
            if pending is None and refused >= len(waiting) > 0:
                time.sleep(POLL_SECONDS)


def _commit(
    writer: StoreWriter,
    claims: Claims,
    split: str,
    block: int,
    values: dict[str, NDArray[Any]],
    seconds: dict[str, float],
) -> BlockRecord | None:
    try:
        return writer.write_block(split, block, values, seconds) if claims.holds(split, block) else None
    finally:
        claims.release(split, block)


@torch.inference_mode()
def _compute_block(
    plan: Plan,
    store: ActivationStore,
    capture: Capture,
    split: str,
    block: int,
    *,
    batch_size: int,
    device: torch.device,
    reading: ThreadPoolExecutor,
) -> tuple[dict[str, NDArray[Any]], dict[str, float], int]:
    """Return one block's values by layer, shape (feature, sample), seconds spent, and samples forwarded.

    Batches begin at the block's first new sample, so that a resumed block has the same batches and bytes.
    """
    start, stop = store.splits[split].block_range(block)
    images = plan.data.splits[split]
    out = {n: np.empty((layer.n_features, stop - start), store.dtype) for n, layer in store.layers.items()}
    seconds = {"read": 0.0, "forward": 0.0}
    fresh = np.arange(stop - start)
    if plan.parent is not None:
        known = plan.parent.known(store, plan.manifests[split], split, block)
        old, fresh = np.flatnonzero(known >= 0), np.flatnonzero(known < 0)
        for name, values in plan.parent.values(split, known[old]).items():
            out[name][:, old] = values
    parts = [fresh[i : i + batch_size] for i in range(0, len(fresh), batch_size)]
    batches = [reading.submit(_read_batch, plan.backbone, images, start + part) for part in parts[:1]]
    for number, part in enumerate(parts):
        if number + 1 < len(parts):
            batches.append(reading.submit(_read_batch, plan.backbone, images, start + parts[number + 1]))
        clock = time.perf_counter()
        batch = batches.pop(0).result()
        waited = time.perf_counter()
        for name, pooled in capture(batch.to(device)).items():
            out[name][:, part] = pooled.to(torch.from_numpy(out[name]).dtype).cpu().numpy().T
        seconds["read"] += waited - clock
        seconds["forward"] += time.perf_counter() - waited
    return out, seconds, len(fresh)


def _read_batch(backbone: Backbone, images: ImageSplit, indices: NDArray[np.int64]) -> torch.Tensor:
    return torch.stack([backbone.transform(images.image(int(i))) for i in indices])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0].rstrip('.')}; try 'auto' or 'cpu'."
        ) from error
    return device


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
