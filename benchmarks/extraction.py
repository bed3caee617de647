"""Extraction against the bare forward pass, and against the script people write instead.

Images come ready from memory where the pipeline is compared with the bare model, which is fed the same batches: what
is measured is pooling, half precision, transposition, checksums and writing, not decoding. Kept figures have the kind
of device in their file's name; without a GPU its rows are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models.feature_extraction import create_feature_extractor

from benchmarks.ratios import alternate, at_least, at_most, report
from pipeline import block_writing
from pipeline.backbones import load_backbone
from pipeline.block_writing import write_blocks
from pipeline.datasets import ImageData, ImageSplit
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.planning import Plan, plan_extraction
from pipeline.pooling import pool
from pipeline.settings import Settings
from pipeline.taps import plan_layers, resolve_taps
from pipeline.tuning import settle
from store import ActivationStore, create_store
from store.records import BlockRecord
from store.spec import PoolingSpec
from store.writer import StoreWriter

SMALL = ExtractionParameters(backbone="resnet18", weights="random:0", data="noise", image_size=64, device="cpu")
"""Of the rows about memory and resuming: what they show does not depend on the size of images."""
N_MEMORY, N_RESUME, RESUME_BLOCK = 1024, 1024, 128
N_SCRIPT, SCRIPT_SIZE = 2000, 96
"""At 224 pixels a script that keeps everything needs 20 GB for these images."""


@dataclass(frozen=True)
class Noise:
    """An image made when it is asked for, so that data of any size takes no memory."""

    number: int

    def digest(self) -> str:
        return f"{self.number:064x}"

    def read(self) -> Image.Image:
        pixels = np.random.default_rng(self.number).integers(0, 256, (64, 64, 3), np.uint8)
        return Image.fromarray(pixels)

    def check(self, known: Container[str]) -> str:
        return self.digest()


def noise(n: int) -> ImageData:
    sources = tuple(map(Noise, range(n)))
    split = ImageSplit(tuple(f"{i:06d}" for i in range(n)), np.arange(n) % 2, sources)
    return ImageData("noise", ("even", "odd"), {"train": split})


# ---------------------------------------------------------------- the bare forward pass


def throughput(backbone: str, target_size: int, device: torch.device, n: int, block: int, bound: float) -> list[dict]:
    """Compare extracting with the bare model, fed the same batches in the same format and precision."""
    parameters = SMALL.model_copy(
        update={
            "backbone": backbone,
            "target_sizes": (target_size,),
            "image_size": None,
            "device": str(device),
            "block_size": block,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_extraction(parameters, folder, data=noise(n))
        settings = settle(plan, parameters, [device], None)
        settings = settings.model_copy(update={"batch_size": min(settings.batch_size, block)})
        # Few distinct images, so that many fit into memory.
        ready = torch.randn(64, *plan.backbone.preprocessing.input_size).to(memory_format=settings.memory_format)
        plan = replace(plan, backbone=replace(plan.backbone, transform=lambda image: ready[image.number % len(ready)]))
        numbered = replace(plan.data.splits["train"], sources=tuple(map(_Numbered, range(n))))
        plan = replace(plan, data=replace(plan.data, splits={"train": numbered}))
        batches = [
            torch.stack([ready[i % len(ready)] for i in range(start, min(start + settings.batch_size, n))])
            for start in range(0, min(n, len(ready)), settings.batch_size)
        ]
        batches = [batch.contiguous(memory_format=settings.memory_format) for batch in batches]
        n_batches = -(-n // settings.batch_size)
        uri = Path(folder) / "store.zarr"
        between: list[float] = []

        def extracted() -> None:
            between.append(written(plan, settings, uri, device, block))

        def removed() -> None:
            # A virtual machine asks its host page by page for memory it has not used lately, which took the processor
            # 2 ms an image: a file of the same size leaves memory that is the machine's own.
            size = sum(path.stat().st_size for path in uri.rglob("*") if path.is_file()) if uri.exists() else 0
            shutil.rmtree(uri, ignore_errors=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                for _ in range(size >> 20):
                    file.write(bytes(1 << 20))

        def bare() -> None:
            model = plan.backbone.model.to(device).to(memory_format=settings.memory_format)
            half = settings.autocast == "fp16"
            with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=half):
                for number in range(n_batches):
                    model(batches[number % len(batches)].to(device, non_blocking=True))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        seconds = alternate(
            {"bare": bare, "remove": removed, "extract": extracted},
            runs=3,
        )
    speed = {name: n / seconds[name] for name in ("bare", "extract")}
    what = f"{backbone}, T={target_size}, {device.type}"
    note = f"{speed['extract']:.1f} / {speed['bare']:.1f} images/s, batches of {settings.batch_size}"
    steady = (n - block) / float(np.median(between[1:])) / speed["bare"]
    return [
        at_least(f"{what}: images/s of extract / of model(x)", speed["extract"] / speed["bare"], bound, note),
        {"what": f"{what}: the same between the first full block and the last", "value": steady},
    ]


@dataclass(frozen=True)
class _Numbered(Noise):
    """Stands for an image that is ready."""

    def read(self) -> Any:
        return self


def written(plan: Plan, settings: Settings, uri: Path, device: torch.device, block: int) -> float:
    """Extract, and return the seconds from the moment the first block is full to the one when the last is.

    In between as many blocks are written as are forwarded, as in the middle of a long extraction. Creating the store
    and waiting for its last block take the same time whatever the number of images.
    """
    created = create_store(
        uri,
        {layer.name: layer.n_features for layer in plan.layers},
        {name: len(m.ids) for name, m in plan.manifests.items()},
        manifests=plan.manifests,
        spec=plan.spec,
        provenance=settings.model_dump(),
        block_samples=block,
    )
    writer = _Timed(created.store)
    todo = [(split, number) for split, blocks in writer.missing().items() for number in blocks]
    for _ in write_blocks(plan, writer, todo, device):
        pass
    return writer.full[-1] - writer.full[0]


class _Timed(StoreWriter):
    """Notes when each block was full."""

    def __init__(self, store: ActivationStore) -> None:
        super().__init__(store)
        self.full: list[float] = []

    def write_block(self, *args: Any) -> BlockRecord:
        self.full.append(time.perf_counter())
        return super().write_block(*args)


# ---------------------------------------------------------------- the script people write


def plain(n: int, folder: Path, pooled: bool) -> None:
    """Keep every layer of every batch in lists and save them at the end; `pooled` averages as extraction does."""
    backbone = load_backbone(SMALL.backbone, SMALL.weights, input_size=SCRIPT_SIZE)
    layers = plan_layers(
        backbone.model,
        resolve_taps(backbone.model),
        PoolingSpec(target_sizes=(512,)),
        backbone.preprocessing.input_size,
    )
    nodes = {"pre_logits": "global_pool", "logits": "fc"}
    model = create_feature_extractor(backbone.model, {nodes.get(x.name, x.tap.module): x.name for x in layers})
    data = torch.utils.data.DataLoader(_Dataset(n, backbone.transform), batch_size=16, num_workers=2)
    kept: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    with torch.inference_mode():
        for batch in data:
            for layer, values in zip(layers, model(batch).values(), strict=True):
                found = pool(values, layer.layout, layer.target_size) if pooled else values
                kept[layer.name].append(found.numpy())
    for name in list(kept):
        np.save(folder / f"{name}.npy", np.concatenate(kept.pop(name)))


@dataclass
class _Dataset(torch.utils.data.Dataset):
    n: int
    transform: Callable[[Image.Image], torch.Tensor]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(Noise(number).read())


def against_scripts() -> list[dict]:
    """Run each candidate in processes of its own, by turns."""
    found: dict[str, list[tuple[float, float]]] = {"against": [], "plain": [], "pooled": []}
    for _ in range(2):
        for name, results in found.items():
            results.append(measured(name, N_SCRIPT))
    seconds = {name: float(np.median([s for s, _ in results])) for name, results in found.items()}
    peaks = {name: float(np.median([p for _, p in results])) for name, results in found.items()}
    note = f"{peaks['against']:.0f} / {peaks['plain']:.0f} MB"
    return [
        at_least("images/s / a script that keeps all in lists", seconds["plain"] / seconds["against"], 1.0),
        at_most(f"peak memory at n = {N_SCRIPT} / that script's", peaks["against"] / peaks["plain"], 0.25, note),
        {"what": "images/s / a script that pools first", "value": seconds["pooled"] / seconds["against"]},
        {
            "what": "peak memory / that script's, which is PyTorch itself for the most part",
            "value": peaks["against"] / peaks["pooled"],
        },
    ]


# ---------------------------------------------------------------- memory and resuming


def memory() -> list[dict]:
    (_, small), (_, large) = measured("extract", N_MEMORY), measured("extract", 10 * N_MEMORY)
    note = f"{large:.0f} / {small:.0f} MB"
    return [at_most("peak memory at 10 n / at n", large / small, 1.1, note)]


def resuming() -> list[dict]:
    """Kill an extraction when half the images have been forwarded, and count what the next one forwards again."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "forwarded"
        command = [sys.executable, "-m", "benchmarks.extraction", "logged", str(N_RESUME), folder]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not log.exists() or forwarded(log) < N_RESUME // 2:
            if child.poll() is not None:
                raise RuntimeError("the extraction ended before it could be killed")
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        repeated = forwarded(log) - N_RESUME
    return [at_most("images forwarded again after a kill at 50 % / a block", repeated / RESUME_BLOCK, 1)]


