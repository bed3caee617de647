"""Selection: rank all features of a store, by exact group lasso or another scorer, and keep the best of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress
from pipeline.joined_store import joined_with
from pipeline.layer_view import of_target_size
from pipeline.memory import DEFAULT_MEMORY, parse_memory
from pipeline.normalization import Normalization
from pipeline.ranking import order_features
from pipeline.scorers import Task, find_scorer
from pipeline.selection_parameters import SelectionParameters
from pipeline.store_source import open_source
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.layout import locate
from store.results import Result, find_result, list_results, read_inputs, read_result, result_digest, write_result

__all__ = ["Selection", "SelectionParameters", "read_selection", "select_features", "selection_features"]


@dataclass(frozen=True)
class Selection:
    """A ranking of all features and the best of them.

    Attributes
    ----------
    digest : str
        Name of the selection in the store.
    indices : ndarray of int64, shape (k,)
        Kept features by global index, most relevant first.
    relevance : ndarray of float64, shape (p,)
        Score of every feature, NaN if it was not ranked; positive on the support of the group lasso, and not positive
        off it.
    scorer : str
        What ranked them.
    normalization : str
        What the head is to see.
    split : str
        The training samples.
    support : int or None
        Features of a non-zero row, of a scorer that leaves rows at zero.
    certificate : dict
        Optimality of the solution over all features. Of a heuristic ``certified`` is false, ``note`` says why, and the
        rest is what there is to know, such as the objective reached.
    seconds : float
        Time the selection took when it was computed.
    reused : bool
        Whether this call found it in the store.
    """

    digest: str
    indices: NDArray[np.int64]
    relevance: NDArray[np.float64]
    scorer: str
    normalization: Normalization
    split: str
    support: int | None
    certificate: dict[str, Any]
    seconds: float
    reused: bool

    def per_layer(self, store: ActivationStore) -> dict[str, int]:
        """Return the number of kept features by layer, in order of depth."""
        counts = dict.fromkeys(store.layers, 0)
        for layer, positions in locate(tuple(store.layers.values()), self.indices):
            counts[layer.name] = len(positions)
        return counts


def select_features(
    store: ActivationStore,
    parameters: SelectionParameters | None = None,
    progress: Progress | None = None,
    *,
    memory: int | str = DEFAULT_MEMORY,
    dask_address: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> Selection:
    """Rank all features, or those of one target size, and keep the best; or return the stored selection.

    A selection that differs from a stored one only in which features it keeps of the order re-uses its ranking.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    parameters : SelectionParameters, optional
        Group lasso on standardised features, λ = 0.1 λ_max and F = 0.05 if not given.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    memory : int or str
        Bytes of features that may be held at once, or text such as ``"2GiB"``; not part of a selection's identity.
    dask_address : str, optional
        A running Dask scheduler, whose workers make the passes over the store.
    announce : callable, optional
        Called with a sentence on the memory that group_lasso will take.

    Returns
    -------
    Selection
        As now stored beside the activations.

    Raises
    ------
    InvalidInputError
        If the parameters do not fit the store, its labels do not allow a selection, or memory is too small.
    DamagedStoreError
        If a chunk is not what was committed.
    """
    parameters = parameters or SelectionParameters()
    inputs, n_bytes = selection_inputs(store, parameters), parse_memory(memory)
    found = find_result(store, "selections", inputs)
    if found is not None:
        return _selection(found, reused=True)
    start = time.perf_counter()
    scorer, ranking = find_scorer(parameters.scorer), inputs["ranking"]
    ranked = find_ranking(store, inputs)
    view = of_target_size(store, parameters.target_size)
    places = np.concatenate([store.layer_indices(name) for name in view.layers])
    if ranked is not None:
        relevance, certificate = ranked.arrays["relevance"], ranked.facts["certificate"]
    else:
        labels = _labels(store, parameters.split)
        seen = parameters.normalization if scorer.normalized else "none"
        relevance = np.full(store.n_features, np.nan)
        with open_source(view, seen, parameters.split, progress, memory=n_bytes, dask_address=dask_address) as source:
            relevance[places], evidence = scorer.score(Task(source, labels, ranking, n_bytes, progress, announce))
        certificate = evidence if scorer.exact else {**_no_certificate(parameters.scorer), **evidence}
    order = order_features(
        relevance[places],
        tuple(view.layers.values()),
        row_norms=scorer.row_norms,
        layer_mean=parameters.layer_mean,
        whole_layers=parameters.whole_layers,
    )
    stored = write_result(
        store,
        "selections",
        inputs,
        {
            "indices": (places[order[parameters.offset :][: inputs["keep"]]], ("rank",)),
            "relevance": (relevance, ("feature",)),
        },
        {
            "certificate": certificate,
            "support": int((relevance > 0).sum()) if scorer.sparse else None,
            "seconds": round(time.perf_counter() - start, 3),
        },
    )
    return _selection(stored, reused=False)


def selection_inputs(store: ActivationStore, parameters: SelectionParameters) -> dict[str, Any]:
    """Return what identifies a selection of a store.

    Raises
    ------
    InvalidInputError
        If the parameters do not fit the store.
    """
    return parameters.inputs(of_target_size(store, parameters.target_size).n_features) | joined_with(store)


def read_selection(store: ActivationStore, name: str) -> Selection:
    """Return a stored selection by its digest, or the unique beginning of it.

    Raises
    ------
    StoreNotFoundError
        If there is none, or several begin so.
    InvalidInputError
        If it was made on this store joined with others, or the other way round, or on other layers of it.
    """
    result = read_result(store, "selections", name)
    made, here = result.inputs.get("joined", []), joined_with(store).get("joined", [])
    if made != here:
        shown = "this store alone" if not made else "the joined stores " + ", ".join(made)
        raise InvalidInputError(
            f"selection {result.digest} was made on {shown}; give the same, in this order, with --join for all but the "
            "first."
        )
    if result_digest(store, "selections", result.inputs) != result.digest:
        raise InvalidInputError(
            f"selection {result.digest} was made on other layers of store {store.uri!r}; apply it to those alone."
        )
    return _selection(result, reused=True)


def selection_features(
    store: ActivationStore, name: str, origin: ActivationStore | None = None
) -> tuple[Selection, dict[str, str]]:
    """Return a stored selection, and what names its features in the lineage of a head.

    Parameters
    ----------
    store : ActivationStore
        The store to which it is applied.
    name : str
        Its digest, or the unique beginning of it.
    origin : ActivationStore, optional
        The store in which it was made, if another: say, the same backbone on other data.

    Raises
    ------
    StoreNotFoundError
        If there is no such selection.
    InvalidInputError
        If a layer's name, width or place differs between the stores.
    """
    origin = origin or store
    selection = read_selection(origin, name)
    features = {"selection": selection.digest}
    if origin.fingerprint == store.fingerprint:
        return selection, features
    ours, theirs = ([(layer.name, layer.n_features) for layer in s.layers.values()] for s in (store, origin))
    for number, (here, there) in enumerate(zip_longest(ours, theirs), start=1):
        if here != there:
            raise InvalidInputError(
                f"a selection of store {origin.uri!r} does not fit store {store.uri!r}: layer {number} is "
                f"{_layer(there)} in the one and {_layer(here)} in the other; extract both with the same backbone, "
                "taps and target sizes."
            )
    return selection, {**features, "store": origin.fingerprint}


def _layer(layer: tuple[str, int] | None) -> str:
    return "none" if layer is None else f"{layer[0]!r} of {layer[1]:,} features"


def _labels(store: ActivationStore, split: str) -> NDArray[np.int64]:
    """Return the labels of the training samples, counted over the classes that occur."""
    classes, codes = np.unique(store.labels(split), return_inverse=True)
    if len(classes) < 2:
        raise InvalidInputError(
            f"split {split!r} of store {store.uri!r} has one class only, {store.class_names[classes[0]]!r}; at least "
            "2 are needed to select features for telling them apart."
        )
    return codes.astype(np.int64)


def _no_certificate(scorer: str) -> dict[str, Any]:
    return {"certified": False, "note": f"no certificate: {scorer} is a heuristic"}


def find_ranking(store: ActivationStore, inputs: dict[str, Any]) -> Result | None:
    """Return a stored selection of the same ranking, of the same layers and the same stores if they are joined."""
    for name in list_results(store, "selections"):
        known = read_inputs(store, "selections", name)
        if known["ranking"] == inputs["ranking"] and result_digest(store, "selections", known) == name:
            return read_result(store, "selections", name)
    return None


def _selection(result: Result, *, reused: bool) -> Selection:
    ranking = result.inputs["ranking"]
    return Selection(
        digest=result.digest,
        indices=result.arrays["indices"],
        relevance=result.arrays["relevance"],
        scorer=ranking["scorer"],
        normalization=(ranking | result.inputs)["normalization"],
        split=ranking["split"],
        support=result.facts["support"],
        certificate=result.facts["certificate"],
        seconds=result.facts["seconds"],
        reused=reused,
    )
