"""flows → pipeline → store is the only direction of imports, and each foreign system has one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "store": {"store"},
    "pipeline": {"store", "pipeline"},
    "flows": {"store", "pipeline", "flows"},
}
FORBIDDEN = {"store": {"torch", "timm", "prefect", "typer", "sklearn"}, "pipeline": {"prefect", "typer", "zarr"}}


def imported(path: Path) -> set[str]:
    """Return top-level names of every module a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_from_flows_to_pipeline_to_store(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package], f"{path} imports {ours - MAY_IMPORT[package]}"
        foreign = imported(path) & FORBIDDEN.get(package, set())
        assert not foreign, f"{path} imports {foreign}"


def test_one_file_opens_zarr() -> None:
    doors = {p.name for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py") if "zarr" in imported(p)}
    assert doors == {"hierarchy.py"}


def test_packages_are_typed() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in MAY_IMPORT)
