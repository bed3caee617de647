"""Benchmarks by name: the offline tasks, and VTAB-1k in the folders that the community ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.offline.tasks import PREFIX, TASKS
from store.errors import InvalidInputError, suggest

VTAB = {
    "natural": {
        "caltech101": 102,
        "cifar": 100,
        "dtd": 47,
        "oxford_flowers102": 102,
        "oxford_iiit_pet": 37,
        "sun397": 397,
        "svhn": 10,
    },
    "specialized": {"patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5},
    "structured": {
        "clevr_count": 8,
        "clevr_dist": 6,
        "dmlab": 6,
        "kitti": 4,
        "dsprites_loc": 16,
        "dsprites_ori": 16,
        "smallnorb_azi": 18,
        "smallnorb_ele": 9,
    },
}
"""Classes of each task of VTAB-1k by group and folder (Zhai et al. 2019)."""
SUITES = ("offline", "vtab1k")


class Entry(NamedTuple):
    """A task of a suite: what `pipeline.datasets.load_data` knows it by, its group and its number of classes."""

    data: str
    group: str
    classes: int


def find_suite(name: str, data_root: str | None) -> Mapping[str, Entry]:
    """Return the tasks of a suite by name.

    Parameters
    ----------
    name : str
        ``"offline"``: drawn, see `pipeline.offline.tasks`. ``"vtab1k"``: folders below `data_root`, each with the list
        files that `pipeline.folders.list_folder` describes.
    data_root : str, optional
        The folder that holds those of VTAB-1k.

    Raises
    ------
    InvalidInputError
        If there is no such suite, or the folder is missing or not wanted.
    """
    if name not in SUITES:
        raise InvalidInputError(f"suite {name!r} is unknown; {suggest(name, SUITES)}")
    if name == "offline":
        if data_root is not None:
            raise InvalidInputError("suite 'offline' is drawn and takes no data root; leave it out.")
        return {t.name: Entry(f"{PREFIX}/{t.name}", t.group, len(t.class_names)) for t in TASKS.values()}
    if data_root is None:
        raise InvalidInputError(
            "suite 'vtab1k' needs the folder that holds the folders of its tasks; give --data-root."
        )
    folder = Path(data_root).expanduser()
    return {
        task: Entry(f"folder:{folder / task}", group, classes)
        for group, tasks in VTAB.items()
        for task, classes in tasks.items()
    }
