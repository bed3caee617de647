"""Small stores that several tests use."""

from __future__ import annotations

import os

# Small products gain nothing from several threads, which on a busy machine wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from store import ActivationStore, create_store, open_store

SERVICES = ("tests/cluster/", *(f"tests/flows/test_{name}.py" for name in ("deployments", "head2toe", "stages")))
"""Tests that start Prefect's server, or more."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and all that start services in one: `make test` runs two."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "services" if file.startswith(SERVICES) else file

    return ByFile(config, log)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    """A complete local store of several blocks per split."""
    values, manifests = synthetic()
    writer = create_store(
        tmp_path / "made.zarr",
        LAYERS,
        SPLITS,
        manifests=manifests,
        class_names=CLASSES,
        block_samples=32,
        provenance={"embedding": "pre_logits", "data": "synthetic", "weights": "none"},
    )
    write_all(writer, values)
    return open_store(tmp_path / "made.zarr")


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    """What `store` holds, by split: float16 of shape (sample, feature) over all layers."""
    return {split: np.concatenate(list(layers.values())).T for split, layers in synthetic()[0].items()}
