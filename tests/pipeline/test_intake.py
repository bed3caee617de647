"""Every image is looked at once before anything is written: the bad ones are listed completely, or left out aloud."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pipeline import images as images_module
from pipeline.datasets import load_data
from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.images import FileImage, decode
from pipeline.intake import describe_skipped, known_digests, take_in
from store import open_store
from store.errors import InvalidInputError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def encoded(image: Image.Image = NOISE, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a small PNG that claims a size."""
    header, data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD = {
    "cut.jpg": (encoded(form="JPEG")[:-2000], "is damaged or truncated"),
    "cut.png": (encoded()[:-6000], "is damaged or truncated"),
    "empty.png": (b"", "is an empty file"),
    "zeros.png": (bytes(5000), "is not an image that Pillow can read"),
    "float.tiff": (encoded(Image.new("F", (2, 2)), "TIFF"), "has floating-point pixels"),
    "header.png": (encoded()[:20], ""),
    "huge.png": (png_header(30_000, 30_000), "cannot be opened: .*decompression bomb"),
    "large.png": (png_header(10_000, 10_000), "decompression bomb|more than the limit"),
    "text.png": (b"not an image at all", "is not an image that Pillow can read"),
}


def write_good(root: Path, count: int = 4) -> Path:
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (label, i, len(split))).save(folder / f"{i}.png")
    return root


