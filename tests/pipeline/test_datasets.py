"""Images arrive upright in RGB with stable ids, labels, splits and digests; what is wrong with them is said."""

from __future__ import annotations

import hashlib
import io
import os
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

from pipeline.datasets import ImageSplit, load_data
from pipeline.images import decode
from pipeline.labels import stratified_test_ids
from store.errors import InvalidInputError

RED = (200, 10, 30)


def save(path: Path, color: tuple[int, ...] = RED, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))  # type: ignore[arg-type]  # any of Pillow's
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
    for label, (name, count) in enumerate({"ant": 10, "bee": 25, "cat": 3}.items()):
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
        "train": [8, 20, 2],
        "test": [2, 5, 1],
    }
    assert "8 of 38 images" in data.note
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
    assert data.splits["test"].image(0).size == (6, 4)


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
        ("images/0.png ²", "instead of an image path and a class number"),
        ("images/0.png 999999999", "label 999999999 of .* is no class; classes are numbered from 0 to 999,999"),
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


def test_a_vtab_folder_may_lack_the_joined_list(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "images" / f"{i}.jpg")
    (tmp_path / "train800.txt").write_text("images/0.jpg 0\nimages/1.jpg 1\n")
    (tmp_path / "val200.txt").write_text("images/2.jpg 1\n")
    with pytest.raises(InvalidInputError, match=r"has list files but no test\.txt"):
        load_data(str(tmp_path))
    (tmp_path / "test.txt").write_text("images/3.jpg 1\n")
    data = load_data(str(tmp_path))
    assert data.splits["train"].ids == ("images/0.jpg", "images/1.jpg", "images/2.jpg")
    assert data.splits["val"].ids == ("images/2.jpg",)
    (tmp_path / "val200.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"has list files but no train800val200\.txt"):
        load_data(str(tmp_path))


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train800val200.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match=r"train800val200\.txt' is not text"):
        load_data(str(tmp_path))


def test_links_that_leave_the_data_folder_are_refused(tmp_path: Path) -> None:
    secret = save(tmp_path / "elsewhere" / "cls" / "secret.png")
    for split in ("train", "test"):
        for i in range(2):
            save(tmp_path / "data" / split / "ant" / f"{i}.png")
    listed = tmp_path / "listed"
    save(listed / "images" / "0.png")
    (listed / "test.txt").write_text("images/0.png 0")
    for link, target in {
        "data/train/ant/link.png": secret,
        "data/train/bee": secret.parent,
        "data/val": secret.parent.parent,
        "data/test/ant/deep": secret.parent,
        "data/train/ant/relative.png": Path("../../../elsewhere/cls/secret.png"),
        "listed/images/link.png": secret,
        "listed/linked": secret.parent,
    }.items():
        path = tmp_path / link
        path.symlink_to(target)
        line = "images/link.png 0" if "images" in link else "linked/secret.png 0"
        (listed / "train800val200.txt").write_text(line)
        with pytest.raises(InvalidInputError, match=r"leads to '.*elsewhere.*', .*outside the data folder"):
            load_data(str(tmp_path / link.split("/")[0]))
        path.unlink()


def test_links_within_the_data_folder_are_followed_once(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "data" / "train" / "ant" / f"{i}.png")
    (tmp_path / "data" / "test").symlink_to("train")
    (tmp_path / "data" / "train" / "ant" / "link.png").symlink_to("0.png")
    (tmp_path / "linked").symlink_to("data")
    data = load_data(str(tmp_path / "linked"))
    assert data.splits["test"].ids == ("ant/0.png", "ant/1.png", "ant/link.png")
    (tmp_path / "data" / "train" / "ant" / "loop").symlink_to("..")
    with pytest.raises(InvalidInputError, match="loop' leads to a folder that it lies in"):
        load_data(str(tmp_path / "data"))


def test_images_without_a_label_are_refused(tmp_path: Path, split_folder: Path) -> None:
    save(split_folder / "train" / "stray.png")
    save(split_folder / "train" / "stray too.png")
    with pytest.raises(InvalidInputError, match=r"'stray too\.png' lies beside the class folders .*, as do 1 more"):
        load_data(str(split_folder))


