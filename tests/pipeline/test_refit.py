"""The refit reads the selected columns only, normalises them anew, and stores the head it says it trained."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.normalization import fit_normalizer, renormalize
from pipeline.refit import RefitParameters, refit
from pipeline.selection import SelectionParameters, select_features
from store.errors import InvalidInputError


@pytest.mark.parametrize("normalization", ["unit_norm", "standardize", "none"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_refit_reads_only_the_selected_columns(store, normalization, optimizer) -> None:
    selection = select_features(store, SelectionParameters(normalization=normalization, keep=10))
    store.reads.reset()
    parameters = RefitParameters(optimizer=optimizer, **({"steps": 60} if optimizer == "adam" else {}))
    head = refit(
        store,
        selection.indices,
        features={"selection": selection.digest},
        normalization=normalization,
        parameters=parameters,
    )
    assert 0 < head.facts["bytes_read"] <= 10 * 2 * (90 + 37) + 4 * 127 * 5  # columns, and checksums per feature
    assert head.accuracy["test"] > 0.7
    assert head.coef.shape == (10, 3)


def test_a_stored_head_is_found(store) -> None:
    first = refit(store, np.arange(7), features={"layer": "stem"}, normalization="none")
    again = refit(store, np.arange(7), features={"layer": "stem"}, normalization="none")
    assert again.reused
    np.testing.assert_array_equal(first.coef, again.coef)
    named = RefitParameters(max_iterations=500, patience=15)
    assert refit(store, np.arange(7), features={"layer": "stem"}, normalization="none", parameters=named).reused
    other = RefitParameters(optimizer="adam", steps=2)
    assert not refit(store, np.arange(7), features={"layer": "stem"}, normalization="none", parameters=other).reused


def test_the_baseline_needs_no_pass_for_statistics(store) -> None:
    """Mean and deviation come from the columns themselves, which are in memory."""
    store.reads.reset()
    refit(store, store.layer_indices("pre_logits"), features={"layer": "pre_logits"}, normalization="standardize")
    assert store.reads.n_bytes < 0.25 * store.n_bytes


def test_unit_norm_is_taken_again_after_gathering_and_per_layer(store, values) -> None:
    indices = np.array([0, 3, 50, 60, 120])
    raw = store.columns("train", indices)
    x = fit_normalizer(store, indices, "unit_norm", raw)(raw)
    for part in ([0, 1], [2, 3], [4]):
        np.testing.assert_allclose(np.linalg.norm(x[:, part], axis=1), 1, rtol=1e-5)
    wide = values["train"][:, indices].astype(np.float64)
    np.testing.assert_allclose(x[:, :2], wide[:, :2] / np.linalg.norm(wide[:, :2], axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(raw, wide)


def test_standardize_has_the_moments_of_the_training_samples_and_leaves_constants_zero(store) -> None:
    raw = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32) * 5 + 100
    raw[:, 1] = 0.1
    normalize = fit_normalizer(store, np.arange(3), "standardize", raw[:20])
    x = normalize(raw)
    np.testing.assert_allclose(x[:20, [0, 2]].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x[:20, [0, 2]].std(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(x[:, 1], 0)
    assert abs(x[20:, 0].mean()) > 1e-3


def test_none_leaves_the_values_as_they_are(store) -> None:
    raw = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(fit_normalizer(store, np.arange(3), "none", raw)(raw), raw)


def test_zero_vectors_stay_zero(store) -> None:
    x = np.zeros((2, 3), np.float32)
    renormalize(store, np.array([0, 1, 2]), x)
    np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize(
    ("indices", "normalization", "message"),
    [
        ([], "none", "no columns are selected"),
        ([0, 127], "none", r"feature 127 does not exist in store .* of 127"),
        ([-1, 3], "none", "feature -1 does not exist"),
        ([0], "unitnorm", "normalization='unitnorm' is unknown; did you mean 'unit_norm'"),
    ],
)
def test_what_cannot_be_refitted_is_refused(store, indices, normalization, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        refit(store, np.array(indices), features={}, normalization=normalization)
