"""The compiled norms are the store's, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.norms import compiled_norms
from store.writer import PART_VALUES, layer_norms


@pytest.mark.slow
@settings(deadline=None)  # the first one compiles
@given(st.integers(0, 300), st.integers(1, 40), st.sampled_from(["float16", "float32"]), st.integers(0, 2**32 - 1))
@example(PART_VALUES // 8, 20, "float16", 0)  # several parts
def test_compiled_norms_are_those_of_the_store(n_features: int, n_samples: int, dtype: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = random.choice([1e-7, 1e-3, 1.0, 1e4], (n_features, 1))
    values = (random.uniform(-6, 6, (n_features, n_samples + 3)) * scales).astype(dtype)
    for part in (values, values[:, 3:]):
        np.testing.assert_array_equal(compiled_norms(part), layer_norms(part))


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_shows_in_its_samples_norm_alone(odd: float) -> None:
    values = np.full((50, 7), 60000, np.float16)
    values[31, 2] = odd
    assert np.flatnonzero(~np.isfinite(compiled_norms(values))).tolist() == [2]
