"""A fold's samples are all that a fold learns from: statistics, scores, columns and heads of a subset are its own."""

from __future__ import annotations

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from pipeline.group_lasso import group_lasso
from pipeline.joined_store import join_stores
from pipeline.layer_view import LayerView, of_target_size, target_sizes
from pipeline.methods import Head2Toe, Samples
from pipeline.scorers import SCORERS, Task
from pipeline.selection import SelectionParameters, read_selection, select_features
from pipeline.statistics import find_statistics
from pipeline.store_source import StoreSource, open_source
from store import create_store, open_store
from store.errors import InvalidInputError
from store.spec import Manifest

ROWS = np.array([0, 1, 5, 33, 34, 40, 63, 64, 70, 71, 88, 89])
BOUNDS = [0, 7, 47, 111, 127]
TEST = Samples("test", np.arange(SPLITS["test"]))


def made(folder, name: str, values: dict, layers: dict[str, int] = LAYERS):
    """Write a store of the samples' labels with other values."""
    writer = create_store(
        folder / name,
        layers,
        SPLITS,
        manifests=synthetic()[1],
        class_names=CLASSES,
        block_samples=32,
        provenance={"embedding": list(layers)[-1]},
        identity={"name": name},
    )
    write_all(writer, values)
    return open_store(folder / name)


@pytest.mark.parametrize("normalization", ["unit_norm", "standardize", "none"])
@pytest.mark.parametrize("rows", [ROWS, np.arange(64, 90)])
def test_a_subset_is_scored_and_fetched_as_in_memory(store, values, normalization, rows) -> None:
    x = values["train"].astype(np.float64)
    if normalization == "unit_norm":
        parts = np.split(x, BOUNDS[1:-1], axis=1)
        x = np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)
    x = x[rows]
    if normalization == "standardize":
        x = (x - x.mean(0)) / x.std(0)
    residuals = np.random.default_rng(0).standard_normal((len(rows), 3, 2))
    residuals -= residuals.mean(0)
    source = StoreSource(store, normalization, samples=rows)
    first = source.first_pass(residuals[:, :, 0])
    assert source.n_samples == len(rows)
    np.testing.assert_allclose(first.scores, np.linalg.norm(x.T @ residuals[:, :, 0], axis=1), rtol=1e-4)
    np.testing.assert_allclose(first.column_norms, np.linalg.norm(x - x.mean(0), axis=0), rtol=1e-4)
    expected = np.linalg.norm(np.einsum("np,nkl->pkl", x, residuals), axis=1)
    np.testing.assert_allclose(source.correlate(residuals), expected, rtol=1e-4)
    wanted = np.array([100, 3, 46, 47])
    np.testing.assert_allclose(source.columns(wanted), x[:, wanted], rtol=1e-4, atol=1e-6)
    assert find_statistics(store, "train") is None


def test_a_path_on_a_subset_is_that_of_an_array(store, values) -> None:
    rows = np.flatnonzero(np.arange(90) % 5)
    labels = store.labels("train")[rows]
    ours = group_lasso(StoreSource(store, "standardize", samples=rows), labels, penalty_ratio=[0.5, 0.2])
    array = group_lasso(
        values["train"][rows].astype(np.float32), labels, normalization="standardize", penalty_ratio=[0.5, 0.2]
    )
    np.testing.assert_allclose(ours.relevance, array.relevance, atol=1e-3)


def test_a_subset_of_joined_stores_is_that_of_the_first(store, tmp_path, values) -> None:
    other, manifests = synthetic(3)
    turned = np.random.default_rng(1).permutation(90)
    first = manifests["train"]
    manifests["train"] = Manifest([first.ids[i] for i in turned], synthetic()[1]["train"].labels[turned], first.digests)
    manifests["test"] = synthetic()[1]["test"]
    writer = create_store(tmp_path / "b", LAYERS, SPLITS, manifests=manifests, class_names=CLASSES, block_samples=32)
    write_all(writer, other)
    joined = join_stores([store, open_store(tmp_path / "b")])
    with open_source(joined, "none", samples=ROWS) as source:
        found = source.columns(np.array([5, 127 + 9]))
        norms = source.first_pass(np.zeros((len(ROWS), 1))).column_norms
    np.testing.assert_array_equal(found, joined.columns("train", [5, 127 + 9])[ROWS])
    np.testing.assert_allclose(norms[[5, 136]], np.linalg.norm(found - found.mean(0), axis=0), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["group_lasso", "variance", "f_classif", "chi2"])
def test_other_samples_have_no_influence_on_a_ranking(store, tmp_path, scorer) -> None:
    rows = np.flatnonzero(np.arange(90) % 5)
    noisy, _ = synthetic()
    for layer in noisy["train"].values():
        layer[:, ::5] = 17 * layer[:, ::5] + 40
    changed = made(tmp_path, "changed", noisy)
    found = []
    for one in (store, changed):
        with open_source(one, "standardize" if scorer == "group_lasso" else "none", samples=rows) as source:
            options = {"penalty_ratio": 0.3, "penalty": None, "tolerance": 1e-4} if scorer == "group_lasso" else {}
            found.append(SCORERS[scorer].score(Task(source, one.labels("train")[rows], options, 2**30, None))[0])
    np.testing.assert_array_equal(*found)
    assert np.ptp(found[0]) > 0


