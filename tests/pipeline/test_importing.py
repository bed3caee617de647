"""Activations made elsewhere become a store named by their content, or are refused in one sentence."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic

from pipeline.importing import import_arrays, import_file
from pipeline.verification import mark_for_rewriting, verify_store
from store import open_store
from store.errors import InvalidInputError, NotFiniteError

SIMPLE = {
    "conv": np.arange(12, dtype=np.float32).reshape(4, 3),
    "head": np.ones((4, 2)),
    "labels": np.array([0, 1, 1, 0]),
}


def whole_file(path: Path, **changes: object) -> Path:
    """Write the samples' activations as a producer would: float32, (sample, feature), by split and layer."""
    values, manifests = synthetic()
    arrays: dict[str, object] = {}
    for split in SPLITS:
        arrays |= {f"{split}/{name}": values[split][name].T.astype(np.float32, "C") for name in LAYERS}
        arrays[f"{split}/labels"] = manifests[split].labels
        arrays[f"{split}/ids"] = np.array(manifests[split].ids)
    np.savez(path, **(arrays | changes))
    return path


def test_a_file_becomes_a_store_that_holds_its_numbers_labels_and_ids(tmp_path, values) -> None:
    _, manifests = synthetic()
    seen: list[tuple[str, int, int]] = []
    done = import_file(
        whole_file(tmp_path / "f.npz"),
        tmp_path / "root",
        class_names=CLASSES,
        embedding="pre_logits",
        block_samples=32,
        progress=lambda *step: seen.append(step),
    )
    store = open_store(done.uri)
    assert done.uri == str(tmp_path / "root" / f"{done.fingerprint}.zarr")
    assert (done.imported, done.reused) == (127, 0)
    assert list(store.layers) == list(LAYERS)
    assert store.class_names == CLASSES
    assert store.provenance["embedding"] == "pre_logits"
    for split in SPLITS:
        np.testing.assert_array_equal(store.columns(split, np.arange(store.n_features)), values[split])
        np.testing.assert_array_equal(store.labels(split), manifests[split].labels)
        assert store.ids(split) == list(manifests[split].ids)
    assert verify_store(store) == []
    assert ("reading split train", 90, 90) in seen
    assert seen[-1] == ("writing samples", 127, 127)


def test_importing_the_same_content_again_writes_nothing_whatever_the_file(tmp_path) -> None:
    file = whole_file(tmp_path / "f.npz")
    first = import_file(file, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in Path(first.uri).rglob("*") if p.is_file()}
    with np.load(file) as held:
        np.savez_compressed(tmp_path / "packed.npz", **{k: held[k] for k in held})
        doubles = {k: held[k].astype(np.float64) if held[k].dtype.kind == "f" else held[k] for k in held}
        np.savez(tmp_path / "doubles.npz", **doubles)
        turned = {k: np.asfortranarray(held[k]) for k in held}
        np.savez(tmp_path / "turned.npz", **turned)
        np.savez(tmp_path / "big_endian.npz", **{k: v.astype(v.dtype.newbyteorder(">")) for k, v in doubles.items()})
    for name in ("f", "packed", "doubles", "turned", "big_endian"):
        again = import_file(tmp_path / f"{name}.npz", tmp_path)
        assert (again.uri, again.imported, again.reused) == (first.uri, 0, 127), name
    assert {p: p.stat().st_mtime_ns for p in Path(first.uri).rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["conv"].__setitem__((2, 1), 99.0),
        lambda a: a["labels"].__setitem__(0, 1),
        lambda a: a.__setitem__("ids", np.array(["a", "b", "c", "d"])),
        lambda a: a.__setitem__("other", a.pop("conv")),
        lambda a: a.__setitem__("conv", a.pop("conv")),  # now after `head`
        lambda a: a.__setitem__("conv", a["conv"][[1, 0, 2, 3]]),
    ],
    ids=["a value", "a label", "ids", "a name", "the order of layers", "the order of samples"],
)
def test_any_other_content_is_another_store(tmp_path, change) -> None:
    names = set()
    for number in range(2):
        arrays = {k: v.copy() for k, v in SIMPLE.items()}
        if number:
            change(arrays)
        np.savez(tmp_path / "f.npz", **arrays)
        names.add(import_file(tmp_path / "f.npz", tmp_path).fingerprint)
    assert len(names) == 2


def test_class_names_and_dtype_are_identity_and_the_embedding_is_not(tmp_path) -> None:
    np.savez(tmp_path / "f.npz", **SIMPLE)
    base = import_file(tmp_path / "f.npz", tmp_path).fingerprint
    assert import_file(tmp_path / "f.npz", tmp_path, embedding="head").fingerprint == base
    assert import_file(tmp_path / "f.npz", tmp_path, dtype="float32").fingerprint != base
    assert import_file(tmp_path / "f.npz", tmp_path, class_names=["a", "b"]).fingerprint != base


