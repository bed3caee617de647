"""A head in a store becomes a classifier: its columns found among the taps, its normalization from the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones import Backbone
from pipeline.newest import newest_head
from pipeline.normalization import inverse
from pipeline.prediction.classifier import Head2ToeClassifier
from pipeline.prediction.recipe import Recipe, SelectedLayer
from pipeline.prediction.restoring import restore_backbone
from pipeline.settings import Settings
from pipeline.statistics import block_moments
from pipeline.taps import PlannedLayer, plan_layers
from store.activations import ActivationStore
from store.errors import DamagedStoreError, InvalidInputError
from store.layout import locate
from store.results import Result, read_result, result_digest
from store.spec import ExtractionSpec


def classifier_from_store(
    store: ActivationStore,
    head: str | None = None,
    *,
    weights: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> Head2ToeClassifier:
    """Return a head of a store with the backbone that made the store.

    Parameters
    ----------
    store : ActivationStore
        A complete store that was extracted here, not imported.
    head : str, optional
        Digest of the head, or its beginning; the newest on a selection if not given.
    weights : str, optional
        In place of where the store's provenance says that the backbone's weights are.
    announce : callable, optional
        Called with a sentence on the head that is taken if none is given.

    Returns
    -------
    Head2ToeClassifier
        On the CPU.

    Raises
    ------
    StoreNotFoundError
        If there is no such head.
    InvalidInputError
        If the store's activations were imported, the head needs several stores, or the backbone cannot be had.
    DamagedStoreError
        If the store's layers are not what the backbone yields.
    """
    spec = store.spec
    if not isinstance(spec, ExtractionSpec):
        raise InvalidInputError(
            f"store {store.uri!r} holds imported activations, so there is no backbone to run new images through; "
            "predict from a store that `head2toe extract` made."
        )
    result = _read_head(store, newest_head(store) if head is None else head)
    if head is None and announce:
        announce(
            f"taking the newest head on a selection, {result.digest}: {len(result.arrays['indices']):,} features of "
            f"selection {result.inputs['features']['selection']}; --head DIGEST takes another."
        )
    name = store.provenance.get("backbone", spec.backbone.architecture)
    backbone = restore_backbone(
        name, weights or store.provenance.get("weights", "pretrained"), spec.backbone, spec.preprocessing
    )
    planned = plan_layers(backbone.model, spec.taps, spec.pooling, spec.preprocessing.input_size)
    if [(p.name, p.n_features) for p in planned] != [(s.name, s.n_features) for s in store.layers.values()]:
        raise DamagedStoreError(
            f"the layers of store {store.uri!r} are not those that its backbone {name!r} yields; it was made by "
            "another version of timm or of this package: extract again."
        )
    layers, indices = _selected(store, planned, result.arrays["indices"])
    tensors = {
        "indices": indices,
        "coef": torch.from_numpy(result.arrays["coef"].astype(np.float32)),
        "intercept": torch.from_numpy(result.arrays["intercept"].astype(np.float32)),
        **_constants(store, result),
    }
    settings = Settings.of({"batch_size": 1, **store.provenance})
    recipe = Recipe(
        backbone=_tagged(backbone),
        weights=backbone.weights,
        backbone_spec=spec.backbone,
        preprocessing=spec.preprocessing,
        layers=layers,
        dtype=spec.dtype,
        autocast=settings.autocast,
        channels_last=settings.channels_last,
        normalization=result.inputs["normalization"],
        class_names=store.class_names,
        accuracy=result.facts["accuracy"],
        lineage=_lineage(store, result),
    )
    return Head2ToeClassifier(backbone, recipe, tensors)


def _read_head(store: ActivationStore, name: str) -> Result:
    result = read_result(store, "heads", name)
    # What is joined lies beside the first of its stores, under a digest that its own fingerprint does not give.
    if result_digest(store, "heads", result.inputs) != result.digest:
        raise InvalidInputError(
            f"head {result.digest} reads features of several joined stores, hence of several backbones; only a head "
            "of one store can be predicted with."
        )
    return result


def _selected(
    store: ActivationStore, planned: tuple[PlannedLayer, ...], indices: NDArray[np.int64]
) -> tuple[tuple[SelectedLayer, ...], Tensor]:
    """Return the layers that some index falls in, and the indices counted within each of them."""
    by_name = {layer.name: layer for layer in planned}
    layers, local = [], []
    for layer, positions in locate(tuple(store.layers.values()), indices):
        layers.append(SelectedLayer.of(by_name[layer.name], len(positions)))
        local.append(indices[positions] - layer.offset)
    return tuple(layers), torch.from_numpy(np.concatenate(local))


def _constants(store: ActivationStore, head: Result) -> dict[str, Tensor]:
    """Return what the refit standardised with: the moments of its training samples, which the store does not keep."""
    if head.inputs["normalization"] != "standardize":
        return {}
    raw = store.columns(head.inputs["train"], head.arrays["indices"])
    moments = block_moments(torch.tensor(raw.T))
    return {
        "mean": torch.from_numpy(moments.mean.astype(np.float32)),
        "scale": torch.from_numpy(inverse(moments.std)),
    }


def _tagged(backbone: Backbone) -> str:
    """Return the backbone's name with the tag that timm chose, which a later timm may choose otherwise."""
    tag = (getattr(backbone.model, "pretrained_cfg", None) or {}).get("tag")
    if backbone.weights != "pretrained" or not tag or ":" in backbone.name or "." in backbone.name:
        return backbone.name
    return f"{backbone.name}.{tag}"


def _lineage(store: ActivationStore, head: Result) -> dict[str, Any]:
    return {
        "head": head.digest,
        **{name: head.inputs[name] for name in ("features", "parameters", "train")},
        "store": store.fingerprint,
        "samples": {split.name: split.n_samples for split in store.splits.values()},
        "data": store.provenance.get("data"),
        "made": store.created,
        "versions": store.provenance.get("versions", {}),
    }
