"""Objects are there whole or not at all, wherever they lie, and a place that cannot be used is one clear sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import socketserver
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry
from hypothesis import given
from hypothesis import strategies as st
from loopback import proxy, request
from samples import LAYERS, SPLITS, synthetic, write_all

from pipeline.verification import verify_store
from store import create_store, open_store
from store.errors import InvalidInputError
from store.local import UNFINISHED, LocalObjects
from store.objects import Objects, open_objects, redact
from store.remote import CONNECTIONS, REQUEST_BYTES, SMALL_GAP, plan_ranges

ROW = 100


@pytest.fixture
def objects(root: str) -> Objects:
    return open_objects(f"{root}/here")


# -------------------------------------------------------------------- every kind of place


def test_an_object_is_what_was_written_last(objects) -> None:
    objects.write("a/b", [b"first"])
    objects.write("a/b", [b"sec", memoryview(b"ond"), bytearray(b"!")])
    assert objects.read("a/b") == b"second!"
    loaded = objects.load("a/b")
    loaded[0] = ord("S")
    assert bytes(loaded) == b"Second!"
    assert objects.read("a/b") == b"second!"


def test_absent_objects_are_absent_and_not_empty(objects) -> None:
    objects.write("a/b", [b"1"])
    for key in ("c", "a", "a/b/c"):
        assert not objects.exists(key)
    with pytest.raises(FileNotFoundError):
        objects.read("c")
    with pytest.raises(FileNotFoundError):
        objects.load("c")
    with pytest.raises(FileNotFoundError):
        objects.read_all(["a/b", "c"])
    with pytest.raises(FileNotFoundError):
        objects.read_rows("c", np.array([0]), ROW)
    assert objects.exists("a/b")


def test_several_objects_are_written_and_read_together(objects) -> None:
    objects.write_all((f"n/{i}", [bytes([i]) * i]) for i in range(50))
    assert objects.read_all([f"n/{i}" for i in range(49, -1, -1)]) == [bytes([i]) * i for i in range(49, -1, -1)]
    assert objects.read_all([]) == []


def test_rows_come_in_the_order_asked_for(objects) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 400, ROW), dtype=np.uint8)
    for i, v in enumerate(values):
        objects.write(f"chunk/{i}", [v.tobytes(), b"crc!"])
    wanted = [np.array([399, 0, 7, 7, 200]), np.array([5]), np.array([], np.int64), np.arange(400)]
    requests = [(f"chunk/{min(i, 2)}", rows) for i, rows in enumerate(wanted)]
    for (key, rows), (got, n_bytes, n_requests) in zip(requests, objects.read_many(requests, ROW), strict=True):
        np.testing.assert_array_equal(got, values[int(key[-1])][rows])
        assert n_bytes >= len(np.unique(rows)) * ROW
        assert n_requests >= (len(rows) > 0)
    wide, narrow = objects.read_many([("chunk/0", np.array([5])), ("chunk/0", np.array([51]))], [ROW, ROW // 10])
    np.testing.assert_array_equal(wide[0][0, 10:20], narrow[0][0])
    np.testing.assert_array_equal(objects.read_rows("chunk/1", np.array([3, 2]), ROW)[0], values[1][[3, 2]])


def test_what_is_wrong_with_one_object_is_raised_at_its_turn(objects) -> None:
    objects.write("whole", [bytes(10 * ROW)])
    objects.write("short", [bytes(3 * ROW)])
    rows = np.array([0, 9])
    for bad, error in (("gone", FileNotFoundError), ("short", (ValueError, IndexError))):
        found = objects.read_many([("whole", rows), (bad, rows), ("whole", rows)], ROW)
        assert next(found)[0].shape == (2, ROW)
        with pytest.raises(error):
            next(found)
    with pytest.raises((ValueError, IndexError)):
        objects.read_rows("short", np.array([3]), ROW)


def test_one_of_several_creators_wins(root) -> None:
    together = threading.Barrier(4)

    def create(number: int) -> bool:
        mine = open_objects(f"{root}/here")
        together.wait()
        return mine.create("record", b"%d" % number)

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(create, range(4)))
    assert sum(won) == 1
    assert open_objects(f"{root}/here").read("record") == b"%d" % won.index(True)


def test_names_are_those_directly_under_a_prefix_as_they_are_now(objects, root) -> None:
    assert objects.names("") == []
    assert objects.names("a") == []
    other = open_objects(f"{root}/here")
    for i, key in enumerate(["a/2/deep/er", "a/1", "ab/1", "a/10"]):
        other.write(key, [b"1"])
        assert len(objects.names("a")) == (1, 2, 2, 3)[i]
    assert objects.names("a") == ["1", "10", "2"]
    assert objects.names("") == ["a", "ab"]
    assert objects.names("a/1") == []
    other.remove("a/2")
    assert objects.names("a") == ["1", "10"]
    assert not objects.exists("a/2/deep/er")
    objects.remove("a/1")
    objects.remove("a/1")
    assert other.names("a") == ["10"]
    objects.remove()
    objects.remove()
    assert other.names("") == []


def test_objects_travel_by_pickle(objects) -> None:
    objects.write("a", [b"1"])
    assert pickle.loads(pickle.dumps(objects)).read("a") == b"1"


# -------------------------------------------------------------------- a folder


def test_a_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch) -> None:
    log: list[str] = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def logged(name: str, call):
        return lambda *a: (log.append(name), call(*a))[1]

    monkeypatch.setattr(os, "fsync", logged("sync", fsync))
    monkeypatch.setattr(Path, "replace", logged("rename", replace))
    monkeypatch.setattr(os, "link", logged("link", link))
    objects = LocalObjects(tmp_path / "s")
    objects.write("c/0/0", [b"chunk"])
    assert log == ["sync", "rename"]
    objects.create("blocks/0", b"record")
    # The chunk's name is durable before the record has one, and the record's name before `create` returns.
    assert log.index("link") - log.index("rename") >= 3
    assert log[-1] == "sync"


def test_a_failed_write_leaves_nothing(tmp_path) -> None:
    objects = LocalObjects(tmp_path)
    with limited_files(10_000), pytest.raises(InvalidInputError, match="file too large; make room"):
        objects.write("chunk", [bytes(6_000), bytes(6_000)])
    assert objects.names("") == []
    assert list((tmp_path / UNFINISHED).iterdir()) == []
    objects.write("chunk", [bytes(12_000)])


def test_a_place_without_links_still_has_one_winner(tmp_path, monkeypatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    objects = LocalObjects(tmp_path)
    assert objects.create("a", b"1")
    assert not objects.create("a", b"2")
    assert objects.read("a") == b"1"


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_commits_nothing_and_the_rest_is_written_once_there_is_room(small_disk: Path) -> None:
    values, manifests = synthetic()
    uri = str(small_disk / "s.zarr")
    writer = create_store(uri, LAYERS, SPLITS, manifests=manifests, block_samples=32)
    writer.write_block("train", 0, {k: v[:, :30] for k, v in values["train"].items()})
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 8192))
    with pytest.raises(InvalidInputError, match="no space left on device; make room and run the same command again"):
        writer.write_block("train", 1, {k: v[:, 30:60] for k, v in values["train"].items()})
    assert os.listdir(small_disk / "s.zarr" / UNFINISHED) == []
    assert writer.missing() == {"train": [1, 2], "test": [0, 1]}
    filler.unlink()
    again = create_store(uri, LAYERS, SPLITS, manifests=manifests, block_samples=32)
    write_all(again, values)
    assert verify_store(open_store(uri)) == []


def test_permission_lost_midway_is_explained_and_leaves_the_store_as_it_was(small_disk: Path) -> None:
    values, manifests = synthetic()
    uri = str(small_disk / "s.zarr")
    writer = create_store(uri, LAYERS, SPLITS, manifests=manifests, block_samples=32)
    writer.write_block("train", 0, {k: v[:, :30] for k, v in values["train"].items()})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InvalidInputError, match="read-only file system; choose a root that is writable"):
        writer.write_block("train", 1, {k: v[:, 30:60] for k, v in values["train"].items()})
    assert open_store(uri, allow_incomplete=True).missing()["train"] == [1, 2]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    write_all(create_store(uri, LAYERS, SPLITS, manifests=manifests, block_samples=32), values)
    assert verify_store(open_store(uri)) == []


# -------------------------------------------------------------------- ranges


def bytes_of(spans: list[tuple[int, int, int]], wanted: list[np.ndarray], row_bytes: int) -> int:
    return sum(int(wanted[n][b - 1] - wanted[n][a] + 1) * row_bytes for n, a, b in spans)


@given(
    wanted=st.lists(st.lists(st.integers(0, 5000), max_size=60, unique=True).map(sorted), max_size=6),
    row_bytes=st.sampled_from([2, 64, 2048, 20_000]),
)
def test_ranges_hold_every_row_once_and_bridge_only_gaps_that_are_worth_it(wanted, row_bytes) -> None:
    arrays = [np.array(rows, np.int64) for rows in wanted]
    spans = plan_ranges(arrays, [row_bytes] * len(arrays))
    held = [(n, r) for n, a, b in spans for r in wanted[n][a:b]]
    assert held == [(n, r) for n, rows in enumerate(wanted) for r in rows]
    for n, a, b in spans:
        assert (np.diff(arrays[n][a:b]) - 1).max(initial=0) * row_bytes <= REQUEST_BYTES
    for (n, _, b), (m, a, _) in pairwise(spans):
        assert n != m or arrays[m][a] - arrays[n][b - 1] > 1


def test_a_selection_in_clusters_reads_at_most_twice_its_bytes() -> None:
    rng = np.random.default_rng(0)
    for share, size in ((0.001, 50), (0.01, 50), (0.05, 50), (0.01, 10), (0.02, 6)):
        chunks = [
            np.flatnonzero(np.repeat(rng.random(2000 // size + 1) < share, size)[:2000] & (rng.random(2000) < 0.9))
            for _ in range(50)
        ]
        selected = sum(map(len, chunks)) * 2000
        assert bytes_of(plan_ranges(chunks, [2000] * len(chunks)), chunks, 2000) <= 2 * selected


def test_rows_that_fit_the_connections_are_not_joined_and_many_rows_are() -> None:
    few = [np.arange(10) * 100]
    assert len(plan_ranges(few, [2000])) == 10
    many = [np.sort(np.random.default_rng(i).choice(2000, 20, replace=False)) for i in range(25)]
    assert len(plan_ranges(many, [2000] * 25)) <= 1.5 * CONNECTIONS
    sparse = [np.arange(0, 10**6, 10**3)]
    assert len(plan_ranges(sparse, [REQUEST_BYTES])) == 1000
    assert len(plan_ranges([np.arange(0, 10**4, 7)], [4])) == 1, f"gaps below {SMALL_GAP} are always read"


# -------------------------------------------------------------------- opening


def test_a_url_that_carries_credentials_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInputError, match=r"'s3://\*\*\*@bucket/x'.*must not carry credentials") as caught:
        open_objects("s3://AKIAKEY:{}@bucket/x".format("hunter" + "2"))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert redact("see http://me:hunter2@host/p and s3://bucket/a@b") == "see http://***@host/p and s3://bucket/a@b"


def test_urls_that_cannot_be_opened_are_explained() -> None:
    with pytest.raises(InvalidInputError, match="use a local path, s3:// or memory://"):
        open_objects("nonsense://x")
    with pytest.raises(InvalidInputError, match="names no bucket"):
        open_objects("s3://")
    with pytest.raises(InvalidInputError, match=r"cannot open 'ftp://x\.invalid/y': .*; look at the address"):
        open_objects("ftp://x.invalid/y")


def test_a_file_server_that_refuses_the_login_is_a_sentence() -> None:
    class Refusal(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 welcome\r\n")
            self.rfile.readline()
            self.wfile.write(b"530 login incorrect\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        with pytest.raises(
            InvalidInputError, match=rf"cannot open 'ftp://127\.0\.0\.1:{port}/y': 530 login incorrect;"
        ):
            open_objects(f"ftp://127.0.0.1:{port}/y")
        server.shutdown()


def test_a_command_whose_machine_is_busy_at_its_end_prints_no_stack_of_zarr() -> None:
    busy = "sync.loop[0].call_soon_threadsafe(time.sleep, 1)"
    code = (
        f"import time; from zarr.core import sync; from store.hierarchy import documents; documents({{}}, {{}}); {busy}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_missing_s3fs_is_a_sentence_that_says_how_to_add_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(InvalidInputError, match=r"pip install head2toe-store\[s3\]"):
        open_objects("s3://bucket/x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(InvalidInputError, match="gcsfs") as caught:
        open_objects("gs://bucket/x")
    assert "[s3]" not in str(caught.value)


def test_the_endpoint_is_found_by_option_then_fsspec_then_environment(s3_root, s3_server, monkeypatch) -> None:
    open_objects(s3_root).write("a", [b"1"])
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nowhere)
    assert pickle.loads(pickle.dumps(open_objects(s3_root, endpoint_url=s3_server))).read("a") == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    assert open_objects(s3_root).read("a") == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", nowhere)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_server})
    assert open_objects(s3_root).read("a") == b"1"


def test_an_s3_put_that_creates_is_conditional(s3_root, s3_server) -> None:
    objects = open_objects(s3_root)
    assert objects.create("record", b"1")
    bucket_path = "/" + s3_root.removeprefix("s3://") + "/record"
    assert request(s3_server, "PUT", bucket_path, {"If-None-Match": "*"}) == 412
    assert not objects.create("record", b"2")
    assert objects.read("record") == b"1"


def test_names_on_s3_take_one_request_and_list_nothing_deeper(s3_root, s3_server, monkeypatch) -> None:
    objects = open_objects(s3_root)
    objects.write_all((f"layers/{i}/c/0/{j}", [b"1"]) for i in range(3) for j in range(4))
    with proxy(s3_server) as seen:
        monkeypatch.setenv("AWS_ENDPOINT_URL", seen.url)
        assert open_objects(s3_root).names("layers") == ["0", "1", "2"]
    ((method, path, _),) = seen.seen
    assert method == "GET"
    assert "delimiter=%2F" in path


def test_reading_takes_one_request(s3_root, s3_server, monkeypatch) -> None:
    open_objects(s3_root).write("a", [bytes(1000)])
    with proxy(s3_server) as seen:
        monkeypatch.setenv("AWS_ENDPOINT_URL", seen.url)
        open_objects(s3_root).load("a")
        open_objects(s3_root).read_rows("a", np.array([3]), 100)
    assert [(method, ranges) for method, _, ranges in seen.seen] == [("GET", ""), ("GET", "bytes=300-399")]
