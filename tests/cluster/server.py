"""A Prefect server asked by its REST interface, which needs none of Prefect's settings in the process of the tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
from cluster.processes import SECONDS, wait

USER, PASSWORD = "prefect", "page-of-the-tests"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
Run = dict[str, Any]


class PrefectAPI:
    """Deployments, runs and logs of a server.

    Parameters
    ----------
    url : str
        With ``/api`` at its end.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, auth=(USER, PASSWORD), timeout=30)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def ask(self, method: str, path: str, content: object = None) -> Any:
        """Return what the server answers; a database in restart is asked again."""
        for _ in range(60):
            answer = self._client.request(method, path, json=content)
            if answer.status_code < 500:
                break
            time.sleep(0.5)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def healthy(self) -> bool:
        """Return whether the server answers; nobody need say who he is for that."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def deployment(self, name: str) -> Any:
        """Return a deployment named ``flow/deployment``."""
        return self.ask("GET", f"/deployments/name/{name}")

    def deployments(self) -> list[Any]:
        """Return all deployments."""
        found: list[Any] = self.ask("POST", "/deployments/filter", {})
        return found

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """Queue a run with this configuration; returns its id."""
        content = {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}}
        found: str = self.ask("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", content)["id"]
        return found

    def schedule(self, name: str, config: Mapping[str, Any], every: float) -> str:
        """Let a deployment run every so many seconds; returns the schedule's path, to delete it by."""
        often = {"interval": every, "anchor_date": datetime.now(UTC).isoformat(), "timezone": "UTC"}
        content = [{"active": True, "schedule": often, "parameters": {"config": config}, "slug": "often"}]
        schedules = f"/deployments/{self.deployment(name)['id']}/schedules"
        (made,) = self.ask("POST", schedules, content)
        return f"{schedules}/{made['id']}"

    def runs(self, name: str) -> list[Run]:
        """Return the runs of a deployment, the newest first."""
        content = {
            "deployments": {"id": {"any_": [self.deployment(name)["id"]]}},
            "sort": "EXPECTED_START_TIME_DESC",
        }
        found: list[Run] = self.ask("POST", "/flow_runs/filter", content)
        return found

    def waiting(self, name: str) -> list[Run]:
        """Return the runs of a deployment that no schedule has made and no worker has taken."""
        return [run for run in self.runs(name) if run["state_type"] == "SCHEDULED" and not run["auto_scheduled"]]

    def run(self, run: str) -> Run:
        """Return a run."""
        found: Run = self.ask("GET", f"/flow_runs/{run}")
        return found

    def logs(self, run: str) -> str:
        """Return what a run has logged, the last 200 lines of it."""
        content = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC"}
        return "\n".join(each["message"] for each in reversed(self.ask("POST", "/logs/filter", content)))

    def set_state(self, run: str, state: str, message: str) -> None:
        """Say what has become of a run, whatever it says itself."""
        content = {"state": {"type": state, "message": message}, "force": True}
        self.ask("POST", f"/flow_runs/{run}/set_state", content)

    def wait_for(self, run: str, *states: str, seconds: float = SECONDS) -> Run:
        """Return a run as soon as it is in one of these states."""

        def there() -> Run | None:
            found = self.run(run)
            assert found["state_type"] in states or found["state_type"] not in FINAL, self.account(run)
            return found if found["state_type"] in states else None

        found = wait(there, seconds, f"for {states}")
        assert found is not None
        return found

    def finish(self, run: str, seconds: float = SECONDS) -> Run:
        """Return a run once it is completed."""
        return self.wait_for(run, "COMPLETED", seconds=seconds)

    def account(self, run: str) -> str:
        """Return where a run has got to."""
        found = self.run(run)
        return f"{found['name']}: {found['state']['name']}: {found['state']['message']}\n{self.logs(run)[-4000:]}"
