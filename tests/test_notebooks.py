"""Notebooks run from the first cell to the last on a small study, and stay small themselves."""

import ast
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from analysis.frontier import fit_frontier
from scaling.results import load
from tests.report.conftest import simulated_rows

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ON_A_STUDY = ["01_lr_transfer", "02_scaling_law"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    simulated_rows().to_csv(folder / "rows.csv", index=False)
    return folder


@pytest.fixture(scope="module", params=ON_A_STUDY)
def executed(request: pytest.FixtureRequest, study: Path) -> tuple[str, list[Any]]:
    """A notebook's name, and the outputs of its code cells after it ran on the study."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)
    environment = os.environ | {"STUDY": str(study)}
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": study}})
    client.execute(env=environment)
    return request.param, [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_small_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert cell.outputs == [] and cell.execution_count is None, "outputs are not stored"
        nodes = list(ast.walk(ast.parse(cell.source)))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not any(isinstance(node, functions) for node in nodes), "logic lives in modules"


def test_runs_quietly_with_figures_and_tables(executed: tuple[str, list[Any]]) -> None:
    _, outputs = executed
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") >= 2
    assert kinds.count("text/html") >= 2


def test_prints_the_law_of_the_pipeline(executed: tuple[str, list[Any]], study: Path) -> None:
    name, outputs = executed
    printed = [o.text.strip() for o in outputs if o.output_type == "stream"]
    expected = [fit_frontier(load(study / "rows.csv"), seed=0).summary()]
    assert printed == (expected if name == "02_scaling_law" else [])
