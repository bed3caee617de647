"""The JSON schemas of the configuration files: what editors check and complete them by.

They are made from the models that read the files. ``python -m flows.schema`` writes them to ``configs/``.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Kind(StrEnum):
    """Configuration files there are."""

    run = "run"
    evaluation = "evaluation"


def model_of(kind: Kind) -> type[BaseModel]:
    """Return the model of a kind of file."""
    if kind is Kind.run:
        from flows.config import Head2ToeConfig

        return Head2ToeConfig
    from pipeline.evaluation import EvaluationConfig

    return EvaluationConfig


def command_of(kind: Kind) -> str:
    """Return the command that reads a kind of file."""
    return "head2toe run" if kind is Kind.run else "head2toe evaluate"


def schema_of(kind: Kind) -> dict[str, Any]:
    """Return the JSON schema of a kind of file.

    Of an evaluation, it also knows the options of each method.
    """
    schema = model_of(kind).model_json_schema()
    if kind is Kind.evaluation:
        _add_methods(schema)
    return {"$schema": DIALECT, **schema, "title": f"Configuration of `{command_of(kind)}`"}


def _add_methods(schema: dict[str, Any]) -> None:
    """Say for each method which options it has, instead of that it may have any."""
    from pipeline.evaluation import METHODS

    named: dict[str, Any] = {"enum": list(METHODS), "description": "What is compared."}
    cases = []
    for name, kind in METHODS.items():
        options = kind.options.model_json_schema(ref_template="#/$defs/{model}")
        schema["$defs"] |= options.pop("$defs", {})
        cases.append(
            {
                "if": {"properties": {"method": {"const": name}}},
                "then": {
                    "properties": {"method": named, **options["properties"]},
                    "additionalProperties": False,
                },
            }
        )
    schema["$defs"]["MethodParameters"] = {
        "type": "object",
        "title": "MethodParameters",
        "description": "A method, and the options that it has.",
        "properties": {"method": named},
        "required": ["method"],
        "allOf": cases,
    }


def text_of(kind: Kind) -> str:
    """Return the schema as it is published."""
    return json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in Kind:
        Path("configs", f"{each}.schema.json").write_text(text_of(each), encoding="utf-8")
