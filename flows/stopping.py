"""Being stopped: which signal it was, and the command line that goes on from there."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

COMMAND = "head2toe"

_number = signal.SIGINT


def listen() -> None:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does, and remember which of them came."""

    def stop(number: int, frame: FrameType | None) -> None:
        global _number
        _number = signal.Signals(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def stopped_by() -> int:
    """Return the number of the signal that stopped the command: 2 for Ctrl-C, 15 for SIGTERM."""
    return _number.value


def command_line() -> str:
    """Return the command that is running, as a shell takes it."""
    program = Path(sys.argv[0])
    known = shutil.which(COMMAND)
    # A command that is not on the path is named as the user named it; `python -c` has no name at all.
    by_name = program.name != COMMAND or (known is not None and Path(known).samefile(program))
    return shlex.join([COMMAND if by_name else sys.argv[0], *sys.argv[1:]])
