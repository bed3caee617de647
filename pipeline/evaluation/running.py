"""The run: each task's store, then each method and seed on it; tasks in processes of their own if there are several.

Everything that is computed is kept in the stores at once, so a run that was stopped goes on, and a run that was
finished is read. What fails for one method or one task does not stop the others.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from pipeline.compute import Progress, share_cores
from pipeline.evaluation.config import EvaluationConfig, MethodParameters, TaskParameters
from pipeline.evaluation.registry import Context, find_kind
from pipeline.evaluation.results import Outcome, Results, TaskResult
from pipeline.extraction import extract, foresee
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.forecast import Forecast
from pipeline.planning import plan_extraction
from pipeline.protocol import Evaluation, cross_validate
from store.activations import ActivationStore, open_store
from store.errors import Head2ToeError, InterruptedExtractionError, InvalidInputError, StoreNotFoundError

Announce = Callable[[str], None]


class _NotComputed(Exception):
    """A result is not in the store, and nothing is to be computed."""


def evaluate(config: EvaluationConfig, announce: Announce, progress: Progress | None = None) -> Results:
    """Evaluate all methods on all tasks with all seeds; what is in the stores is read.

    Parameters
    ----------
    config : EvaluationConfig
        What to evaluate.
    announce : callable
        Called with sentences on the work, by several processes if `config.jobs` asks for them: a function of a module.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` if there is one process.

    Returns
    -------
    Results
        With the reasons of whatever failed.

    Raises
    ------
    InterruptedExtractionError, KeyboardInterrupt
        If the user stops it; what was computed stays.
    Head2ToeError
        If a process ends unexpectedly.
    """
    return _run(config, partial(_evaluate_task, config, announce=announce), progress)


def load_results(config: EvaluationConfig) -> Results:
    """Return what the stores hold of an evaluation; nothing is computed or written.

    Images and weights are looked at, because they say which store is meant.
    """
    # In this process, whatever `jobs` says: a notebook, or a script without a `__main__`, cannot start others.
    tasks = (_evaluate_task(config, task, announce=None, progress=None) for task in config.all_tasks)
    return Results(config, tuple(tasks))


@dataclass(frozen=True)
class Foreseen:
    """What an evaluation will do for a task.

    Attributes
    ----------
    task : str
        Its name.
    forecast : Forecast or None
        Of its extraction; None if that cannot be.
    plans : dict of str to list of str
        Of each method and seed a sentence on its grid and what is stored of it; empty before the extraction.
    fits : dict of str to int or None
        Fits of each method's grid on all folds for all seeds, stored or not; None if that depends on the store.
    error : str
        Why it cannot be evaluated, or empty.
    """

    task: str
    forecast: Forecast | None
    plans: dict[str, list[str]]
    fits: dict[str, int | None]
    error: str = ""


def foresee_tasks(config: EvaluationConfig, progress: Progress | None = None) -> list[Foreseen]:
    """Return what `evaluate` would do; nothing is written."""
    return [_foresee_task(config, task, progress) for task in config.all_tasks]


def _naming(task: TaskParameters, progress: Progress | None) -> Progress | None:
    """Return a progress callback whose stages say of which task they are."""
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"{task.name}: {stage}", done, total)


def _foresee_task(config: EvaluationConfig, task: TaskParameters, progress: Progress | None) -> Foreseen:
    extraction = config.extraction_of(task)
    counts = {name: find_kind(p.method).count_settings(p.options, extraction) for name, p in config.methods.items()}
    each = config.protocol.folds * len(config.seeds)
    fits = {name: None if count is None else count * each for name, count in counts.items()}
    try:
        forecast = foresee(extraction, config.root, _naming(task, progress))
        plans = {}
        if not forecast.left:
            store = open_store(forecast.uri)
            _check_classes(task, store)
            for name, parameters in config.methods.items():
                plans[name] = [_plan(config, task, store, parameters, seed) for seed in config.seeds]
    except Head2ToeError as error:
        return Foreseen(task.name, None, {}, fits, str(error))
    return Foreseen(task.name, forecast, plans, fits)


def _plan(
    config: EvaluationConfig, task: TaskParameters, store: ActivationStore, parameters: MethodParameters, seed: int
) -> str:
    said: list[str] = []

    def announce(sentence: str) -> None:
        said.append(sentence)
        raise _NotComputed

    try:
        context = _context(config, task, compute=False)
        _cross_validate(config, context, store, parameters, seed, None, announce)
    except _NotComputed:
        return said[0].partition(": ")[2].rpartition("; then")[0] if said else "needs the second backbone's store"
    return "stored"


def _run(config: EvaluationConfig, work: Callable[..., TaskResult], progress: Progress | None) -> Results:
    tasks = config.all_tasks
    jobs = min(config.jobs, len(tasks))
    if jobs == 1:
        return Results(config, tuple(work(task, progress=progress) for task in tasks))
    others = set(active_children())
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,))
    # Processes inherit what is blocked here: Ctrl-C, which a terminal sends to all, is for this one alone to answer.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            found = pool.map(work, tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Results(config, tuple(found))
    except BrokenProcessPool:
        raise Head2ToeError(
            "a process ended unexpectedly, most often because memory did not suffice; what was computed stays, so run "
            "the same again with fewer jobs."
        ) from None
    except BaseException:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(jobs: int) -> None:
    """Set up a process: it takes its share of the cores, and ends with the process that started it."""
    share_cores(jobs)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _evaluate_task(
    config: EvaluationConfig, task: TaskParameters, announce: Announce | None, progress: Progress | None = None
) -> TaskResult:
    """Evaluate all methods on a task; without `announce`, read what is stored."""
    extraction, extracted = config.extraction_of(task), 0
    try:
        if announce is None:
            store = open_store(plan_extraction(extraction, config.root).uri)
        else:
            done = extract(extraction, config.root, _naming(task, progress))
            store, extracted = open_store(done.uri), done.extracted
            announce(f"{task.name}: {done.extracted:,} samples extracted, {done.reused:,} there; {done.seconds:.1f} s.")
        _check_classes(task, store)
    except InterruptedExtractionError:
        raise
    except Head2ToeError as error:
        missing = announce is None and isinstance(error, StoreNotFoundError)
        if announce is not None:
            announce(f"{task.name}: {error}")
        return TaskResult(task, {}, (), error="" if missing else str(error))
    context = _context(config, task, compute=announce is not None, progress=progress)
    outcomes = tuple(
        _outcome(config, context, store, name, seed, announce, progress, task.name)
        for name in config.methods
        for seed in config.seeds
    )
    return TaskResult(task, _facts(store), outcomes, extracted)


def _outcome(
    config: EvaluationConfig,
    context: Context,
    store: ActivationStore,
    name: str,
    seed: int,
    announce: Announce | None,
    progress: Progress | None,
    task: str,
) -> Outcome:
    who = f"{task} · {name}" + (f" · seed {seed}" if len(config.seeds) > 1 else "")

    def say(sentence: str) -> None:
        if announce is None:
            raise _NotComputed
        announce(f"{who}: {sentence.partition(': ')[2]}")

    try:
        found = _cross_validate(config, context, store, config.methods[name], seed, progress, say)
    except _NotComputed:
        return Outcome(name, seed, None)
    except InterruptedExtractionError:
        raise
    except Head2ToeError as error:
        if announce is not None:
            announce(f"{who}: {error}")
        return Outcome(name, seed, None, str(error))
    if announce is not None:
        spent = "in the store already" if found.reused else f"{sum(found.seconds.values()):.1f} s"
        reached = [f"{100 * share:.1f} %" for share in (found.accuracy, found.validation_accuracy)]
        announce(f"{who}: accuracy {reached[0]}, in validation {reached[1]}; {spent}.")
    return Outcome(name, seed, found)


def _cross_validate(
    config: EvaluationConfig,
    context: Context,
    store: ActivationStore,
    parameters: MethodParameters,
    seed: int,
    progress: Progress | None,
    announce: Announce,
) -> Evaluation:
    method = find_kind(parameters.method).build(store, context, parameters.options)
    return cross_validate(method, store, config.protocol.model_copy(update={"seed": seed}), progress, announce)


def _context(
    config: EvaluationConfig, task: TaskParameters, *, compute: bool, progress: Progress | None = None
) -> Context:
    def open_control() -> ActivationStore:
        parameters: ExtractionParameters = config.extraction_of(task, control=True)
        if compute:
            return open_store(extract(parameters, config.root, progress).uri)
        try:
            return open_store(plan_extraction(parameters, config.root).uri)
        except StoreNotFoundError:
            raise _NotComputed from None

    return Context(config.root, config.extraction_of(task), open_control)


def _check_classes(task: TaskParameters, store: ActivationStore) -> None:
    if task.classes is not None and len(store.class_names) != task.classes:
        raise InvalidInputError(
            f"data {task.data!r} has {len(store.class_names)} classes but task {task.name!r} has {task.classes}; is "
            "another task's data there, or is some of it missing?"
        )


def _facts(store: ActivationStore) -> dict[str, Any]:
    blocks = [(split.name, block) for split in store.splits.values() for block in range(split.n_blocks)]
    return {
        "uri": store.uri,
        "fingerprint": store.fingerprint,
        "bytes": store.n_bytes,
        "layers": len(store.layers),
        "features": store.n_features,
        "classes": len(store.class_names),
        "samples": {split.name: split.n_samples for split in store.splits.values()},
        "extraction_seconds": round(sum(sum(store.record(*block).seconds.values()) for block in blocks), 3),
    }
