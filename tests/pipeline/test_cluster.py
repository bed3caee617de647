"""The passes on an existing Dask cluster: results as here, whatever happens to a worker, and no secrets in its logs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import compute
from pipeline.compute import ClusterError, Threads, workers
from pipeline.group_lasso import group_lasso
from pipeline.statistics import compute_statistics, find_statistics
from store import ActivationStore, create_store, open_store
from store.errors import DamagedStoreError, InvalidInputError
from store.spec import Manifest

pytest.importorskip("distributed", reason="part of the dev extra")

N, LAYERS = 60, {f"layer{i:02d}": 25 for i in range(40)}


class Processes:
    """A scheduler and its workers, each a process of its own that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.log = folder / "workers.log"
        contact = folder / "scheduler.json"
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--scheduler-file", str(contact))
        wait(contact.exists)
        self.address: str = wait(lambda: json.loads(contact.read_text() or "null"))["address"]

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start("dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--memory-limit", "0")

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.{module}",
            *arguments,
            "--no-dashboard",
            "--host",
            "127.0.0.1",
        ]
        with (self.folder / "workers.log").open("ab") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(started)
        return started

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def wait(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("cluster"))
    try:
        for _ in range(2):
            made.worker()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Forty layers in two blocks, some of whose features decide the label."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 3
    rng.shuffle(labels)
    ids = [f"{i:03d}" for i in range(N)]
    writer = create_store(
        tmp_path_factory.mktemp("wide") / "wide.zarr",
        LAYERS,
        {"train": N},
        manifests={"train": Manifest(ids, labels, ids)},
        block_samples=32,
    )
    directions = rng.standard_normal((3, sum(LAYERS.values()))) * (rng.random(sum(LAYERS.values())) < 0.02)
    values = (directions[labels] + rng.standard_normal((N, len(directions[0]))) + 1).T.astype(np.float16)
    for block in writer.missing()["train"]:
        part = slice(*writer.store.splits["train"].block_range(block))
        layers = {name: values[25 * i : 25 * (i + 1), part] for i, name in enumerate(LAYERS)}
        writer.write_block("train", block, layers)
    return open_store(writer.uri)


def reset(store: ActivationStore) -> ActivationStore:
    store.objects.remove("results")
    return open_store(store.uri)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standardize", "unit_norm"])
def test_two_worker_processes_give_what_this_process_gives(cluster, wide_store, normalization, monkeypatch) -> None:
    here = group_lasso(wide_store, normalization=normalization, penalty_ratio=[0.5, 0.2])
    store = reset(wide_store)
    # Workers run elsewhere: a relative path means nothing to them.
    monkeypatch.chdir(Path(store.uri).parent)
    store = open_store(Path(store.uri).name)
    stages: list[tuple[str, int, int]] = []
    there = group_lasso(
        store,
        normalization=normalization,
        penalty_ratio=[0.5, 0.2],
        dask_address=cluster.address,
        progress=lambda *stage: stages.append(stage),
    )
    assert there.certificate.certified
    assert there.support.tolist() == here.support.tolist()
    assert len(there.support) > 3
    np.testing.assert_allclose(there.coef, here.coef, atol=1e-5)
    np.testing.assert_allclose(there.relevance, here.relevance, atol=1e-5)
    assert there.certificate.passes == here.certificate.passes
    assert there.certificate.bytes_read == here.certificate.bytes_read
    passes = [done for stage, done, total in stages if stage.startswith("pass 1")]
    assert passes == list(range(1, 41))
    # Activations were read by the workers; here only columns were.
    assert store.reads.n_bytes < here.certificate.bytes_read - 2 * store.n_bytes


@pytest.mark.slow
def test_statistics_alone_run_on_the_cluster_and_are_kept_beside_the_store(cluster, wide_store) -> None:
    here = compute_statistics(reset(wide_store))
    store = reset(wide_store)
    store.reads.reset()
    there = compute_statistics(store, dask_address=cluster.address)
    assert store.reads.n_bytes == 0
    for name in ("mean", "m2", "minimum", "maximum", "zeros"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert find_statistics(store, "train") is not None


@pytest.mark.slow
def test_a_worker_killed_in_mid_pass_costs_time_and_not_the_result(tmp_path, wide_store) -> None:
    here = group_lasso(wide_store, normalization="unit_norm", penalty_ratio=0.3)
    made = Processes(tmp_path)
    try:
        victim, _ = made.worker(), made.worker()
        with workers(made.address) as pool:
            wait(lambda: len(pool._client.nthreads()) == 2)
        killed: list[int] = []

        def kill(stage: str, done: int, total: int) -> None:
            if stage.startswith("pass 1") and not killed:
                killed.append(total - done)
                victim.send_signal(signal.SIGKILL)

        there = group_lasso(
            wide_store, normalization="unit_norm", penalty_ratio=0.3, dask_address=made.address, progress=kill
        )
        assert victim.wait() == -signal.SIGKILL
        assert killed[0] > 0
        np.testing.assert_array_equal(there.coef, here.coef)
        # The one that is left, killed between two passes and replaced, takes what it held with it.
        survivor, deaths = made.processes[-1], []

        def slow(store: Any, shared: int, item: int) -> int:
            time.sleep(0.05)
            return shared * item

        def replace(stage: str, done: int, total: int) -> None:
            if done == 5 and not deaths:
                deaths.append(total - done)
                made.worker()
                survivor.send_signal(signal.SIGKILL)

        with workers(made.address) as pool:
            found = pool.map(slow, wide_store, 3, range(40), stage="slow", progress=replace)
        assert deaths == [35]
        assert found == [3 * item for item in range(40)]
    finally:
        made.stop()


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_to_do_on_the_cluster(cluster, wide_store) -> None:
    from distributed import Client

    def slow(store: Any, shared: None, item: int) -> int:
        time.sleep(0.05)
        return item

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), workers(cluster.address) as pool:
        pool.map(slow, wide_store, None, range(500), stage="slow", progress=interrupt)
    with Client(cluster.address, set_as_default=False) as client:
        wait(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0, 10)


