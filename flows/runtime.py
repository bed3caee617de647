"""Starts the flow with Prefect set up as a single machine needs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    say("starting Prefect …")
    from flows.head2toe import head2toe

    return head2toe(config)
