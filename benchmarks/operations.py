"""What Prefect costs and keeps: a flow and plain functions, the first useful work, cancelled runs, a queue of runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import yaml

from benchmarks.ratios import alternate, at_most, report

if TYPE_CHECKING:
    from flows.config import Head2ToeConfig

TOOLS = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
QUEUED = 100
SECONDS_PER_RUN = 120
"""How long to wait for a queued run; ten times what it takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=QUEUED, help="selections to queue; other numbers are not kept")
    queued = parser.parse_args().queued
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)):
        rows = overhead(Path(folder))
        # Each as soon as it is there: the last takes longest.
        print(rows, flush=True)
        rows += first_work(Path(folder))
        print(rows[-3:], flush=True)
        # Served first: what belongs to work pools is not served.
        rows += cancelled(Path(folder), "serve", "head2toe", "serve")
        deploy()
        gpu = ("prefect", "worker", "start", "--pool", "gpu", "--type", "process")
        rows += cancelled(Path(folder), "a worker", *gpu)
        print(rows[-4:], flush=True)
        rows += queue(Path(folder), queued)
    report("operations" if queued == QUEUED else None, rows)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[None]:
    """Run a Prefect server of its own, which this process and all it starts use."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    with started(folder, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"):
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health"):
                break
            time.sleep(0.2)
        yield


@contextlib.contextmanager
def started(folder: Path, *command: str) -> Iterator[psutil.Process]:
    """Run one of our commands until the context ends; what it says goes to a file."""
    with (folder / f"{command[1]}.log").open("wb") as log:
        process = subprocess.Popen([TOOLS / command[0], *command[1:]], stdout=log, stderr=log, cwd=ROOT)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            # Seen where this was started in a shell's background; why Prefect's worker then goes on is not known.
            process.kill()
            process.wait()


def overhead(folder: Path) -> list[dict[str, Any]]:
    """Time the demo from images to report, in a new root each time: plainly, and as a flow on servers that are up.

    All of it as `head2toe run` and `demo` do it: with the in-process server, or that of `PREFECT_API_URL`.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.demo import demo_config
    from flows.head2toe import head2toe
    from flows.runtime import prefect_ready

    root = folder / "demo"

    def anew(call: Any) -> None:
        shutil.rmtree(root, ignore_errors=True)
        call(demo_config(str(root)))

    def row(name: str) -> dict[str, Any]:
        seconds = alternate({"flow": partial(anew, head2toe), "plain": partial(anew, plainly)}, runs=31)
        note = f"{seconds['flow']:.2f} s / {seconds['plain']:.2f} s"
        return at_most(
            f"the demo as a flow, {name} / as plain functions", seconds["flow"] / seconds["plain"], 1.15, note
        )

    with prefect_ready():
        rows = [row("server of its own")]
    with temporary_settings(restore_defaults={PREFECT_API_URL}), prefect_ready():
        rows.append(row("in-process server"))
    return rows


def plainly(config: Head2ToeConfig) -> None:
    """Do what the flow does, by its stage functions."""
    from pipeline.extraction import extract
    from pipeline.refit import refit
    from pipeline.report import render_report
    from pipeline.selection import select_features
    from pipeline.statistics import compute_statistics
    from store import open_store

    done = extract(config.extraction, config.root)
    compute_statistics(open_store(done.uri))
    store = open_store(done.uri)
    selection = select_features(store, config.selection)
    heads = []
    for indices, features in (
        (selection.indices, {"selection": selection.digest}),
        (store.layer_indices(store.embedding), {"layer": store.embedding}),
    ):
        head = refit(
            open_store(done.uri),
            indices,
            features=features,
            normalization=selection.normalization,
            parameters=config.refit,
        )
        heads.append(head.digest)
    page = render_report(store, selection, heads)
    Path(config.root, "report.html").write_text(page, encoding="utf-8")


