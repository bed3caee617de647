"""Commands that bring the flows to a Prefect server: `deploy` and `serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.catalogue_commands import Json
from flows.console import print_json, say


def deploy(
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of the pool gpu at a time, over all workers; 1 in a new pool, else as it is."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the work pools and deployments of prefect.yaml on the Prefect server, or bring them up to date.

    The server is that of PREFECT_API_URL. Workers then take the runs: one per GPU of the pool gpu, for whatever sends
    images through a backbone, and some of the pool cpu, for selection and refit.

    Example: head2toe deploy --gpus 2
    """
    _quiet()
    from flows.deploying import deploy as put

    names = put(gpus)
    if as_json:
        print_json(names)
        return
    for name in names:
        typer.echo(name)
    say(
        "deployed; start workers with `prefect worker start --pool gpu --limit 1` and "
        "`prefect worker start --pool cpu --limit 1`."
    )


def serve(
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; each has a process of its own.")] = 1,
) -> None:
    """Run all deployments of prefect.yaml from this one process, without work pools and workers, until it is stopped.

    The server is that of PREFECT_API_URL. Schedules pause while nothing serves them.

    Example: head2toe serve --limit 2
    """
    _quiet()
    from flows.deploying import serve_all

    say("serving the deployments of prefect.yaml; Ctrl-C ends it.")
    serve_all(limit)


def _quiet() -> None:
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (deploy, serve):
        app.command()(command)
