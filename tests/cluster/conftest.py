"""The services, started once for all tests of this folder, and stopped at their end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.outcome import N_BLOCKS, N_IMAGES, Local
from cluster.postgres import OPT_OUT
from cluster.services import Cluster
from cluster.storage import BUCKET, ENVIRONMENT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Every service but Prefect's workers, with the deployments of prefect.yaml."""
    if os.environ.get(OPT_OUT) == "1":
        pytest.skip(f"left out, because {OPT_OUT}=1")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as monkeypatch:
        made = Cluster(tmp_path_factory.mktemp("services"), stack)
        # For stores that the tests open themselves.
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": made.storage.url}.items():
            monkeypatch.setenv(name, value)
        made.type("head2toe", "deploy")
        yield made


@pytest.fixture
def s3_root(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A root of its own in the bucket, reached at full speed unless a test says otherwise."""
    yield f"s3://{BUCKET}/{request.node.name}"
    cluster.storage.release()
    # Selections that extractions have asked for would only keep the next test's run waiting.
    for run in cluster.prefect.waiting("selection/selection"):
        cluster.prefect.ask("DELETE", f"/flow_runs/{run['id']}")


@pytest.fixture
def cpu_worker(cluster: Cluster) -> Iterator[None]:
    """A worker of the pool `cpu`, which otherwise nobody serves."""
    cluster.worker("cpu")
    yield
    cluster.stop_worker("cpu")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What to extract: some of scikit-learn's digits, in blocks so small that there are many."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = tmp_path_factory.mktemp("images") / "digits.npz"
    grey = np.kron(digits.images[:N_IMAGES], np.ones((1, 4, 4))) * 15
    pixels, labels = np.repeat(grey[..., None], 3, axis=3).astype(np.uint8), digits.target[:N_IMAGES]
    np.savez(path, x_train=pixels[:160], y_train=labels[:160], x_test=pixels[160:], y_test=labels[160:])
    size = N_IMAGES // N_BLOCKS
    return {
        "backbone": "test_resnet",
        "weights": "shipped",
        "data": str(path),
        "image_size": 32,
        "batch_size": size,
        "block_size": size,
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def local(images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Local:
    """The same without any of the services."""
    return Local(str(tmp_path_factory.mktemp("local")), images)
