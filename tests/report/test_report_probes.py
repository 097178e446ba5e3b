"""The parts on what models learned are in the report exactly when the study holds them."""

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.quality import davis_best, davis_points, probe_points
from scaling.analysis.report.probes import (
    probe_sections,
    tuned_section,
)
from scaling.study.page import write_report
from scaling.study.page_sources import read_sources
from scaling.study_folder import Study
from tests.report.conftest import simulated_rows
from tests.shell import HANGS, plain

ROOT = Path(__file__).resolve().parent.parent.parent


def test_absent_parts_are_not_there(tmp_path: Path) -> None:
    shown = read_sources(Study(tmp_path), None, simulated_rows(), "")
    assert {text for _, _, text in probe_sections(shown, ())} == {""}


def test_page_has_the_parts_and_their_data(full: Path) -> None:
    rows = simulated_rows()
    text = write_report(full, rows, fit_frontier(rows), config_text="").read_text()
    for title in ("What the layers know", "Tracking without training", "Generated clips"):
        assert title in text
    for key in ("probe-0", "probe-law-0", "davis-0", "generated-0"):
        assert f'download="{key}.csv"' in text
    assert "Trained less random weights, points [95%]" in text and "dog, continued" in text
    assert "from above: truth, " in text and "Error against compute." in text
    # What is in the CSV is what was probed.
    start = text.index('download="davis-0.csv" href="data:text/csv;charset=utf-8,')
    csv = unquote(text[start:].split("utf-8,", 1)[1].split('"', 1)[0])
    shown = pd.read_csv(io.StringIO(csv))
    expected = davis_points(pd.read_csv(full / "davis.csv"))
    np.testing.assert_allclose(shown.jf, expected.jf)


def test_page_changes_with_the_probes(full: Path) -> None:
    rows = simulated_rows().head(4)  # too few for a law of the loss
    path = write_report(full, rows, None, config_text="")
    before = path.read_text()
    assert write_report(full, rows, None, config_text="").read_text() == before
    (full / "davis.csv").unlink()
    assert write_report(full, rows, None, config_text="").read_text() != before


def test_points(full: Path) -> None:
    best = davis_best(pd.read_csv(full / "davis.csv"))
    assert best.set_index("weights").layer.to_dict() == {"trained": 1, "random": 1, "pixels": 0}
    trained = best[best.weights == "trained"].iloc[0]
    assert trained.jf == pytest.approx((trained.j_mean + trained.f_mean) / 2)
    assert trained.low < trained.jf < trained.high
    assert json.dumps(sorted(set(probe_points(pd.read_csv(full / "probes.csv")).weights)))


def notebook_outputs(study: Path) -> list[Any]:
    notebook = nbformat.read(ROOT / "notebooks" / "04_probes.ipynb", as_version=4)
    environment = plain(STUDY=str(study), PYTHONPATH=str(ROOT))
    NotebookClient(notebook, timeout=HANGS, startup_timeout=HANGS).execute(env=environment)
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def test_notebook(full: Path) -> None:
    """04_probes on a study that was probed, and on one that was not, where it says why it skips."""
    simulated_rows().to_csv(full / "rows.csv", index=False)
    outputs = notebook_outputs(full)
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 3  # layers, errors, tracking
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "1 - probe_top1 on pictures, attention head: L(C) = " in printed
    (full / "probes.csv").unlink()
    (full / "davis.csv").unlink()
    outputs = notebook_outputs(full)
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "has no probes.csv" in printed and "has no davis.csv" in printed


def finetune_table() -> pd.DataFrame:
    rows = []
    for attention, end_to_end, level in (("causal", False, 0.6), ("full", True, 0.7)):
        for seed in range(3):
            for layer in [3] if end_to_end else range(4):
                rows.append(
                    {"run_id": "0a1b", "size": "t64", "data": "pictures", "px": 32, "tokens": 64}
                    | {"rope_base": 50_000.0, "attention": attention, "end_to_end": end_to_end}
                    | {"head": "attention", "lr": 1e-3, "steps": 300, "layer": layer}
                    | {"head_lr": 3e-3, "layer_decay": 0.9, "batch": 32, "weights": "trained"}
                    | {"data_key": "k", "frames": 1, "stride": np.nan}
                    | {"n_hidden": 0, "top1_hidden": np.nan}
                    | {"seed": seed, "split": "drawn", "n_train": 300, "n_test": 100}
                    | {"chance": 0.1, "next_token_loss": np.nan if end_to_end else 3.5}
                    | {"top1": level - 0.1 * (layer < 2) + 0.01 * seed}
                )
    return pd.DataFrame(rows)


def test_fine_tunings_are_listed(full: Path) -> None:
    finetune_table().to_csv(full / "finetune.csv", index=False)
    section = tuned_section(finetune_table())
    assert "61.0% [" in section and "71.0% [" in section
    assert "next tokens" in section and "labels" in section and "3.500" in section
    assert "Where hidden" not in section
    text = write_report(full, simulated_rows().head(4), None, config_text="").read_text()
    assert "Fine-tuned" in text and "The choices compared" not in text


def test_trained_and_random_weights_are_one_row() -> None:
    """Of clips with a hidden ball: a row for each length, and how often the hidden one is found."""
    rows = []
    for frames in (16, 32):
        for weights, top1 in (("trained", 0.54), ("random", 0.2)):
            one = finetune_table().query("end_to_end").iloc[:1].assign(data=f"balls-{frames}")
            one = one.assign(frames=frames, weights=weights, split="given", top1=top1)
            rows.append(one.assign(n_hidden=40, top1_hidden=top1 / 4))
    section = tuned_section(pd.concat(rows))
    for frames in (16, 32):
        (row,) = [r for r in section.split("<tr>") if f"balls-{frames}" in r]
        assert row.index("54.0% [44.2%, 63.8%]") < row.index("20.0% [12.2%, 27.8%]")
        assert row.index("13.5% [2.9%, 24.1%]") < row.index("5.0% [0.0%, 12.6%]")
