"""Pooling follows the paper's rule, whatever the layout, shape and type."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.pooling import ClsToken, Layout, pool, pooled_size
from store.errors import InvalidInputError

SIZES = st.integers(1, 13)
TARGETS = st.integers(1, 400)


def slow_map(x: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """Pool (channels, height, width) by the letter of the rule, one window at a time."""
    channels, height, width = x.shape
    if channels >= target:
        return np.array([x[c].mean() for c in range(channels)])
    n = math.floor(math.sqrt(target // channels))
    down, right = max(1, height // n), max(1, width // n)
    return np.array(
        [
            x[c, i : i + down, j : j + right].mean()
            for c in range(channels)
            for i in range(0, height - down + 1, down)
            for j in range(0, width - right + 1, right)
        ]
    )


def slow_tokens(x: NDArray[np.float64], target: int) -> NDArray[np.float64]:
    """Pool (token, channels) by the letter of the rule, one window at a time."""
    n_tokens, channels = x.shape
    if channels >= target:
        return x.mean(axis=0)
    window = max(1, n_tokens * channels // target)
    starts = range(0, n_tokens - window + 1, window)
    return np.concatenate([x[i : i + window].mean(axis=0) for i in starts])


def random_array(shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.random.default_rng(sum(shape)).normal(size=shape)


@settings(deadline=None, max_examples=150)
@given(SIZES, SIZES, SIZES, TARGETS)
def test_maps_are_pooled_as_by_a_slow_loop_in_both_layouts(c: int, h: int, w: int, target: int) -> None:
    x = random_array((c, h, w))
    expected = slow_map(x, target)
    first = pool(torch.from_numpy(x)[None], "nchw", target)
    last = pool(torch.from_numpy(np.moveaxis(x, 0, 2).copy())[None], "nhwc", target)
    np.testing.assert_allclose(first[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last[0], expected, rtol=1e-4, atol=1e-5)
    assert pooled_size((c, h, w), "nchw", target) == pooled_size((h, w, c), "nhwc", target) == len(expected)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 60), SIZES, TARGETS, st.integers(0, 3), st.sampled_from(["pooled", "separate", "only"]))
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_half_precision_accumulate_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 200, 200), 100.0, dtype=dtype)  # the sum, 4e6, overflows float16
    assert pool(x, "nchw", 2).dtype == torch.float32
    assert torch.equal(pool(x, "nchw", 2), torch.full((1, 2), 100.0))
    assert torch.equal(pool(x, "nchw", 8), torch.full((1, 8), 100.0))
    assert torch.equal(pool(x.flatten(2).transpose(1, 2), "tokens", 2), torch.full((1, 2), 100.0))


def test_a_grid_finer_than_the_map_keeps_every_position() -> None:
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(pool(x, "nchw", 10_000), x.flatten(1))


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
