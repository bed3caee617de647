"""Configuration files: YAML, checked by a model, with a sentence for whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from flows.schema import Kind, command_of, model_of
from store.errors import InvalidInputError, suggest

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
    keys = set(document) if isinstance(document, dict) else set()
    for change in changes:
        _change(document, change)
    try:
        return kind.model_validate(document)
    except (ValidationError, InvalidInputError) as error:
        what = explain(error, kind) if isinstance(error, ValidationError) else error
        raise InvalidInputError(f"configuration {str(path)!r}: {_meant_for(keys, kind) or what}") from error


def _meant_for(keys: set[Any], kind: type[BaseModel]) -> str:
    """Return which command a document is for, if its keys are those of another kind of file; else nothing."""
    own = set(kind.model_fields)
    for other in Kind:
        fields = model_of(other).model_fields
        needed = {name for name, field in fields.items() if field.is_required()}
        if needed <= keys and keys & (fields.keys() - own) and not keys & (own - fields.keys()):
            command = command_of(other)
            return f"its keys are those of a configuration for `{command}`; run `{command}` with it."
    return ""


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


def explain(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """Return a validation error as one sentence that names the field, its value and what is expected.

    Parameters
    ----------
    error : ValidationError
        What pydantic says.
    kind : type, optional
        Model of the document, whose keys are suggested in place of unknown ones.
    """
    # A key that is misspelt is missing, too; what was typed tells more than what was not.
    first, *rest = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"]) or "the document"
    more = f" ({len(rest)} more problem{'s' if len(rest) > 1 else ''})" if rest else ""
    if first["type"] == "missing":
        return f"{field} is missing{more}."
    if first["type"] == "extra_forbidden":
        *place, name = first["loc"]
        known = _keys(kind, place)
        return f"{field} is not a known parameter{more}{f'; {suggest(str(name), known)}' if known else '.'}"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ").split(", unable")[0]
    choices = re.findall("'(.*?)'", expected) if first["type"] == "literal_error" else []
    near = suggest(str(first["input"]), choices) if choices else ""
    hint = f"; {near}" if near.startswith("did") else "."
    return f"{field} is {first['input']!r} but should be {expected}{more}{hint}"


def _keys(kind: type[BaseModel] | None, place: Sequence[int | str]) -> list[str]:
    """Return the keys that a document may have at a place; none if that is not known."""
    for part in place:
        field = kind.model_fields.get(str(part)) if kind is not None else None
        if field is not None:
            kind = next(models_in(field.annotation), None)
        elif not isinstance(part, int):
            return []
    return [] if kind is None else list(kind.model_fields)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type is, or is made of, such as that of ``tuple[Model, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