def first_work(folder: Path) -> list[dict[str, Any]]:
    """Time commands from their start to the forecast, which is said when images and weights have been read."""
    data = folder / "noise.npz"
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 32, 32, 3), np.uint8), np.arange(64) % 2
    np.savez(data, x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    extraction = {"backbone": "test_resnet", "weights": "random:0", "data": str(data), "image_size": 32}
    config = folder / "run.yaml"
    alone = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}

    def until_forecast(environment: dict[str, str], *words: str) -> None:
        # A root of its own, or there would be nothing to do.
        root = tempfile.mkdtemp(dir=folder)
        config.write_text(yaml.safe_dump({"root": root, "extraction": extraction}))
        command = [TOOLS / "head2toe", *words, *(["--root", root] if words[0] == "extract" else [])]
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as run:
            assert run.stderr is not None
            said = []
            for line in run.stderr:
                said.append(line)
                if line.startswith("samples:"):
                    break
            else:
                raise RuntimeError("".join(said))
            begun.append(time.perf_counter())
            run.stderr.read()

    begun: list[float] = []
    options = [word for key, value in extraction.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    seconds: dict[str, list[float]] = {}
    for turn in range(4):
        for name, environment, words in (
            ("head2toe extract, which starts no Prefect", alone, ("extract", *options)),
            ("head2toe run, in-process server", alone, ("run", str(config))),
            ("head2toe run, server running", dict(os.environ), ("run", str(config))),
        ):
            start = time.perf_counter()
            until_forecast(environment, *words)
            if turn:
                seconds.setdefault(name, []).append(begun[-1] - start)
    return [
        {"what": f"{name}: s to the first useful work", "value": float(np.median(values))}
        for name, values in seconds.items()
    ]


def deploy() -> None:
    """Make the work pools and the deployments."""
    subprocess.run([TOOLS / "head2toe", "deploy"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def cancelled(folder: Path, what: str, *runner: str) -> list[dict[str, Any]]:
    """Cancel an extraction that is under way, and time the end of its process and the end of the run."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelling

    root = folder / f"cancelled-{runner[1]}"
    # Large images, one at a time, in small blocks: minutes of work, and soon something to keep.
    extraction = {"backbone": "test_resnet", "data": "digits", "image_size": 256, "batch_size": 1, "block_size": 50}
    parameters = {"config": {"root": str(root), "extraction": extraction | {"weights": "random:0"}}}

    def wait(done: Any) -> None:
        start = time.perf_counter()
        while not done():
            if time.perf_counter() - start > SECONDS_PER_RUN:
                raise RuntimeError((folder / f"{runner[1]}.log").read_text())
            time.sleep(0.05)

    def find() -> Any:
        with contextlib.suppress(ObjectNotFound):
            return client.read_deployment_by_name("extraction/extraction")

    def ended() -> bool:
        state = client.read_flow_run(run.id).state
        return state is not None and state.is_final()

    with get_client(sync_client=True) as client, started(folder, *runner) as process:
        wait(find)
        run = client.create_flow_run_from_deployment(find().id, parameters=parameters)
        wait(lambda: any(root.glob("*.zarr/blocks/*/*.json")))
        working = process.children(recursive=True)
        start = time.perf_counter()
        client.set_flow_run_state(run.id, Cancelling())
        _, left = psutil.wait_procs(working, SECONDS_PER_RUN)
        if not working or left:
            raise RuntimeError(f"{what} had {len(working)} processes, of which {len(left)} are left.")
        work = time.perf_counter() - start
        wait(ended)
        whole = time.perf_counter() - start
    return [
        at_most(f"s from Cancel to the end of the process that works, run by {what}", work, 10),
        {"what": f"s from Cancel to Prefect's Cancelled, run by {what}", "value": whole},
    ]


def queue(folder: Path, n: int) -> list[dict[str, Any]]:
    """Queue selections of different sizes on one worker of the pool `cpu`, and see that each is made once."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.states import Scheduled

    from flows.demo import demo_config
    from pipeline.extraction import extract
    from store import open_store
    from store.results import list_results

    root = str(folder / "queue")
    uri = extract(demo_config(root).extraction, root).uri
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("selection/selection")
        ids = [
            client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"config": {"store": uri, "selection": {"scorer": "variance", "keep": 1 + i}}},
                state=Scheduled(),
            ).id
            for i in range(n)
        ]
        start = time.perf_counter()
        with started(folder, "prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--limit", "2"):
            left = set(ids)
            while left and time.perf_counter() - start < n * SECONDS_PER_RUN:
                time.sleep(2)
                runs = [client.read_flow_run(id) for id in left]
                left -= {run.id for run in runs if run.state is not None and run.state.is_final()}
        seconds = time.perf_counter() - start
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)), limit=n)
    completed = [run for run in runs if run.state is not None and run.state.is_completed()]
    made = len(list_results(open_store(uri), "selections"))
    return [
        at_most(f"runs lost, of {n} selections queued on one worker", n - min(made, len(completed)), 0),
        at_most(f"runs started twice, of {n}", sum(run.run_count for run in runs) - len(runs), 0),
        {"what": "s per queued selection, two at a time", "value": seconds / n},
    ]


if __name__ == "__main__":
    main()