def forwarded(log: Path) -> int:
    return sum(map(int, log.read_text().split("\n")[:-1]))


# ---------------------------------------------------------------- processes of their own


def measured(name: str, n: int) -> tuple[float, float]:
    """Return seconds without imports, and megabytes of peak memory, of one candidate."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.extraction", name, str(n), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def child(name: str, n: int, folder: Path) -> None:
    start = time.perf_counter()
    if name == "extract":
        extract(SMALL, str(folder), data=noise(n))
    elif name == "against":
        extract(SMALL.model_copy(update={"image_size": SCRIPT_SIZE}), str(folder), data=noise(n))
    elif name == "logged":
        log = os.open(folder / "forwarded", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        class Logged(block_writing.Forward):
            def __call__(self, batch: torch.Tensor, out: torch.Tensor) -> Callable[[], None]:
                os.write(log, f"{len(batch)}\n".encode())
                return super().__call__(batch, out)

        block_writing.Forward = Logged
        extract(SMALL.model_copy(update={"block_size": RESUME_BLOCK}), str(folder), data=noise(n))
    else:
        plain(n, folder, pooled=name == "pooled")
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    print(seconds, int(peak[1]) / 1e3)


def main() -> None:
    if len(sys.argv) > 1:
        child(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        return
    rows = []
    for backbone in ("resnet18", "vit_tiny_patch16_224"):
        for target_size in (512, 8192):
            rows += throughput(backbone, target_size, torch.device("cpu"), n=768, block=128, bound=0.9)
    report("extraction-cpu", rows + against_scripts() + memory() + resuming())
    if not torch.cuda.is_available():
        print("no GPU is at hand: its rows were not measured.")
        return
    rows = []
    for backbone in ("resnet50", "vit_base_patch16_224"):
        for target_size, bound in ((512, 0.9), (8192, 0.75)):
            rows += throughput(backbone, target_size, torch.device("cuda"), n=4096, block=512, bound=bound)
    report("extraction-cuda", rows)


if __name__ == "__main__":
    main()
