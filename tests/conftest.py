"""Small stores that several tests use."""

from __future__ import annotations

import os

# Small products gain nothing from several threads, which on a busy machine wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
from samples import CLASSES, LAYERS, SPLITS, synthetic, write_all

from store import ActivationStore, create_store, open_store


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and all that start services in one: `make test` runs two."""
    for item in items:
        services = item.path.parent.name == "cluster" or "prefect_server" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("services" if services else item.path.name))


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
