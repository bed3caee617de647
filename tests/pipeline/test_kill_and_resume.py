"""SIGKILL at random moments of a real extraction: after resuming, every byte is an undisturbed run's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TRIALS = 50


@pytest.mark.slow
def test_fifty_killed_extractions_resume_to_identical_bytes(tmp_path) -> None:
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(TRIALS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", done.stdout)}
    assert counts["equal"] == TRIALS
    assert counts["partial"] >= TRIALS // 10, "too few kills fell between the first block and the last"
