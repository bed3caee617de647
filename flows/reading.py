"""Configuration files: YAML, checked by a model, with a sentence for whatever is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from store.errors import InvalidInputError

Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, kind: type[Model], example: str, changes: Sequence[str] = ()) -> Model:
    """Read a configuration file.

    Parameters
    ----------
    path : Path
        A YAML file.
    kind : type
        Model of the document.
    example : str
        A file to look at, for messages.
    changes : sequence of str
        ``path.to.key=value`` each, the value as YAML has it: what takes the place of the file's values.

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
        raise InvalidInputError(f"configuration {str(path)!r} is not valid YAML{line}; see {example}.") from error
    for change in changes:
        _change(document, change)
    try:
        return kind.model_validate(document)
    except (ValidationError, InvalidInputError) as error:
        what = explain(error) if isinstance(error, ValidationError) else error
        raise InvalidInputError(f"configuration {str(path)!r}: {what}") from error


def _change(document: Any, change: str) -> None:
    place, equals, text = change.partition("=")
    *parents, last = place.strip().split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        equals = ""
    if not equals or not last:
        raise InvalidInputError(f"--set {change!r} is not of the form extraction.backbone=resnet50.")
    for key in parents:
        document = document.setdefault(key, {}) if isinstance(document, dict) else None
    if not isinstance(document, dict):
        raise InvalidInputError(f"--set {change!r} leads to a value that has no keys; name a key of the file.")
    document[last] = value


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
