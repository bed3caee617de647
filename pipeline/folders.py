"""Image files on disk as lists of samples: class folders, split folders and VTAB-1k list files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.images import SUFFIXES
from store.errors import InvalidInputError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLITS = ("train", "val", "test")
VTAB_LISTS = {"train": "train800val200.txt", "val": "val200.txt", "test": "test.txt"}
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Entry:
    """One image file: its id, its class index and its path."""

    id: str
    label: int
    path: Path


@dataclass(frozen=True)
class Listing:
    """The samples below a folder: class names in label order, entries by split, and a remark on how they were split."""

    class_names: tuple[str, ...]
    splits: dict[str, list[Entry]]
    note: str = ""


def list_folder(root: Path) -> Listing:
    """Return what lies below `root`, in whichever of the three layouts it is.

    Parameters
    ----------
    root : Path
        ``<root>/train/<class>/*``, with ``test`` and optionally ``val`` beside ``train``; or ``<root>/<class>/*``,
        of which one fifth per class becomes the test split; or a VTAB-1k folder with ``train800val200.txt``,
        ``test.txt`` and optionally ``val200.txt`` of lines ``path label``.

    Returns
    -------
    Listing
        Entries in order of id, or in the order of the list files.

    Raises
    ------
    InvalidInputError
        If the folder is missing or empty, or a split cannot be made of it.
    """
    if not root.is_dir():
        raise InvalidInputError(f"data folder {str(root)!r} does not exist.")
    if (root / VTAB_LISTS["train"]).is_file():
        return _from_lists(root)
    folders = _subfolders(root)
    if not folders:
        raise InvalidInputError(f"data folder {str(root)!r} has no class folders; put images in <folder>/<class>/.")
    splits = {SPLIT_FOLDERS[name]: root / name for name in folders if name in SPLIT_FOLDERS}
    nested = [name for name in folders if _subfolders(root / name)]
    if "train" not in splits and splits and len(nested) == len(folders):
        raise InvalidInputError(
            f"data folder {str(root)!r} has {', '.join(repr(name) for name in folders)}, all with folders "
            "inside, but no 'train'; rename the one with the training images to 'train'."
        )
    if "train" not in splits:
        return _split_automatically(root)
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
    return _from_split_folders(splits)


def stratified_test_ids(ids: Sequence[str], labels: Sequence[int], n_test: int) -> set[str]:
    """Choose `n_test` ids for testing, each class in proportion, the same ones every time.

    Within a class the ids are ordered by their SHA-256 digest, so the choice looks random and depends on nothing else.

    Parameters
    ----------
    ids : sequence of str
        Unique ids.
    labels : sequence of int
        Class index per id.
    n_test : int
        How many to choose.

    Returns
    -------
    set of str
        The chosen ids. A class gives its share rounded down, and the largest remainders one more.
    """
    shares = {label: count * n_test / len(ids) for label, count in Counter(labels).items()}
    quota = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quota[label] - shares[label], label))
    for label in by_remainder[: n_test - sum(quota.values())]:
        quota[label] += 1
    chosen: set[str] = set()
    for name, label in sorted(zip(ids, labels, strict=True), key=lambda p: hashlib.sha256(p[0].encode()).digest()):
        if quota[label] > 0:
            quota[label] -= 1
            chosen.add(name)
    return chosen


def _subfolders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    """Return the image files anywhere below `folder`, as sorted relative posix paths."""
    found = []
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(directory).relative_to(folder)
        found += [
            (below / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _entries(root: Path, class_names: Sequence[str]) -> list[Entry]:
    entries = []
    for label, name in enumerate(class_names):
        if not (root / name).is_dir():
            continue
        images = _images(root / name)
        if not images:
            raise InvalidInputError(
                f"class folder {str(root / name)!r} holds no images; endings read are {', '.join(SUFFIXES)}."
            )
        entries += [Entry(f"{name}/{image}", label, root / name / image) for image in images]
    return entries


def _from_split_folders(splits: dict[str, Path]) -> Listing:
    class_names = tuple(_subfolders(splits["train"]))
    if not class_names:
        raise InvalidInputError(f"data folder {str(splits['train'])!r} has no class folders.")
    for folder in splits.values():
        unknown = [name for name in _subfolders(folder) if name not in class_names]
        if unknown:
            raise InvalidInputError(f"class {unknown[0]!r} of {str(folder)!r} has no folder of that name in 'train'.")
    listing = Listing(class_names, {split: _entries(splits[split], class_names) for split in SPLITS if split in splits})
    for split, entries in listing.splits.items():
        if not entries:
            raise InvalidInputError(f"data folder {str(splits[split])!r} has no class folders.")
    return listing


def _split_automatically(root: Path) -> Listing:
    class_names = tuple(_subfolders(root))
    entries = _entries(root, class_names)
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
    if "test" not in splits:
        raise InvalidInputError(f"data folder {str(root)!r} has {VTAB_LISTS['train']} but no {VTAB_LISTS['test']}.")
    n_classes = 1 + max(entry.label for entries in splits.values() for entry in entries)
    return Listing(tuple(str(label) for label in range(n_classes)), splits)


def _read_list(root: Path, name: str) -> list[Entry]:
    entries = []
    for number, line in enumerate((root / name).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {str(root / name)!r}"
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdigit():
            raise InvalidInputError(f"{where} is {line.strip()!r} instead of an image path and a class number.")
        relative = PurePosixPath(path.strip())
        if relative.is_absolute() or ".." in relative.parts:
            raise InvalidInputError(f"{where} names {path!r}, which is outside the data folder.")
        if not (root / relative).is_file():
            raise InvalidInputError(f"{where} names {path!r}, which does not exist.")
        entries.append(Entry(str(relative), int(label), root / relative))
    if not entries:
        raise InvalidInputError(f"list file {str(root / name)!r} is empty.")
    return entries
