"""`export` and `predict` from the outside: results on standard output, problems on standard error, exit codes."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from classifiers import CLASSES, DATA, classifier
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pipeline.prediction import export_classifier

RUNNER = CliRunner()


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


@pytest.fixture
def exported(tmp_path) -> Path:
    return export_classifier(classifier(), tmp_path / "exported")


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        DATA.splits["test"].image(i).save(folder / f"{i}.png")
    return folder


def test_json_has_every_image_with_all_probabilities(exported, images) -> None:
    found = json.loads(run("predict", exported, images, "--json")[0])
    assert found["classes"] == list(CLASSES)
    assert [Path(one["image"]).name for one in found["predictions"]] == ["0.png", "1.png", "2.png"]
    assert found["errors"] == []
    assert found["head"] == classifier().recipe.lineage["head"]
    for one in found["predictions"]:
        assert sum(one["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert one["label"] == CLASSES[int(np.argmax(one["probabilities"]))]
        assert one["probability"] == max(one["probabilities"])


def test_unreadable_images_are_named_the_others_done_and_the_exit_code_is_2(exported, images, tmp_path) -> None:
    (images / "1b.png").write_bytes(b"\x89PNG")
    output = tmp_path / "out.csv"
    out, err = run("predict", exported, images, images / "none.png", "--output", output, "--top", "2", code=2)
    assert "1b.png' is not an image" in err
    assert "none.png' cannot be read: No such file" in err
    assert "2 of the images cannot be used; 3 are done." in err
    assert sum(".png" in line for line in out.splitlines()) == 3
    assert sum("%" in line for line in out.splitlines()) == 6
    with output.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["image", "label", "probability", *(f"probability of {name}" for name in CLASSES)]
    assert [Path(row[0]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert [row[1] for row in rows] == [CLASSES[int(np.argmax([float(v) for v in row[3:]]))] for row in rows]


def test_json_files_hold_what_json_prints(exported, images, tmp_path) -> None:
    (images / "bad.png").touch()
    out, _ = run("predict", exported, images, "--json", "--output", tmp_path / "out.json", code=2)
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(out)
    assert json.loads(out)["errors"] == [{"image": str(images / "bad.png"), "reason": "is an empty file"}]
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["HEAD", "IMAGES", "--output", "x.txt"], "endings are .csv and .json"),
        (["HEAD", "IMAGES", "--output", "no/such/folder/x.csv"], "cannot write"),
        (["HEAD", "http://x.invalid/a.jpg"], "image 'http://x.invalid/a.jpg' is a URL; images are read from files"),
        (["HEAD", "IMAGES", "--head", "abc"], "leave --head out"),
        (["HEAD", "IMAGES", "--device", "abacus"], "abacus"),
        (["HEAD", "IMAGES", "--weights", "missing.pth"], "missing.pth"),
        (["IMAGES", "IMAGES"], "no activation store at"),
    ],
)
def test_mistakes_are_explained(exported, images, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"HEAD": str(exported), "IMAGES": str(images)}
    _, err = run("predict", *(places.get(word, word) for word in arguments), code=2)
    assert message in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_from_images_to_a_head_to_an_exported_folder_to_the_same_accuracy(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 4)):
        for label, name in enumerate(("red", "green", "blue")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 230, (20, 24, 3), np.uint8)
                pixels[:, :, label] += 25
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    root, folder = tmp_path / "stores", tmp_path / "exported"
    extract = ("extract", "--backbone", "test_resnet", "--weights", "shipped", "--image-size", "32")
    uri = run(*extract, "--data", tmp_path / "photos", "--root", root)[0].strip()
    selection = json.loads(run("select", uri, "--keep", "40", "--json")[0])["selection"]
    head = json.loads(run("refit", uri, "--selection", selection, "--json")[0])
    made = json.loads(run("export", uri, "--output", folder, "--json")[0])
    assert (made["head"], made["accuracy"]) == (head["head"], head["accuracy"])
    for place in ([uri, "--head", head["head"][:6]], [folder]):
        found = json.loads(run("predict", *place, tmp_path / "photos", "--json")[0])["predictions"]
        for split, accuracy in head["accuracy"].items():
            hits = [Path(o["image"]).parent.name == o["label"] for o in found if f"/{split}/" in o["image"]]
            assert np.mean(hits) == pytest.approx(accuracy)
    assert "is there already" in run("export", uri, "--output", folder, code=2)[1]
    run("refit", uri, "--linear")
    for command in (["predict", uri, tmp_path / "photos"], ["export", uri, "--output", tmp_path / "new"]):
        out, said = run(*command, "--dry-run", "--json")
        assert json.loads(out)["head"] == head["head"]
        assert f"taking the newest head on a selection, {head['head']}: 40 features of selection {selection};" in said
    assert "head 'zz' does not exist" in run("predict", uri, tmp_path / "photos", "--head", "zz", code=2)[1]


@pytest.mark.slow
def test_the_examples_of_the_document_run_in_their_order(tmp_path, monkeypatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    values: dict[str, str] = {}
    done = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, "prediction.md", "exec"), {})
            continue
        for line in block.splitlines():
            # VARIABLE=$(head2toe …), of which all but the command may be missing.
            found = re.match(r"(?:(\w+)=\$\()?head2toe ([^)#]+)", line)
            if found is None:
                assert line.startswith("pip install")
                continue
            variable, command = found.groups()
            out, _ = run(*(values.get(word.removeprefix("$"), word) for word in shlex.split(command)))
            done.append(command.split()[0])
            if variable:
                values[variable] = out.strip()
    assert {"extract", "select", "refit", "predict", "export"} == set(done)
    shown = json.loads((tmp_path / "digits-classifier" / "head2toe.json").read_text())["lineage"]["head"]
    assert [shown] == [place.name for place in Path(values["STORE"]).glob("results/heads/*")]
    with (tmp_path / "digits.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["label"] == Path(row["image"]).stem for row in rows) >= 9
