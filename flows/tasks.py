"""The tasks of the flows: each calls one stage function and returns a small frozen reference.

Nothing is computed here, and no array leaves a task; the store decides what is already done.
"""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING, Any

from prefect import task

from flows import artifacts, logs
from flows.config import Head2ToeConfig
from flows.console import say_forecast
from flows.demo import demo_config
from flows.policy import stage_of, task_options
from flows.redaction import redact, redact_all
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.newest import newest_selection
from pipeline.refit import Head, RefitParameters, refit
from pipeline.report import Reproduction, render_report, run_again, save_report
from pipeline.selection import SelectionParameters, read_selection, select_features
from pipeline.statistics import compute_statistics
from store import open_store
from store.aliases import resolve_store
from store.catalogue import list_stores
from store.errors import InvalidInputError, StoreNotFoundError
from store.spec import Frozen

if TYPE_CHECKING:
    from pipeline.extraction import Extraction


class SelectionRef(Frozen):
    """Where a selection is.

    Attributes
    ----------
    uri : str
        The store.
    digest : str
        The selection in it.
    kept : int
        Features kept.
    seconds : float
        Time it took when it was computed.
    reused : bool
        Whether it was there already.
    """

    uri: str
    digest: str
    kept: int
    seconds: float
    reused: bool


class HeadRef(Frozen):
    """Where a head is, and how well it does."""

    method: str
    digest: str
    features: int
    accuracy: dict[str, float]
    seconds: float


@task(name="find stores", **task_options(hours=1))
@stage_of("find stores")
def find_stores(uri: str) -> list[str]:
    """Return the store that a URI, an alias or the beginning of a fingerprint means, or the complete ones of a root."""
    try:
        return [resolve_store(uri)]
    except StoreNotFoundError:
        rows = list_stores(uri)
    complete = [str(row["uri"]) for row in rows if row["state"] == "complete"]
    if not complete:
        raise StoreNotFoundError(f"root {uri!r} has no complete store yet; run the extraction first.")
    return complete


@task(name="find selection", **task_options(hours=1))
@stage_of("find selection")
def find_selection(uri: str, name: str | None) -> SelectionRef | None:
    """Return a stored selection by its digest, or the newest; None if there is none and none was named."""
    store = open_store(uri)
    if name is None:
        try:
            name = newest_selection(store)
        except StoreNotFoundError:
            return None
    found = read_selection(store, name)
    return SelectionRef(
        uri=uri, digest=found.digest, kept=len(found.indices), seconds=found.seconds, reused=found.reused
    )


@task(name="extract", **task_options(hours=72))
@stage_of("extraction")
def extract_task(parameters: ExtractionParameters, root: str) -> Extraction:
    """Write the activation store, or what is missing of it."""
    # What only reads stores does not wait for torchvision and timm to start.
    from pipeline.extraction import extract

    with artifacts.shown_progress() as progress:
        done = extract(parameters, root, progress, announce=say_forecast)
    _log_extraction(done)
    return done


@task(name="statistics", **task_options(hours=12))
@stage_of("statistics")
def statistics_task(uri: str, split: str, dask_address: str | None = None) -> None:
    """Compute the standardisation statistics of the training samples."""
    logs.note(store=uri)
    store = open_store(uri)
    with artifacts.shown_progress() as progress:
        compute_statistics(store, split, progress, dask_address=dask_address)
    logs.note(bytes=store.reads.n_bytes)


@task(name="select", **task_options(hours=24))
@stage_of("selection")
def selection_task(
    uri: str, parameters: SelectionParameters, memory: str = "2GiB", dask_address: str | None = None
) -> SelectionRef:
    """Rank the features and keep the best."""
    logs.note(store=uri)
    store = open_store(uri)
    with artifacts.shown_progress() as progress:
        found = select_features(
            store, parameters, progress, memory=memory, dask_address=dask_address, announce=logs.log
        )
    logs.note(
        selection=found.digest,
        kept=len(found.indices),
        reused=found.reused,
        bytes=0 if found.reused else found.certificate.get("bytes_read", store.reads.n_bytes),
    )
    artifacts.show_selection(store, found)
    return SelectionRef(
        uri=uri, digest=found.digest, kept=len(found.indices), seconds=found.seconds, reused=found.reused
    )


