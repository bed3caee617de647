"""Selection over a store equals the same problem in memory, is optimal over all features, and is kept."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import MultiTaskLasso

from pipeline.group_lasso import group_lasso
from pipeline.selection import SelectionParameters, read_selection, select_features
from pipeline.statistics import find_statistics
from pipeline.store_source import StoreSource
from store.errors import InvalidInputError

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
    ],
)
def test_parameters_that_do_not_fit_are_explained(store, parameters, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        select_features(store, SelectionParameters(**parameters))


def test_the_fraction_is_exact_where_floating_point_is_not() -> None:
    assert SelectionParameters(fraction=0.29).count(100) == 29
