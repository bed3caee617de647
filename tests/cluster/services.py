"""The services of docker-compose.yml, natively, and what a user does with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from cluster.postgres import PostgreSQL
from cluster.processes import Service, free_port, wait
from cluster.server import PASSWORD, USER, PrefectAPI, Run
from cluster.storage import ENVIRONMENT, Storage
from loopback import moto

ROOT = Path(__file__).parent.parent.parent
TOOLS = Path(sys.executable).parent
LINKED = ("flows", "configs", "prefect.yaml")
"""What `prefect deploy` needs of the project."""


class Cluster:
    """All services, and what the tests do with them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.project = folder / "project"
        self.project.mkdir()
        for name in LINKED:
            (self.project / name).symlink_to(ROOT / name)
        self.storage = Storage(stack.enter_context(moto()))
        stack.callback(self.storage.stop)
        with ThreadPoolExecutor() as pool:
            dask = pool.submit(self._start_dask)
            self.database = PostgreSQL()
            stack.callback(self.database.remove)
            self._start_prefect()
            dask.result()
        self.workers: dict[str, Service] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What every process of a user's has: nothing of this machine's Prefect."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
        return {
            **inherited,
            **ENVIRONMENT,
            "AWS_ENDPOINT_URL": self.storage.url,
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_AUTH_STRING": f"{USER}:{PASSWORD}",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    def _start_prefect(self) -> None:
        port = free_port()
        self.api_url = f"http://127.0.0.1:{port}/api"
        self.prefect = PrefectAPI(self.api_url)
        self._stack.callback(self.prefect.close)
        environment = {
            **self.environment,
            **self.database.environment,
            "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{PASSWORD}",
        }
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        server = self._start("prefect-server", command, environment)

        def answers() -> bool:
            server.check()
            return self.prefect.healthy()

        wait(answers, what="for Prefect's server")

    def _start_dask(self) -> None:
        self.dask_address = f"tcp://127.0.0.1:{free_port()}"
        port = self.dask_address.rpartition(":")[2]
        command = ["dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--dashboard-address", "127.0.0.1:0"]
        self._start("dask-scheduler", command, self._without_prefect())
        self.dask_workers = [self.dask_worker(), self.dask_worker()]

    def dask_worker(self) -> Service:
        """Start a worker of the Dask cluster."""
        options = ["--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        options += ["--local-directory", str(self.folder)]
        return self._start("dask-worker", ["dask", "worker", self.dask_address, *options], self._without_prefect())

    def worker(self, pool: str, name: str = "first") -> Service:
        """Start a worker of a pool, unless it is there."""
        if (key := f"{pool}-{name}") not in self.workers:
            command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", "1", "--name", key]
            self.workers[key] = self._start(f"worker-{key}", command, self.environment)
        return self.workers[key]

    def kill_worker(self, pool: str, name: str = "first") -> None:
        """Kill a worker and the run that it executes."""
        self.workers.pop(f"{pool}-{name}").kill()

    def stop_worker(self, pool: str, name: str = "first") -> None:
        """Stop a worker in order, if it is there."""
        if (found := self.workers.pop(f"{pool}-{name}", None)) is not None:
            found.stop()

    def type(self, *words: str) -> str:
        """Type a command in the project's folder; return what it prints."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def attempt(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Type a command, with these variables set besides the others."""
        return subprocess.run(
            [TOOLS / words[0], *words[1:]],
            cwd=self.project,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> Service:
        command = [str(TOOLS / command[0]), *command[1:]]
        started = Service(command, self.folder / f"{name}.log", environment, self.project)
        self._stack.callback(started.kill)
        return started

    def _without_prefect(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
        return {**inherited, **ENVIRONMENT, "AWS_ENDPOINT_URL": self.storage.url}

    def extracted(self, run: Run) -> int:
        """Return how many images a run has sent through the backbone, by its own log."""
        line = r"^ends .*\bstage=extraction\b.* extracted=(\d+)"
        # Lines are sent in batches, and may arrive after the state of the run.
        (found,) = wait(
            lambda: re.findall(line, self.prefect.logs(run["id"]), re.MULTILINE), what="for the end of the log"
        )
        return int(found)
