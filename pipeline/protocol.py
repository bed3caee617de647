"""The protocol: folds of the training samples choose a method's settings; then one fit on all, and one test.

Everything a method learns from, statistics included, it learns on the samples it is given to train on. Every point of
the grid on every fold is a result beside the activations, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compute import Progress
from pipeline.folds import ProtocolParameters, make_folds
from pipeline.methods.interface import Method, Samples, Settings
from store.activations import ActivationStore
from store.errors import InvalidInputError
from store.results import Result, find_result, write_result

__all__ = ["Evaluation", "ProtocolParameters", "cross_validate", "mean_and_deviation"]


@dataclass(frozen=True)
class Evaluation:
    """What a method achieves.

    Attributes
    ----------
    method : str
        Its name.
    digest : str
        Name of the result in the store.
    settings : dict
        The chosen ones.
    validation_accuracy : float
        Share of the training samples predicted right by those who had not seen them, with the chosen settings.
    accuracy : float
        Share of the test samples predicted right.
    hits : ndarray of bool, shape (test sample,)
        Which they are, to compare methods sample by sample.
    points : list of dict
        Every point of the grid: ``settings`` and mean ``accuracy`` over the folds' samples.
    seconds : dict
        ``search`` over all points, and ``final`` fit and test; each when it was computed.
    facts : dict
        What the final fit says of itself.
    reused : bool
        Whether this call found it in the store.
    """

    method: str
    digest: str
    settings: dict[str, Any]
    validation_accuracy: float
    accuracy: float
    hits: NDArray[np.bool_]
    points: list[dict[str, Any]]
    seconds: dict[str, float]
    facts: dict[str, Any]
    reused: bool


def cross_validate(
    method: Method,
    store: ActivationStore,
    parameters: ProtocolParameters | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Evaluation:
    """Choose a method's settings on folds of the training samples, fit it on all of them, and test it once.

    Parameters
    ----------
    method : Method
        What is evaluated.
    store : ActivationStore
        Has the labels, and keeps the results; the method may get its inputs elsewhere, of the same samples.
    parameters : ProtocolParameters, optional
        Five stratified folds of seed 0 if not given.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` after each point.
    announce : callable, optional
        Called with a sentence on the size of the grid before the work, and with the estimated seconds as soon as a
        batch of points was timed, or points of an earlier run tell.

    Returns
    -------
    Evaluation
        As now stored beside the activations.

    Raises
    ------
    InvalidInputError
        If there is no such split, the samples are too few, or the grid is empty.
    """
    parameters = parameters or ProtocolParameters()
    labels, n_test = store.labels(parameters.train), store.split(parameters.test).n_samples
    grid = [list(batch) for batch in method.grid if batch]
    if not grid:
        raise InvalidInputError(f"method {method.name!r} has no settings to try; give at least one.")
    identity = {"method": method.name, "identity": dict(method.identity)}
    inputs = {**identity, "grid": [list(map(dict, batch)) for batch in grid], **parameters.model_dump(mode="json")}
    stored = find_result(store, "protocols", inputs)
    if stored is not None:
        return _evaluation(stored, reused=True)

    search = _Search(method, store, parameters, grid, identity)
    points = search.run(progress, announce or (lambda sentence: None))
    settings = [setting for batch in grid for setting in batch]
    hits = np.array([sum(point.facts["hits"] for point in on_folds) for on_folds in points])
    best = int(hits.argmax())
    start = time.perf_counter()
    everything = Samples(parameters.train, np.arange(len(labels)))
    test = Samples(parameters.test, np.arange(n_test))
    (prediction,) = method.fit(everything, test, [settings[best]], parameters.seed)
    right = prediction.labels == store.labels(parameters.test)
    spent = {
        "search": round(sum(point.facts["seconds"] for on_folds in points for point in on_folds), 3),
        "final": round(time.perf_counter() - start, 3),
    }
    rows = [{"settings": dict(s), "accuracy": h / len(labels)} for s, h in zip(settings, hits.tolist(), strict=True)]
    facts = {
        "settings": dict(settings[best]),
        "validation_accuracy": rows[best]["accuracy"],
        "accuracy": float(right.mean()),
        "points": rows,
        "seconds": spent,
        "fit": prediction.facts,
    }
    return _evaluation(write_result(store, "protocols", inputs, {"hits": (right, ("sample",))}, facts), reused=False)


def mean_and_deviation(evaluations: Sequence[Evaluation]) -> tuple[float, float | None]:
    """Return the mean test accuracy over seeds, and its standard deviation (division by n − 1), None of one seed."""
    values = [evaluation.accuracy for evaluation in evaluations]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


class _Search:
    """Every point of a grid on every fold: what is stored of them, and what is to be fitted."""

    def __init__(
        self,
        method: Method,
        store: ActivationStore,
        parameters: ProtocolParameters,
        grid: Sequence[Sequence[Settings]],
        identity: dict[str, Any],
    ) -> None:
        self.method, self.store, self.parameters = method, store, parameters
        self.labels = store.labels(parameters.train)
        self.folds = make_folds(self.labels, parameters.folds, parameters.order, parameters.seed)
        self.identity = {**identity, **parameters.model_dump(mode="json", exclude={"test"})}
        numbers = count()
        self.grid = [[(next(numbers), setting) for setting in batch] for batch in grid]
        self.n_settings = next(numbers)
        stored = {
            (number, fold): find_result(store, "points", self._inputs(setting, fold))
            for fold in range(len(self.folds))
            for batch in self.grid
            for number, setting in batch
        }
        self.found = {key: result for key, result in stored.items() if result is not None}

    @property
    def total(self) -> int:
        """Fits of the whole search."""
        return self.n_settings * len(self.folds)

    @property
    def _rest(self) -> int:
        return self.total - len(self.found)

    def run(self, progress: Progress | None, announce: Callable[[str], None]) -> list[list[Result]]:
        """Return a result per setting and fold; computes what is not stored, and stores each as soon as it is there."""
        announce(self._plan())
        estimated = bool(self.found)
        for fold, batch in product(range(len(self.folds)), self.grid):
            todo = [(number, setting) for number, setting in batch if (number, fold) not in self.found]
            if not todo:
                continue
            start = time.perf_counter()
            self._fit(fold, todo, progress)
            if not estimated and self._rest:
                each = (time.perf_counter() - start) / len(todo)
                announce(
                    f"{self.method.name}: {len(todo):,} fits took {_duration(each * len(todo))}, so the other "
                    f"{self._rest:,} take about {_duration(each * self._rest)}."
                )
            estimated = True
        return [[self.found[number, fold] for fold in range(len(self.folds))] for number in range(self.n_settings)]

    def _plan(self) -> str:
        sentence = (
            f"{self.method.name}: {self.n_settings:,} settings on {len(self.folds)} folds are {self.total:,} fits"
        )
        if self.found:
            sentence += f", {len(self.found):,} of them stored"
        if self.found and self._rest:
            each = np.mean([result.facts["seconds"] for result in self.found.values()])
            sentence += f"; the rest takes about {_duration(float(each) * self._rest)}"
        return sentence + "; then one fit on all training samples."

    def _fit(self, fold: int, todo: Sequence[tuple[int, Settings]], progress: Progress | None) -> None:
        split, held = self.parameters.train, self.folds[fold]
        train = np.setdiff1d(np.arange(len(self.labels)), held)
        settings = [setting for _, setting in todo]
        start = time.perf_counter()
        predictions = self.method.fit(Samples(split, train), Samples(split, held), settings, self.parameters.seed)
        for (number, setting), prediction in zip(todo, predictions, strict=True):
            now = time.perf_counter()
            facts = {
                "hits": int((prediction.labels == self.labels[held]).sum()),
                "samples": len(held),
                "seconds": round(now - start, 4),
                "fit": prediction.facts,
            }
            start = now
            self.found[number, fold] = write_result(self.store, "points", self._inputs(setting, fold), {}, facts)
            if progress is not None:
                progress(f"{self.method.name}: fits", len(self.found), self.total)

    def _inputs(self, setting: Settings, fold: int) -> dict[str, Any]:
        return {**self.identity, "settings": dict(setting), "fold": fold}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _evaluation(result: Result, *, reused: bool) -> Evaluation:
    facts = result.facts
    return Evaluation(
        method=result.inputs["method"],
        digest=result.digest,
        settings=facts["settings"],
        validation_accuracy=facts["validation_accuracy"],
        accuracy=facts["accuracy"],
        hits=result.arrays["hits"].astype(np.bool_),
        points=facts["points"],
        seconds=facts["seconds"],
        facts=facts["fit"],
        reused=reused,
    )
