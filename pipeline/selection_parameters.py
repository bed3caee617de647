"""How features are ranked and how many are kept: what a person chooses of a selection."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.normalization import Normalization
from pipeline.scorers import OPTIONS, SCORERS, find_scorer
from store.errors import InvalidInputError
from store.spec import Frozen

DEFAULT_FRACTION = 0.05
ABLATIONS = ("offset", "layer_mean", "whole_layers")


class SelectionParameters(Frozen):
    """How features are ranked and how many are kept; what is None has the scorer's own default.

    Attributes
    ----------
    scorer : str
        One of `pipeline.scorers.SCORERS`, or an installed plug-in's.
    normalization : str
        What the head sees, and the scorers that fit one: ``standardize``, ``unit_norm`` (the paper's) or ``none``.
    split : str
        The training samples.
    target_size : int, optional
        Rank only the layers of this target size T, of a store that holds several; all layers if not given.
    penalty_ratio : float, optional
        λ relative to the smallest one at which no feature is active; 0.1 if neither penalty is given.
    penalty : float, optional
        λ as an absolute coefficient, as the paper gives it.
    tolerance : float, optional
        For group_lasso the duality gap to reach, relative to the objective without features: 1e-4. For l1 the
        violation of the optimality conditions in units of λ: 1e-3.
    steps : int, optional
        Steps of Adam: 500.
    learning_rate : float, optional
        Of Adam at its first step: 0.1.
    seed : int, optional
        Of a scorer that draws: 0.
    average_over : int, optional
        Average the scores of so many runs, of consecutive seeds: 1.
    fraction : float, optional
        Share F of all ranked features to keep, over all layers together; 0.05 if neither it nor `keep` is given.
    keep : int, optional
        Number of features to keep.
    offset : int
        Skip so many of the best features, and keep the next.
    layer_mean : float
        Move every feature's score this far towards the mean of its layer, from 0 to 1.
    whole_layers : bool
        Keep the layers of the highest mean score, whole but for the last.

    Raises
    ------
    InvalidInputError
        If values contradict each other, or one is given that does not matter to the scorer.
    """

    scorer: str = "group_lasso"
    normalization: Normalization = "standardize"
    split: str = "train"
    target_size: Annotated[int, Field(ge=1)] | None = None
    penalty_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    tolerance: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    average_over: Annotated[int, Field(ge=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    keep: Annotated[int, Field(ge=1)] | None = None
    offset: Annotated[int, Field(ge=0)] = 0
    layer_mean: Annotated[float, Field(ge=0, le=1)] = 0.0
    whole_layers: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # Not a ValueError, so that pydantic lets it through to the user as it is.
        for name in sorted(OPTIONS.difference(find_scorer(self.scorer).options)):
            if getattr(self, name) is not None:
                whose = [key for key, scorer in SCORERS.items() if name in scorer.options]
                raise InvalidInputError(
                    f"{name} does not apply to scorer {self.scorer}, only to {', '.join(whose)}; leave it out."
                )
        if self.penalty is not None and self.penalty_ratio is not None:
            raise InvalidInputError("give either penalty or penalty_ratio, not both.")
        if self.fraction is not None and self.keep is not None:
            raise InvalidInputError("give either fraction or keep, not both.")
        if self.layer_mean > 0 and self.whole_layers:
            raise InvalidInputError("give either layer_mean or whole_layers, not both.")
        return self

    def count(self, n_features: int) -> int:
        """Return how many of `n_features` ranked features to keep: ⌊pF⌋, or `keep`.

        Raises
        ------
        InvalidInputError
            If that is none, or more than there are after the offset.
        """
        fraction = DEFAULT_FRACTION if self.fraction is None else self.fraction
        count = int(n_features * fraction + 1e-9) if self.keep is None else self.keep  # 0.29 · 100 is 28.999…
        if count < 1:
            raise InvalidInputError(
                f"fraction {fraction:g} of {n_features:,} features keeps none; give at least {1 / n_features:.2g}."
            )
        if count + self.offset > n_features:
            after = f" after an offset of {self.offset:,}" if self.offset else ""
            raise InvalidInputError(f"cannot keep {count:,} features{after}: the store has {n_features:,}.")
        return count

    def ranking(self) -> dict[str, Any]:
        """Return the part that decides the relevance of features, whichever of them are kept."""
        scorer = find_scorer(self.scorer)
        given = {name: getattr(self, name) for name in scorer.options}
        chosen = {name: value if given[name] is None else given[name] for name, value in scorer.options.items()}
        if self.penalty is not None and "penalty_ratio" in chosen:
            chosen["penalty_ratio"] = None
        which = scorer.identity(self.scorer)
        size = {} if self.target_size is None else {"target_size": self.target_size}
        return {**which, "split": self.split, **size, **self._normalization(scorer.normalized), **chosen}

    def inputs(self, n_features: int) -> dict[str, Any]:
        """Return what identifies the selection: its ranking and what is kept of it."""
        ablations = {name: getattr(self, name) for name in ABLATIONS if getattr(self, name)}
        rest = self._normalization(not find_scorer(self.scorer).normalized)
        return {"ranking": self.ranking(), "keep": self.count(n_features), **rest, **ablations}

    def _normalization(self, wanted: bool) -> dict[str, Any]:
        return {"normalization": self.normalization} if wanted else {}
