"""Extraction by the workers of a Dask cluster: real processes, one of which is killed in mid-work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from noise import N_BLOCKS, N, contents, noise

from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.verification import verify_store
from store import open_store
from store.errors import InvalidInputError

pytest.importorskip("distributed", reason="part of the dev extra")
pytestmark = pytest.mark.slow


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *words, "--no-dashboard", "--host", "127.0.0.1"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)


def worker(folder: Path, address: str) -> subprocess.Popen[bytes]:
    return start(folder, "distributed.cli.dask_worker", address, "--nthreads", "2", "--no-nanny")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, in a folder of their own."""
    folder = tmp_path_factory.mktemp("cluster")
    contact = folder / "scheduler.json"
    processes = [start(folder, "distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(contact))]
    try:
        while not contact.exists():
            assert processes[0].poll() is None
            time.sleep(0.05)
        address = json.loads(contact.read_text())["address"]
        processes += [worker(folder, address), worker(folder, address)]
        yield address, processes
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ExtractionParameters:
    return noise(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> str:
    """An undisturbed extraction by one process."""
    return extract(small, str(tmp_path_factory.mktemp("whole"))).uri


def test_workers_make_the_store_of_one_process_whatever_folder_they_run_in(
    cluster, small, whole, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = os.path.relpath(small.data)
    seen: list[tuple[int, int]] = []
    done = extract(
        small.model_copy(update={"dask_address": cluster[0], "data": data}),
        "root",
        lambda stage, done, total: seen.append((done, total)) if "cluster" in stage else None,
    )
    assert (done.extracted, done.left_to_others) == (N, 0)
    assert seen == [(number + 1, N_BLOCKS) for number in range(N_BLOCKS)]
    assert contents(done.uri) == contents(whole)
    assert open_store(done.uri).provenance["device"] == "Dask cluster"
    again = extract(small.model_copy(update={"dask_address": cluster[0], "data": data}), "root")
    assert (again.extracted, again.reused) == (0, N)


def test_workers_that_see_other_images_are_refused(cluster, small, tmp_path) -> None:
    with np.load(small.data) as arrays:
        path = tmp_path / "noise.npz"
        np.savez(path, **arrays)

    def change(forecast) -> None:
        with np.load(small.data) as arrays:
            np.savez(path, **{**arrays, "x_train": arrays["x_train"] ^ 1})

    parameters = small.model_copy(update={"dask_address": cluster[0], "data": str(path)})
    with pytest.raises(InvalidInputError, match="sees another extraction than the one begun"):
        extract(parameters, str(tmp_path / "root"), announce=change)
    assert not list(tmp_path.glob("root/*.zarr/blocks/*/*.json"))


def test_a_worker_killed_in_mid_work_costs_time_but_not_the_result(cluster, small, whole, tmp_path) -> None:
    address, processes = cluster

    def kill(stage: str, done: int, total: int) -> None:
        if "cluster" in stage and done == 1:
            processes[-1].kill()
            processes[-1].wait()  # or it would look alive, and its claim would hold until it runs out

    done = extract(small.model_copy(update={"dask_address": address}), str(tmp_path), kill)
    assert processes[-1].returncode < 0
    assert done.left_to_others == 0
    assert contents(done.uri) == contents(whole)
    assert verify_store(open_store(done.uri)) == []


def test_an_address_at_which_nobody_answers_is_refused_before_anything_is_written(small, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        extract(small.model_copy(update={"dask_address": "tcp://127.0.0.1:1"}), str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()
