"""What needs no cluster of what is asked of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaling.cli import app
from scaling.config import LaunchConfig
from scaling.jobs.squeue import RUNS, flags, job_logs, minutes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("90", 90), ("5:00", 5), ("5:30", 5.5), ("1:30:00", 90), ("1-0", 1440)),
        *(("2-12:30", 2 * 1440 + 750), ("1-00:00:30", 1440.5), ("infinite", None), ("n/a", None)),
    ],
)
def test_time_limits_in_slurms_words(text: str, expected: float | None) -> None:
    assert minutes(text) == expected


def test_extra_parameters_have_the_last_word() -> None:
    launch = LaunchConfig(
        cluster="slurm", gpus=2, mem_gb=4, timeout_min=30, extra={"ntasks_per_node": 1, "time": 7}
    )
    assert flags(launch, threads=3) == {
        "time": 7,
        "nodes": 1,
        "ntasks-per-node": 1,
        "cpus-per-task": 3,
        "gpus-per-node": 2,
        "mem": "4G",
    }


def test_logs_of_a_run_whose_job_died_before_it_could_write_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "0a1b"
    run_dir.mkdir(parents=True)
    for stamp, names in (("1", ["7_0_0", "7_1_0"]), ("2", ["9_0"])):
        folder = tmp_path / "jobs" / stamp
        folder.mkdir(parents=True)
        runs = ["elsewhere", str(run_dir)] if stamp == "1" else [str(run_dir)]
        (folder / RUNS).write_text(json.dumps(runs))
        for name in names:
            (folder / f"{name}_log.err").write_text(f"slurm said {name}\n")
            os.utime(folder / f"{name}_log.err", (float(stamp), float(stamp)))
    found = [log.name for log in job_logs(tmp_path / "jobs", run_dir)]
    assert found == ["7_1_0_log.err", "9_0_log.err"]
    said = CliRunner().invoke(app, ["logs", str(run_dir)])
    assert said.exit_code == 0 and said.stdout.endswith("9_0_log.err:\nslurm said 9_0\n")
    (run_dir / "log.txt").write_text("first\nlast\n")
    assert CliRunner().invoke(app, ["logs", str(run_dir), "--lines", "1"]).stdout == "last\n"
