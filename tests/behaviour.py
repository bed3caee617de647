"""What every store does wherever it lies: a suite that a class inherits for each kind of place."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from pipeline.verification import verify_store
from store import ActivationStore, StoreWriter, create_store, open_store
from store.catalogue import list_stores
from store.errors import ConflictError, DamagedStoreError, IncompleteStoreError, StoreNotFoundError
from store.layout import ChunkRef
from store.objects import open_objects
from store.results import find_result, list_results, read_result, write_result

P = sum(LAYERS.values())


class StoreBehaviour:
    """Inherit it and give a fixture ``root``: the URI of an empty place that is writable."""

    @pytest.fixture
    def root(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def uri(self, root: str) -> str:
        return f"{root}/made.zarr"

    def create(self, uri: str) -> StoreWriter:
        manifests = synthetic()[1]
        return create_store(uri, LAYERS, SPLITS, manifests=manifests, class_names=CLASSES, block_samples=32)

    def block(self, split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        return {name: v[:, start:stop] for name, v in synthetic()[0][split].items()}

    @pytest.fixture
    def made(self, uri: str) -> ActivationStore:
        write_all(self.create(uri), synthetic()[0])
        return open_store(uri)

    def test_a_store_gives_back_what_was_written(self, made, values) -> None:
        for split in SPLITS:
            np.testing.assert_array_equal(made.columns(split, np.arange(P)), values[split])
            assert made.ids(split) == synthetic()[1][split].ids
            np.testing.assert_array_equal(made.labels(split), synthetic()[1][split].labels)
        np.testing.assert_allclose(
            made.norms("train")[1], np.linalg.norm(values["train"][:, 7:47].astype(np.float64), axis=1), rtol=1e-6
        )
        assert made.class_names == CLASSES

    def test_columns_in_any_order_with_duplicates_negatives_and_a_range_of_samples(self, made, values) -> None:
        wanted = [5, P - 1, 6, 7, 5, -1, 60, 0, 46, 47]
        got = made.columns("train", wanted, slice(10, 70))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, values["train"][10:70, wanted])
        assert made.columns("test", []).shape == (37, 0)

    def test_columns_read_less_than_the_chunks_they_are_in(self, made) -> None:
        made.columns("train", [3])
        made.reads.reset()
        made.columns("train", [3, 4, 100])
        assert 0 < made.reads.n_bytes < made.n_bytes / 4
        assert made.reads.n_requests > 0

    def test_chunks_and_dask_arrays_hold_the_same_values(self, made, values) -> None:
        chunk = made.read_chunk(ChunkRef("train", "stem", 0, 1))
        np.testing.assert_array_equal(chunk.T, values["train"][30:60, :7])
        np.testing.assert_array_equal(made.dask("test", "blocks.0").compute().T, values["test"][:, 7:47])

    def test_a_store_is_refused_until_its_last_block_is_committed(self, uri) -> None:
        writer = self.create(uri)
        assert writer.missing() == {"train": [0, 1, 2], "test": [0, 1]}
        writer.write_block("train", 1, self.block("train", 30, 60))
        with pytest.raises(IncompleteStoreError, match="train: 0, 2 of 3; test: 0–1 of 2"):
            open_store(uri)
        assert open_store(uri, allow_incomplete=True).missing("train") == {"train": [0, 2]}

    def test_resuming_writes_only_what_is_missing(self, uri, values) -> None:
        self.create(uri).write_block("train", 1, self.block("train", 30, 60))
        again = self.create(uri)
        assert again.missing() == {"train": [0, 2], "test": [0, 1]}
        write_all(again, synthetic()[0])
        np.testing.assert_array_equal(open_store(uri).columns("train", [0]), values["train"][:, [0]])

    def test_a_committed_block_may_be_written_again_but_not_changed(self, uri) -> None:
        writer, block = self.create(uri), self.block("train", 0, 30)
        first = writer.write_block("train", 0, block)
        assert writer.write_block("train", 0, block) == first
        with pytest.raises(ConflictError, match="block 0 of split 'train'"):
            writer.write_block("train", 0, block | {"stem": block["stem"] + 1})
        kept = open_store(uri, allow_incomplete=True).columns("train", [0], slice(0, 30))
        np.testing.assert_array_equal(kept[:, 0], block["stem"][0])

    def test_another_store_at_the_same_place_is_refused(self, made) -> None:
        with pytest.raises(ConflictError, match="already holds another store"):
            create_store(made.uri, {"other": 3}, {"train": 2})

    def test_two_writers_fill_disjoint_blocks(self, uri, values) -> None:
        writers = [self.create(uri), self.create(uri)]
        together = Barrier(2)

        def fill(number: int) -> None:
            together.wait()
            for split, blocks in {"train": [0, 1, 2], "test": [0, 1]}.items():
                for b in blocks[number::2]:
                    start, stop = writers[number].store.splits[split].block_range(b)
                    writers[number].write_block(split, b, self.block(split, start, stop))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, range(2)))
        np.testing.assert_array_equal(open_store(uri).columns("train", np.arange(P)), values["train"])

    def test_two_writers_of_one_block_leave_it_whole_and_once(self, uri, values) -> None:
        writers = [self.create(uri), self.create(uri)]
        together = Barrier(2)

        def fill(writer: StoreWriter) -> object:
            together.wait()
            return writer.write_block("train", 0, self.block("train", 0, 30))

        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(fill, writers)
        assert one == other
        got = open_store(uri, allow_incomplete=True).columns("train", np.arange(P), slice(0, 30))
        np.testing.assert_array_equal(got, values["train"][:30])

    def test_many_threads_read_one_store(self, made, values) -> None:
        with ThreadPoolExecutor(8) as pool:
            for j, got in enumerate(pool.map(lambda j: made.columns("train", [j, P - 1 - j]), range(12))):
                np.testing.assert_array_equal(got, values["train"][:, [j, P - 1 - j]])

    def test_a_store_is_opened_twice_and_travels_by_pickle(self, made) -> None:
        for other in (open_store(made.uri), pickle.loads(pickle.dumps(made))):
            assert other.fingerprint == made.fingerprint
            np.testing.assert_array_equal(other.columns("train", [1]), made.columns("train", [1]))

    def test_what_another_process_commits_is_seen_at_once(self, uri) -> None:
        writer, watcher = self.create(uri), open_store(uri, allow_incomplete=True)
        for b, (start, stop) in enumerate([(0, 30), (30, 60), (60, 90)]):
            assert watcher.missing("train")["train"][0] == b
            writer.write_block("train", b, self.block("train", start, stop))
        assert watcher.missing("train") == {}

    def test_results_lie_beside_the_activations(self, made) -> None:
        inputs = {"penalty": 0.1}
        assert find_result(made, "selections", inputs) is None
        assert list_results(made, "selections") == []
        arrays = {"indices": (np.array([5, 1, 2]), ("rank",)), "zero": (np.zeros((2, 3)), ("a", "b"))}
        written = write_result(made, "selections", inputs, arrays, {"seconds": 1.5})
        assert list_results(made, "selections") == [written.digest]
        found = read_result(open_store(made.uri), "selections", written.digest[:8])
        np.testing.assert_array_equal(found.arrays["indices"], [5, 1, 2])
        np.testing.assert_array_equal(found.arrays["zero"], np.zeros((2, 3)))
        assert found.facts == {"seconds": 1.5}

    def test_a_whole_store_verifies(self, made) -> None:
        assert verify_store(open_store(made.uri, allow_incomplete=True)) == []

    def test_damage_is_found_by_reading_and_by_verifying(self, made) -> None:
        objects, key = open_objects(made.uri), ChunkRef("train", "stem", 0, 0).key
        whole = objects.read(key)
        objects.write(key, [whole[:50], bytes([whole[50] ^ 4]), whole[51:]])
        with pytest.raises(DamagedStoreError, match=key):
            open_store(made.uri).read_chunk(ChunkRef("train", "stem", 0, 0))
        objects.write(key, [whole[:-200]])
        with pytest.raises(DamagedStoreError, match=key):
            open_store(made.uri).columns("train", [6])
        objects.remove(key)
        with pytest.raises(DamagedStoreError, match=key):
            open_store(made.uri).columns("train", [6])
        assert len(verify_store(open_store(made.uri, allow_incomplete=True))) == 1

    def test_the_metadata_is_plain_zarr(self, made) -> None:
        document = json.loads(open_objects(made.uri).read("train/layers/stem/zarr.json"))
        assert (document["zarr_format"], document["shape"]) == (3, [7, 90])

    def test_stores_are_listed_and_removed(self, made, root) -> None:
        assert [row["state"] for row in list_stores(root)] == ["complete"]
        open_objects(made.uri).remove()
        with pytest.raises(StoreNotFoundError):
            open_store(made.uri)
        assert open_objects(root).names("") == []
