"""What identifies a store: frozen models, canonical JSON and the fingerprint taken over it."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from store.errors import InvalidInputError

FORMAT = "head2toe-activations"
FORMAT_VERSION = 1
DIGEST_LENGTH = 20

_ATTRIBUTE = re.compile(r"^(\w[\w, ]*?) : .*\n((?: {4}.*\n)+)", re.MULTILINE)

DTypeName = Literal["float16", "float32"]


def _describe_fields(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Give the fields of a JSON schema, of which forms are made, what the docstrings say under ``Attributes``."""
    if "description" in schema:
        schema["description"] = schema["description"].partition("\n\n")[0]
    for ancestor in model.__mro__:
        _, _, listed = inspect.cleandoc(ancestor.__doc__ or "").partition("\nAttributes\n----------\n")
        for names, text in _ATTRIBUTE.findall(listed.partition("\n\n")[0] + "\n"):
            for name in names.split(", "):
                field = schema.get("properties", {}).get(name)
                if field is not None:
                    field.setdefault("description", " ".join(text.split()))


class Frozen(BaseModel):
    """Immutable model that refuses unknown fields, and whose JSON schema explains them as its docstring does."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_describe_fields)


class BackboneSpec(Frozen):
    """The function that produced the activations: a timm architecture and the digest of its weights.

    Attributes
    ----------
    architecture : str
        timm model name without the weights tag.
    arguments : dict
        Keyword arguments of `timm.create_model` that change the computation.
    weights_digest : str
        Digest over every parameter and buffer, by name, dtype, shape and bytes.
    """

    architecture: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights_digest: str


class PreprocessingSpec(Frozen):
    """How an image becomes the input tensor, fully resolved.

    Attributes
    ----------
    input_size : tuple of int
        (channels, height, width) in pixels.
    interpolation : str
        Resampling filter by its timm name, such as ``"bicubic"``.
    crop_mode : str
        ``"center"`` and ``"border"`` as in timm; ``"squash"`` is a plain resize without crop.
    crop_pct : float
        Share of the resized image that the crop keeps.
    mean, std : tuple of float
        Per-channel normalization on the [0, 1] scale.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    crop_mode: Literal["center", "border", "squash"]
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TapSpec(Frozen):
    """A named place in the backbone whose value is captured.

    Attributes
    ----------
    name : str
        Name of the layer it becomes in the store.
    module : str
        Dotted name of the hooked module; empty for the whole model.
    point : str
        Whether the module's output or its (first) input is captured.
    """

    name: str
    module: str
    point: Literal["input", "output"] = "output"


class PluginSpec(Frozen):
    """Something that another package gives, and whose version says what it does.

    Attributes
    ----------
    name : str
        Name of the entry point.
    distribution : str
        The package as it is installed by.
    version : str
        Its version.
    """

    name: str
    distribution: str
    version: str


class PoolingSpec(Frozen):
    """The pooling rule, the paper's or another package's, and its parameters.

    Attributes
    ----------
    target_sizes : tuple of int
        Number of features aimed at per layer; several are stored side by side.
    cls_token : str
        Whether prefix tokens are averaged with the patches, kept apart, or the only ones kept.
    plugin : PluginSpec, optional
        What pools in place of the paper's rule.
    """

    target_sizes: tuple[Annotated[int, Field(ge=1)], ...]
    cls_token: Literal["pooled", "separate", "only"] = "pooled"
    plugin: PluginSpec | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say nothing of a plug-in where there is none: the paper's rule has the fingerprints it always had."""
        return {name: value for name, value in handler(self).items() if name != "plugin" or value is not None}


class SplitSpec(Frozen):
    """One split of a data set: how many samples, and the digest of its manifest."""

    n_samples: Annotated[int, Field(ge=1)]
    manifest_digest: str


class DataSpec(Frozen):
    """The images, by content: one entry per split, and the class names in label order."""

    splits: dict[str, SplitSpec]
    class_names: tuple[str, ...]


class ExtractionSpec(Frozen):
    """All that decides the bytes of an extraction, and nothing else."""

    kind: Literal["extraction"] = "extraction"
    format_version: int = FORMAT_VERSION
    backbone: BackboneSpec
    preprocessing: PreprocessingSpec
    taps: tuple[TapSpec, ...]
    pooling: PoolingSpec
    dtype: DTypeName
    data: DataSpec


class ImportSpec(Frozen):
    """Identity of activations made elsewhere: their layers and data, and what their producer says of them.

    Attributes
    ----------
    layers : dict
        Number of features by layer name, in order.
    identity : dict
        Whatever the producer wants the fingerprint to depend on.
    """

    kind: Literal["import"] = "import"
    format_version: int = FORMAT_VERSION
    layers: dict[str, int]
    dtype: DTypeName
    data: DataSpec
    identity: dict[str, Any] = Field(default_factory=dict)


Spec = Annotated[ExtractionSpec | ImportSpec, Field(discriminator="kind")]


@dataclass(frozen=True)
class Manifest:
    """What a split consists of, sample by sample, in order.

    Attributes
    ----------
    ids : sequence of str
        Unique name per sample.
    labels : ndarray of int64, shape (sample,)
        Class index per sample.
    digests : sequence of str
        Digest of each sample's content.
    """

    ids: Sequence[str]
    labels: NDArray[np.int64]
    digests: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.digests):
            raise InvalidInputError(
                f"the manifest has {len(self.ids)} ids, {len(self.labels)} labels and "
                f"{len(self.digests)} content digests; there must be one of each per sample."
            )
        if len(set(self.ids)) != len(self.ids):
            twice = next(name for name, count in Counter(self.ids).items() if count > 1)
            raise InvalidInputError(f"sample id {twice!r} occurs twice in the data; ids must be unique within a split.")

    def spec(self) -> SplitSpec:
        """Return the split's identity: its length and a digest over ids, order, labels and contents."""
        rows = [list(self.ids), [int(v) for v in self.labels], list(self.digests)]
        return SplitSpec(n_samples=len(self.ids), manifest_digest=digest(rows))


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 hex digest of the canonical JSON of `value`, cut to 20 digits (80 bits)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_LENGTH]


def fingerprint(spec: ExtractionSpec | ImportSpec | Mapping[str, Any]) -> str:
    """Return the fingerprint of a specification; equal specifications, and only those, share it."""
    return digest(spec)
