"""Linear: the baseline, a head on the last embedding, or on whatever layers are named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.heads import RefitParameters
from pipeline.methods.columns import Columns, lineage, refit_settings
from pipeline.methods.interface import Prediction, Samples, Settings
from store.activations import ActivationStore


@dataclass(frozen=True)
class Linear:
    """A head on whole layers.

    Attributes
    ----------
    store : ActivationStore
        The activations.
    layers : sequence of str
        Their names; the last embedding if none is given.
    normalizations : sequence of str
        To choose from.
    refits : sequence of RefitParameters
        To choose from; their seed is the protocol's.
    name : str
        What tables call it.
    """

    store: ActivationStore
    layers: Sequence[str] = ()
    normalizations: Sequence[str] = ("standardize", "unit_norm")
    refits: Sequence[RefitParameters] = (RefitParameters(),)
    name: str = "Linear"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The store and the layers, which must exist."""
        chosen = {self.store.layer(name).name for name in self.layers or (self.store.embedding,)}
        return {**lineage(self.store), "layers": [name for name in self.store.layers if name in chosen]}

    @property
    def grid(self) -> list[list[Settings]]:
        """One batch: all share the columns."""
        return [
            [
                {"normalization": normalization, "refit": refit_settings(refit)}
                for normalization in self.normalizations
                for refit in self.refits
            ]
        ]

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        """Fit a head for each setting, as `Method.fit` says."""
        indices = np.concatenate([self.store.layer_indices(name) for name in self.identity["layers"]])
        columns = Columns(self.store, indices, train, held)
        for normalization, sharing in groupby(settings, lambda setting: str(setting["normalization"])):
            refits = [RefitParameters(**setting["refit"], seed=seed) for setting in sharing]
            yield from columns.fit(indices, normalization, refits)
