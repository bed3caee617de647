"""A store as a source of columns: memory decides how many threads scan it, and no result depends on that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import store_source
from pipeline.compute import Threads
from pipeline.group_lasso import group_lasso
from pipeline.store_source import StoreSource, open_source, thread_bytes
from store import ActivationStore, create_store, open_store
from store.errors import InvalidInputError
from store.spec import Manifest


def small(path: Path, values: np.ndarray, labels: np.ndarray) -> ActivationStore:
    """Store values of shape (sample, feature) as one layer."""
    ids = [str(i) for i in range(len(labels))]
    manifests = {"train": Manifest(ids, np.asarray(labels, np.int64), ids)}
    writer = create_store(path, {"a": values.shape[1]}, {"train": len(values)}, manifests=manifests)
    writer.write_block("train", 0, {"a": values.T.astype(np.float16)})
    return open_store(writer.uri)


@pytest.mark.parametrize("normalization", ["standardize", "unit_norm", "none"])
def test_the_number_of_threads_changes_no_bit(store, normalization) -> None:
    rng = np.random.default_rng(0)
    residuals = rng.standard_normal((90, 3, 2))
    found = []
    for threads in (1, 2, 5):
        source = StoreSource(store, normalization, pool=Threads(threads))
        first = source.first_pass(residuals[:, :, 0])
        found.append((first.scores, first.column_norms, source.correlate(residuals)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_memory_decides_how_many_threads_scan(store, monkeypatch) -> None:
    monkeypatch.setattr(store_source, "n_cores", lambda: 8)
    each = thread_bytes(store, store.split("train"), 64)
    for memory, threads in ((4 * 3 * each, 3), (1, 1), (2**31, 8)):
        with open_source(store, "none", memory=memory) as source:
            assert isinstance(source, StoreSource)
            assert source.pool.n_threads == threads
            assert source.scan_bytes(64) == threads * each


def test_bytes_of_passes_and_columns_are_counted(store) -> None:
    result = group_lasso(store, penalty_ratio=0.3)
    chunks = sum(store.chunk_bytes(ref) for ref in store.chunks("train"))
    assert result.certificate.passes == 2
    assert result.certificate.bytes_read == store.reads.n_bytes
    assert 2 * chunks < result.certificate.bytes_read < 4 * chunks


def test_a_store_whose_features_are_all_constant_is_refused(tmp_path) -> None:
    constant = small(tmp_path / "s.zarr", np.tile([1.0, -2.0, 0.0], (8, 1)), np.arange(8) % 2)
    for normalization in ("standardize", "none"):
        with pytest.raises(InvalidInputError, match="none varies with the targets"):
            group_lasso(constant, normalization=normalization)


def test_constant_features_of_a_store_are_never_selected(tmp_path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    values = rng.standard_normal((40, 6)) + 2 * labels[:, None]
    values[:, [1, 4]] = 6e4, 0
    result = group_lasso(small(tmp_path / "s.zarr", values, labels), normalization="standardize", penalty_ratio=0.05)
    assert result.certificate.certified
    assert not set(result.support) & {1, 4}
    np.testing.assert_array_equal(result.relevance[[1, 4]], -1)


def test_at_penalty_max_nothing_is_selected_and_it_is_said_after_one_pass(store) -> None:
    result = group_lasso(store, normalization="standardize", penalty_ratio=1.0)
    assert len(result.support) == 0
    assert result.certificate.passes == 1
    assert "no feature is active" in result.certificate.note
    assert len(group_lasso(store, normalization="standardize", penalty_ratio=0.99).support) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "no split 'validation'"),
        ({"normalization": "unitnorm"}, "did you mean 'unit_norm'"),
        ({"keep": 128}, "keep=128 is impossible; valid choices are 1 to 127"),
        ({"memory": "1kB"}, "the least that works here is memory="),
        ({"y": np.zeros(89)}, r"y has shape \(89,\).*90 samples"),
    ],
)
def test_what_does_not_fit_the_store_is_refused_in_one_sentence(store, options, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        group_lasso(store, **options)
    assert store.reads.n_bytes == 0


MEASURE = """
import sys
from store import open_store
from pipeline.group_lasso import group_lasso

def anonymous():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

store = open_store(sys.argv[1])
group_lasso(store, penalty_ratio=1.0)  # loads and compiles whatever will be needed
before, most = anonymous(), 0

def watch(stage, done, total):
    global most
    most = max(most, anonymous() - before)

result = group_lasso(
    store, normalization="standardize", penalty_ratio=0.3, memory=int(sys.argv[2]), progress=watch
)
print(result.certificate.certified, result.certificate.projected_bytes, most)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_a_solve_keeps_to_its_memory_on_data_several_times_larger(tmp_path) -> None:
    n, width, layers = 300, 4000, 50
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    ids = [str(i) for i in range(n)]
    names = [f"layer{i:02d}" for i in range(layers)]
    manifests = {"train": Manifest(ids, labels, ids)}
    writer = create_store(tmp_path / "s.zarr", dict.fromkeys(names, width), {"train": n}, manifests=manifests)
    values = {name: rng.standard_normal((width, n), np.float32) for name in names}
    for block in writer.missing()["train"]:
        part = slice(*writer.store.splits["train"].block_range(block))
        for name in names:
            values[name][:20] += 0.7 * (labels == 1)
        writer.write_block("train", block, {k: v[:, part].astype(np.float16) for k, v in values.items()})
    allowed = 128 * 2**20
    command = [sys.executable, "-c", MEASURE, writer.uri, str(allowed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    certified, projected, used = ended.stdout.split()
    assert certified == "True"
    assert int(projected) <= allowed < 4 * n * width * layers / 1.5
    assert int(used) <= int(projected)
