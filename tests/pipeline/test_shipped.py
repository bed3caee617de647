"""The weights that ship: found by name, what was recorded when they were trained, and as good as was recorded."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline.weights
from pipeline.backbones import load_backbone, weights_digest
from pipeline.images import ArrayImage
from pipeline.offline.source import N_CLASSES, SEED, shape_classes
from pipeline.weights import PACKAGED, shipped_backbones, shipped_weights
from store.errors import InvalidInputError

SHIPPED = shipped_backbones()
LARGEST = 4 * 2**20


def record(name: str, folder: Path = PACKAGED) -> dict:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_the_backbone_of_the_demo_ships() -> None:
    assert "test_resnet" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_and_load_as_they_were_recorded(name: str) -> None:
    assert (PACKAGED / f"{name}.safetensors").stat().st_size <= LARGEST
    backbone, facts = load_backbone(name, "shipped"), record(name)
    assert backbone.spec.weights_digest == facts["weights_digest"]
    assert backbone.spec.arguments["num_classes"] == facts["num_classes"] == N_CLASSES
    used = backbone.preprocessing.model_dump(mode="json")
    assert {key: used[key] for key in facts["preprocessing"]} == facts["preprocessing"]
    side = facts["preprocessing"]["input_size"][1]
    assert backbone.model(torch.zeros(1, 3, side, side)).shape == (1, N_CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_recorded_source_accuracy_is_reached_on_other_images_of_the_source(name: str) -> None:
    backbone, stated = load_backbone(name, "shipped"), record(name)["source_accuracy"]
    labels = np.arange(2 * N_CLASSES) % N_CLASSES
    images = shape_classes(SEED).images(range(len(labels)), labels.tolist(), 7)
    with torch.inference_mode():
        inputs = torch.stack([backbone.transform(ArrayImage(image).read()) for image in images])
        reached = (backbone.model(inputs).argmax(1).numpy() == labels).mean()
    assert abs(reached - stated) < 4 * np.sqrt(stated * (1 - stated) / len(labels)) + 0.01
    assert stated > 0.5


def test_values_given_take_the_place_of_the_recorded_preprocessing() -> None:
    backbone = load_backbone("test_resnet", "shipped", input_size=32, mean=(0.4,), preset="vtab")
    assert backbone.preprocessing.input_size == (3, 32, 32)
    assert backbone.preprocessing.mean == (0.4, 0.4, 0.4)
    assert backbone.spec.weights_digest == record("test_resnet")["weights_digest"]


def test_a_backbone_without_shipped_weights_is_refused_with_those_that_have() -> None:
    with pytest.raises(InvalidInputError, match=r"no weights ship for backbone 'resnet50'; .*'test_resnet'"):
        load_backbone("resnet50", "shipped")


def test_shipped_weights_that_were_changed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(PACKAGED / f"test_resnet{suffix}", tmp_path)
    monkeypatch.setattr(pipeline.weights, "PACKAGED", tmp_path)
    assert shipped_weights("test_resnet").num_classes == N_CLASSES
    content = bytearray((tmp_path / "test_resnet.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "test_resnet.safetensors").write_bytes(content)
    with pytest.raises(InvalidInputError, match="are not the recorded ones; install the package again"):
        load_backbone("test_resnet", "shipped")


@pytest.mark.slow
def test_resumed_training_gives_the_weights_of_training_at_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import pretrain

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(pretrain, "N_HELD_OUT", 40)
    pool = tmp_path / "pool.npy"
    np.save(pool, pretrain.draw_train((0, 256)))
    digests = []
    try:
        for name, parts in (
            (
                "whole",
                [[]],
            ),
            ("parts", [["--stop-after", "1"], ["--resume"]]),
        ):
            for part in parts:
                arguments = ["--epochs", "2", "--work", str(tmp_path / name), "--out", str(tmp_path / name), *part]
                monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
                (tmp_path / name).mkdir(exist_ok=True)
                pretrain.train(pretrain.NETWORKS["test_resnet"], pool, pretrain.parse())
            monkeypatch.setattr(pipeline.weights, "PACKAGED", tmp_path / name)
            digests.append(weights_digest(load_backbone("test_resnet", "shipped").model))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    assert digests[0] == digests[1]
    assert record("test_resnet", tmp_path / "whole")["epochs"] == 2
