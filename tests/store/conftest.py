"""Places where objects may be: a folder, memory, and S3 by a server on this machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from loopback import BUCKET, ENVIRONMENT, moto


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a moto server, started once."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with moto() as url:
        yield url


@pytest.fixture
def s3_root(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root of its own on S3, found by the environment as a user's would be."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def memory_root() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    """A root of each kind."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path"))
    return str(request.getfixturevalue(f"{request.param}_root"))
