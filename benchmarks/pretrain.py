"""Train the backbones that ship: generate the source task, train from nothing, record what was reached.

    python -m benchmarks.pretrain                 both networks, one process and one thread each, at most an hour
    python -m benchmarks.pretrain --resume        go on from the last finished epoch, to the same weights

The same seed gives the same weights with the same versions of torch and timm on the same kind of processor. Nothing
but held-out images of the source task is ever looked at.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.backbones import weights_digest
from pipeline.offline.drawing import SIDE
from pipeline.offline.source import N_CLASSES, SEED, shape_classes

TRAIN, HELD_OUT = 0, 1
"""Streams of the generator."""
N_HELD_OUT = 4000
BATCH = 128
CHUNK = 500
SMOOTHING = 0.1
WARM_UP = 0.15
PREPROCESSING = {
    "input_size": [3, SIDE, SIDE],
    "interpolation": "bilinear",
    "crop_mode": "squash",
    "crop_pct": 1.0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
PACKAGED = Path(__file__).parent.parent / "pipeline" / "packaged"


@dataclass(frozen=True)
class Network:
    """A timm architecture and how it is trained."""

    name: str
    epochs: int
    learning_rate: float
    weight_decay: float
    bfloat16: bool


NETWORKS = {
    n.name: n
    for n in (
        Network("test_resnet", 16, 0.2, 1e-4, bfloat16=True),
        Network("test_byobnet", 16, 0.2, 1e-4, bfloat16=False),
    )
}


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    pool = generate(options.work, options.images)
    if len(options.networks) == 1:
        train(NETWORKS[options.networks[0]], pool, options)
        return
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=train, args=(NETWORKS[n], pool, options), name=n) for n in options.networks]
    for process in running:
        process.start()
    for process in running:
        process.join()
    failed = [process.name for process in running if process.exitcode]
    if failed:
        sys.exit(f"training failed: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, help="in place of the network's own number")
    parser.add_argument("--images", type=int, default=80_000, help="training images, generated once")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--out", type=Path, default=PACKAGED, help="where weights and their records go")
    parser.add_argument("--work", type=Path, default=Path("pretrain-work"), help="generated images and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --work")
    parser.add_argument("--learning-rate", type=float, help="for trials: in place of the network's own")
    parser.add_argument("--stop-after", type=int, help="for trials: stop after so many epochs")
    return parser.parse_args()


def generate(folder: Path, count: int) -> Path:
    """Write the training images, held-out images excluded, unless they are there."""
    path = folder / f"source-{SEED}-{count}.npy"
    if path.exists():
        return path
    started, parts = time.perf_counter(), range(0, count, CHUNK)
    unfinished = path.with_suffix(".part")
    pool = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, SIDE, SIDE, 3))
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as workers:
        drawn = workers.imap(draw_train, ((start, min(start + CHUNK, count)) for start in parts))
        for start, images in zip(parts, drawn, strict=True):
            pool[start : start + len(images)] = images
    pool.flush()
    del pool
    unfinished.rename(path)
    print(f"{count:,} images in {time.perf_counter() - started:.0f} s", flush=True)
    return path


source_classes = functools.cache(lambda: shape_classes(SEED))


def draw_train(bounds: tuple[int, int]) -> NDArray[np.uint8]:
    return source_classes().images(range(*bounds), [i % N_CLASSES for i in range(*bounds)], TRAIN)


def held_out() -> tuple[Tensor, Tensor]:
    labels = np.arange(N_HELD_OUT) % N_CLASSES
    parts = np.array_split(np.arange(N_HELD_OUT), max(1, N_HELD_OUT // CHUNK))
    images = [source_classes().images(part.tolist(), labels[part].tolist(), HELD_OUT) for part in parts]
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(labels)


def to_input(images: Tensor) -> Tensor:
    """Return normalized (image, channel, height, width), channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def augmented(images: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Return a batch turned by quarters, mirrored, and its channels exchanged: no class depends on these."""
    turned = np.rot90(images, rng.integers(4), axes=(1, 2))
    mirrored = turned[:, :, ::-1] if rng.integers(2) else turned
    return torch.from_numpy(np.take(mirrored, rng.permutation(3), axis=3))


def batches(pool: NDArray[np.uint8], seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(pool))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        rows = np.sort(order[start : start + BATCH])
        yield augmented(pool[rows], rng), torch.from_numpy(rows % N_CLASSES)


def train(network: Network, path: Path, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # two threads wait for each other on busy cores, two networks do not
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    pool = np.load(path, mmap_mode="r")
    model = timm.create_model(network.name, num_classes=N_CLASSES).to(memory_format=torch.channels_last)
    rate = options.learning_rate or network.learning_rate
    optimizer = make_optimizer(network, model, rate)
    steps, epochs = len(pool) // BATCH, options.epochs or network.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps * epochs, pct_start=WARM_UP, cycle_momentum=False
    )
    checkpoint = options.work / f"{network.name}.checkpoint.pt"
    curve: list[dict[str, float]] = []
    if options.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for part, key in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[key])
        curve = state["curve"]
    test = held_out()
    for epoch in range(len(curve), options.stop_after or epochs):
        started, busy, losses = time.perf_counter(), time.process_time(), []
        model.train()
        for images, labels in batches(pool, options.seed, epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=network.bfloat16):
                scores = model(to_input(images))
            loss = cross_entropy(scores.float(), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 100 == 0:
                print(f"{network.name} {epoch + 1} {len(losses)}/{steps} loss {np.mean(losses[-100:]):.3f}", flush=True)
        curve.append(
            {
                "epoch": epoch + 1,
                "loss": round(float(np.mean(losses)), 4),
                "held_out_accuracy": round(accuracy(model, *test), 4),
                "seconds": round(time.perf_counter() - started, 1),
                "cpu_seconds": round(time.process_time() - busy, 1),
            }
        )
        print(network.name, json.dumps(curve[-1]), flush=True)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        saved = {key: part.state_dict() for key, part in parts.items()} | {"curve": curve}
        torch.save(saved, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)
    if len(curve) == epochs:
        write(network, model, curve, len(pool), options)


def make_optimizer(network: Network, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    vectors = [p for p in model.parameters() if p.ndim < 2]  # biases and the scales of norms are not shrunk
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, weight_decay=network.weight_decay)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = [
        (model(to_input(images[s : s + CHUNK])).argmax(1) == labels[s : s + CHUNK])
        for s in range(0, len(images), CHUNK)
    ]
    return torch.cat(hits).double().mean().item()


def write(network: Network, model: nn.Module, curve: list, n_images: int, options: argparse.Namespace) -> None:
    """Write float32 weights and the record that loading them needs."""
    model.eval()
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    path = options.out / f"{network.name}.safetensors"
    save_file(weights, path)
    path.chmod(0o644)
    packages = ("torch", "timm", "numpy", "pillow", "scipy", "safetensors")
    record = {
        "backbone": network.name,
        "num_classes": N_CLASSES,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights_digest": weights_digest(model),
        "preprocessing": PREPROCESSING,
        "source_accuracy": curve[-1]["held_out_accuracy"],
        "held_out_images": N_HELD_OUT,
        "source_seed": SEED,
        "training_images": n_images,
        "seed": options.seed,
        "epochs": len(curve),
        "batch": BATCH,
        "optimizer": "sgd",
        "learning_rate": options.learning_rate or network.learning_rate,
        "weight_decay": network.weight_decay,
        "label_smoothing": SMOOTHING,
        "threads": 1,
        "seconds": round(sum(point["seconds"] for point in curve)),
        "cpu_seconds": round(sum(point["cpu_seconds"] for point in curve)),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "command": "python -m benchmarks.pretrain"
        + f" --networks {network.name} --epochs {len(curve)} --images {n_images} --seed {options.seed}",
        "curve": curve,
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
