"""Selection over a store equals the same problem in memory, is optimal over all features, and is kept."""

from __future__ import annotations

import shutil

import numba
import numpy as np
import pytest
import torch
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all
from sklearn.feature_selection import f_classif
from sklearn.linear_model import MultiTaskLasso
from threadpoolctl import threadpool_limits

from pipeline.group_lasso import group_lasso
from pipeline.ranking import order_features
from pipeline.refit import refit
from pipeline.scorers import SCORERS
from pipeline.selection import SelectionParameters, read_selection, select_features, selection_features
from pipeline.statistics import find_statistics
from pipeline.store_source import StoreSource
from store import create_store, open_store
from store.errors import InvalidInputError
from store.spec import Manifest

NORMALIZATIONS = ("unit_norm", "standardize", "none")
LAYER_BOUNDS = [0, 7, 47, 111, 127]


def normalized(raw: np.ndarray, normalization: str) -> np.ndarray:
    """Return float64 normalised values, from section 6 of the design and nothing else."""
    x = raw.astype(np.float64)
    if normalization == "standardize":
        return (x - x.mean(0)) / x.std(0)
    if normalization == "unit_norm":
        parts = np.split(x, LAYER_BOUNDS[1:-1], axis=1)
        return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)
    return x


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_source_scores_and_fetches_as_in_memory(store, values, normalization) -> None:
    x = normalized(values["train"], normalization)
    rng = np.random.default_rng(0)
    residuals = rng.standard_normal((90, 3, 2))
    residuals -= residuals.mean(0)
    source = StoreSource(store, normalization)
    first = source.first_pass(residuals[:, :, 0])
    np.testing.assert_allclose(first.scores, np.linalg.norm(x.T @ residuals[:, :, 0], axis=1), rtol=1e-5)
    np.testing.assert_allclose(first.column_norms, np.linalg.norm(x - x.mean(0), axis=0), rtol=1e-5)
    expected = np.linalg.norm(np.einsum("np,nkl->pkl", x, residuals), axis=1)
    np.testing.assert_allclose(source.correlate(residuals), expected, rtol=1e-4)
    wanted = np.array([100, 3, 46, 47])
    np.testing.assert_allclose(source.columns(wanted), x[:, wanted], rtol=1e-5, atol=1e-6)
    assert source.passes == 2


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_solution_is_optimal_over_all_features(store, values, normalization) -> None:
    """KKT residual at most 1e-3 λ on every feature, computed here in float64 from the definition."""
    labels = store.labels("train")
    result = group_lasso(StoreSource(store, normalization), labels, penalty_ratio=0.2)
    x = normalized(values["train"], normalization)
    logits = x @ result.coef + result.intercept
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = x.T @ (np.eye(3)[labels] - p) / len(labels)
    penalty, norms = result.certificate.penalty, np.linalg.norm(result.coef, axis=1)
    active = norms > 0
    assert 0 < active.sum() < len(norms)
    inactive_violation = np.linalg.norm(gradient[~active], axis=1).max() - penalty
    direction = result.coef[active] / norms[active, None]
    active_violation = np.linalg.norm(gradient[active] - penalty * direction, axis=1).max()
    assert max(inactive_violation, active_violation) <= 1e-3 * penalty
    assert result.certificate.certified


def test_a_store_can_be_given_instead_of_an_array(store) -> None:
    labels = store.labels("train")
    result = group_lasso(store, labels, normalization="unit_norm", penalty_ratio=0.2)
    source = group_lasso(StoreSource(store, "unit_norm"), labels, penalty_ratio=0.2)
    np.testing.assert_array_equal(result.coef, source.coef)
    with pytest.raises(InvalidInputError, match="did you mean 'unit_norm'"):
        group_lasso(store, labels, normalization="unitnorm")


