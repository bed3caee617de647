"""Folds choose, the test set is asked once, every point is kept, and what is there is not computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipeline.comparison import compare
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.folds import make_folds
from pipeline.heads import RefitParameters
from pipeline.methods import Head2Toe, Linear, Prediction, Samples, Settings
from pipeline.protocol import Evaluation, ProtocolParameters, cross_validate, mean_and_deviation
from pipeline.refit import refit
from pipeline.selection import SelectionParameters, select_features
from store import open_store
from store.errors import InvalidInputError
from store.results import list_results

FEW = (RefitParameters(max_iterations=20, validation_fraction=0),)


@dataclass
class Oracle:
    """Knows every label, but for a share of errors that a setting asks for; remembers what it was asked."""

    labels: dict[str, np.ndarray]
    errors: Sequence[float] = (0.5, 0.1, 0.1)
    name: str = "Oracle"
    identity: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    @property
    def grid(self) -> list[list[Settings]]:
        return [[{"number": i, "errors": e} for i, e in enumerate(self.errors)], [{"number": -1, "errors": 0.9}]]

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        for setting in settings:
            self.asked.append((train, held, setting["number"]))
            wrong = np.arange(len(held.rows)) < setting["errors"] * len(held.rows)
            yield Prediction((self.labels[held.split][held.rows] + wrong) % 3, {"number": setting["number"]})


@pytest.fixture
def oracle(store) -> Oracle:
    return Oracle({split: store.labels(split) for split in store.splits})


# ---------------------------------------------------------------- folds


def test_stratified_folds_hold_every_sample_once_and_deal_each_class_evenly() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(9), [1, 2, 3, 5, 7, 11, 100, 200, 671]))
    folds = make_folds(labels, 5, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(1000))
    assert [len(fold) for fold in folds] == [200] * 5
    for label in range(9):
        counts = [(labels[fold] == label).sum() for fold in folds]
        assert max(counts) - min(counts) <= 1
    assert all((np.diff(fold) > 0).all() for fold in folds)
    again, other = make_folds(labels, 5, seed=3), make_folds(labels, 5, seed=4)
    np.testing.assert_array_equal(folds[0], again[0])
    assert (folds[0] != other[0]).any()


def test_folds_in_order_are_consecutive() -> None:
    folds = make_folds(np.zeros(1000, np.int64), 5, "in_order")
    np.testing.assert_array_equal(folds[1], np.arange(200, 400))


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="4 training samples cannot be divided into 5 folds"):
        make_folds(np.zeros(4, np.int64), 5)
    with pytest.raises(InvalidInputError, match="order 'stratfied' of folds is unknown; did you mean 'stratified'"):
        ProtocolParameters(order="stratfied")
    with pytest.raises(InvalidInputError, match="folds=1 leaves nothing"):
        ProtocolParameters(folds=1)


# ---------------------------------------------------------------- the protocol


def test_the_best_setting_over_all_folds_is_fitted_on_all_samples_and_tested_once(store, oracle) -> None:
    result = cross_validate(oracle, store)
    assert result.settings["number"] == 1  # the first of two that are equally good
    rights = [18 - np.ceil(0.1 * 18)] * 5
    assert result.validation_accuracy == pytest.approx(sum(rights) / 90)
    tests = [(train, held, number) for train, held, number in oracle.asked if held.split == "test"]
    assert [number for _, _, number in tests] == [1]
    np.testing.assert_array_equal(tests[0][0].rows, np.arange(90))
    np.testing.assert_array_equal(tests[0][1].rows, np.arange(37))
    assert result.accuracy == pytest.approx(1 - np.ceil(3.7) / 37)
    np.testing.assert_array_equal(result.hits, np.arange(37) >= 3.7)
    assert [p["settings"]["number"] for p in result.points] == [0, 1, 2, -1]
    for train, held, _ in oracle.asked:
        if held.split == "train":
            assert not np.intersect1d(train.rows, held.rows).size
            assert (len(train.rows), len(held.rows)) == (72, 18)


def test_accuracy_is_the_mean_over_samples_where_folds_differ_in_size(store, oracle) -> None:
    oracle.errors = (0.05,)  # one error per fold, whatever its size
    result = cross_validate(oracle, store, ProtocolParameters(folds=7))
    assert result.validation_accuracy == pytest.approx(1 - 7 / 90)


def test_the_grid_and_its_cost_are_announced_before_the_work(store, oracle) -> None:
    said: list[str] = []
    before: list[int] = []
    cross_validate(oracle, store, announce=lambda text: (said.append(text), before.append(len(oracle.asked))))
    assert said[0] == "Oracle: 4 settings on 5 folds are 20 fits; then one fit on all training samples."
    assert before[0] == 0
    assert said[1].startswith("Oracle: 3 fits took 0.")
    assert "so the other 17 take about" in said[1]


def test_a_killed_run_goes_on_where_it_stopped(store, oracle) -> None:
    """Killed after 8 of 20 points: afterwards just the other 12, and the test, are computed."""
    whole = cross_validate(Oracle(oracle.labels, name="Whole"), store)

    def kill(stage: str, done: int, total: int) -> None:
        assert (stage, total) == ("Oracle: fits", 20)
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(oracle, store, progress=kill)
    assert len(oracle.asked) == 8
    oracle.asked.clear()
    said: list[str] = []
    seen: list[int] = []
    result = cross_validate(
        oracle, open_store(store.uri), progress=lambda _, done, __: seen.append(done), announce=said.append
    )
    assert Counter(held.split for _, held, _ in oracle.asked) == {"train": 12, "test": 1}
    assert seen == list(range(9, 21))
    assert "20 fits, 8 of them stored; the rest takes about" in said[0]
    assert (result.points, result.accuracy) == (whole.points, whole.accuracy)
    oracle.asked.clear()
    again = cross_validate(oracle, store)
    assert again.reused
    assert oracle.asked == []
    np.testing.assert_array_equal(again.hits, result.hits)


@pytest.mark.slow
def test_a_larger_grid_computes_only_what_is_new(store, oracle) -> None:
    cross_validate(oracle, store)
    larger = Oracle(oracle.labels, errors=(0.5, 0.1, 0.1, 0.0))
    result = cross_validate(larger, store)
    assert sorted({number for _, _, number in larger.asked}) == [3]
    assert result.accuracy == 1
    assert len(list_results(store, "points")) == 25
    assert len(list_results(store, "protocols")) == 2


@pytest.mark.slow
def test_another_seed_or_identity_is_another_run(store, oracle) -> None:
    first = cross_validate(oracle, store)
    other = cross_validate(oracle, store, ProtocolParameters(seed=1))
    assert not other.reused
    oracle.identity = {"version": 2}
    assert cross_validate(oracle, store).digest not in (first.digest, other.digest)
    assert len(oracle.asked) == 3 * 21


def test_an_empty_grid_is_refused(store, oracle) -> None:
    empty = Linear(store, normalizations=())
    with pytest.raises(InvalidInputError, match="method 'Linear' has no settings to try"):
        cross_validate(empty, store)
    with pytest.raises(InvalidInputError, match="has no split 'tset'; did you mean 'test'"):
        cross_validate(oracle, store, ProtocolParameters(test="tset"))


# ---------------------------------------------------------------- the methods


def test_linear_is_the_refit_of_the_embedding(store) -> None:
    result = cross_validate(Linear(store, normalizations=("standardize",), refits=FEW), store)
    head = refit(
        store,
        store.layer_indices("pre_logits"),
        features={"layer": "pre_logits"},
        normalization="standardize",
        parameters=FEW[0],
    )
    assert result.accuracy == head.accuracy["test"]
    assert result.facts["features"] == 16


def test_linear_on_named_layers_has_all_their_features(store) -> None:
    method = Linear(store, layers=("pre_logits", "stem"), refits=FEW)
    assert method.identity["layers"] == ["stem", "pre_logits"]
    train, test = Samples("train", np.arange(90)), Samples("test", np.arange(37))
    assert next(method.fit(train, test, method.grid[0], 0)).facts["features"] == 23
    with pytest.raises(InvalidInputError, match="has no layer 'stam'"):
        _ = Linear(store, layers=("stam",)).identity


def test_head2toe_chooses_among_paths_fractions_and_normalizations_from_one_pass_set(store, monkeypatch) -> None:
    from pipeline.methods import head2toe

    solved = []
    solve = head2toe.group_lasso
    monkeypatch.setattr(head2toe, "group_lasso", lambda *a, **k: solved.append(k["penalty_ratio"]) or solve(*a, **k))
    method = Head2Toe(
        store,
        options=({"penalty_ratio": 0.5}, {"penalty_ratio": 0.1}),
        fractions=(0.02, 0.2),
        normalizations=("unit_norm", "standardize"),
        refits=FEW,
    )
    result = cross_validate(method, store, ProtocolParameters(folds=2))
    assert solved[:4] == [[0.5, 0.1]] * 4  # one path per fold and normalization
    assert len(solved) == 5
    assert len(result.points) == 8
    assert result.accuracy > 0.8
    assert result.facts["features"] == int(127 * result.settings["fraction"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scorer", "options"),
    [("random", {}), ("variance", {}), ("adam", {"penalty": 1e-3, "steps": 5}), ("l2", {"penalty": 0.1})],
)
def test_any_scorer_can_select(store, scorer, options) -> None:
    method = Head2Toe(store, scorer=scorer, options=(options,), fractions=(0.3,), refits=FEW, name=scorer)
    result = cross_validate(method, store, ProtocolParameters(folds=2))
    assert result.accuracy > 0.5
    assert result.facts["features"] == 38


def test_the_protocols_seed_is_that_of_what_a_method_draws(store) -> None:
    method = Head2Toe(store, scorer="random", options=({},), fractions=(0.05,), refits=FEW)
    train, test = Samples("train", np.arange(90)), Samples("test", np.arange(37))
    found = [next(method.fit(train, test, method.grid[0], seed)).labels for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


@pytest.mark.slow
def test_a_fit_says_what_it_trained_and_what_it_read(store) -> None:
    train, test = Samples("train", np.arange(90)), Samples("test", np.arange(37))
    linear = Linear(store, refits=FEW)
    facts = next(linear.fit(train, test, linear.grid[0][:1], 0)).facts
    n_classes = len(store.class_names)
    assert facts["parameters"] == (16 + 1) * n_classes
    assert 1 <= facts["bytes_read"] / ((90 + 37) * 16 * store.dtype.itemsize) < 1.2
    scan = sum(store.chunk_bytes(ref) for ref in store.chunks("train"))
    head2toe = Head2Toe(store, options=({"penalty_ratio": 0.3},), fractions=(0.1,), refits=FEW)
    facts = next(head2toe.fit(train, test, head2toe.grid[0], 0)).facts
    assert facts["parameters"] == (12 + 1) * n_classes
    assert 2 * scan < facts["bytes_read"] < 4 * scan


def test_many_held_samples_are_read_in_parts(store, monkeypatch) -> None:
    from pipeline.methods import columns

    method = Head2Toe(store, options=({"penalty_ratio": 0.3},), fractions=(0.02, 0.1), refits=FEW)
    train, test = Samples("train", np.arange(90)), Samples("test", np.arange(37))
    whole = [p.labels for p in method.fit(train, test, method.grid[0], 0)]
    monkeypatch.setattr(columns, "ROWS", 10)
    np.testing.assert_array_equal(whole, [p.labels for p in method.fit(train, test, method.grid[0], 0)])


# ---------------------------------------------------------------- comparison


def evaluation(accuracy: float) -> Evaluation:
    return Evaluation("m", "", {}, 0.0, accuracy, np.zeros(1, bool), [], {}, {}, False)


def test_seeds_are_summed_up_by_mean_and_deviation() -> None:
    assert mean_and_deviation([evaluation(0.5), evaluation(0.7)]) == pytest.approx((0.6, 0.02**0.5))
    assert mean_and_deviation([evaluation(0.5)]) == (0.5, None)


def test_a_comparison_is_paired() -> None:
    a = np.arange(1000) % 10 != 0
    b = a.copy()
    b[1:60:3] = False  # 20 samples, of which two are wrong already
    found = compare(a, b)
    assert (found.only_a, found.only_b) == (18, 0)
    assert found.difference == pytest.approx(0.018)
    assert 0 < found.low < found.difference < found.high < 0.03
    assert found.p_value == pytest.approx(2 * 0.5**18)
    unpaired = compare(a, np.roll(b, 1))
    assert unpaired.difference == pytest.approx(found.difference)
    assert unpaired.low < 0
    assert unpaired.p_value > 0.05
    assert compare(a, a)[:] == (0, 0, 0, 0, 0, 1.0)


def test_hits_of_different_samples_cannot_be_compared() -> None:
    with pytest.raises(InvalidInputError, match="are not of the same samples"):
        compare(np.ones(3, bool), np.ones(4, bool))


@pytest.mark.slow
def test_the_digits_are_told_apart_better_by_all_layers_than_by_the_last(tmp_path) -> None:
    """The whole protocol on real scans, through a backbone of random weights: a small grid, both target sizes."""
    parameters = ExtractionParameters(
        backbone="test_resnet", weights="random:0", data="digits", target_sizes=(16, 128), image_size=32
    )
    store = open_store(extract(parameters, str(tmp_path)).uri)
    linear = cross_validate(Linear(store), store)
    method = Head2Toe(
        store,
        options=({"penalty_ratio": 0.3, "tolerance": 1e-3}, {"penalty_ratio": 0.1, "tolerance": 1e-3}),
        fractions=(0.05, 0.2),
        target_sizes=(16, 128),
    )
    head2toe = cross_validate(method, store)
    assert {point["settings"]["target_size"] for point in head2toe.points} == {16, 128}
    found = compare(head2toe.hits, linear.hits)
    assert found.low > 0
    assert found.p_value < 1e-3
    assert abs(head2toe.validation_accuracy - head2toe.accuracy) < 0.1

    # What the folds chose can be had as a selection and a head, from which a classifier is made.
    chosen = head2toe.settings
    wanted = {name: chosen[name] for name in ("target_size", "normalization", "fraction")}
    ranking = {name: chosen["ranking"][name] for name in ("penalty_ratio", "tolerance")}
    selection = select_features(store, SelectionParameters(**wanted, **ranking))
    head = refit(
        store,
        selection.indices,
        features={"selection": selection.digest},
        normalization=selection.normalization,
        parameters=RefitParameters(**chosen["refit"]),
    )
    assert head.accuracy["test"] == head2toe.accuracy
