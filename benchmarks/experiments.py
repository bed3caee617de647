"""The paper's experiments on what is selected, each on one store per task; every ranking and head is kept in its store.

Settings come from the folds of Head2Toe's own search: test images decide nothing, here as elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.group_lasso import group_lasso
from pipeline.layer_view import of_target_size
from pipeline.methods import Settings
from pipeline.protocol import Evaluation
from pipeline.refit import RefitParameters, refit
from pipeline.selection import Selection, SelectionParameters, select_features, selection_features
from store.activations import ActivationStore
from store.results import list_results, read_inputs, read_result, result_digest

GROUPS = 32
"""Features are divided into so many groups of equal size by rank."""
OFFSETS = (0, 1, 2, 4, 8, 16, 24)
"""Groups that are skipped."""
LONG = 5000
"""Steps of the paper's longer recipe."""

Stores = Mapping[str, ActivationStore]
Evaluations = Mapping[str, Evaluation]
Say = Callable[[str], None]
Points = NDArray[np.float64]


class Race(NamedTuple):
    """Two scorers on one task at one fraction: percent of the test samples right, and seconds of selection.

    Attributes
    ----------
    task : str
        Its name.
    fraction : float
        F.
    exact, adam : float
        Accuracy.
    exact_seconds, adam_seconds : float
        Of ranking all features, when that was computed.
    """

    task: str
    fraction: float
    exact: float
    adam: float
    exact_seconds: float
    adam_seconds: float


def fractions(evaluations: Sequence[Evaluation]) -> list[float]:
    """Return the fractions that all evaluations tried, increasing."""
    return sorted(_tried(evaluations, "fraction"))


def _tried(evaluations: Sequence[Evaluation], name: str) -> set[Any]:
    return set.intersection(*({point["settings"][name] for point in e.points} for e in evaluations))


def _best(evaluation: Evaluation, fraction: float, sizes: set[Any] | None = None) -> dict[str, Any]:
    """Return the point that the folds like best at a fraction, of some target sizes or all; the first of equals."""
    at = [p for p in evaluation.points if p["settings"]["fraction"] == fraction]
    return max((p for p in at if sizes is None or p["settings"]["target_size"] in sizes), key=lambda p: p["accuracy"])


def common(evaluations: Evaluations) -> Settings:
    """Return the settings that the folds of all tasks together like best."""
    accuracies = [{json.dumps(p["settings"]): p["accuracy"] for p in e.points} for e in evaluations.values()]
    shared = [key for key in accuracies[0] if all(key in known for known in accuracies)]
    best: Settings = json.loads(max(shared, key=lambda key: sum(known[key] for known in accuracies)))
    return best


def by_fraction(evaluations: Evaluations) -> Points:
    """Return the validation accuracy at each fraction, all else chosen by the folds; percent, shape (task, F)."""
    every = list(evaluations.values())
    return 100 * np.array([[_best(e, fraction)["accuracy"] for fraction in fractions(every)] for e in every])


def skipping(stores: Stores, settings: Settings, say: Say) -> Points:
    """Return the test accuracy on a group of features after each of `OFFSETS` groups; percent, shape (task, offset)."""
    found = []
    for name, store in stores.items():
        size = of_target_size(store, settings["target_size"]).n_features // GROUPS
        found.append([_accuracy(store, settings, keep=size, offset=skip * size) for skip in OFFSETS])
        say(f"skipping the best features: {name}")
    return np.array(found)


def donating(stores: Stores, settings: Settings, say: Say) -> Points:
    """Return the test accuracy of each task with the features of each; percent, shape (task, donor)."""
    found = []
    for name, store in stores.items():
        kept = {"fraction": settings["fraction"]}
        found.append([_accuracy(store, settings, donor, **kept) for donor in stores.values()])
        say(f"selections of other tasks: {name}")
    return np.array(found)


def by_layers(stores: Stores, settings: Settings, tried: Sequence[float], say: Say) -> Points:
    """Return the test accuracy on features and on whole layers; percent, shape (task, F, 2)."""
    found = []
    for name, store in stores.items():
        found.append([[_accuracy(store, settings, fraction=f, whole_layers=w) for w in (False, True)] for f in tried])
        say(f"features and whole layers: {name}")
    return np.array(found)


