"""Selection: rank all features of a store, by exact group lasso or another scorer, and keep the best of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.compute import Progress
from pipeline.joined_store import joined_with
from pipeline.memory import DEFAULT_MEMORY, parse_memory
from pipeline.normalization import Normalization
from pipeline.ranking import order_features
from pipeline.scorers import SCORERS, Task
from pipeline.store_source import open_source
from store.activations import ActivationStore
from store.errors import InvalidInputError, suggest
from store.layout import locate
from store.results import Result, find_result, list_results, read_result, write_result
from store.spec import Frozen

DEFAULT_FRACTION = 0.05
ABLATIONS = ("offset", "layer_mean", "whole_layers")


class SelectionParameters(Frozen):
    """How features are ranked and how many are kept; what is None has the scorer's own default.

    Attributes
    ----------
    scorer : str
        One of `pipeline.scorers.SCORERS`.
    normalization : str
        What the head sees, and the scorers that fit one: ``standardize``, ``unit_norm`` (the paper's) or ``none``.
    split : str
        The training samples.
    penalty_ratio : float, optional
        λ relative to the smallest one at which no feature is active; 0.1 if neither penalty is given.
    penalty : float, optional
        λ as an absolute coefficient, as the paper gives it.
    tolerance : float, optional
        For group_lasso the duality gap to reach, relative to the objective without features: 1e-4. For l1 the
        violation of the optimality conditions in units of λ: 1e-3.
    steps : int, optional
        Steps of Adam: 500.
    learning_rate : float, optional
        Of Adam at its first step: 0.1.
    seed : int, optional
        Of a scorer that draws: 0.
    average_over : int, optional
        Average the scores of so many runs, of consecutive seeds: 1.
    fraction : float, optional
        Share F of all features to keep, over all layers together; 0.05 if neither it nor `keep` is given.
    keep : int, optional
        Number of features to keep.
    offset : int
        Skip so many of the best features, and keep the next.
    layer_mean : float
        Move every feature's score this far towards the mean of its layer, from 0 to 1.
    whole_layers : bool
        Keep the layers of the highest mean score, whole but for the last.

    Raises
    ------
    InvalidInputError
        If values contradict each other, or one is given that does not matter to the scorer.
    """

    scorer: str = "group_lasso"
    normalization: Normalization = "standardize"
    split: str = "train"
    penalty_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    tolerance: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    average_over: Annotated[int, Field(ge=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    keep: Annotated[int, Field(ge=1)] | None = None
    offset: Annotated[int, Field(ge=0)] = 0
    layer_mean: Annotated[float, Field(ge=0, le=1)] = 0.0
    whole_layers: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # Not a ValueError, so that pydantic lets it through to the user as it is.
        if self.scorer not in SCORERS:
            raise InvalidInputError(f"scorer {self.scorer!r} is unknown; {suggest(self.scorer, SCORERS, len(SCORERS))}")
        options = SCORERS[self.scorer].options
        for name in sorted({name for scorer in SCORERS.values() for name in scorer.options}.difference(options)):
            if getattr(self, name) is not None:
                whose = [key for key, scorer in SCORERS.items() if name in scorer.options]
                raise InvalidInputError(
                    f"{name} does not apply to scorer {self.scorer}, only to {', '.join(whose)}; leave it out."
                )
        if self.penalty is not None and self.penalty_ratio is not None:
            raise InvalidInputError("give either penalty or penalty_ratio, not both.")
        if self.fraction is not None and self.keep is not None:
            raise InvalidInputError("give either fraction or keep, not both.")
        if self.layer_mean > 0 and self.whole_layers:
            raise InvalidInputError("give either layer_mean or whole_layers, not both.")
        return self

    def count(self, n_features: int) -> int:
        """Return how many of `n_features` features to keep: ⌊pF⌋, or `keep`.

        Raises
        ------
        InvalidInputError
            If that is none, or more than there are after the offset.
        """
        fraction = DEFAULT_FRACTION if self.fraction is None else self.fraction
        count = int(n_features * fraction + 1e-9) if self.keep is None else self.keep  # 0.29 · 100 is 28.999…
        if count < 1:
            raise InvalidInputError(
                f"fraction {fraction:g} of {n_features:,} features keeps none; give at least {1 / n_features:.2g}."
            )
        if count + self.offset > n_features:
            after = f" after an offset of {self.offset:,}" if self.offset else ""
            raise InvalidInputError(f"cannot keep {count:,} features{after}: the store has {n_features:,}.")
        return count

    def ranking(self) -> dict[str, Any]:
        """Return the part that decides the relevance of features, whichever of them are kept."""
        scorer = SCORERS[self.scorer]
        given = {name: getattr(self, name) for name in scorer.options}
        chosen = {name: value if given[name] is None else given[name] for name, value in scorer.options.items()}
        if self.penalty is not None and "penalty_ratio" in chosen:
            chosen["penalty_ratio"] = None
        return {"scorer": self.scorer, "split": self.split, **self._normalization(scorer.normalized), **chosen}

    def inputs(self, n_features: int) -> dict[str, Any]:
        """Return what identifies the selection: its ranking and what is kept of it."""
        ablations = {name: getattr(self, name) for name in ABLATIONS if getattr(self, name)}
        rest = self._normalization(not SCORERS[self.scorer].normalized)
        return {"ranking": self.ranking(), "keep": self.count(n_features), **rest, **ablations}

    def _normalization(self, wanted: bool) -> dict[str, Any]:
        return {"normalization": self.normalization} if wanted else {}


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
        Score of every feature; positive on the support of the group lasso, and not positive off it.
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
    """Rank all features and keep the best, or return the stored selection of these parameters.

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
    inputs = parameters.inputs(store.n_features) | joined_with(store)
    found = find_result(store, "selections", inputs)
    if found is not None:
        return _selection(found, reused=True)
    start = time.perf_counter()
    scorer, ranking = SCORERS[parameters.scorer], inputs["ranking"]
    ranked = _find_ranking(store, ranking)
    if ranked is not None:
        relevance, certificate = ranked.arrays["relevance"], ranked.facts["certificate"]
    else:
        labels = _labels(store, parameters.split)
        seen = parameters.normalization if scorer.normalized else "none"
        n_bytes = parse_memory(memory)
        with open_source(store, seen, parameters.split, progress, memory=n_bytes, dask_address=dask_address) as source:
            relevance, evidence = scorer.score(Task(source, labels, ranking, n_bytes, progress, announce))
        certificate = evidence if scorer.exact else {**_no_certificate(parameters.scorer), **evidence}
    order = order_features(
        relevance,
        tuple(store.layers.values()),
        row_norms=scorer.row_norms,
        layer_mean=parameters.layer_mean,
        whole_layers=parameters.whole_layers,
    )
    stored = write_result(
        store,
        "selections",
        inputs,
        {
            "indices": (order[parameters.offset :][: inputs["keep"]], ("rank",)),
            "relevance": (relevance, ("feature",)),
        },
        {
            "certificate": certificate,
            "support": int((relevance > 0).sum()) if scorer.sparse else None,
            "seconds": round(time.perf_counter() - start, 3),
        },
    )
    return _selection(stored, reused=False)


def read_selection(store: ActivationStore, name: str) -> Selection:
    """Return a stored selection by its digest, or the unique beginning of it.

    Raises
    ------
    StoreNotFoundError
        If there is none, or several begin so.
    InvalidInputError
        If it was made on this store joined with others, or the other way round.
    """
    result = read_result(store, "selections", name)
    made, here = result.inputs.get("joined", []), joined_with(store).get("joined", [])
    if made != here:
        shown = "this store alone" if not made else "the joined stores " + ", ".join(made)
        raise InvalidInputError(
            f"selection {result.digest} was made on {shown}; give the same, in this order, with --join for all but the "
            "first."
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


def _find_ranking(store: ActivationStore, ranking: dict[str, Any]) -> Result | None:
    for name in list_results(store, "selections"):
        result = read_result(store, "selections", name)
        if result.inputs["ranking"] == ranking and result.inputs.get("joined") == joined_with(store).get("joined"):
            return result
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
