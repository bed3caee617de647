"""Puts the deployments of prefect.yaml on a Prefect server, with the work pools they need, or serves them from here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect import serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker
from pydantic import TypeAdapter

from flows.redaction import redact
from store.errors import Head2ToeError, InvalidInputError

FILE = "prefect.yaml"
EXTRACTING = "gpu"
"""The pool whose runs each want a GPU of their own."""


def deploy(gpus: int | None = None) -> list[str]:
    """Make the work pools and the deployments of ``prefect.yaml``, or bring them up to date.

    Parameters
    ----------
    gpus : int, optional
        Runs of the pool `gpu` at a time, over all workers; 1 in a new pool, and as it is in one that is there.

    Returns
    -------
    list of str
        The deployments, such as ``"selection/selection"``.

    Raises
    ------
    InvalidInputError
        If there is no ``prefect.yaml`` here, no server is named, or it does not answer.
    Head2ToeError
        If Prefect refuses a deployment.
    """
    deployments = _read()
    with open_server() as client:
        for pool in dict.fromkeys(entry["work_pool"]["name"] for entry in deployments):
            _make_pool(client, pool, gpus)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", FILE]
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise Head2ToeError(f"prefect deploy --all failed: {redact(' '.join(said[-3:]))}")
    return [_name(entry) for entry in deployments]


def foresee() -> dict[str, dict[str, str]]:
    """Return what `deploy` would do; nothing is changed.

    Returns
    -------
    dict of str to dict of str to str
        Under ``"work pool"`` and ``"deployment"`` each name, and whether it is there or would be made.

    Raises
    ------
    InvalidInputError
        As `deploy` does.
    """
    deployments = _read()
    with open_server() as client:
        pools = dict.fromkeys(entry["work_pool"]["name"] for entry in deployments)
        return {
            "work pool": {name: _state(client.read_work_pool, name) for name in pools},
            "deployment": {name: _state(client.read_deployment_by_name, name) for name in map(_name, deployments)},
        }


def _state(read: Callable[[str], object], name: str) -> str:
    try:
        read(name)
    except ObjectNotFound:
        return "to be made"
    return "there, to be brought up to date"


def serve_all(limit: int) -> None:
    """Run all deployments from this process, each run in a process of its own, until it is stopped.

    Parameters
    ----------
    limit : int
        Runs at a time.

    Raises
    ------
    InvalidInputError
        If there is no ``prefect.yaml`` here, no server is named, it does not answer, or it has these deployments for
        workers, who alone would then get the runs.
    """
    # Entrypoints are relative to the folder of the project, where runs find them too.
    sys.path.insert(0, str(Path.cwd()))
    deployments = [_runner_deployment(entry) for entry in _read()]
    names = {deployment.name for deployment in deployments}
    with open_server() as client:
        for found in client.read_deployments():
            if found.name in names and found.work_pool_name:
                raise InvalidInputError(
                    f"deployment {found.name!r} of this server belongs to work pool {found.work_pool_name!r}, whose "
                    f"workers get its runs: start one with `prefect worker start --pool {found.work_pool_name}` "
                    f"instead, or delete the deployments first, each with `prefect deployment delete "
                    f"{found.name}/{found.name}`."
                )
    serve(*deployments, limit=limit, print_starting_message=False)


def _read() -> list[dict[str, Any]]:
    try:
        document = yaml.safe_load(Path(FILE).read_text(encoding="utf-8"))
    except OSError:
        raise InvalidInputError(
            f"there is no {FILE} in {str(Path.cwd())!r}; go to the folder that has it, which workers must see too."
        ) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise InvalidInputError(f"{FILE} is not valid YAML{line}.") from None
    return list(document["deployments"])


@contextmanager
def open_server() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that is named, if it answers.

    Raises
    ------
    InvalidInputError
        If none is named, it does not answer, or it wants another password.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise InvalidInputError(
            "no Prefect server is named; start one with `prefect server start`, then set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    with get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            raise InvalidInputError(
                f"the Prefect server at {redact(str(url))!r} does not answer ({type(error).__name__}); start it with "
                "`prefect server start`, or check PREFECT_API_URL."
            )
        try:
            client.read_work_pools(limit=1)  # health is told to everyone
        except PrefectHTTPStatusError as refusal:
            if refusal.response.status_code not in (401, 403):
                raise
            raise InvalidInputError(
                f"the Prefect server at {redact(str(url))!r} wants another user or password; set "
                "PREFECT_API_AUTH_STRING=user:password."
            ) from None
        yield client


def _make_pool(client: SyncPrefectClient, name: str, gpus: int | None) -> None:
    limit = gpus if name == EXTRACTING else None
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        limit = limit or (1 if name == EXTRACTING else None)
        client.create_work_pool(
            WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template, concurrency_limit=limit)
        )
    else:
        if limit is not None:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['entrypoint'].rpartition(':')[2]}/{entry['name']}"


def _runner_deployment(entry: dict[str, Any]) -> RunnerDeployment:
    triggers: TypeAdapter[DeploymentTriggerTypes] = TypeAdapter(DeploymentTriggerTypes)
    deployment = load_flow_from_entrypoint(entry["entrypoint"]).to_deployment(
        entry["name"],
        description=entry["description"],
        tags=entry["tags"],
        parameters=entry["parameters"],
        schedules=[Cron(s["cron"], timezone=s["timezone"], slug=s["slug"]) for s in entry.get("schedules", ())],
        triggers=[triggers.validate_python(trigger) for trigger in entry.get("triggers", ())],
        concurrency_limit=entry.get("concurrency_limit"),
        enforce_parameter_schema=entry["enforce_parameter_schema"],
    )
    assert isinstance(deployment, RunnerDeployment)
    return deployment
