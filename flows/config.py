"""Parameters of a whole run: read from YAML, validated, and turned into a form by Prefect."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from flows.reading import read_model
from pipeline.planning import ExtractionParameters
from pipeline.refit import RefitParameters
from pipeline.selection import SelectionParameters
from store.spec import Frozen


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
    """

    root: str = Field("head2toe-data", description="Folder or URL under which stores and reports lie.")
    extraction: ExtractionParameters = Field(description="Backbone, weights, data and taps.")
    selection: SelectionParameters = Field(
        default_factory=SelectionParameters, description="How features are ranked and how many are kept."
    )
    refit: RefitParameters = Field(default_factory=RefitParameters, description="How heads are trained.")


def load_config(path: Path) -> Head2ToeConfig:
    """Read a configuration file.

    Raises
    ------
    InvalidInputError
        If it cannot be read, is not YAML, or a value is not valid.
    """
    return read_model(path, Head2ToeConfig, "configs/demo.yaml")