def test_squared_loss_over_a_store_agrees_with_scikit_learn(store, values) -> None:
    x = normalized(values["train"], "standardize")
    targets = np.eye(3)[store.labels("train")]
    result = group_lasso(
        StoreSource(store, "standardize"), targets, loss="squared", penalty_ratio=0.1, tol=1e-7, kkt_tol=1e-5
    )
    oracle = MultiTaskLasso(alpha=result.certificate.penalty, tol=1e-10, max_iter=100_000).fit(x, targets)

    def objective(coef: np.ndarray, intercept: np.ndarray) -> float:
        loss = ((targets - x @ coef - intercept) ** 2).sum() / (2 * len(x))
        return float(loss + result.certificate.penalty * np.linalg.norm(coef, axis=1).sum())

    theirs = objective(oracle.coef_.T, oracle.intercept_)
    assert objective(result.coef, result.intercept) == pytest.approx(theirs, rel=1e-6)
    np.testing.assert_array_equal(result.support, np.flatnonzero(np.linalg.norm(oracle.coef_, axis=0)))


def test_kept_features_are_the_most_relevant_in_order_with_ties_by_index(store) -> None:
    selection = select_features(store, SelectionParameters(fraction=0.2))
    assert len(selection.indices) == 25
    expected = sorted(range(store.n_features), key=lambda j: (-selection.relevance[j], j))[:25]
    assert list(selection.indices) == expected
    assert sum(selection.per_layer(store).values()) == 25


def test_a_stored_selection_is_found_and_another_fraction_reuses_its_ranking(store) -> None:
    first = select_features(store, SelectionParameters(fraction=0.2))
    again = select_features(store, SelectionParameters(fraction=0.2))
    assert again.reused
    assert again.digest == first.digest
    store.reads.reset()
    smaller = select_features(store, SelectionParameters(keep=4))
    assert store.reads.n_bytes == 0
    assert list(smaller.indices) == list(first.indices[:4])
    assert list(read_selection(store, smaller.digest[:8]).indices) == list(smaller.indices)


def test_defaults_and_their_explicit_values_are_the_same_selection(store) -> None:
    assert (
        select_features(store).digest
        == select_features(store, SelectionParameters(fraction=0.05, penalty_ratio=0.1)).digest
    )


