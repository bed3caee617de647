"""A configuration file to begin with: every key, what it means and its default, written from the models themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flows.demo import BACKBONE, WEIGHTS
from flows.schema import Kind, schema_of

WIDTH = 100
HEADS: Mapping[Kind, str] = {
    Kind.run: """Everything that `{command}` needs.
Keys left out have the value shown here; an unknown key is an error.
For an editor that completes keys and checks values, write the schema beside this file,
`head2toe init --schema > run.schema.json`, and put this line first:
  yaml-language-server: $schema=run.schema.json""",
    Kind.evaluation: """Everything that `{command}` needs.
Keys left out have the value shown here; an unknown key is an error.
For an editor that completes keys and checks values, write the schema beside this file,
`head2toe init --evaluation --schema > evaluation.schema.json`, and put this line first:
  yaml-language-server: $schema=evaluation.schema.json""",
}
NAMES = {
    "linear": "Linear",
    "head2toe": "Head2Toe",
    "all_layers": "All layers",
    "oracle": "Oracle",
    "control": "Control",
    "fine_tuning": "Fine-tuning",
    "scratch": "Scratch",
}
"""What tables call each method."""
COMPARED = ("linear", "head2toe")
"""Methods that an evaluation compares to begin with; the others are there as comments."""
ELSEWHERE = {Kind.run: set[str](), Kind.evaluation: {"extraction.data", "protocol.seed"}}
"""Keys that are refused because others say the same: tasks have the data, `seeds` the seeds."""


def write_config(kind: Kind, command: str, given: Mapping[str, Any]) -> str:
    """Return a commented configuration.

    Parameters
    ----------
    kind : Kind
        Of which file.
    command : str
        What reads it, with its path.
    given : mapping
        Values in place of defaults, by dotted key, such as ``{"extraction.backbone": "resnet50"}``. What has no default
        is the demo's.

    Returns
    -------
    str
        YAML.
    """
    start: dict[str, Any] = {"extraction.backbone": BACKBONE, "extraction.weights": WEIGHTS}
    if kind is Kind.run:
        start["extraction.data"] = "digits"
    else:
        start["suite"] = "offline"
    schema = schema_of(kind)
    head = _comment(HEADS[kind].format(command=command).splitlines())
    return "\n".join([*head, "", *_lines(schema, schema, {**start, **given}, ELSEWHERE[kind])]) + "\n"


def _lines(
    schema: Mapping[str, Any], part: Mapping[str, Any], values: Mapping[str, Any], left_out: set[str], above: str = ""
) -> Iterator[str]:
    """Yield the lines of an object's keys: comments, and values as YAML."""
    indent, before = "  " * above.count("."), ""
    for name, field in part["properties"].items():
        key = f"{above}{name}"
        if key in left_out:
            continue
        target = _object(schema, field)
        text = " ".join([field.get("description", ""), *_choices(field)]).replace("``", "").strip()
        # What several keys share is said once.
        yield from (f"{indent}{line}" for line in _comment(textwrap.wrap(text, WIDTH - len(indent))) if text != before)
        before = text
        if key == "methods":
            yield from ("methods:", *_methods(schema))
        elif target is not None and key not in values:
            yield f"{indent}{name}:"
            yield from _lines(schema, target, values, left_out, f"{key}.")
        else:
            yield f"{indent}{name}: {_yaml(values.get(key, field.get('default')))}"
        if not above:
            yield ""


def _methods(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield all methods, with their options and defaults as comments."""
    for case in schema["$defs"]["MethodParameters"]["allOf"]:
        method = case["if"]["properties"]["method"]["const"]
        mark, deeper = ("  ", "    # ") if method in COMPARED else ("  # ", "  #   ")
        yield f"{mark}{NAMES[method]}:"
        yield f"{mark}  method: {method}"
        options = {name: field for name, field in case["then"]["properties"].items() if name != "method"}
        yield from (f"{deeper}{name}: {_yaml(field.get('default'))}" for name, field in options.items())


def _object(schema: Mapping[str, Any], field: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the object with keys of its own that a field always is, if it is one."""
    name = field.get("$ref", "").rpartition("/")[2]
    found = schema["$defs"].get(name)
    return found if found is not None and "properties" in found else None


def _choices(field: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values of a field that may have a few only, unless its description names them."""
    names = [str(name) for name in field.get("enum", ()) if name is not None]
    if any(name not in field.get("description", "") for name in names):
        yield f"One of {', '.join(names)}."


def _comment(lines: list[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]


def _yaml(value: Any) -> str:
    """Return a value as YAML in one line."""
    # In a list, so that a plain value is not followed by an end mark.
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]
