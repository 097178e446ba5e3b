"""The report's part on anticipation, and the paper's Table 9 beside it."""

from pathlib import Path

import numpy as np
import pandas as pd

from scaling.analysis.findings import find
from scaling.analysis.questions.anticipation import CRITERIA, lines, settings
from scaling.analysis.report.anticipation import anticipation_section
from scaling.analysis.report.paper import beside
from scaling.study.page_sources import read_sources
from scaling.study_folder import Study
from tests.report.conftest import simulated_rows


def anticipation_table(silent: int = 0, low: float = 31.5) -> pd.DataFrame:
    """8 frames at 40% top-5 and 10% plain, 5 points above the last frame alone."""
    about = {
        "run_id": "0a1b", "study": "s", "size": "t32", "params": 1, "macs_total": 1,
        "data": "clips",
        "data_key": "k", "px": 48, "fast_px": 24.0, "frames": 8, "stride": 1.0,
        "rope_base": 50_000.0, "next_token_weight": 1.0, "verb_weight": 1.0, "frozen": False,
        "layer_decay": 0.9, "lr": 1e-3, "head_lr": 3e-3, "steps": 1200, "batch": 16, "tokens": 396,
        "weights": "trained", "seeds": 3, "n_train": 4000, "n_test": 400, "silent": silent,
        "next_token_loss": 1.2,
    }  # fmt: skip
    rows = [
        about | {"less": less, "criterion": criterion, "k": k}
        | {"percent": value, "low": a, "high": b}
        for less, k, value, a, b in (
            (np.nan, 5, 40.0, low, 48.5), (np.nan, 1, 10.0, 8.0, 12.0),
            ("the last frame alone", 5, 5.0, 1.0, 9.0), ("the last frame alone", 1, 2.0, 1.0, 3.0),
        )
        for criterion in CRITERIA
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_figures_differences_and_plain_precision_are_shown() -> None:
    assert anticipation_section(None) == ""
    section = anticipation_section(anticipation_table())
    assert section.count("40.0 [31.5, 48.5]") == section.count("10.0 [8.0, 12.0]") == 4
    assert section.count("+5.0 [+1.0, +9.0]") == 4 and "less the last frame alone" in section
    assert "t32 from trained weights, 8 frames (48 px, before it 24 px)" in section
    without = anticipation_section(anticipation_table(low=np.nan))
    assert "40.0</td>" in without and "nan" not in without


def test_frames_without_a_prediction_are_told() -> None:
    ((of, rows),) = settings(anticipation_table(silent=7))
    text = "\n".join(lines(of, rows))
    assert "of 400 frames, 7 of them without a prediction and left out with their objects" in text
    assert "plain: noun 10.0, noun + verb 10.0" in text
    assert "less the last frame alone: noun +5.0 [+1.0, +9.0]" in text


def test_the_papers_table_has_a_line(tmp_path: Path) -> None:
    anticipation_table(silent=7).to_csv(tmp_path / "anticipation.csv", index=False)
    rows = simulated_rows()
    table = beside(read_sources(Study(tmp_path), None, rows, ""), find(rows, None))
    line = table.set_index(table["item"].str.partition(":")[0]).here["Table 9"]
    assert line.startswith("t32 from trained weights, 8 frames (48 px, before it 24 px): noun 40.0")
    assert line.endswith("(top-5 mAP, %, 400 frames of clips, 7 of them without a prediction)")
