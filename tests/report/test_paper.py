"""The paper's tables: as printed, answered by commands that exist, filled by what a study holds."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from scaling.analysis.findings import find
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.paper import ITEMS, page
from scaling.analysis.questions.quality import best_layers, davis_best
from scaling.analysis.report.paper import HERE, beside, paper_section
from scaling.cli import app
from scaling.study.page import write_report
from scaling.study.page_sources import read_sources
from scaling.study_folder import Study
from tests.report.conftest import simulated_rows


def numbers(line: str) -> set[float]:
    """Of a line of the paper's text, where 10^17 is `× 1017`; without signs."""
    line = re.sub(r" × 10(\d\d)\b", r"e\1", line).replace("7B", "7 B")
    return {float(n) for n in re.findall(r"\d+\.?\d*(?:e\d+)?", line)}


@pytest.mark.parametrize("item", [item for item in ITEMS if item.printed], ids=lambda i: i.name)
def test_each_row_stands_in_one_line_of_the_paper(shared_data: Path, item: object) -> None:
    paper = shared_data.parent / "paper" / "paper.txt"
    if not paper.exists():
        pytest.skip(f"no text of the paper at {paper}")
    lines = [numbers(line) for line in paper.read_text().splitlines()]
    for row in item.printed:  # type: ignore[attr-defined]
        printed = {abs(float(cell)) for cell in row if not isinstance(cell, str)}
        printed |= {n for cell in row[1:] if isinstance(cell, str) for n in numbers(cell)}
        assert any(printed <= line for line in lines), (row, printed)


def test_the_page_of_the_docs_is_made_of_the_table() -> None:
    written = Path(__file__).parents[2] / "docs" / "method" / "paper.md"
    assert written.read_text() == page(), "write it anew with `page` of analysis/questions/paper.py"


def test_every_table_and_figure_is_there() -> None:
    told = {item.name for item in ITEMS}
    assert {f"Table {n}" for n in range(1, 17)} <= told
    assert {f"Figure {n}" for n in range(2, 15)} <= told
    assert len(told) == len(ITEMS) and set(HERE) <= told
    # What no command answers says why; what one does can be filled.
    assert {i.name for i in ITEMS if not i.commands} == told - set(HERE)
    assert all(i.compared.startswith("nothing: ") for i in ITEMS if not i.commands)


@pytest.mark.parametrize("command", sorted({c for item in ITEMS for c in item.commands}))
def test_commands_exist_with_their_options(command: str) -> None:
    name, *words = command.removeprefix("scaling ").split()
    group: Any = typer.main.get_command(app)
    found = group.commands[name]
    known = {o for p in found.params for o in (*p.opts, *p.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known
    for word in words:
        assert not word.startswith("sweeps/") or (Path(__file__).parents[2] / word).exists()


def test_a_study_without_questions_to_its_models_has_no_such_part(tmp_path: Path) -> None:
    rows = simulated_rows()
    shown = read_sources(Study(tmp_path), None, rows, "")
    assert paper_section(shown, find(rows, None)) == ""


def test_lines_hold_what_the_study_found(full: Path) -> None:
    rows = simulated_rows()
    law = fit_frontier(rows)
    shown, found = read_sources(Study(full), None, rows, ""), find(rows, law)
    table = beside(shown, found)
    lines = table.set_index(table["item"].str.partition(":")[0]).here
    tracked = davis_best(pd.read_csv(full / "davis.csv")).set_index("weights").jf
    for weights in ("trained", "random", "pixels"):
        assert f"/ {tracked[weights]:.1%}" in lines["Table 10"]
    best = best_layers(pd.read_csv(full / "probes.csv", dtype={"data_key": str}))
    best = best[(best.weights == "trained") & (best["head"] == "attention")]
    top = best.sort_values("macs_total").iloc[-1]
    assert f"{top.accuracy:.1%} [{top.low:.1%}, {top.high:.1%}]" in (
        lines["Table 7"] + lines["Table 8"]
    )
    assert ", random weights " in lines["Table 7"] + lines["Table 8"]
    assert f"C^{law.pure.b:.4f}" in lines["Figure 9"]
    assert lines["Table 9"] == lines["Table 16"] == ""
    assert "dog: 6 frames" in lines["A.8"]
    text = write_report(full, rows, law, config_text="").read_text()
    assert text.index("The paper, line by line") < text.index("What the law was fitted to")
    filled = sum(line != "" for line in lines)
    assert f"{filled} of 31 tables and figures have a row of this study" in text and filled < 20
    assert f"{31 - filled} have none" in text and "--head cross --clips 10 --crops 3" in text
