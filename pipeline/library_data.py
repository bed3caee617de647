"""Data sets that other libraries know by name, through timm's `create_dataset`: torchvision, Hugging Face, WebDataset.

Only what gives every image by its number is taken from those libraries: file names, encoded bytes or pixels. Streams
cannot be resumed in the middle, so they are indexed once (WebDataset shards) or refused by name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.dataset_factory import create_dataset

from pipeline.arrays import array_split
from pipeline.image_data import ImageData, ImageSplit, make_split
from pipeline.images import EncodedImage, FileImage
from pipeline.labels import class_numbers, numbered_classes
from pipeline.webdatasets import find_shards, find_splits, index_shards
from store.errors import InvalidInputError, suggest

PREFIXES = ("torch", "hfds", "wds", "hfids", "tfds")
STREAMS = {
    "hfids": "'hfds/{name}' reads the same data set with random access",
    "tfds": "export it to a folder, or take it as 'torch/…' or 'hfds/…'",
}
IN_MEMORY = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
IN_FILES = ("imagenet", "inaturalist", "inat", "places365")
FOLDERS = ("image_folder", "folder")
_FAILURES = (OSError, RuntimeError, ValueError, LookupError, TypeError, AssertionError, AttributeError)


@dataclass(frozen=True)
class LibraryOptions:
    """What a name alone does not say.

    Attributes
    ----------
    root : str, optional
        Where the data is, or is kept once fetched.
    download : bool
        Whether torchvision may fetch what is not there.
    splits : mapping of str to str
        The library's split by ours, such as ``{"train": "train[:80%]", "test": "train[80%:]"}``.
    input_key, target_key : str, optional
        Column (Hugging Face) or part (WebDataset) that holds the image, and the label.
    """

    root: str | None = None
    download: bool = False
    splits: Mapping[str, str] | None = None
    input_key: str | None = None
    target_key: str | None = None


@dataclass(frozen=True)
class TableImage(EncodedImage):
    """An image in a row of a Hugging Face data set that gives encoded images."""

    table: Any
    row: int
    column: str

    def content(self) -> bytes:
        cell = self.table[self.row][self.column]
        if cell is None or not (cell.get("bytes") or cell.get("path")):
            raise InvalidInputError("is missing")
        return bytes(cell["bytes"]) if cell.get("bytes") else FileImage(Path(cell["path"])).content()


def load_library_data(name: str, options: LibraryOptions) -> ImageData:
    """Return the data set of a name as timm has it.

    Parameters
    ----------
    name : str
        ``torch/<data set>``, ``hfds/<repository or path>``, ``wds/`` or ``wds/<folder of shards>``.
    options : LibraryOptions
        Where it is and what is what in it.

    Returns
    -------
    ImageData
        Splits as the options say; if they do not, the library's own train, test and validation, the last taking the
        place of a test split where there is none.

    Raises
    ------
    InvalidInputError
        If there is no such data set, split, column or library, a sample has no label, or it can only be streamed.
    """
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix in STREAMS:
        raise InvalidInputError(
            f"data {name!r} is a stream, whose samples cannot be read by number, so that an extraction could not be "
            f"resumed; {STREAMS[prefix].format(name=rest)}."
        )
    odd = sorted(set(options.splits or ()) - {"train", "val", "test"})
    if odd:
        raise InvalidInputError(f"split {odd[0]!r} is unknown; {suggest(odd[0], ('train', 'val', 'test'))}")
    return {"torch": _torchvision, "hfds": _hugging_face, "wds": _shards}[prefix](name, rest, options)


def _torchvision(name: str, rest: str, options: LibraryOptions) -> ImageData:
    kind = rest.rpartition("/")[2].lower()
    if kind not in IN_MEMORY + IN_FILES:
        raise InvalidInputError(
            f"torchvision data {name!r} is unknown; {suggest(kind, IN_MEMORY + IN_FILES + FOLDERS)}"
        )
    if options.root is None:
        raise InvalidInputError(f"data {name!r} needs the folder that holds it, or shall; give --data-root.")
    chosen, note = _choose(name, options.splits, ("train", "test" if kind in IN_MEMORY else "val"))
    splits, where = dict[str, ImageSplit](), f"of {name!r}"
    names = tuple[str, ...]()
    for split, theirs in chosen.items():
        if kind in IN_MEMORY and theirs not in ("train", "test"):
            raise InvalidInputError(f"data {name!r} has no split {theirs!r}; valid choices are 'train', 'test'.")
        found = _create(name, root=options.root, split=theirs, download=options.download)
        if kind in IN_MEMORY:
            targets = np.asarray(found.targets)
            splits[split] = array_split(split, found.data, targets[:, 0] if targets.ndim == 2 else targets, where=where)
            names = tuple(found.classes)
        elif kind in ("inat", "inaturalist"):
            files = [(Path(found.root) / found.all_categories[label] / file, label) for label, file in found.index]
            splits[split] = _from_files(split, files, Path(found.root), where)
            names = tuple(found.all_categories)
        else:
            files = [(Path(file), label) for file, label in found.imgs]
            splits[split] = _from_files(split, files, Path(options.root), where)
            names = tuple(c if isinstance(c, str) else ", ".join(c) for c in found.classes)
    return ImageData(name, names, splits, note)


def _from_files(split: str, files: Sequence[tuple[Path, int]], root: Path, where: str) -> ImageSplit:
    ids = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path, _ in files]
    labels = class_numbers({split: [label for _, label in files]}, (), where)[1][split]
    return make_split(ids, labels, [FileImage(path) for path, _ in files])


def _hugging_face(name: str, rest: str, options: LibraryOptions) -> ImageData:
    _need("datasets", name)
    datasets = importlib.import_module("datasets")
    if options.splits:
        there: Sequence[str] = ()
    else:
        with _explained(name):
            there = datasets.get_dataset_split_names(rest, cache_dir=options.root)
    chosen, note = _choose(name, options.splits, there)
    keys = {"input_key": options.input_key or "image", "target_key": options.target_key or "label"}
    tables, labels = dict[str, Any](), dict[str, list[Any]]()
    names = tuple[str, ...]()
    for split, theirs in chosen.items():
        with _explained(name):
            columns = datasets.load_dataset(rest, split=theirs, cache_dir=options.root).column_names
        for key, column in keys.items():
            if column not in columns:
                raise InvalidInputError(
                    f"data {name!r} has no column {column!r}; give --{key.replace('_', '-')}: "
                    f"{suggest(column, columns)}"
                )
        found = _create(name, root=options.root, split=theirs, **keys).reader
        table, (image, label) = found.dataset, keys.values()
        tables[split], labels[split] = table.select_columns([image]), list(table[label])
        names = names or tuple(found.class_to_idx)
    names, numbers = class_numbers(labels, names, f"of {name!r}")
    splits = {
        split: make_split(
            [f"{split}-{row:06d}" for row in range(len(table))],
            numbers[split],
            [TableImage(table, row, image) for row in range(len(table))],
        )
        for split, table in tables.items()
    }
    return ImageData(name, names, splits, note)


def _shards(name: str, rest: str, options: LibraryOptions) -> ImageData:
    root = Path(options.root or rest).expanduser()
    if not (options.root or rest) or not root.is_dir():
        raise InvalidInputError(
            f"data {name!r} needs an existing folder of shards; give 'wds/<folder>' or --data-root."
        )
    _need("webdataset", name)
    there = {} if options.splits else find_splits(root)
    chosen, note = _choose(name, options.splits, tuple(there))
    keys = tuple(options.input_key.split(";")) if options.input_key else ()
    splits = {
        split: index_shards(find_shards(root, there.get(theirs, theirs)), keys, options.target_key)
        for split, theirs in chosen.items()
    }
    names = numbered_classes(max(int(split.labels.max()) for split in splits.values()), f"of {name!r}")
    return ImageData(name, names, splits, note)


def _choose(name: str, given: Mapping[str, str] | None, there: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the library's split by ours, and a note if its validation samples are our test samples."""
    chosen, note = dict(given or {}), ""
    if not given:
        validation = next((s for s in ("validation", "val", "valid", "dev") if s in there), None)
        chosen = {s: s for s in ("train", "test") if s in there}
        if validation is not None:
            chosen["val" if "test" in there else "test"] = validation
            note = "" if "test" in there else f"the test split is the data's {validation!r} split"
    for needed in ("train", "test"):
        if needed not in chosen:
            listed = f"; it has {', '.join(repr(s) for s in there)}" if there else ""
            problem = "was given" if given else "has"
            raise InvalidInputError(
                f"data {name!r} {problem} no {needed!r} split{listed}; say which it is, as with --split {needed}=NAME."
            )
    return {split: chosen[split] for split in ("train", "val", "test") if split in chosen}, note


def _create(name: str, **arguments: Any) -> Any:
    # Some versions of the libraries print, and standard output is for results.
    with _explained(name), contextlib.redirect_stdout(sys.stderr):
        return create_dataset(name, **arguments)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        why = next(iter(str(error).splitlines()), "").strip().rstrip(".") or type(error).__name__
        raise InvalidInputError(
            f"data {name!r} cannot be had: {why}; --data-root is where it is or is kept, and --download lets "
            "torchvision fetch it."
        ) from error


def _need(library: str, name: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise InvalidInputError(
            f"data {name!r} needs the library {library!r}, which is not installed; "
            f"`pip install 'head2toe-store[{library}]'` brings it."
        )
