"""From names and presets to hooks: which modules are captured, what that yields, and the capture itself."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.layouts import Layouts
from pipeline.pooling import ClsToken, Layout, pool, pooled_size
from pipeline.presets import LOGITS, PRE_LOGITS, Anatomy, block_values, head2toe_values
from pipeline.probing import Call, Value, first_tensor, trace
from store.errors import InvalidInputError, suggest
from store.spec import PoolingSpec, TapSpec

PRESETS = ("head2toe", "blocks", "embedding", "logits")

_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath, nn.Sequential, nn.ModuleList, nn.Flatten)


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
    places = _Places(Anatomy(model, trace(model)))
    chosen: dict[Hashable, _Place] = {}
    # Where two hold the same tensor, names win over patterns and patterns over presets.
    for pattern in sorted(patterns, key=lambda p: (p in PRESETS, _is_glob(p))):
        for place in places.find(pattern):
            chosen.setdefault(place.key, place)
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
    places, layouts = _Places(Anatomy(model, calls)), Layouts(model, calls)
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


@dataclass(frozen=True)
class _Place:
    key: Hashable
    when: int
    tap: TapSpec


class _Places:
    """Where in a traced network a value can be captured, and by what name."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._calls: dict[str, list[Call]] = {}
        for call in anatomy.calls:
            self._calls.setdefault(call.name, []).append(call)
        self._names = [name for name, _ in anatomy.model.named_modules() if name]
        self._single = [calls[0] for name, calls in self._calls.items() if name and len(calls) == 1]

    def find(self, pattern: str) -> Iterator[_Place]:
        if pattern in PRESETS:
            yield from self._preset(pattern)
        elif pattern in self._names:
            yield self._at(self.single_call(pattern), "output")
        elif pattern == PRE_LOGITS:
            yield from self._preset("embedding")
        elif pattern.removesuffix(".input") in self._names:
            yield self._at(self.single_call(pattern.removesuffix(".input")), "input")
        else:
            yield from self._glob(pattern)

    def single_call(self, name: str) -> Call:
        if name and name not in self._names:
            raise InvalidInputError(f"module {name!r} is not in the model; {suggest(name, self._names)}")
        calls = self._calls.get(name, [])
        if len(calls) != 1:
            how = f"runs {len(calls)} times in one forward pass" if calls else "does not run in a forward pass"
            raise InvalidInputError(f"module {name!r} {how} and cannot be captured; tap the module around it.")
        return calls[0]

    def usable(self, call: Call, point: str) -> Value:
        value = call.input if point == "input" else call.output
        if value is None:
            reason = f"is a {call.output_type}, not a tensor" if point == "output" else "is not a tensor"
        else:
            reason = value.obstacle or ""
        if value is None or reason:
            raise InvalidInputError(
                f"the {point} of module {call.name!r} {reason} and cannot be captured; tap a module inside or around it."
            )
        return value

    def _preset(self, preset: str) -> Iterator[_Place]:
        embedding, logits = self._ends()
        if preset == "head2toe":
            ends = {place.key for place in (*embedding, *logits)}
            for value in head2toe_values(self._anatomy):
                if self._anatomy.canonical(value.key) not in ends:
                    yield from self._holding(value)
            yield from (*embedding, *logits)
        elif preset == "blocks":
            found = [place for value in block_values(self._anatomy) for place in self._holding(value)]
            if not found:
                raise InvalidInputError("preset 'blocks' finds no residual blocks or stages; give module names.")
            yield from found
        else:
            places = embedding if preset == "embedding" else logits
            if not places:
                raise InvalidInputError(f"preset {preset!r} finds nothing: this model has no classifier.")
            yield from places

    def _ends(self) -> tuple[list[_Place], list[_Place]]:
        """Return the places of the embedding and of the logits; a model without classifier gives no logits."""
        whole = self._calls[""][0]
        heads = [call for call in self._anatomy.classifiers if call.input is not None and call.input.obstacle is None]
        name = PRE_LOGITS if PRE_LOGITS not in self._names else None
        if not heads or isinstance(heads[0].module, nn.Identity):
            return ([self._at(whole, "output", name)] if whole.output is not None else []), []
        embedding = [self._at(heads[0], "input", name)]
        embedding += [self._at(head, "input") for head in heads[1:]]
        return embedding, ([self._at(whole, "output", LOGITS)] if whole.output is not None else [])

    def _holding(self, value: Value) -> Iterator[_Place]:
        """Yield the best place that holds `value`, if any does."""
        key = self._anatomy.canonical(value.key)
        outputs = [c for c in self._single if c.output is not None and self._anatomy.canonical(c.output.key) == key]
        outputs = [c for c in outputs if c.output is not None and c.output.obstacle is None]
        if outputs:
            yield self._at(min(outputs, key=self._rank), "output")
            return
        for call in self._single:
            if call.input is not None and call.input.key == value.key and call.input.obstacle is None:
                yield self._at(call, "input")
                return

    def _rank(self, call: Call) -> tuple[bool, int, int, int]:
        """Order names of one value: no mere pass-through, as few units as possible, then the outermost."""
        n_units = max(self._anatomy.n_units(call), 1)
        return isinstance(call.module, _TRANSPARENT), n_units, call.name.count("."), call.started

    def _glob(self, pattern: str) -> Iterator[_Place]:
        names = fnmatch.filter(self._names, pattern)
        if not names:
            raise InvalidInputError(f"tap {pattern!r} matches no module; {suggest(pattern, [*PRESETS, *self._names])}")
        refusals = []
        for name in names:
            try:
                yield self._at(self.single_call(name), "output")
            except InvalidInputError as error:
                refusals.append(error)
        if len(refusals) == len(names):
            raise refusals[0]

    def _at(self, call: Call, point: str, name: str | None = None) -> _Place:
        value = self.usable(call, point)
        when = call.finished if point == "output" else call.started
        label = name or (call.name if point == "output" else f"{call.name}.input")
        tap = TapSpec.model_validate(
            {"name": re.sub(r"[^A-Za-z0-9._-]", "_", label), "module": call.name, "point": point}
        )
        return _Place(self._anatomy.canonical(value.key), when, tap)


def _folded(value: Value) -> tuple[int, int]:
    """Shape of the token sequence that a value with several rows per image becomes."""
    *positions, channels = value.shape
    count = value.rows_per_image
    for size in positions:
        count *= size
    return count, channels


def _is_glob(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")
