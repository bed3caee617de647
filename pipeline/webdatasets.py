"""WebDataset shards: .tar files indexed once, so that any image in them can be read by itself."""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.dataset_factory import create_dataset

from pipeline.folders import SPLIT_FOLDERS
from pipeline.image_data import ImageSplit, make_split
from pipeline.images import SUFFIXES, FileImage
from store.errors import InvalidInputError

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""What comes before the first dot of a member's name is its sample, what follows its part, as WebDataset has it."""


@dataclass(frozen=True)
class Shards:
    """The files of one split, and where in them a sample's label is, if not in a ``.cls`` member."""

    files: tuple[Path, ...]
    label_key: str = ""


def find_splits(root: Path) -> dict[str, str]:
    """Return the splits below `root` as timm names them: those of its ``_info.json``, or the names of the shards.

    Parameters
    ----------
    root : Path
        Folder of shards.

    Returns
    -------
    dict of str to str
        timm's split by ours: the name of a split, or file names joined by ``::``.
    """
    for name in ("_info.json", "info.json"):
        if (root / name).is_file():
            try:
                known = json.loads((root / name).read_text(encoding="utf-8"))["splits"]
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(f"{str(root / name)!r} is no description of shards: {error!r}.") from error
            return {SPLIT_FOLDERS[s]: s for s in known if s in SPLIT_FOLDERS}
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob("*.tar")):
        words = re.split(r"[^a-z]+", path.name.lower())
        split = next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)
        if split is not None:
            found.setdefault(split, []).append(path.name)
    return {split: "::".join(names) for split, names in found.items()}


def find_shards(root: Path, split: str) -> Shards:
    """Return the files that timm reads for a split.

    Parameters
    ----------
    root : Path
        Folder of shards.
    split : str
        As in timm: a split of ``_info.json``, or file names with braces such as ``train-{0000..0007}.tar``.

    Raises
    ------
    InvalidInputError
        If WebDataset is not installed, or there is no such split or file.
    """
    # timm warns of every folder without _info.json, which need not have one.
    logger = logging.getLogger("timm.data.readers.reader_wds")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        found = create_dataset("wds/", root=str(root), split=split).reader.split_info
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"split {split!r} of the shards in {str(root)!r} cannot be found: {str(error).rstrip('.')}; give file "
            "names, such as --split train=train-{0000..0007}.tar."
        ) from error
    finally:
        logger.setLevel(level)
    files = tuple(root / name for name in found.filenames)
    for file in files:
        if not file.is_file():
            raise InvalidInputError(f"shard {str(file)!r} of split {split!r} does not exist.")
        if not file.resolve().is_relative_to(root.resolve()):
            raise InvalidInputError(f"shard {str(file)!r} of split {split!r} is outside the data folder {str(root)!r}.")
    return Shards(files, str(found.alt_label or ""))


def index_shards(shards: Shards, image_keys: Sequence[str] = (), label_key: str | None = None) -> ImageSplit:
    """Return the samples in some shards, in order; members are located and labels read, but no image.

    Parameters
    ----------
    shards : Shards
        Where they are.
    image_keys : sequence of str
        Parts that may be the image; the endings of images if not given.
    label_key : str, optional
        Field of the ``.json`` part that is the label; the ``.cls`` part if not given.

    Returns
    -------
    ImageSplit
        Ids are ``<shard>/<key>``.

    Raises
    ------
    InvalidInputError
        If a shard is compressed or damaged, or a sample has no image or no label.
    """
    wanted = tuple(image_keys) or tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
    field = label_key or shards.label_key
    ids, labels, sources = [], [], []
    for file in shards.files:
        for key, parts in _samples(file, {*wanted, "json" if field else "cls"}):
            where = f"sample {key!r} of shard {str(file)!r}"
            image = next((parts[name] for name in wanted if name in parts), None)
            if image is None:
                raise InvalidInputError(f"{where} has no image; parts looked for are {', '.join(wanted)}.")
            ids.append(f"{file.stem}/{key}")
            labels.append(_label(parts, field, where))
            sources.append(FileImage(file, *image[:2]))
    if not ids:
        raise InvalidInputError(f"shards {', '.join(repr(str(f)) for f in shards.files)} hold no samples.")
    return make_split(ids, labels, sources)


def _samples(file: Path, wanted: set[str]) -> Iterator[tuple[str, dict[str, tuple[int, int, bytes]]]]:
    """Yield key, and offset, size and (of labels) content by part, of every sample of a shard."""
    key, parts = "", dict[str, tuple[int, int, bytes]]()
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                match = _KEY.fullmatch(member.name)
                if not member.isreg() or match is None:
                    continue
                if match[1] != key:
                    if parts:
                        yield key, parts
                    key, parts = match[1], {}
                name = match[2].lower()
                if name in wanted:
                    stream = archive.extractfile(member) if name in {"cls", "json"} else None
                    parts[name] = (member.offset_data, member.size, stream.read() if stream else b"")
            # Without it, an archive that was cut off would pass for a shorter one.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without the mark of an archive's end, so it is cut off")
        if parts:
            yield key, parts
    except (tarfile.TarError, OSError) as error:
        raise InvalidInputError(
            f"shard {str(file)!r} cannot be indexed: {str(error).rstrip('.')}; it must be an uncompressed, undamaged "
            ".tar file."
        ) from error


def _label(parts: Mapping[str, tuple[int, int, bytes]], field: str, where: str) -> int:
    try:
        if not field:
            label: Any = int(parts["cls"][2].decode("ascii"))
        else:
            label = json.loads(parts["json"][2])[field]
    except (KeyError, ValueError, TypeError) as error:
        expected = f"field {field!r} in its .json part" if field else "whole number in its .cls part"
        raise InvalidInputError(f"{where} has no label; it must be a {expected}.") from error
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise InvalidInputError(f"{where} has the label {label!r}; classes are whole numbers from 0.")
    return label
