"""Linear with more columns: Oracle adds the best single layer to the embedding, Control a second backbone's embedding.

What Head2Toe is to be held against: the Oracle knows which one depth helps, and the Control has the extra width without
any depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.heads import RefitParameters
from pipeline.joined_store import JoinedStore
from pipeline.methods.columns import lineage
from pipeline.methods.interface import Prediction, Samples, Settings
from pipeline.methods.linear import Linear
from store.activations import ActivationStore
from store.errors import InvalidInputError


@dataclass(frozen=True)
class Oracle:
    """A head on the last embedding and one intermediate layer, which the folds choose.

    Attributes
    ----------
    store : ActivationStore
        The activations; the paper pools layers to about 2,048 features here.
    layers : sequence of str
        Layers to choose from; all before the embedding if none is given.
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
    name: str = "Oracle"

    @property
    def identity(self) -> dict[str, Any]:
        """The store; settings say the rest."""
        return lineage(self.store)

    @cached_property
    def grid(self) -> list[list[Settings]]:
        """One batch per layer: its settings share the columns.

        Raises
        ------
        InvalidInputError
            If there is no intermediate layer.
        """
        before = list(self.store.layers)[: list(self.store.layers).index(self.store.embedding)]
        tap = self.store.embedding.partition("@")[0]
        layers = [self.store.layer(n).name for n in self.layers] or [n for n in before if n.partition("@")[0] != tap]
        if not layers:
            raise InvalidInputError(
                f"store {self.store.uri!r} has no layer before its embedding, so there is no Oracle; extract more taps."
            )
        return [[{"layer": name, **setting} for setting in self._with(name).grid[0]] for name in layers]

    def fit(self, train: Samples, held: Samples, settings: Sequence[Settings], seed: int) -> Iterator[Prediction]:
        """Fit a head for each setting, as `Method.fit` says."""
        return self._with(settings[0]["layer"]).fit(train, held, settings, seed)

    def _with(self, layer: str) -> Linear:
        return Linear(self.store, (self.store.embedding, layer), self.normalizations, self.refits)


def control(
    store: ActivationStore,
    second: ActivationStore,
    normalizations: Sequence[str] = ("standardize", "unit_norm"),
    refits: Sequence[RefitParameters] = (RefitParameters(),),
    name: str = "Control",
) -> Linear:
    """Return a head on the last embeddings of two backbones; samples are matched by id.

    Parameters
    ----------
    store, second : ActivationStore
        Activations of the same samples, by two backbones.
    normalizations, refits, name
        As `Linear` has them.

    Returns
    -------
    Linear
        The method; its results belong beside the first store.

    Raises
    ------
    InvalidInputError
        If the stores are not of the same samples, or one does not say which layer is the embedding.
    """
    joined = JoinedStore([store, second])
    for split in joined.splits:
        joined.rows(split)
    return Linear(joined, (f"1:{store.embedding}", f"2:{second.embedding}"), normalizations, refits, name)
