"""Frozen timm models: built by name, filled with weights, identified by a digest, with their preprocessing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.models import get_arch_pretrained_cfgs, split_model_name_tag
from torch import Tensor, nn

from pipeline.extraction_parameters import DEFAULT_PRESET
from pipeline.preprocessing import make_transform, parse_input_size, resolve_preprocessing
from pipeline.probing import trace
from pipeline.weights import (
    SHIPPED,
    download_weights,
    hub_is_reachable,
    is_cached,
    read_weights,
    shipped_weights,
)
from store.errors import InvalidInputError, suggest
from store.spec import DIGEST_LENGTH, BackboneSpec, PreprocessingSpec, canonical_json


@dataclass(frozen=True)
class Backbone:
    """A frozen model and all that identifies what it computes.

    Attributes
    ----------
    model : Module
        In evaluation mode, without gradients, on the CPU, in float32.
    name : str
        timm name as given, possibly with a weights tag.
    weights : str
        Where the weights come from, as given.
    spec : BackboneSpec
        Architecture, arguments and weights digest.
    preprocessing : PreprocessingSpec
        Fully resolved.
    transform : callable
        Turns an RGB image into a float32 tensor of shape (channels, height, width), without augmentation.
    """

    model: nn.Module
    name: str
    weights: str
    spec: BackboneSpec
    preprocessing: PreprocessingSpec
    transform: Callable[[Image.Image], Tensor]


def load_backbone(
    name: str,
    weights: str = "pretrained",
    *,
    input_size: int | Sequence[int] | None = None,
    preset: str = DEFAULT_PRESET,
    interpolation: str | None = None,
    crop_mode: str | None = None,
    crop_pct: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Build a timm model, fill it with weights, freeze it and resolve its preprocessing.

    The classification layer is kept as it was pretrained, so that the logits can be captured. Preprocessing not given
    is what timm lists for the model and tag, or what shipped weights were trained with.

    Parameters
    ----------
    name : str
        timm model name with or without tag, such as ``"resnet50.a1_in1k"``, or ``"hf-hub:<repository>"``.
    weights : str
        ``"pretrained"``; ``"shipped"``, those inside this package; the path of a ``.safetensors``, ``.pth``, ``.pt`` or
        ``.bin`` file; or ``"random:<seed>"``.
    input_size : int or sequence of int, optional
        Side, (height, width) or (3, height, width) in pixels.
    preset, interpolation, crop_mode, crop_pct, mean, std
        As for `pipeline.preprocessing.resolve_preprocessing`.

    Returns
    -------
    Backbone
        The frozen model.

    Raises
    ------
    InvalidInputError
        If the name is unknown, the weights cannot be had or do not fit, or a preprocessing value is invalid.
    """
    size = None if input_size is None else parse_input_size(input_size)
    shipped = shipped_weights(name) if weights == SHIPPED else None
    if shipped is not None and size is None:
        size = parse_input_size(shipped.preprocessing["input_size"])
    own = {} if shipped is None else {"num_classes": shipped.num_classes}
    structure, arguments = _structure(name, size, own)
    if shipped is not None:
        listed: Any = structure.pretrained_cfg
        listed.update(shipped.preprocessing)
    preprocessing = resolve_preprocessing(
        structure,
        input_size=size,
        preset=preset,
        interpolation=interpolation,
        crop_mode=crop_mode,
        crop_pct=crop_pct,
        mean=mean,
        std=std,
    )
    if size is not None:
        trace(structure, size)
    model = _fill(structure, name, weights if shipped is None else str(shipped.path), arguments)
    model.eval().requires_grad_(False)
    spec = BackboneSpec(
        architecture=_architecture(name, model),
        arguments={
            **{key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()},
            "num_classes": int(getattr(model, "num_classes", 0)),
        },
        weights_digest=weights_digest(model),
    )
    return Backbone(model, name, weights, spec, preprocessing, make_transform(preprocessing))


def model_structure(name: str, input_size: int | Sequence[int] | None = None) -> nn.Module:
    """Return the model without weights, on the meta device: what taps and shapes are found from.

    Parameters
    ----------
    name : str
        As for `load_backbone`.
    input_size : int or sequence of int, optional
        As for `load_backbone`.

    Returns
    -------
    Module
        In evaluation mode; it cannot compute.

    Raises
    ------
    InvalidInputError
        If the name is unknown.
    """
    return _structure(name, None if input_size is None else parse_input_size(input_size))[0]


def weights_digest(model: nn.Module) -> str:
    """Return a digest over every parameter and persistent buffer: name, type, shape and bytes, in order of name.

    Parameters
    ----------
    model : Module
        On any device; the digest does not depend on it.

    Returns
    -------
    str
        20 hexadecimal digits.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:DIGEST_LENGTH]


def _structure(
    name: str, size: tuple[int, int, int] | None, own: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model on the meta device, and its arguments: its own and those that adapt it to the input size."""
    _check_name(name)
    own = dict(own or {})
    with torch.device("meta"):
        try:
            model = _create(name, **own)
        except Exception as error:
            if ":" not in name:
                raise
            raise InvalidInputError(f"backbone {name!r} cannot be had from the hub: {_reason(error)}.") from error
        native = tuple(resolve_model_data_config(model)["input_size"])
        if size is None or size == native:
            return model.eval(), own
        arguments = {**own, "img_size": size[1:]}
        try:
            return _create(name, **arguments).eval(), arguments
        except TypeError:  # a fully convolutional model takes images of any size and has no such argument
            return model.eval(), own
        except Exception as error:
            height, width = size[1:]
            raise InvalidInputError(
                f"backbone {name!r} cannot be built for images of {height} x {width} pixels: {_reason(error)}; "
                f"choose another input size."
            ) from error


def _create(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **arguments)
    return model


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _fill(structure: nn.Module, name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    kind, _, seed = weights.partition(":")
    if weights == "pretrained":
        return download_weights(name, structure, arguments)
    if kind == "random":
        if not re.fullmatch(r"\d{1,18}", seed):
            raise InvalidInputError(f"weights {weights!r} need a seed, a whole number: 'random:0' for example.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            return _create(name, **arguments)
    model = _create(name, **arguments)
    read_weights(model, name, Path(weights))
    return model


def _architecture(name: str, model: nn.Module) -> str:
    if ":" in name:
        return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or name)
    return str(split_model_name_tag(name)[0])


def _check_name(name: str) -> None:
    source, colon, repository = name.partition(":")
    if colon:
        if source != "hf-hub" or not repository:
            raise InvalidInputError(
                f"backbone {name!r} is neither a timm model nor 'hf-hub:<owner>/<model>'; "
                f"for weights of your own give the timm name and --weights PATH."
            )
        if not hub_is_reachable() and not is_cached(repository):
            raise InvalidInputError(
                f"backbone {name!r} is described on the hub, which cannot be reached from here; "
                f"connect to the network, or give the timm name and --weights PATH."
            )
        return
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        raise InvalidInputError(f"backbone {name!r} is not a timm model; {suggest(architecture, timm.list_models())}")
    tags = [known.partition(".")[2] for known in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise InvalidInputError(f"backbone {architecture!r} has no weights tagged {tag!r}; {suggest(tag, tags)}")
