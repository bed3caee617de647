"""What an evaluation is: tasks, the backbone, methods with their grids, and the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from pipeline.evaluation.registry import find_kind
from pipeline.evaluation.suites import find_suite
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.folds import ProtocolParameters
from store.errors import InvalidInputError, suggest
from store.spec import Frozen


class Overrides(ExtractionParameters):
    """Extraction parameters of which any may be left open; `data` is what a task says."""

    backbone: str = ""
    data: str = ""

    @model_validator(mode="after")
    def _leaves_data_to_tasks(self) -> Self:
        # Not a ValueError, so that pydantic lets it through to the user as it is.
        if self.data:
            raise InvalidInputError(f"extraction has data {self.data!r}, but data is what tasks or a suite say.")
        return self

    def given(self) -> dict[str, Any]:
        """Return what is not left open."""
        return self.model_dump(exclude_unset=True)


class TaskParameters(Frozen):
    """A task.

    Attributes
    ----------
    name : str
        What tables call it.
    data : str
        See `pipeline.datasets.load_data`.
    group : str
        Such as VTAB's ``natural``; means are also taken over the means of groups.
    classes : int, optional
        How many classes the data must have.
    extraction : Overrides
        What differs from the extraction of other tasks, such as `data_root` or `splits`.
    """

    name: Annotated[str, Field(min_length=1)]
    data: str
    group: str = ""
    classes: Annotated[int, Field(ge=2)] | None = None
    extraction: Overrides = Overrides()


class MethodParameters(Frozen):
    """A method, and beside its name the options that `pipeline.evaluation.registry` finds in its class.

    Attributes
    ----------
    method : str
        One of `pipeline.evaluation.registry.METHODS`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str

    @property
    def options(self) -> dict[str, Any]:
        """What is given beside the method's name."""
        return dict(self.model_extra or {})


class EvaluationConfig(Frozen):
    """Everything that `pipeline.evaluation.evaluate` needs.

    Attributes
    ----------
    root : str
        Folder or URL under which stores lie; they keep all results.
    suite : str, optional
        ``offline`` or ``vtab1k``, whose tasks come before `tasks`.
    data_root : str, optional
        The folder that holds those of ``vtab1k``.
    tasks : tuple of TaskParameters
        More tasks, or all of them.
    extraction : Overrides
        Backbone, weights and taps of all tasks.
    control : Overrides, optional
        What differs for the second backbone of the method ``control``; only its embedding is extracted.
    methods : dict of str to MethodParameters
        By the names that tables have.
    protocol : ProtocolParameters
        How settings are chosen; its seed is each of `seeds`.
    seeds : tuple of int
        Of the folds and whatever is drawn.
    jobs : int
        Processes that take a task each.

    Raises
    ------
    InvalidInputError
        If there is no task or method, a name occurs twice, or values contradict each other.
    """

    root: str = "head2toe-data"
    suite: str | None = None
    data_root: str | None = None
    tasks: tuple[TaskParameters, ...] = ()
    extraction: Overrides = Overrides()
    control: Overrides | None = None
    methods: dict[str, MethodParameters]
    protocol: ProtocolParameters = ProtocolParameters()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    jobs: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [task.name for task in self.all_tasks]
        if not names or not self.methods:
            what, example = ("task", "suite: offline") if not names else ("method", "Linear: {method: linear}")
            raise InvalidInputError(f"there is no {what} to evaluate; give at least one, such as {example}.")
        if twice := {name for name in names if names.count(name) > 1}:
            raise InvalidInputError(f"task {min(twice)!r} occurs twice; every task needs a name of its own.")
        if "seed" in self.protocol.model_fields_set or len(set(self.seeds)) < len(self.seeds):
            raise InvalidInputError("seeds of the protocol are given as seeds: [0, 1, …], each once.")
        for task in self.all_tasks:
            if not (self.extraction.backbone or task.extraction.backbone):
                raise InvalidInputError(f"task {task.name!r} has no backbone; give extraction.backbone.")
        for name, parameters in self.methods.items():
            kind = find_kind(parameters.method)
            kind.check_names(name, parameters.options)
            if kind.needs_control and self.control is None:
                raise InvalidInputError(
                    f"method {name!r} needs a second backbone; give control.backbone and its weights."
                )
        return self

    @property
    def all_tasks(self) -> tuple[TaskParameters, ...]:
        """The suite's tasks, and those given."""
        suite = {} if self.suite is None else find_suite(self.suite, self.data_root)
        return (*(TaskParameters(name=name, **entry._asdict()) for name, entry in suite.items()), *self.tasks)

    def extraction_of(self, task: TaskParameters, *, control: bool = False) -> ExtractionParameters:
        """Return what is extracted for a task: all taps, or the embedding of the second backbone."""
        given = {**self.extraction.given(), **task.extraction.given()}
        if control and self.control is not None:
            given |= {"taps": ("embedding",), "exclude": (), "target_sizes": (512,), **self.control.given()}
        return ExtractionParameters.model_validate({**given, "data": task.data})

    def only(self, tasks: Sequence[str] = (), methods: Sequence[str] = ()) -> EvaluationConfig:
        """Return the same of some tasks and methods; none named is all.

        Raises
        ------
        InvalidInputError
            If there is no such task or method; near matches are named.
        """
        found = {task.name: task for task in self.all_tasks}
        for what, asked, known in (("task", tasks, list(found)), ("method", methods, list(self.methods))):
            for name in asked:
                if name not in known:
                    raise InvalidInputError(
                        f"{what} {name!r} is not in the configuration; {suggest(name, known, len(known))}"
                    )
        chosen = {
            "suite": None,
            "data_root": None,
            "tasks": tuple(task for name, task in found.items() if name in (tasks or found)),
            "methods": {name: self.methods[name] for name in self.methods if name in (methods or self.methods)},
        }
        return EvaluationConfig.model_validate({**{f: getattr(self, f) for f in self.model_fields_set}, **chosen})
