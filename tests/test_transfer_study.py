"""A study of learning rates alone, from its media to its verdicts, and again."""

import json
from pathlib import Path

from scaling.config.study_file import load_study
from scaling.study.pipeline import run_study
from scaling.study_folder import Study
from scaling.tracking.load import load

SWEEPS = """\
study: rates
data:
  frames: 2
  size: 16
  stride: 1
  train_sequences: 512
  val_sequences: 32
  sources:
    - {name: leaves, kind: leaves}
tokenizer: {patch: 8, codes: 32, fit_frames: 500}
model: {base_width: 16, base_layers: 1}
train: {batch: 4, warmup_steps: 4}
launch: {cluster: debug}
transfer:
  - {widths: [16, 32], layers: 1, heads: 2, log2_min: -7, log2_max: -6, steps: 15}
  - {parametrization: standard, widths: [16, 32], layers: 1, heads: 2, log2_min: -6, log2_max: -6,
     steps: 15}
  - {widths: [16], depths: [1, 3], heads: 2, log2_min: -6, log2_max: -6, steps: 15}
  - {parametrization: completep, widths: [16], depths: [1, 3], heads: 2, log2_min: -6, log2_max: -6,
     steps: 15}
"""


def test_a_study_of_learning_rates_alone(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(SWEEPS)
    config = load_study(tmp_path / "rates.yaml")
    said: list[str] = []
    report = run_study(config, Study(tmp_path / config.study), say=said.append)
    folder = tmp_path / "rates"
    assert report == folder / "report.html"
    rows = load(folder)
    points = rows.groupby(["parametrization", "d", "layers"]).log2_lr.unique()
    wide = sorted(points["mup", 32, 1])
    assert len(wide) > 2, "the grid grew towards the best rate"
    assert wide == [float(p) for p in range(int(wide[0]), int(wide[-1]) + 1)]
    for key in (("standard", 32, 1), ("mup", 16, 3), ("completep", 16, 3)):
        assert list(points[key]) == [-6.0], key
    planned = [run["run_id"] for run in json.loads((folder / "plan.json").read_text())["runs"]]
    assert len(planned) == len(set(planned)) == rows.run_id.nunique()

    # At the base width and depth all parametrisations are one model.
    base = rows[(rows.d == 16) & (rows.layers == 1) & (rows.log2_lr == -6)]
    assert sorted(base.parametrization) == ["completep", "mup", "standard"]
    assert base.val_loss.nunique() == 1
    deep = rows[(rows.layers == 3)].set_index("parametrization").val_loss
    assert deep["mup"] != deep["completep"]

    verdicts = [
        line for text in said for line in text.splitlines() if "the best rate moves" in line
    ]
    assert [line.split(":")[0] for line in verdicts] == [
        "muP over width (1 layers)",
        "standard over width (1 layers)",
        "muP over depth (width 16)",
        "CompleteP over depth (width 16)",
    ]
    assert not (folder / "law.json").exists()
    page = report.read_text()
    assert "Loss against learning rate" in page and "No law was fitted" not in page

    before = report.stat().st_mtime_ns, (folder / "rows.csv").read_bytes()
    again: list[str] = []
    run_study(config, Study(tmp_path / config.study), say=again.append)
    assert not [text for text in again if "to train" in text]
    assert before == (report.stat().st_mtime_ns, (folder / "rows.csv").read_bytes())
