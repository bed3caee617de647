"""docs/store-format.md is true: its example reads a store and refuses damage, its arithmetic finds a feature."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from store.activations import ActivationStore

DOCUMENT = Path(__file__).parents[2] / "docs/store-format.md"


def run_example(store: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the document's example as a program, away from this code."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "read_store.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-I", "read_store.py", str(store)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_example_reads_a_store_with_zarr_and_numpy_alone(store, tmp_path) -> None:
    done = run_example(store.uri, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [
        "test (37, 127) float16 (37,) True",
        "train (90, 127) float16 (90,) True",
    ]


@pytest.mark.parametrize(
    ("key", "refusal"),
    [
        ("zarr.json", "damaged metadata"),
        ("train/labels/c/0", "train/labels/c/0"),
        ("blocks/test/000001.json", "blocks/test/000001.json"),
        ("train/layers/blocks.0/c/0/1", "checksum"),
    ],
)
def test_the_example_refuses_damage(store, tmp_path, key, refusal) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store.uri, copy)
    raw = (copy / key).read_bytes()
    changed = raw.replace(b'"synthetic"', b'"other"') if key == "zarr.json" else raw.replace(raw[40:41], b"7", 1)
    if key.startswith("blocks"):
        changed = raw.replace(b'"stop":37', b'"stop":36')
    assert changed != raw
    (copy / key).write_bytes(changed)
    done = run_example(copy, tmp_path)
    assert done.returncode != 0
    assert refusal in done.stderr


def test_the_example_refuses_a_missing_block_and_another_format(store, tmp_path) -> None:
    (Path(store.uri) / "blocks/train/000002.json").unlink()
    assert "refused: block 2 of train is missing" in run_example(store.uri, tmp_path).stderr
    path = Path(store.uri) / "zarr.json"
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":2'))
    assert "refused: another format" in run_example(store.uri, tmp_path).stderr


def test_the_arithmetic_of_the_document_finds_each_feature_and_its_checksum(store: ActivationStore, values) -> None:
    layers = list(store.layers.values())
    for split in store.splits.values():
        for block in range(split.n_blocks):
            for f in range(store.n_features):
                layer = [entry for entry in layers if entry.offset <= f][-1]
                local = f - layer.offset
                key = f"{split.name}/layers/{layer.name}/c/{local // layer.chunk_features}/{block}"
                length = split.block_samples * 2
                start = (local % layer.chunk_features) * length
                raw = (Path(store.uri) / key).read_bytes()[start : start + length]
                n = min(split.block_samples, split.n_samples - block * split.block_samples)
                first = block * split.block_samples
                found = np.frombuffer(raw, "<f2")
                np.testing.assert_array_equal(found[:n], values[split.name][first : first + n, f])
                assert np.isnan(found[n:]).all()
                sums = (Path(store.uri) / f"{split.name}/row_checksums/c/0/{block}").read_bytes()
                assert google_crc32c.value(raw) == int.from_bytes(sums[4 * f : 4 * f + 4], "little")


def test_metadata_can_be_verified_from_its_bytes_alone(store) -> None:
    """What the document advises to readers whose JSON library writes numbers in another way."""
    import hashlib

    raw = (Path(store.uri) / "zarr.json").read_text(encoding="utf-8")
    found = re.search(r',"metadata_digest":"([0-9a-f]{20})"', raw)
    assert found is not None
    rest = raw.replace(found[0], "", 1)
    assert hashlib.sha256(rest.encode()).hexdigest()[:20] == found[1]


def test_every_object_of_a_store_is_described(store) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for path in Path(store.uri).rglob("*"):
        name = path.relative_to(store.uri).parts
        known = name[0] if name[0] not in store.splits else name[1] if len(name) > 1 else "<split>"
        assert known in text, path
    assert len(text.splitlines()) < 200