@task(name="refit", **task_options(hours=12))
@stage_of("refit")
def refit_task(selected: SelectionRef, parameters: RefitParameters) -> HeadRef:
    """Train the head on the selected features."""
    logs.note(store=selected.uri)
    store = open_store(selected.uri)
    chosen = read_selection(store, selected.digest)
    head = refit(
        store,
        chosen.indices,
        features={"selection": chosen.digest},
        normalization=chosen.normalization,
        parameters=parameters,
        train=chosen.split,
    )
    return _head_ref("Head2Toe", head, selected.seconds)


@task(name="linear", **task_options(hours=12))
@stage_of("linear")
def linear_task(selected: SelectionRef, parameters: RefitParameters) -> HeadRef | None:
    """Train the baseline: the same head on the last embedding alone; None if no layer of the store is that."""
    logs.note(store=selected.uri)
    store = open_store(selected.uri)
    chosen = read_selection(store, selected.digest)
    try:
        name = store.embedding
    except InvalidInputError as error:
        logs.log(str(error), logging.WARNING)
        return None
    head = refit(
        store,
        store.layer_indices(name),
        features={"layer": name},
        normalization=chosen.normalization,
        parameters=parameters,
        train=chosen.split,
    )
    return _head_ref("Linear (last embedding)", head, 0.0)


@task(name="report", **task_options(hours=1))
@stage_of("report")
def report_task(
    selected: SelectionRef,
    results: list[HeadRef],
    seconds: dict[str, float],
    notes: list[str],
    config: Head2ToeConfig | None = None,
) -> str:
    """Write the HTML page of the run under the store's root; returns where it is."""
    logs.note(store=selected.uri)
    store = open_store(selected.uri)
    chosen = read_selection(store, selected.digest)
    shown = [
        {
            "method": r.method,
            "features": r.features,
            **{split: f"{100 * share:.1f}" for split, share in r.accuracy.items()},
            "head": r.digest,
        }
        for r in results
    ]
    # Sent while the page is written, so that the end of the run has less to wait for.
    artifacts.show_accuracy(store, shown)
    artifacts.show_lineage(store, selected.digest, {r.method: r.digest for r in results})
    again = None if config is None else reproduction(config)
    page = render_report(store, chosen, [r.digest for r in results], seconds, notes, again)
    report = save_report(store, chosen, redact(page))
    artifacts.show_report(store, report)
    return report


def reproduction(config: Head2ToeConfig) -> Reproduction:
    """Return the command that does what this configuration says, secrets left out."""
    weights = config.extraction.weights
    if config == demo_config(config.root, weights):
        return Reproduction(shlex.join(["head2toe", "demo", "--root", config.root, "--weights", weights]))
    return run_again(redact_all(config.model_dump(mode="json", exclude_defaults=True)))


def _log_extraction(done: Extraction) -> None:
    facts: dict[str, Any] = {"extracted": done.extracted, "reused": done.reused}
    if done.extracted:
        facts |= {"bytes": done.forecast.bytes_left, "images_per_second": done.extracted / done.seconds}
    logs.note(store=done.uri, **facts)


def _head_ref(method: str, head: Head, selection_seconds: float) -> HeadRef:
    logs.note(head=head.digest, reused=head.reused, bytes=0 if head.reused else head.facts["bytes_read"])
    return HeadRef(
        method=method,
        digest=head.digest,
        features=len(head.indices),
        accuracy=head.accuracy,
        seconds=round(selection_seconds + head.facts["seconds"], 3),
    )
