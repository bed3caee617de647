"""Labels: which classes there are, by number and by name, and which of their samples are for testing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from store.errors import InvalidInputError

MOST_CLASSES = 1_000_000


def numbered_classes(greatest: int, where: str) -> tuple[str, ...]:
    """Return names for classes that are numbers only.

    Parameters
    ----------
    greatest : int
        The greatest label.
    where : str
        Of what the labels are, for messages.

    Raises
    ------
    InvalidInputError
        If it cannot be the number of a class.
    """
    if greatest >= MOST_CLASSES:
        raise InvalidInputError(
            f"label {greatest} {where} is no class; classes are numbered from 0 to {MOST_CLASSES - 1:,} at most."
        )
    return tuple(str(label) for label in range(greatest + 1))


def class_numbers(
    labels: Mapping[str, Sequence[Any]], class_names: Sequence[str], where: str
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return class names, and labels as class numbers.

    Parameters
    ----------
    labels : mapping of str to sequence
        By split: whole numbers, or names of classes.
    class_names : sequence of str
        In the order of the numbers; empty if not known, when names are put in alphabetical order.
    where : str
        Of what the labels are, for messages.

    Raises
    ------
    InvalidInputError
        If a label is missing or neither a number nor a name.
    """
    for split, given in labels.items():
        for number, label in enumerate(given):
            if not isinstance(label, int | str) or label == "" or (isinstance(label, int) and label < 0):
                raise InvalidInputError(
                    f"sample {number} of split {split!r} {where} has no label but {label!r}; choose a split or a "
                    "column with the class of every image."
                )
    kinds = {type(label) for given in labels.values() for label in given}
    if kinds == {str}:
        names = tuple(class_names) or tuple(sorted({label for given in labels.values() for label in given}))
        place = {name: number for number, name in enumerate(names)}
        return names, {split: [place[label] for label in given] for split, given in labels.items()}
    if str in kinds:
        raise InvalidInputError(f"labels {where} are numbers and names mixed; give either.")
    greatest = max((int(label) for given in labels.values() for label in given), default=-1)
    names = tuple(class_names) or numbered_classes(greatest, where)
    if greatest >= len(names):
        raise InvalidInputError(f"label {greatest} {where} is no class; there are {len(names)} class names.")
    return names, {split: [int(label) for label in given] for split, given in labels.items()}


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