def test_without_a_split_in_the_names_everything_is_training_data(tmp_path) -> None:
    np.savez(tmp_path / "f.npz", **SIMPLE)
    store = open_store(import_file(tmp_path / "f.npz", tmp_path).uri)
    assert {s.name: s.n_samples for s in store.splits.values()} == {"train": 4}
    assert store.ids("train") == ["00000000", "00000001", "00000002", "00000003"]
    assert store.class_names == ("0", "1")


def test_an_import_that_was_interrupted_goes_on_with_what_is_missing(tmp_path, values) -> None:
    file = whole_file(tmp_path / "f.npz")
    done = import_file(file, tmp_path, class_names=CLASSES, block_samples=32)
    chunk = Path(done.uri) / "train/layers/stem/c/0/1"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    store = open_store(done.uri)
    mark_for_rewriting(store, verify_store(store))
    again = import_file(file, tmp_path, class_names=CLASSES, block_samples=32)
    assert (again.imported, again.reused) == (30, 97)
    store = open_store(done.uri)
    assert verify_store(store) == []
    np.testing.assert_array_equal(store.columns("train", [0, 60]), values["train"][:, [0, 60]])


def test_arrays_from_python_and_to_memory(tmp_path, values) -> None:
    layers = {"a": values["train"][:, :7], "b": np.lib.stride_tricks.sliding_window_view(np.arange(93.0), 4)}
    done = import_arrays({"train": layers}, {"train": [i % 3 for i in range(90)]}, "memory://imported")
    store = open_store(done.uri)
    np.testing.assert_array_equal(store.columns("train", [7, 8]), layers["b"][:, :2])
    mapped = np.lib.format.open_memmap(tmp_path / "m.npy", "w+", "<f4", (90, 5))
    mapped[:] = 3
    import_arrays({"train": {"m": mapped}}, {"train": np.zeros(90, np.uint8)}, tmp_path)


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "split 'train' has no labels; give 'train/labels'"),
        ({"labels": np.array([0, 1, 1])}, "has 4 samples but 3 labels"),
        ({"labels": np.array([0, -1, 1, 0])}, "has the negative label -1"),
        ({"labels": np.array([0, 0.5, 1, 0])}, "must be whole numbers"),
        ({"labels": np.array(["a", "b", "c", "d"])}, "must be whole numbers"),
        ({"labels": np.zeros((4, 1), int)}, "must be whole numbers"),
        ({"labels": np.array([0, 1, 1, 2**63], np.uint64)}, "has the label 9223372036854775808"),
        ({"labels": np.array([1440764, 1, 1, 0])}, "has the label 1440764, but classes count from 0"),
        ({"ids": np.array(["a", "b", "a", "c"])}, "sample id 'a' occurs twice"),
        ({"ids": np.array(["a", "b"])}, "must be 4 names"),
        ({"ids": np.zeros(4)}, "must be 4 names"),
        ({"head": np.ones((3, 2))}, "'train/head' has 3 samples, but the layers before it have 4"),
        ({"head": np.ones(4)}, r"'train/head' has shape \(4,\); it must have two dimensions"),
        ({"head": np.ones((4, 2, 2))}, r"'train/head' has shape \(4, 2, 2\); it must have two dimensions"),
        ({"head": np.ones((4, 0))}, "layer 'head' has size 0"),
        ({"head": np.full((4, 2), "x")}, "activations must be numbers"),
        ({"head": np.ones((4, 2), complex)}, "activations must be numbers"),
        ({"head": np.array([[object()] * 2] * 4)}, "array 'head' .*holds Python objects, which are never loaded"),
        ({"ids": np.array(["a", "b", "c", None], object)}, "array 'ids' .*holds Python objects"),
        ({"conv": None, "head": None}, "holds no layers, only 'labels'"),
        ({"train/x": np.ones((4, 2))}, "holds both 'conv' and 'train/x'"),
        ({"a b": np.ones((4, 2))}, "layer name 'a b' cannot be used"),
        ({"conv": np.ones((0, 3)), "head": np.ones((0, 2)), "labels": np.ones(0, int)}, "split 'train' has no samples"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_sentence_and_nothing_is_written(tmp_path, changes, message) -> None:
    arrays = {k: v for k, v in (SIMPLE | changes).items() if v is not None}
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(InvalidInputError, match=message) as refused:
        import_file(tmp_path / "f.npz", tmp_path / "root")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val/stem": np.ones((3, 7)), "val/labels": np.zeros(3, int)}, "is not in both split 'train' and split 'val'"),
        ({"test/stem": np.ones((37, 8))}, "'test/stem' has 8 features, but 7 in split 'train'"),
        ({"extra/labels": np.zeros(3, int)}, "split 'extra' has labels or ids but no layers"),
        ({"results/stem": np.ones((3, 7))}, "is not in both"),
        ({"a/b/c": np.ones((3, 7))}, "is not in both"),
    ],
)
def test_splits_that_do_not_fit_each_other_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        import_file(whole_file(tmp_path / "f.npz", **changes), tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_too_few_class_names_and_an_embedding_that_is_no_layer_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "f.npz", **SIMPLE)
    with pytest.raises(InvalidInputError, match="has the label 1, but there are 1 class names"):
        import_file(tmp_path / "f.npz", tmp_path, class_names=["only"])
    with pytest.raises(InvalidInputError, match=r"embedding 'heat' is not a layer of the data; did you mean 'head'\?"):
        import_file(tmp_path / "f.npz", tmp_path, embedding="heat")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (70000.0, "values overflow float16 in layer 'conv', first at sample 2 of split 'train'; .*--dtype float32"),
        (np.nan, "not every value is a finite number in layer 'conv', first at sample 2"),
        (-np.inf, "not every value is a finite number"),
    ],
)
def test_values_that_are_not_finite_are_refused_by_layer_and_nothing_is_written(tmp_path, value, message) -> None:
    arrays = {k: v.copy() for k, v in SIMPLE.items()}
    arrays["conv"][2, 1] = value
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(NotFiniteError, match=message):
        import_file(tmp_path / "f.npz", tmp_path / "root")
    assert not (tmp_path / "root").exists()
    if value == 70000:
        done = import_file(tmp_path / "f.npz", tmp_path / "root", dtype="float32")
        assert open_store(done.uri).columns("train", [1])[2, 0] == value
        with pytest.raises(NotFiniteError, match=r"overflow float32 .*scale the activations down"):
            import_arrays({"train": {"a": np.full((2, 2), 1e300)}}, {"train": [0, 1]}, tmp_path, dtype="float32")


