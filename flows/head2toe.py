"""The Prefect flow `head2toe`: extraction, statistics, selection, refit and report, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import flow

from flows import artifacts
from flows.config import Head2ToeConfig
from flows.policy import HOUR, run_name, told
from flows.tasks import (
    HeadRef,
    extract_task,
    linear_task,
    refit_task,
    report_task,
    selection_task,
    statistics_task,
)
from pipeline.report import about_weights
from store import open_store
from store.spec import Frozen

NO_BASELINE = "no layer of the store is the embedding, so there is no Linear baseline; the preset 'head2toe' has it."
P = ParamSpec("P")
R = TypeVar("R")


class RunSummary(Frozen):
    """What a run of the flow `head2toe` did.

    Attributes
    ----------
    store : str
        URI of the activation store.
    extracted, reused : int
        Samples extracted by this run, and found in the store.
    seconds_saved : float
        What extracting the re-used samples had cost.
    selection : str
        Digest of the selection.
    results : tuple of HeadRef
        One row per method.
    report : str
        Where the HTML page is.
    seconds : dict of str to float
        Time by stage.
    notes : tuple of str
        What a reader of the figures must know.
    announced : tuple of str
        Those of them that were said before the extraction.
    """

    store: str
    extracted: int
    reused: int
    seconds_saved: float
    selection: str
    results: tuple[HeadRef, ...]
    report: str
    seconds: dict[str, float]
    notes: tuple[str, ...]
    announced: tuple[str, ...]


@flow(name="head2toe", flow_run_name=run_name, timeout_seconds=96 * HOUR, persist_result=False)
@told
def head2toe(config: Head2ToeConfig) -> RunSummary:
    """Extract what is missing, select features, train the heads and write the report."""
    seconds: dict[str, float] = {}

    def timed(stage: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        start = time.perf_counter()
        value = call(*args, **kwargs)
        seconds[stage] = round(time.perf_counter() - start, 3)
        return value

    selection, address = config.selection, config.dask_address
    extraction = timed("extraction", extract_task, config.extraction, config.root)
    artifacts.name_run(open_store(extraction.uri))
    timed("statistics", statistics_task, extraction.uri, selection.split, address)
    selected = timed("selection", selection_task, extraction.uri, selection, config.memory, address)
    head = timed("refit", refit_task, selected, config.refit)
    linear = timed("linear", linear_task, selected, config.refit)
    notes = [*about_weights(config.extraction.weights), *extraction.remarks, *filter(None, (extraction.bottleneck,))]
    results = [*filter(None, (linear,)), head]
    if linear is None:
        notes.append(NO_BASELINE)
    report = timed("report", report_task, selected, results, seconds, notes, config)
    return RunSummary(
        store=extraction.uri,
        extracted=extraction.extracted,
        reused=extraction.reused,
        seconds_saved=round(extraction.seconds_saved, 3),
        selection=selected.digest,
        results=tuple(results),
        report=report,
        seconds=seconds,
        notes=tuple(notes),
        announced=extraction.forecast.notes,
    )
