"""Selection: rank all features by exact group lasso over the store, keep the best of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.compute import Progress
from pipeline.group_lasso import group_lasso
from pipeline.normalization import Normalization
from pipeline.store_source import StoreSource
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.layout import locate
from store.results import Result, find_result, list_results, read_result, write_result
from store.spec import Frozen


class SelectionParameters(Frozen):
    """How features are ranked and how many are kept.

    Attributes
    ----------
    normalization : str
        What the penalised head sees: ``standardize``, ``unit_norm`` (the paper's) or ``none``.
    penalty_ratio : float, optional
        λ relative to the smallest one at which no feature is active; 0.1 if neither penalty is given.
    penalty : float, optional
        λ as an absolute coefficient, as the paper gives it.
    fraction : float, optional
        Share F of all features to keep, over all layers together; 0.05 if neither it nor `keep` is given.
    keep : int, optional
        Number of features to keep.
    split : str
        The training samples.
    tolerance : float
        Duality gap to reach, relative to the objective without features.
    """

    normalization: Normalization = "standardize"
    penalty_ratio: Annotated[float, Field(gt=0)] | None = None
    penalty: Annotated[float, Field(gt=0)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    keep: Annotated[int, Field(ge=1)] | None = None
    split: str = "train"
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    scorer: Literal["group_lasso"] = "group_lasso"

    def count(self, n_features: int) -> int:
        """Return how many of `n_features` features to keep: ⌊pF⌋, or `keep`.

        Raises
        ------
        InvalidInputError
            If that is none, or more than there are.
        """
        if self.keep is not None:
            if self.keep > n_features:
                raise InvalidInputError(f"cannot keep {self.keep:,} features: the store has {n_features:,}.")
            return self.keep
        fraction = DEFAULT_FRACTION if self.fraction is None else self.fraction
        count = int(n_features * fraction + 1e-9)  # 0.29 · 100 is 28.999…
        if count < 1:
            raise InvalidInputError(
                f"fraction {fraction:g} of {n_features:,} features keeps none; give at least {1 / n_features:.2g}."
            )
        return count

    def ranking(self) -> dict[str, Any]:
        """Return the part that decides the ranking, whatever the number kept."""
        chosen = self.model_dump(mode="json", exclude={"fraction", "keep"})
        if self.penalty is None and self.penalty_ratio is None:
            chosen["penalty_ratio"] = DEFAULT_PENALTY_RATIO
        return chosen


DEFAULT_FRACTION = 0.05
DEFAULT_PENALTY_RATIO = 0.1


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
        Score of every feature; positive on the support of the group lasso.
    normalization : str
        What the selection saw, and the refit will.
    certificate : dict
        Optimality of the solution over all features.
    seconds : float
        Time the selection took when it was computed.
    reused : bool
        Whether this call found it in the store.
    """

    digest: str
    indices: NDArray[np.int64]
    relevance: NDArray[np.float64]
    normalization: Normalization
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
    store: ActivationStore, parameters: SelectionParameters | None = None, progress: Progress | None = None
) -> Selection:
    """Rank all features and keep the best, or return the stored selection of these parameters.

    A selection that differs from a stored one only in how many features it keeps re-uses its ranking.

    Parameters
    ----------
    store : ActivationStore
        A complete store.
    parameters : SelectionParameters, optional
        Standardised features, λ = 0.1 λ_max and F = 0.05 if not given.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Selection
        As now stored beside the activations.

    Raises
    ------
    InvalidInputError
        If the parameters do not fit the store, or its labels do not allow a selection.
    DamagedStoreError
        If a chunk is not what was committed.
    """
    parameters = parameters or SelectionParameters()
    if parameters.penalty is not None and parameters.penalty_ratio is not None:
        raise InvalidInputError("give either penalty or penalty_ratio, not both.")
    if parameters.fraction is not None and parameters.keep is not None:
        raise InvalidInputError("give either fraction or keep, not both.")
    count = parameters.count(store.n_features)
    ranking = parameters.ranking()
    inputs = {"ranking": ranking, "keep": count}
    found = find_result(store, "selections", inputs)
    if found is not None:
        return _selection(found, reused=True)
    start = time.perf_counter()
    ranked = _find_ranking(store, ranking)
    if ranked is not None:
        relevance, certificate, support = (
            ranked.arrays["relevance"],
            ranked.facts["certificate"],
            ranked.facts["support"],
        )
    else:
        source = StoreSource(store, parameters.normalization, parameters.split, progress)
        penalties = (
            {"penalty": ranking["penalty"]} if ranking["penalty"] else {"penalty_ratio": ranking["penalty_ratio"]}
        )
        result = group_lasso(
            source, store.labels(parameters.split), tol=parameters.tolerance, progress=_solving(progress), **penalties
        )
        relevance, certificate, support = result.relevance, result.certificate.to_json(), len(result.support)
    # A stable sort of the negated scores breaks ties by index.
    order = np.argsort(-relevance, kind="stable")[:count].astype(np.int64)
    stored = write_result(
        store,
        "selections",
        inputs,
        {"indices": (order, ("rank",)), "relevance": (relevance, ("feature",))},
        {"certificate": certificate, "support": support, "seconds": round(time.perf_counter() - start, 3)},
    )
    return _selection(stored, reused=False)


def read_selection(store: ActivationStore, name: str) -> Selection:
    """Return a stored selection by its digest, or the unique beginning of it.

    Raises
    ------
    StoreNotFoundError
        If there is none, or several begin so.
    """
    return _selection(read_result(store, "selections", name), reused=True)


def _solving(progress: Progress | None) -> Progress | None:
    """Pass on the solver's steps in memory; the source reports its own passes, task by task."""
    if progress is None:
        return None

    def forward(stage: str, done: int, total: int) -> None:
        if stage == "solve":
            progress("solving for each penalty in memory", done, total)

    return forward


def _find_ranking(store: ActivationStore, ranking: dict[str, Any]) -> Result | None:
    for name in list_results(store, "selections"):
        result = read_result(store, "selections", name)
        if result.inputs["ranking"] == ranking:
            return result
    return None


def _selection(result: Result, *, reused: bool) -> Selection:
    return Selection(
        digest=result.digest,
        indices=result.arrays["indices"],
        relevance=result.arrays["relevance"],
        normalization=result.inputs["ranking"]["normalization"],
        certificate=result.facts["certificate"],
        seconds=result.facts["seconds"],
        reused=reused,
    )
