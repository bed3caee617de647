"""From names and presets to hooks: which modules are captured, what that yields, and the capture itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.extraction_parameters import AVERAGE, ClsToken
from pipeline.layouts import Layouts
from pipeline.places import Place, Places, is_glob, is_preset
from pipeline.plugins import blamed, find_plugin, plugin_names, require_installed
from pipeline.pooling import Layout, Pooling, check_pooling, pool, pooled_size
from pipeline.presets import LOGITS, PRE_LOGITS, Anatomy
from pipeline.probing import Call, Value, first_tensor, native_input_size, trace
from store.errors import InvalidInputError, suggest
from store.spec import PluginSpec, PoolingSpec, TapSpec


def resolve_taps(
    model: nn.Module,
    patterns: Sequence[str] = ("head2toe",),
    exclude: Sequence[str] = (),
    input_size: tuple[int, int, int] | None = None,
    calls: tuple[Call, ...] | None = None,
) -> tuple[TapSpec, ...]:
    """Return the places in `model` that presets and patterns name, each tensor once, in order of depth.

    Parameters
    ----------
    model : Module
        A timm model, with or without weights; only its architecture matters.
    patterns : sequence of str
        Presets (``"head2toe"``, ``"blocks"``, ``"embedding"``, ``"logits"``, ``"input"``, or another package's), module
        names, shell-style patterns on module names such as ``"blocks.*.attn"``, or names of taps. Modules give their
        output; ``"<module>.input"`` is what one reads, and ``"input"`` the preprocessed image, which no other preset of
        this package holds.
    exclude : sequence of str
        Names or shell-style patterns of taps to leave out again.
    input_size : tuple of int, optional
        (channels, height, width) of the images in pixels; the model's own size if not given. On small images
        tensors may coincide that do not otherwise, such as a last map of one position and the embedding.
    calls : tuple of Call, optional
        What `pipeline.probing.trace` finds for images of this size, where it is known already.

    Returns
    -------
    tuple of TapSpec
        In order of execution. If two names hold the same tensor, the more explicit one is kept.

    Raises
    ------
    InvalidInputError
        If a pattern matches nothing, or a named module cannot be captured.
    """
    native = native_input_size(model)
    size = input_size or native
    actual = Places(Anatomy(calls or trace(model, size)))
    try:
        # At the native size no map has shrunk to one position, by which gates and embeddings are told from maps.
        places = actual if size == native else Places(Anatomy(trace(model, native)))
    except InvalidInputError:  # built for images of another size than its weights are
        places = actual
    chosen: dict[Hashable, Place] = {}
    # Where two hold the same tensor, names win over patterns and patterns over presets, but later stages look for
    # the embedding and the logits under their own names.
    for pattern in sorted(patterns, key=lambda p: (is_preset(p), is_glob(p))):
        for place in places.find(pattern):
            key = actual.key(place.tap)
            if key not in chosen or place.tap.name in (PRE_LOGITS, LOGITS):
                chosen[key] = place
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

    def pooler(self) -> Callable[[Tensor], Tensor]:
        """Return what makes (batch, feature) of a batch of captured tensors."""
        return partial(_pool, self, None)


@dataclass(frozen=True)
class PluginLayer(PlannedLayer):
    """A layer that another package's rule pools.

    Attributes
    ----------
    plugin : PluginSpec
        What pools it.
    """

    plugin: PluginSpec

    def pooler(self) -> Callable[[Tensor], Tensor]:
        return partial(_pool, self, load_rule(self.plugin))


def _pool(layer: PlannedLayer, rule: Pooling | None, tensor: Tensor) -> Tensor:
    return pool(tensor, layer.layout, layer.target_size, layer.cls_token, layer.n_prefix_tokens, rule)


def plan_pooling(name: str, target_sizes: Sequence[int], cls_token: ClsToken = "pooled") -> PoolingSpec:
    """Return a pooling rule by name.

    Parameters
    ----------
    name : str
        ``"average"``, the paper's, or that of an installed plug-in.
    target_sizes, cls_token
        As `PoolingSpec` has them.

    Raises
    ------
    InvalidInputError
        If there is no such rule.
    """
    found = find_plugin("pooling", name, (AVERAGE,))
    if found is None and name != AVERAGE:
        raise InvalidInputError(f"pooling {name!r} is unknown; {suggest(name, [AVERAGE, *plugin_names('pooling')])}")
    spec = None if found is None else found.spec
    return PoolingSpec(target_sizes=tuple(target_sizes), cls_token=cls_token, plugin=spec)


def load_rule(spec: PluginSpec) -> Pooling:
    """Return another package's pooling rule, of the very version that is asked for.

    Raises
    ------
    InvalidInputError
        If it is not installed, or is no rule.
    """
    plugin = require_installed("pooling", spec)
    plugin.require(isinstance(plugin.value, Pooling), "a pipeline.pooling.Pooling")
    rule: Pooling = plugin.value
    return rule


def plan_layers(
    model: nn.Module,
    taps: Sequence[TapSpec],
    pooling: PoolingSpec,
    input_size: tuple[int, int, int],
    calls: tuple[Call, ...] | None = None,
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
    calls : tuple of Call, optional
        As for `resolve_taps`.

    Returns
    -------
    tuple of PlannedLayer
        One per tap and target size.

    Raises
    ------
    InvalidInputError
        If the model does not take images of this size, a tap is not in it or cannot be pooled, or a plug-in that pools
        is not installed or breaks a promise of `pipeline.pooling.Pooling`.
    """
    rule = load_rule(pooling.plugin) if pooling.plugin else None
    calls = calls or trace(model, input_size)
    places, layouts = Places(Anatomy(calls)), Layouts(calls)
    layers = []
    for tap in taps:
        call = places.single_call(tap.module)
        value = places.usable(call, tap.point)
        layout = layouts.layout(value, call.finished, tap.name)
        shape = _folded(value) if layout == "tokens" else value.shape
        n_prefix = layouts.n_prefix_tokens(value) if layout == "tokens" else 0
        for target_size in pooling.target_sizes:
            name = tap.name if len(pooling.target_sizes) == 1 else f"{tap.name}@{target_size}"
            how = (layout, target_size, pooling.cls_token, n_prefix)
            if pooling.plugin and rule:
                with blamed("pooling", pooling.plugin):
                    check_pooling(rule, shape, *how)
            n_features = pooled_size(shape, *how, rule)
            one = PlannedLayer(name, tap, layout, shape, target_size, pooling.cls_token, n_prefix, n_features)
            layers.append(PluginLayer(**vars(one), plugin=pooling.plugin) if pooling.plugin else one)
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
        self._poolers = {layer.name: layer.pooler() for layer in self.layers}
        self._handles: list[RemovableHandle] = []
        self._keep: Callable[[PlannedLayer, Tensor], None] = self._refuse
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
        pooled: dict[str, Tensor] = {}

        def keep(layer: PlannedLayer, values: Tensor) -> None:
            pooled[layer.name] = values

        self._run(batch, keep)
        return {layer.name: pooled[layer.name] for layer in self.layers}

    def into(self, batch: Tensor, out: Tensor) -> None:
        """Run the model and write the features of all layers, one below the other, where they are wanted.

        Each layer is written as soon as it is pooled, so that only one is held besides `out`.

        Parameters
        ----------
        batch : Tensor
            As for calling the object.
        out : Tensor
            Shape (sum of `n_features`, batch), in the order of `layers`; any strides and floating type.
        """
        sizes = [layer.n_features for layer in self.layers]
        parts = dict(zip((layer.name for layer in self.layers), out.split(sizes), strict=True))

        def keep(layer: PlannedLayer, values: Tensor) -> None:
            # Rounding first, in one run, then moving halves: a third faster than both at once.
            parts.pop(layer.name).copy_(values.to(out.dtype).T)

        self._run(batch, keep)
        if parts:
            raise RuntimeError(f"the model did not run the modules of {', '.join(map(repr, parts))}")

    def _run(self, batch: Tensor, keep: Callable[[PlannedLayer, Tensor], None]) -> None:
        self._batch_size, self._keep = batch.shape[0], keep
        try:
            with torch.inference_mode():
                self.model(batch)
        finally:
            self._keep = self._refuse

    @staticmethod
    def _refuse(layer: PlannedLayer, values: Tensor) -> None:
        raise RuntimeError(f"the model was run other than by its capture, which holds {layer.name!r}")

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
        if layers[0].layout == "tokens":  # windows of an image may stand in two dimensions, or beside other images'
            tensor = tensor.reshape(self._batch_size, -1, tensor.shape[-1])
        for layer in layers:
            if tuple(tensor.shape[1:]) != layer.shape:
                raise InvalidInputError(
                    f"layer {layer.name!r} was planned for a shape of {layer.shape} per image and got "
                    f"{tuple(tensor.shape[1:])}; plan the layers with the size of the images that are processed."
                )
            self._keep(layer, self._poolers[layer.name](tensor))


def _folded(value: Value) -> tuple[int, int]:
    """Shape of the token sequence that a value with several rows or windows per image becomes."""
    *positions, channels = value.shape
    count = value.rows_per_image
    for size in positions:
        count *= size
    return count, channels
