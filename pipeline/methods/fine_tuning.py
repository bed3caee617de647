"""Fine-tuning and Scratch: all weights of the backbone, pretrained or fresh, trained on the images of the samples."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.backbones import Backbone, load_backbone
from pipeline.compute import n_cores, torch_threads
from pipeline.datasets import ImageData
from pipeline.devices import find_device
from pipeline.memory import DEFAULT_MEMORY
from pipeline.methods.interface import Prediction, Samples, Settings
from pipeline.methods.sample_images import SampleImages
from pipeline.methods.training import Recipe, predict, seeded, train_network
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.spec import digest

PREDICTED = 128
"""Images predicted at a time."""


@dataclass(frozen=True)
class FineTuning:
    """All weights of a pretrained backbone trained with a fresh head, without augmentation.

    Trainings of one batch of settings run side by side, one thread each, so that their results do not depend on the
    number of cores; on a GPU one after the other.

    Attributes
    ----------
    store : ActivationStore
        Says which samples there are; its activations are not used.
    data : ImageData
        The images of the samples.
    backbone : Backbone
        What is trained, and how images are preprocessed.
    learning_rates : sequence of float
        To choose from.
    steps : sequence of int
        To choose from.
    batch : int
        Images per step.
    warm_up, weight_decay, bfloat16
        As `Recipe` has them.
    name : str
        What tables call it.
    device : str
        ``auto`` is a GPU if there is one. The bits of a result depend on it.
    memory : int
        Bytes that decoded images may take; if they need more, they are read again in every epoch.

    Raises
    ------
    InvalidInputError
        If the images are not those of the store, or a value is invalid.
    """

    store: ActivationStore
    data: ImageData
    backbone: Backbone
    learning_rates: Sequence[float] = (0.003, 0.03, 0.3)
    steps: Sequence[int] = (300,)
    batch: int = 64
    warm_up: float = 0.1
    weight_decay: float = 1e-4
    bfloat16: bool = True
    name: str = "Fine-tuning"
    device: str = "auto"
    memory: int = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        for rate in self.learning_rates:
            if not 0 < rate < float("inf"):
                raise InvalidInputError(f"learning rate {rate!r} is not allowed; it must be a finite number above 0.")
        for what, number, least in (*(("steps", s, 1) for s in self.steps), ("batch", self.batch, 2)):
            if number < least:
                raise InvalidInputError(f"{what} {number!r} is not allowed; it must be at least {least}.")
        _ = self.images  # whatever is wrong with them is told before the work

    @cached_property
    def images(self) -> SampleImages:
        """The images, as the backbone wants them."""
        return SampleImages(self.store, self.data, self.backbone, self.memory)

    @property
    def start(self) -> str:
        """Identity of the weights that training starts from."""
        return self.backbone.spec.weights_digest

    @property
    def identity(self) -> dict[str, Any]:
        """Images, preprocessing, architecture and weights; settings say the rest."""
        return {
            "data": digest(self.store.spec.data),
            "preprocessing": self.backbone.preprocessing.model_dump(mode="json"),
            "architecture": self.backbone.spec.architecture,
            "arguments": self.backbone.spec.arguments,
            "weights": self.start,
        }

    @property
    def grid(self) -> list[list[Settings]]:
        """One batch: trainings run side by side."""
        common = {
            "batch": self.batch,
            "warm_up": self.warm_up,
            "weight_decay": self.weight_decay,
            "bfloat16": self.bfloat16,
        }
        return [[{"learning_rate": r, "steps": s, **common} for s in self.steps for r in self.learning_rates]]

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        """Train a network for each setting, as `Method.fit` says."""
        self.images.hold(train.split)
        device, stopped = find_device(self.device), Event()
        threads = n_cores() if device.type == "cpu" else 1
        with (
            torch_threads(None),
            torch.backends.cudnn.flags(deterministic=True),
            ThreadPoolExecutor(threads, "training", torch.set_num_threads, (1,)) as pool,
        ):
            trained = [pool.submit(self._train, Recipe(**s), train, held, device, seed, stopped) for s in settings]
            try:
                for future in trained:
                    yield future.result()
            finally:
                stopped.set()

    def _train(
        self, recipe: Recipe, train: Samples, held: Samples, device: torch.device, seed: int, stopped: Event
    ) -> Prediction:
        start = time.perf_counter()
        known = self.store.labels(train.split)[train.rows]
        with seeded(seed, torch.device("cpu")):
            model = self._model(seed)
        parts = recipe.rows(len(known), seed)
        images = self.images.batches(train.split, [train.rows[part] for part in parts])
        batches = takewhile(
            lambda _: not stopped.is_set(), zip(images, map(torch.from_numpy, known[parts]), strict=True)
        )
        losses = train_network(model, batches, recipe, device, seed)
        if stopped.is_set():
            return Prediction(np.empty(0, np.int64), {})
        epoch = -(-len(known) // parts.shape[1])
        mean = float(np.mean(losses[-epoch:]))
        loss, found = mean if np.isfinite(mean) else None, None
        if loss is not None:
            rows = np.split(held.rows, range(PREDICTED, len(held.rows), PREDICTED))
            found = predict(model, self.images.batches(held.split, rows), device, bfloat16=recipe.bfloat16)
        if found is None:
            found, loss = np.full(len(held.rows), np.bincount(known).argmax()), None
        facts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": len(losses),
            "images": len(losses) * parts.shape[1],
            "training_loss": loss,
            # What says nothing of any image has a loss of log K.
            "diverged": loss is None or loss > 2 * math.log(len(self.store.class_names)),
        }
        return Prediction(found, {**facts, "seconds": round(time.perf_counter() - start, 3)})

    def _model(self, seed: int) -> nn.Module:
        """Return a model to train, with a fresh head drawn from PyTorch's generator."""
        return _with_fresh_head(copy.deepcopy(self.backbone.model), len(self.store.class_names))


@dataclass(frozen=True)
class Scratch(FineTuning):
    """The same architecture trained from random weights, those of the protocol's seed."""

    learning_rates: Sequence[float] = (0.03, 0.3)
    steps: Sequence[int] = (240,)
    name: str = "Scratch"

    @property
    def start(self) -> str:
        """Identity of the weights that training starts from: none but the seed's."""
        return "random"

    def _model(self, seed: int) -> nn.Module:
        size = self.backbone.preprocessing.input_size
        fresh = load_backbone(self.backbone.name, f"random:{seed}", input_size=size)
        return _with_fresh_head(fresh.model, len(self.store.class_names))


def _with_fresh_head(model: nn.Module, n_classes: int) -> nn.Module:
    reset: Any = getattr(model, "reset_classifier", None)
    if reset is None:
        raise InvalidInputError(f"backbone {type(model).__name__!r} has no classifier to replace; choose another.")
    reset(n_classes)
    return model
