"""Preprocessing given for an extraction is what images go through, what the store says, and part of its identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pipeline.datasets import ImageData, from_arrays
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.planning import Plan, plan_extraction
from store import open_store

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
BASE = ExtractionParameters(backbone="test_resnet", weights="random:0", data="noise", image_size=32)


@pytest.fixture
def data() -> ImageData:
    return from_arrays({"train": PIXELS, "test": PIXELS}, {"train": [0, 0, 1, 1], "test": [0, 0, 1, 1]}, name="noise")


def plan(data: ImageData, root: Path, **changes: object) -> Plan:
    return plan_extraction(BASE.model_copy(update=changes), str(root), data=data)


@pytest.mark.slow
def test_every_value_given_is_in_the_spec_and_makes_another_store(data: ImageData, tmp_path: Path) -> None:
    own = plan(data, tmp_path)
    uris = {own.uri}
    for field, value in {
        "interpolation": "nearest",
        "crop_mode": "border",
        "crop_pct": 0.5,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
    }.items():
        changed = plan(data, tmp_path, **{field: value})
        assert getattr(changed.spec.preprocessing, field) == value
        same = changed.spec.preprocessing.model_copy(update={field: getattr(own.spec.preprocessing, field)})
        assert same == own.spec.preprocessing
        uris.add(changed.uri)
    assert len(uris) == 6


def test_images_go_through_what_the_spec_says(data: ImageData, tmp_path: Path) -> None:
    found = plan(data, tmp_path, preprocessing="vtab")
    got = found.backbone.transform(found.data.splits["train"].image(2))
    resized = np.asarray(Image.fromarray(PIXELS[2]).resize((32, 32), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized.copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(got, expected.float(), rtol=0, atol=1e-5)
    assert found.notes[0] == (
        "preprocessing is a plain bilinear resize to 32 x 32, mean 0.5, std 0.5 (values from -1 to 1)."
    )


@pytest.mark.slow
def test_the_command_stores_and_says_what_was_resolved(tmp_path: Path) -> None:
    np.savez(tmp_path / "noise.npz", x_train=PIXELS, y_train=[0, 0, 1, 1], x_test=PIXELS, y_test=[0, 0, 1, 1])
    words = ["extract", "--backbone", "test_resnet", "--weights", "random:0", "--image-size", "32"]
    words += ["--data", str(tmp_path / "noise.npz"), "--root", str(tmp_path / "root")]
    one = CliRunner().invoke(app, [*words, "--preprocessing", "vtab"])
    assert one.exit_code == 0, one.stderr
    assert "plain bilinear resize to 32 x 32, mean 0.5, std 0.5 (values from -1 to 1)" in one.stderr
    spec = open_store(one.stdout.strip()).spec
    assert spec.model_dump()["preprocessing"] == {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "crop_mode": "squash",
        "crop_pct": 1.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    single = ["--interpolation", "bilinear", "--crop-mode", "squash", "--mean", "0.5,0.5,0.5", "--std", "0.5"]
    other = CliRunner().invoke(app, [*words, *single])
    assert (other.exit_code, other.stdout) == (0, one.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "0.5,x"], "--mean '0.5,x' is not a list of numbers such as 0.5,0.5,0.5."),
        (["--mean", "0.5,0.5"], "mean [0.5, 0.5] needs three values"),
        (["--std", "0"], "must be positive in every channel"),
        (["--std", "nan"], "must be finite numbers"),
        (["--crop-mode", "centre"], "crop mode 'centre' is unknown; did you mean 'center'?"),
        (["--crop-pct", "1.5"], "crop share 1.5 is not in (0, 1]"),
        (["--interpolation", "cubic"], "did you mean 'bicubic'"),
        (["--preprocessing", "vtb"], "preprocessing 'vtb' is unknown; did you mean 'vtab'"),
        (["--split", "train"], "--split 'train' is not of the form train=NAME."),
        (["--split", "train=a", "--split", "train=b"], "--split names a split twice"),
        (["--data-root", "here"], "data 'digits' takes no data root"),
    ],
)
def test_values_that_cannot_be_used_are_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    words = ["extract", "--backbone", "test_resnet", "--weights", "random:0", "--data", "digits"]
    done = CliRunner().invoke(app, [*words, "--root", str(tmp_path / "root"), *arguments])
    assert done.exit_code == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "root").exists()
