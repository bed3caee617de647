"""Starts the flow with Prefect set up as a single machine needs it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows import logs
from flows.console import say

if TYPE_CHECKING:
    from flows.config import Head2ToeConfig
    from flows.head2toe import RunSummary

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The in-process server takes 10 to 20 s to start on a small machine; Prefect's own limit is 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # What goes wrong is said once, by the command line itself.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
}
"""Settings used unless the environment has its own."""


def run_flow(config: Head2ToeConfig) -> RunSummary:
    """Run the flow `head2toe`, on the configured Prefect server or on one inside this process.

    Parameters
    ----------
    config : Head2ToeConfig
        What to run.

    Returns
    -------
    RunSummary
        What was done.

    Raises
    ------
    Head2ToeError
        Whatever a stage raised for the user.
    """
    with prefect_ready():
        from flows.head2toe import head2toe

        return head2toe(config)


@contextmanager
def prefect_ready() -> Iterator[None]:
    """Let flows run on the configured Prefect server, or on one inside this process, which is started."""
    if logs.shown(logging.INFO):
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    say("starting Prefect …")
    from prefect.context import SyncClientContext

    from flows.heartbeat import own_heartbeat

    starting = threading.Thread(target=_start_server, name="server", daemon=True)
    starting.start()
    starting.join()
    # One client for all that is run: a new one takes longer to be ready for TLS than to start a run.
    with own_heartbeat(), SyncClientContext.get_or_create():
        yield


def _start_server() -> None:
    """Start Prefect's in-process server, if one is needed, out of reach of Ctrl-C.

    A terminal sends Ctrl-C to every process of the command. A server that ends before the flow has reported its end
    would make the flow wait for it in vain; Prefect stops the server itself when all is done.
    """
    from prefect.client.orchestration import get_client

    # A process inherits the signals that the thread which starts it does not listen to.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with get_client(sync_client=True):
        pass
