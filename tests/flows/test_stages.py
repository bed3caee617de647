"""The flows of single stages under a real Prefect server: what they do, what its page shows, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from flows.config import ExtractionConfig, RefitConfig, SelectionConfig
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.refit import RefitParameters
from pipeline.selection import SelectionParameters
from store import open_store
from store.errors import InvalidInputError, StoreNotFoundError
from store.faults import StorageError
from store.results import list_results

pytestmark = [
    pytest.mark.slow,
    # Prefect's server and its dependencies deprecate each other's functions; that is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("prefect_server"),
]
URL = "s3://AKIAKEY:hunter2hunter2@bucket/stores"


def parameters(**other: Any) -> ExtractionParameters:
    return ExtractionParameters(
        **{"backbone": "test_resnet", "weights": "random:0", "data": "digits", "image_size": 32, **other}
    )


def run(flow: Any, config: Any) -> tuple[Any, SimpleNamespace]:
    """Run a flow; returns its state, and what Prefect knows of the run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
    from prefect.logging.handlers import APILogWorker

    state = flow(config, return_state=True)
    name: UUID = state.state_details.flow_run_id
    APILogWorker.drain_all(timeout=20)
    with get_client(sync_client=True) as client:
        return state, SimpleNamespace(
            run=client.read_flow_run(name),
            artifacts=client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[name]))
            ),
            logs=client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[name]))),
        )


def shown(known: SimpleNamespace) -> str:
    """Return all that Prefect has of a run."""
    documents = [known.run, *known.artifacts, *known.logs]
    return "\n".join(document.model_dump_json() for document in documents)


@pytest.fixture
def events(monkeypatch) -> Iterator[list[dict[str, Any]]]:
    """Events that were emitted."""
    from flows import artifacts

    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        artifacts, "emit_event", lambda event, resource, payload: found.append({"resource": resource, **payload})
    )
    return found


def test_each_stage_runs_on_its_own_and_prefect_shows_what_it_did(tmp_path, events, monkeypatch) -> None:
    from flows import artifacts
    from flows.extraction import extraction
    from flows.refit import refit
    from flows.selection import selection

    monkeypatch.setattr(artifacts, "LONG", 0.0)
    config = ExtractionConfig(root=str(tmp_path), extraction=parameters())
    state, known = run(extraction, config)
    uri = state.result().uri
    fingerprint = open_store(uri).fingerprint
    assert known.run.name == f"test_resnet digits {fingerprint[:8]}"
    assert {"test_resnet", "digits", fingerprint[:8]} <= set(known.run.tags)
    progress = [a for a in known.artifacts if a.type == "progress"]
    assert {"extracting images": 100.0}.items() <= {
        a.description.split(" · ")[0].split(":")[0]: a.data for a in progress
    }.items()
    lineage = {a.key: a.data for a in known.artifacts}[f"lineage-{fingerprint[:8]}"]
    assert fingerprint in lineage
    [line] = [log.message for log in known.logs if "images_per_second" in log.message]
    for part in ("ends run=", "stage=extraction", f"store={uri}", "extracted=1797", "bytes=", "seconds="):
        assert part in line
    [event] = events
    assert event["resource"]["prefect.resource.id"] == f"head2toe.store.{fingerprint}"
    assert (event["store"], event["extracted"]) == (uri, 1797)

    assert run(extraction, config)[0].result().extracted == 0
    assert len(events) == 1, "an extraction that finds everything says nothing"

    # A root stands for its complete stores, so a schedule needs no fingerprint.
    state, known = run(selection, SelectionConfig(store=str(tmp_path), selection=SelectionParameters(keep=40)))
    [selected] = state.result()
    assert (selected.uri, selected.kept) == (uri, 40)
    by_key = {a.key: a for a in known.artifacts}
    table = json.loads(by_key[f"layers-{fingerprint[:8]}"].data)
    assert sum(row["kept"] for row in table) == 40
    assert [row["layer"] for row in table] == list(open_store(uri).layers)
    for picture in ("kept-by-depth", "relevance"):
        assert by_key[f"{picture}-{fingerprint[:8]}"].data.startswith("data:image/svg+xml;base64,")
    assert selected.digest in by_key[f"lineage-{fingerprint[:8]}"].data

    settings = RefitParameters(max_iterations=20)
    state, known = run(refit, RefitConfig(store=f"{tmp_path}/{fingerprint[:6]}", refit=settings))
    linear, ours = state.result()
    assert (ours.features, known.run.name) == (40, f"test_resnet digits {fingerprint[:8]} {selected.digest[:8]}")
    by_key = {a.key: a for a in known.artifacts}
    rows = json.loads(by_key[f"accuracy-{fingerprint[:8]}"].data)
    assert [row["test"] for row in rows] == [f"{100 * h.accuracy['test']:.1f}" for h in (linear, ours)]
    report = by_key[f"report-{fingerprint[:8]}"].data
    path = Path(report[report.index("file://") :].rstrip(")").removeprefix("file://"))
    assert "<svg" in path.read_text(encoding="utf-8")
    assert all(digest in by_key[f"lineage-{fingerprint[:8]}"].data for digest in (selected.digest, ours.digest))


