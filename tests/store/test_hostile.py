"""A store made by an enemy, with digests that hold, runs nothing, leaves its folder never, and fills no memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store import ActivationStore, open_store
from store.errors import DamagedStoreError, Head2ToeError
from store.results import read_result, write_result
from store.spec import canonical_json, digest, fingerprint


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Change a group's root document and sign it as if this project had written it."""
    path = folder / "zarr.json"
    document = json.loads(path.read_text())
    change(document)
    attributes = document["attributes"]
    if "spec" in attributes:
        attributes["fingerprint"] = fingerprint(attributes["spec"])
    attributes.pop("metadata_digest")
    attributes["metadata_digest"] = digest(document)
    path.write_text(canonical_json(document))
    return str(folder)


def rename_layer(document: dict[str, Any]) -> None:
    document["attributes"]["layer_order"][0]["name"] = "../../../etc/passwd"


def rename_split(document: dict[str, Any]) -> None:
    document["attributes"]["splits"][0]["name"] = ".."


def absurd_shape(document: dict[str, Any]) -> None:
    document["attributes"]["splits"][0]["n_samples"] = 10**15


def absurd_layer(document: dict[str, Any]) -> None:
    document["attributes"]["layer_order"][-1]["n_features"] = 10**15


def negative_block(document: dict[str, Any]) -> None:
    document["attributes"]["splits"][0]["block_samples"] = -5


def overlapping_layers(document: dict[str, Any]) -> None:
    document["attributes"]["layer_order"][1]["offset"] = 0


def unknown_codec(document: dict[str, Any]) -> None:
    metadata = document["consolidated_metadata"]["metadata"]["train/layers/stem"]
    metadata["codecs"].insert(0, {"name": "numcodecs.pickle", "configuration": {}})


def other_type(document: dict[str, Any]) -> None:
    document["consolidated_metadata"]["metadata"]["train/layers/stem"]["data_type"] = "float64"


@pytest.mark.parametrize(
    "change",
    [
        rename_layer,
        rename_split,
        absurd_shape,
        absurd_layer,
        negative_block,
        overlapping_layers,
        unknown_codec,
        other_type,
    ],
)
def test_metadata_that_does_not_fit_together_is_refused_though_its_digest_holds(store, change) -> None:
    with pytest.raises(DamagedStoreError):
        open_store(forge(Path(store.uri), change))


def resign(store: ActivationStore, key: str, content: bytes) -> str:
    """Replace a small object and the digest the root has of it."""
    (Path(store.uri) / key).write_bytes(content)

    def change(document: dict[str, Any]) -> None:
        document["attributes"]["documents"][key] = hashlib.sha256(content).hexdigest()[:20]

    return forge(Path(store.uri), change)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [10**14], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**14]}}},
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
        {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4 * 10**9}}},
    ],
)
def test_small_arrays_with_absurd_shapes_types_or_codecs_are_refused(store, changes) -> None:
    key = "train/labels/zarr.json"
    metadata = json.loads((Path(store.uri) / key).read_text()) | changes
    opened = open_store(resign(store, key, json.dumps(metadata).encode()))
    with pytest.raises(DamagedStoreError, match="train/labels"):
        opened.labels("train")


def test_documents_outside_the_store_are_not_read(store, tmp_path) -> None:
    (tmp_path / "secret").write_text("do not read")
    written = write_result(store, "heads", {"a": 1}, {"coef": (np.ones(3), ("feature",))}, {})
    folder = Path(store.uri) / "results/heads" / written.digest

    def change(document: dict[str, Any]) -> None:
        known = document["attributes"]["documents"]
        known["../../../../secret/zarr.json"] = known.pop("coef/zarr.json")

    forge(folder, change)
    with pytest.raises(Head2ToeError):
        read_result(open_store(store.uri), "heads", written.digest)


def test_ten_megabytes_of_attributes_neither_hang_nor_fill_the_memory(store) -> None:
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["provenance"]["note"] = "x" * 10_000_000
        document["attributes"]["provenance"]["many"] = [{"k": i} for i in range(100_000)]

    uri = forge(Path(store.uri), change)
    code = (
        "import re, sys; from store import open_store; open_store(sys.argv[1]).columns('train', [0]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 500e6


@pytest.mark.parametrize("text", ["[]", '{"attributes": 3}', "{" * 5000, '{"attributes": ' + "[" * 5000, "\x00"])
def test_documents_that_are_no_metadata_are_damage_not_a_crash(store, text) -> None:
    (Path(store.uri) / "zarr.json").write_text(text)
    with pytest.raises(Head2ToeError):
        open_store(store.uri)


def test_records_full_of_nonsense_are_damage_not_a_crash(store) -> None:
    record = Path(store.uri) / "blocks/train/000000.json"
    for text in ("null", '{"record": {}, "digest": ""}', "[" * 5000, '{"record": 1'):
        record.write_text(text)
        with pytest.raises(DamagedStoreError):
            open_store(store.uri).record("train", 0)
