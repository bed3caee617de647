"""What an extraction will do, resolved and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.backbones import Backbone, load_backbone
from pipeline.compute import Progress
from pipeline.datasets import ImageData, LibraryOptions, load_data
from pipeline.growth import Parent
from pipeline.intake import OnBadImage, known_digests, take_in
from pipeline.pooling import ClsToken
from pipeline.preprocessing import DEFAULT_PRESET, describe
from pipeline.probing import trace
from pipeline.settings import Autocast
from pipeline.taps import AVERAGE, PlannedLayer, plan_layers, plan_pooling, resolve_taps
from store.activations import open_store
from store.aliases import resolve_store
from store.objects import join
from store.spec import DataSpec, DTypeName, ExtractionSpec, Frozen, Manifest, fingerprint


class ExtractionParameters(Frozen):
    """What to extract, and how.

    Attributes
    ----------
    backbone : str
        timm model name, optionally with a weights tag.
    data : str
        ``digits``, ``offline/<task>``, a folder of images, an ``.npz`` file, or a name such as ``torch/cifar10``; see
        `pipeline.datasets.load_data`.
    data_root : str, optional
        Where the data of a library's name is, or is kept once fetched.
    download : bool
        Whether torchvision may fetch data that is not there.
    splits : dict of str to str, optional
        The library's split for ``train``, ``test`` and ``val``.
    input_key, target_key : str, optional
        Column or part that holds the image, and the label, in data of Hugging Face and WebDataset.
    on_bad_image : str
        ``stop`` with the list of images that cannot be used, or ``skip`` them.
    weights : str
        ``pretrained``, ``shipped``, a checkpoint file, or ``random:SEED``.
    taps : tuple of str
        Preset names, module names or shell-style patterns.
    exclude : tuple of str
        Patterns of taps to leave out.
    target_sizes : tuple of int
        Features aimed at per layer.
    cls_token : str
        What becomes of prefix tokens: ``pooled``, ``separate`` or ``only``.
    pooling : str
        ``average``, the paper's rule, or that of an installed plug-in.
    dtype : str
        Type of the stored values.
    image_size : int, optional
        Height and width in pixels; the backbone's own if not given.
    preprocessing : str
        What to start from: ``timm``, the backbone's own, or ``vtab``, a plain resize to values in [−1, 1].
    interpolation, crop_mode, crop_pct, mean, std : optional
        Taking the place of what `preprocessing` says; see `pipeline.preprocessing.resolve_preprocessing`.
    batch_size : int, optional
        Images per forward pass; found by trying on a GPU, 16 on the CPU. Halved if memory does not suffice. As the
        next three, it changes values in the last digits only and is no part of the store's identity; a store that is
        resumed or grown from keeps what it was begun with.
    autocast : str
        Type of the backbone's products: ``none`` (float32), ``bf16``, ``fp16``, or ``auto``, which is ``fp16`` on a
        GPU if float16 is stored, else ``none``.
    channels_last : bool
        Whether maps lie in memory with their channels side by side, which convolutions like better.
    compile : bool
        Whether the backbone is compiled, which takes minutes at first.
    workers : int, optional
        Threads that read images; as many as there are cores if not given.
    block_size : int, optional
        Samples per committed block at most.
    device : str
        ``auto``, ``cpu``, ``cuda`` or any other torch device; several, separated by commas, work at once in processes
        of their own, as all GPUs do with ``auto``.
    dask_address : str, optional
        Scheduler of a running Dask cluster whose workers do the work, each with the device that `device` means there.
    extend : str, optional
        A store of fewer of these images, made with the same backbone and taps: what has not changed is taken over.
    """

    backbone: str
    data: str
    data_root: str | None = None
    download: bool = False
    splits: dict[str, str] | None = None
    input_key: str | None = None
    target_key: str | None = None
    on_bad_image: OnBadImage = "stop"
    weights: str = "pretrained"
    taps: tuple[str, ...] = ("head2toe",)
    exclude: tuple[str, ...] = ()
    target_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (512,)
    cls_token: ClsToken = "pooled"
    pooling: str = AVERAGE
    dtype: DTypeName = "float16"
    image_size: Annotated[int, Field(ge=1)] | None = None
    preprocessing: str = DEFAULT_PRESET
    interpolation: str | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    autocast: Literal["auto"] | Autocast = "auto"
    channels_last: bool = True
    compile: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None
    device: str = "auto"
    dask_address: str | None = None
    extend: str | None = None

    def library_options(self) -> LibraryOptions:
        """Return what a library needs to know besides the name of the data."""
        return LibraryOptions(self.data_root, self.download, self.splits, self.input_key, self.target_key)


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
