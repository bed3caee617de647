"""A store gives back what was written, to this code and to any other reader of Zarr, or says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from store import ActivationStore, create_store, open_store
from store.errors import (
    ConflictError,
    DamagedStoreError,
    FormatVersionError,
    IncompleteStoreError,
    InvalidInputError,
    NotFiniteError,
    StoreNotFoundError,
)
from store.layout import ChunkRef

P = sum(LAYERS.values())


def test_columns_equal_what_was_written_in_any_order_with_duplicates_and_negatives(store, values) -> None:
    wanted = [5, P - 1, 6, 7, 5, -1, 60, 0, 46, 47]
    got = store.columns("train", wanted)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values["train"][:, wanted].astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_columns_agree_with_numpy_indexing(data, tmp_path_factory) -> None:
    n, block = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 45))
    layers = data.draw(st.dictionaries(st.sampled_from(["a", "b.c", "d-1", "e@8"]), st.integers(1, 9), min_size=1))
    p = sum(layers.values())
    full = np.arange(p * n, dtype=np.float32).reshape(p, n)
    uri = tmp_path_factory.mktemp("s") / "x.zarr"
    writer = create_store(uri, layers, {"train": n}, dtype="float32", block_samples=block)
    starts = dict(zip(layers, np.cumsum([0, *layers.values()])[:-1], strict=True))
    for b in writer.missing()["train"]:
        s = slice(*writer.store.splits["train"].block_range(b))
        writer.write_block("train", b, {k: full[starts[k] : starts[k] + v, s] for k, v in layers.items()})
    indices = data.draw(st.lists(st.integers(-p, p - 1), max_size=12))
    a = data.draw(st.integers(0, n))
    samples = slice(a, data.draw(st.integers(a, n)))
    got = open_store(uri).columns("train", indices, samples)
    np.testing.assert_array_equal(got, full.T[samples][:, np.array(indices, dtype=int)])


def test_columns_of_a_layer_count_its_own_features(store, values) -> None:
    got = store.columns("test", [0, 63, -1], slice(3, 20), layer="blocks.1")
    np.testing.assert_array_equal(got, values["test"][3:20, [47, 110, 110]])
    small = np.array([3], np.uint8)
    np.testing.assert_array_equal(store.columns("test", small), store.columns("test", [3]))
    with pytest.raises(IndexError, match="64 is out of range for 64 features"):
        store.columns("test", [64], layer="blocks.1")
    with pytest.raises(InvalidInputError, match=r"no layer 'blocks.2'; did you mean"):
        store.columns("test", [0], layer="blocks.2")


def test_columns_refuse_what_numpy_refuses(store) -> None:
    with pytest.raises(IndexError, match=f"{P} is out of range"):
        store.columns("train", [0, P])
    with pytest.raises(InvalidInputError, match="float64"):
        store.columns("train", [0.5])
    with pytest.raises(InvalidInputError, match=r"no split 'tran'; did you mean 'train'\?"):
        store.columns("tran", [0])


def test_columns_read_only_the_bytes_of_the_selected_features(store) -> None:
    store.reads.reset()
    store.columns("train", [3, 50, 100])
    checksums = 3 * 3 * 4  # one of four bytes per feature and block, by which each column is verified
    assert store.reads.n_bytes == 3 * 90 * 2 + checksums


def test_plain_zarr_and_xarray_read_the_same_numbers_without_this_code(store, values) -> None:
    group = zarr.open_group(store.uri, mode="r")
    tree = xr.open_datatree(store.uri, engine="zarr")
    for split in SPLITS:
        plain = np.concatenate([group[f"{split}/layers/{name}"][:] for name in LAYERS]).T
        lazy = np.concatenate([tree[f"{split}/layers/{name}"].values for name in LAYERS]).T
        ours = store.columns(split, np.arange(P))
        np.testing.assert_array_equal(plain.astype(np.float32), ours)
        np.testing.assert_array_equal(lazy.astype(np.float32), ours)
        np.testing.assert_array_equal(plain, values[split])
        assert list(group[f"{split}/ids"][:]) == store.ids(split)
        np.testing.assert_array_equal(group[f"{split}/labels"][:], store.labels(split))
        np.testing.assert_allclose(group[f"{split}/norms"][:], store.norms(split))


def test_dask_and_xarray_views_are_lazy_and_equal(store, values) -> None:
    store.reads.reset()
    tree, lazy = store.xarray(), store.dask("test", "blocks.0")
    assert store.reads.n_bytes == 0
    np.testing.assert_array_equal(lazy.compute().T, values["test"][:, 7:47])
    np.testing.assert_array_equal(tree["train"]["stem"].values.T, values["train"][:, :7])
    assert list(tree["test"]["id"].values) == store.ids("test")


def test_norms_are_those_of_the_stored_values(store, values) -> None:
    part = values["train"][:, 7:47].astype(np.float64)
    np.testing.assert_allclose(store.norms("train")[1], np.linalg.norm(part, axis=1), rtol=1e-6)


def test_a_store_travels_by_pickle(store) -> None:
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.columns("train", [1]), store.columns("train", [1]))


def test_html_shows_the_layers_and_escapes_names(store) -> None:
    page = store._repr_html_()
    assert "blocks.1" in page
    store.provenance["data"] = "<script>"
    del store.__dict__["summary"]
    assert "<script>" not in store._repr_html_()


def test_an_incomplete_store_is_refused_unless_asked_for(tmp_path: Path) -> None:
    values, manifests = synthetic()
    writer = create_store(tmp_path / "s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    first = {k: v[:, :30] for k, v in values["train"].items()}
    writer.write_block("train", 0, first)
    with pytest.raises(IncompleteStoreError, match="train: 1–2 of 3; test: 0–1 of 2"):
        open_store(tmp_path / "s.zarr")
    partial = open_store(tmp_path / "s.zarr", allow_incomplete=True)
    np.testing.assert_array_equal(partial.columns("train", [0], slice(0, 30))[:, 0], first["stem"][0])
    with pytest.raises(IncompleteStoreError):
        partial.columns("train", [0])
    # A plain reader sees NaN, not zeros, where nothing was written.
    assert np.isnan(zarr.open_group(partial.uri, mode="r")["test/layers/stem"][:]).all()


def test_resuming_writes_only_what_is_missing(tmp_path: Path) -> None:
    values, manifests = synthetic()
    arguments = {"manifests": manifests, "block_samples": 32}
    writer = create_store(tmp_path / "s.zarr", LAYERS, SPLITS, **arguments)
    writer.write_block("train", 1, {k: v[:, 30:60] for k, v in values["train"].items()})
    again = create_store(tmp_path / "s.zarr", LAYERS, SPLITS, **arguments)
    assert again.missing() == {"train": [0, 2], "test": [0, 1]}
    write_all(again, values)
    assert again.missing() == {}


def test_a_store_that_another_process_makes_between_looking_and_writing_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_and_be_overtaken(*arguments, **options) -> ActivationStore:
        monkeypatch.setattr("store.writer.open_store", open_store)
        try:
            return open_store(*arguments, **options)
        finally:
            create_store(tmp_path / "s.zarr", LAYERS, SPLITS, provenance={"by": "the other"})

    monkeypatch.setattr("store.writer.open_store", open_and_be_overtaken)
    writer = create_store(tmp_path / "s.zarr", LAYERS, SPLITS)
    assert writer.store.provenance == {"by": "the other"}
    assert set(writer.missing()) == set(SPLITS)


def test_committing_the_same_block_twice_is_harmless_and_other_bytes_are_refused(tmp_path: Path) -> None:
    values, manifests = synthetic()
    writer = create_store(tmp_path / "s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    block = {k: v[:, :30] for k, v in values["train"].items()}
    writer.write_block("train", 0, block)
    writer.write_block("train", 0, block)
    with pytest.raises(ConflictError, match="block 0 of split 'train'"):
        writer.write_block("train", 0, block | {"stem": block["stem"] + 1})
    kept = open_store(writer.uri, allow_incomplete=True).columns("train", [0], slice(0, 30))
    np.testing.assert_array_equal(kept[:, 0], block["stem"][0])


def test_provenance_is_not_identity(tmp_path: Path) -> None:
    _, manifests = synthetic()
    notes = [{}, {"device": "cuda"}, {"batch_size": 7, "versions": {"torch": "9"}}, {"weights": "file"}]
    stores = [
        create_store(tmp_path / f"{i}.zarr", LAYERS, SPLITS, manifests=manifests, provenance=p, block_samples=9 + i)
        for i, p in enumerate(notes)
    ]
    assert len({writer.store.fingerprint for writer in stores}) == 1


def test_another_store_at_the_same_place_is_refused(store) -> None:
    with pytest.raises(ConflictError, match="already holds another store"):
        create_store(store.uri, {"other": 3}, {"train": 2})


@pytest.mark.parametrize(("bad", "message"), [(np.inf, "overflow float16 in layer 'stem'"), (np.nan, "gives NaN")])
def test_values_that_are_not_finite_are_refused_by_layer_and_nothing_is_committed(tmp_path, bad, message) -> None:
    values, manifests = synthetic()
    writer = create_store(tmp_path / "s.zarr", LAYERS, SPLITS, manifests=manifests, block_samples=32)
    block = {k: v[:, :30].copy() for k, v in values["train"].items()}
    block["stem"][3, 17] = bad
    with pytest.raises(NotFiniteError, match=f"{message}.*sample 17|{message}"):
        writer.write_block("train", 0, block)
    assert writer.missing()["train"] == [0, 1, 2]


def test_a_flipped_bit_is_never_returned_by_a_full_read(store) -> None:
    ref = ChunkRef("train", "blocks.0", 0, 1)
    path = Path(store.uri) / ref.key
    raw = bytearray(path.read_bytes())
    raw[100] ^= 4
    path.write_bytes(raw)
    with pytest.raises(DamagedStoreError, match=r"train/layers/blocks.0/c/0/1.*checksum"):
        open_store(store.uri).read_chunk(ref)


def test_a_flipped_bit_is_never_returned_by_columns_and_undamaged_ones_still_are(store, values) -> None:
    path = Path(store.uri) / ChunkRef("train", "blocks.0", 0, 1).key
    raw = bytearray(path.read_bytes())
    raw[5 * 30 * 2 + 7] ^= 16  # feature 5 of the layer; blocks hold 30 samples of 2 bytes
    path.write_bytes(raw)
    damaged = open_store(store.uri)
    with pytest.raises(DamagedStoreError, match=r"train/layers/blocks.0/c/0/1.*checksums per feature"):
        damaged.columns("train", [7 + 4, 7 + 5])
    np.testing.assert_array_equal(damaged.columns("train", [7 + 4])[:, 0], values["train"][:, 7 + 4])


def test_absent_short_and_swapped_chunks_are_damage_not_data(store) -> None:
    first, second = (Path(store.uri) / ChunkRef("train", "stem", 0, b).key for b in (0, 1))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(DamagedStoreError, match="checksum"):
        open_store(store.uri).read_chunk(ChunkRef("train", "stem", 0, 0))
    first.write_bytes(a[:-7])
    with pytest.raises(DamagedStoreError, match="bytes instead of"):
        open_store(store.uri).read_chunk(ChunkRef("train", "stem", 0, 0))
    first.unlink()
    with pytest.raises(DamagedStoreError, match="is missing"):
        open_store(store.uri).columns("train", [0])


def test_a_damaged_commit_record_is_named(store) -> None:
    record = Path(store.uri) / "blocks/test/000001.json"
    record.write_text(record.read_text().replace('"start":', '"start": 1'))
    with pytest.raises(DamagedStoreError, match="record of block 1 of split 'test'"):
        open_store(store.uri).record("test", 1)


def rewrite_attributes(store: ActivationStore, **changes: object) -> None:
    path = Path(store.uri) / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"] |= changes
    path.write_text(json.dumps(document))


def test_another_format_version_is_refused_by_number(store) -> None:
    rewrite_attributes(store, format_version=2)
    with pytest.raises(FormatVersionError, match="format version 2; this release reads version 1"):
        open_store(store.uri)


def test_metadata_that_does_not_have_its_fingerprint_is_damage(store) -> None:
    rewrite_attributes(store, fingerprint="0" * 20)
    with pytest.raises(DamagedStoreError, match="metadata"):
        open_store(store.uri)
    (Path(store.uri) / "zarr.json").write_text("{")
    with pytest.raises(DamagedStoreError, match="metadata"):
        open_store(store.uri)


def test_nothing_there_and_other_zarr_groups_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no activation store at"):
        open_store(tmp_path / "nothing")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreNotFoundError, match="not an activation store"):
        open_store(tmp_path / "other.zarr")


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "results", "x" * 201])
def test_names_that_cannot_be_part_of_a_path_are_refused(tmp_path, name) -> None:
    with pytest.raises(InvalidInputError, match="name"):
        create_store(tmp_path / "s.zarr", {name: 3}, {"train": 2})


def test_stores_in_memory_behave_like_local_ones(values) -> None:
    made, manifests = synthetic()
    uri = "memory://tests/behaviour.zarr"
    writer = create_store(uri, LAYERS, SPLITS, manifests=manifests, class_names=CLASSES, block_samples=32)
    write_all(writer, made)
    opened = open_store(uri)
    wanted = [5, P - 1, 6, 7, 5, -1, 60]
    np.testing.assert_array_equal(opened.columns("train", wanted), values["train"][:, wanted])
    np.testing.assert_array_equal(opened.dask("train", "stem").compute().T, values["train"][:, :7])


def test_what_a_killed_writer_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s.zarr", {"a": 3}, {"train": 2})
    left = tmp_path / "s.zarr/.unfinished"
    for name, age in (("old", 7200), ("young", 60)):
        (left / name).write_text("half a chunk")
        os.utime(left / name, (time.time() - age,) * 2)
    create_store(writer.uri, {"a": 3}, {"train": 2})
    assert [p.name for p in left.iterdir()] == ["young"]


def test_a_half_removed_store_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr/removing.json").write_text("{}")
    with pytest.raises(ConflictError, match=r"removal .* has not been finished"):
        create_store(tmp_path / "s.zarr", {"a": 3}, {"train": 2})
