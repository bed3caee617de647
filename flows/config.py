"""Parameters of the flows: read from YAML or a form, validated, and turned into that form by Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from flows.reading import read_model
from flows.redaction import redact
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.refit import RefitParameters
from pipeline.selection import SelectionParameters
from store.errors import InvalidInputError
from store.spec import Frozen


def _without_credentials(uri: str) -> str:
    """Refuse a URL with credentials: Prefect stores parameters, and shows them to whoever sees its page."""
    if (shown := redact(uri)) != uri:
        raise InvalidInputError(
            f"{shown!r}: a URL must not carry credentials, since it is printed and stored; set them in the environment "
            "of the worker, for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    return uri


Place = Annotated[str, AfterValidator(_without_credentials)]
"""A path or a URL."""
ROOT = Field("head2toe-data", description="Folder or URL under which stores and reports lie.")
EXTRACTION = Field(description="Backbone, weights, data and taps.")
SELECTION = Field(SelectionParameters(), description="How features are ranked and how many are kept.")
REFIT = Field(RefitParameters(), description="How heads are trained.")
MEMORY = Field("2GiB", description="What a selection may hold in memory besides the program itself, such as 500MB.")
DASK_ADDRESS = Field(
    None,
    description="Scheduler of a running Dask cluster whose workers read the store, such as tcp://host:8786; threads "
    "of the worker if empty.",
)
STORE = Field(
    description="A store: its path or URL, or ROOT/ALIAS, or ROOT/ and the beginning of its fingerprint; or a root, "
    "whose complete stores are then taken one after the other."
)


class Head2ToeConfig(Frozen):
    """Everything the flow `head2toe` needs.

    Attributes
    ----------
    root : str
        Folder or URL under which stores and reports lie.
    extraction : ExtractionParameters
        Backbone, data and taps.
    selection : SelectionParameters
        How features are ranked and how many are kept.
    refit : RefitParameters
        How heads are trained.
    memory : str
        What a selection may hold in memory, such as ``"500MB"``.
    dask_address : str, optional
        A running Dask scheduler, whose workers make the passes over the store.
    """

    root: Place = ROOT
    extraction: ExtractionParameters = EXTRACTION
    selection: SelectionParameters = SELECTION
    refit: RefitParameters = REFIT
    memory: str = MEMORY
    dask_address: Place | None = DASK_ADDRESS


class ExtractionConfig(Frozen):
    """Everything the flow `extraction` needs; see `Head2ToeConfig`."""

    root: Place = ROOT
    extraction: ExtractionParameters = EXTRACTION


class SelectionConfig(Frozen):
    """Everything the flow `selection` needs; see `Head2ToeConfig`.

    Attributes
    ----------
    store : str
        Anything `store.aliases.resolve_store` takes, or a root, whose complete stores are then taken one by one.
    """

    store: Place = STORE
    selection: SelectionParameters = SELECTION
    memory: str = MEMORY
    dask_address: Place | None = DASK_ADDRESS


class RefitConfig(Frozen):
    """Everything the flow `refit` needs; see `SelectionConfig`.

    Attributes
    ----------
    selection : str, optional
        Digest of a selection, or its beginning; the newest of each store if not given.
    """

    store: Place = STORE
    selection: str | None = Field(
        None, description="Digest of a selection, or its beginning; the newest of each store if empty."
    )
    refit: RefitParameters = REFIT


def load_config(path: Path) -> Head2ToeConfig:
    """Read a configuration file.

    Raises
    ------
    InvalidInputError
        If it cannot be read, is not YAML, or a value is not valid.
    """
    return read_model(path, Head2ToeConfig, "configs/demo.yaml")