def test_a_store_that_fails_does_not_keep_the_others_from_their_turn_and_one_without_embedding_has_no_baseline(
    tmp_path,
) -> None:
    from flows.refit import refit
    from flows.selection import selection
    from pipeline.importing import import_arrays

    rng = np.random.default_rng(0)

    def make(n_classes: int) -> str:
        layers = {"early": rng.standard_normal((60, 8)), "late": rng.standard_normal((60, 4))}
        return import_arrays({"train": layers}, {"train": np.arange(60) % n_classes}, tmp_path).uri

    bad, good = make(1), [make(3) for _ in range(3)]
    assert max(bad, *good) != bad, "nothing would come after it"
    config = SelectionConfig(store=str(tmp_path), selection=SelectionParameters(keep=3))
    state, known = run(selection, config)
    assert state.is_failed()
    assert "has one class only" in state.message
    assert state.message.endswith("What succeeded is stored; the same run again goes on from there.")
    assert [len(list_results(open_store(uri), "selections")) for uri in (bad, *good)] == [0, 1, 1, 1]

    state, known = run(refit, RefitConfig(store=good[0]))
    [ours] = state.result()
    assert ours.method == "Head2Toe"
    assert "there is no Linear baseline" in shown(known)


def test_what_fails_by_a_users_mistake_fails_at_once_with_the_sentence_alone(tmp_path, events) -> None:
    from flows.extraction import extraction
    from flows.refit import refit

    state, known = run(extraction, ExtractionConfig(root=str(tmp_path), extraction=parameters(backbone="resnet5O")))
    assert state.is_failed()
    assert known.run.state.message.startswith("backbone 'resnet5O' is not a timm model; did you mean 'resnet50'")
    assert "Traceback" not in shown(known)
    with pytest.raises(InvalidInputError, match="resnet5O"):
        state.result()
    assert not events
    with pytest.raises(StoreNotFoundError, match="does not exist or is empty"):
        refit(RefitConfig(store=str(tmp_path / "nowhere")))


