"""Remote storage may fail at any request.

Policy: a fault that may pass is tried again and nobody notices; one that stays is one sentence after bounded attempts;
a part of an object is never returned as the object; what was not committed is missing, and the same command writes it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator

import numpy as np
import pytest
from loopback import Fault, Proxy, proxy
from samples import LAYERS, SPLITS, synthetic, write_all

from pipeline.verification import verify_store
from store import create_store, open_store, remote
from store.errors import Head2ToeError, InvalidInputError
from store.faults import StorageError
from store.objects import open_objects

pytestmark = pytest.mark.slow

P = sum(LAYERS.values())


@pytest.fixture
def faulty(s3_root: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server that fails as it is told; stores are opened through it."""
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    with proxy(s3_server) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def made(s3_root: str) -> str:
    """URI of a complete store, written past the proxy."""
    values, manifests = synthetic()
    writer = create_store(f"{s3_root}/s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    write_all(writer, values)
    return writer.uri


def sentence(error: pytest.ExceptionInfo[Head2ToeError]) -> str:
    """Return the error's text, having checked that nothing else is shown."""
    shown = "".join(traceback.format_exception(error.value))
    assert "botocore" not in shown.replace("site-packages/botocore", "").split("Traceback")[-1]
    assert "direct cause" not in shown
    assert "During handling" not in shown
    assert "testing-secret" not in shown
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


PASSING = {
    "500": {"kind": 500},
    "503": {"kind": 503, "code": "SlowDown"},
    "429": {"kind": 429, "code": "TooManyRequests"},
    "dropped connection": {"kind": "drop"},
    "body cut": {"kind": "cut"},
}


@pytest.mark.parametrize("fault", PASSING)
def test_reading_survives_a_fault_that_passes(made, faulty, values, fault) -> None:
    faulty.faults = [
        Fault(**PASSING[fault], path="/layers/", times=2),
        Fault(**PASSING[fault], path="/zarr.json", times=2),
        Fault(**PASSING[fault], path="list-type=2", times=1),
    ]
    store = open_store(made)
    np.testing.assert_array_equal(store.columns("train", np.arange(P)), values["train"])
    assert all(f.times == 0 for f in faulty.faults)


@pytest.mark.parametrize("fault", ["500", "503", "dropped connection", "lost answer"])
def test_writing_survives_a_fault_that_passes(s3_root, faulty, values, fault) -> None:
    told = PASSING.get(fault, {"kind": "lost"})
    faulty.faults = [
        Fault(**told, method="PUT", path=path, times=1) for path in ("/layers/", "/blocks/", "s.zarr/zarr.json")
    ]
    made, manifests = synthetic()
    writer = create_store(f"{s3_root}/s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    write_all(writer, made)
    assert all(f.times == 0 for f in faulty.faults)
    store = open_store(writer.uri)
    np.testing.assert_array_equal(store.columns("train", np.arange(P)), values["train"])
    assert verify_store(store) == []


def test_creating_knows_its_own_object_when_the_answer_was_lost(s3_root, faulty) -> None:
    faulty.faults = [Fault("lost", method="PUT", times=1)]
    objects = open_objects(s3_root)
    assert objects.create("record", b"ours")
    assert not objects.create("record", b"theirs")
    faulty.faults = [Fault("drop", method="PUT", times=1)]
    assert not objects.create("record", b"theirs")
    assert objects.read("record") == b"ours"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": 503, "code": "SlowDown"}, r"it answers 503 \(SlowDown\)"),
        ({"kind": 500}, r"it answers 500 \(InternalError\)"),
        ({"kind": "drop"}, "connections break"),
        ({"kind": "cut"}, "answers are cut short"),
    ],
)
def test_a_fault_that_stays_is_one_sentence_after_bounded_attempts(made, faulty, fault, reason) -> None:
    store = open_store(made)
    store.columns("train", [0])
    faulty.faults = [Fault(**fault, path="/layers/")]
    faulty.seen.clear()
    with pytest.raises(StorageError, match=f"cannot be read: {reason} at http.* after 3 attempts") as caught:
        store.columns("train", [0], slice(0, 30))
    assert "what was committed stays" in sentence(caught)
    # aiohttp itself asks once more if a connection it had kept is closed.
    assert len([path for _, path, _ in faulty.seen if "/layers/" in path]) <= 2 * remote.ATTEMPTS
    faulty.faults = []
    store.columns("train", [0])


def test_a_body_cut_short_is_never_data(made, faulty) -> None:
    objects = open_objects(made)
    faulty.faults = [Fault("cut")]
    for read in (
        lambda: objects.read("zarr.json"),
        lambda: objects.load("train/layers/stem/c/0/0"),
        lambda: objects.read_rows("train/layers/stem/c/0/0", np.array([1, 2]), 60),
    ):
        with pytest.raises(StorageError, match="cut short"):
            read()


