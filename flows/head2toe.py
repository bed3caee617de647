"""The Prefect flow `head2toe`: extraction, statistics, selection, refit and report, in order.

Nothing is computed here. Every task calls one stage function and passes on a small frozen reference; the store itself
decides what is already done, so Prefect's result cache is not used.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.config import Head2ToeConfig
from flows.console import ProgressBars, say_forecast
from pipeline.extraction import Extraction, extract
from pipeline.planning import ExtractionParameters
from pipeline.refit import Head, RefitParameters, refit
from pipeline.report import render_report
from pipeline.selection import SelectionParameters, read_selection, select_features
from pipeline.statistics import compute_statistics
from store import open_store
from store.errors import Head2ToeError
from store.objects import join, open_objects
from store.spec import Frozen


class SelectionRef(Frozen):
    """Where a selection is."""

    uri: str
    digest: str
    kept: int
    seconds: float


class HeadRef(Frozen):
    """Where a head is, and how well it does."""

    method: str
    digest: str
    features: int
    accuracy: dict[str, float]
    seconds: float


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


@task(name="extract", cache_policy=NO_CACHE, persist_result=False)
def extract_task(parameters: ExtractionParameters, root: str) -> Extraction:
    """Write the activation store, or what is missing of it."""
    with ProgressBars() as progress:
        return extract(parameters, root, progress, announce=say_forecast)


@task(name="statistics", cache_policy=NO_CACHE, persist_result=False)
def statistics_task(uri: str, split: str) -> None:
    """Compute the standardisation statistics of the training samples."""
    with ProgressBars() as progress:
        compute_statistics(open_store(uri), split, progress)


@task(name="select", cache_policy=NO_CACHE, persist_result=False)
def selection_task(uri: str, parameters: SelectionParameters) -> SelectionRef:
    """Rank the features and keep the best."""
    with ProgressBars() as progress:
        selection = select_features(open_store(uri), parameters, progress)
    return SelectionRef(uri=uri, digest=selection.digest, kept=len(selection.indices), seconds=selection.seconds)


@task(name="refit", cache_policy=NO_CACHE, persist_result=False)
def refit_task(selected: SelectionRef, parameters: RefitParameters, train: str) -> HeadRef:
    """Train the head on the selected features."""
    store = open_store(selected.uri)
    selection = read_selection(store, selected.digest)
    features = {"selection": selection.digest}
    normalization = selection.normalization
    head = refit(
        store, selection.indices, features=features, normalization=normalization, parameters=parameters, train=train
    )
    return _head_ref("Head2Toe", head, selected.seconds)


@task(name="linear", cache_policy=NO_CACHE, persist_result=False)
def linear_task(uri: str, selection: SelectionParameters, parameters: RefitParameters) -> HeadRef:
    """Train the baseline: the same head on the last embedding alone."""
    store = open_store(uri)
    name = store.embedding
    head = refit(
        store,
        store.layer_indices(name),
        features={"layer": name},
        normalization=selection.normalization,
        parameters=parameters,
        train=selection.split,
    )
    return _head_ref("Linear (last embedding)", head, 0.0)


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_task(
    selected: SelectionRef, results: list[HeadRef], seconds: dict[str, float], notes: list[str], root: str
) -> str:
    """Write the HTML page of the run; returns where it is."""
    store = open_store(selected.uri)
    rows = [
        {"head": r.digest, "accuracy": r.accuracy["test"], **r.model_dump(exclude={"digest", "accuracy"})}
        for r in results
    ]
    page = render_report(store, read_selection(store, selected.digest), rows, seconds, notes)
    name = f"{store.fingerprint}-{selected.digest}.html"
    open_objects(join(root, "reports")).write(name, [page.encode()])
    return join(join(root, "reports"), name)


@flow(name="head2toe", persist_result=False)
def head2toe(config: Head2ToeConfig) -> RunSummary:
    """Extract what is missing, select features, train the heads and write the report."""
    seconds: dict[str, float] = {}

    def timed(stage: str, call: Any, *args: Any) -> Any:
        start = time.perf_counter()
        value = call(*args)
        seconds[stage] = round(time.perf_counter() - start, 3)
        return value

    split = config.selection.split
    extraction: Extraction = timed("extraction", extract_task, config.extraction, config.root)
    timed("statistics", statistics_task, extraction.uri, split)
    selected: SelectionRef = timed("selection", selection_task, extraction.uri, config.selection)
    head: HeadRef = timed("refit", refit_task, selected, config.refit, split)
    linear: HeadRef = timed("linear", linear_task, extraction.uri, config.selection, config.refit)
    notes = [*_notes(config.extraction.weights), *extraction.remarks, *filter(None, (extraction.bottleneck,))]
    results = [linear, head]
    report = timed("report", report_task, selected, results, seconds, notes, config.root)
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


def _head_ref(method: str, head: Head, selection_seconds: float) -> HeadRef:
    return HeadRef(
        method=method,
        digest=head.digest,
        features=len(head.indices),
        accuracy=head.accuracy,
        seconds=round(selection_seconds + head.facts["seconds"], 3),
    )


def _notes(weights: str) -> list[str]:
    if not weights.startswith("random"):
        return []
    return [
        "The backbone has random weights, not trained ones: the figures show that the pipeline works, not how well "
        "the method transfers; use --weights shipped or pretrained for that."
    ]


class _OneSentence(logging.Filter):
    """Lets Prefect log a user's mistake as its sentence instead of a stack."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Head2ToeError):
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_OneSentence())
