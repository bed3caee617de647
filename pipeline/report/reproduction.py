"""How to make a report's results again: a command line, and the configuration that it reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.heads import OPTIMIZERS, RefitParameters
from pipeline.report.heads import LINEAR, Row
from pipeline.scorers import find_scorer
from pipeline.selection import SelectionParameters, selection_inputs
from store.activations import ActivationStore
from store.aliases import split_uri
from store.errors import InvalidInputError
from store.objects import join
from store.spec import ExtractionSpec, Frozen

FILE = "run.yaml"
"""What the configuration is to be saved as."""


@dataclass(frozen=True)
class Reproduction:
    """How to make the results again.

    Attributes
    ----------
    command : str
        One line for a shell.
    configuration : str
        The file that the command reads, as YAML; empty if it reads none.
    note : str
        What the reader has to know or to add; empty if there is nothing.
    """

    command: str
    configuration: str = ""
    note: str = ""


def run_again(configuration: Mapping[str, Any], note: str = "") -> Reproduction:
    """Return how to make a run again whose configuration is known.

    Parameters
    ----------
    configuration : mapping
        As `head2toe run` reads it; JSON values.
    note : str
        What the reader has to know.
    """
    text = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True, width=100)
    return Reproduction(f"head2toe run {FILE}", text, note)


def reproduce(
    store: ActivationStore, selection: Mapping[str, Any], digest: str, rows: Sequence[Row]
) -> Reproduction | None:
    """Return how to make stored results again: from the images, or from the store if its activations are imported.

    Parameters
    ----------
    store : ActivationStore
        The activations.
    selection : mapping
        What the selection was computed from.
    digest : str
        The selection.
    rows : sequence of Row
        The heads.

    Returns
    -------
    Reproduction or None
        None if these parameters would not give this very selection and these heads, as after an update of a plug-in.
    """
    try:
        chosen = _selection_parameters(store, selection)
        refits = [_refit_parameters(row) for row in rows]
    except (ValueError, KeyError, InvalidInputError):
        return None
    extraction = _extraction(store)
    if extraction is None:
        return Reproduction(_commands(store, chosen, digest, rows, refits))
    configuration = {
        "root": split_uri(store.uri)[0] or ".",
        "extraction": extraction,
        "selection": _changed(chosen),
        "refit": _changed(refits[-1]) if refits else {},
    }
    note = (
        f"The configuration is worked out from what the store says of itself. The same images give store "
        f"{store.fingerprint} again; it is found, and nothing is extracted, if it is still under root."
    )
    if "/" in str(store.provenance.get("data")):
        note += " How the data was read (data_root, splits, keys of a library) is not recorded: add what it needs."
    return run_again({name: part for name, part in configuration.items() if part}, note)


def _selection_parameters(store: ActivationStore, inputs: Mapping[str, Any]) -> SelectionParameters:
    """Return the parameters of a stored selection, the scorer's own defaults left out; proven to give just that one."""
    known = {**inputs["ranking"], **inputs}
    usual = find_scorer(known["scorer"]).options
    names = (n for n in SelectionParameters.model_fields if known.get(n) is not None and known[n] != usual.get(n))
    parameters = SelectionParameters.model_validate({name: known[name] for name in names})
    if selection_inputs(store, parameters) != inputs:
        raise ValueError("a selection of these parameters would be another one")
    return parameters


def _refit_parameters(row: Row) -> RefitParameters:
    """Return how a stored head was trained, the optimizer's own defaults left out; proven likewise."""
    given = row.inputs["parameters"]
    usual = OPTIMIZERS[given["optimizer"]]
    changed = {name: value for name, value in given.items() if name not in usual or value != usual[name]}
    parameters = RefitParameters.model_validate(changed)
    if parameters.chosen() != given:
        raise ValueError("a head of these parameters would be another one")
    return parameters


def _extraction(store: ActivationStore) -> dict[str, Any] | None:
    """Return the parameters of the extraction, every layer by its name; None if there was no extraction."""
    spec, made = store.spec, store.provenance
    if not isinstance(spec, ExtractionSpec) or not made.get("data"):
        return None
    _, height, width = spec.preprocessing.input_size
    found = {
        "backbone": made.get("backbone", spec.backbone.architecture),
        "weights": made.get("weights", "pretrained"),
        "data": made["data"],
        "taps": [tap.name for tap in spec.taps],
        "target_sizes": list(spec.pooling.target_sizes),
        "cls_token": spec.pooling.cls_token,
        "dtype": spec.dtype,
        **spec.preprocessing.model_dump(mode="json", exclude={"input_size"}),
    }
    if height == width:
        found["image_size"] = height
    if spec.pooling.plugin:
        found["pooling"] = spec.pooling.plugin.name
    if made.get("skipped_images"):
        found["on_bad_image"] = "skip"
    if made.get("parent"):
        found["extend"] = join(split_uri(store.uri)[0] or ".", f"{made['parent']}.zarr")
    return found


def _commands(
    store: ActivationStore,
    chosen: SelectionParameters,
    digest: str,
    rows: Sequence[Row],
    refits: Sequence[RefitParameters],
) -> str:
    """Return the stages from the store on, in one line."""
    lines = [["select", store.uri, *_options(chosen)]]
    for row, refit in zip(rows, refits, strict=True):
        which = ["--selection", digest]
        if row.method == LINEAR:
            which = ["--linear", "--normalization", row.inputs["normalization"]]
        lines.append(["refit", store.uri, *which, *_options(refit)])
    return " && ".join(shlex.join(["head2toe", *line]) for line in lines)


def _options(parameters: Frozen) -> list[str]:
    words = []
    for name, value in _changed(parameters).items():
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return words


def _changed(parameters: Frozen) -> dict[str, Any]:
    """Return the parameters that differ from their defaults."""
    return parameters.model_dump(mode="json", exclude_defaults=True)
