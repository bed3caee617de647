"""How batches are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from pipeline.extraction_parameters import Autocast
from store.spec import Frozen


class Settings(Frozen):
    """How batches are computed: not what identifies an extraction, but what its values depend on in the last digits.

    A store keeps the settings it was begun with among its provenance, so that all its blocks are computed alike.

    Attributes
    ----------
    batch_size : int
        Images per forward pass.
    autocast : str
        Type of the backbone's matrix products and convolutions: ``"none"`` is float32.
    channels_last : bool
        Whether maps lie in memory with their channels side by side, which convolutions like better.
    compile : bool
        Whether the model is compiled.
    """

    batch_size: int = Field(ge=1)
    autocast: Autocast = "none"
    channels_last: bool = False
    compile: bool = False

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Settings:
        """Return the settings that a store was begun with."""
        return cls(**{name: provenance[name] for name in cls.model_fields if name in provenance})

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and maps lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format
