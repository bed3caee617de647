"""The Prefect flow `refit`: heads on selections that are there; no backbone is loaded and no pass is made."""

from __future__ import annotations

import time

from prefect import flow

from flows import artifacts
from flows.config import RefitConfig
from flows.policy import HOUR, on_each, run_name, told
from flows.tasks import HeadRef, find_selection, find_stores, linear_task, refit_task, report_task
from store import open_store
from store.errors import StoreNotFoundError


@flow(name="refit", flow_run_name=run_name, timeout_seconds=24 * HOUR, persist_result=False)
@told
def refit(config: RefitConfig) -> list[HeadRef]:
    """Train the head on a selection, and the linear baseline beside it; write the report."""
    uris = find_stores(config.store)

    def train(uri: str) -> list[HeadRef]:
        selected = find_selection(uri, config.selection)
        if selected is None:
            return []
        if len(uris) == 1:
            artifacts.name_run(open_store(uri), selected.digest[: artifacts.SHORT])
        start = time.perf_counter()
        linear, head = linear_task(selected, config.refit), refit_task(selected, config.refit)
        seconds = {"selection": selected.seconds, "refit": round(time.perf_counter() - start, 3)}
        heads = [*filter(None, (linear,)), head]
        report_task(selected, heads, seconds, [])
        return heads

    found = [head for heads in on_each(uris, train) for head in heads]
    if not found:
        raise StoreNotFoundError(f"{config.store!r} has no selection yet; run the selection first.")
    return found
