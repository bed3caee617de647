"""Data sets by name: a folder, an array file, a name that a library knows, or one that needs no file at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from pipeline.arrays import from_arrays, load_npz
from pipeline.folders import list_folder
from pipeline.image_data import ImageData, ImageSplit, make_split
from pipeline.images import ArrayImage, FileImage
from pipeline.labels import stratified_test_ids
from pipeline.library_data import FOLDERS, PREFIXES, LibraryOptions, load_library_data
from pipeline.offline.tasks import PREFIX as OFFLINE
from pipeline.offline.tasks import draw_task, find_task
from pipeline.plugins import Plugin, blamed, find_plugin, plugin_names
from store.errors import InvalidInputError

__all__ = ["ImageData", "ImageSplit", "LibraryOptions", "from_arrays", "load_data"]

N_DIGITS_TEST = 797
OURS = ("digits", "folder", OFFLINE, *PREFIXES)
"""What names of data begin with that no plug-in gives."""


def load_data(name: str, options: LibraryOptions | None = None) -> ImageData:
    """Return the data set of the given name.

    Parameters
    ----------
    name : str
        ``"digits"``: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, 1,000 for training and 797 for testing.
        ``"offline/<task>"``: a task of `pipeline.offline.tasks`, drawn from its seed.
        ``"folder:<path>"`` or a path: see `pipeline.folders.list_folder` for the layouts. A path ending in ``.npz``:
        see `pipeline.arrays.load_npz`. ``"torch/…"``, ``"hfds/…"``, ``"wds/…"``: see
        `pipeline.library_data.load_library_data`. ``"<source>"`` or ``"<source>/…"``: of an installed plug-in.
    options : LibraryOptions, optional
        For names that a library knows.

    Returns
    -------
    ImageData
        Nothing of the images is read yet, except from arrays.

    Raises
    ------
    InvalidInputError
        If there is no such data set, it is not well formed, or a class has a single training sample.
    """
    data = _load(name, options)
    data.check_classes()
    return data


def _load(name: str, options: LibraryOptions | None) -> ImageData:
    prefix, slash, rest = name.partition("/")
    outside = prefix in plugin_names("data source") and not Path(name).exists()
    plugin = find_plugin("data source", prefix, OURS) if outside else None
    if slash and prefix.lower() in PREFIXES and not Path(name).exists():
        options = options or LibraryOptions()
        if prefix.lower() != "torch" or rest.lower() not in FOLDERS:
            return load_library_data(name, options)
        if options.root is None:
            raise InvalidInputError(f"data {name!r} needs the folder that holds it; give --data-root.")
        return _folder(name, Path(options.root).expanduser())
    if options is not None and options != LibraryOptions():
        raise InvalidInputError(
            f"data {name!r} takes no data root, download, split, input key or target key; they are for names of "
            f"libraries: {', '.join(f'{p}/…' for p in PREFIXES[:3])}."
        )
    if plugin is not None:
        return _from_outside(plugin, name, rest)
    if name == "digits":
        return _digits()
    if prefix == OFFLINE and slash and not Path(name).exists():
        task = find_task(rest)
        return replace(_digits(), name=name, group=task.group) if task.draw is None else draw_task(task)
    path = Path(name.removeprefix("folder:")).expanduser()
    if path.suffix == ".npz":
        return load_npz(name, path)
    if not name.startswith("folder:") and not path.is_dir():
        others = "".join(f", {source!r}" for source in plugin_names("data source"))
        raise InvalidInputError(
            f"data {name!r} is no existing path; give 'digits', 'offline/<task>'{others}, a folder or an .npz file, or "
            "a name such as 'torch/cifar10', 'hfds/<repository>' or 'wds/<folder>'."
        )
    return _folder(name, path)


def _from_outside(plugin: Plugin, name: str, rest: str) -> ImageData:
    plugin.require(callable(plugin.value), "a function from the rest of a name to pipeline.image_data.ImageData")
    with blamed(plugin.kind, plugin.spec):
        data = plugin.value(rest)
        if not isinstance(data, ImageData):
            raise InvalidInputError(f"it gives a {type(data).__name__} instead of pipeline.image_data.ImageData.")
        for split, images in data.splits.items():
            if not len(images) or images.labels.min() < 0 or images.labels.max() >= len(data.class_names):
                raise InvalidInputError(
                    f"split {split!r} must have images, with labels from 0 to {len(data.class_names) - 1}."
                )
        if "train" not in data.splits:
            raise InvalidInputError(f"it has the splits {sorted(data.splits)} and no 'train'.")
    return replace(data, name=name)


def _folder(name: str, path: Path) -> ImageData:
    listing = list_folder(path)
    splits = {
        split: make_split([e.id for e in entries], [e.label for e in entries], [FileImage(e.path) for e in entries])
        for split, entries in listing.splits.items()
    }
    return ImageData(name, listing.class_names, splits, listing.note, listing.prescribed)


def _digits() -> ImageData:
    data = load_digits()
    ids = [f"digits-{i:04d}" for i in range(len(data.target))]
    test = stratified_test_ids(ids, data.target.tolist(), N_DIGITS_TEST)
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    splits = {}
    for split in ("train", "test"):
        rows = [i for i, name in enumerate(ids) if (name in test) == (split == "test")]
        splits[split] = make_split([ids[i] for i in rows], data.target[rows], [ArrayImage(pixels[i]) for i in rows])
    note = f"{N_DIGITS_TEST} digits, each class in proportion, chosen by the digest of their ids, are the test split"
    return ImageData("digits", tuple(str(n) for n in data.target_names), splits, note)
