"""Several stores of the same samples as one: matched by name, solved and refitted as the features side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.group_lasso import group_lasso
from pipeline.joined_store import JoinedStore, join_stores
from pipeline.refit import refit
from pipeline.selection import SelectionParameters, read_selection, select_features, selection_features
from pipeline.statistics import compute_statistics
from store import ActivationStore, create_store, open_store
from store.errors import InvalidInputError
from store.spec import Manifest


def copy(
    store: ActivationStore, path: Path, seed: int = 1, scale: float = 3.0, **changes: dict[str, list[str]]
) -> ActivationStore:
    """Store other features of the same samples, in another order and in blocks of another size."""
    rng = np.random.default_rng(seed)
    orders = {split.name: rng.permutation(split.n_samples) for split in store.splits.values()}
    manifests = {}
    for name, order in orders.items():
        ids = changes.get("ids", {}).get(name) or [store.ids(name)[i] for i in order]
        labels = store.labels(name)[order]
        if name in changes.get("labels", {}):
            labels = (labels + 1) % 3
        manifests[name] = Manifest(ids, labels, [f"of {i}" for i in ids])
    layers = {"stem": 30, "pre_logits": 12}
    sizes = {name: len(order) for name, order in orders.items()}
    writer = create_store(
        path, layers, sizes, manifests=manifests, class_names=store.class_names, block_samples=50, provenance={}
    )
    values = {
        name: {
            layer: (scale * (store.labels(name) == 1) + rng.standard_normal((n, sizes[name]))).astype(np.float16)
            for layer, n in layers.items()
        }
        for name in orders
    }
    for name, blocks in writer.missing().items():
        for block in blocks:
            part = orders[name][slice(*writer.store.splits[name].block_range(block))]
            writer.write_block(name, block, {layer: v[:, part] for layer, v in values[name].items()})
    return open_store(writer.uri)


@pytest.fixture
def other(store: ActivationStore, tmp_path: Path) -> ActivationStore:
    return copy(store, tmp_path / "other.zarr")


def side_by_side(store: ActivationStore, other: ActivationStore, split: str = "train") -> np.ndarray:
    place = {name: row for row, name in enumerate(other.ids(split))}
    rows = [place[name] for name in store.ids(split)]
    return np.hstack(
        [store.columns(split, np.arange(store.n_features)), other.columns(split, np.arange(other.n_features))[rows]]
    )


def test_features_of_two_stores_are_solved_as_if_they_were_one_array(store, other) -> None:
    labels = store.labels("train")
    joined = group_lasso([store, other], labels, penalty_ratio=0.2, tol=1e-7, kkt_tol=1e-5)
    assert joined.certificate.certified
    expected = group_lasso(side_by_side(store, other), labels, penalty_ratio=0.2, tol=1e-7, kkt_tol=1e-5)
    assert joined.support.tolist() == expected.support.tolist()
    assert joined.support.min() < store.n_features <= joined.support.max()
    np.testing.assert_allclose(joined.coef, expected.coef, atol=1e-4)
    assert joined.certificate.passes == 2
    np.testing.assert_array_equal(group_lasso([store, other], penalty_ratio=0.2).classes, [0, 1, 2])


@pytest.mark.parametrize("normalization", ["standardize", "unit_norm"])
def test_each_store_is_normalised_by_its_own_layers_and_statistics(store, other, normalization) -> None:
    joined = group_lasso([store, other], normalization=normalization, penalty_ratio=0.3)
    parts = [(s, np.arange(s.n_features)) for s in (store, other)]
    x = side_by_side(store, other).astype(np.float64)
    start = 0
    for s, _ in parts:
        for layer in s.layers.values():
            part = x[:, start + layer.offset : start + layer.offset + layer.n_features]
            if normalization == "standardize":
                part -= part.mean(0)
                part /= part.std(0)
            else:
                part /= np.linalg.norm(part, axis=1, keepdims=True)
        start += s.n_features
    plain = group_lasso(x, store.labels("train"), penalty_ratio=0.3)
    assert joined.support.tolist() == plain.support.tolist()
    np.testing.assert_allclose(joined.coef, plain.coef, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("normalization", ["standardize", "unit_norm", "none"])
def test_a_selection_and_a_head_of_joined_stores_lie_beside_the_first_and_name_both(
    store, other, normalization
) -> None:
    joined = join_stores([store, other])
    chosen = select_features(joined, SelectionParameters(keep=20, normalization=normalization, penalty_ratio=0.2))
    counts = chosen.per_layer(joined)
    assert list(counts) == [f"1:{name}" for name in store.layers] + ["2:stem", "2:pre_logits"]
    assert sum(counts.values()) == 20
    assert counts["2:stem"] > 0
    again, features = selection_features(join_stores([open_store(store.uri), other]), chosen.digest)
    assert again.indices.tolist() == chosen.indices.tolist()
    head = refit(joined, chosen.indices, features=features, normalization=normalization)
    x = side_by_side(store, other, "test")[:, head.indices].astype(np.float64)
    if normalization == "standardize":
        train = side_by_side(store, other)[:, head.indices].astype(np.float64)
        x = (x - train.mean(0)) / train.std(0)
    elif normalization == "unit_norm":
        owner = np.searchsorted([layer.offset for layer in joined.layers.values()], head.indices, side="right")
        for layer in np.unique(owner):
            x[:, owner == layer] /= np.linalg.norm(x[:, owner == layer], axis=1, keepdims=True)
    predicted = (x @ head.coef + head.intercept).argmax(1)
    assert head.accuracy["test"] == pytest.approx((predicted == store.labels("test")).mean(), abs=1e-9)
    assert head.accuracy["test"] > 0.7


def test_a_joined_selection_is_never_taken_for_one_of_the_store_alone(store, other) -> None:
    joined = join_stores([store, other])
    alone = select_features(store, SelectionParameters(keep=5))
    both = select_features(joined, SelectionParameters(keep=5))
    assert not both.reused
    assert both.digest != alone.digest
    assert len(both.relevance) == store.n_features + other.n_features
    assert len(select_features(store, SelectionParameters(keep=6)).relevance) == store.n_features
    assert select_features(joined, SelectionParameters(keep=6)).relevance.tolist() == both.relevance.tolist()
    with pytest.raises(InvalidInputError, match=f"{store.fingerprint}, {other.fingerprint}.*--join"):
        read_selection(store, both.digest)
    with pytest.raises(InvalidInputError, match="this store alone"):
        read_selection(joined, alone.digest)


def test_columns_and_statistics_of_a_part_of_the_samples(store, other) -> None:
    joined = join_stores([store, other])
    x = side_by_side(store, other)
    wanted = np.array([150, 3, 127, 168])
    np.testing.assert_array_equal(joined.columns("train", wanted, slice(10, 20)), x[10:20][:, wanted])
    np.testing.assert_array_equal(joined.columns("train", [1], layer="2:pre_logits"), x[:, [127 + 30 + 1]])
    assert joined.columns("train", wanted, slice(5, 5)).shape == (0, 4)
    with pytest.raises(IndexError, match="169 is out of range for 169"):
        joined.columns("train", [169])
    np.testing.assert_allclose(compute_statistics(joined).mean, x.astype(np.float64).mean(0), rtol=1e-6)
    assert joined.norms("train").shape == (6, 90)
    np.testing.assert_allclose(joined.norms("train")[4], np.linalg.norm(x[:, 127:157], axis=1), rtol=1e-3)


def test_samples_that_do_not_match_are_named(store, tmp_path) -> None:
    ids = store.ids("train")
    renamed = copy(store, tmp_path / "other.zarr", ids={"train": ["stranger", *ids[1:]]})
    with pytest.raises(InvalidInputError, match=rf"other.zarr' lacks 1 of the samples of 'train' in .*: '{ids[0]}';"):
        group_lasso([store, renamed])
    with pytest.raises(InvalidInputError, match=r"made.zarr' lacks 1 of the samples .*: 'stranger';"):
        group_lasso([renamed, store])
    relabelled = copy(store, tmp_path / "d.zarr", labels={"train": []})
    with pytest.raises(InvalidInputError, match=r"is '\w+' in store .* but '\w+' in .*90 samples differ"):
        group_lasso([store, relabelled])


def test_stores_that_cannot_be_joined_are_refused(store, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match="given twice"):
        JoinedStore([store, store])
    writer = create_store(tmp_path / "short.zarr", {"a": 2}, {"train": 3})
    writer.write_block("train", 0, {"a": np.ones((2, 3), np.float16)})
    with pytest.raises(InvalidInputError, match=r"has the splits train 90, test 37, but .* has train 3"):
        group_lasso([store, open_store(writer.uri)])
    with pytest.raises(InvalidInputError, match="no store is given"):
        join_stores([])
