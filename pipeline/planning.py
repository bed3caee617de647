"""What an extraction will do, resolved and checked before anything is written."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.backbones import Backbone, load_backbone
from pipeline.compute import Progress
from pipeline.datasets import ImageData, find_bad_images, load_data
from pipeline.growth import Parent
from pipeline.pooling import ClsToken
from pipeline.taps import PlannedLayer, plan_layers, resolve_taps
from store.activations import open_store
from store.errors import InvalidInputError
from store.local import LocalObjects
from store.objects import join, open_objects
from store.spec import DataSpec, DTypeName, ExtractionSpec, Frozen, Manifest, PoolingSpec, fingerprint

DEFAULT_BATCH_SIZE = 64
MOST_NAMED = 20


class ExtractionParameters(Frozen):
    """What to extract, and how.

    Attributes
    ----------
    backbone : str
        timm model name, optionally with a weights tag.
    data : str
        ``digits``, or a folder of images.
    weights : str
        ``pretrained``, a checkpoint file, or ``random:SEED``.
    taps : tuple of str
        Preset names, module names or shell-style patterns.
    exclude : tuple of str
        Patterns of taps to leave out.
    target_sizes : tuple of int
        Features aimed at per layer.
    cls_token : str
        What becomes of prefix tokens: ``pooled``, ``separate`` or ``only``.
    dtype : str
        Type of the stored values.
    image_size : int, optional
        Height and width in pixels; the backbone's own if not given.
    batch_size : int
        Images per forward pass; a resumed store keeps the one it was begun with, so that its bytes stay the same.
    block_size : int, optional
        Samples per committed block at most.
    device : str
        ``auto``, ``cpu``, ``cuda`` or any other torch device.
    extend : str, optional
        A store of fewer of these images, made with the same backbone and taps: what has not changed is taken over.
    """

    backbone: str
    data: str
    weights: str = "pretrained"
    taps: tuple[str, ...] = ("head2toe",)
    exclude: tuple[str, ...] = ()
    target_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (512,)
    cls_token: ClsToken = "pooled"
    dtype: DTypeName = "float16"
    image_size: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = DEFAULT_BATCH_SIZE
    block_size: Annotated[int, Field(ge=1)] | None = None
    device: str = "auto"
    extend: str | None = None


@dataclass(frozen=True)
class Plan:
    """An extraction, resolved but not begun.

    Attributes
    ----------
    backbone : Backbone
        The frozen model.
    data : ImageData
        The images.
    layers : tuple of PlannedLayer
        What will be stored.
    manifests : dict of str to Manifest
        Samples by split.
    spec : ExtractionSpec
        Identity.
    uri : str
        Where the store will be.
    parent : Parent, optional
        The store it grows from.
    """

    backbone: Backbone
    data: ImageData
    layers: tuple[PlannedLayer, ...]
    manifests: dict[str, Manifest]
    spec: ExtractionSpec
    uri: str
    parent: Parent | None = None

    @property
    def n_features(self) -> int:
        """Features over all layers."""
        return sum(layer.n_features for layer in self.layers)

    @property
    def n_bytes(self) -> int:
        """Bytes of all activations."""
        n = sum(len(m.ids) for m in self.manifests.values())
        return n * self.n_features * np.dtype(self.spec.dtype).itemsize


def plan_extraction(parameters: ExtractionParameters, root: str, progress: Progress | None = None) -> Plan:
    """Load the backbone, look at the data, and resolve everything that identifies the extraction.

    Parameters
    ----------
    parameters : ExtractionParameters
        What to extract.
    root : str
        Folder or URL under which stores lie.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    InvalidInputError
        If a name is unknown, a pattern matches nothing, or data cannot be used.
    """
    data = load_data(parameters.data)
    parent = None
    if parameters.extend is not None:
        parent = Parent.of(open_store(parameters.extend, allow_incomplete=True))
        data = parent.order(data)
    size = parameters.image_size
    backbone = load_backbone(parameters.backbone, parameters.weights, input_size=size)
    taps = resolve_taps(backbone.model, parameters.taps, parameters.exclude)
    pooling = PoolingSpec(target_sizes=parameters.target_sizes, cls_token=parameters.cls_token)
    layers = plan_layers(backbone.model, taps, pooling, backbone.preprocessing.input_size)
    manifests = {}
    for number, (name, split) in enumerate(data.splits.items()):
        if progress:
            progress("reading the data's manifest", number, len(data.splits))
        manifests[name] = split.manifest()
    if progress:
        progress("reading the data's manifest", len(data.splits), len(data.splits))
    spec = ExtractionSpec(
        backbone=backbone.spec,
        preprocessing=backbone.preprocessing,
        taps=taps,
        pooling=pooling,
        dtype=parameters.dtype,
        data=DataSpec(splits={n: m.spec() for n, m in manifests.items()}, class_names=data.class_names),
    )
    if parent is not None:
        parent.check(spec)
        parent.check_samples(manifests)
    return Plan(backbone, data, layers, manifests, spec, join(root, f"{fingerprint(spec)}.zarr"), parent)


def check_images(data: ImageData) -> None:
    """Decode every image once, so that no store is begun of data that cannot be finished."""
    bad = [f"{split}/{name} ({why})" for split, images in data.splits.items() for name, why in find_bad_images(images)]
    if bad:
        more = f" and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        raise InvalidInputError(
            f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be used: {', '.join(bad[:MOST_NAMED])}{more}; "
            "repair or remove them and run the same command again."
        )


def check_space(plan: Plan) -> None:
    """Refuse a place that cannot be written to or is too small for the store.

    Raises
    ------
    InvalidInputError
        If so.
    """
    objects = open_objects(plan.uri)
    if not isinstance(objects, LocalObjects):
        return
    place = objects.root.absolute().parent
    occupied = next((p for p in [place, *place.parents] if p.exists() and not p.is_dir()), None)
    if occupied is not None:
        raise InvalidInputError(f"cannot write to {str(occupied)!r}: it is a file; choose a folder as the root.")
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell of read-only file systems, nor of the superuser's rights.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InvalidInputError(
            f"cannot write to {str(place)!r}: {(error.strerror or str(error)).lower()}; choose a root that is writable."
        ) from error
    free = shutil.disk_usage(place).free
    if plan.n_bytes > free:
        raise InvalidInputError(
            f"the store needs {plan.n_bytes / 1e9:.1f} GB but {str(place)!r} has {free / 1e9:.1f} GB free; "
            "choose another root, fewer taps or a smaller target size."
        )
