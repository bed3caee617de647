"""A backbone is frozen, known by its content, and prepares images exactly as its specification says."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pipeline import backbones as backbones_module
from pipeline import weights as weights_module
from pipeline.backbones import load_backbone, model_structure, weights_digest
from pipeline.preprocessing import describe, make_transform, resolve_preprocessing
from store.errors import InvalidInputError
from store.spec import BackboneSpec, PreprocessingSpec

NAME = "test_resnet"


def state(seed: int = 0) -> dict[str, Tensor]:
    return dict(load_backbone(NAME, f"random:{seed}").model.state_dict())


def picture(width: int = 50, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = load_backbone(NAME, "random:7")
    torch.manual_seed(2)
    other = load_backbone(NAME, "random:7")
    assert one.spec == other.spec
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert load_backbone(NAME, "random:8").spec.weights_digest != one.spec.weights_digest


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_backbone(NAME, "random:0")
    assert torch.equal(torch.rand(1), expected)


def test_a_backbone_is_frozen() -> None:
    model = load_backbone(NAME, "random:0").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_pretrained_head_is_kept_so_that_logits_are_a_tap() -> None:
    spec = load_backbone("vit_tiny_patch16_224.augreg_in21k", "random:0").spec
    assert spec.architecture == "vit_tiny_patch16_224"
    assert spec.arguments == {"num_classes": 21843}


def test_the_digest_covers_names_types_shapes_parameters_and_buffers() -> None:
    model = load_backbone(NAME, "random:0").model
    digests = {weights_digest(model)}
    model.bn1.running_mean[0] += 1  # type: ignore[index, union-attr, operator]  # timm's attributes have no types
    digests.add(weights_digest(model))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    digests.add(weights_digest(model))
    model.half()
    digests.add(weights_digest(model))
    model.bfloat16()
    digests.add(weights_digest(model))
    assert len(digests) == 5
    assert all(len(digest) == 20 for digest in digests)
    renamed = torch.nn.Sequential(torch.nn.Linear(2, 3))
    assert weights_digest(renamed) != weights_digest(renamed[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_digest_is_the_same_on_cpu_and_gpu() -> None:
    model = load_backbone(NAME, "random:0").model
    assert weights_digest(model) == weights_digest(model.cuda())


def test_the_digest_does_not_see_memory_format() -> None:
    model = load_backbone(NAME, "random:0").model
    before = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == before


@pytest.mark.parametrize(
    ("wrap", "prefix", "suffix"),
    [
        ("", "", ".pth"),
        ("", "", ".pt"),
        ("", "", ".bin"),
        ("state_dict", "", ".pth"),
        ("model", "", ".pth"),
        ("model_ema", "", ".pth"),
        ("", "module.", ".pth"),
        ("state_dict", "_orig_mod.module.", ".pth"),
    ],
)
def test_weights_files_give_the_weights_they_hold(tmp_path: Path, wrap: str, prefix: str, suffix: str) -> None:
    content = {f"{prefix}{key}": value for key, value in state(5).items()}
    path = tmp_path / f"weights{suffix}"
    torch.save({wrap: content, "epoch": 3} if wrap else content, path)
    loaded = load_backbone(NAME, str(path))
    assert loaded.spec == load_backbone(NAME, "random:5").spec
    assert loaded.weights == str(path)


def test_safetensors_give_the_weights_they_hold(tmp_path: Path) -> None:
    save_file(state(5), tmp_path / "weights.safetensors")
    assert load_backbone(NAME, str(tmp_path / "weights.safetensors")).spec == load_backbone(NAME, "random:5").spec


def test_position_embeddings_are_resized_to_another_input_size(tmp_path: Path) -> None:
    torch.save(load_backbone("test_vit", "random:1").model.state_dict(), tmp_path / "vit.pth")
    backbone = load_backbone("test_vit", str(tmp_path / "vit.pth"), input_size=96)
    assert backbone.spec.arguments["img_size"] == [96, 96]
    assert backbone.model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


def test_weights_that_do_not_fit_are_refused_with_count_and_names(tmp_path: Path) -> None:
    content = state()
    content["surplus"] = content.pop("conv1.0.weight")
    torch.save(content, tmp_path / "keys.pth")
    with pytest.raises(
        InvalidInputError, match=r"of \d+ tensors 1 missing \(conv1\.0\.weight\), 1 unexpected \(surplus\)"
    ):
        load_backbone(NAME, str(tmp_path / "keys.pth"))


def test_a_missing_key_is_named_with_the_files_near_match(tmp_path: Path) -> None:
    content = {key.replace("layer1", "layers1"): value for key, value in state().items()}
    save_file(content, tmp_path / "keys.safetensors")
    with pytest.raises(InvalidInputError) as caught:
        load_backbone(NAME, str(tmp_path / "keys.safetensors"))
    n_missing, n_unexpected = map(int, re.findall(r"(\d+) (?:missing|unexpected)", str(caught.value)))
    renamed = [key for key in content if key.startswith("layers1")]
    assert n_unexpected == len(renamed)
    assert n_missing == sum("num_batches_tracked" not in key for key in renamed)
    assert "layer1.0.conv1.weight may be its layers1.0.conv1.weight" in str(caught.value)
    assert str(caught.value).count("layer1.") == 6  # three names and their near matches: not the whole list


def test_a_head_for_other_classes_is_refused_as_such(tmp_path: Path) -> None:
    content = state()
    content["fc.weight"], content["fc.bias"] = content["fc.weight"][:10], content["fc.bias"][:10]
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(InvalidInputError, match=r"fc\.weight is \(10, \d+\) instead of \(1000, .*another number of cl"):
        load_backbone(NAME, str(tmp_path / "head.pth"))


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.folder),))


def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    evil = Malicious(made)
    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"a": evil}, protocol=2))
    torch.save({**state(), "evil": evil}, tmp_path / "evil.pth")
    for name in ("evil.bin", "evil.pth"):
        with pytest.raises(InvalidInputError, match="objects other than tensors, which may run code when read"):
            load_backbone(NAME, str(tmp_path / name))
    assert not made.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert made.exists()  # it would have run


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "cut.pth": b"PK\x03\x04 truncated",
        "empty.pt": b"",
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=name):
            load_backbone(NAME, str(tmp_path / name))
    for number, (content, message) in enumerate(
        [
            ([1, 2], "no state_dict"),
            ({}, "no state_dict"),
            ({"state_dict": {}}, "no state_dict"),
            ({"teacher": state(), "student": state()}, r"no state_dict.*its entries are 'teacher', 'student'"),
            ({"model": state(), "model_ema": state()}, r"hold 2 models, 'model', 'model_ema'; save the one"),
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(InvalidInputError, match=message):
            load_backbone(NAME, str(tmp_path / f"{number}.pth"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet5", "random:0", r"'resnet5' is not a timm model; did you mean 'resnet50'"),
        ("local-dir:models/mine", "random:0", "neither a timm model nor 'hf-hub:<owner>/<model>'.*--weights PATH"),
        ("resnet50.a1_in2k", "random:0", r"no weights tagged 'a1_in2k'; did you mean 'a1_in1k'"),
        (NAME, "random", "'random:0'"),
        (NAME, "random:x", "'random:0'"),
        (NAME, "missing.pth", "'missing.pth' are no existing file; valid choices are"),
        (NAME, "shiped", r"'shiped' are no existing file; did you mean 'shipped'\?"),
        (NAME, __file__, r"end in '\.py'; valid endings are \.safetensors"),
    ],
)
def test_unknown_names_and_weights_are_refused_with_the_next_step(name: str, weights: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_backbone(name, weights)


def test_without_a_network_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(weights_module, "is_cached", lambda repository: False)
    with pytest.raises(InvalidInputError, match=r"'resnet18' cannot be fetched.*network.*--weights PATH.*random:0"):
        load_backbone("resnet18")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download of `test_resnet.r160_in1k` in the hub's own cache format, and no network."""
    repository, commit = tmp_path / "models--timm--test_resnet.r160_in1k", "0" * 40
    for folder in ("refs", f"snapshots/{commit}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.file_download, "HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(weights_module, "hub_is_reachable", lambda: False)
    return repository / "snapshots" / commit / "model.safetensors"


def test_pretrained_weights_are_taken_from_the_hubs_cache_without_a_network(hub_cache: Path) -> None:
    save_file(state(5), hub_cache)
    backbone = load_backbone("test_resnet.r160_in1k", "pretrained")
    assert backbone.spec == load_backbone("test_resnet.r160_in1k", "random:5").spec
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_pretrained_weights_that_do_not_fit_say_so(hub_cache: Path) -> None:
    content = state(5)
    content.pop("fc.bias")
    save_file(content, hub_cache)
    with pytest.raises(InvalidInputError, match=r"pretrained weights for 'test_resnet\.r160_in1k' do not fit"):
        load_backbone("test_resnet.r160_in1k", "pretrained")


def test_a_hub_model_that_cannot_be_reached_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones_module, "hub_is_reachable", lambda: False)
    with pytest.raises(InvalidInputError, match=r"'hf-hub:someone/net'.*cannot be reached.*--weights PATH"):
        load_backbone("hf-hub:someone/net", "random:0")


