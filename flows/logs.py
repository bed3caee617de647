"""Structured logs: a message and ``key=value`` facts, with the run, the store and the stage they belong to.

They go to standard error, from the level that ``--log-level`` or ``HEAD2TOE_LOG_LEVEL`` names, and within a flow to
Prefect. No record of any logger of this process, Prefect's included, holds a secret.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flows.console import insist
from flows.redaction import redact
from store.errors import Head2ToeError, InvalidInputError, suggest

VARIABLE = "HEAD2TOE_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error", "critical")

STOPS = "stops:"
"""How the line begins that says why a stage did not end well."""

logger = logging.getLogger("head2toe")
_found: ContextVar[dict[str, Any] | None] = ContextVar("facts of the stage", default=None)
_context: ContextVar[dict[str, Any]] = ContextVar("log context", default={})  # noqa: B039  (never changed in place)


class _Formatter(logging.Formatter):
    """Appends the facts of a record as ``key=value``."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        return redact(" ".join([super().formatMessage(record), *(f"{k}={_shown(v)}" for k, v in facts.items())]))


class _StandardError(logging.Handler):
    """Writes above whatever progress bars there are."""

    def emit(self, record: logging.LogRecord) -> None:
        # The command line says at its end why it failed; with --log-level info also where.
        if self.level <= logging.INFO or not record.getMessage().startswith(STOPS):
            insist(self.format(record))


_standard_error = _StandardError()
_standard_error.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))


def configure(level: str | None, default: str = "warning") -> None:
    """Show logs on standard error from a level on, and hide secrets in those of every logger.

    Parameters
    ----------
    level : str, optional
        One of `LEVELS`; what the environment says if not given.
    default : str
        If the environment says nothing either.

    Raises
    ------
    InvalidInputError
        If there is no such level.
    """
    given = level or os.environ.get(VARIABLE) or default
    if given.lower() not in LEVELS:
        where = "--log-level" if level else VARIABLE
        raise InvalidInputError(f"{where} {given!r} is not a level; {suggest(given.lower(), LEVELS)}")
    _standard_error.setLevel(given.upper())
    _hide_secrets()
    if _standard_error not in logger.handlers:
        logger.addHandler(_standard_error)
        # Handlers decide; the root's have nothing to add.
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


def shown(level: int) -> bool:
    """Return whether records of a level are shown on standard error."""
    return _standard_error in logger.handlers and _standard_error.level <= level


def connect_prefect() -> None:
    """Send the logs to Prefect too, and let it show a user's mistake as its sentence; the second call does nothing."""
    from prefect.context import FlowRunContext, TaskRunContext
    from prefect.logging.handlers import APILogHandler

    if _standard_error not in logger.handlers:
        configure(None, "info")
    if any(isinstance(handler, APILogHandler) for handler in logger.handlers):
        return
    handler = APILogHandler(logging.INFO)
    handler.setFormatter(_Formatter())
    # Prefect takes what is said within a run; the rest goes to standard error alone.
    handler.addFilter(lambda record: FlowRunContext.get() is not None or TaskRunContext.get() is not None)
    logger.addHandler(handler)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_one_sentence)


@contextmanager
def bound(**facts: Any) -> Iterator[None]:
    """Give all that is logged inside these facts, such as ``run`` and ``store``."""
    token = _context.set({**_context.get(), **facts})
    try:
        yield
    finally:
        _context.reset(token)


def log(message: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log a message with facts, after those of the context."""
    logger.log(level, message, extra={"facts": {**_context.get(), **facts}})


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Log the begin and the end of a stage: its seconds, and what was noted meanwhile."""
    found: dict[str, Any] = {}
    token, start = _found.set(found), time.perf_counter()
    try:
        with bound(stage=name):
            log("begins")
            try:
                yield
            except BaseException as error:
                code = getattr(error, "exit_code", None)
                text = f"{error}" if code is None else f"exit code {code}"
                level = logging.ERROR if isinstance(error, Exception) and code != 0 else logging.INFO
                seconds = time.perf_counter() - start
                log(f"{STOPS} {text or type(error).__name__}", level, **found, seconds=seconds)
                raise
            log("ends", **found, seconds=time.perf_counter() - start)
    finally:
        _found.reset(token)


def note(**facts: Any) -> None:
    """Add facts to what is logged at the end of the stage."""
    found = _found.get()
    if found is not None:
        found.update(facts)


def new_run() -> str:
    """Return an identifier for a run outside Prefect."""
    return uuid.uuid4().hex[:12]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return f'"{text}"' if not text or any(c.isspace() for c in text) else text


def _one_sentence(record: logging.LogRecord) -> bool:
    """Let Prefect log a user's mistake as its sentence instead of a stack."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Head2ToeError):
        record.msg, record.args, record.exc_info, record.exc_text = redact(str(error)), (), None, None
    return True


def _hide_secrets() -> None:
    before = logging.getLogRecordFactory()
    if getattr(before, "hides_secrets", False):
        return
    # A handler that fails, as on a closed stream, would print the stack as it is.
    logging.raiseExceptions = False

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments do not fit; logging itself says so when it formats the record
            return record
        if (clean := redact(text)) != text:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None:
            stack = logging.Formatter().formatException(record.exc_info)
            if (clean := redact(stack)) != stack:
                record.exc_text = clean
        return record

    make.hides_secrets = True  # type: ignore[attr-defined]  # functions have any attribute
    logging.setLogRecordFactory(make)