def test_a_block_that_cannot_be_written_is_not_committed_and_resuming_writes_it(s3_root, faulty, values) -> None:
    made, manifests = synthetic()
    arguments = {"manifests": manifests, "block_samples": 32}
    writer = create_store(f"{s3_root}/s.zarr", LAYERS, SPLITS, **arguments)
    writer.write_block("train", 0, {k: v[:, :30] for k, v in made["train"].items()})
    for path in ("/layers/blocks.1/", "/blocks/train/"):
        faulty.faults = [Fault(503, method="PUT", path=path)]
        with pytest.raises(StorageError, match="cannot be written: it answers 503") as caught:
            writer.write_block("train", 1, {k: v[:, 30:60] for k, v in made["train"].items()})
        sentence(caught)
        faulty.faults = []
        assert writer.missing() == {"train": [1, 2], "test": [0, 1]}
    again = create_store(f"{s3_root}/s.zarr", LAYERS, SPLITS, **arguments)
    write_all(again, made)
    store = open_store(again.uri)
    np.testing.assert_array_equal(store.columns("train", np.arange(P)), values["train"])
    assert verify_store(store) == []


def test_a_store_that_cannot_be_created_is_not_half_there(s3_root, faulty) -> None:
    faulty.faults = [Fault(503, method="PUT", path="s.zarr/zarr.json")]
    with pytest.raises(StorageError):
        create_store(f"{s3_root}/s.zarr", {"a": 3}, {"train": 2})
    faulty.faults = []
    assert create_store(f"{s3_root}/s.zarr", {"a": 3}, {"train": 2}).missing() == {"train": [0]}


def test_not_knowing_is_not_the_same_as_absence(made, faulty) -> None:
    store = open_store(made)
    faulty.faults = [Fault(500, method="GET", path="list-type"), Fault(500, method="HEAD")]
    with pytest.raises(StorageError):
        store.missing()
    with pytest.raises(StorageError):
        store.objects.exists("zarr.json")
    faulty.faults = [Fault(403, method="HEAD", code="AccessDenied")]
    with pytest.raises(InvalidInputError, match="access is denied"):
        store.objects.exists("zarr.json")


def test_absence_is_not_tried_again(s3_root, faulty) -> None:
    with pytest.raises(FileNotFoundError):
        open_objects(s3_root).read("nothing")
    assert len(faulty.seen) == 1


def test_a_slow_answer_is_asked_for_again_and_a_hanging_server_given_up(made, faulty) -> None:
    objects = open_objects(made, config_kwargs={"read_timeout": 0.3})
    expected = objects.read("zarr.json")
    faulty.faults = [Fault("slow", seconds=1.0, times=1)]
    assert objects.read("zarr.json") == expected
    faulty.faults = [Fault("slow", seconds=1.0)]
    began = time.monotonic()
    with pytest.raises(StorageError, match="it does not answer in time") as caught:
        objects.read("zarr.json")
    sentence(caught)
    assert time.monotonic() - began < 15


def test_attempts_end_when_patience_does(made, faulty, monkeypatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    faulty.faults = [Fault(500)]
    with pytest.raises(StorageError, match="after 1 attempts"):
        open_objects(made).read("zarr.json")


def test_a_server_that_is_not_there_is_named(s3_root, monkeypatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"nothing answers at http://127\.0\.0\.1:9, after 3 attempts") as caught:
        open_store(s3_root)
    sentence(caught)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "InvalidAccessKeyId", "credentials .* are refused at http.*check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "credentials .* are refused"),
        (400, "ExpiredToken", "credentials .* are refused"),
        (403, "AccessDenied", "access is denied"),
        (404, "NoSuchBucket", "bucket 'bucket' .* does not exist"),
        (501, "NotImplemented", "does not support it"),
        (400, "AuthorizationHeaderMalformed", "it answers 400"),
    ],
)
def test_a_refusal_is_one_sentence_at_once(s3_root, faulty, status, code, message) -> None:
    faulty.faults = [Fault(status, method, code=code) for method in ("GET", "PUT")]
    objects = open_objects(s3_root)
    for attempt in (
        lambda: open_store(s3_root),
        lambda: objects.write("a", [b"1"]),
        lambda: objects.create("a", b"1"),
        lambda: objects.names(""),
        lambda: objects.remove(),
    ):
        with pytest.raises(InvalidInputError, match=message) as caught:
            attempt()
        sentence(caught)
    assert len(faulty.seen) <= 10


def test_a_bucket_that_does_not_exist_is_named(s3_root) -> None:
    for attempt in (open_store, lambda uri: create_store(uri, {"a": 3}, {"train": 2})):
        with pytest.raises(InvalidInputError, match=r"bucket 'no-such-bucket' .* does not exist") as caught:
            attempt("s3://no-such-bucket/s.zarr")
        sentence(caught)


def test_missing_credentials_are_asked_for(s3_root, faulty, monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    with pytest.raises(InvalidInputError, match=r"no credentials .* set AWS_ACCESS_KEY_ID") as caught:
        open_store(s3_root)
    sentence(caught)
    assert faulty.seen == []


def test_no_secret_is_ever_shown(s3_root, faulty) -> None:
    secrets = {"key": "AKIAVISIBLE", "secret": "hunter2-hunter2", "token": "tok-tok-tok"}
    objects = open_objects(s3_root, **secrets)
    assert not any(s in repr(objects) + objects.uri for s in secrets.values())
    for fault in (
        Fault(403, code="SignatureDoesNotMatch"),
        Fault(400, code="hunter2-hunter2"),
        Fault(503, code="AKIAVISIBLE"),
    ):
        faulty.faults = [fault]
        with pytest.raises(Head2ToeError) as caught:
            objects.read("a")
        shown = "".join(traceback.format_exception(caught.value))
        assert not any(s in shown for s in secrets.values())
