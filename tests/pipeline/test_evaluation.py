"""Methods × tasks: what is asked is checked first, means are what they say, failures stay alone, nothing is redone."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.evaluation import METHODS, EvaluationConfig, Outcome, Results, TaskResult, evaluate, load_results
from pipeline.evaluation.running import foresee_tasks
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.offline.tasks import TASKS
from pipeline.protocol import Evaluation
from store.errors import InvalidInputError

FEW = [{"max_iterations": 20, "validation_fraction": 0}]
EXTRACTION = {
    "backbone": "test_resnet",
    "weights": "random:0",
    "image_size": 32,
    "taps": ["layer4.*", "embedding"],
    "target_sizes": [64],
    "device": "cpu",
}
METHOD_GRIDS = {
    "Linear": {"method": "linear", "normalizations": ["standardize"], "refits": FEW},
    "Head2Toe": {"method": "head2toe", "options": [{"penalty_ratio": 0.3}], "fractions": [0.05, 0.2], "refits": FEW},
}


def write_task(path: Path, seed: int, classes: int = 3) -> str:
    """Write a task of stripes whose direction is the class, 30 training and 20 test images."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", 30), ("test", 20)):
        labels = np.arange(n) % classes
        y, x = np.mgrid[:16, :16]
        waves = np.stack([np.sin(x * np.cos(k) + y * np.sin(k)) for k in labels])
        noisy = 127 + 60 * waves + 40 * rng.standard_normal((n, 16, 16))
        arrays |= {f"x_{split}": np.clip(noisy, 0, 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    for number in range(3):
        write_task(place / f"{number}.npz", number)
    return place


def configured(folder: Path, **changes) -> EvaluationConfig:
    tasks = [{"name": f"task{n}", "data": str(folder / f"{n}.npz"), "group": "ab"[n // 2]} for n in range(2)]
    document = {
        "root": str(folder / "root"),
        "tasks": tasks,
        "extraction": EXTRACTION,
        "methods": METHOD_GRIDS,
        "protocol": {"folds": 2},
    }
    return EvaluationConfig.model_validate({**document, **changes})


# ---------------------------------------------------------------- what may be asked


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": {"A": {"method": "head2tow"}}}, "method 'head2tow' is unknown; did you mean 'head2toe'"),
        (
            {"methods": {"A": {"method": "head2toe", "fraction": [0.1]}}},
            "option 'fraction' of method 'A' is unknown; did you mean 'fractions'",
        ),
        ({"methods": {}}, "there is no method to evaluate"),
        ({"tasks": []}, "there is no task to evaluate"),
        ({"tasks": [{"name": "a", "data": "digits"}] * 2}, "task 'a' occurs twice"),
        ({"suite": "ofline"}, "suite 'ofline' is unknown; did you mean 'offline'"),
        ({"suite": "vtab1k"}, "needs the folder that holds the folders of its tasks; give --data-root"),
        ({"suite": "offline", "data_root": "x"}, "takes no data root"),
        ({"extraction": {"weights": "shipped"}}, "task 'task0' has no backbone; give extraction.backbone"),
        ({"extraction": {**EXTRACTION, "data": "digits"}}, "data is what tasks or a suite say"),
        ({"protocol": {"seed": 1}}, "seeds of the protocol are given as seeds"),
        ({"seeds": [1, 1]}, "each once"),
        ({"methods": {"A": {"method": "control"}}}, "method 'A' needs a second backbone; give control.backbone"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_work(folder, changes, sentence) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        configured(folder, **changes)


def test_values_are_checked_as_the_methods_have_them() -> None:
    extraction = ExtractionParameters(backbone="b", data="d")
    with pytest.raises(ValidationError, match=r"fractions\.0"):
        METHODS["head2toe"].count_settings({"fractions": ["many"]}, extraction)
    with pytest.raises(ValidationError, match="optimiser"):
        METHODS["linear"].count_settings({"refits": [{"optimiser": "adam"}]}, extraction)
    with pytest.raises(InvalidInputError, match="learning_rate does not apply to scorer group_lasso"):
        METHODS["head2toe"].count_settings({"options": [{"learning_rate": 1}]}, extraction)
    with pytest.raises(InvalidInputError, match="penalty 'l3' is unknown"):
        METHODS["all_layers"].count_settings({"penalty": "l3"}, extraction)


def test_grids_are_counted_before_there_is_a_store() -> None:
    one, two = (ExtractionParameters(backbone="b", data="d", target_sizes=sizes) for sizes in ((64,), (64, 512)))
    options = {"fractions": [0.1, 0.2], "options": [{"penalty_ratio": 0.3}], "normalizations": ["none", "unit_norm"]}
    assert METHODS["head2toe"].count_settings(options, one) == 4
    assert METHODS["head2toe"].count_settings(options, two) == 8  # every size that is stored
    assert METHODS["head2toe"].count_settings({**options, "target_sizes": [512]}, two) == 4
    assert METHODS["control"].count_settings({"normalizations": ["none"]}, one) == 1
    assert METHODS["oracle"].count_settings({}, one) is None  # depends on the layers
    for name in ("fine_tuning", "scratch"):
        assert METHODS[name].count_settings({"learning_rates": [0.1, 0.2], "steps": [5, 6, 7]}, one) == 6


def test_suites_are_the_offline_tasks_and_the_nineteen_of_vtab(folder) -> None:
    offline = configured(folder, tasks=[], suite="offline").all_tasks
    assert [task.name for task in offline] == list(TASKS)
    assert {task.classes for task in offline if task.name == "letters"} == {26}
    vtab = configured(folder, tasks=[], suite="vtab1k", data_root="/data").all_tasks
    groups = [task.group for task in vtab]
    assert [groups.count(name) for name in ("natural", "specialized", "structured")] == [7, 4, 8]
    known = {task.name: task for task in vtab}
    assert known["sun397"].classes == 397
    assert known["clevr_dist"].data == "folder:/data/clevr_dist"
    assert sum(task.classes for task in vtab) == 102 + 100 + 47 + 102 + 37 + 397 + 10 + 2 + 10 + 45 + 5 + 83


def test_some_tasks_and_methods_are_chosen_by_name(folder) -> None:
    config = configured(folder).only(["task1"], ["Linear"])
    assert [task.name for task in config.all_tasks] == ["task1"]
    assert list(config.methods) == ["Linear"]
    with pytest.raises(InvalidInputError, match="task 'taks1' is not in the configuration; did you mean 'task1'"):
        configured(folder).only(["taks1"])
    with pytest.raises(
        InvalidInputError, match="method 'Head2Tow' is not in the configuration; did you mean 'Head2Toe'"
    ):
        configured(folder).only([], ["Head2Tow"])


def test_what_a_task_or_the_control_says_takes_the_place_of_what_all_have(folder) -> None:
    tasks = [{"name": "a", "data": "digits", "extraction": {"image_size": 64}}]
    config = configured(folder, tasks=tasks, control={"backbone": "test_vit"})
    task = config.all_tasks[0]
    assert config.extraction_of(task).model_dump(include={"backbone", "image_size", "data"}) == {
        "backbone": "test_resnet",
        "image_size": 64,
        "data": "digits",
    }
    control = config.extraction_of(task, control=True)
    assert (control.backbone, control.taps, control.image_size) == ("test_vit", ("embedding",), 64)


# ---------------------------------------------------------------- what is said of results


def scored(hits: list[int], method: str, seed: int = 0, error: str = "") -> Outcome:
    right = np.array(hits, bool)
    facts = {"settings": {}, "validation_accuracy": 0.5, "points": [], "facts": {}, "reused": False}
    seconds = {"search": 1.0, "final": 0.5}
    found = Evaluation(method, "d", accuracy=float(right.mean()), hits=right, seconds=seconds, **facts)
    return Outcome(method, seed, None if error else found, error)


def summed(folder: Path, hits: dict[str, list[list[list[int]]]], groups: str, seeds: int = 1) -> Results:
    """Make results of hits by method, task and seed."""
    n = len(groups)
    tasks = [{"name": f"t{i}", "data": "digits", "group": groups[i]} for i in range(n)]
    config = configured(folder, tasks=tasks, seeds=list(range(seeds)))
    store = {"bytes": 1, "extraction_seconds": 2.0}
    outcomes = [tuple(scored(per[i][s], m, s) for m, per in hits.items() for s in range(seeds)) for i in range(n)]
    pairs = zip(config.all_tasks, outcomes, strict=True)
    return Results(config, tuple(TaskResult(task, store, found) for task, found in pairs))


def test_both_means_and_deviation_over_seeds(folder) -> None:
    linear = [[[1, 1, 1, 1], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 0, 0, 0]]]
    results = summed(folder, {"Linear": linear}, "aab", seeds=2)
    per_seed = [(1 + 0.5 + 0) / 3, (0.75 + 0.25 + 0.25) / 3]
    assert results.mean("Linear") == pytest.approx((np.mean(per_seed), np.std(per_seed, ddof=1)))
    grouped = [(0.75 + 0) / 2, (0.5 + 0.25) / 2]
    assert results.mean_of_groups("Linear") == pytest.approx((np.mean(grouped), np.std(grouped, ddof=1)))
    assert results.accuracy(results.tasks[0], "Linear").mean == pytest.approx(0.875)


def test_a_mean_needs_every_task_and_seed(folder) -> None:
    results = summed(folder, {"Linear": [[[1, 0]], [[1, 1]]]}, "ab")
    assert results.mean("Linear").deviation is None
    assert results.mean("Head2Toe") is None
    failed = TaskResult(results.tasks[1].task, {}, (scored([1], "Linear", error="no."),))
    results = Results(results.config, (results.tasks[0], failed))
    assert results.mean("Linear") is None
    assert results.accuracy(results.tasks[0], "Linear").mean == 0.5
    assert results.errors == ["t1 · Linear: no."]
    assert results.document()["tasks"][1]["accuracy"] == {"Linear": None, "Head2Toe": None}


def test_head2toe_is_compared_with_others_on_the_same_samples(folder) -> None:
    hits = {"Linear": [[[1, 0, 0, 0]], [[0, 1, 1, 0]]], "Head2Toe": [[[0, 1, 1, 1]], [[1, 1, 1, 0]]]}
    results = summed(folder, hits, "ab")
    assert (results.reference, results.others) == ("Head2Toe", ["Linear"])
    first = results.comparison(results.tasks[0], "Linear")
    assert (first.only_a, first.only_b, first.difference) == (3, 1, 0.5)
    whole = results.comparison(None, "Linear")
    assert (whole.only_a, whole.only_b, whole.difference) == (4, 1, 3 / 8)


def test_documents_are_json_and_csv(folder) -> None:
    results = summed(folder, {"Linear": [[[1, 0]], [[1, 1]]], "Head2Toe": [[[1, 1]], [[1, 1]]]}, "ab")
    document = json.loads(json.dumps(results.document()))
    assert document["summary"]["Linear"]["mean"] == {"mean": 0.75, "deviation": None}
    assert document["summary"]["Linear"]["groups"]["a"] == {"mean": 0.5, "deviation": None}
    assert document["comparisons"]["Linear"]["only_a"] == 1
    assert set(document["versions"]) >= {"python", "torch", "timm"}
    rows = list(csv.DictReader(io.StringIO(results.table())))
    assert [(r["task"], r["method"], r["accuracy"]) for r in rows][:2] == [
        ("t0", "Linear", "0.5"),
        ("t0", "Head2Toe", "1.0"),
    ]


# ---------------------------------------------------------------- the run


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_results_are_read_without_computing(folder, tmp_path) -> None:
    config = configured(folder, root=str(tmp_path))
    nothing = load_results(config)
    assert not list(tmp_path.iterdir())
    assert all(not task.store and not task.error for task in nothing.tasks)
    said: list[str] = []
    first = evaluate(config, said.append)
    assert [task.extracted for task in first.tasks] == [50, 50]
    assert any(sentence.startswith("task1 · Head2Toe: accuracy ") for sentence in said)
    assert "task0 · Linear: 1 settings on 2 folds are 2 fits; then one fit on all training samples." in said
    second = evaluate(config, said.append)
    third = load_results(config)
    for again in (second, third):
        found = [o.evaluation for task in again.tasks for o in task.outcomes]
        assert all(evaluation.reused for evaluation in found)
        assert [task.extracted for task in again.tasks] == [0, 0]
        assert again.table() == first.table()
    seeds = load_results(configured(folder, root=str(tmp_path), seeds=[0, 1]))
    assert [o.evaluation is None for o in seeds.tasks[0].outcomes] == [False, True, False, True]
    assert seeds.mean("Linear") is None
    foreseen = foresee_tasks(configured(folder, root=str(tmp_path), seeds=[0, 1]))
    assert foreseen[0].plans["Head2Toe"] == ["stored", "2 settings on 2 folds are 4 fits"]
    assert foreseen[0].fits == {"Linear": 4, "Head2Toe": 8}


@pytest.mark.slow
def test_what_fails_does_not_stop_the_others(folder, tmp_path) -> None:
    tasks = [
        {"name": "gone", "data": str(folder / "gone.npz")},
        {"name": "odd", "data": str(folder / "0.npz"), "classes": 4},
        {"name": "good", "data": str(folder / "0.npz"), "classes": 3},
    ]
    control = {"backbone": "test_byobnet", "weights": "no-such-file.safetensors"}
    methods = {"Control": {"method": "control"}, "Linear": METHOD_GRIDS["Linear"]}
    config = configured(folder, root=str(tmp_path), tasks=tasks, methods=methods, control=control)
    said: list[str] = []
    results = evaluate(config, said.append)
    gone, odd, broken = results.errors
    assert gone.startswith("gone: ")
    assert "gone.npz" in gone
    assert odd.startswith(f"odd: data {str(folder / '0.npz')!r} has 3 classes but task 'odd' has 4")
    assert broken.startswith("good · Control: ")
    assert "no-such-file.safetensors" in broken
    assert set(results.errors) <= set(said)
    assert results.accuracy(results.tasks[2], "Linear").mean > 1 / 3


@pytest.mark.slow
def test_processes_find_what_one_process_finds(folder, tmp_path) -> None:
    one = evaluate(configured(folder, root=str(tmp_path / "one")), print)
    two = evaluate(configured(folder, root=str(tmp_path / "two"), jobs=2), print)
    assert [task.task.name for task in two.tasks] == ["task0", "task1"]
    for task, again in zip(one.tasks, two.tasks, strict=True):
        assert task.store["fingerprint"] == again.store["fingerprint"]
        for method in METHOD_GRIDS:
            a, b = one.evaluations(task, method)[0], two.evaluations(again, method)[0]
            assert a.settings == b.settings
            np.testing.assert_array_equal(a.hits, b.hits)
