"""The fingerprint depends on what decides the bytes, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from store.errors import InvalidInputError
from store.spec import (
    BackboneSpec,
    DataSpec,
    ExtractionSpec,
    Manifest,
    PoolingSpec,
    PreprocessingSpec,
    TapSpec,
    canonical_json,
    fingerprint,
)

MANIFEST = Manifest(["a", "b"], np.array([0, 1]), ["x", "y"])


def spec(manifest: Manifest = MANIFEST, **changes: object) -> ExtractionSpec:
    parts = {
        "backbone": BackboneSpec(architecture="resnet18", weights_digest="w"),
        "preprocessing": PreprocessingSpec(
            input_size=(3, 8, 8), interpolation="bicubic", crop_mode="center", crop_pct=0.9, mean=(0.5,), std=(0.5,)
        ),
        "taps": (TapSpec(name="a", module="a"), TapSpec(name="b", module="b")),
        "pooling": PoolingSpec(target_sizes=(512,)),
        "dtype": "float16",
        "data": DataSpec(splits={"train": manifest.spec()}, class_names=("k", "l")),
    }
    return ExtractionSpec(**(parts | changes))


BASE = spec()
CHANGED = {
    "architecture": spec(backbone=BASE.backbone.model_copy(update={"architecture": "resnet34"})),
    "model arguments": spec(backbone=BASE.backbone.model_copy(update={"arguments": {"img_size": 96}})),
    "weights": spec(backbone=BASE.backbone.model_copy(update={"weights_digest": "v"})),
    **{
        f"preprocessing {field}": spec(preprocessing=BASE.preprocessing.model_copy(update={field: value}))
        for field, value in {
            "input_size": (3, 9, 8),
            "interpolation": "bilinear",
            "crop_mode": "squash",
            "crop_pct": 1.0,
            "mean": (0.4,),
            "std": (0.4,),
        }.items()
    },
    "order of taps": spec(taps=BASE.taps[::-1]),
    "fewer taps": spec(taps=BASE.taps[:1]),
    "the raw input besides": spec(taps=(TapSpec(name="input", module="", point="input"), *BASE.taps)),
    "tap point": spec(taps=(BASE.taps[0].model_copy(update={"point": "input"}), BASE.taps[1])),
    "target size": spec(pooling=PoolingSpec(target_sizes=(512, 8192))),
    "cls token": spec(pooling=PoolingSpec(target_sizes=(512,), cls_token="only")),
    "dtype": spec(dtype="float32"),
    "ids": spec(Manifest(["a", "c"], MANIFEST.labels, MANIFEST.digests)),
    "order of samples": spec(Manifest(["b", "a"], MANIFEST.labels[::-1], ["y", "x"])),
    "labels": spec(Manifest(MANIFEST.ids, np.array([1, 1]), MANIFEST.digests)),
    "contents": spec(Manifest(MANIFEST.ids, MANIFEST.labels, ["x", "z"])),
    "class names": spec(data=BASE.data.model_copy(update={"class_names": ("k", "m")})),
    "name of split": spec(data=DataSpec(splits={"test": MANIFEST.spec()}, class_names=("k", "l"))),
    "format version": spec(format_version=2),
}


@pytest.mark.parametrize("part", CHANGED)
def test_each_part_of_the_identity_alone_changes_the_fingerprint(part: str) -> None:
    assert fingerprint(CHANGED[part]) != fingerprint(BASE)


def test_all_changes_have_different_fingerprints() -> None:
    assert len({fingerprint(s) for s in CHANGED.values()}) == len(CHANGED)


def test_equal_specifications_share_a_fingerprint_through_json() -> None:
    assert fingerprint(ExtractionSpec.model_validate_json(canonical_json(BASE))) == fingerprint(BASE)


def test_a_manifest_with_an_id_twice_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="'a' occurs twice"):
        Manifest(["a", "b", "a"], np.zeros(3, np.int64), ["x", "y", "z"])
