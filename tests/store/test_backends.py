"""Stores in a folder, in memory and on S3 keep the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from behaviour import StoreBehaviour


class TestLocal(StoreBehaviour):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path)


class TestMemory(StoreBehaviour):
    @pytest.fixture
    def root(self, memory_root: str) -> str:
        return memory_root


class TestS3(StoreBehaviour):
    @pytest.fixture
    def root(self, s3_root: str) -> str:
        return s3_root
