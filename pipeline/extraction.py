"""Extraction: images through the backbone once, every layer's pooled activations into a store."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.account import Account, constant_layers
from pipeline.block_writing import write_blocks
from pipeline.compute import Progress, workers
from pipeline.datasets import ImageData
from pipeline.devices import device_name, find_devices
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.forecast import Forecast, Outlook, check_place, check_space, estimate_seconds, forecast
from pipeline.launching import Order, write_on_cluster, write_on_devices
from pipeline.planning import Plan, plan_extraction
from pipeline.presets import PRE_LOGITS
from pipeline.settings import Settings
from pipeline.sharding import WHOLE, Shard
from pipeline.tuning import kept, settle
from store.activations import open_store
from store.claims import Block
from store.errors import IncompleteStoreError, InterruptedExtractionError, InvalidInputError
from store.writer import StoreWriter, create_store


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
        Samples of this shard whose blocks were there already or came from elsewhere.
    seconds : float
        Time of this call, in all.
    seconds_saved : float
        Time that reading and forwarding the re-used samples took when they were extracted.
    shard : str
        Which part of the store this call wrote, such as ``"2/4"``; all of it is ``"1/1"``.
    left_to_others : int
        Samples of other shards that are still missing; the store is complete when there are none.
    forecast : Forecast
        What was expected before it started.
    notes : tuple of str
        Sentences on the images: what becomes of them, how they were split, and what was left out.
    time_shares : dict of str to float
        Shares of the time that reading, the backbone and writing took; 0 if nothing was done.
    bottleneck : str
        A sentence on the one that took longest; empty if nothing was done.
    constant_layers : tuple of str
        Layers that are the same for every image, looked for when the store becomes complete.
    """

    uri: str
    fingerprint: str
    extracted: int
    reused: int
    seconds: float
    seconds_saved: float
    shard: str
    left_to_others: int
    forecast: Forecast
    notes: tuple[str, ...] = ()
    time_shares: dict[str, float] = field(default_factory=dict)
    bottleneck: str = ""
    constant_layers: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that a reader of the results must know, in sentences."""
        if not self.constant_layers:
            return self.notes
        names = ", ".join(self.constant_layers)
        return (*self.notes, f"constant over all images, which tells nothing of them: {names}.")


def extract(
    parameters: ExtractionParameters,
    root: str,
    progress: Progress | None = None,
    *,
    shard: Shard = WHOLE,
    announce: Callable[[Forecast], None] | None = None,
    data: ImageData | None = None,
) -> Extraction:
    """Write the store of these parameters under `root`, or only what is missing of it.

    Parameters
    ----------
    parameters : ExtractionParameters
        What to extract.
    root : str
        Folder or URL under which stores lie.
    progress : callable, optional
        Called as ``progress(stage, done, total)``; samples during the extraction itself.
    shard : Shard
        Which part of the store to write; others may write theirs at the same time, from anywhere.
    announce : callable, optional
        Called with the forecast before anything is written.
    data : ImageData, optional
        Images in place of those that `parameters.data` names, as `pipeline.datasets.from_arrays` gives them; they are
        in this process alone, so one device is used.

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
    IncompleteStoreError
        If a block that should have been written is not there.
    """
    start = time.perf_counter()
    if data is not None and parameters.dask_address:
        raise InvalidInputError(
            f"data {data.name!r} is in this process alone and cannot be extracted by the cluster at "
            f"{parameters.dask_address!r}; leave dask_address out, or save the data as a folder or an .npz file."
        )
    devices = _devices(parameters)[: None if data is None else 1]
    plan = plan_extraction(parameters, root, progress, data)
    outlook = Outlook.of(plan, parameters, shard)
    if outlook.todo:
        check_place(plan.uri)
    settings = settle(plan, parameters, devices, _begun(plan, outlook))
    found = _forecast(plan, outlook, settings, devices)
    if announce:
        announce(found)
    writer = _writer(plan, outlook, parameters, settings, devices)
    store = writer.store
    if plan.parent is not None:
        _adopt_blocks(plan, writer, outlook.todo)
    missing = _missing(writer)
    todo = [block for block in outlook.mine if block in missing]
    there = [block for block in outlook.mine if block not in missing]
    saved = sum(sum(store.record(*b).seconds.get(what, 0.0) for what in ("read", "forward")) for b in there)
    done = extracted = 0
    account = Account()
    steps = _steps(plan, parameters, root, writer, todo, devices, progress)
    try:
        for block, fresh in steps:
            done += outlook.size([block])
            extracted += fresh
            if fresh:
                account.add(store.record(*block))
            if progress:
                progress(f"extracting images · {account.brief()}", done, outlook.size(todo))
    except KeyboardInterrupt:
        steps.close()
        left = len(_missing(writer))
        n = sum(split.n_blocks for split in store.splits.values())
        raise InterruptedExtractionError(
            f"extraction stopped; {n - left} of {n} blocks are committed in {plan.uri!r} and stay, the same extraction "
            "run again writes only the others."
        ) from None
    missing = _missing(writer)
    if lost := missing.intersection(outlook.mine):
        raise IncompleteStoreError(
            f"{len(lost)} blocks of {plan.uri!r} are missing although they were written; was the store changed "
            "meanwhile? Run the same extraction again, it writes only these."
        )
    return Extraction(
        uri=plan.uri,
        fingerprint=store.fingerprint,
        extracted=extracted,
        reused=outlook.size(outlook.mine) - extracted,
        seconds=time.perf_counter() - start,
        seconds_saved=saved,
        shard=str(shard),
        left_to_others=outlook.size(missing),
        forecast=found,
        notes=(*plan.notes, *kept(settings, parameters), *account.notes(settings)),
        time_shares=account.shares,
        bottleneck=account.bottleneck(),
        constant_layers=constant_layers(store) if extracted and not missing else (),
    )


def foresee(
    parameters: ExtractionParameters, root: str, progress: Progress | None = None, *, shard: Shard = WHOLE
) -> Forecast:
    """Return what `extract` would do with the same arguments; nothing is written.

    Raises
    ------
    InvalidInputError
        If anything cannot be used as given, or the disk cannot hold the store.
    """
    devices = _devices(parameters)
    plan = plan_extraction(parameters, root, progress)
    outlook = Outlook.of(plan, parameters, shard)
    return _forecast(plan, outlook, settle(plan, parameters, devices, _begun(plan, outlook)), devices)


def _devices(parameters: ExtractionParameters) -> list[torch.device]:
    """Return where batches are computed here: nowhere, if a cluster answers that does it."""
    if parameters.dask_address is None:
        return find_devices(parameters.device)
    with workers(parameters.dask_address):
        return []


def _begun(plan: Plan, outlook: Outlook) -> dict[str, Any] | None:
    """Return the provenance of the store to go on with, or to grow from, if there is one."""
    if outlook.begun:
        return open_store(plan.uri, allow_incomplete=True).provenance
    return None if plan.parent is None else plan.parent.store.provenance


def _forecast(plan: Plan, outlook: Outlook, settings: Settings, devices: Sequence[torch.device]) -> Forecast:
    found = forecast(plan, outlook)
    check_space(found)
    return estimate_seconds(found, plan, outlook, settings, devices)


def _missing(writer: StoreWriter) -> set[Block]:
    return {(split, block) for split, blocks in writer.missing().items() for block in blocks}


def _steps(
    plan: Plan,
    parameters: ExtractionParameters,
    root: str,
    writer: StoreWriter,
    todo: list[Block],
    devices: Sequence[torch.device],
    progress: Progress | None,
) -> Generator[tuple[Block, int], None, None]:
    """Yield each block once it is committed, and how many of its samples were forwarded, whoever does the work."""
    order = Order(parameters=parameters, root=root, uri=plan.uri, folder=str(Path.cwd()))
    if not todo:
        return
    if parameters.dask_address is not None:
        yield from write_on_cluster(order, writer.store, todo, progress)
    elif len(devices) > 1:
        # What trying a batch has left on the first device is needed there by another process now.
        plan.backbone.model.to("cpu")
        torch.cuda.empty_cache()
        yield from write_on_devices(order, todo, devices)
    else:
        yield from write_blocks(plan, writer, todo, devices[0], parameters.workers)


def _writer(
    plan: Plan,
    outlook: Outlook,
    parameters: ExtractionParameters,
    settings: Settings,
    devices: Sequence[torch.device],
) -> StoreWriter:
    if outlook.begun:
        there = open_store(plan.uri, allow_incomplete=True)
        there.objects.sweep()
        return StoreWriter(there)
    parent = None if plan.parent is None else plan.parent.store
    embedding = [layer.name for layer in plan.layers if layer.tap.name == PRE_LOGITS]
    provenance = {
        "backbone": plan.backbone.name,
        "weights": plan.backbone.weights,
        "data": plan.data.name,
        "data_note": plan.data.note or None,
        "skipped_images": plan.skipped,
        "embedding": embedding[-1] if embedding else None,
        **settings.model_dump(),
        "device": ", ".join(map(device_name, devices)) or "Dask cluster",
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


def _adopt_blocks(plan: Plan, writer: StoreWriter, blocks: Sequence[Block]) -> None:
    """Take over from the parent every one of these blocks that it has as it is."""
    assert plan.parent is not None
    for split, block in blocks:
        known = plan.parent.known(writer.store, plan.manifests[split], split, block)
        if plan.parent.same_block(writer.store, split, block, known):
            plan.parent.adopt(writer.store, split, block)