@pytest.mark.parametrize("normalization", ["unit_norm", pytest.param("standardize", marks=pytest.mark.slow)])
def test_validation_samples_cannot_leak_into_what_their_fold_learns(store, tmp_path, normalization) -> None:
    """Whatever the held-out images were, the fold's selection and head say the same of other samples."""
    train = Samples("train", np.flatnonzero(np.arange(90) % 5))
    noisy, _ = synthetic()
    for layer in noisy["train"].values():
        layer[:, ::5] = 17 * layer[:, ::5] + 40
    learnt, _ = synthetic()
    for layer in learnt["train"].values():
        layer[:, 1::5] = 17 * layer[:, 1::5] + 40

    def learn(one) -> list:
        method = Head2Toe(one, fractions=(0.05, 0.3), normalizations=(normalization,))
        return list(method.fit(train, TEST, method.grid[0], seed=0))

    original, same, other = (learn(one) for one in (store, made(tmp_path, "a", noisy), made(tmp_path, "b", learnt)))
    for before, after in zip(original, same, strict=True):
        np.testing.assert_array_equal(before.labels, after.labels)
        assert before.facts == after.facts
    assert [p.facts for p in original] != [p.facts for p in other]  # the training samples do matter


def sized(folder):
    """Return a store of the layers at two target sizes."""
    values, _ = synthetic()
    layers = {f"{name}@{size}": n // size for size in (1, 2) for name, n in LAYERS.items()}
    cut = {split: {f"{k}@{s}": v[: len(v) // s] for s in (1, 2) for k, v in ls.items()} for split, ls in values.items()}
    return made(folder, "sized", cut, layers)


@pytest.mark.slow
def test_layers_of_one_target_size_are_a_store_of_their_own(tmp_path, store) -> None:
    both = sized(tmp_path)
    assert target_sizes(both) == (1, 2)
    assert target_sizes(store) == ()
    one = of_target_size(both, 1)
    assert (one.n_features, next(iter(one.layers))) == (127, "stem@1")
    assert one.fingerprint not in (both.fingerprint, of_target_size(both, 2).fingerprint)
    np.testing.assert_array_equal(one.columns("train", [0, 126, -1]), store.columns("train", [0, 126, -1]))
    np.testing.assert_array_equal(one.columns("test", [3], layer="stem@1"), store.columns("test", [3], layer="stem"))
    np.testing.assert_array_equal(one.norms("test"), store.norms("test"))
    labels = store.labels("train")
    for normalization in ("unit_norm", "standardize"):
        ours = group_lasso(StoreSource(one, normalization), labels, penalty_ratio=0.2)
        theirs = group_lasso(StoreSource(store, normalization), labels, penalty_ratio=0.2)
        np.testing.assert_array_equal(ours.relevance, theirs.relevance)
    assert of_target_size(both, None) is both


@pytest.mark.parametrize("scorer", ["group_lasso", "variance"])
def test_a_selection_of_one_target_size_is_that_of_its_layers_in_the_whole_store(tmp_path, scorer) -> None:
    both = sized(tmp_path)
    for size in (1, 2):
        view = of_target_size(both, size)
        alone = select_features(view, SelectionParameters(scorer=scorer, fraction=0.1))
        found = select_features(both, SelectionParameters(scorer=scorer, fraction=0.1, target_size=size))
        np.testing.assert_array_equal(found.indices, view.indices[alone.indices])
        np.testing.assert_array_equal(found.relevance[view.indices], alone.relevance)
        assert np.isnan(found.relevance).sum() == both.n_features - view.n_features
        more = select_features(both, SelectionParameters(scorer=scorer, keep=20, target_size=size))
        np.testing.assert_array_equal(more.indices[: len(found.indices)], found.indices)
        assert read_selection(both, found.digest).indices.tolist() == found.indices.tolist()
    everything = select_features(both, SelectionParameters(scorer=scorer, fraction=0.1))
    assert not np.isnan(everything.relevance).any()
    with pytest.raises(
        InvalidInputError, match="does not hold target size 4 beside others; valid choices are '1', '2'"
    ):
        select_features(both, SelectionParameters(target_size=4))


def test_selections_of_target_sizes_are_not_taken_for_each_other(tmp_path) -> None:
    both = sized(tmp_path)
    for size in (1, 2, 1):
        view = of_target_size(both, size)
        for keep in (3, 5):
            found = select_features(view, SelectionParameters(keep=keep, scorer="variance"))
            assert len(found.relevance) == view.n_features
    with pytest.raises(InvalidInputError, match="was made on other layers"):
        read_selection(both, found.digest)


def test_target_sizes_and_layers_that_are_not_there_are_refused(tmp_path, store) -> None:
    with pytest.raises(
        InvalidInputError, match=r"does not hold target size 7 beside others; valid choices are '1', '2'"
    ):
        of_target_size(sized(tmp_path), 7)
    with pytest.raises(InvalidInputError, match="it has one size only: leave target_size out"):
        of_target_size(store, 512)
    with pytest.raises(InvalidInputError, match="no layer is chosen"):
        LayerView(store, [])
    with pytest.raises(InvalidInputError, match="has no layer 'stam'; did you mean 'stem'"):
        LayerView(store, ["stam"])
    with pytest.raises(InvalidInputError, match="workers of a cluster see whole stores only"):
        group_lasso(LayerView(store, ["stem"]), dask_address="tcp://nowhere:1")
    with pytest.raises(InvalidInputError, match="layers of joined stores cannot be chosen"):
        LayerView(join_stores([store, sized(tmp_path / "other")]), ["1:stem"])