def test_what_may_pass_is_tried_again_and_a_secret_in_it_is_never_shown(tmp_path, events, monkeypatch) -> None:
    from flows import extraction as module
    from flows import tasks

    calls = []

    def fails_first(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 3:
            raise StorageError(f"{URL} cannot be read: nothing answers") from ConnectionError(URL)
        raise InvalidInputError(f"{URL} is not a place.") from ConnectionError(URL)

    monkeypatch.setattr("pipeline.extraction.extract", fails_first)
    monkeypatch.setattr(module, "extract_task", tasks.extract_task.with_options(retry_delay_seconds=0))
    state, known = run(module.extraction, ExtractionConfig(root=str(tmp_path), extraction=parameters()))
    assert len(calls) == 3
    assert state.message == known.run.state.message == "s3://***@bucket/stores is not a place."
    text = shown(known)
    assert "cannot be read: nothing answers" in text, "each failure is in the log"
    assert "hunter2" not in text + str(state.result(raise_on_failure=False))
    assert "AKIAKEY" not in text


def test_artifacts_and_events_hold_no_secret_and_their_failure_is_only_a_warning(
    store, events, monkeypatch, capsys
) -> None:
    from prefect import flow

    from flows import artifacts, logs

    monkeypatch.setattr(artifacts, "LONG", 0.0)
    sent: list[str] = []

    def publish() -> None:
        artifacts.show_accuracy(store, [{"method": URL, "test": 0.5}])
        artifacts.show_report(store, URL)
        with artifacts.shown_progress() as progress:
            progress(f"reading {URL}", 3, 3)

    state, known = run(flow(name="secret")(lambda config: publish()), 0)
    assert state.is_completed()
    assert len(known.artifacts) == 3
    assert "hunter2" not in shown(known)
    assert shown(known).count("s3://***@bucket/stores") >= 3

    def refuse(*arguments: Any, **options: Any) -> None:
        sent.append("tried")
        raise RuntimeError(f"no such artifact at {URL}")

    for name in ("create_table_artifact", "create_link_artifact", "create_progress_artifact"):
        monkeypatch.setattr(artifacts, name, refuse)
    logs.configure("warning")
    state, known = run(flow(name="secret")(lambda config: publish()), 0)
    assert state.is_completed()
    assert sent == ["tried"] * 3
    said = capsys.readouterr().err
    assert said.count("WARNING Prefect does not show") == 3
    assert "hunter2" not in said


def test_only_long_stages_have_a_progress_bar_on_the_page(monkeypatch) -> None:
    """A stage begins when the one before has ended; its first call comes when some of it is done."""
    from flows import artifacts

    now, shown, busy = [100.0], [], [False]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda share, description: uuid4())
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda *_, **__: None)

    class Sender:
        @property
        def busy(self) -> bool:
            return busy[0]

        def send(self, what: str, call: Any) -> None:
            shown.append(round(now[0] - 100, 1))
            call()

    progress = artifacts._Progress(Sender())
    for at, stage, done in (
        (0.2, "reading", 4),
        (0.9, "reading", 10),
        (2.0, "extracting · reading 90 %", 1),  # begun at 0.9
        (2.5, "extracting · reading 80 %", 2),
        (4.1, "extracting · reading 80 %", 3),
        (9.0, "extracting · reading 80 %", 4),
        (9.1, "extracting · reading 80 %", 10),
        (9.2, "solving", 10),
        (19.0, "ranking", 10),
    ):
        now[0], busy[0] = 100 + at, at == 9.0
        progress(stage, done, 10)
    assert shown == [2.0, 4.1, 9.1, 19.0]


def test_a_url_with_credentials_is_refused_before_prefect_stores_it() -> None:
    for kind, other in (
        (ExtractionConfig, {"root": URL, "extraction": parameters()}),
        (SelectionConfig, {"store": URL}),
    ):
        with pytest.raises(InvalidInputError, match=r"s3://\*\*\*@bucket/stores': a URL must not carry credentials"):
            kind.model_validate(other)


def test_the_evaluation_is_a_flow_whose_table_prefect_shows(tmp_path) -> None:
    from flows.evaluation import evaluation
    from pipeline.evaluation import EvaluationConfig

    config = EvaluationConfig.model_validate(
        {
            "root": str(tmp_path),
            "tasks": [{"name": "digits", "data": "digits"}],
            "extraction": {**parameters().model_dump(exclude={"data"}), "taps": ["embedding"]},
            "methods": {"Linear": {"method": "linear"}},
            "protocol": {"folds": 2},
        }
    )
    state, known = run(evaluation, config)
    found = state.result()
    assert found.accuracy["digits"]["Linear"] > 0.3
    [table] = [json.loads(a.data) for a in known.artifacts if a.key == "evaluation"]
    assert [row["task"] for row in table] == ["digits", "mean over tasks"]
    assert table[0]["Linear"] == f"{100 * found.accuracy['digits']['Linear']:.1f}"
    assert known.run.name == "test_resnet 1 tasks"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (StorageError("nothing answers"), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError("socket"), True),
        (OSError(5, "Input/output error"), True),
        (OSError(28, "No space left on device"), False),
        (FileNotFoundError(2, "no such file"), False),
        (InvalidInputError("a bad image"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again) -> None:
    from prefect.states import Failed
    from prefect.task_engine import TaskRunTimeoutError

    from flows.policy import may_pass
    from pipeline.compute import ClusterError

    assert may_pass(None, None, Failed(data=error)) is again
    assert may_pass(None, None, Failed(data=ClusterError("a worker was killed"))) is True
    assert may_pass(None, None, Failed(data=TaskRunTimeoutError("72 hours"))) is False
