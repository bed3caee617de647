"""Every notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.extraction import extract
from pipeline.extraction_parameters import ExtractionParameters

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of the digits that all notebooks look at, each in any order: results are found again or made."""
    parameters = ExtractionParameters(backbone="test_resnet", weights="shipped", data="digits", image_size=32)
    return extract(parameters, str(tmp_path_factory.mktemp("stores"))).uri


class Shown:
    """What the cells of a notebook put out, by the names of the cells."""

    def __init__(self, notebook: Any) -> None:
        self.outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def data(self, cell: str, kind: str) -> str:
        [output] = self.outputs[cell]
        text: str = output.data[kind]
        return text

    def text(self, cell: str) -> str:
        return self.data(cell, "text/plain")

    def has_pictures(self, *cells: str) -> bool:
        return all(len(self.data(cell, "image/png")) > 5000 for cell in cells)


@pytest.fixture
def run(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute a notebook on the store, in the folder in which it is opened."""
    monkeypatch.setenv("HEAD2TOE_STORE", uri)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def execute(name: str) -> Shown:
        notebook = read(NOTEBOOKS / name)
        notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.prefix)", id="prefix"))
        resources = {"metadata": {"path": str(NOTEBOOKS)}}
        NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
        shown = Shown(notebook)
        assert shown.outputs.pop("prefix")[0].text.strip() == sys.prefix
        odd = [o for found in shown.outputs.values() for o in found if "error" in (o.output_type, o.get("name"))]
        noise = [o for found in shown.outputs.values() for o in found if o.get("name") == "stderr"]
        assert not odd + noise
        assert "Activation store" in shown.data("open", "text/html")
        return shown

    return execute


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_the_guide_tells_of_every_notebook() -> None:
    guide = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert PATHS
    assert [path.name for path in PATHS if path.name not in guide] == []


@pytest.mark.slow
def test_notebook_shows_what_is_in_a_store(run: Any) -> None:
    shown = run("inspect_store.ipynb")
    assert "xarray.DataTree" in shown.data("xarray", "text/html")
    assert all(split in shown.data("labels", "text/html") for split in ("train", "test"))
    assert "'certified': True" in shown.text("select")
    assert shown.has_pictures("deviations", "zeros", "kept", "relevance")


@pytest.mark.slow
def test_notebook_follows_a_path_of_penalties(run: Any) -> None:
    shown = run("selection_path.ipynb")
    assert shown.text("solve").count("True") == 8
    assert "False" not in shown.text("solve")
    assert "'passes': 2" in shown.text("passes")
    assert "λ = 0.1 λ_max" in shown.text("heads")
    assert shown.has_pictures("path", "fractions")


@pytest.mark.slow
def test_notebook_compares_normalizations(run: Any) -> None:
    shown = run("compare_normalizations.ipynb")
    table = shown.text("select")
    assert [table.count(name) for name in ("standardize", "unit_norm", "none")] == [3, 3, 3]
    assert "test accuracy" in table
    assert shown.text("overlap").count("100%") == 3
    assert shown.has_pictures("accuracy", "depth")


@pytest.mark.slow
def test_notebook_tries_a_scorer_of_its_own(run: Any) -> None:
    shown = run("own_scorer.ipynb")
    table = [line.split() for line in shown.text("compare").splitlines()]
    assert table[0] == ["separation", "f_classif", "group_lasso", "random"]
    # The last row is that of the largest fraction.
    own, _, exact, chance = (float(cell.rstrip("%")) for cell in table[-1][1:])
    assert own > 50
    assert exact > 50
    assert chance > 10
    assert shown.has_pictures("fractions")
