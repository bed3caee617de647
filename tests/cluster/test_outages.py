"""What fails in the night: a process, a machine, the storage or the database goes away in the middle of the work.

Whatever is killed, what has been committed stays. A run ends with the right result, or says in its state what has
happened; the same run again writes only what is missing, and every byte of every store is verified afterwards.
docs/operations.md has a paragraph for each of these.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from cluster.outcome import N_BLOCKS, N_IMAGES, Local, Outcome, only_store
from cluster.processes import wait
from cluster.services import ROOT, Cluster

SIZE = N_IMAGES // N_BLOCKS
DELAY = 0.1
"""Seconds per request, which make an extraction last as long as it takes to interfere."""


def begin(cluster: Cluster, root: str, images: dict[str, Any]) -> str:
    """Start an extraction and return it when some blocks are committed, but not all."""
    cluster.storage.delay = DELAY
    run = cluster.prefect.start("extraction/extraction", {"root": root, "extraction": images})
    in_the_middle(cluster, root, run)
    return run


def in_the_middle(cluster: Cluster, root: str, run: str) -> None:
    def some() -> bool:
        assert cluster.prefect.run(run)["state_type"] in {"SCHEDULED", "PENDING", "RUNNING"}, cluster.prefect.account(
            run
        )
        return cluster.storage.blocks(root) >= 2

    wait(some, what="for the first blocks")
    assert cluster.storage.blocks(root) < N_BLOCKS


def check(root: str, local: Local) -> None:
    """A complete store, every byte of which is as committed, with the identity of the local one."""
    assert only_store(root).fingerprint == local.store.fingerprint


def test_a_killed_extraction_is_noticed_and_the_retried_run_resumes(
    cluster: Cluster, s3_root: str, images: dict[str, Any], local: Local
) -> None:
    """The worker dies with all that it runs, as by a loss of power, so that nobody reports the run's end."""
    cluster.stop_worker("gpu")
    cluster.storage.delay = DELAY
    run = cluster.prefect.start("extraction/extraction", {"root": s3_root, "extraction": images})
    # For this run alone, and sooner; heartbeats come every 30 seconds.
    automation = yaml.safe_load((ROOT / "configs" / "zombie-runs.yaml").read_text())
    automation["trigger"] |= {"match": {"prefect.resource.id": f"prefect.flow-run.{run}"}, "within": 60}
    made = cluster.prefect.ask("POST", "/automations/", automation)
    cluster.worker("gpu")
    in_the_middle(cluster, s3_root, run)
    cluster.storage.hold()
    cluster.kill_worker("gpu")
    cluster.storage.release()
    assert cluster.prefect.run(run)["state_type"] == "RUNNING"
    crashed = cluster.prefect.wait_for(run, "CRASHED")
    assert "no heartbeat" in crashed["state"]["message"]
    committed = cluster.storage.blocks(s3_root)
    assert 2 <= committed < N_BLOCKS
    cluster.prefect.ask("DELETE", f"/automations/{made['id']}")
    cluster.type("prefect", "flow-run", "retry", run)
    cluster.worker("gpu")
    resumed = cluster.prefect.finish(run)
    assert cluster.extracted(resumed) == N_IMAGES - committed * SIZE
    check(s3_root, local)


def test_storage_that_restarts_in_mid_extraction_costs_time_only(
    cluster: Cluster, s3_root: str, images: dict[str, Any], local: Local
) -> None:
    cluster.worker("gpu")
    run = begin(cluster, s3_root, images)
    cluster.storage.restart(3)
    cluster.storage.release()
    cluster.prefect.finish(run)
    check(s3_root, local)
    # What was extracted is now selected from, without being asked.
    wait(lambda: cluster.prefect.waiting("selection/selection"), what="for the selection")
    (selecting,) = cluster.prefect.waiting("selection/selection")
    assert selecting["parameters"]["config"]["store"] == only_store(s3_root).uri


def test_prefects_database_may_restart_in_mid_run(
    cluster: Cluster, s3_root: str, images: dict[str, Any], local: Local
) -> None:
    cluster.worker("gpu")
    run = begin(cluster, s3_root, images)
    cluster.database.restart(2)
    cluster.storage.release()
    cluster.prefect.finish(run)
    check(s3_root, local)


def test_two_runs_of_the_same_extraction_share_the_work(
    cluster: Cluster, s3_root: str, images: dict[str, Any], local: Local
) -> None:
    """With two GPUs, or two teams: every image goes through the backbone once."""
    cluster.prefect.ask("PATCH", "/work_pools/gpu", {"concurrency_limit": 2})
    cluster.worker("gpu")
    cluster.worker("gpu", "second")
    # Neither gets ahead before the other is there.
    cluster.storage.hold()
    config = {"root": s3_root, "extraction": images}
    runs = [cluster.prefect.start("extraction/extraction", config) for _ in range(2)]
    wait(lambda: all(cluster.prefect.run(run)["state_type"] == "RUNNING" for run in runs), what="for both to run")
    cluster.storage.release()
    cluster.storage.delay = DELAY
    finished = [cluster.prefect.finish(run) for run in runs]
    assert sum(cluster.extracted(run) for run in finished) == N_IMAGES
    check(s3_root, local)
    cluster.stop_worker("gpu", "second")
    cluster.prefect.ask("PATCH", "/work_pools/gpu", {"concurrency_limit": 1})


@pytest.mark.usefixtures("cpu_worker")
def test_a_dask_worker_killed_in_a_pass_changes_nothing_in_the_selection(
    cluster: Cluster, s3_root: str, images: dict[str, Any], local: Local
) -> None:
    from distributed import Client

    from pipeline.extraction import extract
    from pipeline.extraction_parameters import ExtractionParameters

    uri = extract(ExtractionParameters.model_validate(images), s3_root).uri
    cluster.storage.delay = DELAY
    selection = {"keep": 30, "penalty_ratio": 0.2}
    config = {"store": uri, "selection": selection, "dask_address": cluster.dask_address}
    with Client(cluster.dask_address, set_as_default=False) as client:
        run = cluster.prefect.start("selection/selection", config)
        wait(lambda: sum(map(len, client.processing().values())) > 2, what="for the pass")
        cluster.dask_workers.pop(0).kill()
        wait(lambda: len(client.nthreads()) == 1)
    cluster.storage.release()
    cluster.prefect.finish(run)
    cluster.dask_workers.append(cluster.dask_worker())
    store = only_store(s3_root)
    assert Outcome.of(store).selections == dict([local.select(**selection)])
