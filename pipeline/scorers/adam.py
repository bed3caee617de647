"""The reference recipe: a linear head by Adam, group-penalised or not, stopped after a fixed number of steps."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute import Progress, torch_threads
from pipeline.devices import find_device
from pipeline.scorers.columns import Matrix

BATCH = 128
SHARD = 8192
"""Features of one thread at a time on a CPU; fixed, so that sums have one order whatever the number of threads."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7


class Fitted(NamedTuple):
    """Where Adam stopped.

    Attributes
    ----------
    coef : ndarray of float32, shape (p, K)
        W.
    intercept : ndarray of float32, shape (K,)
        b.
    loss : float
        Mean cross-entropy over all samples, in nats.
    objective : float
        ``loss + λ Σ_j ‖W_j‖₂``, to compare with a certificate's.
    """

    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]
    loss: float
    objective: float


class _Shard:
    """Some features' rows of W with Adam's moments, on the device."""

    def __init__(self, x: torch.Tensor, coef: NDArray[np.float64], device: torch.device) -> None:
        self.x = x
        self.coef = torch.tensor(coef, dtype=torch.float32, device=device)
        self.moments = torch.zeros_like(self.coef), torch.zeros_like(self.coef)
        self.batch = torch.empty(0, device=device)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.batch = self.x.index_select(0, rows).to(self.coef.device)
        return self.batch @ self.coef

    def backward(self, error: torch.Tensor, penalty: float, step: int, rate: float) -> None:
        gradient = self.batch.T @ error
        if penalty:
            norms = torch.linalg.vector_norm(self.coef, dim=1, keepdim=True)
            # At a row of zeros the penalty's subgradient of least norm is zero.
            gradient += penalty * self.coef / norms.clamp_min(torch.finfo(torch.float32).tiny)
        adam_step(self.coef, self.moments, gradient, step, rate)


def adam_step(
    values: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor], gradient: torch.Tensor, step: int, rate: float
) -> None:
    """Take one step in place as the reference's framework does: ε is added to the uncorrected √v (Kingma and Ba, 2.1).

    PyTorch's own optimiser adds it to the corrected one, which is another method while gradients are small.
    """
    first, second = moments
    first.lerp_(gradient, 1 - BETA1)
    second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    corrected = rate * math.sqrt(1 - BETA2**step) / (1 - BETA1**step)
    values.addcdiv_(first, second.sqrt().add_(EPSILON), value=-corrected)


def fit_adam(
    x: Matrix,
    labels: NDArray[np.int64],
    *,
    penalty: float,
    learning_rate: float,
    steps: int,
    seed: int,
    n_classes: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Fitted:
    """Descend on softmax cross-entropy plus λ Σ_j ‖W_j‖₂ as the reference does.

    Adam with ε = 1e-7, cosine decay to 0, batches of 128 from reshuffled samples, W from Glorot's uniform distribution,
    b from 0 and not penalised; no proximal step, so no row becomes exactly 0.

    Parameters
    ----------
    x : ndarray of float32, shape (n, p)
        Normalised features, in C order, in memory or in a file: only the rows of a batch are touched at a time.
    labels : ndarray of int64, shape (n,)
        Class indices from 0 to K − 1.
    penalty : float
        λ; 0 when a head is refitted.
    learning_rate : float
        At the first step.
    steps : int
        Number of batches.
    seed : int
        Of W and of the batches.
    n_classes : int, optional
        Number of classes K; those that occur if not given.
    device : str
        ``auto`` is a GPU if there is one. The bits of the result depend on it, but not on the number of threads.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` after each step.

    Returns
    -------
    Fitted
        The head, its loss and objective.
    """
    n, p = x.shape
    n_classes = n_classes or int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    limit = math.sqrt(6 / (p + n_classes))
    place = find_device(device)
    on_gpu = place.type != "cpu"
    values, targets = torch.from_numpy(x), torch.eye(n_classes)[torch.from_numpy(labels)].to(place)
    size = p if on_gpu else SHARD
    shards = [
        _Shard(values[:, f : f + size], rng.uniform(-limit, limit, (min(size, p - f), n_classes)), place)
        for f in range(0, p, size)
    ]
    intercept = torch.zeros(n_classes, device=place)
    moments = torch.zeros_like(intercept), torch.zeros_like(intercept)
    batch = min(BATCH, n)
    epochs = [rng.permutation(n) for _ in range(-(-steps * batch // n))]
    batches = torch.from_numpy(np.concatenate(epochs))[: steps * batch].view(steps, batch)
    # Threads are over shards; within one, a second level of threads would decide the order of sums.
    threads = 1 if on_gpu else min(torch.get_num_threads(), len(shards))
    with torch_threads(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def logits(rows: torch.Tensor) -> torch.Tensor:
            return sum(pool.map(lambda shard: shard.forward(rows), shards), intercept)

        for done, rows in enumerate(batches):
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            error = (torch.softmax(logits(rows), dim=1) - targets[rows.to(place)]) / batch
            step = partial(_Shard.backward, error=error, penalty=penalty, step=done + 1, rate=rate)
            list(pool.map(step, shards))
            adam_step(intercept, moments, error.sum(0), done + 1, rate)
            if progress is not None:
                progress("adam steps", done + 1, steps)
        loss = 0.0
        for part in torch.arange(n).split(batch):
            log_p = torch.log_softmax(logits(part).double(), dim=1)
            loss -= float((log_p * targets[part.to(place)]).sum()) / n
    coef = np.concatenate([shard.coef.cpu().numpy() for shard in shards])
    lengths = float(np.linalg.norm(coef.astype(np.float64), axis=1).sum())
    return Fitted(coef, intercept.cpu().numpy(), loss, loss + penalty * lengths)
