"""Heartbeats of runs that a command starts itself, in place of Prefect's own.

At the end of a run Prefect waits for its heartbeat's thread, which looks once a second whether the run is over. The
thread here is told. Runs of workers and of `head2toe serve` keep Prefect's heartbeat; the events are the same, so the
automation of ``configs/zombie-runs.yaml`` watches either.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context

from prefect import runtime
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

EVENT = "prefect.flow-run.heartbeat"

_own: ContextVar[tuple[int, Context] | None] = ContextVar("seconds between heartbeats, and where from", default=None)


@contextmanager
def own_heartbeat() -> Iterator[None]:
    """Let flows that run inside give heartbeats by `beating` alone, as often as Prefect's settings say.

    A server inside this process ends with the run, so that nobody watches; there they give none.
    """
    seconds = PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() if PREFECT_API_URL.value() else None
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        token = _own.set(None if seconds is None else (seconds, copy_context()))
        try:
            yield
        finally:
            _own.reset(token)


@contextmanager
def beating() -> Iterator[None]:
    """Give heartbeats of the flow run that this is in, if `own_heartbeat` says so, until the context ends."""
    if (own := _own.get()) is None:
        yield
        return
    seconds, outside = own
    resource = {"prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}"}
    ended = threading.Event()

    def beat() -> None:
        while True:
            emit_event(EVENT, resource)
            if ended.wait(seconds):
                return

    # Inside a run's own context, Prefect would ask the server for all that an event could be related to.
    thread = threading.Thread(target=outside.copy().run, args=(beat,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
