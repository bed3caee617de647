"""Results lie beside the activations, immutable, each under a digest of its inputs."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from store.errors import StoreNotFoundError
from store.results import find_result, list_results, read_result, result_digest, write_result


def test_a_result_is_found_by_its_inputs_and_reads_back_equal(store) -> None:
    inputs = {"ranking": {"penalty": 0.1}, "keep": 3}
    assert find_result(store, "selections", inputs) is None
    indices = np.array([5, 1, 2])
    written = write_result(store, "selections", inputs, {"indices": (indices, ("rank",))}, {"seconds": 1.5})
    found = find_result(store, "selections", inputs)
    assert found is not None
    assert found.digest == written.digest == result_digest(store, "selections", inputs)
    np.testing.assert_array_equal(found.arrays["indices"], indices)
    assert found.facts == {"seconds": 1.5}
    plain = zarr.open_group(f"{store.uri}/results/selections/{found.digest}", mode="r")
    np.testing.assert_array_equal(plain["indices"][:], indices)
    assert plain.attrs["store"] == store.fingerprint


def test_zeros_are_stored_and_read_as_zeros(store) -> None:
    write_result(store, "heads", {"a": 1}, {"coef": (np.zeros((3, 2)), ("feature", "class"))}, {})
    found = find_result(store, "heads", {"a": 1})
    assert found is not None
    np.testing.assert_array_equal(found.arrays["coef"], np.zeros((3, 2)))


def test_the_first_of_several_writers_wins(store) -> None:
    for seconds in (1.0, 2.0):
        write_result(store, "heads", {"a": 1}, {"coef": (np.ones(2), ("class",))}, {"seconds": seconds})
    assert len(list_results(store, "heads")) == 1
    found = find_result(store, "heads", {"a": 1})
    assert found is not None
    assert found.facts["seconds"] == 1.0


def test_a_result_stays_whole_when_another_writer_gets_other_last_bits(store) -> None:
    for value in (1.0, np.nextafter(1.0, 2.0)):
        arrays = {"coef": (np.full(2, value), ("class",)), "bias": (np.zeros(2), ("class",))}
        write_result(store, "heads", {"a": 1}, arrays, {"value": value})
    found = find_result(store, "heads", {"a": 1})
    assert found is not None
    np.testing.assert_array_equal(found.arrays["coef"], np.full(2, found.facts["value"]))


def test_a_unique_beginning_of_a_digest_is_enough_and_an_unknown_one_is_explained(store) -> None:
    with pytest.raises(StoreNotFoundError, match=r"selection 'abc' does not exist.*no selections yet"):
        read_result(store, "selections", "abc")
    written = write_result(store, "heads", {"a": 1}, {}, {})
    assert read_result(store, "heads", written.digest[:6]).digest == written.digest
    with pytest.raises(StoreNotFoundError, match=written.digest):
        read_result(store, "heads", "zzz")
