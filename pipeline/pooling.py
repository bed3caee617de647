"""The paper's pooling rule: a captured tensor becomes about `target_size` features per image.

Pooling averages over space or tokens and never over channels (Evci et al. 2022, section 3 and the reference code's
`flatten_and_concat`). One deviation, on purpose: where the wanted grid is finer than the map, the window is one
position; the reference falls back to a single global mean without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipeline.extraction_parameters import ClsToken
from store.errors import InvalidInputError

Layout = Literal["nchw", "nhwc", "tokens", "vector"]

DIMENSIONS: dict[Layout, int] = {"nchw": 3, "nhwc": 3, "tokens": 2, "vector": 1}

FEW_TOKENS = 8
"""Windows up to which the CPU adds whole strips of tokens: *measured*, 2 to 2.5 times as fast as `mean` with windows
of four, with the same bits, and slower with 18."""


@dataclass(frozen=True)
class Pooling:
    """A rule in place of the paper's: what an entry point of group ``head2toe.poolings`` names.

    Both functions see positions as a map: tokens come as (batch, channels, token, 1), without prefix tokens unless
    these are pooled with the patches. Vectors, and prefix tokens that are kept apart, pass without the rule.

    Attributes
    ----------
    pool : callable
        From a tensor of shape (batch, channels, height, width), of any floating type and any strides, and the target
        size to a tensor of shape (batch, feature). It must treat every image by itself, give the same bits each time,
        and leave the tensor as it is, for the network goes on with it; `check_pooling` tries that.
    size : callable
        From channels, height, width and the target size to the number of features, at least one.
    """

    pool: Callable[[Tensor, int], Tensor]
    size: Callable[[int, int, int, int], int]


def map_windows(height: int, width: int, channels: int, target_size: int) -> tuple[int, int]:
    """Return the (vertical, horizontal) pooling window, in positions, for a map of `channels` x `height` x `width`.

    One window covers the whole map when there are at least `target_size` channels.
    """
    if channels >= target_size:
        return height, width
    grid = math.isqrt(target_size // channels)
    return max(height // grid, 1), max(width // grid, 1)


def token_window(n_tokens: int, channels: int, target_size: int) -> int:
    """Return the pooling window, in tokens, for `n_tokens` tokens of `channels` features."""
    if channels >= target_size:
        return n_tokens
    return max(n_tokens * channels // target_size, 1)


def pool(
    x: Tensor,
    layout: Layout,
    target_size: int,
    cls_token: ClsToken = "pooled",
    n_prefix_tokens: int = 0,
    rule: Pooling | None = None,
) -> Tensor:
    """Average a captured tensor over windows of positions and flatten it to one vector per image.

    Parameters
    ----------
    x : Tensor
        Shape (batch, channels, height, width) for ``"nchw"``, (batch, height, width, channels) for ``"nhwc"``,
        (batch, token, channels) for ``"tokens"`` and (batch, feature) for ``"vector"``. Any floating dtype.
    layout : str
        Meaning of the dimensions of `x`.
    target_size : int
        Number of features aimed at. With as many channels or more, all positions are averaged; with fewer, a map is
        cut into a grid of ``isqrt(target_size // channels)`` per axis, tokens into ``target_size / channels`` runs;
        window sizes are rounded down and the remainder at the end is dropped. Vectors pass unchanged.
    cls_token : str
        ``"pooled"`` averages prefix tokens with the patches, ``"separate"`` puts them, unpooled, before the pooled
        patches, ``"only"`` keeps them alone. Without prefix tokens all three pool every token.
    n_prefix_tokens : int
        How many leading tokens are not patches.
    rule : Pooling, optional
        In place of the paper's.

    Returns
    -------
    Tensor
        Shape (batch, feature), float32, never sharing memory with `x`; averages accumulate in float32. Maps are
        flattened in the order channel, row, column whatever their layout; tokens in the order window, channel.

    Raises
    ------
    InvalidInputError
        If `x` does not have the number of dimensions of `layout`, has no tokens but prefix tokens, `target_size` is
        not positive, or a rule gives another number of features than it says.
    """
    _check(x.shape[1:], layout, target_size, n_prefix_tokens)
    if layout == "vector":
        return x.to(torch.float32, copy=True)
    if layout == "tokens":
        if n_prefix_tokens == 0 or cls_token == "pooled":
            return _pool_tokens(x, target_size, rule)
        prefix = x[:, :n_prefix_tokens].to(torch.float32, copy=True).flatten(1)
        if cls_token == "only":
            return prefix
        return torch.cat([prefix, _pool_tokens(x[:, n_prefix_tokens:], target_size, rule)], dim=1)
    return _pool_map(x if layout == "nchw" else x.permute(0, 3, 1, 2), target_size, rule)


def pooled_size(
    shape: Sequence[int],
    layout: Layout,
    target_size: int,
    cls_token: ClsToken = "pooled",
    n_prefix_tokens: int = 0,
    rule: Pooling | None = None,
) -> int:
    """Return how many features `pool` yields for one image.

    Parameters
    ----------
    shape : sequence of int
        Shape of the captured tensor without the batch dimension.
    layout, target_size, cls_token, n_prefix_tokens, rule
        As for `pool`.

    Returns
    -------
    int
        Number of features.

    Raises
    ------
    InvalidInputError
        As for `pool`.
    """
    _check(shape, layout, target_size, n_prefix_tokens)
    if layout == "vector":
        return shape[0]
    if layout == "tokens":
        n_tokens, channels = shape
        if n_prefix_tokens == 0 or cls_token == "pooled":
            return _token_features(n_tokens, channels, target_size, rule)
        if cls_token == "only":
            return n_prefix_tokens * channels
        n_patches = n_tokens - n_prefix_tokens
        return n_prefix_tokens * channels + _token_features(n_patches, channels, target_size, rule)
    channels, height, width = shape if layout == "nchw" else (shape[2], shape[0], shape[1])
    if rule is not None:
        return rule.size(channels, height, width, target_size)
    vertical, horizontal = map_windows(height, width, channels, target_size)
    return channels * (height // vertical) * (width // horizontal)


def check_pooling(
    rule: Pooling, shape: Sequence[int], layout: Layout, target_size: int, cls_token: ClsToken, n_prefix_tokens: int
) -> None:
    """Refuse a rule that breaks a promise on which stores rest, tried on noise.

    A store's bytes must depend on its images alone: not on which of them share a batch, nor on when they are pooled.

    Parameters
    ----------
    rule : Pooling
        What to try.
    shape, layout, target_size, cls_token, n_prefix_tokens
        As for `pooled_size`.

    Raises
    ------
    InvalidInputError
        If features are not as many as said or not finite, change from one call to the next or with the other images of
        a batch, or the tensor itself is changed.
    """
    what = (layout, target_size, cls_token, n_prefix_tokens)
    count = pooled_size(shape, *what, rule)
    if not isinstance(count, int) or count < 1:
        raise InvalidInputError(
            f"the rule says that {tuple(shape)} yields {count!r} features; give a whole number from 1."
        )
    x = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with torch.inference_mode():
        found = pool(x, *what, rule)
        if not torch.equal(x, before):
            raise InvalidInputError("the rule changes the tensor that it is given, with which the network goes on.")
        if not torch.isfinite(found).all():
            raise InvalidInputError(
                f"the rule makes values that are not finite of finite ones of shape {tuple(shape)}."
            )
        if not torch.equal(pool(x, *what, rule), found):
            raise InvalidInputError("the rule gives other values the second time.")
        if not torch.allclose(pool(x[1:2], *what, rule), found[1:2], rtol=1e-4, atol=1e-5):
            raise InvalidInputError("what the rule gives for an image depends on the other images of the batch.")


def _pool_by(rule: Pooling, x: Tensor, target_size: int) -> Tensor:
    found = rule.pool(x, target_size)
    wanted = len(x), rule.size(x.shape[1], x.shape[2], x.shape[3], target_size)
    if tuple(found.shape) != wanted:
        raise InvalidInputError(
            f"the rule makes a tensor of shape {tuple(found.shape)} of one of {tuple(x.shape)}, and says that its "
            f"shape is {wanted}."
        )
    return found.to(torch.float32, copy=True)


def _token_features(n_tokens: int, channels: int, target_size: int, rule: Pooling | None) -> int:
    if rule is not None:
        return rule.size(channels, n_tokens, 1, target_size)
    return n_tokens // token_window(n_tokens, channels, target_size) * channels


def _pool_map(x: Tensor, target_size: int, rule: Pooling | None = None) -> Tensor:
    if rule is not None:
        return _pool_by(rule, x, target_size)
    channels, height, width = x.shape[1:]
    vertical, horizontal = map_windows(height, width, channels, target_size)
    if (vertical, horizontal) == (height, width):
        return x.mean(dim=(2, 3), dtype=torch.float32)
    if vertical == horizontal == 1:
        return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format).flatten(1)
    return avg_pool2d(x.float(), (vertical, horizontal)).flatten(1)


def _pool_tokens(x: Tensor, target_size: int, rule: Pooling | None = None) -> Tensor:
    if rule is not None:
        return _pool_by(rule, x.transpose(1, 2).unsqueeze(3), target_size)
    n_tokens, channels = x.shape[1:]
    window = token_window(n_tokens, channels, target_size)
    if window == 1:
        return x.to(torch.float32, copy=True).flatten(1)
    groups = n_tokens // window
    windows = x[:, : groups * window].unflatten(1, (groups, window))
    if window > FEW_TOKENS or x.device.type != "cpu" or x.dtype != torch.float32:
        return windows.mean(dim=2, dtype=torch.float32).flatten(1)
    first, second, *others = windows.unbind(2)
    total = first + second
    for tokens in others:
        total += tokens
    return total.div_(window).flatten(1)


def _check(shape: Sequence[int], layout: Layout, target_size: int, n_prefix_tokens: int) -> None:
    if layout not in DIMENSIONS:
        raise InvalidInputError(f"layout {layout!r} is unknown; valid layouts are {', '.join(map(repr, DIMENSIONS))}.")
    if len(shape) != DIMENSIONS[layout]:
        raise InvalidInputError(
            f"a tensor of shape {tuple(shape)} per image is not in layout {layout!r}, "
            f"which has {DIMENSIONS[layout]} dimensions."
        )
    if layout == "tokens" and not 0 <= n_prefix_tokens < shape[0]:
        raise InvalidInputError(f"{shape[0]} tokens cannot begin with {n_prefix_tokens} prefix tokens.")
    if target_size < 1:
        raise InvalidInputError(f"target size {target_size} must be a positive number of features.")
