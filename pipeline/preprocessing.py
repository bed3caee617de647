"""How an image becomes the input: timm's own way for the model, a preset, or single values in their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from pipeline.extraction_parameters import DEFAULT_PRESET
from store.errors import InvalidInputError, suggest
from store.spec import PreprocessingSpec

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "border", "squash")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT_PRESET: {},
    # The paper's: VTAB resizes to the input size whatever the proportions, to values in [-1, 1].
    "vtab": {"interpolation": "bilinear", "crop_mode": "squash", "mean": (0.5,), "std": (0.5,)},
}


def resolve_preprocessing(
    model: nn.Module,
    *,
    input_size: tuple[int, int, int] | None = None,
    preset: str = DEFAULT_PRESET,
    interpolation: str | None = None,
    crop_mode: str | None = None,
    crop_pct: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> PreprocessingSpec:
    """Return timm's preprocessing of `model` with the given values in place of its own.

    Parameters
    ----------
    model : Module
        A timm model.
    input_size : tuple of int, optional
        (channels, height, width) in pixels.
    preset : str
        ``"timm"``: what timm lists for the model and tag. ``"vtab"``: a plain bilinear resize to the input size and
        values in [−1, 1], as in the paper. Values given besides take the place of the preset's.
    interpolation : str, optional
        Resampling filter by its timm name.
    crop_mode : str, optional
        ``"center"``, ``"border"`` or ``"squash"``, as in timm; ``"squash"`` alone is a plain resize without crop.
    crop_pct : float, optional
        Share of the resized image that the crop keeps, in (0, 1].
    mean, std : sequence of float, optional
        Per-channel normalization on the [0, 1] scale: three values, or one for all channels.

    Returns
    -------
    PreprocessingSpec
        Fully resolved.

    Raises
    ------
    InvalidInputError
        If a value is not valid.
    """
    if preset not in PRESETS:
        raise InvalidInputError(f"preprocessing {preset!r} is unknown; {suggest(preset, PRESETS)}")
    given = {"interpolation": interpolation, "crop_mode": crop_mode, "crop_pct": crop_pct, "mean": mean, "std": std}
    asked = dict(PRESETS[preset]) | {key: value for key, value in given.items() if value is not None}
    if asked.get("crop_mode") == "squash":
        asked.setdefault("crop_pct", 1.0)
    config = resolve_model_data_config(model) | asked
    for what, choices in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if config[what] not in choices:
            name = what.replace("_", " ")
            raise InvalidInputError(f"{name} {config[what]!r} is unknown; {suggest(str(config[what]), choices)}")
    share = float(config["crop_pct"])
    if not 0 < share <= 1:
        raise InvalidInputError(f"crop share {share} is not in (0, 1].")
    deviations = _per_channel("std", config["std"])
    if min(deviations) <= 0:
        raise InvalidInputError(f"std {list(deviations)} must be positive in every channel.")
    return PreprocessingSpec(
        input_size=input_size or tuple(config["input_size"]),
        interpolation=config["interpolation"],
        crop_mode=cast(Literal["center", "border", "squash"], config["crop_mode"]),
        crop_pct=share,
        mean=_per_channel("mean", config["mean"]),
        std=deviations,
    )


def make_transform(preprocessing: PreprocessingSpec) -> Callable[[Image.Image], Tensor]:
    """Return the transform that `preprocessing` describes: RGB image to normalized (channels, height, width) tensor."""
    transform: Callable[[Image.Image], Tensor] = create_transform(is_training=False, **preprocessing.model_dump())
    return transform


def parse_input_size(given: int | Sequence[int]) -> tuple[int, int, int]:
    """Return (3, height, width) of a side, (height, width) or (3, height, width) in pixels.

    Raises
    ------
    InvalidInputError
        If it is none of these.
    """
    numbers = (given, given) if isinstance(given, int) else tuple(given)
    if len(numbers) == 2:
        numbers = (3, *numbers)
    if len(numbers) != 3 or numbers[0] != 3 or min(numbers) < 1:
        raise InvalidInputError(f"input size {given} is not a side, (height, width) or (3, height, width) in pixels.")
    return (3, int(numbers[1]), int(numbers[2]))


def describe(preprocessing: PreprocessingSpec) -> str:
    """Return the resolved preprocessing in words.

    Parameters
    ----------
    preprocessing : PreprocessingSpec
        Fully resolved.

    Returns
    -------
    str
        For example ``"plain bilinear resize to 224 x 224, mean 0.5, std 0.5 (values from -1 to 1)"``.
    """
    _, height, width = preprocessing.input_size
    size, how = f"{height} x {width}", preprocessing.interpolation
    if preprocessing.crop_mode == "squash" and preprocessing.crop_pct == 1:
        made = f"plain {how} resize to {size}"
    else:
        share = f"{100 * preprocessing.crop_pct:g} % of the image"
        made = f"{how} resize, {preprocessing.crop_mode} crop of {share} to {size}"
    mean, std = (_short(values) for values in (preprocessing.mean, preprocessing.std))
    ends = [((v - m) / s) for m, s in zip(preprocessing.mean, preprocessing.std, strict=True) for v in (0, 1)]
    return f"{made}, mean {mean}, std {std} (values from {min(ends):.3g} to {max(ends):.3g})"


def _short(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else "/".join(f"{v:g}" for v in values)


def _per_channel(what: str, given: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in given)
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InvalidInputError(f"{what} {list(given)} needs three values, one per channel, or one for all.")
    if not all(math.isfinite(v) for v in numbers):
        raise InvalidInputError(f"{what} {list(given)} must be finite numbers.")
    return numbers
