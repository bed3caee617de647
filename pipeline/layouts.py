"""Which dimension of a captured tensor holds the channels: found from the modules that touch the tensor."""

from __future__ import annotations

import re
from collections.abc import Hashable

from torch import nn

from pipeline.pooling import Layout
from pipeline.probing import Call, Value
from store.errors import InvalidInputError

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)
_PREFIX_TOKEN = re.compile(r"(^|\.)(?P<kind>cls|dist|reg)_token_?\d*$")
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


class Layouts:
    """Layouts of the values of one traced forward pass.

    Parameters
    ----------
    calls : tuple of Call
        The trace.
    """

    def __init__(self, calls: tuple[Call, ...]) -> None:
        image = calls[0].input
        self._image_shape = image.shape if image is not None else (3, 1, 1)
        self._evidence: dict[tuple[Hashable, tuple[int, ...]], Layout] = {}
        self._maps: list[tuple[int, Layout]] = []
        if image is not None and len(image.shape) == 3:
            self._evidence[image.key, image.shape] = "nchw"
        for call in calls:
            layout = _convention(call.module)
            for value, when in ((call.input, call.started), (call.output, call.finished)):
                if layout is not None and value is not None and len(value.shape) > 1:
                    self._evidence.setdefault((value.key, value.shape), layout)
                    if len(value.shape) == 3:
                        self._maps.append((when, layout))
        self._n_prefix = _count_prefix_tokens(calls[0].module)
        self._n_patches = self._count_patches(calls)

    def layout(self, value: Value, when: int, name: str) -> Layout:
        """Return the layout of a value met at time `when`; `name` is for the error message.

        Raises
        ------
        InvalidInputError
            If its channels come before its positions in a sequence, which the pooling rule does not cover.
        """
        if len(value.shape) == 1:
            return "vector" if value.rows_per_image == 1 else "tokens"
        found = self._evidence.get((value.key, value.shape))
        if len(value.shape) == 3 and found is None:
            found = self._by_shape(value.shape, when)
        if found == "nchw" and (len(value.shape) == 2 or value.rows_per_image > 1):
            shape = (value.rows_per_image, *value.shape)
            raise InvalidInputError(
                f"tap {name!r} gives {shape} numbers per image with the channels before the positions, "
                f"which cannot be pooled; capture the module around it."
            )
        if len(value.shape) == 2 or value.rows_per_image > 1:
            return "tokens"
        if found == "nhwc" and not self._is_grid(value.shape[0], value.shape[1]):
            return "tokens"  # windows by positions, not rows by columns
        return found or "tokens"

    def n_prefix_tokens(self, value: Value) -> int:
        """Return how many leading tokens of a token sequence are not patches.

        A network may join its prefix tokens late, drop them early, or make fewer patches from stage to stage; the
        sequence has them if what is left without them, and not the whole, fills a grid of the image's proportions.
        """
        n_tokens = value.shape[0]
        if len(value.shape) != 2 or value.rows_per_image != 1 or n_tokens == self._n_patches:
            return 0
        n_patches = n_tokens - self._n_prefix
        if n_patches == self._n_patches or (self._fills_grid(n_patches) and not self._fills_grid(n_tokens)):
            return self._n_prefix
        return 0

    def _fills_grid(self, n_tokens: int) -> bool:
        _, height, width = self._image_shape
        sides = (rows for rows in range(1, n_tokens + 1) if n_tokens % rows == 0)
        return any(abs(rows * width - n_tokens // rows * height) < max(height, width) for rows in sides)

    def _by_shape(self, shape: tuple[int, ...], when: int) -> Layout:
        """Decide by which two dimensions have the proportions of the image; if both pairs do, as the nearest map."""
        first, last = self._is_grid(shape[0], shape[1]), self._is_grid(shape[1], shape[2])
        if first and last:
            return min(self._maps, key=lambda item: abs(item[0] - when), default=(0, "nchw"))[1]
        return "nchw" if last else "nhwc"

    def _is_grid(self, rows: int, columns: int) -> bool:
        _, height, width = self._image_shape
        return abs(rows * width - columns * height) <= max(height, width) and rows <= height and columns <= width

    @staticmethod
    def _count_patches(calls: tuple[Call, ...]) -> int | None:
        for call in calls:
            if call.name == "patch_embed" and call.output is not None:
                shape = call.output.shape
                return shape[0] if len(shape) == 2 else shape[0] * shape[1]
        return None


def _count_prefix_tokens(model: nn.Module) -> int:
    """Return how many prefix tokens timm says the model has or, if it does not say, how many it has learnt."""
    known = getattr(model, "num_prefix_tokens", None)
    if known is not None:
        return int(known)
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        match = _PREFIX_TOKEN.search(name)
        if match and parameter.ndim == 3:  # branches and stages each have their own token of one kind
            found.setdefault(match["kind"], parameter.shape[1])
    return sum(found.values())


def _convention(module: nn.Module) -> Layout | None:
    name = type(module).__name__
    if name.endswith("2d") or isinstance(module, _CHANNELS_FIRST):
        return "nchw"
    if isinstance(module, _CHANNELS_LAST) or name in ("RmsNorm", "SimpleNorm", "LayerScale"):
        return "nhwc"
    return None