def test_a_failing_download_becomes_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def fail(name: str, pretrained: bool = False, **arguments: Any) -> object:
        if pretrained:
            raise ConnectionResetError("by peer")
        return real(name, **arguments)

    monkeypatch.setattr(weights_module, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InvalidInputError, match=r"cannot be fetched.*\(ConnectionResetError\)\.$"):
        load_backbone("resnet18")


def test_a_name_without_pretrained_weights_says_so() -> None:
    with pytest.raises(InvalidInputError, match=r"no pretrained weights for 'botnet50ts_256'; .*'random:0'"):
        load_backbone("botnet50ts_256")


def test_preprocessing_is_timms_unless_overridden() -> None:
    own = resolve_preprocessing(model_structure("resnet50.a1_in1k"))
    assert own == PreprocessingSpec(
        input_size=(3, 224, 224),
        interpolation="bicubic",
        crop_mode="center",
        crop_pct=0.95,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    papers = load_backbone(
        NAME, "random:0", input_size=(48, 64), interpolation="bilinear", crop_mode="squash", mean=[0.5], std=[0.5]
    ).preprocessing
    assert papers.model_dump() == {
        "input_size": (3, 48, 64),
        "interpolation": "bilinear",
        "crop_mode": "squash",
        "crop_pct": 1.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }


def test_squash_is_a_plain_resize_to_the_papers_range() -> None:
    backbone = load_backbone(
        NAME, "random:0", input_size=(48, 64), interpolation="bilinear", crop_mode="squash", mean=[0.5], std=[0.5]
    )
    resized = picture().resize((64, 48), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(backbone.transform(picture()), expected.float(), rtol=0, atol=1e-5)


def test_the_vtab_preset_is_the_papers_way_and_single_values_take_its_place() -> None:
    model = model_structure("resnet50.a1_in1k")
    vtab = resolve_preprocessing(model, preset="vtab")
    assert vtab == PreprocessingSpec(
        input_size=(3, 224, 224),
        interpolation="bilinear",
        crop_mode="squash",
        crop_pct=1.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    white, black = (make_transform(vtab)(Image.new("RGB", (30, 10), color)) for color in ("white", "black"))
    assert (white.min(), black.max(), white.shape) == (1, -1, (3, 224, 224))
    other = resolve_preprocessing(model, preset="vtab", interpolation="bicubic", mean=[0.4, 0.5, 0.6])
    assert other == vtab.model_copy(update={"interpolation": "bicubic", "mean": (0.4, 0.5, 0.6)})
    cropped = resolve_preprocessing(model, preset="vtab", crop_mode="center")
    assert (cropped.crop_mode, cropped.crop_pct) == ("center", 0.95)


def test_preprocessing_is_said_in_words() -> None:
    model = model_structure("resnet50.a1_in1k")
    assert describe(resolve_preprocessing(model, preset="vtab")) == (
        "plain bilinear resize to 224 x 224, mean 0.5, std 0.5 (values from -1 to 1)"
    )
    assert describe(resolve_preprocessing(model, input_size=(3, 240, 320))) == (
        "bicubic resize, center crop of 95 % of the image to 240 x 320, mean 0.485/0.456/0.406, "
        "std 0.229/0.224/0.225 (values from -2.12 to 2.64)"
    )


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_transforms_repeat_exactly_and_survive_pickling(crop_mode: str) -> None:
    spec = resolve_preprocessing(model_structure(NAME), input_size=(3, 40, 40), crop_mode=crop_mode)
    transform = make_transform(spec)
    first = transform(picture())
    assert first.shape == (3, 40, 40)
    assert first.dtype == torch.float32
    assert torch.equal(first, transform(picture()))
    assert torch.equal(first, pickle.loads(pickle.dumps(transform))(picture()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"crop_mode": "stretch"}, "'stretch' is unknown; valid choices are 'border', 'center', 'squash'"),
        ({"crop_pct": 1.5}, r"crop share 1\.5 is not in"),
        ({"std": [0.0]}, "must be positive"),
        ({"mean": [0.1, 0.2]}, "needs three values"),
        ({"mean": [0.1, float("nan"), 0.2]}, "must be finite"),
        ({"std": [float("inf")]}, "must be finite"),
        ({"crop_pct": 0.0}, r"crop share 0\.0 is not in"),
        ({"preset": "vtap"}, "preprocessing 'vtap' is unknown; did you mean 'vtab'"),
        ({"input_size": (1, 28, 28)}, "is not a side"),
        ({"input_size": 0}, "is not a side"),
    ],
)
def test_invalid_preprocessing_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_backbone(NAME, "random:0", **given)  # type: ignore[arg-type]  # wrong on purpose


def test_an_input_size_the_model_cannot_take_is_refused_before_weights_are_sought() -> None:
    with pytest.raises(InvalidInputError, match="cannot process an image of 3 x 100 x 100"):
        load_backbone("test_vit", "missing.pth", input_size=100)


def test_a_vit_is_built_for_the_input_size_and_says_so() -> None:
    backbone = load_backbone("test_vit", "random:0", input_size=96)
    assert backbone.spec == BackboneSpec(
        architecture="test_vit",
        arguments={"num_classes": 1000, "img_size": [96, 96]},
        weights_digest=backbone.spec.weights_digest,
    )
    assert "img_size" not in load_backbone(NAME, "random:0", input_size=96).spec.arguments


def test_a_structure_has_no_weights() -> None:
    assert all(parameter.is_meta for parameter in model_structure("vit_huge_patch14_224").parameters())