@pytest.mark.slow
def test_what_a_worker_cannot_do_is_one_sentence(cluster, wide_store, tmp_path) -> None:
    def absent(store: Any, shared: None, item: int) -> None:
        raise ModuleNotFoundError("No module named 'pipeline'")

    with workers(cluster.address) as pool, pytest.raises(InvalidInputError, match="install the same release there"):
        pool.map(absent, wide_store, None, [1], stage="nothing")
    moved = create_store(tmp_path / "here.zarr", {"a": 3}, {"train": 4})
    moved.write_block("train", 0, {"a": np.ones((3, 4), np.float16)})
    store = open_store(moved.uri)
    Path(moved.uri).rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(InvalidInputError, match="store must lie where all workers reach it"):
        compute_statistics(store, dask_address=cluster.address)


@pytest.mark.slow
def test_damage_that_a_worker_finds_is_reported_as_here(cluster, wide_store) -> None:
    store = reset(wide_store)
    chunk = next(store.chunks("train"))
    path = Path(store.uri) / chunk.key
    before = path.read_bytes()
    path.write_bytes(before[:7] + b"?" + before[8:])
    try:
        with pytest.raises(DamagedStoreError, match="checksum"):
            compute_statistics(store, dask_address=cluster.address)
    finally:
        path.write_bytes(before)


@pytest.mark.slow
def test_options_of_a_store_reach_the_workers_but_not_their_logs(cluster, wide_store) -> None:
    """What opening needs travels in the task; a failing task is logged with its arguments, without them."""
    store = open_store(wide_store.uri)
    store.objects.options = {"secret": "open sesame"}

    def fail(store: Any, shared: None, item: int) -> None:
        raise ValueError("on purpose")

    with workers(cluster.address) as pool, pytest.raises((ValueError, InvalidInputError)):
        pool.map(fail, store, None, [1], stage="nothing")
    wait(lambda: b"on purpose" in cluster.log.read_bytes())
    assert b"sesame" not in cluster.log.read_bytes()


@pytest.mark.slow
def test_a_scheduler_that_is_lost_in_mid_pass_is_one_sentence(tmp_path, wide_store, monkeypatch) -> None:
    import dask

    def slow(store: Any, shared: None, item: int) -> int:
        time.sleep(0.05)
        return item

    made = Processes(tmp_path)
    try:
        made.worker()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            pytest.raises(ClusterError, match=r"connection to the Dask cluster at .* was lost"),
            workers(made.address) as pool,
        ):
            pool.map(slow, wide_store, None, range(100), stage="slow", progress=lambda *_: made.scheduler.kill())
    finally:
        made.stop()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1", "fax://somewhere", ""])
def test_a_wrong_address_is_refused_within_seconds(address, store, monkeypatch) -> None:
    monkeypatch.setattr(compute, "CONNECT_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(InvalidInputError, match=f"no Dask scheduler answers at '{address}'.*tcp://HOST:8786"):
        compute_statistics(store, dask_address=address)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_a_scheduler_without_workers_is_one_sentence(tmp_path, store, monkeypatch) -> None:
    monkeypatch.setattr(compute, "WORKERS_SECONDS", 0.5)
    made = Processes(tmp_path)
    try:
        with pytest.raises(InvalidInputError, match=r"has no workers.*dask worker tcp://"):
            compute_statistics(store, dask_address=made.address)
    finally:
        made.stop()


def test_workers_are_for_stores_only() -> None:
    with pytest.raises(InvalidInputError, match="workers scan stores only"):
        group_lasso(np.ones((4, 2)), [0, 1, 0, 1], dask_address="tcp://127.0.0.1:9")


def test_threads_give_the_same_as_a_loop(store) -> None:
    found = Threads(2).map(lambda store, shared, item: shared * item, store, 2, range(7), stage="double")
    assert found == [0, 2, 4, 6, 8, 10, 12]
