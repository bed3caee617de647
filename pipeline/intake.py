"""Which images of a data set are used: each is read and decoded once before anything is written, the bad ones refused.

An image whose content is in a store under the same root already was decoded when that store was begun. It is read for
its digest, which the fingerprint needs, but not decoded again: resuming, and extracting with another backbone, need not
check anything twice.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from pipeline.compute import Progress
from pipeline.extraction_parameters import OnBadImage
from pipeline.image_data import ImageData, in_threads
from pipeline.images import ImageSource, place_of
from store.activations import open_store
from store.aliases import SUFFIX, list_names
from store.errors import Head2ToeError, InvalidInputError
from store.objects import join, open_objects
from store.spec import DataSpec, ExtractionSpec, Manifest

PROGRESS_EVERY = 100
LEFT_OUT = "left out "
"""How the sentence begins that names the images left out."""


class BadImage(NamedTuple):
    """Where an image is that cannot be used, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Intake:
    """The images that are used, and those left out.

    Attributes
    ----------
    data : ImageData
        The images that are used.
    manifests : dict of str to Manifest
        Their ids, labels and content digests, by split.
    skipped : dict of str to dict of str to str
        Id and reason of each image left out, by split; splits without one are not in it.
    note : str
        A sentence that says where they are; empty if there are none.
    """

    data: ImageData
    manifests: dict[str, Manifest]
    skipped: dict[str, dict[str, str]]
    note: str


def take_in(
    data: ImageData,
    on_bad_image: OnBadImage = "stop",
    known: Container[str] = frozenset(),
    progress: Progress | None = None,
) -> Intake:
    """Read every image once, decode those that are not known, and decide on the bad ones.

    Parameters
    ----------
    data : ImageData
        The images.
    on_bad_image : str
        ``stop``, or ``skip`` to leave them out.
    known : container of str
        Digests of contents that have been decoded before.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Intake
        What is used.

    Raises
    ------
    InvalidInputError
        With every bad image and the reason, if there are any and they are not to be skipped; or if skipping leaves a
        split empty or a class with fewer than two training samples.
    """
    total, done = sum(len(split) for split in data.splits.values()), 0
    digests: dict[str, list[str]] = {}
    bad: dict[str, dict[str, BadImage]] = {}
    for name, split in data.splits.items():
        digests[name] = []
        check = partial(_check, split.sources, known)
        for number, (digest, reason) in enumerate(in_threads(check, len(split))):
            digests[name].append(digest)
            if reason is not None:
                image = split.ids[number]
                place = place_of(split.sources[number], f"{name}/{image}")
                bad.setdefault(name, {})[image] = BadImage(place, reason)
            done += 1
            if progress and (done % PROGRESS_EVERY == 0 or done == total):
                progress("checking the images", done, total)
    if bad and on_bad_image == "stop":
        raise InvalidInputError(_complaint(bad))
    used = _without(data, bad)
    used.check_classes()
    manifests = {}
    for name, split in used.splits.items():
        kept = [
            digest for digest, i in zip(digests[name], data.splits[name].ids, strict=True) if i not in bad.get(name, {})
        ]
        manifests[name] = Manifest(split.ids, split.labels, tuple(kept))
    skipped = {name: {image: found.reason for image, found in images.items()} for name, images in bad.items()}
    return Intake(used, manifests, skipped, _sentence(_rows(bad)))


def known_digests(root: str, class_names: tuple[str, ...]) -> set[str]:
    """Return the digests of all images in the stores under a root that were extracted from data with these classes."""
    known: set[str] = set()
    seen: list[DataSpec] = []
    for name in list_names(open_objects(root)):
        if not name.endswith(SUFFIX):
            continue
        try:
            store = open_store(join(root, name), allow_incomplete=True)
            spec = store.spec
            if isinstance(spec, ExtractionSpec) and spec.data.class_names == class_names and spec.data not in seen:
                known.update(*(store.digests(split) for split in store.splits))
                seen.append(spec.data)
        except (Head2ToeError, OSError, ValueError, KeyError, TypeError):
            continue  # a damaged store vouches for nothing
    return known


def describe_skipped(skipped: dict[str, dict[str, str]]) -> str:
    """Return a sentence on the images that a store's provenance says were left out; empty if there are none."""
    return _sentence(
        [f"{name} of {split} ({reason})" for split, images in skipped.items() for name, reason in images.items()]
    )


def _sentence(rows: list[str], most: int = 20) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - most} more, all named in the store's provenance" if len(rows) > most else ""
    return f"{LEFT_OUT}{_images(len(rows))} that cannot be used: {', '.join(rows[:most])}{more}."


def _check(sources: Sequence[ImageSource], known: Container[str], index: int) -> tuple[str, str | None]:
    try:
        return sources[index].check(known), None
    except InvalidInputError as error:
        return "", str(error)


def _rows(bad: dict[str, dict[str, BadImage]]) -> list[str]:
    return [f"{place} ({reason})" for images in bad.values() for place, reason in images.values()]


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _complaint(bad: dict[str, dict[str, BadImage]]) -> str:
    rows = _rows(bad)
    return (
        f"{_images(len(rows))} cannot be used: {', '.join(rows)}; repair or remove them and run the same command "
        "again, or leave them out with --on-bad-image skip."
    )


def _without(data: ImageData, bad: dict[str, dict[str, BadImage]]) -> ImageData:
    if not bad:
        return data
    splits = {
        name: split.subset([i for i, image in enumerate(split.ids) if image not in bad.get(name, {})])
        for name, split in data.splits.items()
    }
    used = replace(data, splits=splits)
    for name, split in splits.items():
        if len(split) == 0:
            raise InvalidInputError(
                f"every image of split {name!r} of {data.name!r} is bad: {_complaint({name: bad[name]})}"
            )
    if "train" in splits and not data.prescribed:
        lost = sorted(set(np.unique(data.splits["train"].labels)) - set(np.unique(splits["train"].labels)))
        if lost:
            raise InvalidInputError(
                f"every training image of class {data.class_names[lost[0]]!r} is bad: {_complaint(bad)}"
            )
    return used