def write_bad(root: Path) -> list[str]:
    """Add every kind of bad image, and return how they are called."""
    folder = root / "train" / "ant"
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)
    (folder / "broken link.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    return [f"train/ant/{name}" for name in (*BAD, "broken link.png", "pipe.png")]


def parameters(folder: Path, **changes: object) -> ExtractionParameters:
    chosen = {"backbone": "test_resnet", "weights": "random:0", "data": str(folder), "image_size": 32, "block_size": 4}
    return ExtractionParameters(**(chosen | changes))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the contents that were decoded."""
    sizes: list[int] = []

    def counting(content: bytes) -> Image.Image:
        sizes.append(len(content))
        return decode(content)

    monkeypatch.setattr(images_module, "decode", counting)
    return sizes


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read."""
    paths: list[Path] = []
    content = FileImage.content

    def counting(image: FileImage) -> bytes:
        paths.append(image.path)
        return content(image)

    monkeypatch.setattr(FileImage, "content", counting)
    return paths


def test_all_bad_images_are_listed_with_the_reason_and_nothing_is_written(tmp_path: Path) -> None:
    bad = write_bad(write_good(tmp_path / "data"))
    with pytest.raises(InvalidInputError) as caught:
        extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    message = str(caught.value)
    assert message.startswith(f"{len(bad)} images cannot be used: ")
    assert "--on-bad-image skip" in message
    for name in bad:
        assert f"{name} (" in message
    assert "ant/0.png" not in message
    assert list((tmp_path / "root").glob("*.zarr")) == []


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_bad_image_is_named_where_it_is_read(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    write_good(tmp_path)
    file = tmp_path / "train" / "ant" / name
    file.write_bytes(content)
    split = load_data(str(tmp_path)).splits["train"]
    with pytest.raises(InvalidInputError, match=f"image '{file}' .*{reason}.*; repair it or leave it out"):
        split.image(split.ids.index(f"ant/{name}"))


def test_an_image_of_a_folder_that_is_split_here_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_good(Path("both"))
    Path("both/train").rename("photos")
    Path("photos/ant/broken.png").write_bytes(b"")
    data = load_data("photos")
    [split] = [name for name, images in data.splits.items() if "ant/broken.png" in images.ids]
    with pytest.raises(InvalidInputError, match=r"used: photos/ant/broken\.png \(is an empty file\); repair"):
        take_in(data)
    left_out = take_in(data, "skip")
    assert left_out.note == "left out 1 image that cannot be used: photos/ant/broken.png (is an empty file)."
    assert left_out.skipped == {split: {"ant/broken.png": "is an empty file"}}
    assert describe_skipped(left_out.skipped).endswith(f"used: ant/broken.png of {split} (is an empty file).")


def test_a_list_longer_than_a_screen_is_still_complete(tmp_path: Path) -> None:
    write_good(tmp_path)
    for i in range(150):
        (tmp_path / "train" / "ant" / f"bad{i:03d}.png").write_bytes(b"")
    with pytest.raises(InvalidInputError) as caught:
        take_in(load_data(str(tmp_path)))
    assert all(f"bad{i:03d}.png (is an empty file)" in str(caught.value) for i in range(150))


def test_skipped_images_are_left_out_and_said_so(tmp_path: Path) -> None:
    bad = write_bad(write_good(tmp_path / "data"))
    done = extract(parameters(tmp_path / "data", on_bad_image="skip"), str(tmp_path / "root"))
    assert done.extracted == 16
    store = open_store(done.uri)
    assert store.ids("train") == [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(4)]
    skipped = store.provenance["skipped_images"]
    assert [f"train/{name}" for name in skipped["train"]] == sorted(bad)
    assert skipped["train"]["ant/empty.png"] == "is an empty file"
    made, note = done.notes
    assert made.startswith("preprocessing is a ")
    assert note.startswith(f"left out {len(bad)} images that cannot be used: ")
    assert all(name in note for name in bad)
    for path in (tmp_path / "data" / "train" / "ant").iterdir():
        if f"train/ant/{path.name}" in bad:
            path.unlink()
    clean = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    assert (clean.uri, clean.extracted, clean.notes) == (done.uri, 0, done.notes[:1])


@pytest.mark.slow
def test_the_command_says_on_standard_error_what_it_skips(tmp_path: Path) -> None:
    write_good(tmp_path / "data")
    (tmp_path / "data" / "test" / "bee" / "9.png").write_bytes(b"")
    words = ["extract", "--backbone", "test_resnet", "--weights", "random:0", "--image-size", "32"]
    words += ["--data", str(tmp_path / "data"), "--root", str(tmp_path / "root")]
    stopped = CliRunner().invoke(app, words)
    assert stopped.exit_code == 2
    bad = tmp_path / "data" / "test" / "bee" / "9.png"
    assert f"1 image cannot be used: {bad} (is an empty file)" in stopped.stderr.replace("\n", " ")
    skipped = CliRunner().invoke(app, [*words, "--on-bad-image", "skip"])
    assert skipped.exit_code == 0, skipped.stderr
    assert f"left out 1 image that cannot be used: {bad} (is an empty file)." in skipped.stderr
    assert skipped.stdout.strip().endswith(".zarr")


def test_skipping_a_whole_class_or_split_is_refused(tmp_path: Path) -> None:
    write_good(tmp_path)
    for path in (tmp_path / "train" / "ant").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="every training image of class 'ant' is bad: 4 images cannot be used"):
        take_in(load_data(str(tmp_path)), "skip")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "ant" / "0.png")
    with pytest.raises(InvalidInputError, match=r"class 'ant' of .* has 1 training sample"):
        take_in(load_data(str(tmp_path)), "skip")
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"every image of split 'test' of .* is bad"):
        take_in(load_data(str(tmp_path)), "skip")


@pytest.mark.slow
def test_a_new_extraction_decodes_twice_and_a_resumed_one_only_what_is_missing(
    tmp_path: Path, decoded: list[int], reads: list[Path]
) -> None:
    write_good(tmp_path / "data")
    chosen, root = parameters(tmp_path / "data"), str(tmp_path / "root")
    done = extract(chosen, root)
    assert (len(decoded), len(reads)) == (32, 32)  # once to check, once to extract
    decoded.clear()
    reads.clear()
    assert extract(chosen, root).extracted == 0
    assert (len(decoded), len(reads)) == (0, 16)  # contents are part of the identity
    (Path(done.uri) / "blocks" / "train").joinpath(sorted(os.listdir(Path(done.uri) / "blocks" / "train"))[1]).unlink()
    assert extract(chosen, root).extracted == 4
    assert len(decoded) == 4
    decoded.clear()
    extract(chosen.model_copy(update={"weights": "random:1"}), root)
    assert len(decoded) == 16  # another backbone's images were checked for the first


