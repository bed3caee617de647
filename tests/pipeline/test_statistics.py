"""Statistics are those of float64 numpy over the training samples alone, however the samples are cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import LAYERS, SPLITS, synthetic, write_all

from pipeline.statistics import ARRAYS, block_moments, compute_statistics, find_statistics, merge
from pipeline.store_source import StoreSource
from store import create_store, open_store
from store.results import list_results, read_result


def test_statistics_equal_float64_numpy_on_training_samples(store, values) -> None:
    moments = compute_statistics(store)
    wide = values["train"].astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.std, wide.std(0), rtol=1e-6)
    np.testing.assert_array_equal(moments.minimum, wide.min(0))
    np.testing.assert_array_equal(moments.maximum, wide.max(0))
    assert moments.count == 90


def test_zeros_and_constant_features_are_counted_and_stored_by_layer(tmp_path) -> None:
    rng = np.random.default_rng(0)
    values = {
        "a": np.maximum(rng.standard_normal((6, 70)), 0).astype(np.float16),
        "b": rng.standard_normal((3, 70)).astype(np.float16),
    }
    values["a"][1], values["b"][0], values["b"][2, :] = 0, -3.5, -0.0
    writer = create_store(tmp_path / "s.zarr", {"a": 6, "b": 3}, {"train": 70}, block_samples=32)
    for block in writer.missing()["train"]:
        samples = slice(*writer.store.splits["train"].block_range(block))
        writer.write_block("train", block, {name: v[:, samples] for name, v in values.items()})
    store = open_store(writer.uri)
    moments = compute_statistics(store)
    wide = np.concatenate(list(values.values()))
    np.testing.assert_array_equal(moments.zeros, (wide == 0).sum(1))
    np.testing.assert_allclose(moments.zero_share, (wide == 0).mean(1))
    assert moments.zero_share[1] == moments.zero_share[8] == 1
    assert np.flatnonzero(moments.constant).tolist() == [1, 6, 8]
    stored = read_result(store, "statistics", list_results(store, "statistics")[0])
    np.testing.assert_array_equal(stored.arrays["constant"], moments.constant)
    assert stored.facts["layers"]["a"] == {
        "features": 6,
        "constant": 1,
        "zero_share": round(float((values["a"] == 0).mean()), 6),
    }
    assert stored.facts["layers"]["b"]["constant"] == 2
    assert find_statistics(store, "train").zeros.tolist() == moments.zeros.tolist()


def test_the_first_pass_of_a_selection_leaves_the_same_statistics(store, tmp_path) -> None:
    values, manifests = synthetic()
    writer = create_store(tmp_path / "twin.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    write_all(writer, values)
    twin = open_store(writer.uri)
    StoreSource(twin, "standardize").first_pass(np.zeros((90, 1)))
    here, there = compute_statistics(store), find_statistics(twin, "train")
    assert there is not None
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_half_precision_statistics_survive_where_naive_ones_overflow(tmp_path) -> None:
    rng = np.random.default_rng(0)
    scales = np.array([6e4, 1e3, 1.0, 1e-3, 1e-6])
    values = (scales[:, None] * (0.5 + 0.4 * rng.uniform(-1, 1, (5, 5000)))).astype(np.float16)
    with np.errstate(over="ignore"):
        assert not np.isfinite(values.sum(axis=1, dtype=np.float16)).all()
    writer = create_store(tmp_path / "s.zarr", {"a": 5}, {"train": 5000}, block_samples=512)
    for block in writer.missing()["train"]:
        samples = slice(*writer.store.splits["train"].block_range(block))
        writer.write_block("train", block, {"a": values[:, samples]})
    moments = compute_statistics(open_store(writer.uri))
    wide = values.astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(1), rtol=1e-6)
    np.testing.assert_allclose(moments.std**2, wide.var(1), rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 1.0, -300.0]),
    seed=st.integers(0, 99),
)
def test_merged_moments_do_not_depend_on_the_cut(sizes, offset, seed) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((4, sum(sizes))) + offset).astype(np.float16).astype(np.float32)
    x[2] = offset
    total = None
    for part in np.split(x, np.cumsum(sizes)[:-1], axis=1):
        total = merge(total, block_moments(torch.from_numpy(part.copy())))
    assert total is not None
    wide = x.astype(np.float64)
    np.testing.assert_allclose(total.mean, wide.mean(1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(total.m2, wide.var(1) * x.shape[1], rtol=2e-6, atol=1e-9)
    np.testing.assert_array_equal(total.zeros, (x == 0).sum(1))
    assert total.m2[2] == 0
    assert total.constant[2]


def test_statistics_never_see_a_test_sample(store, tmp_path) -> None:
    """Two stores that differ in their test samples alone have the same statistics, to the last bit."""
    other = create_store(
        tmp_path / "other.zarr",
        {n: v.n_features for n, v in store.layers.items()},
        {"train": 90, "test": 37},
        block_samples=32,
    )
    for split, blocks in other.missing().items():
        for block in blocks:
            start, stop = other.store.splits[split].block_range(block)
            copy = {
                n: store.columns(split, store.layer_indices(n), slice(start, stop)).T.astype(np.float16)
                for n in store.layers
            }
            if split == "test":
                copy = {n: v * 0 + 7 for n, v in copy.items()}
            other.write_block(split, block, copy)
    a, b = compute_statistics(store), compute_statistics(open_store(other.uri))
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.m2, b.m2)


def test_statistics_are_computed_once_and_kept(store) -> None:
    assert find_statistics(store, "train") is None
    first = compute_statistics(store)
    store.reads.reset()
    again = compute_statistics(store)
    assert store.reads.n_bytes == 0
    np.testing.assert_array_equal(first.m2, again.m2)


def test_progress_counts_every_task(store) -> None:
    calls: list[tuple[str, int, int]] = []
    compute_statistics(store, progress=lambda *c: calls.append(c))
    assert sorted(c[1] for c in calls) == [1, 2, 3, 4]
    assert {c[2] for c in calls} == {4}


def test_an_unknown_split_is_named(store) -> None:
    with pytest.raises(Exception, match="no split 'validation'"):
        compute_statistics(store, "validation")
