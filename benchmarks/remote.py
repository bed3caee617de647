"""Columns of a store on S3 against its chunks read whole: loopback, every request 10 ms longer than it is."""

from __future__ import annotations

import os

import numpy as np

from benchmarks.ratios import alternate, at_most, report
from store import create_store, layout, open_store
from tests.loopback import BUCKET, ENVIRONMENT, moto

N, LAYERS, WIDTH = 1000, 25, 2000
DELAY = 0.01


def main() -> None:
    os.environ.update(ENVIRONMENT)
    with moto(DELAY) as endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        rows = reading(build(f"s3://{BUCKET}/bench.zarr"))
    report("remote", rows)


def build(uri: str) -> str:
    rng = np.random.default_rng(0)
    writer = create_store(uri, {f"layer{i:02d}": WIDTH for i in range(LAYERS)}, {"train": N})
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
    p, rng = store.n_features, np.random.default_rng(1)
    few = p // 100
    selections = {
        "scattered": np.sort(rng.choice(p, few, replace=False)),
        # Clusters of 20 features, of which 1 in 10 is not wanted.
        "clustered": np.concatenate([c * 20 + np.arange(18) for c in rng.choice(p // 20, few // 18, replace=False)]),
    }
    rows = []
    for name, wanted in selections.items():
        keys = touched(store, wanted)
        seconds = alternate(
            {
                "columns": lambda wanted=wanted: store.columns("train", wanted),
                "whole": lambda keys=keys: [layout.crc32c(raw) for raw in store.objects.read_all(keys)],
                "unchecked": lambda keys=keys: store.objects.read_all(keys),
            },
            runs=9,
        )
        store.reads.reset()
        store.columns("train", wanted)
        selected = len(wanted) * N * store.dtype.itemsize
        what = f"columns of 1 % {name} features"
        amount = store.reads.n_bytes / selected
        whole = f"{what} / the {len(keys)} touched chunks read whole"
        ratio = seconds["columns"] / seconds["whole"]
        rows += [
            # Both are checked against what was committed.
            at_most(whole, ratio, 1.0) if name == "scattered" else {"what": whole, "value": ratio},
            {"what": f"{whole}, unchecked", "value": seconds["columns"] / seconds["unchecked"]},
            at_most("bytes read for that / bytes selected", amount, 2)
            if name == "clustered"
            else {"what": "bytes read for that / bytes selected", "value": amount},
            {"what": "requests for that", "value": store.reads.n_requests},
            {"what": "seconds for that", "value": seconds["columns"]},
        ]
    return rows


def touched(store, wanted: np.ndarray) -> list[str]:
    """Return the keys of the chunks that hold chosen features."""
    found = set()
    for ref in store.chunks("train"):
        layer = store.layers[ref.layer]
        start, stop = layer.chunk_range(ref.chunk)
        if ((wanted >= layer.offset + start) & (wanted < layer.offset + stop)).any():
            found.add(ref.key)
    return sorted(found)


if __name__ == "__main__":
    main()
