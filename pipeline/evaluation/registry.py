"""Methods by name: what makes each, and which parameters come from the task instead of from the configuration.

The parameters of its class are a method's options, but for the store, its name, its memory and what an entry here says
where to get; so a new method is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

from pydantic import BaseModel, create_model

from pipeline.backbones import Backbone
from pipeline.datasets import ImageData
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.methods import AllLayers, FineTuning, Head2Toe, Linear, Method, Oracle, Scratch, control
from pipeline.planning import Plan, plan_extraction
from store.activations import ActivationStore
from store.errors import InvalidInputError, suggest
from store.spec import Frozen

NO_OPTIONS = ("store", "name", "memory")


@dataclass(frozen=True)
class Context:
    """What a method may need of a task besides its activations; got when it is asked for.

    Attributes
    ----------
    root : str
        Where stores lie.
    extraction : ExtractionParameters
        What the task's store was made with.
    open_control : callable
        Returns the store of the second backbone's embeddings.
    """

    root: str
    extraction: ExtractionParameters
    open_control: Callable[[], ActivationStore]

    @cached_property
    def plan(self) -> Plan:
        """The task's images, as they were taken in, and the backbone."""
        return plan_extraction(self.extraction, self.root)

    @property
    def data(self) -> ImageData:
        """The images of the store's samples."""
        return self.plan.data

    @property
    def backbone(self) -> Backbone:
        """The backbone, with its weights."""
        return self.plan.backbone


@dataclass(frozen=True)
class Kind:
    """How a method is made.

    Attributes
    ----------
    make : callable
        Its class, or a function that returns it; the first parameter is the store.
    inputs : mapping of str to callable
        Parameters that the context gives.
    fixed : mapping of str to object
        Parameters that are part of what the method is.
    counted : type or None
        The dataclass whose grid it has, if that is a matter of options alone.
    """

    make: Callable[..., Method]
    inputs: Mapping[str, Callable[[Context], Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    counted: type[Any] | None = None

    @property
    def needs_control(self) -> bool:
        """Whether there must be a second backbone."""
        return _control in self.inputs.values()

    @cached_property
    def options(self) -> type[BaseModel]:
        """Model of the options, with the types and defaults of the parameters."""
        taken = {*NO_OPTIONS, *self.inputs, *self.fixed}
        chosen: dict[str, Any] = {
            name: (parameter.annotation, parameter.default)
            for name, parameter in signature(self.make, eval_str=True).parameters.items()
            if name not in taken
        }
        return create_model("Options", __base__=Frozen, **chosen)

    def check_names(self, method: str, options: Mapping[str, Any]) -> None:
        """Refuse options that the class does not have.

        Raises
        ------
        InvalidInputError
            If there is one; near matches are named.
        """
        for name in options:
            if name not in self.options.model_fields:
                raise InvalidInputError(
                    f"option {name!r} of method {method!r} is unknown; {suggest(name, self.options.model_fields, 20)}"
                )

    def arguments(self, options: Mapping[str, Any], extraction: ExtractionParameters) -> dict[str, Any]:
        """Return fields by name: the options that are given, and all target sizes stored if none is given.

        Raises
        ------
        pydantic.ValidationError
            If a value is not valid.
        """
        found = self.options.model_validate(dict(options))
        chosen = {name: getattr(found, name) for name in found.model_fields_set}
        if "target_sizes" in self.options.model_fields and len(extraction.target_sizes) > 1:
            chosen.setdefault("target_sizes", extraction.target_sizes)
        return {**chosen, **self.fixed}

    def build(self, store: ActivationStore, context: Context, options: Mapping[str, Any]) -> Method:
        """Return the method on a task.

        Raises
        ------
        Head2ToeError
            If what it needs is not there.
        """
        inputs = {name: get(context) for name, get in self.inputs.items()}
        return self.make(store=store, **inputs, **self.arguments(options, context.extraction))

    def count_settings(self, options: Mapping[str, Any], extraction: ExtractionParameters) -> int | None:
        """Return how many settings the grid has, if that can be told without a store.

        Raises
        ------
        InvalidInputError, pydantic.ValidationError
            If a value is not valid.
        """
        arguments = self.arguments(options, extraction)
        if self.counted is None:
            return None
        if not self.inputs:
            return sum(len(batch) for batch in self.make(store=None, **arguments).grid)
        # Images and backbones are not at hand, and their grids do not ask for them.
        shape = object.__new__(self.counted)
        for name, value in arguments.items():
            object.__setattr__(shape, name, value)
        return sum(len(batch) for batch in shape.grid)


def _control(context: Context) -> ActivationStore:
    return context.open_control()


_TRAINED: dict[str, Callable[[Context], Any]] = {"data": lambda c: c.data, "backbone": lambda c: c.backbone}

METHODS: dict[str, Kind] = {
    "linear": Kind(Linear, counted=Linear),
    "head2toe": Kind(Head2Toe, counted=Head2Toe),
    "all_layers": Kind(AllLayers, counted=AllLayers),
    "oracle": Kind(Oracle),
    "control": Kind(control, {"second": _control}, counted=Linear),
    "fine_tuning": Kind(FineTuning, _TRAINED, counted=FineTuning),
    "scratch": Kind(Scratch, _TRAINED, counted=Scratch),
}


def find_kind(name: str) -> Kind:
    """Return the kind of method of a name.

    Raises
    ------
    InvalidInputError
        If there is none; near matches are named.
    """
    if name not in METHODS:
        raise InvalidInputError(f"method {name!r} is unknown; {suggest(name, METHODS, len(METHODS))}")
    return METHODS[name]
