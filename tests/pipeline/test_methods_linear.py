"""Penalised solutions over all layers, the Oracle's layer, two backbones' embeddings: each against another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, SPLITS, synthetic
from sklearn.linear_model import LogisticRegression

from pipeline.group_lasso import group_lasso
from pipeline.heads import RefitParameters
from pipeline.methods import AllLayers, Head2Toe, Linear, Oracle, Samples, control
from pipeline.protocol import ProtocolParameters, cross_validate
from store import ActivationStore, create_store, open_store
from store.errors import InvalidInputError
from store.spec import Manifest

FEW = (RefitParameters(max_iterations=20, validation_fraction=0),)
TRAIN, TEST = (Samples(split, np.arange(n)) for split, n in SPLITS.items())
SOME = Samples("train", np.flatnonzero(np.arange(90) % 4))


def normalised(store: ActivationStore, normalization: str, train: Samples, held: Samples) -> list[np.ndarray]:
    """Return all columns of both, in double precision, normalised without the project's help."""
    raw = [store.columns(s.split, np.arange(store.n_features))[s.rows].astype(np.float64) for s in (train, held)]
    if normalization == "standardize":
        return [(x - raw[0].mean(axis=0)) / raw[0].std(axis=0) for x in raw]
    parts = np.cumsum([layer.n_features for layer in store.layers.values()])[:-1]
    return [
        np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in np.split(x, parts, axis=1)])
        for x in raw
    ]


def make_store(
    place: Path, layers: dict[str, dict[str, np.ndarray]], manifests: dict[str, Manifest]
) -> ActivationStore:
    """Return a store of layers of shape (feature, sample), the last of which is the embedding."""
    sizes = {name: len(values) for name, values in layers["train"].items()}
    provenance = {"embedding": list(sizes)[-1]}
    writer = create_store(place, sizes, SPLITS, manifests=manifests, class_names=CLASSES, provenance=provenance)
    for split, blocks in writer.missing().items():
        for block in blocks:
            samples = slice(*writer.store.splits[split].block_range(block))
            writer.write_block(split, block, {n: v[:, samples].astype(np.float16) for n, v in layers[split].items()})
    return open_store(place)


# ---------------------------------------------------------------- all layers


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["unit_norm", "standardize"])
@pytest.mark.parametrize(("penalty", "strengths"), [("l1", (0.5, 0.1)), ("l2", (0.1, 0.001))])
def test_l1_and_l2_predict_as_scikit_learn_does(store, penalty, strengths, normalization) -> None:
    method = AllLayers(store, penalty, strengths, (normalization,))
    found = list(method.fit(SOME, TEST, method.grid[0], 0))
    x, seen = normalised(store, normalization, SOME, TEST)
    labels = store.labels("train")[SOME.rows]
    for prediction in found:
        strength = 1 / (len(x) * prediction.facts["penalty"])
        options = {"C": strength, "solver": "lbfgs"} if penalty == "l2" else {"C": strength, "l1_ratio": 1.0}
        model = LogisticRegression(tol=1e-6, max_iter=100_000, **{"solver": "saga"} | options).fit(x, labels)
        loss = -model.predict_log_proba(x)[np.arange(len(x)), labels].mean()
        assert prediction.facts["loss"] == pytest.approx(loss, rel=2e-3)
        differing = prediction.labels != model.predict(seen)
        sorted_ = np.sort(model.predict_proba(seen), axis=1)
        assert (sorted_[differing, -1] - sorted_[differing, -2] < 1e-2).all()
        assert differing.sum() <= 1
        if penalty == "l1":
            rows = np.abs(model.coef_).max(axis=0)
            assert abs(prediction.facts["features"] - (rows > 1e-4 * rows.max()).sum()) <= 2


@pytest.mark.parametrize("normalization", ["unit_norm", "standardize"])
def test_the_group_penalty_predicts_by_its_own_solution(store, normalization) -> None:
    method = AllLayers(store, "group", (0.5, 0.1), (normalization,))
    found = list(method.fit(SOME, TEST, method.grid[0], 0))
    x, seen = normalised(store, normalization, SOME, TEST)
    labels = store.labels("train")[SOME.rows]
    for prediction, other in zip(found, group_lasso(x, labels, penalty_ratio=(0.5, 0.1)).path, strict=True):
        np.testing.assert_array_equal(prediction.labels, other.decision_function(seen).argmax(axis=1))
        assert prediction.facts == {"features": len(other.support), "certified": True}


def test_one_path_serves_all_strengths(store, monkeypatch) -> None:
    from pipeline.methods import all_layers

    solved = []
    solve = all_layers.group_lasso
    monkeypatch.setattr(all_layers, "group_lasso", lambda *a, **k: solved.append(k["penalty_ratio"]) or solve(*a, **k))
    method = AllLayers(store, strengths=(0.5, 0.2, 0.1), normalizations=("unit_norm",))
    result = cross_validate(method, store, ProtocolParameters(folds=2))
    assert solved[:2] == [[0.5, 0.2, 0.1]] * 2
    assert len(solved) == 3
    assert result.accuracy > 0.8
    assert result.method == "All layers, group"


@pytest.mark.parametrize("penalty", ["group", "l1", "l2"])
def test_many_held_samples_and_classes_that_are_missing_are_no_matter(store, monkeypatch, penalty) -> None:
    from pipeline.methods import all_layers

    method = AllLayers(store, penalty, (0.1,), ("standardize",))
    train = Samples("train", np.flatnonzero(store.labels("train") != 1))
    (whole,) = method.fit(train, TEST, method.grid[0], 0)
    assert set(whole.labels.tolist()) == {0, 2}
    monkeypatch.setattr(all_layers, "ROWS", 10)
    (parts,) = method.fit(train, TEST, method.grid[0], 0)
    np.testing.assert_array_equal(whole.labels, parts.labels)


