"""Which settings an extraction computes with: those asked for, those of the store it resumes, or fitting ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.extraction_parameters import Autocast, ExtractionParameters
from pipeline.forwarding import Forward, is_out_of_memory
from pipeline.planning import Plan
from pipeline.settings import Settings

CPU_BATCH_SIZE = 16
"""Activations of more images leave the caches of most processors: *measured*, 0-25 % slower with 32, 5-30 % with 64."""
CLUSTER_BATCH_SIZE = 64
"""For devices that cannot be tried from here."""
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
WORTH_DOUBLING = 1.05
"""What a batch of twice the size must gain in images per second."""


def settle(
    plan: Plan, parameters: ExtractionParameters, devices: Sequence[torch.device], begun: Mapping[str, Any] | None
) -> Settings:
    """Return the settings of an extraction.

    Where nothing is asked for, a GPU computes in half precision if that is what is stored: operations then round as
    storing does, sums stay in float32, and an overflow is found and named. The CPU computes in float32.

    Parameters
    ----------
    plan : Plan
        The extraction.
    parameters : ExtractionParameters
        What is asked for.
    devices : sequence of device
        Where to compute; none if other machines do.
    begun : mapping, optional
        Provenance of the store to resume or to grow from, which settles everything.
    """
    if begun is not None:
        return Settings.of(begun)
    device = devices[0] if devices else None
    autocast: Autocast
    if parameters.autocast == "auto":
        half = device is not None and device.type == "cuda" and parameters.dtype == "float16"
        autocast = "fp16" if half else "none"
    else:
        autocast = parameters.autocast
    settings = Settings(
        batch_size=parameters.batch_size or 1,
        autocast=autocast,
        channels_last=parameters.channels_last,
        compile=parameters.compile,
    )
    if parameters.batch_size is not None:
        return settings
    return settings.model_copy(update={"batch_size": find_batch_size(plan, settings, device)})


def kept(settings: Settings, parameters: ExtractionParameters) -> list[str]:
    """Say what was asked for but is not done, because the store was begun otherwise."""
    asked = {name: getattr(parameters, name) for name in Settings.model_fields if name in parameters.model_fields_set}
    return [
        f"the store was begun with {name.replace('_', ' ')} {getattr(settings, name)} and keeps it, so that all its "
        "blocks are computed alike."
        for name, value in asked.items()
        if value not in (None, "auto", getattr(settings, name))
    ]


def find_batch_size(plan: Plan, settings: Settings, device: torch.device | None) -> int:
    """Return how many images to forward at a time.

    On a GPU sizes are tried, each twice the one before, until memory does not suffice or it no longer pays; elsewhere
    the number is fixed.

    Parameters
    ----------
    plan : Plan
        The extraction.
    settings : Settings
        How to compute, apart from the batch size.
    device : device, optional
        Where to compute; None if that is not known.
    """
    if device is None:
        return CLUSTER_BATCH_SIZE
    if device.type != "cuda":
        return CPU_BATCH_SIZE
    best, rate = BATCH_SIZES[0], 0.0
    for size in BATCH_SIZES:
        try:
            found = images_per_second(plan, settings.model_copy(update={"batch_size": size}), device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if found < WORTH_DOUBLING * rate:
            break
        best, rate = size, found
    return best


def images_per_second(plan: Plan, settings: Settings, device: torch.device, batches: int = 3) -> float:
    """Return the speed of the forward pass alone, all layers pooled and copied to the host, after a first pass."""
    images = torch.zeros((settings.batch_size, *plan.backbone.preprocessing.input_size))
    dtype = torch.float16 if plan.spec.dtype == "float16" else torch.float32
    out = torch.empty((plan.n_features, settings.batch_size), dtype=dtype)
    with Forward(plan.backbone.model, plan.layers, settings, device) as forward:
        forward(images, out)()
        clock = time.perf_counter()
        for _ in range(batches):
            forward(images, out)()
    return batches * settings.batch_size / (time.perf_counter() - clock)
