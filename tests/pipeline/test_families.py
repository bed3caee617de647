"""Every family of timm: preset `head2toe` holds each tensor once, in order of execution, and yields what was planned.

One small member per module of `timm.models`, with random weights and small images. What this module finds for each
family is what docs/backbones.md says of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline.backbones import model_structure
from pipeline.taps import Capture, plan_layers, resolve_taps
from store.spec import PoolingSpec, TapSpec

EVERYTHING = 10**9
NORM_IN_HEAD = ("efficientvit_m0",)


@dataclass(frozen=True)
class Family:
    """A member, the side of its images, and its prefix tokens."""

    name: str
    side: int = 64
    n_prefix_tokens: int = 0
    quick: bool = False


FAMILIES = (
    Family("test_resnet", quick=True),
    Family("test_resnet", 32, quick=True),  # its last map has one position
    Family("resnext50_32x4d"),
    Family("resnetv2_18d", quick=True),
    Family("test_vit", n_prefix_tokens=1, quick=True),
    Family("vit_small_patch14_reg4_dinov2", 56, 5),
    Family("vit_xsmall_patch16_clip_224", n_prefix_tokens=1),
    Family("deit_tiny_distilled_patch16_224", n_prefix_tokens=2),
    Family("test_convnext", quick=True),
    Family("test_efficientnet", quick=True),
    Family("mobilenetv3_small_050", quick=True),
    Family("swin_tiny_patch4_window7_224"),
    Family("mixer_s32_224"),
    Family("test_coatnet", quick=True),
    Family("test_maxvit", quick=True),
    Family("convit_tiny", n_prefix_tokens=1),
    Family("eca_botnext26ts_256"),
    Family("test_byobnet"),
    Family("cait_xxs24_224", n_prefix_tokens=1),
    Family("coat_lite_tiny", n_prefix_tokens=1),
    Family("cpubone_nano"),
    Family("crossvit_tiny_240", 240, 1),
    Family("cs3darknet_focus_s"),
    Family("cspnext_tiny"),
    Family("densenet121"),
    Family("dla46x_c"),
    Family("dpn48b"),
    Family("edgenext_xx_small"),
    Family("efficientformerv2_s0"),
    Family("efficientvim_m1"),
    Family("efficientvit_b0"),
    Family("efficientvit_m0"),
    Family("vit_tiny_patch16_dinov3_qkvb", n_prefix_tokens=5),
    Family("fasternet_t0"),
    Family("fastvit_t8"),
    Family("gcvit_xxtiny"),
    Family("ghostnet_050"),
    Family("hardcorenas_a"),
    Family("hgnetv2_b0"),
    Family("sam2_hiera_tiny"),
    Family("iformer_t", 32),
    Family("inception_next_atto"),
    Family("lcnetv2_small"),
    Family("levit_128s"),
    Family("test_mambaout"),
    Family("poolformer_s12"),
    Family("mobilevit_xxs"),
    Family("mvitv2_tiny"),
    Family("nest_tiny"),
    Family("test_nfnet"),
    Family("pit_ti_distilled_224", n_prefix_tokens=2),
    Family("pvt_v2_b0"),
    Family("regnetx_002"),
    Family("repghostnet_050"),
    Family("resnest14d"),
    Family("rexnet_100"),
    Family("legacy_seresnet18"),
    Family("skresnet18"),
    Family("starnet_s050"),
    Family("swiftformer_xs"),
    Family("tiny_vit_5m_224"),
    Family("tnt_s_patch16_224", n_prefix_tokens=1),
    Family("visformer_tiny"),
    Family("vit_tiny_r_s16_p8_224", n_prefix_tokens=1),
    Family("test_vit_relpos"),
    Family("ese_vovnet19b_slim_dw"),
    Family("volo_d1_224", n_prefix_tokens=1),
    Family("xcit_nano_12_p16_224", n_prefix_tokens=1),
)


def build(family: Family) -> nn.Module:
    """Return the model with random weights, none of them zero, so that no two tensors agree by accident."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = timm.create_model(family.name, img_size=family.side)
        except TypeError:  # fully convolutional
            model = timm.create_model(family.name)
        model.eval().requires_grad_(False)
        for key, parameter in model.named_parameters():
            if parameter.ndim <= 1:
                parameter.normal_(0, 0.5) if key.endswith("bias") else parameter.uniform_(0.5, 1.0)
            elif not parameter.any():
                parameter.normal_(0, 0.02)
    return model