def test_the_folds_choose_among_target_sizes(tmp_path) -> None:
    rng = np.random.default_rng(0)
    manifests = synthetic()[1]
    layers = {
        split: {name: rng.standard_normal((int(name[-1]), n)) for name in ("a@4", "b@4", "a@8", "b@8")}
        for split, n in SPLITS.items()
    }
    for split, values in layers.items():
        values["a@8"][:3] += 3 * np.eye(3)[:, manifests[split].labels]
    store = make_store(tmp_path / "sized.zarr", layers, manifests)
    method = AllLayers(store, "l2", (0.1,), ("standardize",), target_sizes=(4, 8))
    result = cross_validate(method, store, ProtocolParameters(folds=2))
    assert result.settings["target_size"] == 8
    assert result.facts["features"] == 16
    assert result.accuracy > 0.8


def test_penalties_that_cannot_be_are_refused(store) -> None:
    with pytest.raises(InvalidInputError, match="penalty 'l3' is unknown"):
        AllLayers(store, "l3")
    with pytest.raises(InvalidInputError, match=r"strength 0.0 is not allowed"):
        AllLayers(store, "l2", (0.0,))
    with pytest.raises(InvalidInputError, match="normalization='unit' is unknown"):
        AllLayers(store, "l2", normalizations=("unit",))
    method = AllLayers(store, "l2", memory=1000)
    with pytest.raises(InvalidInputError, match="needs the inner products of 90 with 127 samples in memory"):
        next(method.fit(TRAIN, TEST, method.grid[0], 0))


# ---------------------------------------------------------------- oracle and control


@pytest.fixture
def deep(tmp_path) -> ActivationStore:
    """A store in which the layer "middle" alone holds the label."""
    rng = np.random.default_rng(0)
    manifests = synthetic()[1]
    layers = {
        split: {name: rng.standard_normal((8, n)) for name in ("early", "middle", "late", "embedding")}
        for split, n in SPLITS.items()
    }
    for split, values in layers.items():
        values["middle"][:3] += 3 * np.eye(3)[:, manifests[split].labels]
    return make_store(tmp_path / "deep.zarr", layers, manifests)


def test_the_oracle_picks_the_layer_that_holds_the_label(deep) -> None:
    method = Oracle(deep, normalizations=("standardize",), refits=FEW)
    assert [batch[0]["layer"] for batch in method.grid] == ["early", "middle", "late"]
    result = cross_validate(method, deep, ProtocolParameters(folds=2))
    assert result.settings["layer"] == "middle"
    assert result.accuracy > 0.8
    assert result.facts["features"] == 16
    (same,) = Linear(deep, ("middle", "embedding"), ("standardize",), FEW).fit(TRAIN, TEST, [result.settings], 0)
    np.testing.assert_array_equal(result.hits, same.labels == deep.labels("test"))


def test_the_oracle_needs_a_layer_to_choose(deep) -> None:
    with pytest.raises(InvalidInputError, match="has no layer 'midle'; did you mean 'middle'"):
        _ = Oracle(deep, layers=("midle",)).grid


def test_the_control_joins_two_backbones_by_sample(store, deep, tmp_path) -> None:
    """The second store has its samples in another order; what is predicted is the same."""
    values, manifests = synthetic()
    order = {split: np.random.default_rng(1).permutation(n) for split, n in SPLITS.items()}
    shuffled = {
        split: Manifest([m.ids[i] for i in order[split]], m.labels[order[split]], [m.digests[i] for i in order[split]])
        for split, m in manifests.items()
    }
    turned = {split: {n: v[:, order[split]] for n, v in layers.items()} for split, layers in values.items()}
    second = make_store(tmp_path / "turned.zarr", turned, shuffled)
    method = control(deep, second, ("standardize",), FEW)
    result = cross_validate(method, deep, ProtocolParameters(folds=2))
    assert method.identity["layers"] == ["1:embedding", "2:pre_logits"]
    assert result.facts["features"] == 8 + 16
    alone = cross_validate(Linear(deep, normalizations=("standardize",), refits=FEW), deep, ProtocolParameters(folds=2))
    assert result.accuracy > alone.accuracy + 0.2
    straight = control(deep, store, ("standardize",), FEW)
    (a,), (b,) = (list(m.fit(SOME, TEST, m.grid[0], 0)) for m in (method, straight))
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.slow
def test_a_control_of_other_samples_is_refused(deep, tmp_path) -> None:
    values, manifests = synthetic()
    m = manifests["test"]
    manifests["test"] = Manifest(["another", *m.ids[1:]], m.labels, m.digests)
    with pytest.raises(InvalidInputError, match="lacks 1 of the samples of 'test'"):
        control(deep, make_store(tmp_path / "other.zarr", values, manifests))


# ---------------------------------------------------------------- other selections


@pytest.mark.parametrize("scorer", ["random", "variance"])
def test_random_and_variance_selection_are_head2toe_with_another_scorer(store, scorer) -> None:
    method = Head2Toe(
        store, scorer=scorer, options=({},), fractions=(0.1, 0.5), refits=FEW, name=f"Selection, {scorer}"
    )
    result = cross_validate(method, store, ProtocolParameters(folds=2))
    assert result.method == f"Selection, {scorer}"
    assert len(result.points) == 2
    assert result.facts["features"] == int(127 * result.settings["fraction"])
    assert "support" not in result.facts
