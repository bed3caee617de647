"""Tells Prefect what its page shows, from a thread of its own: a slow or dead server does not hold up the work.

None of it is worth the end of a run: what Prefect does not take is a warning in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from flows import logs

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds that the end of a run waits for what is still to be sent."""


class Sender:
    """A thread that makes calls to Prefect, one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "prefect-page")
        self._last: Future[object] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way or waits."""
        return self._last is not None and not self._last.done()

    def send(self, what: str, call: Callable[[], object]) -> None:
        """Make a call after those before it; if it fails, the log has a warning that names `what`."""
        # The run and the task that something belongs to are known by the context.
        self._last = self._thread.submit(copy_context().run, attempt, what, call)

    def close(self, patience: float) -> None:
        """Wait for the calls, `patience` seconds at most, and leave out the rest."""
        if self._last is not None:
            wait_for([self._last], patience)
        if self.busy and patience:
            logs.log("Prefect does not show all of this run: the server is slow.", logging.WARNING)
        self._thread.shutdown(wait=False, cancel_futures=True)


_current: ContextVar[Sender | None] = ContextVar("sender to Prefect", default=None)


@contextmanager
def sending() -> Iterator[Sender]:
    """Give the sender of the run; at the end of the run, or of what stands outside of one, all has been sent."""
    if (outer := _current.get()) is not None:
        yield outer
        return
    sender, patience = Sender(), PATIENCE
    token = _current.set(sender)
    try:
        yield sender
    except BaseException as error:
        # Who stops a run does not wait for its page.
        patience = PATIENCE if isinstance(error, Exception) else 0.0
        raise
    finally:
        _current.reset(token)
        sender.close(patience)


def send(what: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Make a call to Prefect in the background of a run; outside of one, now."""
    with sending() as sender:
        sender.send(what, lambda: call(*args, **kwargs))


def attempt(what: str, call: Callable[[], T]) -> T | None:
    """Return what the call returns; None, after a warning, if it fails."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  (whatever it is, the run does not depend on it)
        logs.log(f"Prefect does not show {what}: {error or type(error).__name__}", logging.WARNING)
        return None
