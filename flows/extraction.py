"""The Prefect flow `extraction`: images through the backbone once, and an event if there is anything new."""

from __future__ import annotations

from prefect import flow

from flows import artifacts
from flows.config import ExtractionConfig
from flows.policy import HOUR, run_name, told
from flows.tasks import extract_task
from pipeline.extraction import Extraction
from store import open_store


@flow(name="extraction", flow_run_name=run_name, timeout_seconds=72 * HOUR, persist_result=False)
@told
def extraction(config: ExtractionConfig) -> Extraction:
    """Write an activation store, or what is missing of it; what is new starts the deployment of the selection."""
    done = extract_task(config.extraction, config.root)
    store = open_store(done.uri)
    artifacts.name_run(store)
    artifacts.show_lineage(store)
    if done.extracted:
        artifacts.announce_store(store, done)
    return done
