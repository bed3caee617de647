"""How flows and tasks behave: what is tried again, how long it may take, what a run is called and how it fails."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypedDict, TypeVar, cast

from prefect import runtime
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.task_engine import TaskRunTimeoutError
from prefect.tasks import exponential_backoff

from flows import logs
from flows.heartbeat import beating
from flows.redaction import no_secrets_in_errors, redact
from flows.sending import sending
from pipeline.compute import ClusterError
from store.errors import Head2ToeError
from store.faults import Cause, StorageError, cause_of

P = ParamSpec("P")
R = TypeVar("R")
HOUR = 3600
_PASSING_ERRORS = {
    errno.EIO,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EREMOTEIO,
}


def may_pass(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Return whether trying a failed task again can help: storage, network or a cluster failed, not the input."""
    error = state.data
    if not isinstance(error, Exception) or isinstance(error, TaskRunTimeoutError):
        return False
    if isinstance(error, Head2ToeError):
        return isinstance(error, (StorageError, ClusterError))
    return (isinstance(error, OSError) and error.errno in _PASSING_ERRORS) or cause_of(error) is Cause.PASSING


class TaskOptions(TypedDict):
    """Arguments of `prefect.task`."""

    cache_policy: Any
    persist_result: bool
    retries: int
    retry_delay_seconds: Any
    retry_jitter_factor: float
    retry_condition_fn: Callable[[Any, TaskRun, State[Any]], bool]
    timeout_seconds: int


def task_options(hours: int) -> TaskOptions:
    """Return the arguments of `prefect.task`; the store decides what is done already, so nothing is cached."""
    return {
        "cache_policy": NO_CACHE,
        "persist_result": False,
        "retries": 3,
        "retry_delay_seconds": exponential_backoff(10),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": may_pass,
        "timeout_seconds": hours * HOUR,
    }


def stage_of(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for what a task does: it is logged as a stage, and its errors hold no secrets."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with no_secrets_in_errors(), logs.stage(name):
                return function(*args, **kwargs)

        return run

    return decorate


def told(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate what a flow does: it is logged, and a user's mistake becomes the message of the failed run."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        logs.connect_prefect()
        try:
            facts = {"run": runtime.flow_run.id, "flow": runtime.flow_run.flow_name}
            with logs.bound(**facts), no_secrets_in_errors(), beating(), sending():
                return function(*args, **kwargs)
        except Head2ToeError as error:
            # A state, so that Prefect shows this sentence alone; whoever called the flow gets the error all the same.
            return cast(R, Failed(message=redact(str(error)), data=error))

    # Prefect looks names of types up where this function is, not where the decorated one is.
    run.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]  # which inspect reads
    return run


def on_each(stores: Sequence[str], work: Callable[[str], R]) -> Iterator[R]:
    """Yield what the work returns for each store; a store that fails by itself fails the run after all others.

    Raises
    ------
    Head2ToeError
        The first failure, and how many there are. Storage and clusters that do not answer end the run at once, as the
        other stores would fare no better.
    """
    failed: list[Head2ToeError] = []
    for uri in stores:
        try:
            yield work(uri)
        except Head2ToeError as error:
            if len(stores) == 1 or isinstance(error, (StorageError, ClusterError)):
                raise
            failed.append(error)
    fail(failed)


def fail(errors: Sequence[object]) -> None:
    """Raise the first of the errors, if there is one, and say how many there are."""
    if errors:
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise Head2ToeError(f"{errors[0]}{more} What succeeded is stored; the same run again goes on from there.")


def run_name() -> str:
    """Return what a run is called before its store is known: backbone and data, or the store as given."""
    config: Any = runtime.flow_run.parameters["config"]
    if (store := getattr(config, "store", None)) is not None:
        return redact(str(store))
    extraction = config.extraction
    data = extraction.data or config.suite or f"{len(config.tasks)} tasks"
    return redact(f"{extraction.backbone} {data}")
