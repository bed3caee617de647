"""The exported folder holds everything, runs nothing, and what is wrong with it is said in a sentence."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import CLASSES, batch, classifier, planned
from safetensors.torch import load_file, save_file

from pipeline.prediction import Head2ToeClassifier, export_classifier, load_classifier
from pipeline.prediction.card import model_card
from pipeline.weights import PACKAGED
from store.errors import InvalidInputError

SHIPPED = PACKAGED / "test_resnet.safetensors"


@pytest.mark.parametrize("normalization", ["standardize", "unit_norm", "none"])
def test_an_exported_classifier_is_the_same_when_loaded(tmp_path, normalization) -> None:
    one = classifier(normalization)
    folder = export_classifier(one, tmp_path / "new" / "folder")
    other = load_classifier(folder)
    assert torch.equal(one(batch()), other(batch()))
    assert other.recipe == one.recipe
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_the_folder_holds_tensors_json_and_a_card_only(tmp_path) -> None:
    folder = export_classifier(classifier(), tmp_path / "out", include_backbone=True)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "backbone.safetensors",
        "head.safetensors",
        "head2toe.json",
    ]
    for path in folder.glob("*.safetensors"):
        # A safetensors file begins with the length of a JSON header; nothing in it can run.
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        assert all({"dtype", "shape", "data_offsets"} <= set(entry) for entry in header.values())
    document = json.loads((folder / "head2toe.json").read_text())
    assert document["class_names"] == list(CLASSES)
    assert [layer["tap"]["module"] for layer in document["layers"]] == [one.tap.module for one in planned()[:4]]


def test_a_folder_with_its_backbone_needs_nothing_else(tmp_path, monkeypatch) -> None:
    folder = export_classifier(classifier(), tmp_path / "out", include_backbone=True)
    # As on a machine where the name means other weights, or none.
    monkeypatch.setattr("pipeline.weights.PACKAGED", tmp_path)
    assert torch.equal(load_classifier(folder)(batch()), classifier()(batch()))


def test_weights_from_a_file_are_included_unless_refused(tmp_path) -> None:
    own = classifier()
    own.recipe = own.recipe.model_copy(update={"weights": str(SHIPPED)})
    assert (export_classifier(own, tmp_path / "with") / "backbone.safetensors").is_file()
    without = export_classifier(own, tmp_path / "without", include_backbone=False)
    assert not (without / "backbone.safetensors").exists()
    assert torch.equal(load_classifier(without)(batch()), own(batch()))
    document = json.loads((without / "head2toe.json").read_text())
    (without / "head2toe.json").write_text(json.dumps({**document, "weights": "/no/such/file.safetensors"}))
    with pytest.raises(InvalidInputError, match="no/such/file"):
        load_classifier(without)
    assert torch.equal(load_classifier(without, weights=str(SHIPPED))(batch()), own(batch()))


def test_other_weights_under_the_same_name_are_refused(tmp_path) -> None:
    folder = export_classifier(classifier(), tmp_path / "out")
    state = load_file(SHIPPED)
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InvalidInputError, match=r"other\.safetensors.*have the digest \w{20}, but .* --weights FILE"):
        load_classifier(folder, weights=str(tmp_path / "other.safetensors"))


# ---------------------------------------------------------------- damaged and hostile folders


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return what changes the document of a folder."""

    def apply(folder: Path) -> None:
        document = json.loads((folder / "head2toe.json").read_text())
        change(document)
        (folder / "head2toe.json").write_text(json.dumps(document))

    return apply


