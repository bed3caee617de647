"""`head2toe evaluate` from the outside: plan, table, files, and VTAB-1k folders as the community ships them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pipeline.evaluation import METHODS, EvaluationConfig
from pipeline.taps import plan_layers, resolve_taps

RUNNER = CliRunner()
CONFIGS = Path(__file__).parents[2] / "configs"
FEW = "{max_iterations: 20, validation_fraction: 0}"
TINY = {
    "extraction.backbone": "test_resnet",
    "extraction.weights": "random:0",
    "extraction.image_size": "32",
    "extraction.device": "cpu",
    "extraction.taps": "['layer4.*', embedding]",
    "extraction.exclude": "[]",
    "extraction.target_sizes": "[64]",
    "protocol.folds": "2",
    "methods.Linear.refits": f"[{FEW}]",
    "methods.Head2Toe.refits": f"[{FEW}]",
    "methods.Head2Toe.fractions": "[0.1]",
    "methods.Head2Toe.options": "[{penalty_ratio: 0.3}]",
}
SMALL = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = RUNNER.invoke(app, ["evaluate", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def write_vtab(root: Path, name: str, classes: int, *, n_train: int = 16, n_val: int = 8, n_test: int = 12) -> None:
    """Write a task as the community ships VTAB-1k: numbered images in a folder per split, and list files."""
    rng = np.random.default_rng(classes)
    lists: dict[str, list[str]] = {}
    for part, folder, n in (("train800", "train", n_train), ("val200", "val", n_val), ("test", "test", n_test)):
        (root / name / "images" / folder).mkdir(parents=True)
        lists[part] = []
        for number in range(n):
            label = number % classes
            pixels = rng.integers(0, 80, (12, 12, 3)) + 170 * label // classes
            place = f"images/{folder}/{number:06d}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / place)
            lists[part].append(f"{place} {label}")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for part, lines in lists.items():
        (root / name / f"{part}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_vtab_folders_go_through_the_papers_configuration(tmp_path) -> None:
    write_vtab(tmp_path / "vtab", "kitti", 4)
    write_vtab(tmp_path / "vtab", "patch_camelyon", 2)
    write_vtab(tmp_path / "vtab", "eurosat", 9)  # one class too few
    given = [str(CONFIGS / "vtab1k/resnet50.yaml"), "--data-root", str(tmp_path / "vtab"), *SMALL]
    given += ["--root", str(tmp_path / "root"), "--methods", "Linear,Head2Toe"]
    given += ["--output", str(tmp_path / "out"), "--tasks", "kitti,eurosat,patch_camelyon,dtd"]
    out, err = run(*given, code=2)
    shown = [line.split() for line in out.splitlines()]
    rows = {cells[0]: cells[1:] for cells in shown if len(cells) == 4}
    assert rows["dtd"] == ["natural", "–", "–"]
    assert rows["eurosat"] == ["specialized", "–", "–"]
    assert float(rows["kitti"][1]) > 30
    assert rows["kitti"][0] == "structured"
    assert "has 9 classes but task 'eurosat' has 10" in err
    assert "error: dtd: data folder" in err
    assert "4 results, 0 of which were there already" in err
    document = json.loads((tmp_path / "out/results.json").read_text())
    found = {task["name"]: task for task in document["tasks"]}
    assert found["kitti"]["store"]["samples"] == {"train": 24, "val": 8, "test": 12}
    with (tmp_path / "out/results.csv").open() as file:
        assert [row["task"] for row in csv.DictReader(file)] == ["patch_camelyon"] * 2 + ["kitti"] * 2

    given[given.index("kitti,eurosat,patch_camelyon,dtd")] = "kitti,patch_camelyon"
    out, err = run(*given)
    assert "4 results, 4 of which were there already; 0 samples extracted." in err
    assert "mean of group means" in out
    assert "all test samples" in out
    plan, err = run(*given, "--dry-run")
    assert [line.split() for line in plan.splitlines()][1][-2:] == ["stored", "stored"]
    assert "2 tasks × 2 methods × 1 seed on 2 folds: 8 fits, and 4 final ones; 0 B to be written." in err
    assert [task["name"] for task in json.loads(run(*given, "--json")[0])["tasks"]] == ["patch_camelyon", "kitti"]


@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path) -> None:
    given = [
        str(CONFIGS / "offline.yaml"),
        "--root",
        str(tmp_path),
        "--tasks",
        "digits",
        "--methods",
        "Linear,Head2Toe",
        *SMALL,
    ]
    out, err = run(*given, "--dry-run")
    assert "1,797 to extract" in out
    assert "4 fits" in out
    assert not list(tmp_path.iterdir())
    assert "1 task × 2 methods × 1 seed on 2 folds: 6 fits" in err
    assert "digits: checking the images: 1,797 of 1,797" in err


def read(name: str) -> EvaluationConfig:
    document = yaml.safe_load((CONFIGS / name).read_text())
    return EvaluationConfig.model_validate({"data_root": "/data" if name.startswith("vtab1k") else None, **document})


@pytest.mark.parametrize("name", ["offline.yaml", "vtab1k/resnet50.yaml", "vtab1k/vit_b16.yaml"])
def test_configurations_that_ship_are_valid(name) -> None:
    config = read(name)
    for method in config.methods.values():
        for task in config.all_tasks:
            assert METHODS[method.method].count_settings(method.options, config.extraction_of(task)) != 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "features"),
    [
        ("vtab1k/resnet50.yaml", 52, {512: 30_440, 8192: 406_248, 24576: 1_688_808}),
        ("vtab1k/vit_b16.yaml", 53, {768: 68_584, 15360: 815_080, 32448: 1_838_056}),
    ],
)
def test_the_papers_layers_are_taken_from_the_closest_backbones(name, layers, features) -> None:
    from pipeline.backbones import model_structure
    from pipeline.probing import trace
    from store.spec import PoolingSpec

    config = read(name)
    chosen = config.extraction_of(config.all_tasks[0])
    size = (3, chosen.image_size, chosen.image_size)
    model = model_structure(chosen.backbone, chosen.image_size)
    calls = trace(model, size)
    taps = resolve_taps(model, chosen.taps, chosen.exclude, size, calls)
    assert len(taps) == layers
    for target_size in chosen.target_sizes:
        planned = plan_layers(model, taps, PoolingSpec(target_sizes=(target_size,), cls_token="pooled"), size, calls)
        assert sum(layer.n_features for layer in planned) == features[target_size]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", "postion"], "task 'postion' is not in the configuration; did you mean 'position'"),
        (["--methods", "Linaer"], "method 'Linaer' is not in the configuration; did you mean 'Linear'"),
        (["--set", "methods.Linear.method=liner"], "method 'liner' is unknown; did you mean 'linear'"),
        (["--set", "methods.Head2Toe.fractions=[2]"], "fraction is 2"),
        (["--set", "methods.Head2Toe.fractions=many"], "methods.Head2Toe.fractions is 'many' but should be"),
        (["--set", "extraction.target_size=[64]"], "extraction.target_size is not a known parameter"),
        (["--set", "seeds"], "--set 'seeds' is not of the form"),
        (["--set", "root.place=x"], "leads to a value that has no keys"),
        (["--data-root", "/data"], "suite 'offline' is drawn and takes no data root"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence) -> None:
    _, err = run(str(CONFIGS / "offline.yaml"), *arguments, code=2)
    assert sentence in err
    assert err.startswith("error: configuration") or "not in the configuration" in err or "--set" in err
    assert "Traceback" not in err


def test_the_configuration_of_a_run_is_recognised(tmp_path) -> None:
    _, err = run(str(CONFIGS / "demo.yaml"), "--root", str(tmp_path), "--data-root", "x", code=2)
    assert "its keys are those of a configuration for `head2toe run`" in err


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(tmp_path) -> None:
    code = "import sys; from flows.cli import main; sys.argv[0] = 'head2toe'; main()"
    given = ["--root", str(tmp_path), "--tasks", "cells,size", "--methods", "Linear", "--jobs", "2"]
    command = [sys.executable, "-c", code, "evaluate", str(CONFIGS / "offline.yaml"), *given]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 120
    while len(children.read_text().split()) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)  # two that work, and the one that cleans up after them
    started = children.read_text().split()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "To go on, run:" in err
    assert err.splitlines()[-1].endswith("--tasks cells,size --methods Linear --jobs 2")
    assert len(started) == 3
    while (left := [child for child in started if is_running(child)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def is_running(process: str) -> bool:
    """Return whether a process is there and not merely waiting for its end to be noticed."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
