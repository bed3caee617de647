"""What a forward pass does, seen from outside: which modules run, in what order, on which tensors.

The pass runs on torch's meta device, which computes shapes and storages but no values. It therefore costs next to
nothing, needs no weights, and what it finds depends on the architecture alone: a model with random weights, one with
pretrained weights and one without any are all given the same taps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from store.errors import InvalidInputError

_COPYING = (torch.ops.aten.clone.default, torch.ops.aten.constant_pad_nd.default, torch.ops.aten.mean.dim)


@dataclass(frozen=True)
class Value:
    """A tensor met during the pass.

    Attributes
    ----------
    key : hashable
        Equal for two tensors that hold the same numbers: the same storage at the same moment, seen whole, or a copy
        of it. A permuted or reshaped view has the key of its base.
    shape : tuple of int
        Shape without the leading dimension.
    rows : int
        Size of the leading dimension.
    rows_per_image : int
        1 as a rule, more if windows of an image were moved into the leading dimension, 0 if that dimension does not
        grow with the batch.
    floating : bool
        Whether its type is a real floating-point one.
    transposed : bool
        Whether it is a view whose last dimension is not the contiguous one.
    """

    key: Hashable
    shape: tuple[int, ...]
    rows: int
    rows_per_image: int
    floating: bool
    transposed: bool

    @property
    def is_map(self) -> bool:
        """Whether there is more than one position per image, as in feature maps and token sequences."""
        if len(self.shape) == 3:
            return math.prod(self.shape) > max(self.shape[0], self.shape[2])
        return len(self.shape) == 2 and self.shape[0] > 1

    @property
    def obstacle(self) -> str | None:
        """Why no features per image can be made of it, or None."""
        if not self.floating:
            return "is not floating-point"
        if self.rows_per_image == 0:
            return "does not have the batch as its leading dimension"
        if not 1 <= len(self.shape) <= 3:
            return f"has {len(self.shape) + 1} dimensions"
        return None


@dataclass(frozen=True)
class Call:
    """One execution of a module.

    Attributes
    ----------
    name : str
        Dotted module name; empty for the whole model.
    module : Module
        The module that ran; it belongs to a copy of the model without weights.
    started, finished : int
        Position in the common order of starts and ends of all calls.
    input, output : Value or None
        First tensor argument and the result; None if there is none, or the result is no single tensor.
    output_type : str
        Type name of the result.
    """

    name: str
    module: nn.Module
    started: int
    finished: int
    input: Value | None
    output: Value | None
    output_type: str


def native_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return the (channels, height, width) in pixels the model was built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(built_for, tuple | list) and len(built_for) == 2:
        height, width = built_for
    return int(channels), int(height), int(width)


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor among a module's arguments, or None."""
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)


def trace(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> tuple[Call, ...]:
    """Run `model` without computing anything and record every module call.

    Parameters
    ----------
    model : Module
        Any image model, on any device; it is left as it was.
    input_size : tuple of int, optional
        (channels, height, width) in pixels; the model's own size if not given.

    Returns
    -------
    tuple of Call
        In the order in which they started; the first is the whole model.

    Raises
    ------
    InvalidInputError
        If the model cannot take an image of this size.
    """
    size = input_size or native_input_size(model)
    # Two batch sizes tell the batch dimension from one that is a multiple of it by chance.
    weightless = _weightless(model)
    two, three = _record(weightless, size, batch_size=2), _record(weightless, size, batch_size=3)
    if len(two) != len(three):
        raise InvalidInputError(
            f"{type(model).__name__} runs other modules on 2 images than on 3; it cannot be tapped."
        )
    return tuple(
        replace(a, input=_with_rows(a.input, b.input), output=_with_rows(a.output, b.output))
        for a, b in zip(two, three, strict=True)
    )


def _with_rows(two: Value | None, three: Value | None) -> Value | None:
    if two is None or three is None:
        return None
    grows = 3 * two.rows == 2 * three.rows and two.shape == three.shape
    return replace(two, rows_per_image=two.rows // 2 if grows else 0)


def _weightless(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device, in evaluation mode: nothing a forward pass caches can reach the original."""
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, copies).eval()


def _record(model: nn.Module, size: tuple[int, int, int], batch_size: int) -> list[Call]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    recorder = _Recorder()
    handles = recorder.attach(model)
    try:
        with torch.no_grad(), torch.device("meta"), recorder.copies:
            model(torch.empty(batch_size, *size, dtype=dtype))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        message = (
            f"{type(model).__name__} cannot process an image of {' x '.join(map(str, size))} "
            f"(channels x height x width): {reason}; choose another input size."
        )
        raise InvalidInputError(message) from error
    finally:
        for handle in handles:
            handle.remove()
    return sorted(recorder.calls, key=lambda call: call.started)


class _Copies(TorchDispatchMode):
    """Keys of tensors: the same for a tensor, its views and its copies, such as a map made contiguous or padded by 0.

    Tensors stay alive until the end so that no storage address is reused.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no annotations
        self._originals: dict[Hashable, Hashable] = {}
        self._alive: list[Tensor] = []

    def key(self, tensor: Tensor) -> Hashable:
        self._alive.append(tensor)
        key = (tensor.untyped_storage()._cdata, tensor._version, tensor.storage_offset(), tensor.numel())
        return self._originals.get(key, key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _COPYING:
            source = args[0]
            # A mean over one position copies, too; windows moved into the batch dimension are no image's whole.
            same_images = source.ndim > 0 and result.ndim > 0 and len(source) == len(result)
            if same_images and source.numel() == result.numel() and source.dtype == result.dtype:
                self._originals[self.key(result)] = self.key(source)
        return result


class _Recorder:
    """Hooks that note every call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.copies = _Copies()
        self._open: list[tuple[int, Value | None]] = []
        self._clock = 0

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))
        return handles

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._clock += 1
        self._open.append((self._clock, self._value(first_tensor(args, kwargs))))

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._clock += 1
            started, argument = self._open.pop()
            result = self._value(output if isinstance(output, Tensor) else None)
            self.calls.append(Call(name, module, started, self._clock, argument, result, type(output).__name__))

        return hook

    def _value(self, tensor: Tensor | None) -> Value | None:
        if tensor is None or tensor.ndim == 0:
            return None
        return Value(
            key=self.copies.key(tensor),
            shape=tuple(tensor.shape[1:]),
            rows=tensor.shape[0],
            rows_per_image=0,
            floating=tensor.is_floating_point(),
            transposed=tensor.ndim > 1 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1,
        )