def replace(**tensors: Any) -> Callable[[Path], None]:
    """Return what replaces tensors of a folder and makes its document say that they are right."""

    def apply(folder: Path) -> None:
        path = folder / "head.safetensors"
        old = load_file(path)
        new = {name: value(old[name]) if callable(value) else value for name, value in tensors.items()}
        save_file({name: value for name, value in {**old, **new}.items() if value is not None}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit(lambda document: document["files"].update({"head.safetensors": digest}))(folder)

    return apply


def flip(folder: Path) -> None:
    path = folder / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def garbage(folder: Path) -> None:
    path = folder / "head.safetensors"
    path.write_bytes(b"\x80\x04 not tensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(lambda document: document["files"].update({"head.safetensors": digest}))(folder)


def layer(**values: Any) -> Callable[[Path], None]:
    return edit(lambda document: document["layers"][1].update(values))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (flip, r"head\.safetensors' is damaged .* digest"),
    "no tensors": (garbage, r"head\.safetensors' is damaged"),
    "missing tensors": (lambda f: (f / "head.safetensors").unlink(), r"head\.safetensors' cannot be read: No such"),
    "missing document": (lambda f: (f / "head2toe.json").unlink(), r"head2toe\.json' cannot be read: No such"),
    "no document": (lambda f: (f / "head2toe.json").write_text("{"), r"head2toe\.json' is damaged"),
    "an array": (lambda f: (f / "head2toe.json").write_text("[1]"), r"head2toe\.json' is damaged"),
    "huge document": (lambda f: (f / "head2toe.json").write_bytes(b" " * (2**24 + 1)), "larger than"),
    "other version": (edit(lambda d: d.update(format_version=2)), "format_version"),
    "unknown field": (edit(lambda d: d.update(code="import os")), "code: Extra inputs"),
    "no layers": (edit(lambda d: d.update(layers=[])), "layers"),
    "one class": (edit(lambda d: d.update(class_names=["a"])), "class_names"),
    "more classes": (edit(lambda d: d["class_names"].append("x")), "'coef' is .* instead of"),
    "another module": (
        edit(lambda d: d["layers"][1]["tap"].update(module="stem.9")),
        "has no module 'stem.9'",
    ),
    "another shape": (layer(shape=[7, 5, 5]), "does not have the features that its shape yields"),
    "impossible shape": (layer(shape=[7, 5]), "layout"),
    "too many features": (layer(n_selected=10**9), "does not have the features"),
    "a layer twice": (edit(lambda d: d["layers"].append(d["layers"][0])), "listed twice"),
    "another backbone": (edit(lambda d: d.update(backbone="test_rezznet")), "no weights ship for backbone"),
    "another digest": (edit(lambda d: d["backbone_spec"].update(weights_digest="0" * 20)), "was trained on those of"),
    "another input": (edit(lambda d: d["backbone_spec"].update(arguments={"num_classes": 7})), "is built as"),
    "index too large": (replace(indices=lambda t: t + 10**6), "features, not"),
    "index below zero": (replace(indices=lambda t: t - 10**6), "features, not"),
    "not a number": (replace(coef=lambda t: t * np.nan), "'coef' has values that are not finite"),
    "other type": (replace(coef=lambda t: t.half()), "'coef' is torch.float16"),
    "tensor too many": (replace(extra=torch.zeros(2)), "extra"),
    "tensor too few": (replace(mean=None), "instead of"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_explained(tmp_path, fault) -> None:
    folder = export_classifier(classifier(), tmp_path / "out")
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_classifier(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_backbone_is_explained(tmp_path) -> None:
    folder = export_classifier(classifier(), tmp_path / "out", include_backbone=True)
    path = folder / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=r"backbone\.safetensors' is damaged"):
        load_classifier(folder)


def test_nothing_is_written_over_and_nothing_half_written_stays(tmp_path, monkeypatch) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "file"):
        with pytest.raises(InvalidInputError, match="new or empty"):
            export_classifier(classifier(), tmp_path / name)

    def fail(*_: Any, **__: Any) -> str:
        raise InvalidInputError("no card today.")

    monkeypatch.setattr("pipeline.prediction.artifact.model_card", fail)
    with pytest.raises(InvalidInputError, match="no card"):
        export_classifier(classifier(), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    assert isinstance(load_classifier(export_classifier(classifier(), tmp_path / "empty")), Head2ToeClassifier)


def test_an_exported_folder_has_one_head(tmp_path) -> None:
    folder = export_classifier(classifier(), tmp_path / "out")
    with pytest.raises(InvalidInputError, match="leave --head out"):
        load_classifier(folder, "abc")


# ---------------------------------------------------------------- the card


def test_the_card_shows_lineage_and_accuracy_and_text_stays_text() -> None:
    card = model_card(classifier().recipe)
    assert "87.5 %" in card
    for digest in ("abc", "selection def", "123", classifier().recipe.backbone_spec.weights_digest):
        assert digest in card
    assert r"red \| &lt;b&gt;" in card
    assert "<b>" not in card


# ---------------------------------------------------------------- ONNX


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standardize", "unit_norm"])
def test_the_onnx_graph_gives_the_same_logits_without_the_unused_layers(tmp_path, normalization) -> None:
    import onnx
    import onnxruntime

    one = classifier(normalization)
    folder = export_classifier(one, tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 4, 9):
        (found,) = session.run(["logits"], {"images": batch(n).numpy()})
        np.testing.assert_allclose(found, one(batch(n)), rtol=2e-3, atol=2e-3)
    assert "model.onnx" in (folder / "README.md").read_text()
    graph = onnx.load(folder / "model.onnx").graph
    whole = sum(isinstance(module, torch.nn.Conv2d) for module in one.backbone.modules())
    assert sum(node.op_type == "Conv" for node in graph.node) < whole / 2


def test_onnx_that_is_not_installed_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"'onnx'; .*head2toe-store\[onnx\]"):
        export_classifier(classifier(), tmp_path / "out", onnx=True)
    assert not list(tmp_path.iterdir())
