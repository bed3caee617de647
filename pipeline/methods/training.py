"""All weights of a network trained on images, and its predictions: what fine-tuning is, without the protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

_drawing = RLock()


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, cosine decay to 0, no augmentation.

    Attributes
    ----------
    learning_rate : float
        At its highest.
    steps : int
        Number of batches.
    batch : int
        Images per batch, or all if there are fewer.
    warm_up : float
        Share of the steps in which the learning rate rises linearly.
    weight_decay : float
        Of matrices and kernels; biases and the scales of norms are not shrunk.
    bfloat16 : bool
        Whether products and convolutions are computed in bfloat16; else in float32.
    """

    learning_rate: float
    steps: int
    batch: int
    warm_up: float
    weight_decay: float
    bfloat16: bool

    def rows(self, n: int, seed: int) -> NDArray[np.int64]:
        """Return which of n samples each batch has, shape (steps, batch): one reshuffled epoch after another."""
        rng, batch = np.random.default_rng(seed), min(self.batch, n)
        epochs = [rng.permutation(n) for _ in range(-(-self.steps * batch // n))]
        return np.concatenate(epochs)[: self.steps * batch].reshape(self.steps, batch)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, as a share of the highest."""
        rising = int(self.warm_up * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))


def train_network(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    device: torch.device,
    seed: int,
) -> list[float]:
    """Train all weights of a model in place; norms go by the moments of each batch.

    Parameters
    ----------
    model : Module
        With a fresh head; it is moved to the device.
    batches : iterable of (Tensor, Tensor)
        Images, shape (batch, channels, height, width), and class indices, shape (batch,); one per step.
    recipe : Recipe
        How.
    device : device
        Where.
    seed : int
        Of what the model itself draws, such as dropout.

    Returns
    -------
    list of float
        Mean cross-entropy of each batch, in nats. If training diverges it ends, and the last value is not finite.
    """
    # PyTorch's annotations of `to` do not know this combination.
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lists no such form
    model.requires_grad_(True).train()
    shrunk = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": shrunk, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, recipe.learning_rate)
    schedule = LambdaLR(optimizer, recipe.rate)
    losses: list[float] = []
    with seeded(seed, device) if _draws(model) else nullcontext():
        for images, labels in batches:
            with _autocast(device, recipe.bfloat16):
                logits = model(images.to(device, non_blocking=True))
            loss = cross_entropy(logits.float(), labels.to(device))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return losses


def predict(
    model: nn.Module, batches: Iterable[Tensor], device: torch.device, *, bfloat16: bool
) -> NDArray[np.int64] | None:
    """Return the most probable class of each image, shape (n,), or None if the model gives numbers not finite."""
    model.eval()
    found = []
    for images in batches:
        with torch.inference_mode(), _autocast(device, bfloat16):
            logits = model(images.to(device, non_blocking=True)).float()
        if not logits.isfinite().all():
            return None
        found.append(logits.argmax(1).cpu().numpy())
    return np.concatenate(found)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators in this context, in which one thread at a time may be, and restore them after it."""
    with _drawing, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _draws(model: nn.Module) -> bool:
    """Return whether training draws random numbers: dropout by a module or a model, or dropped paths as in timm."""
    rates = (getattr(part, name, 0) for part in model.modules() for name in ("p", "drop_rate", "drop_prob"))
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def _autocast(device: torch.device, bfloat16: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
