"""From names and presets to hooks: which modules are captured, what that yields, and the capture itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.layouts import Layouts
from pipeline.places import PRESETS, Place, Places, is_glob
from pipeline.pooling import ClsToken, Layout, pool, pooled_size
from pipeline.presets import LOGITS, PRE_LOGITS, Anatomy
from pipeline.probing import Value, first_tensor, trace
from store.errors import InvalidInputError, suggest
from store.spec import PoolingSpec, TapSpec


def resolve_taps(
    model: nn.Module, patterns: Sequence[str] = ("head2toe",), exclude: Sequence[str] = ()
) -> tuple[TapSpec, ...]:
    """Return the places in `model` that presets and patterns name, each tensor once, in order of depth.

    Parameters
    ----------
    model : Module
        A timm model, with or without weights; only its architecture matters.
    patterns : sequence of str
        Presets (``"head2toe"``, ``"blocks"``, ``"embedding"``, ``"logits"``), module names, shell-style patterns on
        module names such as ``"blocks.*.attn"``, or names of taps. Modules give their output; ``"<module>.input"`` is
        what one reads.
    exclude : sequence of str
        Names or shell-style patterns of taps to leave out again.

    Returns
    -------
    tuple of TapSpec
        In order of execution. If two names hold the same tensor, the more explicit one is kept.

    Raises
    ------
    InvalidInputError
        If a pattern matches nothing, or a named module cannot be captured.
    """
    places = Places(Anatomy(trace(model)))
    chosen: dict[Hashable, Place] = {}
    # Where two hold the same tensor, names win over patterns and patterns over presets, but later stages look for
    # the embedding and the logits under their own names.
    for pattern in sorted(patterns, key=lambda p: (p in PRESETS, is_glob(p))):
        for place in places.find(pattern):
            if place.key not in chosen or place.tap.name in (PRE_LOGITS, LOGITS):
                chosen[place.key] = place
    taps = [place.tap for place in sorted(chosen.values(), key=lambda place: place.when)]
    dropped: set[TapSpec] = set()
    for pattern in exclude:
        matched = {tap for tap in taps if any(fnmatch.fnmatchcase(n, pattern) for n in (tap.name, tap.module))}
        if not matched:
            raise InvalidInputError(f"exclude {pattern!r} matches no tap; {suggest(pattern, [t.name for t in taps])}")
        dropped |= matched
    kept = tuple(tap for tap in taps if tap not in dropped)
    if not kept:
        raise InvalidInputError(f"taps {list(patterns)} with {list(exclude)} excluded leave nothing to capture.")
    return kept


@dataclass(frozen=True)
class PlannedLayer:
    """A layer as it will be stored: one tap pooled towards one target size.

    Attributes
    ----------
    name : str
        Name in the store: the tap's, followed by ``@`` and the target size if there are several.
    tap : TapSpec
        Where the tensor is captured.
    layout : str
        ``"nchw"``, ``"nhwc"``, ``"tokens"`` or ``"vector"``.
    shape : tuple of int
        Shape of the captured tensor for one image.
    target_size : int
        Number of features aimed at.
    cls_token : str
        What happens to prefix tokens.
    n_prefix_tokens : int
        How many leading tokens are not patches.
    n_features : int
        Number of features per image after pooling.
    """

    name: str
    tap: TapSpec
    layout: Layout
    shape: tuple[int, ...]
    target_size: int
    cls_token: ClsToken
    n_prefix_tokens: int
    n_features: int


def plan_layers(
    model: nn.Module, taps: Sequence[TapSpec], pooling: PoolingSpec, input_size: tuple[int, int, int]
) -> tuple[PlannedLayer, ...]:
    """Return the layers that `taps` yield for images of `input_size`, tap by tap and, within one, by target size.

    Parameters
    ----------
    model : Module
        The model the taps were resolved on, or one of the same architecture.
    taps : sequence of TapSpec
        What to capture.
    pooling : PoolingSpec
        The pooling rule.
    input_size : tuple of int
        (channels, height, width) of the images in pixels.

    Returns
    -------
    tuple of PlannedLayer
        One per tap and target size.

    Raises
    ------
    InvalidInputError
        If the model does not take images of this size, or a tap is not in it or cannot be pooled.
    """
    calls = trace(model, input_size)
    places, layouts = Places(Anatomy(calls)), Layouts(calls)
    layers = []
    for tap in taps:
        call = places.single_call(tap.module)
        value = places.usable(call, tap.point)
        layout = layouts.layout(value, call.finished, tap.name)
        shape = value.shape if value.rows_per_image == 1 else _folded(value)
        n_prefix = layouts.n_prefix_tokens(value) if layout == "tokens" else 0
        for target_size in pooling.target_sizes:
            name = tap.name if len(pooling.target_sizes) == 1 else f"{tap.name}@{target_size}"
            n_features = pooled_size(shape, layout, target_size, pooling.cls_token, n_prefix)
            layers.append(PlannedLayer(name, tap, layout, shape, target_size, pooling.cls_token, n_prefix, n_features))
    return tuple(layers)


class Capture:
    """Context in which a model yields the pooled features of planned layers.

    Tensors are pooled inside the hooks, on their device and before any later in-place operation can change them, so
    that full activations die young.

    Parameters
    ----------
    model : Module
        A frozen model in evaluation mode.
    layers : sequence of PlannedLayer
        What to capture.

    Raises
    ------
    InvalidInputError
        When called, if images are not of the planned size.

    Examples
    --------
    >>> with Capture(model, layers) as capture:  # doctest: +SKIP
    ...     features = capture(batch)["layer1.0.act3"]
    """

    def __init__(self, model: nn.Module, layers: Sequence[PlannedLayer]) -> None:
        self.model = model
        self.layers = tuple(layers)
        self._handles: list[RemovableHandle] = []
        self._pooled: dict[str, Tensor] = {}
        self._batch_size = 0

    def __enter__(self) -> Self:
        by_tap: dict[TapSpec, list[PlannedLayer]] = {}
        for layer in self.layers:
            by_tap.setdefault(layer.tap, []).append(layer)
        modules = dict(self.model.named_modules())
        for tap, layers in by_tap.items():
            module = modules[tap.module]
            if tap.point == "input":
                self._handles.append(module.register_forward_pre_hook(self._input_hook(layers), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(layers)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pooled.clear()

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the model and return the features of every layer.

        Parameters
        ----------
        batch : Tensor
            Preprocessed images, shape (batch, channels, height, width), on the model's device.

        Returns
        -------
        dict of Tensor
            By layer name, in the order of `layers`: shape (batch, feature), float32, on that device.
        """
        self._batch_size = batch.shape[0]
        self._pooled = {}
        with torch.inference_mode():
            self.model(batch)
        pooled, self._pooled = self._pooled, {}
        return {layer.name: pooled[layer.name] for layer in self.layers}

    def concatenated(self, batch: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Run the model and return the features of all layers side by side.

        Parameters
        ----------
        batch : Tensor
            As for calling the object.
        dtype : torch.dtype
            Type of the result.

        Returns
        -------
        Tensor
            Shape (batch, sum of `n_features`) in the order of `layers`.
        """
        features = self(batch)
        return torch.cat([features.pop(layer.name).to(dtype) for layer in self.layers], dim=1)

    def _input_hook(self, layers: list[PlannedLayer]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = first_tensor(args, kwargs)
            if tensor is not None:
                self._take(tensor, layers)

        return hook

    def _output_hook(self, layers: list[PlannedLayer]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._take(output, layers)

        return hook

    def _take(self, tensor: Tensor, layers: list[PlannedLayer]) -> None:
        if tensor.shape[0] != self._batch_size:
            tensor = tensor.reshape(self._batch_size, -1, tensor.shape[-1])
        for layer in layers:
            if tuple(tensor.shape[1:]) != layer.shape:
                raise InvalidInputError(
                    f"layer {layer.name!r} was planned for a shape of {layer.shape} per image and got "
                    f"{tuple(tensor.shape[1:])}; plan the layers with the size of the images that are processed."
                )
            self._pooled[layer.name] = pool(
                tensor, layer.layout, layer.target_size, layer.cls_token, layer.n_prefix_tokens
            )


def _folded(value: Value) -> tuple[int, int]:
    """Shape of the token sequence that a value with several rows per image becomes."""
    *positions, channels = value.shape
    count = value.rows_per_image
    for size in positions:
        count *= size
    return count, channels
