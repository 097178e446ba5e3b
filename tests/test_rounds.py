"""A study whose ladder places its own runs: end to end, killed, edited, planned."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling.analysis.questions.rounds import PLACED
from scaling.results import NOT_REPEATABLE
from scaling.tracking.load import load
from tests.shell import HANGS, answer, scaling
from tests.warm import Warm, command

STUDY = """\
study: own
data:
  frames: 2
  size: 16
  stride: 1
  train_sequences: 512
  val_sequences: 16
  sources:
    - {name: leaves, kind: leaves}
tokenizer: {patch: 4, codes: 64, fit_frames: 200}
model: {base_width: 32}
train: {batch: 4, warmup_steps: 4, evals: 0, checkpoint_seconds: 0.2, precision: fp32}
ladder: {sizes: [t16, t24, t32], macs: 1.37e10, first_macs: 1.2e8, log2_lr: -6}
launch: {cluster: debug, threads: 1}
fit: {resamples: 200}
"""


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def finished(yaml: Path) -> tuple[Path, str]:
    """A folder, and what the command said."""
    out = yaml.parent / "whole"
    return out / "own", scaling("study", str(yaml), "--out", str(out))


def table(study: Path) -> pd.DataFrame:
    return load(study).drop(columns=[*NOT_REPEATABLE, "git_sha"])


def record(study: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((study / "design.json").read_text())
    return held


def test_it_decides_in_rounds_and_says_why(finished: tuple[Path, str]) -> None:
    study, said = finished
    rounds = record(study)["rounds"]
    assert f"round {len(rounds)}: " in said and "beware" in said
    assert rounds[0]["why"].startswith("begin") and rounds[-1]["why"].startswith("seeds")
    points = [tuple(point.values()) for one in rounds for point in one["points"]]
    rows = table(study)
    rows = rows[rows.decayed]
    assert sorted(points) == sorted(zip(rows["size"], rows.seed, rows.budget_macs, strict=True))
    spent = sum(run["macs"] for run in json.loads((study / "plan.json").read_text())["runs"])
    assert 0.7 * 1.37e10 < spent <= 1.37e10
    assert (study / "law.json").exists()
    assert "of 1.37e+10 MACs" in said
    assert PLACED in said and PLACED in (study / "law.json").read_text()
    assert PLACED in scaling("fit", str(study))


def test_killed_between_rounds_it_ends_in_the_same_table(
    yaml: Path, finished: tuple[Path, str]
) -> None:
    out = yaml.parent / "killed"
    study = out / "own"
    out.mkdir()
    driver = Warm(command, "study", str(yaml), "--out", str(out), said=out / "said")
    until = time.monotonic() + HANGS
    while driver.poll() is None and time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            if len(record(study)["rounds"]) > 2:
                break
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    said = scaling("study", str(yaml), "--out", str(out))
    assert "rounds were decided before" in said
    assert record(study) == record(finished[0])
    pd.testing.assert_frame_equal(table(study), table(finished[0]), check_exact=True)


def test_the_record_is_made_anew_from_the_losses(yaml: Path, finished: tuple[Path, str]) -> None:
    study, before = finished[0], record(finished[0])
    edited = json.dumps(before).replace('"t24"', '"t32"', 1)
    assert edited != json.dumps(before)
    (study / "design.json").write_text(edited)
    code, said = answer("study", str(yaml), "--out", str(study.parent))
    assert code == 2 and "design.json: damaged, or changed by hand" in said
    (study / "design.json").unlink()
    said = scaling("study", str(yaml), "--out", str(study.parent))
    assert record(study) == before and "to train" not in said


def test_the_plan_says_what_is_known(yaml: Path, tmp_path: Path) -> None:
    said = scaling("plan", str(yaml), "--out", str(tmp_path), "--no-measure")
    assert "total: 3 runs" in said and "1.37e+10 training MACs" in said
    assert "placed by their losses, round by round, among t16, t24, t32 at" in said
    code, said = answer("plan", str(yaml), "--set", "ladder.macs=1e10", "--no-measure")
    assert code == 2 and "too small for a law" in said and "(from 1.2e+08 on: 1.36e+10)" in said
