"""Where in a traced network a value can be captured, and by what name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from timm.layers.drop import DropPath
from torch import nn

from pipeline.plugins import Plugin, blamed, find_plugin, plugin_names
from pipeline.presets import INPUT, LOGITS, PRE_LOGITS, Anatomy, block_values, head2toe_values
from pipeline.probing import Call, Value
from store.errors import InvalidInputError, suggest
from store.spec import TapSpec

PRESETS = ("head2toe", "blocks", "embedding", "logits", INPUT)

_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath, nn.Sequential, nn.ModuleList, nn.Flatten)


@dataclass(frozen=True)
class Place:
    """A tap and when in the forward pass it is captured."""

    when: int
    tap: TapSpec


class Places:
    """The places of a traced network, found by preset, by module name or pattern, or by the value they hold.

    Parameters
    ----------
    anatomy : Anatomy
        The network.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._calls: dict[str, list[Call]] = {}
        for call in anatomy.calls:
            self._calls.setdefault(call.name, []).append(call)
        self._names = [name for name, _ in anatomy.model.named_modules() if name]
        self._single = [calls[0] for name, calls in self._calls.items() if name and len(calls) == 1]

    def find(self, pattern: str) -> Iterator[Place]:
        """Yield the places that a preset, a tap's name, a module's name or a pattern on such names means.

        Raises
        ------
        InvalidInputError
            If there is none, or none that can be captured.
        """
        plugin = find_plugin("tap preset", pattern, (*PRESETS, PRE_LOGITS, *self._names))
        if plugin is not None:
            yield from self._from_outside(plugin)
        elif pattern in PRESETS:
            yield from self._preset(pattern)
        elif pattern == PRE_LOGITS:
            yield from self._preset("embedding")
        elif pattern in self._names:
            yield self._at(self.single_call(pattern), "output")
        elif pattern.removesuffix(".input") in self._names:
            yield self._at(self.single_call(pattern.removesuffix(".input")), "input")
        else:
            yield from self._glob(pattern)

    def _from_outside(self, plugin: Plugin) -> Iterator[Place]:
        plugin.require(callable(plugin.value), "a function from a model to names and patterns of taps")
        with blamed(plugin.kind, plugin.spec):
            patterns = plugin.value(self._anatomy.model)
            if isinstance(patterns, str) or not (patterns := list(patterns)):
                raise InvalidInputError("it gives no list of names and patterns of taps.")
            for pattern in patterns:
                if pattern in plugin_names("tap preset"):
                    raise InvalidInputError(f"it names the preset {pattern!r} of a plug-in; name taps instead.")
                yield from self.find(pattern)

    def single_call(self, name: str) -> Call:
        """Return the only call of a module; raise `InvalidInputError` if it runs never or more than once."""
        if name and name not in self._names:
            raise InvalidInputError(f"module {name!r} is not in the model; {suggest(name, self._names)}")
        calls = self._calls.get(name, [])
        if len(calls) != 1:
            how = f"runs {len(calls)} times in one forward pass" if calls else "does not run in a forward pass"
            raise InvalidInputError(f"module {name!r} {how} and cannot be captured; tap the module around it.")
        return calls[0]

    def key(self, tap: TapSpec) -> Hashable:
        """Return a key that is the same for all taps that hold the same tensor."""
        return self._anatomy.canonical(self.usable(self.single_call(tap.module), tap.point))

    def usable(self, call: Call, point: str) -> Value:
        """Return what `call` reads or gives; raise `InvalidInputError` if no features can be made of it."""
        value = call.input if point == "input" else call.output
        if value is None:
            reason = f"is a {call.output_type}, not a tensor" if point == "output" else "is not a tensor"
        else:
            reason = value.obstacle or ""
        if value is None or reason:
            raise InvalidInputError(
                f"the {point} of module {call.name!r} {reason} and cannot be captured; "
                f"tap a module inside or around it."
            )
        return value

    def _preset(self, preset: str) -> Iterator[Place]:
        embedding, logits = self._ends()
        if preset == "head2toe":
            ends = {self.key(place.tap) for place in (*embedding, *logits)}
            for value in head2toe_values(self._anatomy):
                if self._anatomy.canonical(value) not in ends:
                    yield from self._holding(value)
            yield from (*embedding, *logits)
        elif preset == "blocks":
            found = [place for value in block_values(self._anatomy) for place in self._holding(value)]
            if not found:
                raise InvalidInputError("preset 'blocks' finds no residual blocks or stages; give module names.")
            yield from found
        elif preset == INPUT:
            yield self._at(self._calls[""][0], "input", INPUT)
        else:
            places = embedding if preset == "embedding" else logits
            if not places:
                raise InvalidInputError(f"preset {preset!r} finds nothing: this model has no classifier.")
            yield from places

    def _ends(self) -> tuple[list[Place], list[Place]]:
        """Return the places of the embedding and of the logits; a model without classifier gives no logits."""
        whole = self._calls[""][0]
        heads = [call for call in self._anatomy.classifiers if call.input is not None and call.input.obstacle is None]
        if not heads and getattr(self._anatomy.model, "num_classes", False):
            raise InvalidInputError(
                f"{type(self._anatomy.model).__name__} has a classifier that timm does not name, so that its embedding "
                f"and logits cannot be told apart; give module names instead of presets."
            )
        if not heads or isinstance(heads[0].module, nn.Identity):
            return ([self._at(whole, "output", PRE_LOGITS)] if whole.output is not None else []), []
        embedding = [self._at(heads[0], "input", PRE_LOGITS)]
        embedding += [self._at(head, "input") for head in heads[1:]]
        return embedding, ([self._at(whole, "output", LOGITS)] if whole.output is not None else [])

    def _holding(self, value: Value) -> Iterator[Place]:
        """Yield the best place that holds `value`, if any does."""
        key = self._anatomy.canonical(value)
        outputs = [c for c in self._single if c.output is not None and self._anatomy.canonical(c.output) == key]
        outputs = [c for c in outputs if c.output is not None and c.output.obstacle is None]
        outputs = [c for c in outputs if not isinstance(c.module, nn.Conv1d)]
        if outputs:
            yield self._at(min(outputs, key=self._rank), "output")
            return
        for call in self._single:
            if isinstance(call.module, nn.Conv1d):
                continue  # its channels come before its positions, which no pooling rule covers
            if call.input is not None and call.input.key == value.key and call.input.obstacle is None:
                yield self._at(call, "input")
                return

    def _rank(self, call: Call) -> tuple[bool, int, int, int]:
        """Order names of one value: no mere pass-through, as few units as possible, then the outermost."""
        n_units = max(self._anatomy.n_units(call), 1)
        return isinstance(call.module, _TRANSPARENT), n_units, call.name.count("."), call.started

    def _glob(self, pattern: str) -> Iterator[Place]:
        names = fnmatch.filter(self._names, pattern)
        if not names:
            presets = [*PRESETS, *plugin_names("tap preset")]
            raise InvalidInputError(f"tap {pattern!r} matches no module; {suggest(pattern, [*presets, *self._names])}")
        refusals = []
        for name in names:
            try:
                yield self._at(self.single_call(name), "output")
            except InvalidInputError as error:
                refusals.append(error)
        if len(refusals) == len(names):
            raise refusals[0]

    def _at(self, call: Call, point: str, name: str | None = None) -> Place:
        self.usable(call, point)
        when = call.finished if point == "output" else call.started
        label = name or (call.name if point == "output" else f"{call.name}.input")
        if name is None and label in (PRE_LOGITS, LOGITS):
            label += ".output"  # a module of that name need not hold what the name stands for
        tap = TapSpec.model_validate(
            {"name": re.sub(r"[^A-Za-z0-9._-]", "_", label), "module": call.name, "point": point}
        )
        return Place(when, tap)


def is_preset(pattern: str) -> bool:
    """Whether `pattern` names taps by a rule: this package's or a plug-in's."""
    return pattern in PRESETS or pattern in plugin_names("tap preset")


def is_glob(pattern: str) -> bool:
    """Whether `pattern` holds shell-style wildcards."""
    return any(c in pattern for c in "*?[")
