"""Deployments: forms that explain themselves, set up from nothing and again without harm, or served by one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from store.errors import InvalidInputError

pytestmark = [
    pytest.mark.slow,
    # Prefect's server and its dependencies deprecate each other's functions; that is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]
ROOT = Path(__file__).parent.parent.parent
FLOWS = ("extraction", "selection", "refit", "evaluation", "head2toe")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from flows.cli import main; main()", *arguments]


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with the flows and deployments, and nobody's stores."""
    for name in ("flows", "prefect.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def environment(prefect_server) -> dict[str, str]:
    """What a command needs to find the server of the tests."""
    from prefect.settings import PREFECT_API_URL

    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("name", FLOWS)
def test_the_form_of_a_flow_explains_every_field_and_fills_in_what_need_not_be_given(name) -> None:
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow = load_flow_from_entrypoint(str(ROOT / f"flows/{name}.py:{name}"))
    schema = parameter_schema(flow).model_dump()
    assert schema["required"] == ["config"]
    assert schema["definitions"]
    fields = 0
    for kind, definition in schema["definitions"].items():
        assert "Attributes" not in definition["description"]
        for field, form in definition.get("properties", {}).items():
            fields += 1
            assert len(form["description"]) > 5, f"{kind}.{field} is not explained"
            assert "default" in form or field in definition["required"], f"{kind}.{field} has no default"
    assert fields > 5


def test_deploy_sets_all_up_from_nothing_and_again_without_harm(project, prefect_server, monkeypatch) -> None:
    from prefect.client.orchestration import get_client

    from flows.deploying import deploy, serve_all

    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seen: list[Any] = []
    for gpus, limit in ((None, 1), (3, 3)):
        assert deploy(gpus) == [f"{name}/{name}" for name in FLOWS]
        with get_client(sync_client=True) as client:
            found = {d.name: d for d in client.read_deployments()}
            limits = {name: client.read_work_pool(name).concurrency_limit for name in ("gpu", "cpu")}
            automations = client.request("POST", "/automations/filter", json={}).json()
        assert limits == {"gpu": limit, "cpu": None}
        pools = {name: found[name].work_pool_name for name in FLOWS}
        assert pools == {**dict.fromkeys(FLOWS, "gpu"), "selection": "cpu", "refit": "cpu"}
        seen.append(({name: d.id for name, d in found.items()}, [a["name"] for a in automations]))
    assert seen[0] == seen[1]
    assert seen[0][1] == ["select-what-was-extracted"]
    # Served, they would wait for workers all the same.
    with pytest.raises(InvalidInputError, match=r"belongs to work pool '[cg]pu', whose workers get its runs"):
        serve_all(1)
    with get_client(sync_client=True) as client:
        for deployment in found.values():
            client.delete_deployment(deployment.id)


@pytest.mark.cluster
def test_serve_runs_what_is_asked_for_and_a_cancelled_run_stops_and_can_be_resumed(project, environment) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    from store import open_store

    with (project / "log").open("w") as log:
        child = subprocess.Popen(command("serve"), cwd=project, env=environment, stderr=log, stdout=log)
    extraction = {
        "backbone": "test_resnet",
        "weights": "random:0",
        "data": "digits",
        "image_size": 256,
        "batch_size": 1,
        "block_size": 50,
    }
    try:
        with get_client(sync_client=True) as client:
            deployment = _wait(lambda: {d.name: d for d in client.read_deployments()}.get("extraction"), child)
            _wait(lambda: "serving" in (project / "log").read_text(), child)
            given = {"config": {"root": "stores", "extraction": extraction}}
            run = client.create_flow_run_from_deployment(deployment.id, parameters=given)
            [*_] = _wait(lambda: list(project.glob("stores/*.zarr/blocks/*/*.json")), child)
            client.set_flow_run_state(run.id, Cancelling())
            # What matters is that the work ends; Prefect may take its time to say so.
            _wait(lambda: "stops: TerminationSignal" in (project / "log").read_text(), child, 30)
            _wait(lambda: client.read_flow_run(run.id).state.is_final(), child, 120)
            assert client.read_flow_run(run.id).state.name == "Cancelled"
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)
    [uri] = project.glob("stores/*.zarr")
    there = open_store(str(uri), allow_incomplete=True)
    assert there.missing()
    done = subprocess.run(
        command("verify", str(uri), "--json"), env=environment, capture_output=True, text=True, check=False
    )
    assert "is damaged" not in done.stdout + done.stderr


def _wait(until: Any, child: subprocess.Popen[bytes], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (found := until()):
        assert child.poll() is None, "it ended too early"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)
    return found


def test_a_server_that_is_not_there_is_said_in_one_sentence(tmp_path, monkeypatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.deploying import deploy, serve_all

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=r"there is no prefect\.yaml in "):
        deploy()
    monkeypatch.chdir(ROOT)
    with (
        temporary_settings({PREFECT_API_URL: "http://user:hunter2@127.0.0.1:9/api"}),
        pytest.raises(InvalidInputError, match=r"server at 'http://\*\*\*@127\.0\.0\.1:9/api' does not answer"),
    ):
        deploy()
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InvalidInputError, match="no Prefect server is named; start one with `prefect server start`"),
    ):
        serve_all(1)


def test_the_event_of_the_extraction_is_what_the_selection_waits_for() -> None:
    from flows.artifacts import EVENT

    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    [trigger] = [t for entry in entries for t in entry.get("triggers", ())]
    assert trigger["expect"] == [EVENT]
    assert trigger["parameters"] == {"config": {"store": "{{ event.payload.store }}"}}
