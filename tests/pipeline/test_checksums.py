"""The compiled checksums are the store's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checksums import checksum_rows
from store import layout


@pytest.mark.slow
@given(n_rows=st.integers(0, 5), n_bytes=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_compiled_checksums_are_those_of_the_store(n_rows: int, n_bytes: int, seed: int) -> None:
    wide = np.random.default_rng(seed).integers(0, 256, (n_rows, n_bytes + 3), np.uint8)
    for rows in (wide[:, :n_bytes], np.ascontiguousarray(wide[:, 3:])):
        np.testing.assert_array_equal(checksum_rows(rows), layout.checksum_rows(rows))
