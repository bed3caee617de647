"""Image files on disk as lists of samples: class folders, split folders and VTAB-1k list files."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.images import SUFFIXES
from pipeline.labels import numbered_classes, stratified_test_ids
from store.errors import InvalidInputError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLITS = ("train", "val", "test")
VTAB_LISTS = {"train": "train800val200.txt", "val": "val200.txt", "test": "test.txt"}
VTAB_TRAIN_ONLY = "train800.txt"
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Entry:
    """One image file: its id, its class index and its path."""

    id: str
    label: int
    path: Path


@dataclass(frozen=True)
class Listing:
    """The samples below a folder.

    Attributes
    ----------
    class_names : tuple of str
        In the order of the labels.
    splits : dict of str to list of Entry
        Samples by split.
    note : str
        How they were split, where the folder does not say.
    prescribed : bool
        They are those of a benchmark's list files.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[Entry]]
    note: str = ""
    prescribed: bool = False


def list_folder(root: Path) -> Listing:
    """Return what lies below `root`, in whichever of the three layouts it is.

    Parameters
    ----------
    root : Path
        ``<root>/train/<class>/*``, with ``test`` and optionally ``val`` beside ``train``; or ``<root>/<class>/*``,
        of which one fifth per class becomes the test split; or a VTAB-1k folder with ``train800val200.txt`` (or
        ``train800.txt`` and ``val200.txt``), ``test.txt`` and optionally ``val200.txt`` of lines ``path label``.

    Returns
    -------
    Listing
        Entries in order of id, or in the order of the list files.

    Raises
    ------
    InvalidInputError
        If the folder is missing or empty, a link leads out of it, an image has no label, or a split cannot be made.
    """
    if not root.is_dir():
        raise InvalidInputError(f"data folder {str(root)!r} does not exist.")
    try:
        return _list_folder(root)
    except PermissionError as error:
        raise InvalidInputError(f"folder {str(error.filename)!r} cannot be read: permission denied.") from error


def _list_folder(root: Path) -> Listing:
    if any((root / name).is_file() for name in (VTAB_LISTS["train"], VTAB_TRAIN_ONLY)):
        return _from_lists(root)
    fence = _Fence(root)
    folders = _subfolders(root, fence)
    if not folders:
        raise InvalidInputError(f"data folder {str(root)!r} has no class folders; put images in <folder>/<class>/.")
    splits = {SPLIT_FOLDERS[name]: root / name for name in folders if name in SPLIT_FOLDERS}
    nested = [name for name in folders if _subfolders(root / name, fence)]
    if "train" not in splits and splits and len(nested) == len(folders):
        raise InvalidInputError(
            f"data folder {str(root)!r} has {', '.join(repr(name) for name in folders)}, all with folders "
            "inside, but no 'train'; rename the one with the training images to 'train'."
        )
    if "train" not in splits:
        return _split_automatically(root, fence)
    others = [name for name in folders if name not in SPLIT_FOLDERS]
    if others:
        raise InvalidInputError(
            f"data folder {str(root)!r} has {others[0]!r} beside 'train'; "
            f"give either split folders ({', '.join(SPLIT_FOLDERS)}) or class folders."
        )
    if len(splits) == 1:
        raise InvalidInputError(
            f"data folder {str(root)!r} has a 'train' but no 'test' folder; add one, "
            f"or give {str(splits['train'])!r} to have it split automatically."
        )
    return _from_split_folders(splits, fence)


class _Fence:
    """Keeps links inside a data folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)

    def check(self, path: Path) -> None:
        """Refuse a link that leads out of the folder, or a folder into itself."""
        if not path.is_symlink():
            return
        target = os.path.realpath(path)
        if os.path.commonpath([target, self._real]) != self._real:
            raise InvalidInputError(
                f"link {str(path)!r} leads to {target!r}, which is outside the data folder {str(self._root)!r}; put "
                "the images themselves there."
            )
        if os.path.commonpath([target, os.path.realpath(path.parent)]) == target:
            raise InvalidInputError(f"link {str(path)!r} leads to a folder that it lies in; remove it.")


def _subfolders(root: Path, fence: _Fence) -> list[str]:
    folders = [path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir()]
    for path in folders:
        fence.check(path)
    return sorted(path.name for path in folders)


def _class_folders(root: Path, fence: _Fence) -> tuple[str, ...]:
    """Return the names of the folders in `root`, beside which there may be no image."""
    folders = _subfolders(root, fence)
    if not folders:
        raise InvalidInputError(f"data folder {str(root)!r} has no class folders.")
    stray = sorted(path.name for path in root.iterdir() if _is_image(path.name) and not path.is_dir())
    if stray:
        raise InvalidInputError(
            f"image {stray[0]!r} lies beside the class folders of {str(root)!r} and so has no label"
            f"{f', as do {len(stray) - 1} more' if len(stray) > 1 else ''}; move it into one of them."
        )
    return tuple(folders)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _images(folder: Path, fence: _Fence) -> list[str]:
    """Return the image files anywhere below `folder`, as sorted relative posix paths."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for directory, subfolders, files in os.walk(folder, followlinks=True, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = [name for name in files if _is_image(name)]
        for name in (*subfolders, *images):
            fence.check(Path(directory, name))
        found += [(Path(directory) / name).relative_to(folder).as_posix() for name in images]
    return sorted(found)


