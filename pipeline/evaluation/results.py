"""What an evaluation found: accuracies by method, task and seed, both kinds of mean, and paired comparisons."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from pipeline.comparison import Comparison, compare
from pipeline.evaluation.config import EvaluationConfig, TaskParameters
from pipeline.protocol import Evaluation

PACKAGES = ("head2toe-store", "torch", "timm", "numpy", "scikit-learn")
REFERENCE = "head2toe"


class Summary(NamedTuple):
    """A mean over seeds, and the standard deviation over them (division by n − 1), None of one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Outcome:
    """A method on a task with a seed.

    Attributes
    ----------
    method : str
        Its name in the configuration.
    seed : int
        Of the protocol.
    evaluation : Evaluation or None
        What it achieves; None if it failed or is not computed yet.
    error : str
        Why it failed, in a sentence, or empty.
    """

    method: str
    seed: int
    evaluation: Evaluation | None
    error: str = ""


@dataclass(frozen=True)
class TaskResult:
    """A task.

    Attributes
    ----------
    task : TaskParameters
        Which.
    store : dict
        ``uri``, ``fingerprint``, ``bytes``, ``layers``, ``features``, ``classes``, ``samples`` by split and
        ``extraction_seconds``; empty if there is no store.
    outcomes : tuple of Outcome
        By method and seed.
    extracted : int
        Samples that went through the backbone in this run.
    error : str
        Why the task as a whole failed, or empty.
    """

    task: TaskParameters
    store: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    extracted: int = 0
    error: str = ""


@dataclass(frozen=True)
class Results:
    """All of an evaluation.

    Attributes
    ----------
    config : EvaluationConfig
        What was asked for.
    tasks : tuple of TaskResult
        In the order of the configuration.
    """

    config: EvaluationConfig
    tasks: tuple[TaskResult, ...]

    def evaluations(self, task: TaskResult, method: str) -> list[Evaluation]:
        """Return what a method achieves on a task, by seed; empty unless all seeds are there."""
        found = [o.evaluation for o in task.outcomes if o.method == method and o.evaluation is not None]
        return found if len(found) == len(self.config.seeds) else []

    def accuracy(self, task: TaskResult, method: str) -> Summary | None:
        """Return a method's test accuracy on a task, None unless all seeds are there."""
        return _summary([e.accuracy for e in self.evaluations(task, method)])

    def mean(self, method: str) -> Summary | None:
        """Return a method's mean accuracy over all tasks, None unless all are there."""
        return self._mean(method, [list(self.tasks)])

    def mean_of_groups(self, method: str) -> Summary | None:
        """Return the mean of a method's mean accuracies over groups of tasks, None unless all are there."""
        return self._mean(method, list(self.groups().values()))

    def groups(self) -> dict[str, list[TaskResult]]:
        """Return tasks by group."""
        names = dict.fromkeys(result.task.group for result in self.tasks)
        return {name: [result for result in self.tasks if result.task.group == name] for name in names}

    def _mean(self, method: str, groups: Sequence[Sequence[TaskResult]]) -> Summary | None:
        found = [[self.evaluations(task, method) for task in group] for group in groups]
        if not all(evaluations for group in found for evaluations in group):
            return None
        seeds = range(len(self.config.seeds))
        return _summary([float(np.mean([np.mean([e[s].accuracy for e in group]) for group in found])) for s in seeds])

    @property
    def reference(self) -> str | None:
        """The method that others are compared with: the first Head2Toe."""
        return next((name for name, p in self.config.methods.items() if p.method == REFERENCE), None)

    def comparison(self, task: TaskResult | None, other: str) -> Comparison | None:
        """Compare the reference with another method on the test samples of a task, or of all; of the first seed.

        Returns
        -------
        Comparison or None
            None unless both are there.
        """
        tasks = self.tasks if task is None else (task,)
        pairs = [(self.evaluations(one, self.reference or ""), self.evaluations(one, other)) for one in tasks]
        if not all(ours and theirs for ours, theirs in pairs):
            return None
        ours, theirs = (np.concatenate([pair[side][0].hits for pair in pairs]) for side in (0, 1))
        return compare(ours, theirs)

    @property
    def others(self) -> list[str]:
        """The methods that the reference is compared with."""
        return [name for name in self.config.methods if self.reference is not None and name != self.reference]

    @property
    def errors(self) -> list[str]:
        """What failed: a sentence per task, or per task and method."""
        whole = [f"{result.task.name}: {result.error}" for result in self.tasks if result.error]
        parts = [(f"{r.task.name} · {o.method}", o.error) for r in self.tasks for o in r.outcomes if o.error]
        return [*whole, *(f"{who}: {error}" for who, error in dict.fromkeys(parts))]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a flat row for every result there is: what `table` writes."""
        for result in self.tasks:
            for outcome in result.outcomes:
                if (found := outcome.evaluation) is not None:
                    yield {
                        "task": result.task.name,
                        "group": result.task.group,
                        "method": outcome.method,
                        "seed": outcome.seed,
                        "accuracy": found.accuracy,
                        "validation_accuracy": found.validation_accuracy,
                        "search_seconds": found.seconds["search"],
                        "final_seconds": found.seconds["final"],
                        "extraction_seconds": result.store["extraction_seconds"],
                        "bytes": result.store["bytes"],
                        "digest": found.digest,
                    }

    def table(self) -> str:
        """Return all rows as CSV."""
        rows, text = list(self.rows()), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["task", "method", "seed", "accuracy"])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "config": self.config.model_dump(mode="json", exclude_unset=True),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "summary": {
                method: {
                    "mean": _plain(self.mean(method)),
                    "mean_of_groups": _plain(self.mean_of_groups(method)),
                    "groups": {name: _plain(self._mean(method, [g])) for name, g in self.groups().items()},
                }
                for method in self.config.methods
            },
            "reference": self.reference,
            "comparisons": {other: _plain(self.comparison(None, other)) for other in self.others},
            "tasks": [self._task(result) for result in self.tasks],
            "errors": self.errors,
        }

    def _task(self, result: TaskResult) -> dict[str, Any]:
        return {
            "name": result.task.name,
            "group": result.task.group,
            "data": result.task.data,
            "store": result.store,
            "extracted": result.extracted,
            "error": result.error,
            "accuracy": {method: _plain(self.accuracy(result, method)) for method in self.config.methods},
            "comparisons": {other: _plain(self.comparison(result, other)) for other in self.others},
            "outcomes": [_outcome(outcome) for outcome in result.outcomes],
        }


def _summary(values: Sequence[float]) -> Summary | None:
    if not values:
        return None
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _plain(value: Summary | Comparison | None) -> dict[str, Any] | None:
    return None if value is None else value._asdict()


def _outcome(outcome: Outcome) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": outcome.method, "seed": outcome.seed, "error": outcome.error}
    if (found := outcome.evaluation) is not None:
        names = ("accuracy", "validation_accuracy", "settings", "seconds", "facts", "digest", "reused", "points")
        facts |= {name: getattr(found, name) for name in names}
    return facts
