"""Which tensors of a network are worth keeping: the presets, found from one traced forward pass.

The paper (Evci et al. 2022, appendix) lists its taps for two networks: for a ResNet the activation that enters each
convolution, the pooled embedding and the logits; for a ViT the embedded patches, in each block the normalized input of
the attention, its output, the hidden activation of the MLP and its output, then the final sequence, the embedding and
the logits. One rule covers both and every other timm family:

* what a convolution, a stray linear layer or a spatial pooling reads;
* what an attention reads and what it gives;
* the hidden activation of an MLP, what it gives and, if a convolution made it, what it reads;
* for token models, the embedded patches before the first block;
* the last map, what the classifier reads (`pre_logits`) and what the model gives (`logits`).

Left out are pixels, encodings of positions, gates such as squeeze-and-excitation, which work on a pooled vector in
the middle of the network, and the insides of an MLP over transposed tokens, which has no positions left to pool over.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import Literal

from torch import nn

from pipeline.probing import Call, Value

PRE_LOGITS = "pre_logits"
LOGITS = "logits"
INPUT = "input"

_ATTENTION = re.compile(r"Attention|Attn|MHSA|SHSA|SHMA|XCA|GPSA|LiteMLA|FocalModulation|HSMSSD|LSTM2d")
_MLP = re.compile(r"Mlp|FFN|SwiGLU")
_NOT_MLP = re.compile(r"Head")
_POSITIONS = re.compile(r"PositionalEncoding|RelPos(Bias|Mlp)")
_POOL = re.compile(r"(?<!Blur)Pool")
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
_WEIGHTS = (*_CONV, nn.Linear)
_RAW = (*_CONV, nn.BatchNorm2d)
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")

Kind = Literal["weight", "pool", "attention", "mlp"]


class Anatomy:
    """A traced network cut into units: convolutions and linear layers, poolings, attentions and MLPs.

    Parameters
    ----------
    calls : tuple of Call
        The trace.

    Attributes
    ----------
    model : Module
        The network, without weights.
    units : list of (str, Call)
        Kind and call of every unit, in order. An attention or MLP is one unit, whatever it is made of.
    """

    def __init__(self, calls: tuple[Call, ...]) -> None:
        self.model = calls[0].module
        self.calls = calls
        self.units = list(self._units())
        self._weighted = [unit.started for kind, unit in self.units if kind != "pool"]
        self._repeats = self._find_repeats()

    def canonical(self, value: Value) -> Hashable:
        """Return the key of the value that this one repeats, or its own.

        A mean over a single position repeats what it reads; an activation repeats what an equal activation made of
        the same value.
        """
        return self._repeats.get(value.key, value.key)

    def _find_repeats(self) -> dict[Hashable, Hashable]:
        repeats: dict[Hashable, Hashable] = {}
        results: dict[tuple[str, Hashable], Hashable] = {}
        for call in sorted(self.calls, key=lambda c: c.finished):
            if call.input is None or call.output is None or call.input.key == call.output.key:
                continue
            source = repeats.get(call.input.key, call.input.key)
            if _pools_nothing(call.module, call.input, call.output):
                repeats[call.output.key] = source
            elif type(call.module).__module__ in _ACTIVATIONS and not _has_weights(call.module):
                first = results.setdefault((type(call.module).__name__, source), call.output.key)
                if first != call.output.key:
                    repeats[call.output.key] = first
        return repeats

    def _units(self) -> Iterator[tuple[Kind, Call]]:
        named = [call for call in self.calls if call.name]
        mlps = [call for call in named if _is_mlp(call.module) and call.input is not None and call.input.rows_per_image]
        # A network over tokens of one number each, which any norm makes constant, is part of a gate over positions.
        mlps = [call for call in mlps if call.input is not None and call.input.shape[1:] != (1,)]
        attentions = [
            call for call in named if _is_attention(call.module) and not any(_encloses(call, mlp) for mlp in mlps)
        ]
        kinds: dict[int, Kind] = dict.fromkeys((c.started for c in mlps), "mlp")
        kinds |= dict.fromkeys((c.started for c in attentions), "attention")
        busy_until = 0
        for call in self.calls:
            if call.started < busy_until:
                continue
            if _POSITIONS.search(type(call.module).__name__):
                busy_until = call.finished
                continue
            if call.started in kinds:
                busy_until = call.finished
                yield kinds[call.started], call
            elif isinstance(call.module, _WEIGHTS):
                yield "weight", call
            elif _POOL.search(type(call.module).__name__):
                yield "pool", call

    @cached_property
    def classifiers(self) -> list[Call]:
        """Calls of the classification layers timm names; of a head that pools first, of its linear layers."""
        get = getattr(self.model, "get_classifier", None)
        found = get() if callable(get) else None
        layers = found if isinstance(found, tuple | list | nn.ModuleList) else [found]
        calls = [call for call in self.calls if any(call.module is layer for layer in layers)]
        pooling = [call for call in calls if call.input is not None and call.input.is_map]
        linear = [c for call in pooling for c in self.inside(call) if isinstance(c.module, nn.Linear)]
        return [call for call in calls if call not in pooling] + linear

    @cached_property
    def last_map(self) -> Call | None:
        """The call that gives the last value with positions, before they are pooled away."""
        compounds = [unit for kind, unit in self.units if kind in ("attention", "mlp")]
        candidates = [
            call
            for call in self.calls
            if call.output is not None and call.output.obstacle is None and call.output.is_map
        ]
        outside = [call for call in candidates if not any(_encloses(unit, call) for unit in compounds)]
        return max(outside, key=lambda call: call.finished, default=None)

    def inside(self, call: Call) -> list[Call]:
        """Return the calls made during `call`."""
        return [other for other in self.calls if _encloses(call, other)]

    def n_units(self, call: Call) -> int:
        """Return how many units with weights `call` is or contains."""
        return bisect_right(self._weighted, call.finished) - bisect_left(self._weighted, call.started)

    def reads_pixels(self, call: Call) -> bool:
        """Whether `call` reads the image, or a resized or rearranged copy of it."""
        image = self.calls[0].input
        first = next((unit for kind, unit in self.units if kind == "weight"), None)
        if call is first or call.input is None or image is None:
            return True
        return call.input.key == image.key or (len(call.input.shape) == 3 and call.input.shape[0] == image.shape[0])


def head2toe_values(anatomy: Anatomy) -> list[Value]:
    """Return the values of preset ``head2toe`` in no particular order; the same one may occur more than once."""
    found: list[Value | None] = []
    last_map = anatomy.last_map
    pooled_from = last_map.finished if last_map is not None else 0
    previous: Kind | None = None
    for kind, call in anatomy.units:
        if kind in ("weight", "pool"):
            gate = call.input is not None and not call.input.is_map and (kind == "pool" or call.started < pooled_from)
            if not gate and not anatomy.reads_pixels(call):
                found.append(call.input)
        elif kind == "attention":
            found += [_unfolded_input(anatomy, call), _unfolded_output(anatomy, call)]
        elif call.input is not None and len(call.input.shape) == 2 and call.input.transposed:
            found.append(call.input)
            kind = "weight"
        else:
            layers = [inner for inner in anatomy.inside(call) if isinstance(inner.module, _WEIGHTS)]
            found += [layers[-1].input if layers else None, _unfolded_output(anatomy, call)]
            if previous in ("weight", "pool"):
                found.append(_unfolded_input(anatomy, call))
        previous = kind
    found += _embeddings(anatomy)
    found.append(last_map.output if last_map is not None else None)
    return [value for value in found if value is not None and value.obstacle is None]


def block_values(anatomy: Anatomy) -> list[Value]:
    """Return the outputs of the residual blocks: the innermost numbered modules with at least two units.

    Networks without such modules give their stages, as listed by timm's `feature_info`.
    """
    for numbered in (re.compile(r"(^|\.)\d+$"), re.compile(r"\d+$")):
        blocks = [call for call in anatomy.calls if numbered.search(call.name) and anatomy.n_units(call) > 1]
        blocks = [call for call in blocks if not any(_encloses(call, other) for other in blocks)]
        if blocks:
            break
    else:
        info = getattr(anatomy.model, "feature_info", None) or []
        stages = {stage["module"] for stage in info}
        blocks = [call for call in anatomy.calls if call.name in stages]
    return [call.output for call in blocks if call.output is not None and call.output.obstacle is None]


def _embeddings(anatomy: Anatomy) -> list[Value | None]:
    """Return the outputs of the modules that run before the first attention or MLP, beside the numbered blocks."""
    first = next((call for kind, call in anatomy.units if kind in ("attention", "mlp")), None)
    if first is None:
        return []
    outer = re.split(r"(?:^|\.)\d+(?:\.|$)", first.name)[0].split(".")
    parents = {".".join(outer[:depth]) for depth in range(len(outer) + 1)}
    return [
        call.output
        for call in anatomy.calls
        if call.finished < first.started
        and call.name.rpartition(".")[0] in parents
        and not isinstance(call.module, _RAW)
        and not _POSITIONS.search(type(call.module).__name__)
        and call.output is not None
        and call.output.is_map
    ]


def _unfolded_input(anatomy: Anatomy, call: Call) -> Value | None:
    """Return the input of a unit or, if windows were just moved into the batch dimension, the value before that."""
    if call.input is None or call.input.rows_per_image == 1:
        return call.input
    before = [c for c in anatomy.calls if c.finished < call.started and c.output is not None and c.output.is_map]
    latest = max(before, key=lambda c: c.finished).output if before else None
    return latest if _is_whole(latest) else call.input


def _unfolded_output(anatomy: Anatomy, call: Call) -> Value | None:
    """Return the output of a unit or, if it is windows or a tuple, what the next module beside it reads."""
    if call.output is not None and call.output.rows_per_image == 1:
        return call.output
    parent = call.name.rpartition(".")[0]
    after = [c for c in anatomy.calls if c.started > call.finished and c.name.rpartition(".")[0] == parent]
    following = min(after, key=lambda c: c.started).input if after else None
    return following if _is_whole(following) else call.output


def _is_whole(value: Value | None) -> bool:
    return value is not None and value.obstacle is None and value.rows_per_image == 1


def _encloses(outer: Call, inner: Call) -> bool:
    return outer.started < inner.started and inner.finished < outer.finished


def _pools_nothing(module: nn.Module, before: Value, after: Value) -> bool:
    pools = bool(_POOL.search(type(module).__name__)) and not _has_weights(module)
    return pools and not before.is_map and math.prod(before.shape) == math.prod(after.shape)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_mlp(module: nn.Module) -> bool:
    name = type(module).__name__
    return bool(_MLP.search(name)) and not _NOT_MLP.search(name) and _has_weights(module)


def _is_attention(module: nn.Module) -> bool:
    return bool(_ATTENTION.search(type(module).__name__)) and _has_weights(module)
