"""The result page says what was measured, names what was not, and is written anew without computing anything twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import experiments
from benchmarks.experiments import Race
from benchmarks.results import build, list_missing
from benchmarks.results_page import Found, accuracy_table, goals
from pipeline.evaluation import EvaluationConfig
from pipeline.heads import RefitParameters
from pipeline.methods import Head2Toe, Linear
from pipeline.protocol import Evaluation, ProtocolParameters, cross_validate
from store import ActivationStore
from store.results import list_results

FEW = (RefitParameters(max_iterations=10, validation_fraction=0),)
FRACTIONS = (0.1, 0.3)


def made(accuracy: float, seconds: float = 1.0) -> Evaluation:
    hits = np.arange(1000) < 1000 * accuracy
    return Evaluation("m", "", {}, 0.0, accuracy, hits, [], {"search": seconds, "final": 0.0}, {}, False)


def of_tasks(**accuracies: tuple[float, ...]) -> Found:
    """Return what methods have on tasks a, b, c, …; the first two are natural and the others structured."""
    evaluations = {
        method.replace("_", "-"): {task: [made(value)] for task, value in zip("abcd", values, strict=False)}
        for method, values in accuracies.items()
    }
    groups = dict(zip("abcd", ("natural", "natural", "structured", "structured"), strict=True))
    return Found({task: group for task, group in groups.items() if task in evaluations["Linear"]}, {}, evaluations)


def row(page: str, beginning: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {beginning}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def evaluated(store: ActivationStore) -> Found:
    methods = {
        "Linear": Linear(store, refits=FEW),
        "Head2Toe": Head2Toe(store, options=({"penalty_ratio": 0.3},), fractions=FRACTIONS, refits=FEW),
        "Adam": Head2Toe(store, "adam", ({"penalty": 1e-3, "steps": 5},), fractions=FRACTIONS, refits=FEW),
    }
    twice = {name: cross_validate(method, store, ProtocolParameters(folds=2)) for name, method in methods.items()}
    groups = {"one": "natural", "two": "structured"}
    return Found(groups, dict.fromkeys(groups, store), {m: {t: [e] for t in groups} for m, e in twice.items()})


def test_means_are_over_tasks_and_over_groups_and_absent_where_a_task_is() -> None:
    page = accuracy_table(of_tasks(Linear=(0.5, 0.7, 0.9), Head2Toe=(0.6, 0.8)))
    assert row(page, "**natural, mean**")[1:] == ["**60.0**", "**70.0**"]
    assert row(page, "**mean of tasks**")[1:] == ["**70.0**", "–"]
    assert row(page, "**mean of group means**")[1:] == ["**75.0**", "–"]
    assert row(page, "c")[1:] == ["90.0", "–"]


def test_seeds_are_shown_as_mean_and_deviation() -> None:
    found = of_tasks(Linear=(0.5,))
    several = replace(found, evaluations={"Linear": {"a": [made(0.5), made(0.7)]}})
    assert row(accuracy_table(several), "a")[1] == "60.0 ± 14.1"


def test_figures_are_reached_or_not_and_never_made_up() -> None:
    found = of_tasks(
        Linear=(0.9, 0.8, 0.3, 0.2),
        Scratch=(0.5, 0.5, 0.4, 0.4),
        Head2Toe=(0.88, 0.82, 0.4, 0.5),
        Fine_tuning=(0.9, 0.8, 0.38, 0.46),
    )
    races = [Race("a", 0.1, 80.0, 79.0, 1.0, 8.0), Race("b", 0.1, 70.0, 72.0, 2.0, 4.0)]
    page = goals(found, races)
    assert row(page, "mean gain")[2:] == ["10.00", "4", "reached"]
    assert row(page, "Spearman")[2:] == ["-1.00", "4", "reached"]
    assert row(page, "Head2Toe less Fine-tuning")[2:] == ["1.50", "4", "reached"]
    assert row(page, "the same on tasks")[2:] == ["3.00", "2", "reached"]
    assert row(page, "worst loss")[2:] == ["2.00", "2", "**not reached**"]
    assert row(page, "exact less Adam")[2:] == ["-0.50", "2", "**not reached**"]
    assert row(page, "seconds of exact")[1:] == ["at most 1/5", "0.250", "2", "**not reached**"]
    assert row(page, "Head2Toe's seconds")[1:] == ["at most 1/20", "1.000", "4", "**not reached**"]
    alone = goals(of_tasks(Linear=(0.9, 0.8)), [])
    assert alone.count("not measured") == 8


def test_what_was_not_run_is_named() -> None:
    config = EvaluationConfig.model_validate(
        {
            "extraction": {"backbone": "test_resnet"},
            "tasks": [{"name": name, "data": f"offline/{name}"} for name in "abcd"],
            "methods": {
                "Linear": {"method": "linear"},
                "Head2Toe": {"method": "head2toe"},
                "Oracle": {"method": "oracle"},
            },
        }
    )
    found = of_tasks(Linear=(0.5, 0.6, 0.7), Head2Toe=(0.5,))
    assert list_missing(config, found) == ["tasks d", "Head2Toe on b, c", "Oracle"]


@pytest.mark.slow
def test_the_page_has_every_experiment_and_a_second_run_computes_nothing(store, evaluated, tmp_path: Path) -> None:
    (tmp_path / "results-notes.md").write_text("A finding.\n")
    build(evaluated, tmp_path, ["tasks three"])
    page = (tmp_path / "results.md").read_text()
    for expected in ("Not run, so not on this page:** tasks three.", "## What we found\n\nA finding.", "Adam of 5,000"):
        assert expected in page
    pictures = {path.name for path in (tmp_path / "images").iterdir()}
    assert pictures == {f"results-{name}.png" for name in ("fractions", "offsets", "donors", "layers")}
    assert all(f"images/{name}" in page for name in pictures)
    assert row(page, "Spearman")[2] == "–"
    before = {kind: list_results(store, kind) for kind in ("selections", "heads", "points", "protocols")}
    build(evaluated, tmp_path, ["tasks three"])
    assert (tmp_path / "results.md").read_text() == page
    assert {kind: list_results(store, kind) for kind in before} == before


@pytest.mark.slow
def test_the_experiments_select_what_the_search_tried(store, evaluated) -> None:
    """The same settings give the accuracy of the protocol's own final fit, as no offset and the own selection do."""
    exact = {task: seeds[0] for task, seeds in evaluated.evaluations["Head2Toe"].items()}
    settings = exact["one"].settings
    assert experiments.common(exact) == settings
    donated = experiments.donating(evaluated.stores, settings, lambda _: None)
    np.testing.assert_allclose(donated, 100 * exact["one"].accuracy)
    by_layer = experiments.by_layers(evaluated.stores, settings, FRACTIONS, lambda _: None)
    assert by_layer[0, FRACTIONS.index(settings["fraction"]), 0] == pytest.approx(100 * exact["one"].accuracy)
    assert experiments.by_fraction(exact).max() == pytest.approx(100 * exact["one"].validation_accuracy)
    skipped = experiments.skipping(evaluated.stores, settings, lambda _: None)
    assert skipped.shape == (2, len(experiments.OFFSETS))
    assert skipped[0, 0] > skipped[0, -1]


@pytest.mark.slow
def test_seconds_of_a_selection_are_those_of_the_ranking_whoever_computed_it(store, evaluated) -> None:
    exact, adam = (
        {task: seeds[0] for task, seeds in evaluated.evaluations[method].items()} for method in ("Head2Toe", "Adam")
    )
    races = experiments.racing({"one": store}, exact, adam, lambda _: None)
    assert [race.fraction for race in races] == list(FRACTIONS)
    assert races[0].exact_seconds == races[1].exact_seconds > 0
    assert races[0].adam_seconds == races[1].adam_seconds > 0
