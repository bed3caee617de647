"""The Prefect flow `selection`: rank the features of stores that are there; no backbone is loaded."""

from __future__ import annotations

from prefect import flow

from flows import artifacts
from flows.config import SelectionConfig
from flows.policy import HOUR, on_each, run_name, told
from flows.tasks import SelectionRef, find_stores, selection_task
from store import open_store


@flow(name="selection", flow_run_name=run_name, timeout_seconds=24 * HOUR, persist_result=False)
@told
def selection(config: SelectionConfig) -> list[SelectionRef]:
    """Select features of a store, or of every complete store of a root; what is selected already is found."""
    uris = find_stores(config.store)

    def select(uri: str) -> SelectionRef:
        store = open_store(uri)
        if len(uris) == 1:
            artifacts.name_run(store, config.selection.scorer)
        selected = selection_task(uri, config.selection, config.memory, config.dask_address)
        artifacts.show_lineage(store, selected.digest)
        return selected

    return list(on_each(uris, select))
