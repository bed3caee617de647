"""Which dimension of a captured tensor holds the channels: found from the modules that touch the tensor."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from pipeline.pooling import Layout
from pipeline.probing import Call, Value
from store.errors import InvalidInputError

_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)
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
        for call in calls:
            layout = _convention(call.module)
            for value, when in ((call.input, call.started), (call.output, call.finished)):
                if layout is not None and value is not None and len(value.shape) > 1:
                    self._evidence.setdefault((value.key, value.shape), layout)
                    if len(value.shape) == 3:
                        self._maps.append((when, layout))
        self._n_prefix = int(getattr(calls[0].module, "num_prefix_tokens", 0) or 0)
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
            found = self._by_shape(value.shape) or self._nearest(when)
        if found == "nchw" and (len(value.shape) == 2 or value.rows_per_image > 1):
            shape = (value.rows_per_image, *value.shape)
            raise InvalidInputError(
                f"tap {name!r} gives {shape} numbers per image with the channels before the positions, "
                f"which cannot be pooled; capture the module around it."
            )
        if len(value.shape) == 2 or value.rows_per_image > 1:
            return "tokens"
        return found or "nchw"

    def n_prefix_tokens(self, value: Value) -> int:
        """Return how many leading tokens of a token sequence are not patches."""
        n_tokens = value.shape[0]
        if len(value.shape) != 2 or value.rows_per_image != 1 or n_tokens <= self._n_prefix:
            return 0
        if self._n_patches is not None and n_tokens != self._n_patches + self._n_prefix:
            return 0
        return self._n_prefix

    def _by_shape(self, shape: tuple[int, ...]) -> Layout | None:
        """Decide by which two dimensions have the proportions of the image, if only one pair does."""
        first, last = self._is_grid(shape[0], shape[1]), self._is_grid(shape[1], shape[2])
        if first == last:
            return None
        return "nhwc" if first else "nchw"

    def _is_grid(self, rows: int, columns: int) -> bool:
        _, height, width = self._image_shape
        return abs(rows * width - columns * height) <= max(height, width) and rows <= height and columns <= width

    def _nearest(self, when: int) -> Layout | None:
        return min(self._maps, key=lambda item: abs(item[0] - when), default=(0, None))[1]

    @staticmethod
    def _count_patches(calls: tuple[Call, ...]) -> int | None:
        for call in calls:
            if call.name == "patch_embed" and call.output is not None:
                shape = call.output.shape
                return shape[0] if len(shape) == 2 else shape[0] * shape[1]
        return None


def _convention(module: nn.Module) -> Layout | None:
    name = type(module).__name__
    if name.endswith("2d") or isinstance(module, _CHANNELS_FIRST):
        return "nchw"
    if isinstance(module, _CHANNELS_LAST) or name in ("RmsNorm", "SimpleNorm", "LayerScale"):
        return "nhwc"
    return None
