"""What a whole run leaves in its store, and the same run by plain stage functions in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.config import Head2ToeConfig
from pipeline.extraction import extract
from pipeline.refit import refit
from pipeline.selection import SelectionParameters, select_features
from pipeline.verification import verify_store
from store import ActivationStore, open_store
from store.catalogue import list_stores
from store.results import list_results, read_result

N_IMAGES, N_BLOCKS = 240, 12


@dataclass(frozen=True)
class Outcome:
    """The kept features of each selection, and the accuracies of each head, by digest."""

    fingerprint: str
    selections: dict[str, list[int]]
    accuracies: dict[str, dict[str, float]]

    @classmethod
    def of(cls, store: ActivationStore) -> Outcome:
        """Read what there is."""
        kept = {
            name: read_result(store, "selections", name).arrays["indices"].tolist()
            for name in list_results(store, "selections")
        }
        heads = {name: read_result(store, "heads", name).facts["accuracy"] for name in list_results(store, "heads")}
        return cls(store.fingerprint, kept, heads)


class Local:
    """A whole run on the disk of this machine, without Prefect and without a cluster."""

    def __init__(self, root: str, images: Mapping[str, Any]) -> None:
        config = Head2ToeConfig.model_validate({"root": root, "extraction": images})
        self.store = open_store(extract(config.extraction, config.root).uri)
        selection = select_features(self.store, config.selection)
        embedding = self.store.embedding
        for indices, features in (
            (selection.indices, {"selection": selection.digest}),
            (self.store.layer_indices(embedding), {"layer": embedding}),
        ):
            refit(
                self.store,
                indices,
                features=features,
                normalization=selection.normalization,
                parameters=config.refit,
            )
        self.outcome = Outcome.of(self.store)

    def select(self, **parameters: Any) -> tuple[str, list[int]]:
        """Return the digest and the kept features of another selection."""
        found = select_features(self.store, SelectionParameters.model_validate(parameters))
        return found.digest, found.indices.tolist()


def only_store(root: str) -> ActivationStore:
    """Open the one store below a root, and check every byte of it."""
    (row,) = list_stores(root)
    store = open_store(row["uri"])
    assert verify_store(store) == []
    return store