@pytest.mark.slow
def test_a_resumed_extraction_skips_the_same_images(tmp_path: Path, decoded: list[int]) -> None:
    n_bad = len(write_bad(write_good(tmp_path / "data")))
    chosen = parameters(tmp_path / "data", on_bad_image="skip")
    done = extract(chosen, str(tmp_path / "root"))
    decoded.clear()
    again = extract(chosen, str(tmp_path / "root"))
    assert (again.uri, again.extracted) == (done.uri, 0)
    assert len(decoded) <= n_bad
    with pytest.raises(InvalidInputError, match=f"{n_bad} images cannot be used"):
        extract(parameters(tmp_path / "data"), str(tmp_path / "root"))


@pytest.mark.slow
def test_a_repaired_image_is_another_extraction(tmp_path: Path) -> None:
    write_good(tmp_path / "data")
    bad = tmp_path / "data" / "train" / "ant" / "0.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:30])
    chosen, root = parameters(tmp_path / "data", on_bad_image="skip"), str(tmp_path / "root")
    first = extract(chosen, root)
    bad.write_bytes(good)
    second = extract(chosen, root)
    assert second.uri != first.uri
    assert open_store(second.uri).ids("train")[0] == "ant/0.png"


@pytest.mark.slow
def test_grown_data_is_decoded_where_it_is_new(tmp_path: Path, decoded: list[int]) -> None:
    write_good(tmp_path / "data")
    small = extract(parameters(tmp_path / "data"), str(tmp_path / "one"))
    NOISE.save(tmp_path / "data" / "train" / "ant" / "new.png")
    decoded.clear()
    extract(parameters(tmp_path / "data", extend=small.uri), str(tmp_path / "other"))
    assert len(decoded) == 2


@pytest.mark.slow
def test_only_stores_of_images_vouch_for_images(tmp_path: Path) -> None:
    assert known_digests(str(tmp_path / "nowhere"), ("ant", "bee")) == set()
    write_good(tmp_path / "data")
    done = extract(parameters(tmp_path / "data"), str(tmp_path / "root"))
    expected = set(open_store(done.uri).digests("train") + open_store(done.uri).digests("test"))
    assert known_digests(str(tmp_path / "root"), ("ant", "bee")) == expected
    assert known_digests(str(tmp_path / "root"), ("ant", "wasp")) == set()
    shutil.copytree(done.uri, tmp_path / "root" / "00damaged.zarr")
    (tmp_path / "root" / "00damaged.zarr" / "zarr.json").write_text("{")
    assert known_digests(str(tmp_path / "root"), ("ant", "bee")) == expected


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """An image that this process may not read."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "secret.png"
    path.write_bytes(encoded())
    path.chmod(0)
    folder.chmod(0o755)
    superuser = os.geteuid() == 0
    try:
        if superuser:
            os.seteuid(65534)  # nobody: the superuser may read everything
        yield path
    finally:
        if superuser:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_a_file_without_permission_is_bad(unreadable: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"^cannot be read: Permission denied$"):
        FileImage(unreadable).check(frozenset())


def test_damaged_files_of_any_format_are_bad_and_never_an_unexpected_error() -> None:
    rng = np.random.default_rng(0)
    forms = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "DDS", "TGA")
    contents = [encoded(NOISE.resize((9, 7)), form) for form in forms]
    n_bad = 0
    for _ in range(800):
        content = bytearray(contents[rng.integers(len(contents))])
        for position in rng.integers(0, min(200, len(content)), 4):
            content[position] = rng.integers(256)
        try:
            decode(bytes(content[: rng.integers(len(content) // 2, len(content) + 1)]))
        except InvalidInputError:
            n_bad += 1
    assert n_bad > 400
