"""What a classifier is, apart from its numbers: the JSON document of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.extraction_parameters import Autocast, ClsToken
from pipeline.normalization import Normalization
from pipeline.pooling import Layout, pooled_size
from pipeline.taps import PlannedLayer, PluginLayer, load_rule
from store.errors import InvalidInputError
from store.spec import BackboneSpec, DTypeName, Frozen, PluginSpec, PreprocessingSpec, TapSpec

Count = Annotated[int, Field(ge=1)]


class SelectedLayer(Frozen):
    """A layer some of whose features a head reads; see `pipeline.taps.PlannedLayer`.

    Attributes
    ----------
    n_selected : int
        How many of its `n_features` the head reads.
    plugin : PluginSpec or None
        The package whose rule pools it, in this very version.
    """

    name: str
    tap: TapSpec
    layout: Layout
    shape: tuple[Count, ...]
    target_size: Count
    cls_token: ClsToken
    n_prefix_tokens: Annotated[int, Field(ge=0)]
    n_features: Count
    n_selected: Count
    plugin: PluginSpec | None = None

    @classmethod
    def of(cls, layer: PlannedLayer, n_selected: int) -> Self:
        """Return a planned layer with the number of features that are read."""
        return cls(**vars(layer), n_selected=n_selected)

    def planned(self) -> PlannedLayer:
        """Return the layer as it is captured."""
        values = {name: getattr(self, name) for name in PlannedLayer.__dataclass_fields__}
        return PlannedLayer(**values) if self.plugin is None else PluginLayer(**values, plugin=self.plugin)


class Recipe(Frozen):
    """Everything that a classifier is made of, but for its numbers.

    Attributes
    ----------
    backbone : str
        timm name, with the tag of its weights if they are timm's.
    weights : str
        Where the weights come from, as `pipeline.backbones.load_backbone` takes it.
    backbone_spec : BackboneSpec
        What the backbone must prove to be, weights digest included.
    preprocessing : PreprocessingSpec
        Fully resolved.
    layers : tuple of SelectedLayer
        In order of depth; no other tap is captured.
    dtype : str
        Type to which features are rounded, as in the store.
    autocast : str
        How a GPU computes, as it did for the store.
    channels_last : bool
        How maps lie in memory.
    normalization : str
        What the head sees.
    class_names : tuple of str
        In the order of the logits.
    accuracy : dict of str to float
        Share of samples classified right, by split of the store.
    lineage : dict
        Digests of store, selection and head, and what they were made with.
    files : dict of str to str
        SHA-256 of each file of tensors beside the document.
    """

    format: Literal["head2toe-classifier"] = "head2toe-classifier"
    format_version: Literal[1] = 1
    backbone: str
    weights: str
    backbone_spec: BackboneSpec
    preprocessing: PreprocessingSpec
    layers: Annotated[tuple[SelectedLayer, ...], Field(min_length=1)]
    dtype: DTypeName
    autocast: Autocast
    channels_last: bool
    normalization: Normalization
    class_names: Annotated[tuple[str, ...], Field(min_length=2)]
    accuracy: dict[str, float]
    lineage: dict[str, Any]
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        for layer in self.layers:
            rule = load_rule(layer.plugin) if layer.plugin else None
            how = (layer.shape, layer.layout, layer.target_size, layer.cls_token, layer.n_prefix_tokens, rule)
            if pooled_size(*how) != layer.n_features or layer.n_selected > layer.n_features:
                raise InvalidInputError(f"layer {layer.name!r} does not have the features that its shape yields.")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise InvalidInputError("a layer is listed twice.")
        return self

    @property
    def n_selected(self) -> int:
        """Features that the head reads."""
        return sum(layer.n_selected for layer in self.layers)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse numbers that are not those of this classifier.

        Raises
        ------
        InvalidInputError
            If a tensor is missing or too many, has another shape or type, or a value that cannot be.
        """
        m, n_classes = self.n_selected, len(self.class_names)
        wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "indices": (torch.int64, (m,)),
            "coef": (torch.float32, (m, n_classes)),
            "intercept": (torch.float32, (n_classes,)),
        }
        if self.normalization == "standardize":
            wanted |= {"mean": (torch.float32, (m,)), "scale": (torch.float32, (m,))}
        if tensors.keys() != wanted.keys():
            raise InvalidInputError(f"it has the tensors {sorted(tensors)} instead of {sorted(wanted)}.")
        for name, (dtype, shape) in wanted.items():
            tensor = tensors[name]
            if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
                raise InvalidInputError(
                    f"tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)} instead of {dtype} of {shape}."
                )
            if not torch.isfinite(tensor).all():
                raise InvalidInputError(f"tensor {name!r} has values that are not finite.")
        for layer, own in zip(self.layers, split_by_layer(tensors["indices"], self), strict=True):
            if own.min() < 0 or own.max() >= layer.n_features:
                raise InvalidInputError(f"layer {layer.name!r} has {layer.n_features:,} features, not {own.max():,}.")


def split_by_layer(values: Tensor, recipe: Recipe) -> tuple[Tensor, ...]:
    """Cut what has one entry per selected feature along its last dimension, layer by layer."""
    return values.split([layer.n_selected for layer in recipe.layers], dim=-1)