def _entries(root: Path, class_names: Sequence[str], fence: _Fence) -> list[Entry]:
    entries = []
    for label, name in enumerate(class_names):
        if not (root / name).is_dir():
            continue
        images = _images(root / name, fence)
        if not images:
            raise InvalidInputError(
                f"class folder {str(root / name)!r} holds no images; endings read are {', '.join(SUFFIXES)}."
            )
        entries += [Entry(f"{name}/{image}", label, root / name / image) for image in images]
    return entries


def _from_split_folders(splits: dict[str, Path], fence: _Fence) -> Listing:
    class_names = _class_folders(splits["train"], fence)
    for folder in splits.values():
        unknown = [name for name in _class_folders(folder, fence) if name not in class_names]
        if unknown:
            raise InvalidInputError(f"class {unknown[0]!r} of {str(folder)!r} has no folder of that name in 'train'.")
    entries = {split: _entries(splits[split], class_names, fence) for split in SPLITS if split in splits}
    return Listing(class_names, entries)


def _split_automatically(root: Path, fence: _Fence) -> Listing:
    class_names = _class_folders(root, fence)
    entries = _entries(root, class_names, fence)
    test: set[str] = set()
    for label, name in enumerate(class_names):
        ids = [entry.id for entry in entries if entry.label == label]
        if len(ids) < 2:
            raise InvalidInputError(
                f"class folder {str(root / name)!r} holds one image; at least two are needed to split it."
            )
        test |= stratified_test_ids(ids, [label] * len(ids), max(1, round(TEST_SHARE * len(ids))))
    splits = {
        "train": [entry for entry in entries if entry.id not in test],
        "test": [entry for entry in entries if entry.id in test],
    }
    note = (
        f"the test split is {len(test)} of {len(entries)} images, one fifth of every class by the digest of their names"
    )
    return Listing(class_names, splits, note)


def _from_lists(root: Path) -> Listing:
    splits = {split: _read_list(root, name) for split, name in VTAB_LISTS.items() if (root / name).is_file()}
    if "train" not in splits and "val" in splits:
        splits = {"train": _read_list(root, VTAB_TRAIN_ONLY) + splits["val"], **splits}
    for split in ("train", "test"):
        if split not in splits:
            raise InvalidInputError(f"data folder {str(root)!r} has list files but no {VTAB_LISTS[split]}.")
    names = numbered_classes(max(entry.label for entries in splits.values() for entry in entries), f"of {str(root)!r}")
    return Listing(names, splits, prescribed=True)


def _read_list(root: Path, name: str) -> list[Entry]:
    try:
        lines = (root / name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"list file {str(root / name)!r} is not text in UTF-8.") from error
    fence = os.path.realpath(root)
    real = functools.cache(os.path.realpath)
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number} of {str(root / name)!r}"
        path, _, label = line.strip().rpartition(" ")
        if not path or not re.fullmatch(r"[0-9]{1,9}", label):
            raise InvalidInputError(f"{where} is {line.strip()!r} instead of an image path and a class number.")
        relative = PurePosixPath(path.strip())
        if relative.is_absolute() or ".." in relative.parts:
            raise InvalidInputError(f"{where} names {path!r}, which is outside the data folder.")
        image = root / relative
        # Few folders hold many images, so that asking for the folder's real place is what is cheap.
        place = os.path.realpath(image) if image.is_symlink() else real(image.parent)
        if os.path.commonpath([place, fence]) != fence:
            raise InvalidInputError(f"{where} names {path!r}, a link that leads to {place!r}, outside the data folder.")
        if not image.is_file():
            raise InvalidInputError(f"{where} names {path!r}, which does not exist.")
        entries.append(Entry(str(relative), int(label), image))
    if not entries:
        raise InvalidInputError(f"list file {str(root / name)!r} is empty.")
    return entries