def test_the_first_pass_of_a_standardized_selection_leaves_the_statistics(store) -> None:
    select_features(store, SelectionParameters(normalization="standardize"))
    assert find_statistics(store, "train") is not None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fraction": 0.001}, "fraction 0.001 of 127 features keeps none; give at least 0.0079"),
        ({"keep": 128}, "cannot keep 128 features: the store has 127"),
        ({"keep": 2, "fraction": 0.1}, "either fraction or keep"),
        ({"penalty": 1.0, "penalty_ratio": 0.1}, "either penalty or penalty_ratio"),
        ({"keep": 100, "offset": 28}, "cannot keep 100 features after an offset of 28: the store has 127"),
        ({"layer_mean": 0.5, "whole_layers": True}, "either layer_mean or whole_layers"),
        ({"scorer": "f_clasif"}, "scorer 'f_clasif' is unknown; did you mean 'f_classif'"),
        ({"scorer": "variance", "penalty": 0.1}, "penalty does not apply to scorer variance, only to group_lasso"),
        ({"steps": 5}, "steps does not apply to scorer group_lasso, only to adam; leave it out"),
        ({"scorer": "adam", "penalty_ratio": 0.1}, "penalty_ratio does not apply to scorer adam"),
    ],
)
def test_parameters_that_do_not_fit_are_explained(store, parameters, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        select_features(store, SelectionParameters(**parameters))


def test_the_fraction_is_exact_where_floating_point_is_not() -> None:
    assert SelectionParameters(fraction=0.29).count(100) == 29


# ---------------------------------------------------------------- scorers and ablations


@pytest.mark.parametrize("scorer", ["l1", "variance", "chi2", "f_classif", "random"])
def test_a_heuristic_is_stored_and_says_that_it_has_no_certificate(store, scorer) -> None:
    selection = select_features(store, SelectionParameters(scorer=scorer, keep=9))
    assert selection.certificate["note"] == f"no certificate: {scorer} is a heuristic"
    assert not selection.certificate["certified"]
    assert list(selection.indices) == sorted(range(127), key=lambda j: (-selection.relevance[j], j))[:9]
    assert (selection.support is None) == (scorer != "l1")
    assert select_features(store, SelectionParameters(scorer=scorer, keep=9)).reused


def test_per_feature_scores_are_of_raw_training_values_whatever_the_head_sees(store, values) -> None:
    standardized = select_features(store, SelectionParameters(scorer="f_classif"))
    expected = f_classif(values["train"].astype(np.float64), store.labels("train"))[0]
    np.testing.assert_allclose(standardized.relevance, expected, rtol=1e-9)
    store.reads.reset()
    unit = select_features(store, SelectionParameters(scorer="f_classif", normalization="unit_norm"))
    assert store.reads.n_bytes == 0, "the ranking is the same"
    assert unit.digest != standardized.digest
    assert (unit.normalization, standardized.normalization) == ("unit_norm", "standardize")


def test_only_parameters_that_matter_to_the_scorer_are_in_its_ranking() -> None:
    assert SelectionParameters(scorer="variance", normalization="none").ranking() == {
        "scorer": "variance",
        "split": "train",
    }
    adam = SelectionParameters(scorer="adam", steps=500).ranking()
    assert adam == SelectionParameters(scorer="adam", offset=3, keep=5, penalty=1e-4).ranking()
    assert adam != SelectionParameters(scorer="adam", steps=5000).ranking()
    assert SelectionParameters(penalty=0.2).ranking()["penalty_ratio"] is None


def test_the_same_ranking_serves_every_ablation(store) -> None:
    first = select_features(store, SelectionParameters(keep=10))
    store.reads.reset()
    skipped = select_features(store, SelectionParameters(keep=6, offset=4))
    assert list(skipped.indices) == list(first.indices[4:])
    layers = tuple(store.layers.values())
    for how in ({"layer_mean": 0.9}, {"whole_layers": True}):
        bent = select_features(store, SelectionParameters(keep=10, **how))
        order = order_features(first.relevance, layers, row_norms=True, **how)
        assert list(bent.indices) == list(order[:10])
        assert bent.digest != first.digest
    assert max(bent.per_layer(store).values()) == 10
    assert store.reads.n_bytes == 0


def test_labels_of_one_class_are_refused_by_every_scorer(tmp_path) -> None:
    writer = create_store(tmp_path / "one.zarr", {"a": 5}, {"train": 6}, block_samples=6)
    writer.write_block("train", 0, {"a": np.arange(30, dtype=np.float16).reshape(5, 6)})
    one = open_store(writer.uri)
    for scorer in SCORERS:
        with pytest.raises(InvalidInputError, match="has one class only, '0'; at least 2"):
            select_features(one, SelectionParameters(scorer=scorer, keep=1))


def test_a_selection_of_one_store_applies_to_another_of_the_same_layers(store, tmp_path) -> None:
    values, manifests = synthetic(seed=1)
    writer = create_store(tmp_path / "b.zarr", LAYERS, SPLITS, manifests=manifests, class_names=CLASSES)
    write_all(writer, values)
    other = open_store(writer.uri)
    made = select_features(store, SelectionParameters(keep=8))
    selection, features = selection_features(other, made.digest[:7], store)
    assert features == {"selection": made.digest, "store": store.fingerprint}
    head = refit(other, selection.indices, features=features, normalization=selection.normalization)
    np.testing.assert_array_equal(head.indices, np.sort(made.indices))
    own = refit(other, selection.indices, features={"selection": made.digest}, normalization=selection.normalization)
    assert own.digest != head.digest
    assert selection_features(store, made.digest)[1] == {"selection": made.digest}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            {**LAYERS, "blocks.0": 41},
            "layer 2 is 'blocks.0' of 40 features in the one and 'blocks.0' of 41 features in",
        ),
        (dict(list(LAYERS.items())[:3]), "layer 4 is 'pre_logits' of 16 features in the one and none in the other"),
    ],
)
def test_a_selection_does_not_apply_to_other_layers(store, tmp_path, layers, message) -> None:
    writer = create_store(tmp_path / "b.zarr", layers, {"train": 4}, block_samples=4)
    writer.write_block("train", 0, {name: np.ones((n, 4), np.float16) for name, n in layers.items()})
    made = select_features(store, SelectionParameters(scorer="variance"))
    with pytest.raises(InvalidInputError, match=message):
        selection_features(open_store(writer.uri), made.digest, store)


