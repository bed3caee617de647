"""Data sets of torchvision, Hugging Face and WebDataset arrive with ids, labels and class names, and by number."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import pickle
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets import ImageData, LibraryOptions, load_data
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.intake import take_in
from store import open_store
from store.errors import InvalidInputError


def pixels(n: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def check_access(data: ImageData, expected: dict[str, NDArray[np.uint8]]) -> None:
    """Check that every image is what was written, from several threads, and in another process as in this one."""
    for name, images in expected.items():
        split = data.splits[name]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(split.image, range(len(split))))
        for image, array in zip(got, images, strict=True):
            want = array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
            np.testing.assert_array_equal(np.asarray(image), want)
        elsewhere = pickle.loads(pickle.dumps(split))
        assert elsewhere.image(1).tobytes() == split.image(1).tobytes()
        assert len(set(split.manifest().digests)) == len(split)


# ---------------------------------------------------------------- torchvision


def write_mnist(root: Path, name: str = "MNIST") -> dict[str, NDArray[np.uint8]]:
    """Write MNIST's own files."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images = {"train": pixels(20, 28, 28), "test": pixels(10, 28, 28, seed=1)}
    for split, word in (("train", "train"), ("test", "t10k")):
        array = images[split]
        header = struct.pack(">IIII", 0x0803, len(array), 28, 28)
        (raw / f"{word}-images-idx3-ubyte").write_bytes(header + array.tobytes())
        labels = (np.arange(len(array)) % 10).astype(np.uint8)
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x0801, len(array)) + labels.tobytes())
    return images


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[np.uint8]]:
    """Write CIFAR-10's own files; torchvision knows the digests of the true ones."""
    base, kind = root / "cifar-10-batches-py", torchvision.datasets.CIFAR10
    base.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)]
    batches = {name: pixels(4, 32, 32, 3, seed=i) for i, name in enumerate([*names, "test_batch"])}
    digests = {}
    for name, array in batches.items():
        flat = array.transpose(0, 3, 1, 2).reshape(len(array), -1)
        content = pickle.dumps({"data": flat, "labels": [0, 1, 0, 1]})
        (base / name).write_bytes(content)
        digests[name] = hashlib.md5(content).hexdigest()
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = pickle.dumps({"label_names": classes})
    (base / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(kind, "train_list", [[name, digests[name]] for name in names])
    monkeypatch.setattr(kind, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": hashlib.md5(meta).hexdigest()})
    return {"train": np.concatenate([batches[name] for name in names]), "test": batches["test_batch"]}


def test_mnist_is_read_from_its_own_files(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    data = load_data("torch/mnist", LibraryOptions(root=str(tmp_path)))
    assert data.class_names[3] == "3 - three"
    assert data.splits["train"].ids[:2] == ("train-000000", "train-000001")
    assert data.splits["test"].labels.tolist() == list(range(10))
    check_access(data, images)


def test_cifar10_is_read_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar10(tmp_path, monkeypatch)
    data = load_data("torch/CIFAR10", LibraryOptions(root=str(tmp_path)))
    assert data.class_names[:2] == ("airplane", "automobile")
    assert data.splits["train"].labels.tolist() == [0, 1] * 10
    check_access(data, images)


@pytest.mark.parametrize(("name", "folder"), [("kmnist", "KMNIST"), ("fashion_mnist", "FashionMNIST")])
def test_data_in_the_format_of_mnist_is_read_from_its_own_files(tmp_path: Path, name: str, folder: str) -> None:
    images = write_mnist(tmp_path, folder)
    data = load_data(f"torch/{name}", LibraryOptions(root=str(tmp_path)))
    np.testing.assert_array_equal(np.asarray(data.splits["test"].image(9))[:, :, 0], images["test"][9])
    assert len(data.class_names) == 10


def test_qmnists_class_is_the_first_of_its_numbers(tmp_path: Path) -> None:
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    array = pixels(6, 28, 28)
    for split in ("train", "test"):
        header = struct.pack(">IIII", 0x0803, 6, 28, 28)
        (raw / f"qmnist-{split}-images-idx3-ubyte").write_bytes(header + array.tobytes())
        numbers = np.full((6, 8), 77, ">i4")
        numbers[:, 0] = [3, 3, 4, 4, 5, 5]
        (raw / f"qmnist-{split}-labels-idx2-int").write_bytes(struct.pack(">III", 0x0C02, 6, 8) + numbers.tobytes())
    data = load_data("torch/qmnist", LibraryOptions(root=str(tmp_path)))
    assert data.splits["train"].labels.tolist() == [3, 3, 4, 4, 5, 5]
    check_access(data, {"test": array})


def test_cifar100_names_its_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, kind = tmp_path / "cifar-100-python", torchvision.datasets.CIFAR100
    base.mkdir()
    array = pixels(4, 32, 32, 3)
    flat = array.transpose(0, 3, 1, 2).reshape(4, -1)
    batch = pickle.dumps({"data": flat, "fine_labels": [7, 9, 7, 9], "coarse_labels": [0] * 4})
    meta = pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]})
    for name, content in (("train", batch), ("test", batch), ("meta", meta)):
        (base / name).write_bytes(content)
    monkeypatch.setattr(kind, "train_list", [["train", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(kind, "test_list", [["test", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": hashlib.md5(meta).hexdigest()})
    data = load_data("torch/cifar100", LibraryOptions(root=str(tmp_path)))
    assert data.class_names[9] == "fine 9"
    assert data.splits["train"].labels.tolist() == [7, 9, 7, 9]
    check_access(data, {"test": array})


def test_places365_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = torchvision.datasets.Places365
    lists = {
        "categories_places365.txt": "/a/airfield 0\n/b/barn 1\n",
        "places365_train_standard.txt": "".join(f"/{'ab'[i // 2]}/{i}.jpg {i // 2}\n" for i in range(4)),
        "places365_val.txt": "v0.jpg 0\nv1.jpg 1\n",
        "places365_test.txt": "t0.jpg\n",
    }
    digests = {name: hashlib.md5(text.encode()).hexdigest() for name, text in lists.items()}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(kind, "_CATEGORIES_META", ("categories_places365.txt", digests["categories_places365.txt"]))
    known = {split: (name, digests[name]) for split, (name, _) in kind._FILE_LIST_META.items() if name in digests}
    monkeypatch.setattr(kind, "_FILE_LIST_META", known)
    for name in [f"data_large_standard/{'ab'[i // 2]}/{i}.jpg" for i in range(4)] + ["val_large/v0.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(pixels(1, 3, 3, 3)[0]))
    data = load_data("torch/places365", LibraryOptions(root=str(tmp_path)))
    assert data.class_names == ("/a/airfield", "/b/barn")
    assert data.splits["train"].ids[3] == "data_large_standard/b/3.jpg"
    assert data.splits["test"].labels.tolist() == [0, 1]
    assert data.splits["test"].image(0).size == (3, 3)
    unlabelled = LibraryOptions(root=str(tmp_path), splits={"train": "train", "test": "test"})
    with pytest.raises(InvalidInputError, match="sample 0 of split 'test' of 'torch/places365' has no label"):
        load_data("torch/places365", unlabelled)


def test_splits_may_be_chosen(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    options = LibraryOptions(root=str(tmp_path), splits={"train": "train", "val": "test", "test": "test"})
    assert list(load_data("torch/mnist", options).splits) == ["train", "val", "test"]


def write_imagenet(root: Path) -> dict[str, NDArray[np.uint8]]:
    images = {"train": pixels(4, 5, 6, 3), "val": pixels(2, 5, 6, 3, seed=1)}
    classes = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",)}
    torch.save((classes, ["n01440764"] * 2), root / "meta.bin")
    for split, arrays in images.items():
        for number, array in enumerate(arrays):
            folder = root / split / sorted(classes)[number * 2 // len(arrays)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{split}_{number}.png").write_bytes(png(array))
    return images


def test_imagenet_keeps_its_files_and_names_of_classes(tmp_path: Path) -> None:
    images = write_imagenet(tmp_path)
    data = load_data("torch/imagenet", LibraryOptions(root=str(tmp_path)))
    assert data.class_names == ("tench, Tinca tinca", "goldfish")
    assert data.splits["train"].ids[0] == "train/n01440764/train_0.png"
    assert data.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert data.note == "the test split is the data's 'val' split"
    content = (tmp_path / "train/n01440764/train_0.png").read_bytes()
    assert data.splits["train"].manifest().digests[0] == hashlib.sha256(content).hexdigest()
    check_access(data, {"train": images["train"], "test": images["val"]})


def test_inaturalist_keeps_its_files_and_categories(tmp_path: Path) -> None:
    for version in ("2021_train", "2021_valid"):
        for number, category in enumerate(("00000_Animalia_A_B_C_D_E_ant", "00001_Animalia_A_B_C_D_E_bee")):
            folder = tmp_path / version / category
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{i}.jpg").write_bytes(png(pixels(1, 4, 4, 3, seed=10 * number + i)[0]))
    data = load_data("torch/inaturalist", LibraryOptions(root=str(tmp_path)))
    assert data.class_names == ("00000_Animalia_A_B_C_D_E_ant", "00001_Animalia_A_B_C_D_E_bee")
    assert data.splits["train"].ids[0].endswith("00000_Animalia_A_B_C_D_E_ant/0.jpg")
    assert data.splits["test"].labels.tolist() == [0, 0, 1, 1]
    assert data.splits["test"].image(3).size == (4, 4)


def test_an_image_folder_by_torchvisions_name_is_a_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / split / name / f"{i}.png").write_bytes(png(pixels(1, 3, 3, 3)[0]))
    data = load_data("torch/image_folder", LibraryOptions(root=str(tmp_path)))
    assert data.splits["train"].ids == load_data(str(tmp_path)).splits["train"].ids


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torch/cifar1", {"root": "."}, r"'torch/cifar1' is unknown; did you mean 'cifar10'"),
        ("torch/cifar10", {}, "needs the folder that holds it.*--data-root"),
        ("torch/image_folder", {}, "needs the folder that holds it.*--data-root"),
        ("torch/cifar10", {"root": "empty"}, r"cannot be had: Dataset not found.*--download lets torchvision fetch it"),
        ("torch/imagenet", {"root": "empty"}, r"'torch/imagenet' cannot be had"),
        ("torch/mnist", {"root": ".", "splits": {"train": "training", "test": "test"}}, "no split 'training'"),
        (
            "torch/mnist",
            {"root": ".", "splits": {"train": "train"}},
            "was given no 'test' split; it has 'train', 'test'; .*--split test=NAME",
        ),
        ("torch/mnist", {"root": ".", "splits": {"trian": "train"}}, "'trian' is unknown; did you mean 'train'"),
        ("hfids/mnist", {}, "is a stream.*could not be resumed; 'hfds/mnist' reads the same"),
        ("tfds/mnist", {}, "is a stream.*'torch/…' or 'hfds/…'"),
        ("wds/nowhere", {}, "needs an existing folder of shards"),
        ("digits", {"root": "."}, "takes no data root"),
    ],
)
def test_names_that_cannot_be_served_are_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=message):
        load_data(name, LibraryOptions(**options))


@pytest.mark.parametrize(("name", "library"), [("hfds/beans", "datasets"), ("wds/.", "webdataset")])
def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        InvalidInputError, match=rf"{library}.*not installed; `pip install 'head2toe-store\[{library}\]'"
    ):
        load_data(name)


# ---------------------------------------------------------------- Hugging Face


def write_parquet(
    root: Path,
    counts: dict[str, int],
    *,
    image: str = "image",
    labels: Any = lambda i: i % 2,
    names: list[str] | None = None,
    content: Any = png,
) -> dict[str, NDArray[np.uint8]]:
    """Write a data set as the hub has it: one parquet file per split."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = {split: pixels(n, 5, 4, 3, seed=n) for split, n in counts.items()}
    features = None
    if names is not None:
        features = datasets.Features({image: datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split, arrays in images.items():
        columns = {
            image: [{"bytes": content(array), "path": None} for array in arrays],
            "label": [labels(i) for i in range(len(arrays))],
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        if features is None:
            table = table.cast_column(image, datasets.Image())
        root.mkdir(exist_ok=True)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return images


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_read_by_number(tmp_path: Path) -> None:
    images = write_parquet(tmp_path / "data", {"train": 6, "validation": 4, "test": 5}, names=["ant", "bee"])
    data = load_data(f"hfds/{tmp_path}/data", LibraryOptions(root=str(tmp_path / "cache")))
    assert data.class_names == ("ant", "bee")
    assert list(data.splits) == ["train", "val", "test"]
    assert data.splits["train"].labels.tolist() == [0, 1] * 3
    assert data.splits["val"].ids == tuple(f"val-00000{i}" for i in range(4))
    images["val"] = images.pop("validation")
    check_access(data, images)
    digest = data.splits["test"].manifest().digests[0]
    assert digest == hashlib.sha256(png(images["test"][0])).hexdigest()


def test_columns_and_splits_of_the_hub_may_be_chosen(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", {"train": 8}, image="img", labels=lambda i: "bee" if i % 2 else "ant")
    place = {"root": str(tmp_path / "cache")}
    name = f"hfds/{tmp_path}/data"
    with pytest.raises(InvalidInputError, match=r"no 'test' split; it has 'train'; say which it is.*--split test=NAME"):
        load_data(name, LibraryOptions(**place))
    chosen = place | {"splits": {"train": "train[:6]", "test": "train[6:]"}}
    with pytest.raises(InvalidInputError, match="no column 'image'; give --input-key: did you mean 'img'"):
        load_data(name, LibraryOptions(**chosen))
    data = load_data(name, LibraryOptions(**chosen, input_key="img"))
    assert {split: len(s) for split, s in data.splits.items()} == {"train": 6, "test": 2}
    assert data.class_names == ("ant", "bee")
    assert data.splits["train"].labels.tolist() == [0, 1] * 3
    with pytest.raises(InvalidInputError, match="no column 'labels'; give --target-key: did you mean 'label'"):
        load_data(name, LibraryOptions(**chosen, input_key="img", target_key="labels"))


@pytest.mark.parametrize("missing", [-1, None])
def test_samples_of_the_hub_without_a_label_are_refused(tmp_path: Path, missing: int | None) -> None:
    write_parquet(tmp_path / "data", {"train": 4, "test": 4}, labels=lambda i: missing if i == 3 else i % 2)
    with pytest.raises(InvalidInputError, match=f"sample 3 of split 'train' .* has no label but {missing}"):
        load_data(f"hfds/{tmp_path}/data", LibraryOptions(root=str(tmp_path / "cache")))


def test_bad_images_of_the_hub_are_listed(tmp_path: Path) -> None:
    def cut(array: np.ndarray) -> bytes:
        return png(array)[:-45] if array[0, 0, 0] % 2 else png(array)

    images = write_parquet(tmp_path / "data", {"train": 8, "test": 4}, names=["ant", "bee"], content=cut)
    data = load_data(f"hfds/{tmp_path}/data", LibraryOptions(root=str(tmp_path / "cache")))
    bad = [f"train-00000{i}" for i in range(8) if images["train"][i, 0, 0, 0] % 2]
    assert 0 < len(bad) < 8
    with pytest.raises(InvalidInputError) as caught:
        take_in(data)
    assert all(f"train/{name} (is damaged or truncated" in str(caught.value) for name in bad)


def test_a_folder_that_is_no_data_set_of_the_hub_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InvalidInputError, match=f"'hfds/{tmp_path}' cannot be had"):
        load_data(f"hfds/{tmp_path}", LibraryOptions(root=str(tmp_path / "cache")))


# ---------------------------------------------------------------- WebDataset


def write_shard(path: Path, samples: list[dict[str, bytes]], *, first: int = 0) -> None:
    with tarfile.open(path, "w") as archive:
        for number, parts in enumerate(samples, start=first):
            for part, content in parts.items():
                member = tarfile.TarInfo(f"{number:06d}.{part}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_shards(root: Path) -> dict[str, NDArray[np.uint8]]:
    """Write two shards of training samples and one of test samples."""
    images = {"train": pixels(6, 5, 4, 3), "test": pixels(4, 5, 4, 3, seed=1)}
    samples = {
        split: [
            {"cls": b"%d\n" % (i % 2), "json": json.dumps({"kind": 1 - i % 2}).encode(), "png": png(array)}
            for i, array in enumerate(arrays)
        ]
        for split, arrays in images.items()
    }
    write_shard(root / "pets-train-0000.tar", samples["train"][:3])
    write_shard(root / "pets-train-0001.tar", samples["train"][3:])
    write_shard(root / "pets-test-0000.tar", samples["test"])
    return images


def test_shards_are_indexed_once_and_read_by_number(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    images = write_shards(tmp_path)
    data = load_data(f"wds/{tmp_path}")
    assert data.class_names == ("0", "1")
    assert data.splits["train"].ids[2:4] == ("pets-train-0000/000002", "pets-train-0001/000000")
    assert data.splits["train"].labels.tolist() == [0, 1] * 3
    check_access(data, images)
    content = png(images["test"][3])
    assert data.splits["test"].manifest().digests[3] == hashlib.sha256(content).hexdigest()


def test_splits_labels_and_images_of_shards_may_be_chosen(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(tmp_path)
    splits = {"train": "pets-train-{0000..0001}.tar", "test": "pets-test-0000.tar"}
    options = LibraryOptions(root=str(tmp_path), splits=splits, input_key="jpg;png", target_key="kind")
    data = load_data("wds/", options)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "test": 4}
    assert data.splits["test"].labels.tolist() == [1, 0] * 2


def test_splits_of_shards_may_be_described_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(tmp_path)
    described = {
        ours: {"name": ours, "num_samples": n, "filenames": [file], "shard_lengths": [n], "alt_label": "kind"}
        for ours, file, n in (("train", "pets-train-0000.tar", 3), ("validation", "pets-train-0001.tar", 3))
    }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": described}))
    with pytest.raises(InvalidInputError, match=r"class '0' of .* has 1 training sample"):
        load_data(f"wds/{tmp_path}")
    described["train"]["filenames"] = ["pets-test-0000.tar"]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": described}))
    data = load_data(f"wds/{tmp_path}")
    assert data.note == "the test split is the data's 'val' split"
    assert data.splits["train"].labels.tolist() == [1, 0] * 2


IMAGE = png(pixels(1, 4, 4, 3)[0])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"png": IMAGE}, "sample '000001' of shard .* has no label; .*whole number in its .cls part"),
        ({"png": IMAGE, "cls": b"cat"}, "has no label"),
        ({"png": IMAGE, "cls": b"-1"}, "has the label -1"),
        ({"txt": b"x", "cls": b"1"}, "sample '000001' of shard .* has no image"),
    ],
)
def test_samples_of_shards_without_image_or_label_are_refused(
    tmp_path: Path, sample: dict[str, bytes], message: str
) -> None:
    pytest.importorskip("webdataset")
    good = {"png": IMAGE, "cls": b"0"}
    write_shard(tmp_path / "train.tar", [good, sample, good])
    write_shard(tmp_path / "test.tar", [good])
    with pytest.raises(InvalidInputError, match=message):
        load_data(f"wds/{tmp_path}")


def test_damaged_compressed_and_foreign_shards_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    good = [{"png": IMAGE, "cls": b"0"}] * 3
    for name in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        write_shard(tmp_path / "data" / f"{name}.tar", good)
    whole = (tmp_path / "data" / "train.tar").read_bytes()
    for content in (whole[:1200], gzip.compress(whole), b"", b"no archive " * 100):
        (tmp_path / "data" / "train.tar").write_bytes(content)
        with pytest.raises(
            InvalidInputError, match=r"'.*train\.tar' (cannot be indexed|hold no samples)|hold no samples"
        ):
            load_data(f"wds/{tmp_path}/data")
    (tmp_path / "outside.tar").write_bytes(whole)
    options = LibraryOptions(splits={"train": "../outside.tar", "test": "test.tar"})
    with pytest.raises(InvalidInputError, match=r"outside\.tar' of split '../outside.tar' is outside the data folder"):
        load_data(f"wds/{tmp_path}/data", options)
    for theirs, message in (("nothing.tar", "does not exist"), ("training", "cannot be found")):
        with pytest.raises(InvalidInputError, match=message):
            load_data(f"wds/{tmp_path}/data", LibraryOptions(splits={"train": theirs, "test": "test.tar"}))


def test_bad_images_in_shards_are_listed(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    good = {"png": png(pixels(1, 40, 40, 3)[0]), "cls": b"0"}
    bad = {"png": good["png"][:-100], "cls": b"0"}
    write_shard(tmp_path / "train.tar", [good, good, bad])
    write_shard(tmp_path / "test.tar", [good])
    with pytest.raises(
        InvalidInputError, match=r"1 image cannot be used: train/train/000002 \(is damaged or truncated"
    ):
        take_in(load_data(f"wds/{tmp_path}"))


# ---------------------------------------------------------------- the whole way


@pytest.mark.slow
def test_data_of_a_library_becomes_a_store(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")
    parameters = ExtractionParameters(
        backbone="test_resnet", weights="random:0", data="torch/mnist", data_root=str(tmp_path / "data"), image_size=32
    )
    done = extract(parameters, str(tmp_path / "root"))
    store = open_store(done.uri)
    assert store.ids("test")[9] == "test-000009"
    assert store.class_names[0] == "0 - zero"
    assert extract(parameters, str(tmp_path / "root")).extracted == 0
