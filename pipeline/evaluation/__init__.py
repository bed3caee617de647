"""Tasks × methods × seeds: a configuration of an evaluation, its run, and the results it leaves in the stores."""

from __future__ import annotations

from pipeline.evaluation.config import EvaluationConfig, MethodParameters, Overrides, TaskParameters
from pipeline.evaluation.registry import METHODS
from pipeline.evaluation.results import Outcome, Results, TaskResult
from pipeline.evaluation.running import Foreseen, evaluate, foresee_tasks, load_results

__all__ = [
    "METHODS",
    "EvaluationConfig",
    "Foreseen",
    "MethodParameters",
    "Outcome",
    "Overrides",
    "Results",
    "TaskParameters",
    "TaskResult",
    "evaluate",
    "foresee_tasks",
    "load_results",
]
