"""The Prefect flow `evaluation`: methods × tasks, as `pipeline.evaluation` does it."""

from __future__ import annotations

from multiprocessing import parent_process
from typing import Any

from prefect import flow, task

from flows import artifacts, logs
from flows.policy import HOUR, fail, run_name, stage_of, task_options, told
from pipeline.evaluation import EvaluationConfig, Results, evaluate
from store.spec import Frozen


class EvaluationRef(Frozen):
    """What an evaluation found, by store.

    Attributes
    ----------
    stores : dict of str to str
        URI of the store that keeps the results, by task.
    accuracy : dict of str to dict of str to float
        Test accuracy by task and method, as a share; what failed is missing.
    extracted : int
        Samples that went through a backbone.
    errors : tuple of str
        Why a task or a method failed.
    """

    stores: dict[str, str]
    accuracy: dict[str, dict[str, float]]
    extracted: int
    errors: tuple[str, ...]


@task(name="evaluate", **task_options(hours=72))
@stage_of("evaluation")
def evaluate_task(config: EvaluationConfig) -> EvaluationRef:
    """Evaluate all methods on all tasks; what is in the stores is read."""
    with artifacts.shown_progress() as progress:
        results = evaluate(config, _announce, progress)
    artifacts.show_evaluation(_rows(results))
    found = EvaluationRef(
        stores={r.task.name: r.store["uri"] for r in results.tasks if r.store},
        accuracy={
            r.task.name: {m: s.mean for m in config.methods if (s := results.accuracy(r, m)) is not None}
            for r in results.tasks
        },
        extracted=sum(r.extracted for r in results.tasks),
        errors=tuple(results.errors),
    )
    logs.note(tasks=len(results.tasks), extracted=found.extracted, errors=len(found.errors))
    return found


@flow(name="evaluation", flow_run_name=run_name, timeout_seconds=72 * HOUR, persist_result=False)
@told
def evaluation(config: EvaluationConfig) -> EvaluationRef:
    """Compare methods on many tasks: folds choose each method's settings, the test samples are asked once."""
    found = evaluate_task(config)
    fail(found.errors)
    return found


def _announce(sentence: str) -> None:
    if parent_process() is not None:
        # A process of its own for a task, which Prefect does not know; its logs go to standard error alone.
        logs.configure(None, "info")
    logs.log(sentence)


def _rows(results: Results) -> list[dict[str, Any]]:
    methods = list(results.config.methods)
    rows = [
        {"task": r.task.name, "group": r.task.group, **{m: _percent(results.accuracy(r, m)) for m in methods}}
        for r in results.tasks
    ]
    return [*rows, {"task": "mean over tasks", "group": "", **{m: _percent(results.mean(m)) for m in methods}}]


def _percent(summary: Any) -> str:
    return "–" if summary is None else f"{100 * summary.mean:.1f}"
