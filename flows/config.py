"""Parameters of a whole run: read from YAML, validated, and turned into a form by Prefect."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from pipeline.planning import ExtractionParameters
from pipeline.refit import RefitParameters
from pipeline.selection import SelectionParameters
from store.errors import InvalidInputError
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
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"configuration {str(path)!r} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise InvalidInputError(
            f"configuration {str(path)!r} is not valid YAML{line}; see configs/demo.yaml."
        ) from error
    try:
        return Head2ToeConfig.model_validate(document)
    except (ValidationError, InvalidInputError) as error:
        what = explain(error) if isinstance(error, ValidationError) else error
        raise InvalidInputError(f"configuration {str(path)!r}: {what}") from error


def explain(error: ValidationError) -> str:
    """Return a validation error as one sentence that names the field, its value and what is expected."""
    first, *rest = error.errors()
    field = ".".join(str(part) for part in first["loc"]) or "the document"
    more = f" ({len(rest)} more problem{'s' if len(rest) > 1 else ''})" if rest else ""
    if first["type"] == "missing":
        return f"{field} is missing{more}."
    if first["type"] == "extra_forbidden":
        return f"{field} is not a known parameter{more}."
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ").split(", unable")[0]
    return f"{field} is {first['input']!r} but should be {expected}{more}."
