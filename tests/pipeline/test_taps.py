"""Taps name the right tensors, each once, for any architecture; capturing them yields what was planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.backbones import model_structure
from pipeline.extraction import extract
from pipeline.extraction_parameters import ClsToken, ExtractionParameters
from pipeline.probing import native_input_size
from pipeline.taps import Capture, PlannedLayer, plan_layers, resolve_taps
from store import ActivationStore, open_store
from store.errors import InvalidInputError
from store.spec import PoolingSpec, TapSpec

EVERYTHING = 10**9


def build() -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    return timm.create_model("test_resnet").eval().requires_grad_(False), (3, 96, 96)


def planned(
    model: nn.Module, size: tuple[int, int, int], *targets: int, cls_token: ClsToken = "pooled"
) -> tuple[PlannedLayer, ...]:
    return plan_layers(model, resolve_taps(model), PoolingSpec(target_sizes=targets, cls_token=cls_token), size)


def images(size: tuple[int, int, int], n: int = 2) -> Tensor:
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_taps_depend_on_the_architecture_and_not_on_the_weights(name: str) -> None:
    taps = resolve_taps(model_structure(name))
    model = timm.create_model(name)
    assert resolve_taps(model) == taps
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert resolve_taps(model) == taps


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_maxvit", "resnetv2_18d"])
def test_every_tap_can_be_asked_for_by_its_name(name: str) -> None:
    model = model_structure(name)
    taps = resolve_taps(model)
    assert resolve_taps(model, [tap.name for tap in reversed(taps)]) == taps


def test_resnet50_taps_are_the_papers() -> None:
    names = [tap.name for tap in resolve_taps(model_structure("resnet50"))]
    blocks = [f"layer{s}.{b}.act{a}" for s, n in enumerate([3, 4, 6, 3], 1) for b in range(n) for a in (1, 2, 3)]
    assert names == ["act1", "maxpool", *blocks, "pre_logits", "logits"]


def test_pre_activation_resnet_taps_are_what_enters_each_convolution() -> None:
    names = [tap.name for tap in resolve_taps(model_structure("resnetv2_50"))]
    units = [f"stages.{s}.blocks.{b}.norm{k}" for s, n in enumerate([3, 4, 6, 3]) for b in range(n) for k in (1, 2, 3)]
    assert names == ["stem.conv", *units, "norm", "pre_logits", "logits"]


def test_vit_taps_are_the_papers() -> None:
    names = [tap.name for tap in resolve_taps(model_structure("vit_base_patch16_224"))]
    blocks = [f"blocks.{b}.{part}" for b in range(12) for part in ("norm1", "attn", "mlp.act", "mlp")]
    assert names == ["patch_embed", "pos_drop", *blocks, "norm", "pre_logits", "logits"]


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_50"])
@pytest.mark.parametrize(
    ("target", "published", "count"), [(512, 32e3, 30_440), (8192, 405e3, 406_248), (24576, 1.7e6, 1_688_808)]
)
def test_resnet50_counts_agree_with_the_paper(name: str, target: int, published: float, count: int) -> None:
    layers = planned(model_structure(name), (3, 240, 240), target)
    assert sum(layer.n_features for layer in layers) == count == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize(("target", "published"), [(768, 68_352), (15_360, 814_848)])
def test_vit_counts_are_the_papers_but_for_logits_and_class_token(target: int, published: int) -> None:
    layers = planned(model_structure("vit_base_patch16_224"), (3, 224, 224), target)
    count = {layer.name: layer.n_features for layer in layers}
    # The reference keeps the encoded class token beside `pre_logits`, a tanh layer that timm's model does not have,
    # and no logits. In timm the encoded class token is `pre_logits`.
    assert sum(count.values()) - count["logits"] + 768 == published


@pytest.mark.parametrize(("cls_token", "expected"), [("pooled", 768), ("separate", 2 * 768), ("only", 768)])
def test_class_token_modes_concern_only_sequences_that_have_one(cls_token: ClsToken, expected: int) -> None:
    layers = planned(model_structure("vit_base_patch16_224"), (3, 224, 224), 768, cls_token=cls_token)
    by_name = {layer.name: layer for layer in layers}
    assert by_name["blocks.3.attn"].n_features == expected
    assert by_name["patch_embed"].n_features == 768
    assert by_name["patch_embed"].n_prefix_tokens == 0


def test_several_target_sizes_give_one_layer_each() -> None:
    layers = planned(model_structure("test_resnet"), (3, 96, 96), 256, 1024)
    names = [layer.name for layer in layers]
    assert names[:2] == [names[0].split("@")[0] + "@256", names[0].split("@")[0] + "@1024"]
    assert len(set(names)) == len(names) == 2 * len(resolve_taps(model_structure("test_resnet")))


def test_blocks_and_ends_have_presets() -> None:
    model = model_structure("resnet18")
    assert [t.name for t in resolve_taps(model, ["blocks"])] == [
        f"layer{s}.{b}.act2" for s in (1, 2, 3, 4) for b in (0, 1)
    ]
    assert [t.name for t in resolve_taps(model, ["logits", "embedding"])] == ["pre_logits", "logits"]
    assert [t.name for t in resolve_taps(model_structure("test_vit"), ["blocks"])] == [f"blocks.{b}" for b in range(6)]
    assert resolve_taps(model_structure("vgg11"), ["blocks"])


def test_patterns_names_and_presets_combine_without_repeating_a_tensor() -> None:
    model = model_structure("test_vit")
    assert [t.name for t in resolve_taps(model, ["blocks.*.attn"])] == [f"blocks.{b}.attn" for b in range(6)]
    both = resolve_taps(model, ["head2toe", "blocks.*.attn", "blocks.0.attn"])
    assert both == resolve_taps(model)
    explicit = resolve_taps(model, ["head2toe", "blocks.0.attn.proj_drop"])
    assert len(explicit) == len(both)
    assert {t.name for t in explicit} - {t.name for t in both} == {"blocks.0.attn.proj_drop"}


def test_taps_come_in_order_of_depth_whatever_the_order_of_patterns() -> None:
    model = model_structure("test_resnet")
    taps = [t.name for t in resolve_taps(model)]
    assert [t.name for t in resolve_taps(model, ["logits", "head2toe"])] == taps
    assert [t.name for t in resolve_taps(model, [taps[5], taps[1]])] == [taps[1], taps[5]]


def test_excluded_taps_are_left_out() -> None:
    model = model_structure("test_vit")
    kept = [t.name for t in resolve_taps(model, exclude=["*.mlp*", "logits"])]
    assert "logits" not in kept
    assert kept[-1] == "pre_logits"
    assert not any(".mlp" in name for name in kept)
    with pytest.raises(
        InvalidInputError, match=r"exclude 'block\.0\.attn' matches no tap; did you mean 'blocks\.0\.attn'"
    ):
        resolve_taps(model, exclude=["block.0.attn"])
    with pytest.raises(InvalidInputError, match="leave nothing"):
        resolve_taps(model, ["logits"], exclude=["*"])


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("resnet18", "layer1.0.act9", r"matches no module; did you mean 'layer1\.0\.act"),
        ("resnet18", "blocks.*.attn", "matches no module"),
        ("resnet18", "head2to", "did you mean 'head2toe'"),
        ("test_vit", "blocks.0.attn.attn_drop", "does not run in a forward pass"),
        ("coat_tiny", "cpe1", "runs 2 times in one forward pass"),
        ("mvitv2_tiny", "stages.0.blocks.0.attn", "is a tuple, not a tensor"),
        ("swinv2_cr_tiny_224", "stages.0.blocks.0.attn.meta_mlp", "does not have the batch as its leading dimension"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_the_reason(name: str, pattern: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        resolve_taps(model_structure(name), [pattern])


def test_a_pattern_passes_over_modules_that_cannot_be_captured() -> None:
    model = model_structure("mvitv2_tiny")
    names = {tap.name for tap in resolve_taps(model, ["stages.0.blocks.0.*"])}
    assert "stages.0.blocks.0.attn" not in names
    assert "stages.0.blocks.0.mlp" in names


def test_in_place_operations_after_a_tap_do_not_change_its_features() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
            self.second = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.first(x))
            out = self.second(x)
            x.mul_(0)
            return out

    torch.manual_seed(0)
    model = Net().eval().requires_grad_(False)
    batch = images((3, 8, 8))
    taps = [TapSpec(name=n, module=m, point=p) for n, m, p in [("raw", "first", "output"), ("read", "second", "input")]]
    for target in (4, 16, 10_000):
        layers = plan_layers(model, taps, PoolingSpec(target_sizes=(target,)), (3, 8, 8))
        with Capture(model, layers) as capture:
            features = capture(batch)
        raw = nn.functional.conv2d(batch, model.first.weight, model.first.bias)
        if target == 10_000:
            torch.testing.assert_close(features["raw"], raw.flatten(1))
            torch.testing.assert_close(features["read"], raw.relu().flatten(1))
        elif target == 4:
            torch.testing.assert_close(features["read"], raw.relu().mean((2, 3)))


@pytest.mark.parametrize("name", ["test_vit", "coat_tiny", "levit_128s", "edgenext_xx_small"])
def test_looking_for_taps_leaves_the_model_as_it_was(name: str) -> None:
    model = timm.create_model(name)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    resolve_taps(model)
    assert model.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_capture_leaves_the_model_as_it_was() -> None:
    model, size = build()
    batch = images(size)
    before = model(batch)
    layers = planned(model, size, 256)
    with Capture(model, layers) as capture:
        features = capture(batch)
        assert torch.equal(features["logits"], before)
    assert torch.equal(model(batch), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_features_are_written_in_the_order_of_the_layers() -> None:
    model, size = build()
    layers = planned(model, size, 256, 512)
    batch = images(size)
    matrix = torch.full((sum(layer.n_features for layer in layers), len(batch) + 2), torch.nan, dtype=torch.float16)
    with Capture(model, layers) as capture:
        features = capture(batch)
        capture.into(batch, matrix[:, 1:-1])
    assert torch.equal(matrix[:, 1:-1], torch.cat(list(features.values()), 1).half().T)
    assert matrix[:, [0, -1]].isnan().all()


def test_images_of_another_size_than_planned_are_refused() -> None:
    model, size = build()
    layers = planned(model, size, 256)
    with Capture(model, layers) as capture, pytest.raises(InvalidInputError, match="plan the layers with the size"):
        capture(images((3, 64, 64)))


def test_sizes_and_modules_a_model_does_not_have_are_refused() -> None:
    model = model_structure("test_vit")
    with pytest.raises(InvalidInputError, match="cannot process an image of 3 x 100 x 100"):
        plan_layers(model, resolve_taps(model), PoolingSpec(target_sizes=(8,)), (3, 100, 100))
    with pytest.raises(InvalidInputError, match=r"module 'layer1' is not in the model"):
        plan_layers(model, [TapSpec(name="x", module="layer1")], PoolingSpec(target_sizes=(8,)), (3, 160, 160))


def test_non_square_images_keep_their_layout() -> None:
    model = timm.create_model("test_convnext").eval()
    layers = plan_layers(model, resolve_taps(model), PoolingSpec(target_sizes=(10**9,)), (3, 64, 96))
    grids = {
        layer.shape[1:] if layer.layout == "nchw" else layer.shape[:2] for layer in layers if len(layer.shape) == 3
    }
    assert all(3 * rows == 2 * columns for rows, columns in grids - {(1, 1)})


def test_a_model_without_classifier_ends_with_its_embedding() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    assert [t.name for t in resolve_taps(model)][-1] == "pre_logits"
    with pytest.raises(InvalidInputError, match="no classifier"):
        resolve_taps(model, ["logits"])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_raw_input_is_a_layer_if_asked_for(name: str) -> None:
    model = timm.create_model(name).eval()
    size = native_input_size(model)
    taps = resolve_taps(model)
    assert "input" not in [tap.name for tap in taps]
    assert resolve_taps(model, ["head2toe", "input"]) == (TapSpec(name="input", module="", point="input"), *taps)
    assert resolve_taps(model, ["head2toe", "input"], exclude=["input"]) == taps
    assert [tap.name for tap in resolve_taps(model, ["logits", "input"])] == ["input", "logits"]
    layers = plan_layers(model, resolve_taps(model, ["input"]), PoolingSpec(target_sizes=(48, EVERYTHING)), size)
    batch = images(size)
    with Capture(model, layers) as capture:
        features = capture(batch)
    torch.testing.assert_close(features["input@48"], nn.functional.avg_pool2d(batch, size[1] // 4).flatten(1))
    assert torch.equal(features[f"input@{EVERYTHING}"], batch.flatten(1))


def test_the_raw_input_is_kept_once_whatever_it_is_called() -> None:
    model = model_structure("test_resnet")
    assert [tap.name for tap in resolve_taps(model, ["input", "conv1.0.input"])] == ["conv1.0.input"]


@pytest.mark.parametrize(
    ("name", "cls_token"),
    [("test_resnet", "pooled"), ("test_vit", "pooled"), ("test_vit", "separate"), ("test_vit", "only")],
)
def test_several_target_sizes_at_once_are_what_each_alone_is(name: str, cls_token: ClsToken) -> None:
    model = timm.create_model(name).eval()
    size, targets = native_input_size(model), (1, 300, 5000)
    taps = resolve_taps(model, ["head2toe", "input"])

    def captured(*target_sizes: int) -> dict[str, Tensor]:
        layers = plan_layers(model, taps, PoolingSpec(target_sizes=target_sizes, cls_token=cls_token), size)
        with Capture(model, layers) as capture:
            return capture(images(size))

    together = captured(*targets)
    assert len(together) == len(targets) * len(taps)
    for target in targets:
        for tap, features in captured(target).items():
            assert torch.equal(together[f"{tap}@{target}"], features), (tap, target)


@pytest.mark.parametrize(
    "cls_token", ["separate", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("pooled", "only"))]
)
def test_stores_of_several_target_sizes_hold_what_each_alone_holds(tmp_path: Path, cls_token: ClsToken) -> None:
    for number in range(6):
        folder = tmp_path / "data" / ("train" if number < 4 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    common = ExtractionParameters(
        backbone="test_vit",
        weights="random:0",
        data=str(tmp_path / "data"),
        taps=("blocks.*.attn", "input", "embedding"),
        exclude=("blocks.[1-9].attn",),
        cls_token=cls_token,
        image_size=32,
        batch_size=2,
        device="cpu",
    )

    def extracted(*target_sizes: int) -> ActivationStore:
        parameters = common.model_copy(update={"target_sizes": target_sizes})
        return open_store(extract(parameters, str(tmp_path / "root")).uri)

    both = extracted(64, 256)
    assert list(both.layers) == [f"{tap}@{t}" for tap in ("input", "blocks.0.attn", "pre_logits") for t in (64, 256)]
    for target in (64, 256):
        alone = extracted(target)
        for layer, together in zip(alone.layers, list(both.layers)[target == 256 :: 2], strict=True):
            assert together == f"{layer}@{target}"
            np.testing.assert_array_equal(
                both.columns("train", both.layer_indices(together)), alone.columns("train", alone.layer_indices(layer))
            )


def test_tensors_that_coincide_on_small_images_are_kept_once() -> None:
    model = model_structure("test_resnet")
    native = [tap.name for tap in resolve_taps(model)]
    taps = resolve_taps(model, input_size=(3, 32, 32))
    names = [tap.name for tap in taps]
    assert [name for name in native if name not in names] == [native[-3]]  # the last map, of one position
    assert names == [name for name in native if name in names]


def test_a_model_built_for_another_size_has_the_taps_of_its_architecture() -> None:
    native = resolve_taps(model_structure("test_maxvit"))
    assert resolve_taps(model_structure("test_maxvit", 96), input_size=(3, 96, 96)) == native


@pytest.mark.parametrize("name", ["iformer_t", pytest.param("samvit_base_patch16_224", marks=pytest.mark.slow)])
def test_the_embedding_is_a_vector_also_behind_a_head_that_pools(name: str) -> None:
    model = model_structure(name)
    layers = plan_layers(
        model, resolve_taps(model, ["embedding"]), PoolingSpec(target_sizes=(EVERYTHING,)), native_input_size(model)
    )
    assert [(layer.name, layer.shape) for layer in layers] == [("pre_logits", (model.num_features,))]
