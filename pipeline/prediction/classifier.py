"""`Head2ToeClassifier`: backbone, selected features, normalization and head as one PyTorch module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.backbones import Backbone
from pipeline.prediction.early_stop import EarlyStop
from pipeline.prediction.recipe import Recipe, split_by_layer
from store.errors import InvalidInputError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_STORED = {"float16": torch.float16, "float32": torch.float32}


class Head2ToeClassifier(nn.Module):
    """Images to logits: the backbone only as deep as the deepest selected layer, then the selected features alone.

    Only selected layers are pooled. Features are rounded as the store rounds them and normalised as the refit did, so
    that an image gets the logits it would have got by way of the store, but for what half precision leaves open. The
    backbone is frozen: there are no gradients, and `train` changes nothing. Calls from several threads take turns.

    Parameters
    ----------
    backbone : Backbone
        The one that the head was trained on.
    recipe : Recipe
        Layers, normalization, classes and lineage.
    tensors : mapping of str to Tensor
        ``indices`` int64 (m,), counted within each layer in turn; ``coef`` float32 (m, class); ``intercept`` float32
        (class,); for ``standardize`` also ``mean`` and ``scale``, the inverse deviation, float32 (m,).

    Attributes
    ----------
    backbone : Module
        The model itself.
    transform : callable
        From an RGB image to what `forward` takes, shape (channels, height, width).
    class_names : tuple of str
        In the order of the logits.
    layers : tuple of PlannedLayer
        What is captured.

    Raises
    ------
    InvalidInputError
        If the tensors do not fit the recipe, or the backbone has no such tap.

    Examples
    --------
    >>> classifier = load_classifier("exported")  # doctest: +SKIP
    >>> logits = classifier(classifier.transform(image)[None])  # doctest: +SKIP
    >>> classifier.class_names[logits.argmax()]  # doctest: +SKIP
    'daisy'
    """

    indices: Tensor
    coef: Tensor
    intercept: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        recipe.check(tensors)
        modules = {name for name, _ in backbone.model.named_modules()}
        absent = [layer.tap.module for layer in recipe.layers if layer.tap.module not in modules]
        if absent:
            raise InvalidInputError(f"backbone {backbone.name!r} has no module {absent[0]!r}.")
        self.backbone = backbone.model
        self.transform: Callable[[Image.Image], Tensor] = backbone.transform
        self.recipe = recipe
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.layers = tuple(layer.planned() for layer in recipe.layers)
        self._turn = _Turn()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.recipe.class_names

    @property
    def device(self) -> torch.device:
        """Where the head is, and with it everything else."""
        return self.coef.device

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of preprocessed images.

        Parameters
        ----------
        images : Tensor
            Shape (batch, channels, height, width), as `transform` makes them, on any device.

        Returns
        -------
        Tensor
            Shape (batch, class), float32.

        Raises
        ------
        InvalidInputError
            If the images are of another size.
        """
        return self.logits(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the raw selected features, rounded as in the store, shape (batch, m), float32."""
        size = self.recipe.preprocessing.input_size
        if tuple(images.shape[1:]) != size:
            wanted = ", ".join(map(str, size))
            raise InvalidInputError(f"images have the shape {tuple(images.shape)} instead of (batch, {wanted}).")
        with self._turn.lock, self._autocast(), EarlyStop(self.backbone, self.layers) as capture:
            return self.choose(capture(images.to(self.device)))

    def choose(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """Return the selected features, rounded as in the store, of what the selected layers were pooled to."""
        own = zip(self.recipe.layers, split_by_layer(self.indices, self.recipe), strict=True)
        chosen = torch.cat([pooled[layer.name].index_select(1, indices) for layer, indices in own], dim=1)
        return chosen.to(_STORED[self.recipe.dtype]).float()

    def logits(self, features: Tensor) -> Tensor:
        """Return logits, shape (batch, class), from raw selected features, shape (batch, m)."""
        x = features
        if self.recipe.normalization == "standardize":
            x = (x - self.mean) * self.scale
        elif self.recipe.normalization == "unit_norm":
            x = torch.cat([_unit(part) for part in split_by_layer(x, self.recipe)], dim=1)
        return x @ self.coef + self.intercept

    def _autocast(self) -> Any:
        wanted, kind = self.recipe.autocast, self.device.type
        # A CPU extracts in single precision unless told otherwise; for half precision it has no fast products.
        use = wanted != "none" and not (wanted == "fp16" and kind == "cpu")
        return torch.autocast(kind, dtype=_TYPES.get(wanted), enabled=use)


def _unit(values: Tensor) -> Tensor:
    """Divide each row by its L2 norm, rows of zeros staying zero."""
    norms = values.norm(dim=1, keepdim=True)
    return values / torch.where(norms > 0, norms, 1)


class _Turn:
    """A lock that a copy of its owner does not share: hooks belong to one module."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return _Turn, ()
