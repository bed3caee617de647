"""Images arrive upright in RGB with stable ids, labels, splits and digests; what is wrong with them is said."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets import ImageSplit, find_bad_images, load_data, scan
from pipeline.folders import stratified_test_ids
from pipeline.images import decode
from store.errors import InvalidInputError

RED = (200, 10, 30)


def save(path: Path, color: tuple[int, ...] = RED, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 2), ("val", 1)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png", (label * 100, i * 20, len(split)))
    return tmp_path


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    for label, (name, count) in enumerate({"ant": 10, "bee": 25, "cat": 2}.items()):
        for i in range(count):
            save(tmp_path / name / f"{i:02d}.png", (label * 100, i * 5, 0))
    return tmp_path


def test_digits_are_1000_and_797_and_always_the_same() -> None:
    data = load_data("digits")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1000, "test": 797}
    assert data.class_names == tuple("0123456789")
    manifests = {name: split.manifest() for name, split in data.splits.items()}
    assert not set(manifests["train"].ids) & set(manifests["test"].ids)
    counts = np.bincount(manifests["train"].labels)
    assert counts.min() >= 96
    assert counts.max() <= 103
    again = load_data("digits").splits["train"].manifest().spec()
    assert again == manifests["train"].spec()
    assert again.manifest_digest == "3a51cacb7885724d79c9"
    image = data.splits["train"].image(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))


def test_split_folders_keep_their_splits(split_folder: Path) -> None:
    data = load_data(str(split_folder))
    assert data.class_names == ("ant", "bee")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "test": 4, "val": 2}
    train = data.splits["train"]
    assert train.ids == ("ant/0.png", "ant/1.png", "ant/2.png", "bee/0.png", "bee/1.png", "bee/2.png")
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.image(4).getpixel((0, 0)) == (100, 20, 5)
    assert load_data(f"folder:{split_folder}").splits["train"].ids == train.ids


def test_digests_are_of_the_files_bytes(split_folder: Path) -> None:
    train = load_data(str(split_folder)).splits["train"]
    expected = [hashlib.sha256((split_folder / "train" / name).read_bytes()).hexdigest() for name in train.ids]
    before = train.manifest()
    assert list(before.digests) == expected
    save(split_folder / "train" / "ant" / "1.png", (1, 2, 3))
    assert train.manifest().spec() != before.spec()


def test_class_folders_are_split_in_proportion_and_say_so(class_folder: Path) -> None:
    data = load_data(str(class_folder))
    assert {n: np.bincount(s.labels).tolist() for n, s in data.splits.items()} == {
        "train": [8, 20, 1],
        "test": [2, 5, 1],
    }
    assert "8 of 37 images" in data.note
    moved = class_folder.with_name("elsewhere")
    shutil.copytree(class_folder, moved)
    assert load_data(str(moved)).splits["test"].ids == data.splits["test"].ids


def test_an_added_image_moves_few_others_between_splits(class_folder: Path) -> None:
    before = set(load_data(str(class_folder)).splits["test"].ids)
    save(class_folder / "bee" / "new.png")
    assert len(before - set(load_data(str(class_folder)).splits["test"].ids)) <= 1


@pytest.mark.parametrize("n_test", [0, 1, 7, 30])
def test_stratified_choice_has_the_asked_size_and_proportion(n_test: int) -> None:
    labels = [0] * 10 + [1] * 20
    ids = [f"image {i}" for i in range(30)]
    chosen = stratified_test_ids(ids, labels, n_test)
    assert len(chosen) == n_test
    assert abs(sum(label == 0 for name, label in zip(ids, labels, strict=True) if name in chosen) - n_test / 3) < 1


def test_files_that_are_no_images_by_name_are_passed_over(split_folder: Path) -> None:
    (split_folder / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    (split_folder / "train" / "ant" / ".hidden.png").write_bytes(b"x")
    save(split_folder / "train" / "ant" / "deeper" / "UPPER.JPG")
    assert load_data(str(split_folder)).splits["train"].ids[3] == "ant/deeper/UPPER.JPG"
    assert len(load_data(str(split_folder)).splits["train"]) == 7


def test_vtab_lists_are_read_in_their_order(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "images" / f"a picture {i}.jpg")
    (tmp_path / "train800val200.txt").write_text("images/a picture 2.jpg 1\nimages/a picture 0.jpg 0\n\n")
    (tmp_path / "val200.txt").write_text("images/a picture 0.jpg 0\n")
    (tmp_path / "test.txt").write_text("images/a picture 3.jpg 2\n")
    data = load_data(str(tmp_path))
    assert data.class_names == ("0", "1", "2")
    assert data.splits["train"].ids == ("images/a picture 2.jpg", "images/a picture 0.jpg")
    assert data.splits["train"].labels.tolist() == [1, 0]
    assert set(data.splits) == {"train", "val", "test"}
    assert find_bad_images(data.splits["test"]) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.png 0", "outside the data folder"),
        ("images/../../secret.png 0", "outside the data folder"),
        ("/etc/passwd 0", "outside the data folder"),
        ("images/missing.png 0", "does not exist"),
        ("images/0.png", "instead of an image path and a class number"),
        ("images/0.png cat", "instead of an image path and a class number"),
        ("images/0.png -1", "instead of an image path and a class number"),
        ("images/1.png 1\nimages/1.png 1", "'images/1.png' is listed twice"),
    ],
)
def test_faulty_lists_are_refused(tmp_path: Path, line: str, message: str) -> None:
    root = tmp_path / "data"
    save(tmp_path / "secret.png")
    save(root / "images" / "0.png")
    save(root / "images" / "1.png")
    (root / "train800val200.txt").write_text(line)
    (root / "test.txt").write_text("images/0.png 0")
    with pytest.raises(InvalidInputError, match=message):
        load_data(str(root))


def test_arrays_become_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x: dict[str, NDArray[Any]] = {
        "x_train": rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8),
        "x_test": np.zeros((2, 4, 6), np.uint8),
    }
    x |= {"y_train": np.array([[0], [1], [2], [0], [1]]), "y_test": np.array([1, 3], np.uint8)}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **x)
    data = load_data(str(tmp_path / "a.npz"))
    assert data.class_names == ("0", "1", "2", "3")
    assert data.splits["train"].labels.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_array_equal(np.asarray(data.splits["train"].image(3)), x["x_train"][3])
    assert data.splits["test"].image(0).mode == "RGB"
    assert len(set(data.splits["train"].manifest().digests)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": None}, "has no 'y_train'"),
        ({"x_train": np.zeros((2, 4, 4), np.float32)}, "must be uint8"),
        ({"x_train": np.zeros((2, 3, 4, 4), np.uint8)}, "must be uint8"),
        ({"y_train": np.zeros(3, int)}, "one whole number for each of the 2 images"),
        ({"y_train": np.zeros(2)}, "one whole number"),
        ({"y_train": np.array([0, -1])}, "negative label"),
        ({"x_train": np.zeros((0, 4, 4), np.uint8), "y_train": np.zeros(0, int)}, "is empty"),
        ({"x_val": np.zeros((1, 4, 4), np.uint8)}, "has no labels; add 'y_val'"),
        ({"y_train": np.array([0, None], dtype=object)}, "cannot be read as plain arrays"),
    ],
)
def test_faulty_arrays_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    arrays: dict[str, Any] = {f"x_{s}": np.zeros((2, 4, 4), np.uint8) for s in ("train", "test")}
    arrays |= {f"y_{s}": np.zeros(2, int) for s in ("train", "test")} | changes
    np.savez(tmp_path / "a.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InvalidInputError, match=message):
        load_data(str(tmp_path / "a.npz"))


def test_missing_and_empty_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "nonsense": "give 'digits', a folder or an .npz file",
        f"folder:{tmp_path}/nowhere": "does not exist",
        str(tmp_path / "no.npz"): "does not exist",
        str(tmp_path / "text.npz"): "cannot be read as plain arrays",
        str(tmp_path / "empty"): "has no class folders",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            load_data(name)


def test_faulty_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "one" / "ant" / "0.png")
    save(tmp_path / "one" / "bee" / "0.png")
    save(tmp_path / "one" / "bee" / "1.png")
    (tmp_path / "hollow" / "ant").mkdir(parents=True)
    save(tmp_path / "alone" / "train" / "ant" / "0.png")
    save(tmp_path / "mixed" / "train" / "ant" / "0.png")
    save(tmp_path / "mixed" / "ant" / "0.png")
    save(tmp_path / "unknown" / "train" / "ant" / "0.png")
    save(tmp_path / "unknown" / "test" / "bee" / "0.png")
    save(tmp_path / "flat" / "train" / "0.png")
    save(tmp_path / "flat" / "test" / "0.png")
    for name, message in {
        "one": "holds one image; at least two",
        "hollow": "holds no images; endings read are",
        "alone": "has a 'train' but no 'test' folder",
        "mixed": "has 'ant' beside 'train'",
        "unknown": "class 'bee' .* has no folder of that name in 'train'",
        "flat": "has no class folders",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            load_data(str(tmp_path / name))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (255, 255, 255)),
        ("I;16", 257 * 60, (60, 60, 60)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_every_kind_of_png_becomes_rgb(mode: str, color: int, expected: tuple[int, int, int]) -> None:
    image = decode(encoded(Image.new(mode, (3, 2), color)))
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def test_cmyk_palettes_and_transparent_colours_become_rgb() -> None:
    cmyk = decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), format="TIFF"))
    assert cmyk.getpixel((0, 0)) == (255, 0, 0)
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette)).getpixel((0, 0)) == RED
    see_through = decode(encoded(palette, transparency=0))
    assert see_through.getpixel((0, 0)) == (255, 255, 255)
    assert see_through.getpixel((1, 0)) == (1, 2, 3)
    assert decode(encoded(Image.new("RGB", (1, 1), RED), transparency=RED)).getpixel((0, 0)) == (255, 255, 255)


def test_orientation_tags_are_applied() -> None:
    image = Image.new("RGB", (4, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, format="JPEG", exif=exif)).size == (2, 4)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, (0, 0, 255))]
    content = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    assert decode(content).getpixel((0, 0)) == RED


def png_header(width: int, height: int) -> bytes:
    """Return a small PNG that claims a size."""
    header, data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_bad_images_are_listed_with_the_reason(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    contents = {
        "good.png": encoded(noise),
        "cut.jpg": encoded(noise, format="JPEG")[:-2000],
        "cut.png": encoded(noise)[:-6000],
        "empty.png": b"",
        "float.tiff": encoded(Image.new("F", (2, 2)), format="TIFF"),
        "header.png": encoded(noise)[:20],
        "huge.png": png_header(30_000, 30_000),
        "large.png": png_header(10_000, 10_000),
        "text.png": b"not an image at all",
    }
    for split in ("train", "test"):
        (tmp_path / split / "ant").mkdir(parents=True)
        for name, content in contents.items():
            (tmp_path / split / "ant" / name).write_bytes(content)
    split_data = load_data(str(tmp_path)).splits["train"]
    (tmp_path / "train" / "ant" / "good.png").rename(tmp_path / "kept.png")
    manifest, bad = scan(split_data)
    assert manifest is None
    reasons = dict(bad)
    for name, reason in {
        "cut.jpg": "damaged or truncated",
        "cut.png": "damaged or truncated",
        "empty.png": "is an empty file",
        "float.tiff": "floating-point pixels",
        "good.png": "cannot be read: No such file",
        "header.png": "",
        "huge.png": "cannot be opened: .*decompression bomb",
        "large.png": "decompression bomb|more than the limit",
        "text.png": "is not an image that Pillow can read",
    }.items():
        assert f"ant/{name}" in reasons
        with pytest.raises(InvalidInputError, match=f"image 'ant/{name}' .*{reason}"):
            split_data.image(split_data.ids.index(f"ant/{name}"))
    with pytest.raises(InvalidInputError, match=r"image 'ant/good\.png' cannot be read"):
        split_data.manifest()
    (tmp_path / "kept.png").rename(tmp_path / "train" / "ant" / "good.png")
    assert "ant/good.png" not in dict(find_bad_images(split_data))


def test_one_reading_gives_the_manifest_and_finds_nothing_in_good_images(split_folder: Path) -> None:
    train = load_data(str(split_folder)).splits["train"]
    manifest, bad = scan(train)
    assert bad == []
    assert manifest is not None
    assert manifest.spec() == train.manifest().spec()


def test_splits_travel_to_other_processes(split_folder: Path) -> None:
    for data in (load_data(str(split_folder)), load_data("digits")):
        split: ImageSplit = pickle.loads(pickle.dumps(data.splits["test"]))
        assert split.image(1).tobytes() == data.splits["test"].image(1).tobytes()


def test_a_misspelt_training_folder_is_not_taken_for_a_class(tmp_path):
    for split in ("trian", "test"):
        for label in ("ant", "bee"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / label / "a.png")
    with pytest.raises(InvalidInputError, match="'test', 'trian', all with folders inside, but no 'train'"):
        load_data(str(tmp_path))
