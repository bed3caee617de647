"""What a selection or a refit would do, told from metadata alone; nothing is computed or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.layer_view import of_target_size
from pipeline.memory import DEFAULT_MEMORY, parse_memory
from pipeline.normalization import check_normalization
from pipeline.refit import RefitParameters, head_inputs
from pipeline.selection import find_ranking, selection_inputs
from pipeline.selection_parameters import SelectionParameters
from store.activations import ActivationStore
from store.results import list_results, result_digest


@dataclass(frozen=True)
class SelectionForecast:
    """What a selection would do.

    Attributes
    ----------
    selection : str
        Its digest.
    there : bool
        Whether it is stored already.
    ranked : bool
        Whether a stored ranking can be used, so that the activations are not read.
    scorer : str
        What ranks the features.
    keep, of : int
        Features that are kept, and all there are.
    bytes_per_pass : int
        What one pass over the training samples reads.
    """

    selection: str
    there: bool
    ranked: bool
    scorer: str
    keep: int
    of: int
    bytes_per_pass: int


@dataclass(frozen=True)
class HeadForecast:
    """What a refit would do.

    Attributes
    ----------
    head : str
        Its digest.
    selection : str or None
        What its columns are of, if of one.
    there : bool
        Whether it is stored already.
    features : int
        Columns that it reads.
    bytes_read : int
        Bytes of these columns, over all splits.
    """

    head: str
    selection: str | None
    there: bool
    features: int
    bytes_read: int


def foresee_selection(
    store: ActivationStore, parameters: SelectionParameters | None = None, *, memory: int | str = DEFAULT_MEMORY
) -> SelectionForecast:
    """Return what `pipeline.selection.select_features` would do with the same arguments.

    Raises
    ------
    InvalidInputError
        If the parameters do not fit the store, or `memory` is not a size.
    """
    parameters = parameters or SelectionParameters()
    parse_memory(memory)
    n_samples = store.split(parameters.split).n_samples
    inputs = selection_inputs(store, parameters)
    name = result_digest(store, "selections", inputs)
    there = name in list_results(store, "selections")
    ranked = of_target_size(store, parameters.target_size)
    return SelectionForecast(
        selection=name,
        there=there,
        ranked=there or find_ranking(store, inputs) is not None,
        scorer=parameters.scorer,
        keep=inputs["keep"],
        of=ranked.n_features,
        bytes_per_pass=ranked.n_features * n_samples * store.dtype.itemsize,
    )


def foresee_refit(
    store: ActivationStore,
    n_features: int,
    *,
    features: Mapping[str, Any],
    normalization: str,
    parameters: RefitParameters | None = None,
    train: str = "train",
) -> HeadForecast:
    """Return what `pipeline.refit.refit` would do with so many columns and else the same arguments.

    Raises
    ------
    InvalidInputError
        If the normalization is unknown, or there is no such split.
    """
    check_normalization(normalization)
    store.split(train)
    name = result_digest(store, "heads", head_inputs(features, normalization, parameters or RefitParameters(), train))
    n_samples = sum(split.n_samples for split in store.splits.values())
    return HeadForecast(
        head=name,
        selection=features.get("selection"),
        there=name in list_results(store, "heads"),
        features=n_features,
        bytes_read=n_features * n_samples * store.dtype.itemsize,
    )
