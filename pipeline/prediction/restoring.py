"""The backbone of a head, built again and proven to be the same: its weights by their digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.backbones import Backbone, load_backbone, weights_digest
from pipeline.weights import SHIPPED, read_weights
from store.errors import InvalidInputError
from store.spec import BackboneSpec, PreprocessingSpec


def restore_backbone(name: str, weights: str, spec: BackboneSpec, preprocessing: PreprocessingSpec) -> Backbone:
    """Return a backbone that computes what `spec` and `preprocessing` identify, or nothing.

    Parameters
    ----------
    name : str
        timm name.
    weights : str
        As for `pipeline.backbones.load_backbone`; a file may have any number of source classes.
    spec : BackboneSpec
        Architecture, arguments and weights digest that it must have.
    preprocessing : PreprocessingSpec
        How images become its input.

    Returns
    -------
    Backbone
        Frozen, on the CPU.

    Raises
    ------
    InvalidInputError
        If it cannot be built, or what is built is another one.
    """
    own = preprocessing.model_dump()
    if is_file(weights):
        backbone = _from_file(load_backbone(name, "random:0", **own), Path(weights), spec)
    else:
        backbone = load_backbone(name, weights, **own)
    if backbone.spec.weights_digest != spec.weights_digest:
        raise InvalidInputError(
            f"the weights {weights!r} of backbone {name!r} have the digest {backbone.spec.weights_digest}, but the "
            f"head was trained on those of digest {spec.weights_digest}; give the right ones with --weights FILE."
        )
    if (backbone.spec, backbone.preprocessing) != (spec, preprocessing):
        raise InvalidInputError(
            f"backbone {name!r} is built as {backbone.spec.architecture} with {backbone.spec.arguments}, but the head "
            f"was trained on {spec.architecture} with {spec.arguments}; use the version of timm that its store names."
        )
    return backbone


def is_file(weights: str) -> bool:
    """Whether weights are given by a file of the user's own, not by a name that others can resolve."""
    return weights not in ("pretrained", SHIPPED) and not weights.startswith("random:")


def _from_file(backbone: Backbone, path: Path, spec: BackboneSpec) -> Backbone:
    model: Any = backbone.model
    n_classes = spec.arguments.get("num_classes")
    if isinstance(n_classes, int) and 0 < n_classes != getattr(model, "num_classes", None):
        model.reset_classifier(n_classes)
    read_weights(model, backbone.name, path)
    model.eval().requires_grad_(False)
    arguments = {**backbone.spec.arguments, "num_classes": int(getattr(model, "num_classes", 0))}
    found = BackboneSpec(
        architecture=backbone.spec.architecture, arguments=arguments, weights_digest=weights_digest(model)
    )
    return replace(backbone, weights=str(path), spec=found)