def test_a_class_with_one_training_sample_is_refused(split_folder: Path) -> None:
    save(split_folder / "train" / "cat" / "0.png")
    with pytest.raises(
        InvalidInputError, match=r"class 'cat' of .* has 1 training sample, too few for cross-validation"
    ):
        load_data(str(split_folder))
    save(split_folder / "train" / "dog" / "0.png")
    with pytest.raises(InvalidInputError, match=r"classes 'cat', 'dog' of .* have 1 training sample each"):
        load_data(str(split_folder))
    for name in ("cat", "dog"):
        save(split_folder / "train" / name / "1.png")
        save(split_folder / "test" / name / "0.png")
    assert len(load_data(str(split_folder)).splits["test"]) == 6


def test_a_folder_without_permission_is_refused_and_not_passed_over(split_folder: Path) -> None:
    real = os.scandir

    def forbidding(path: Any) -> Any:
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", forbidding)
        with pytest.raises(InvalidInputError, match="bee' cannot be read: permission denied"):
            load_data(str(split_folder))


def test_arrays_become_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x: dict[str, NDArray[Any]] = {
        "x_train": rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8),
        "x_test": np.zeros((2, 4, 6), np.uint8),
    }
    x |= {"y_train": np.array([[0], [1], [1], [0], [1]]), "y_test": np.array([1, 3], np.uint8)}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **x)
    data = load_data(str(tmp_path / "a.npz"))
    assert data.class_names == ("0", "1", "2", "3")
    assert data.splits["train"].labels.tolist() == [0, 1, 1, 0, 1]
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
        ({"x_train": np.zeros((0, 4, 4), np.uint8), "y_train": np.zeros(0, int)}, "has no images"),
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
        "nonsense": "give 'digits', 'offline/<task>', a folder or an .npz file",
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


@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        (1, ["AB", "CD"]),
        (2, ["BA", "DC"]),
        (3, ["DC", "BA"]),
        (4, ["CD", "AB"]),
        (5, ["AC", "BD"]),
        (6, ["CA", "DB"]),
        (7, ["DB", "CA"]),
        (8, ["BD", "AC"]),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_tag_turns_the_image_upright(orientation: int, rows: list[str], form: str) -> None:
    grey = {"A": 10, "B": 90, "C": 170, "D": 250}
    stored = np.kron(np.array([[grey["A"], grey["B"]], [grey["C"], grey["D"]]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.fromarray(stored).convert("RGB"), format=form, exif=exif))
    corners = [[image.getpixel((x, y)) for x in (4, 27)] for y in (4, 27)]
    for row, expected in zip(corners, rows, strict=True):
        for pixel, letter in zip(row, expected, strict=True):
            assert isinstance(pixel, tuple)
            assert max(abs(channel - grey[letter]) for channel in pixel) < 12


def deep_png(values: NDArray[np.uint16], kind: int) -> bytes:
    """Return a PNG of 16 bits per channel, of shape (height, width, channels); Pillow writes none."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (0, [257 * 60], (60, 60, 60)),
        (2, [257 * 200, 257 * 10, 257 * 30], RED),
        (4, [257 * 60, 65535], (60, 60, 60)),
        (4, [257 * 60, 0], (255, 255, 255)),
        (6, [257 * 200, 257 * 10, 257 * 30, 65535], RED),
        (6, [257 * 200, 257 * 10, 257 * 30, 0], (255, 255, 255)),
    ],
)
def test_16_bits_per_channel_become_8(kind: int, values: list[int], expected: tuple[int, int, int]) -> None:
    content = deep_png(np.full((2, 3, len(values)), values, np.uint16), kind)
    assert decode(content).getpixel((2, 1)) == expected


def test_16_bit_tiffs_of_both_byte_orders_become_8() -> None:
    grey = np.full((2, 3), 257 * 60, np.uint16)
    for order in ("<u2", ">u2"):
        buffer = io.BytesIO()
        Image.fromarray(grey.astype(order)).save(buffer, "TIFF")
        assert decode(buffer.getvalue()).getpixel((1, 1)) == (60, 60, 60)


def test_cmyk_photographs_become_rgb() -> None:
    image = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format="JPEG", quality=100))
    red, green, blue = image.getpixel((8, 8))  # type: ignore[misc]  # a tuple in this mode
    assert (red > 250, green < 5, blue < 5) == (True, True, True)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, (0, 0, 255))]
    content = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    assert decode(content).getpixel((0, 0)) == RED


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