def damaged(path: Path, how: str) -> Path:
    """Return a path to something that is not an .npz file that can be imported."""
    if how == "absent":
        return path
    if how == "folder":
        path.mkdir()
        return path
    if how == "packed":
        np.savez_compressed(path, conv=np.random.default_rng(0).random((99, 9)), labels=np.zeros(99, int))
    else:
        np.savez(path, **SIMPLE)
    raw = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("1,2,3\n")
    elif how == "one array":
        with path.open("wb") as file:
            np.save(file, SIMPLE["conv"])
    elif how == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif how in {"bit", "packed"}:
        at = raw.index(b"\x93NUMPY") + 140 if how == "bit" else 600
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    else:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": (4, 9), "fortran_order": False, "descr": "<f4"})
        contents = {
            "no arrays": {},
            "no .npy": {"readme.txt": b"hello"},
            "no header": {"conv.npy": b"hello"},
            "short": {"conv.npy": header.getvalue() + bytes(20), "labels.npy": npy(np.zeros(4, int))},
            "long": {"conv.npy": header.getvalue() + bytes(200), "labels.npy": npy(np.zeros(4, int))},
            "bomb": {"conv.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535},
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents[how].items():
                archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", "does not exist"),
        ("folder", "not an .npz file|cannot be read"),
        ("empty", "is empty"),
        ("text", "not an .npz file"),
        ("one array", "not an .npz file"),
        ("cut", "not an .npz file, .* or is cut short"),
        ("bit", "array 'conv' of .* is damaged: Bad CRC-32"),
        ("packed", "array 'conv' of .* is damaged"),
        ("no arrays", "holds no arrays"),
        ("no .npy", "holds 'readme.txt', which is not an array"),
        ("no header", "array 'conv' of .* is damaged"),
        ("short", "array 'conv' of .* is damaged: it ends after 20 of 144 bytes"),
        ("long", "array 'conv' of .* is damaged: it is longer than its header says"),
        ("bomb", "array 'conv' of .* is damaged"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_explained_and_nothing_is_written(tmp_path, how, message) -> None:
    path = damaged(tmp_path / "f.npz", how)
    with pytest.raises(InvalidInputError, match=message) as refused:
        import_file(path, tmp_path / "root")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "root").exists()


def test_a_pickle_inside_is_never_run(tmp_path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "f.npz", **SIMPLE, ids=np.array([Trap()] * 4, object))
    with pytest.raises(InvalidInputError, match="Python objects, which are never loaded"):
        import_file(tmp_path / "f.npz", tmp_path / "root")
    assert not (tmp_path / "sprung").exists()


def test_memory_is_bounded_by_a_block_and_not_by_the_file(tmp_path) -> None:
    """A file of 32 MB, packed or not, is imported in blocks of 0.5 MB within a few MB."""
    n = 4096
    layers = {name: np.tile(np.arange(1024, dtype=np.float32), (n, 1)) for name in ("a", "b")}
    np.savez_compressed(tmp_path / "f.npz", **layers, labels=np.zeros(n, int))
    del layers
    import_arrays({"train": {"a": np.ones((2, 2))}}, {"train": [0, 1]}, tmp_path)  # what the first call imports
    tracemalloc.start()
    done = import_file(tmp_path / "f.npz", tmp_path, block_samples=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.imported == n
    assert peak < 16 * 2**20
