"""What Prefect's page shows of a run: progress, tables, pictures, links and lineage, and the event of a new store."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import runtime
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.events import emit_event

from flows.console import ProgressBars
from flows.redaction import redact, redact_all
from flows.sending import Sender, attempt, send, sending
from pipeline.selection import Selection
from store.activations import ActivationStore

if TYPE_CHECKING:
    from pipeline.extraction import Extraction

EVENT = "head2toe.store.extracted"
SHORT = 8
"""Digits of a fingerprint that names of runs and keys of artifacts have."""
SECONDS = 2.0
"""Least time between two updates of a progress artifact."""
LONG = 1.0
"""Seconds after which a stage has a progress artifact."""


def name_run(store: ActivationStore, *details: str) -> None:
    """Give the run the name and the tags of what it is about, now that this is known."""
    facts = store.summary
    words = [str(facts["backbone"]), str(facts["data"] or ""), store.fingerprint[:SHORT]]
    name = redact(" ".join([*filter(None, words), *details]))
    # Also outside of a flow's own thread, the identifier is that of its run.
    tags = sorted({*runtime.flow_run.tags, *map(redact, filter(None, words))})

    def rename() -> None:
        get_client(sync_client=True).update_flow_run(UUID(runtime.flow_run.id), name=name, tags=tags)

    send("the name of the run", rename)


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a progress callback that moves a bar on standard error and one on Prefect's page.

    On the page, a stage has one once it takes longer than `LONG`; an update is left out while the server has not taken
    what was sent before, and there is one in `SECONDS` at most.
    """
    with sending() as sender, ProgressBars() as bars:
        page = _Progress(sender)

        def show(stage: str, done: int, total: int) -> None:
            clean = redact(stage)
            bars(clean, done, total)
            page(clean, done, total)

        yield show


class _Progress:
    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._artifacts: dict[str, UUID] = {}
        self._stage = ""
        self._began = self._called = time.monotonic()
        self._last = -SECONDS
        self._broken = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        name, now = stage.partition(" · ")[0], time.monotonic()
        if name != self._stage:
            # The first call comes when some of a stage is done: it began when the one before had ended.
            self._stage, self._began, self._last = name, self._called, -SECONDS
        self._called = now
        due = done >= total or (now - self._last >= SECONDS and not self._sender.busy)
        if self._broken or now - self._began < LONG or not due:
            return
        self._last = now
        share = 100.0 * done / total if total else 100.0
        self._sender.send("the progress", lambda: self._update(name, f"{stage}: {done:,} of {total:,}", share))

    def _update(self, name: str, text: str, share: float) -> None:
        if self._broken:
            return
        # Unless all goes well; one warning is enough.
        self._broken = True
        if (known := self._artifacts.get(name)) is None:
            made = create_progress_artifact(share, description=text)
            assert isinstance(made, UUID)
            self._artifacts[name] = made
        else:
            update_progress_artifact(known, share, description=text)
        self._broken = False


def show_selection(store: ActivationStore, selection: Selection) -> None:
    """Show the layers with what is kept of each, and the two pictures of the report."""
    from pipeline.report.pictures import draw_pictures

    key = store.fingerprint[:SHORT]
    kept = selection.per_layer(store)
    rows = [
        {
            "layer": name,
            "features": layer.n_features,
            "kept": kept[name],
            "share": f"{kept[name] / layer.n_features:.1%}",
        }
        for name, layer in store.layers.items()
    ]
    found = f"{len(selection.indices):,} of {store.n_features:,} features kept by {selection.scorer}"
    _table(f"layers-{key}", rows, f"Layers and kept features of selection {selection.digest[:SHORT]}: {found}.")
    for name, title, picture in attempt("the pictures", lambda: draw_pictures(store, selection)) or ():
        url = "data:image/svg+xml;base64," + base64.b64encode(redact(picture).encode()).decode()
        send(f"the picture {name!r}", create_image_artifact, url, key=f"{name}-{key}", description=title)


def show_accuracy(store: ActivationStore, rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the table of accuracies; a row has the method, its features, a number per split, and the head."""
    _table(f"accuracy-{store.fingerprint[:SHORT]}", rows, "Accuracy by method, in percent.")


def show_evaluation(rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the table of an evaluation, a row per task and one per mean."""
    _table("evaluation", rows, "Test accuracy by task and method, in percent.")


def show_report(store: ActivationStore, uri: str) -> None:
    """Show the way to the full report."""
    link = uri if "://" in uri else Path(uri).absolute().as_uri()
    key = f"report-{store.fingerprint[:SHORT]}"
    send("the report", create_link_artifact, redact(link), "the full report", key=key, description="The full report.")


def show_lineage(store: ActivationStore, selection: str = "", heads: Mapping[str, str] | None = None) -> None:
    """Show which weights, images and preprocessing the results come from, box by box."""
    facts = store.summary
    spec = store.spec.model_dump(mode="json")
    weights = spec.get("backbone", {}).get("weights_digest", "")
    splits = ", ".join(
        f"{name} {split['n_samples']:,} (`{split['manifest_digest']}`)"
        for name, split in spec["data"]["splits"].items()
    )
    lines = [
        ("backbone", f"{facts['backbone']}, weights {facts['weights']}" + (f" (`{weights}`)" if weights else "")),
        ("images", f"{facts['data']}: {splits}"),
        ("store", f"`{store.uri}`"),
        ("fingerprint", f"`{store.fingerprint}`"),
        *([("parent", f"`{store.provenance['parent']}`")] if store.provenance.get("parent") else []),
        *([("selection", f"`{selection}`")] if selection else []),
        *((f"head of {method}", f"`{digest}`") for method, digest in (heads or {}).items()),
    ]
    page = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines)])
    key = f"lineage-{store.fingerprint[:SHORT]}"
    send("the lineage", create_markdown_artifact, redact(page), key=key, description="What comes from what.")


def announce_store(store: ActivationStore, done: Extraction) -> None:
    """Tell Prefect that a store has new samples; the deployment `selection` waits for that."""
    facts = store.summary
    payload = {
        "store": store.uri,
        "fingerprint": store.fingerprint,
        "backbone": facts["backbone"],
        "data": facts["data"],
        "extracted": done.extracted,
    }
    resource = {"prefect.resource.id": f"head2toe.store.{store.fingerprint}", "prefect.resource.name": store.uri}
    send("the event", emit_event, EVENT, redact_all(resource), payload=redact_all(payload))


def _table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    table = [redact_all(dict(row)) for row in rows]
    send(f"the table {key!r}", create_table_artifact, table, key=key, description=redact(description))
