"""Notebooks run from the first cell to the last on a small study, and stay small themselves."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from scaling.analysis.questions.frontier import fit_frontier
from scaling.config.schema import StudyConfig
from scaling.data.encode import prepare
from scaling.data.shards import TokenData
from scaling.plan import runs as plan
from scaling.results import POSITIONS
from scaling.study_folder import RunFolder
from scaling.tracking.load import load
from scaling.training.train import train
from tests.report.conftest import simulated_rows
from tests.shell import HANGS, plain

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATIENT: dict[str, Any] = {"timeout": HANGS, "startup_timeout": HANGS}
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
    environment = plain(STUDY=str(study))
    client = NotebookClient(notebook, **PATIENT, resources={"metadata": {"path": study}})
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_one_import_of_ours(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    lines = [line for c in notebook.cells if c.cell_type == "code" for line in c.source.split("\n")]
    ours = [line for line in lines if re.match(r"\s*(from|import) scaling", line)]
    assert ours == ["import scaling"]


def test_runs_quietly_with_figures_and_tables(executed: tuple[str, list[Any]]) -> None:
    _, outputs = executed
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") >= 2
    assert kinds.count("text/html") >= 2


def test_tokens_of_a_study_by_tokenizer(tmp_path: Path) -> None:
    """03_tokenizers on two tokenizers of one study, and the losses of a run that was trained."""
    study = {
        "study": "tokens",
        "data": {"frames": 2, "size": 16, "train_sequences": 64, "val_sequences": 8,
                 "sources": [{"name": "leaves", "kind": "leaves"}]},
        "ladder": {"sizes": ["t16"], "budgets_macs": [5e7], "log2_lr": -6.0},
        "train": {"batch": 4, "warmup_steps": 2, "compile": "off"},
    }  # fmt: skip
    for kind in ("vqgan", "codebook"):
        tokenizer = {
            "kind": kind,
            "patch": 4,
            "codes": 16,
            "fit_frames": 64,
            "width": 8,
            "steps": 3,
        }
        config = StudyConfig.model_validate(study | {"tokenizer": tokenizer})
        made = prepare(config.data, config.tokenizer, tmp_path / "data", seed=0)
    ((run,), _) = plan.ladder_runs(config, 2.0**-6, TokenData.open(made).key, made)
    train(run, tmp_path / "run", log=lambda _: None)
    RunFolder(tmp_path / "run").positions_json(run.budgets_steps[-1]).rename(tmp_path / POSITIONS)
    notebook = nbformat.read(ROOT / "notebooks" / "03_tokenizers.ipynb", as_version=4)
    client = NotebookClient(notebook, **PATIENT, resources={"metadata": {"path": tmp_path}})
    client.execute(env=plain(STUDY=str(tmp_path), PYTHONPATH=str(ROOT)))
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 4  # 1-, 2-, 3-grams and positions
    assert kinds.count("image/png") == 2 and kinds.count("text/html") >= 4
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "codebook-4px-16: " in printed and "vqgan-4px-16: " in printed and " dB" in printed


def test_prints_the_law_of_the_pipeline(executed: tuple[str, list[Any]], study: Path) -> None:
    name, outputs = executed
    printed = [o.text.strip() for o in outputs if o.output_type == "stream"]
    expected = [fit_frontier(load(study / "rows.csv"), seed=0).summary()]
    assert printed == (expected if name == "02_scaling_law" else [])


def table_of(html: str) -> pd.DataFrame:
    """A frame as a notebook shows it; numbers where a cell is one."""
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in html.split("</tr>")]
    head, *body = [row for row in rows if row]
    table = pd.DataFrame([row[1:] for row in body], columns=head[1:])
    for name in table:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if (numbers.notna() | (table[name] == "NaN")).all():
            table[name] = numbers
    return table


def published(tables: Path, name: str = "05_published_results") -> list[Any]:
    """Outputs of a notebook of published results, with its tables in a folder."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    environment = plain(TABLES=str(tables), PYTHONPATH=str(ROOT))
    NotebookClient(notebook, **PATIENT).execute(env=environment)
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def test_published_results_are_reproduced(shared_data: Path) -> None:
    outputs = published(shared_data / "scaling_tables")
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "objective 1.018274018e-03 (Epoch's optimum 1.018274018e-03)" in printed
    assert "at 1e14: 2.16 with C in MACs, 3.65 with C in 10^6 MACs" in printed
    epoch, others, clip, toto = [
        table_of(o.data["text/html"])
        for o in outputs
        if "text/html" in o.get("data", {}) and o.output_type == "execute_result"
    ][:4]
    for ours, theirs in (("optimum at 1e-3", "the same, by Epoch's notebook"),
                         ("optimum for a corner to 0", "published"),
                         ("standard error", "published standard error")):  # fmt: skip
        assert epoch[ours].to_numpy() == pytest.approx(epoch[theirs].to_numpy(), rel=6e-3), ours
    exact = others[others["what"].str.contains("package: E|error|1e21|best run")]
    assert len(exact) == 5 and (exact["published"] == exact["here"]).all()
    vertices = others[others["what"] == "CS336, parabola"][["published", "here"]].astype(float)
    assert len(vertices) == 1  # 0.5145 here
    assert vertices["here"].to_numpy() == pytest.approx(vertices["published"], abs=0.0015)
    assert (clip["low"] <= clip["published"]).all() and (clip["published"] <= clip["high"]).all()
    pure = toto[toto["form"] == "power"]
    assert len(pure) == 3 and (pure["low"] <= -0.0378).all() and (pure["high"] >= -0.0378).all()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="lacks chinchilla_epoch_svg_extracted"):
        published(tmp_path)


def test_laws_of_more_than_compute(shared_data: Path) -> None:
    outputs = published(shared_data / "scaling_tables", "06_beyond_compute")
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "without repetition: held-out rms" in printed and "Kaplan: L = " in printed
    assert "lr ~ N       exponent -0.5" in printed
    pages = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    (predicted,) = [table_of(page) for page in pages if "at worst" in page]
    for column, most in (("error in the mean", 0.15), ("at worst", 0.6)):
        assert (predicted[column].astype(str).str.rstrip("%").astype(float) <= most).all(), column