def order_of_execution(model: nn.Module, taps: Sequence[TapSpec], batch: Tensor) -> list[str]:
    """Return the names of taps in the order in which a real forward pass reaches them."""
    reached: list[str] = []
    modules = dict(model.named_modules())
    handles = [
        modules[tap.module].register_forward_pre_hook(lambda *_, name=tap.name: reached.append(name))
        if tap.point == "input"
        else modules[tap.module].register_forward_hook(lambda *_, name=tap.name: reached.append(name))
        for tap in taps
    ]
    with torch.inference_mode():
        model(batch)
    for handle in handles:
        handle.remove()
    return reached


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f"{f.name}-{f.side}", marks=[] if f.quick else pytest.mark.slow) for f in FAMILIES]
)
def test_head2toe_holds_each_tensor_once_as_planned_without_weights(family: Family) -> None:
    size = (3, family.side, family.side)
    structure = model_structure(family.name, family.side)  # all that `head2toe taps` has
    taps = resolve_taps(structure, input_size=size)
    layers = plan_layers(structure, taps, PoolingSpec(target_sizes=(512, EVERYTHING)), size)
    model, batch = build(family), torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    assert order_of_execution(model, taps, batch) == [tap.name for tap in taps]
    with Capture(model, layers) as capture:
        features, alone = capture(batch), capture(batch[1:])

    assert [layer.name for layer in layers] == list(features)
    whole: list[tuple[str, Tensor]] = []
    for layer in layers:
        values = features[layer.name]
        assert values.shape == (2, layer.n_features), layer.name
        assert values.isfinite().all(), layer.name
        assert (values[0] != values[1]).any(), f"{layer.name} does not depend on the image"
        torch.testing.assert_close(values[1:], alone[layer.name], rtol=1e-3, atol=1e-3 * float(values.abs().max()))
        if layer.target_size == EVERYTHING:
            whole.append((layer.name, values[0].sort().values))
    for number, (name, values) in enumerate(whole):  # sorted, so that a permuted copy does not escape
        for other, others in whole[:number]:
            assert values.shape != others.shape or not torch.allclose(values, others, rtol=1e-5, atol=1e-6), (
                f"{other} and {name} hold the same tensor"
            )

    for layer in layers:
        n = layer.shape[0]
        if layer.layout == "nchw":
            assert layer.shape[1] == layer.shape[2], layer
        elif layer.layout == "nhwc":
            assert layer.shape[0] == layer.shape[1], layer
        elif layer.layout == "tokens" and n > family.n_prefix_tokens:
            assert math.isqrt(n - layer.n_prefix_tokens) ** 2 == n - layer.n_prefix_tokens, layer
    assert max(layer.n_prefix_tokens for layer in layers) == family.n_prefix_tokens

    # Others have several classifiers, on embeddings of their own, or norms that timm counts to the head.
    if isinstance(model.get_classifier(), nn.Linear | nn.Conv2d) and family.name not in NORM_IN_HEAD:
        with torch.inference_mode():
            embedding = model.forward_head(model.forward_features(batch), pre_logits=True)
        torch.testing.assert_close(features[f"pre_logits@{EVERYTHING}"], embedding.flatten(1))

    names = [tap.name for tap in taps]
    assert len(names) >= 10
    assert "pre_logits" in names
    assert names[-1] == "logits" or structure.num_classes == 0
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_the_families_are_many() -> None:
    modules = {timm.models.model_entrypoint(family.name).__module__ for family in FAMILIES}
    assert len(modules) >= 60
