"""Pooling follows the paper's rule, whatever the layout, shape and type."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.extraction_parameters import ClsToken
from pipeline.pooling import Layout, map_windows, pool, pooled_size
from store.errors import InvalidInputError

SIZES = st.integers(1, 13)
TARGETS = st.integers(1, 3000)
PREFIXES = st.integers(0, 6)


def largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest whole number from 1 to `limit` that fits, or 1: what the rule's floors and roots mean."""
    return max((k for k in range(1, limit + 1) if fits(k)), default=1)


def slow_map(x: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """Pool (channels, height, width) by the letter of the rule, one position at a time."""
    channels, height, width = x.shape
    n = largest(target, lambda k: k * k * channels <= target)
    down, right = largest(height, lambda k: k * n <= height), largest(width, lambda k: k * n <= width)
    if channels >= target:
        down, right = height, width
    windows: dict[tuple[int, int, int], list[float]] = {}
    for c, i, j in np.ndindex(channels, height - height % down, width - width % right):
        windows.setdefault((c, i // down, j // right), []).append(x[c, i, j])
    return np.array([math.fsum(windows[key]) / len(windows[key]) for key in sorted(windows)])


def slow_tokens(x: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """Pool (token, channels) by the letter of the rule, one position at a time."""
    n_tokens, channels = x.shape
    window = largest(n_tokens, lambda k: k * target <= n_tokens * channels)
    if channels >= target:
        window = n_tokens
    windows: dict[tuple[int, int], list[float]] = {}
    for i, c in np.ndindex(n_tokens - n_tokens % window, channels):
        windows.setdefault((i // window, c), []).append(x[i, c])
    return np.array([math.fsum(windows[key]) / len(windows[key]) for key in sorted(windows)])


def random_array(shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.random.default_rng(sum(shape)).normal(size=shape)


@settings(deadline=None, max_examples=150)
@given(SIZES, SIZES, SIZES, TARGETS)
@example(2, 3, 12, 50)  # a grid of 5: finer than the map one way, coarser the other
@example(1, 13, 13, 16)  # a window of 3 leaves a remainder of 1
@example(7, 5, 5, 7)  # as many channels as features wanted
def test_maps_are_pooled_as_by_a_slow_loop_in_both_layouts(c: int, h: int, w: int, target: int) -> None:
    x = random_array((c, h, w))
    expected = slow_map(x, target)
    first = pool(torch.from_numpy(x)[None], "nchw", target)
    last = pool(torch.from_numpy(np.moveaxis(x, 0, 2).copy())[None], "nhwc", target)
    np.testing.assert_allclose(first[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last[0], expected, rtol=1e-4, atol=1e-5)
    assert pooled_size((c, h, w), "nchw", target) == pooled_size((h, w, c), "nhwc", target) == len(expected)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 60), SIZES, TARGETS, PREFIXES, st.sampled_from(["pooled", "separate", "only"]))
@example(50, 4, 23, 5, "pooled")  # a window of 9 drops the last token
@example(4, 3, 5000, 6, "separate")  # fewer patches than prefix tokens, and all of them kept
def test_tokens_are_pooled_as_by_a_slow_loop_in_every_cls_mode(
    n_patches: int, c: int, target: int, n_prefix: int, cls_token: ClsToken
) -> None:
    x = random_array((n_patches + n_prefix, c))
    if cls_token == "pooled" or n_prefix == 0:
        expected = slow_tokens(x, target)
    elif cls_token == "only":
        expected = x[:n_prefix].ravel()
    else:
        expected = np.concatenate([x[:n_prefix].ravel(), slow_tokens(x[n_prefix:], target)])
    result = pool(torch.from_numpy(x)[None], "tokens", target, cls_token, n_prefix)
    np.testing.assert_allclose(result[0], expected, rtol=1e-4, atol=1e-5)
    assert pooled_size(x.shape, "tokens", target, cls_token, n_prefix) == len(expected)


@pytest.mark.parametrize(
    ("shape", "layout", "target", "count"),
    [
        ((64, 120, 120), "nchw", 512, 64 * 2 * 2),  # √8 rounds down to 2
        ((256, 60, 60), "nchw", 8192, 256 * 5 * 5),  # √32 → 5, windows of 12
        ((64, 60, 60), "nchw", 24576, 64 * 20 * 20),  # √384 → 19, windows of 3, of which 20 fit
        ((1024, 15, 15), "nchw", 24576, 1024 * 5 * 5),  # √24 → 4, windows of 3
        ((64, 7, 7), "nchw", 24576, 64 * 7 * 7),  # a grid of 19 on a map of 7: the reference keeps 64 numbers
        ((2048, 8, 8), "nchw", 512, 2048),
        ((197, 768), "tokens", 768, 768),
        ((197, 768), "tokens", 15_360, 21 * 768),  # 197/20 → windows of 9, of which 21 fit
        ((197, 3072), "tokens", 15_360, 5 * 3072),  # 197/5 → windows of 39, of which 5 fit
        ((768,), "vector", 512, 768),
    ],
)
def test_sizes_worked_out_by_hand(shape: tuple[int, ...], layout: Layout, target: int, count: int) -> None:
    assert pooled_size(shape, layout, target) == count


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(3, 7, 8), (4, 5, 5), (1, 9, 4)]), st.integers(1, 120), st.data())
def test_each_number_of_a_map_enters_one_feature_of_its_own_channel_or_none(
    shape: tuple[int, int, int], target: int, data: st.DataObject
) -> None:
    c, i, j = (data.draw(st.integers(0, size - 1)) for size in shape)
    x = torch.zeros(1, *shape)
    x[0, c, i, j] = 1
    features = pool(x, "nchw", target)[0].unflatten(0, (shape[0], -1))
    assert features.count_nonzero() <= 1
    assert features.count_nonzero() == features[c].count_nonzero()
    down, right = map_windows(shape[1], shape[2], shape[0], target)
    in_remainder = i >= shape[1] // down * down or j >= shape[2] // right * right
    assert (features.count_nonzero() == 0) == in_remainder
    assert in_remainder or features.max().item() == pytest.approx(1 / (down * right))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_half_precision_accumulate_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 200, 200), 100.0, dtype=dtype)  # the sum, 4e6, overflows float16
    assert pool(x, "nchw", 2).dtype == torch.float32
    assert torch.equal(pool(x, "nchw", 2), torch.full((1, 2), 100.0))
    assert torch.equal(pool(x, "nchw", 8), torch.full((1, 8), 100.0))
    assert torch.equal(pool(x.flatten(2).transpose(1, 2), "tokens", 2), torch.full((1, 2), 100.0))


def test_a_grid_finer_than_the_map_keeps_every_position() -> None:
    x = torch.randn(3, 2, 4, 6)
    assert torch.equal(pool(x, "nchw", 10_000), x.flatten(1))
    assert torch.equal(pool(x, "nchw", 2 * 25), x.flatten(1))  # finer than the map one way only
    tokens = torch.randn(3, 5, 4)
    assert torch.equal(pool(tokens, "tokens", 10_000), tokens.flatten(1))


def test_strided_views_are_pooled_by_what_they_hold() -> None:
    x = torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(pool(x.to(memory_format=torch.channels_last), "nchw", 40), pool(x, "nchw", 40))
    tokens = x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool(tokens, "tokens", 40), pool(tokens.contiguous(), "tokens", 40))


@pytest.mark.parametrize(
    ("shape", "layout", "target"),
    [((4, 3, 2), "nchw", 1000), ((5, 4), "tokens", 1000), ((7,), "vector", 3), ((4, 1, 1), "nchw", 2)],
)
def test_the_result_never_shares_memory_with_the_captured_tensor(
    shape: tuple[int, ...], layout: Layout, target: int
) -> None:
    x = torch.randn(2, *shape)
    result = pool(x, layout, target)
    before = result.clone()
    x.zero_()
    assert torch.equal(result, before)


def test_images_do_not_mix() -> None:
    x = torch.randn(5, 3, 9, 7)
    assert torch.equal(pool(x, "nchw", 40)[2:3], pool(x[2:3], "nchw", 40))


def test_wrong_dimensions_and_targets_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"shape \(3, 4\) per image is not in layout 'nchw'"):
        pool(torch.zeros(2, 3, 4), "nchw", 8)
    with pytest.raises(InvalidInputError, match="target size 0"):
        pooled_size((3,), "vector", 0)
    with pytest.raises(InvalidInputError, match="2 prefix tokens"):
        pooled_size((2, 4), "tokens", 8, "separate", 2)
