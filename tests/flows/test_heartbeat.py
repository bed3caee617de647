"""A run that a command starts gives heartbeats as one of a worker does, and does not wait for them at its end."""

from __future__ import annotations

import contextvars
import threading
import time
from typing import Any

import pytest
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import heartbeat
from flows.policy import told

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow(name="tells who it is", persist_result=False)
@told
def identify() -> str:
    return str(runtime.flow_run.id)


def heartbeats(run: str) -> int:
    """Ask the server for a run's heartbeats until there is one, and once more when another would have come."""
    asked: dict[str, Any] = {
        "filter": {
            "event": {"name": [heartbeat.EVENT]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
        }
    }
    with get_client(sync_client=True) as client:
        for _ in range(100):
            if client._client.post("/events/filter", json=asked).json()["total"]:
                time.sleep(3)
                return int(client._client.post("/events/filter", json=asked).json()["total"])
            time.sleep(0.2)
    return 0


def test_the_server_gets_one_heartbeat_whoever_gives_it() -> None:
    assert heartbeats(identify()) == 1, "Prefect's own"
    with heartbeat.own_heartbeat():
        run = identify()
    assert heartbeats(run) == 1, "ours, and not Prefect's besides"


def test_heartbeats_go_on_through_a_run_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    third = threading.Event()

    def emit(event: str, resource: dict[str, str]) -> None:
        given.append(resource)
        if len(given) == 3:
            third.set()

    @flow(name="waits for its heart", persist_result=False)
    @told
    def wait() -> str:
        assert third.wait(30)
        return str(runtime.flow_run.id)

    monkeypatch.setattr(heartbeat, "emit_event", emit)
    with heartbeat.own_heartbeat():
        heartbeat._own.set((0.01, contextvars.copy_context()))
        run = wait()
    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join(10)
            assert not thread.is_alive()
    assert {r["prefect.resource.id"] for r in given} == {f"prefect.flow-run.{run}"}


def test_a_server_that_ends_with_the_run_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "emit_event", lambda *_: pytest.fail("nobody watches"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}), heartbeat.own_heartbeat(), heartbeat.beating():
        assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
