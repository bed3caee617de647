"""What happens every night: deployments fire, a whole run ends as one on a laptop does, and nothing is done twice."""

from __future__ import annotations

from typing import Any

import pytest
from cluster.outcome import N_BLOCKS, N_IMAGES, Local, Outcome, only_store
from cluster.processes import wait
from cluster.server import Run
from cluster.services import Cluster
from cluster.storage import BUCKET

ROOT = f"s3://{BUCKET}/nights"


@pytest.fixture(scope="module")
def config(cluster: Cluster, images: dict[str, Any]) -> dict[str, Any]:
    """A whole run with everything elsewhere: storage, workers that extract, workers that read."""
    extraction = {**images, "dask_address": cluster.dask_address}
    return {"root": ROOT, "extraction": extraction, "dask_address": cluster.dask_address}


@pytest.fixture(scope="module")
def night(cluster: Cluster, config: dict[str, Any]) -> Run:
    """The run that the schedule has started."""
    cluster.worker("gpu")
    schedule = cluster.prefect.schedule("head2toe/head2toe", config, every=20)

    def begun() -> Run | None:
        runs = [run for run in cluster.prefect.runs("head2toe/head2toe") if run["state_type"] == "RUNNING"]
        return next((run for run in runs if run["parameters"]["config"]["root"] == ROOT), None)

    found = wait(begun, what="for the scheduler")
    # With it go its runs that have not begun.
    cluster.prefect.ask("DELETE", schedule)
    assert found is not None
    return cluster.prefect.finish(found["id"])


def test_everything_is_deployed_from_nothing_and_again_without_harm(cluster: Cluster) -> None:
    def there() -> tuple[Any, ...]:
        deployments = {
            each["id"]: (
                f"{each['name']} on {each['work_pool_name']}",
                [(one["slug"], one["active"], one["schedule"]) for one in each["schedules"]],
            )
            for each in cluster.prefect.deployments()
        }
        pools = {
            (p["id"], p["name"], p["concurrency_limit"]) for p in cluster.prefect.ask("POST", "/work_pools/filter", {})
        }
        triggers = [each["name"] for each in cluster.prefect.ask("POST", "/automations/filter", {})]
        return deployments, pools, triggers

    first = there()
    assert {name for name, _ in first[0].values()} == {
        "extraction on gpu",
        "selection on cpu",
        "refit on cpu",
        "evaluation on gpu",
        "head2toe on gpu",
    }
    assert {(name, limit) for _, name, limit in first[1]} >= {("gpu", 1), ("cpu", None)}
    assert len(first[2]) == 1
    # Here by Prefect's own command; it was ours that made them.
    cluster.type("prefect", "--no-prompt", "deploy", "--all")
    assert there() == first


def test_nobody_without_the_password_sees_anything(cluster: Cluster) -> None:
    import httpx

    path = f"{cluster.api_url}/deployments/filter"
    assert httpx.post(path, json={}).status_code == 401
    assert httpx.post(path, json={}, auth=("prefect", "guessed")).status_code == 401
    assert cluster.prefect.healthy()
    # What deploys says so in a sentence.
    done = cluster.attempt("head2toe", "deploy", PREFECT_API_AUTH_STRING="prefect:guessed")
    assert done.returncode == 2
    assert "PREFECT_API_AUTH_STRING" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_scheduled_night_gives_what_a_laptop_gives(cluster: Cluster, night: Run, local: Local) -> None:
    """On S3, extracted and read by the workers of a Dask cluster: the same selection and the same accuracies."""
    assert night["auto_scheduled"]
    store = only_store(ROOT)
    assert store.provenance["device"] == "Dask cluster"
    assert Outcome.of(store) == local.outcome
    assert local.outcome.accuracies
    assert cluster.extracted(night) == N_IMAGES
    assert cluster.storage.blocks(ROOT) == N_BLOCKS


def test_a_second_run_extracts_nothing(cluster: Cluster, night: Run, config: dict[str, Any]) -> None:
    before = cluster.storage.written(ROOT, but="/reports/")
    again = cluster.prefect.finish(cluster.prefect.start("head2toe/head2toe", config))
    assert cluster.extracted(again) == 0
    assert cluster.storage.written(ROOT, but="/reports/") == before


@pytest.mark.usefixtures("cpu_worker")
def test_another_selection_needs_no_backbone(cluster: Cluster, night: Run, local: Local) -> None:
    """Nobody takes the pool `gpu` meanwhile, and of the activations not a byte is written."""
    cluster.stop_worker("gpu")
    before = cluster.storage.written(ROOT, but="/results/")
    selection = {"keep": 40, "penalty_ratio": 0.3}
    run = cluster.prefect.start("selection/selection", {"store": ROOT, "selection": selection})
    cluster.prefect.finish(run)
    assert cluster.storage.written(ROOT, but="/results/") == before
    found = Outcome.of(only_store(ROOT)).selections
    assert len(found) == 2
    assert local.select(**selection) in found.items()
