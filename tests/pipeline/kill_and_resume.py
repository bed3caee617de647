"""Kill an extraction at random moments and resume it, many times over; prints how often the bytes came out equal.

Run as ``python kill_and_resume.py FOLDER TRIALS``. Everything slow to import is imported once: each trial forks this
process, which has started no thread and run no model yet.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.verification import verify_store
from store import open_store


def parameters(folder: Path) -> ExtractionParameters:
    data = folder / "data.npz"
    if not data.exists():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (160, 32, 32, 3), np.uint8)
        labels = np.arange(160) % 4
        np.savez(data, x_train=images[:112], y_train=labels[:112], x_test=images[112:], y_test=labels[112:])
    return ExtractionParameters(
        backbone="test_resnet", weights="random:0", data=str(data), image_size=32, batch_size=8, block_size=8
    )


def contents(root: Path) -> str:
    """Return a digest of every activation, norm and checksum of the only store under a root."""
    total = hashlib.sha256()
    (uri,) = root.glob("*.zarr")
    for path in sorted(uri.rglob("c/*/*")):
        total.update(str(path.relative_to(uri)).encode() + path.read_bytes())
    return total.hexdigest()


def forked(work) -> int:
    """Run `work` in a child process and return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, trials: int) -> None:
    chosen = parameters(folder)
    start = time.perf_counter()
    assert wait(forked(lambda: extract(chosen, str(folder / "whole")))) == 0
    duration = time.perf_counter() - start
    expected = contents(folder / "whole")
    rng = random.Random(0)
    equal = killed = partial = 0
    for trial in range(trials):
        root = folder / f"trial{trial}"
        child = forked(lambda root=root: extract(chosen, str(root)))
        time.sleep(rng.uniform(0.3, 1.0) * duration)
        os.kill(child, signal.SIGKILL)
        killed += wait(child) == -signal.SIGKILL
        partial += 0 < len(list(root.glob("*.zarr/blocks/*/*.json"))) < 20
        assert wait(forked(lambda root=root: extract(chosen, str(root)))) == 0
        (uri,) = root.glob("*.zarr")
        assert wait(forked(lambda uri=uri: sys.exit(1) if verify_store(open_store(uri)) else None)) == 0
        equal += contents(root) == expected
        shutil.rmtree(root)
    print(f"equal={equal} killed={killed} partial={partial}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
