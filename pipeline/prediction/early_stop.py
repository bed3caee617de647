"""The forward pass as deep as it must go: whatever comes after the last captured tensor is not computed."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor

from pipeline.taps import Capture, PlannedLayer


class _Reached(Exception):
    """Everything wanted has been captured."""


class EarlyStop(Capture):
    """A `Capture` that leaves the model once every layer has been captured, wherever that is.

    Examples
    --------
    >>> with EarlyStop(model, layers[:3]) as capture:  # doctest: +SKIP
    ...     features = capture(batch)["layer1.0.act3"]
    """

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the model up to the deepest of the layers and return the features of each, as `Capture` does."""
        pooled: dict[str, Tensor] = {}

        def keep(layer: PlannedLayer, values: Tensor) -> None:
            pooled[layer.name] = values
            if len(pooled) == len(self.layers):
                raise _Reached

        with suppress(_Reached):
            self._run(batch, keep)
        return {layer.name: pooled[layer.name] for layer in self.layers}
