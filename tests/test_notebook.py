"""The notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.extraction import extract
from pipeline.planning import ExtractionParameters

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / name, as_version=4)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = read(path.name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_notebook_shows_a_store_and_compares_selections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = ExtractionParameters(backbone="test_resnet", weights="random:0", data="digits", image_size=32)
    store = extract(parameters, str(tmp_path / "stores"))
    monkeypatch.setenv("HEAD2TOE_STORE", store.uri)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read("inspect_store.ipynb")
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.prefix)", id="prefix"))
    NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert outputs["prefix"][0].text.strip() == sys.prefix
    assert "Activation store" in outputs["open"][0].data["text/html"]
    assert "xarray.DataTree" in outputs["xarray"][0].data["text/html"]
    assert all(split in outputs["labels"][0].data["text/html"] for split in ("train", "test"))
    assert "'certified': True" in outputs["select"][0].data["text/plain"]
    for cell in ("kept", "relevance"):
        assert [output.data["image/png"] is not None for output in outputs[cell]] == [True]
    table = outputs["compare"][0].data["text/plain"]
    assert all(name in table for name in ("standardize, F = 0.05", "unit_norm, F = 0.01", "Linear", "test accuracy"))
    assert not [o for found in outputs.values() for o in found if o.output_type == "error" or o.get("name") == "stderr"]