# ---------------------------------------------------------------- the same bits, however many threads


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory) -> str:
    """A store wide enough for matrix products to be divided among threads, with features equal to others."""
    rng = np.random.default_rng(0)
    n, layers = 240, {"a": 700, "b": 900, "c": 500}
    labels = rng.permutation(np.arange(n) % 4)
    latent = rng.standard_normal((12, n)) + 2 * np.eye(4)[labels].T.repeat(3, axis=0)
    manifest = Manifest([str(i) for i in range(n)], labels, [str(i) for i in range(n)])
    writer = create_store(
        tmp_path_factory.mktemp("wide") / "wide.zarr",
        layers,
        {"train": n},
        manifests={"train": manifest},
        class_names=("a", "b", "c", "d"),
        block_samples=100,
    )
    values = {
        name: (rng.standard_normal((m, 12)) @ latent + 3 * rng.standard_normal((m, n))).astype(np.float16)
        for name, m in layers.items()
    }
    values["b"][450:] = values["b"][:450]
    for block in writer.missing()["train"]:
        samples = slice(*writer.store.splits["train"].block_range(block))
        writer.write_block("train", block, {name: v[:, samples] for name, v in values.items()})
    return writer.uri


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standardize", "unit_norm"])
@pytest.mark.parametrize("scorer", ["group_lasso", "adam", "l1", "l2", "f_classif", "extra_trees"])
def test_relevance_has_the_same_bits_whatever_the_number_of_threads(
    wide_store, tmp_path, monkeypatch, scorer, normalization
) -> None:
    monkeypatch.setattr("pipeline.scorers.adam.SHARD", 256)
    monkeypatch.setattr("pipeline.scorers.columns.RANGE_BYTES", 2**17)
    options = {"adam": {"steps": 20, "penalty": 1e-3}, "l1": {"penalty_ratio": 0.4}, "l2": {"penalty": 0.1}}
    parameters = SelectionParameters(
        scorer=scorer, normalization=normalization, fraction=0.2, **options.get(scorer, {})
    )
    stored = set()
    before = torch.get_num_threads()
    for threads in (1, 2, 5, 1):
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        shutil.copytree(wide_store, copy)
        monkeypatch.setattr("os.sched_getaffinity", lambda process, n=threads: set(range(n)), raising=False)
        torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        with threadpool_limits(threads):
            selection = select_features(open_store(str(copy)), parameters)
        results = copy / "results" / "selections" / selection.digest
        stored.add(tuple((results / name / "c" / "0").read_bytes() for name in ("relevance", "indices")))
        assert len(selection.indices) == 420
    torch.set_num_threads(before)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert len(stored) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of how a cluster of processes ends
def test_per_feature_passes_run_on_a_cluster_with_the_same_result(wide_store, tmp_path, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed", reason="part of the dev extra")
    monkeypatch.setattr("pipeline.scorers.columns.RANGE_BYTES", 2**17)
    found = []
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        for number, address in enumerate((None, cluster.scheduler_address)):
            shutil.copytree(wide_store, tmp_path / f"{number}.zarr")
            store = open_store(str(tmp_path / f"{number}.zarr"))
            for scorer in ("variance", "chi2", "f_classif"):
                selection = select_features(store, SelectionParameters(scorer=scorer), dask_address=address)
                found.append((scorer, selection.certificate, selection.relevance.tobytes()))
    assert store.reads.n_bytes == 0, "workers read it, not this process"
    assert found[:3] == found[3:]