def racing(stores: Stores, exact: Evaluations, adam: Evaluations, say: Say) -> list[Race]:
    """Return exact and Adam selection at every fraction both have tried, each with the settings its folds chose.

    Target sizes are equal too; a task of which the two have no size in common is left out.
    """
    rng = np.random.default_rng(0)
    group_lasso(rng.normal(size=(40, 20)).astype(np.float32), np.arange(40) % 2)  # compiles, so that no task waits
    found = []
    for name, store in stores.items():
        pairs = {f: _pair(exact[name], adam[name], f) for f in fractions([exact[name], adam[name]])}
        found += [_race(name, store, fraction, *pair) for fraction, pair in pairs.items() if pair]
        say(f"exact and Adam selection: {name}")
    return found


def racing_long(stores: Stores, exact: Evaluations, adam: Evaluations, say: Say) -> list[Race]:
    """Return exact and Adam selection of 5,000 steps at the fraction that Adam's folds like best."""
    found = []
    for name, store in stores.items():
        tried = fractions([exact[name], adam[name]])
        fraction = max(tried, key=lambda f: _best(adam[name], f)["accuracy"])
        if pair := _pair(exact[name], adam[name], fraction):
            ours, theirs = pair
            longer = {**theirs, "ranking": {**theirs["ranking"], "steps": LONG}}
            found.append(_race(name, store, fraction, ours, longer))
        say(f"exact selection and Adam of {LONG:,} steps: {name}")
    return found


def _pair(exact: Evaluation, adam: Evaluation, fraction: float) -> tuple[Settings, Settings] | None:
    """Return the settings of both at a fraction, of a target size that both tried; None if there is none."""
    sizes = _tried([exact, adam], "target_size")
    if not sizes:
        return None
    ours = _best(exact, fraction, sizes)["settings"]
    return ours, _best(adam, fraction, {ours["target_size"]})["settings"]


def _race(name: str, store: ActivationStore, fraction: float, ours: Settings, theirs: Settings) -> Race:
    # Heads are fitted alike, so that nothing but the selection differs: each ranks features in its own normalization.
    alike = {"normalization": ours["normalization"], "refit": ours["refit"]}
    exact, adam = (_accuracy(store, settings, fraction=fraction, head=alike) for settings in (ours, theirs))
    seconds = [_seconds(store, settings, fraction) for settings in (ours, theirs)]
    return Race(name, fraction, exact, adam, *seconds)


def _select(store: ActivationStore, settings: Settings, **kept: Any) -> Selection:
    scorer = "adam" if "steps" in settings["ranking"] else "group_lasso"
    options = {"scorer": scorer, "normalization": settings["normalization"], **settings["ranking"]}
    return select_features(store, SelectionParameters(**options, **kept))


def _accuracy(
    store: ActivationStore,
    settings: Settings,
    donor: ActivationStore | None = None,
    head: Settings | None = None,
    **kept: Any,
) -> float:
    """Return the percent of test samples that a head on a selection has right; the head as in `head`, if given."""
    how = head or settings
    own, origin = (of_target_size(s, settings["target_size"]) for s in (store, donor or store))
    digest = _select(origin, settings, **kept).digest
    selection, features = selection_features(own, digest, origin)
    fitted = refit(
        own,
        selection.indices,
        features=features,
        normalization=how["normalization"],
        parameters=RefitParameters(**how["refit"]),
    )
    return 100 * fitted.accuracy["test"]


def _seconds(store: ActivationStore, settings: Settings, fraction: float) -> float:
    """Return the seconds of a ranking, which the first selection that used it has; later ones found it."""
    view = of_target_size(store, settings["target_size"])
    ranking = read_inputs(view, "selections", _select(view, settings, fraction=fraction).digest)["ranking"]
    known = {d: read_inputs(view, "selections", d) for d in list_results(view, "selections")}
    # Of this target size alone: selections of others lie beside them.
    same = [d for d, i in known.items() if i["ranking"] == ranking and result_digest(view, "selections", i) == d]
    return max(float(read_result(view, "selections", digest).facts["seconds"]) for digest in same)
