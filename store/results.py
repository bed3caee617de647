"""Results beside the activations: immutable, each under a digest of what it was computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from store import hierarchy
from store.activations import ActivationStore
from store.errors import InvalidInputError, StoreNotFoundError, suggest
from store.hierarchy import METADATA, Filled
from store.spec import digest

Kind = Literal["statistics", "selections", "heads", "points", "protocols"]


@dataclass(frozen=True)
class Result:
    """One stored result.

    Attributes
    ----------
    kind : str
        ``"statistics"``, ``"selections"``, ``"heads"``, ``"points"`` (one setting of a method on one fold) or
        ``"protocols"`` (what a method's folds chose, and its test).
    digest : str
        Digest of `inputs`; the result's name.
    inputs : dict
        Everything it was computed from: fingerprint of the store, parameters, digests of other results.
    arrays : dict of str to ndarray
        The numbers.
    facts : dict
        JSON values that describe the result, such as a certificate or an accuracy.
    """

    kind: Kind
    digest: str
    inputs: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


def result_digest(store: ActivationStore, kind: Kind, inputs: Mapping[str, Any]) -> str:
    """Return the digest under which a result of these inputs is stored."""
    return digest({"kind": kind, "store": store.fingerprint, "inputs": dict(inputs)})


def write_result(
    store: ActivationStore,
    kind: Kind,
    inputs: Mapping[str, Any],
    arrays: Mapping[str, tuple[NDArray[Any], tuple[str, ...]]],
    facts: Mapping[str, Any],
) -> Result:
    """Store a result, published only once it is whole; of several equal writers the first wins.

    Parameters
    ----------
    store : ActivationStore
        The store it was computed from.
    kind : str
        Kind of result.
    inputs : mapping
        What it was computed from, besides the store; JSON values.
    arrays : mapping of str to (ndarray, dimension names)
        The numbers.
    facts : mapping
        JSON values.

    Returns
    -------
    Result
        As now stored.

    Raises
    ------
    InvalidInputError
        If the store's place is not writable.
    """
    name = result_digest(store, kind, inputs)
    attributes = {
        "kind": kind,
        "digest": name,
        "store": store.fingerprint,
        "inputs": dict(inputs),
        "facts": dict(facts),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    nodes = {key: Filled(values, dimensions) for key, (values, dimensions) in arrays.items()}
    group = f"results/{kind}/{name}"
    *members, (root, root_document) = hierarchy.documents(nodes, attributes).items()
    try:
        store.objects.write_all((f"{group}/{key}", [document]) for key, document in members)
        if not store.objects.create(f"{group}/{root}", root_document):
            there = hierarchy.read_attributes(store.objects, group)["documents"]
            # Another machine was first, with other last bits, and its arrays are now replaced by these.
            if hierarchy.check_documents(store.objects, there, group):
                store.objects.write(f"{group}/{root}", [root_document])
    except OSError as error:
        raise InvalidInputError(
            f"cannot write a result to {store.uri!r}: {error.strerror or error}; results lie beside the activations, "
            "so the store must be writable."
        ) from error
    return Result(kind, name, dict(inputs), {k: v for k, (v, _) in arrays.items()}, dict(facts))


def find_result(store: ActivationStore, kind: Kind, inputs: Mapping[str, Any]) -> Result | None:
    """Return the stored result of these inputs, or None."""
    name = result_digest(store, kind, inputs)
    return _read(store, kind, name) if store.objects.exists(f"results/{kind}/{name}/{METADATA}") else None


def list_results(store: ActivationStore, kind: Kind) -> list[str]:
    """Return the digests of the stored results of a kind."""
    there = store.objects.names(f"results/{kind}")
    return [n for n in there if store.objects.exists(f"results/{kind}/{n}/{METADATA}")]


def read_inputs(store: ActivationStore, kind: Kind, name: str) -> dict[str, Any]:
    """Return what a stored result was computed from, without its arrays."""
    inputs: dict[str, Any] = hierarchy.read_attributes(store.objects, f"results/{kind}/{name}")["inputs"]
    return inputs


def read_result(store: ActivationStore, kind: Kind, name: str) -> Result:
    """Return a stored result.

    Parameters
    ----------
    store : ActivationStore
        The store it lies beside.
    kind : str
        Kind of result.
    name : str
        Its digest, or the beginning of it if that is unique.

    Raises
    ------
    StoreNotFoundError
        If there is no such result, or several begin so.
    DamagedStoreError
        If its bytes do not hold.
    """
    there = list_results(store, kind)
    matching = [n for n in there if n.startswith(name)] if name else []
    if len(matching) != 1:
        how = "is ambiguous" if matching else "does not exist"
        hint = suggest(name, matching or there) if there else f"it has no {kind} yet."
        raise StoreNotFoundError(f"{kind.removesuffix('s')} {name!r} {how} in store {store.uri!r}; {hint}")
    return _read(store, kind, matching[0])


def _read(store: ActivationStore, kind: Kind, name: str) -> Result:
    path = f"results/{kind}/{name}"
    attributes = hierarchy.read_attributes(store.objects, path)
    known = attributes["documents"]
    arrays = {
        key: np.asarray(hierarchy.read_array(store.objects, key, known, path))
        for key in sorted({document.split("/")[0] for document in known})
    }
    return Result(kind, attributes["digest"], attributes["inputs"], arrays, attributes["facts"])
