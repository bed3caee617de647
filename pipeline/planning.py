"""What an extraction will do, resolved and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.backbones import Backbone, load_backbone
from pipeline.compute import Progress
from pipeline.datasets import ImageData, load_data
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.growth import Parent
from pipeline.intake import known_digests, take_in
from pipeline.preprocessing import describe
from pipeline.probing import trace
from pipeline.taps import PlannedLayer, plan_layers, plan_pooling, resolve_taps
from store.activations import open_store
from store.aliases import resolve_store
from store.objects import join
from store.spec import DataSpec, ExtractionSpec, Manifest, fingerprint


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
    skipped : dict of str to dict of str to str
        Id and reason of each bad image that is left out, by split.
    left_out : str
        A sentence that says where they are, if there are any.
    """

    backbone: Backbone
    data: ImageData
    layers: tuple[PlannedLayer, ...]
    manifests: dict[str, Manifest]
    spec: ExtractionSpec
    uri: str
    parent: Parent | None = None
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the images: what becomes of them, how they were split, what was left out."""
        made = f"preprocessing is a {describe(self.backbone.preprocessing)}."
        return tuple(filter(None, (made, self.data.note and f"{self.data.note}.", self.left_out)))

    @property
    def n_features(self) -> int:
        """Features over all layers."""
        return sum(layer.n_features for layer in self.layers)

    @property
    def n_bytes(self) -> int:
        """Bytes of all activations."""
        n = sum(len(m.ids) for m in self.manifests.values())
        return n * self.n_features * np.dtype(self.spec.dtype).itemsize


def plan_extraction(
    parameters: ExtractionParameters, root: str, progress: Progress | None = None, data: ImageData | None = None
) -> Plan:
    """Load the backbone, look at every image, and resolve everything that identifies the extraction.

    Parameters
    ----------
    parameters : ExtractionParameters
        What to extract.
    root : str
        Folder or URL under which stores lie.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    data : ImageData, optional
        Images in place of those that `parameters.data` names, such as `pipeline.datasets.from_arrays` gives.

    Raises
    ------
    InvalidInputError
        If a name is unknown, a pattern matches nothing, or data cannot be used.
    """
    if data is None:
        data = load_data(parameters.data, parameters.library_options())
    parent = None
    if parameters.extend is not None:
        parent = Parent.of(open_store(resolve_store(parameters.extend), allow_incomplete=True))
        data = parent.order(data)
    backbone = load_backbone(
        parameters.backbone,
        parameters.weights,
        input_size=parameters.image_size,
        preset=parameters.preprocessing,
        interpolation=parameters.interpolation,
        crop_mode=parameters.crop_mode,
        crop_pct=parameters.crop_pct,
        mean=parameters.mean,
        std=parameters.std,
    )
    input_size = backbone.preprocessing.input_size
    calls = trace(backbone.model, input_size)
    taps = resolve_taps(backbone.model, parameters.taps, parameters.exclude, input_size, calls)
    pooling = plan_pooling(parameters.pooling, parameters.target_sizes, parameters.cls_token)
    layers = plan_layers(backbone.model, taps, pooling, input_size, calls)
    known = known_digests(root, data.class_names)
    if parent is not None:
        known.update(digest for samples in parent.content.values() for _, digest in samples)
    intake = take_in(data, parameters.on_bad_image, known, progress)
    data, manifests = intake.data, intake.manifests
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
    uri = join(root, f"{fingerprint(spec)}.zarr")
    return Plan(backbone, data, layers, manifests, spec, uri, parent, intake.skipped, intake.note)
