"""What the store costs against the files it is made of: 1,000 samples, 200,000 float16 features, warm cache."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import zarr

from benchmarks.ratios import alternate, at_most, report
from pipeline.compute import map_tasks
from pipeline.statistics import read_wide
from pipeline.verification import verify_store
from store import create_store, open_store
from store.records import BlockRecord, encode_record

N, LAYERS, WIDTH = 1000, 100, 2000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = build(Path(folder) / "bench.zarr")
        rows = reading(uri) + opening(Path(folder)) + memory(Path(folder))
    report("store", rows)


def build(path: Path, n: int = N, n_layers: int = LAYERS) -> str:
    rng = np.random.default_rng(0)
    writer = create_store(path, {f"layer{i:03d}": WIDTH for i in range(n_layers)}, {"train": n})
    for block in writer.missing()["train"]:
        a, b = writer.store.splits["train"].block_range(block)
        writer.write_block(
            "train",
            block,
            {name: rng.random((WIDTH, b - a), dtype=np.float32).astype(np.float16) for name in writer.store.layers},
        )
    return writer.uri


def reading(uri: str) -> list[dict]:
    store = open_store(uri)
    files = [Path(uri) / ref.key for ref in store.chunks("train")]
    chunks = list(store.chunks("train"))
    group = zarr.open_group(uri, mode="r")
    rng = np.random.default_rng(1)
    wanted = rng.choice(store.n_features, store.n_features // 100, replace=False)

    def read_all() -> None:
        for ref in chunks:
            store.read_chunk(ref)

    def scan() -> None:
        # A full scan is what every pass over the store does: read, verify and widen all chunks by Dask's threads.
        map_tasks(lambda ref: read_wide(store, ref).shape, chunks, stage="scan")

    seconds = alternate(
        {
            "files": lambda: [np.fromfile(f, np.uint8).shape for f in files],
            "read": read_all,
            "scan": scan,
            "zarr": lambda: [group[f"train/layers/{name}"][:].shape for name in store.layers],
            "columns": lambda: store.columns("train", wanted),
            "verify": lambda: verify_store(store),
        }
    )
    store.reads.reset()
    store.columns("train", wanted)
    selected = len(wanted) * N * store.dtype.itemsize
    return [
        at_most("bytes read for 1 % scattered features / bytes selected", store.reads.n_bytes / selected, 1.1),
        at_most("columns of 1 % scattered features / full scan", seconds["columns"] / seconds["scan"], 0.08),
        at_most("full scan / numpy.fromfile", seconds["scan"] / seconds["files"], 4),
        at_most("verify / full scan", seconds["verify"] / seconds["scan"], 1.5),
        # What a scan adds to reading and verifying: widening, and Dask's overhead less what its threads win.
        {"what": "chunks read one by one, not widened / numpy.fromfile", "value": seconds["read"] / seconds["files"]},
        {"what": "full read by zarr alone / numpy.fromfile", "value": seconds["zarr"] / seconds["files"]},
    ]


def opening(folder: Path) -> list[dict]:
    """Open a store of 200 layers and 1,000 blocks whose commit records are there, though not their chunks."""
    layers = {f"layer{i:03d}": 1000 for i in range(200)}
    writer = create_store(folder / "many.zarr", layers, {"train": 1_000_000}, block_samples=1000)
    split = writer.store.splits["train"]
    checksums = {layer.name: (0,) * layer.n_chunks for layer in writer.store.layers.values()}
    for block in range(split.n_blocks):
        start, stop = split.block_range(block)
        record = BlockRecord(
            split="train", block=block, start=start, stop=stop, checksums=checksums, norms_checksum=0, rows_checksum=0
        )
        writer.store.objects.create(f"blocks/train/{block:06d}.json", encode_record(record))
    tracemalloc.start()
    start_time = time.perf_counter()
    open_store(writer.uri)
    elapsed = time.perf_counter() - start_time
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [
        at_most("opening 200 layers x 1,000 blocks, seconds", elapsed, 1),
        at_most("opening 200 layers x 1,000 blocks, MB of memory", peak / 1e6, 200),
    ]


def memory(folder: Path) -> list[dict]:
    """Compare the peak memory of a statistics pass over n and over 10 n samples, each in a process of its own."""
    code = """
import re, sys
from pipeline.statistics import compute_statistics
from store import open_store
compute_statistics(open_store(sys.argv[1]))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    peaks = []
    for n in (1000, 10_000):
        uri = build(folder / f"n{n}.zarr", n, 20)
        done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    return [at_most("peak memory of a pass over 10 n samples / over n", peaks[1] / peaks[0], 1.1)]


if __name__ == "__main__":
    main()
