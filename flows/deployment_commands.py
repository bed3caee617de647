"""Commands that bring the flows to a Prefect server: `deploy` and `serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.console import print_facts, print_json, say
from flows.options import DryRun, Json


def deploy(
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of the pool gpu at a time, over all workers; 1 in a new pool, else as it is."),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make the work pools and deployments of prefect.yaml, or bring them up to date.

    The Prefect server is that of PREFECT_API_URL. Workers then take the runs: one per GPU of the pool gpu, for
    whatever sends images through a backbone, and some of the pool cpu, for selection and refit.

    For example:
      head2toe deploy --gpus 2
      head2toe deploy --dry-run
    """
    _silence()
    from flows.deploying import deploy as put
    from flows.deploying import foresee

    if dry_run:
        found = foresee()
        if as_json:
            print_json(found)
        else:
            print_facts({f"{kind} {name}": state for kind, names in found.items() for name, state in names.items()})
        return
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

    For example:
      head2toe serve --limit 2
    """
    _silence()
    from flows.deploying import serve_all

    say("serving the deployments of prefect.yaml; Ctrl-C ends it.")
    serve_all(limit)


def _silence() -> None:
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (deploy, serve):
        app.command()(command)
