"""The arithmetic of blocks and chunks: everything is covered once, within bounds, and narrow layers make few files."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from store.layout import CHUNK_BYTES, MAX_BLOCK, Layer, check_plan, encode, locate, plan_layers, widen

sizes = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 3_000_000), min_size=1, max_size=8)
samples = st.dictionaries(st.sampled_from(["train", "val", "test"]), st.integers(1, 3_000_000), min_size=1)


@settings(max_examples=200, deadline=None)
@given(sizes, samples, st.sampled_from([2, 4]), st.none() | st.integers(1, 10_000))
def test_blocks_and_chunks_cover_everything_once_within_bounds(layers, splits, itemsize, block) -> None:
    planned, divided = plan_layers(layers, splits, itemsize, block)
    check_plan(planned, divided)
    for split in divided:
        assert split.block_samples <= min(block or MAX_BLOCK, split.n_samples)
        ranges = [split.block_range(b) for b in (0, split.n_blocks // 2, split.n_blocks - 1)]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == split.n_samples
        assert all(0 < stop - start <= split.block_samples for start, stop in ranges)
        # Padding is less than a sample per block.
        assert split.n_blocks * split.block_samples - split.n_samples < split.n_blocks
    widest = max(s.block_samples for s in divided)
    for layer in planned:
        assert layer.chunk_range(layer.n_chunks - 1)[1] == layer.n_features
        one_feature = widest * itemsize
        assert layer.chunk_features * one_feature <= max(CHUNK_BYTES, one_feature)


def test_narrow_layers_do_not_make_thousands_of_tiny_files() -> None:
    layers, (split,) = plan_layers({f"l{i}": 64 for i in range(200)}, {"train": 1_000_000}, 2)
    assert split.n_blocks <= 130
    assert layers[0].chunk_features * split.block_samples * 2 >= 1_000_000


def test_small_data_sets_keep_several_blocks_so_that_a_stop_loses_little() -> None:
    _, (split,) = plan_layers({"l": 1000}, {"train": 10_000}, 2)
    assert split.n_blocks >= 8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_every_index_is_located_in_its_layer_once(widths, data) -> None:
    starts = np.cumsum([0, *widths])
    layers = tuple(Layer(f"l{i}", w, int(s), w) for i, (w, s) in enumerate(zip(widths, starts, strict=False)))
    indices = np.array(data.draw(st.lists(st.integers(0, int(starts[-1]) - 1), max_size=30)), dtype=np.int64)
    seen = np.zeros(len(indices), int)
    for layer, positions in locate(layers, indices):
        assert ((indices[positions] >= layer.offset) & (indices[positions] < layer.offset + layer.n_features)).all()
        seen[positions] += 1
    assert (seen == 1).all()


def test_a_chunk_is_padded_with_nan_and_little_endian_whatever_the_machine() -> None:
    view, crc = encode(np.arange(4, dtype=">f4").reshape(2, 2), (3, 3))
    decoded = np.frombuffer(view, "<f4").reshape(3, 3)
    np.testing.assert_array_equal(decoded[:2, :2], [[0, 1], [2, 3]])
    assert np.isnan(decoded[2]).all()
    assert np.isnan(decoded[:, 2]).all()
    assert len(crc) == 4


def test_widening_is_exact_for_every_finite_half() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 64)
    widened = widen(finite)
    np.testing.assert_array_equal(widened, finite.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(widened), np.signbit(finite))
    assert widen(np.empty((0, 5), np.float16)).shape == (0, 5)
    assert widen(np.empty((5, 0), np.float16)).shape == (5, 0)
