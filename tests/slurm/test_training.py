"""Real training on a real cluster: the same numbers as on one machine, in one process."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from scaling.config.run import RunConfig
from scaling.config.schema import DataConfig, LaunchConfig, SourceConfig, TokenizerConfig
from scaling.data.encode import prepare
from scaling.data.shards import TokenData
from scaling.jobs import squeue
from scaling.jobs.job import Job, train
from scaling.jobs.launch import Launcher
from scaling.models.family import size
from scaling.results import NOT_REPEATABLE
from scaling.study_folder import RunFolder
from scaling.tracking.load import load
from tests.shell import HANGS
from tests.slurm.cluster_work import until

pytestmark = pytest.mark.slurm

QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
SMALL = {
    "data.frames": 2,
    "data.train_sequences": 2048,
    "data.val_sequences": 64,
    "tokenizer.codes": 64,
    "tokenizer.fit_frames": 1000,
    "train.batch": 4,
    "train.warmup_steps": 10,
    "train.evals": 3,
    "lr.widths": "[16]",
    "lr.log2_min": -8,
    "lr.log2_max": -6,
    "lr.steps": 60,
    "ladder.sizes": "[t16, t24, t32]",
    "ladder.budgets_macs": "[5e8, 1e9, 2e9]",
    "launch.threads": 1,
}
TOLERANCE = 1e-4  # nats: sums over ranks round in another order, and training carries it on


def scaling(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "scaling.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def study(out: Path, *more: str, **launch: object) -> str:
    values = SMALL | {f"launch.{name}": value for name, value in launch.items()}
    settings = [x for k, v in values.items() for x in ("--set", f"{k}={v}")]
    return scaling("study", str(QUICKSTART), "--out", str(out), *settings, *more)


def table(out: Path) -> pd.DataFrame:
    return load(out / "quickstart").drop(columns=[*NOT_REPEATABLE, "git_sha"])


def test_slurm_ends_in_the_table_of_one_machine(tmp_path: Path) -> None:
    """The first session detaches from the sweep; the second finds its runs and goes to the end."""
    local, cluster = tmp_path / "local", tmp_path / "slurm"
    said = study(cluster, "--detach", cluster="slurm", parallel=4)
    assert "3 jobs are in Slurm, 3 of them new" in said
    shown = scaling("status", str(cluster / "quickstart"))
    assert "in ladder runs that wait for the learning rate" in shown
    assert sum(word in shown for word in ("pending", "running", "finished", "(job ")) >= 1
    said = study(cluster, cluster="slurm", parallel=4)
    assert "report" in said
    study(local, cluster="local")
    pd.testing.assert_frame_equal(table(cluster), table(local), check_exact=True)
    assert "(100%)" in scaling("status", str(cluster / "quickstart"))
    assert squeue.entries(cluster / "quickstart" / "jobs") == {}
    (some_run, *_) = sorted((cluster / "quickstart" / "runs").iterdir())
    log = scaling("logs", str(some_run)).splitlines()
    assert "steps on cpu" in log[0] and any("finished after" in line for line in log)


def test_what_slurm_refuses_is_said_before_tokens_are_made(tmp_path: Path) -> None:
    wrong = ["--set", "launch.cluster=slurm", "--set", "launch.partition=nowhere"]
    arguments = [str(QUICKSTART), "--out", str(tmp_path), *wrong]
    said = scaling("plan", "--no-measure", *arguments, code=2)
    assert "total: " in said and "nvalid partition" in said and "Traceback" not in said
    assert "nvalid partition" in scaling("study", *arguments, code=2)
    assert not list(tmp_path.glob("*/data"))
    said = scaling("plan", "--no-measure", *arguments[:-1], "launch.partition=main")
    assert "Slurm would take these jobs" in said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    data_dir = prepare(
        DataConfig(
            sources=(SourceConfig(name="leaves", kind="leaves"),),
            frames=2,
            size=8,
            train_sequences=256,
            val_sequences=8,
        ),
        TokenizerConfig(patch=4, codes=16, fit_frames=200),
        tmp_path_factory.mktemp("data"),
        seed=0,
    )
    data = TokenData.open(data_dir)
    return RunConfig(
        model=size(16, 1, 2, vocab=data.vocab, context=data.context, base_width=16),
        data_key=data.key,
        data_dir=str(data_dir),
        role="single",
        lr=2.0**-8,
        budgets_steps=(100, 800),
        budgets_macs=(1e8, 1e9),
        batch=4,
        warmup_steps=5,
        evals=3,
        checkpoint_seconds=0.2,
    )


def test_two_nodes_of_two_tasks_equal_one_process(tmp_path: Path, run: RunConfig) -> None:
    """DDP under srun, interrupted on its way: the job saves, requeues itself and continues."""
    here, there = tmp_path / "here", tmp_path / "there"
    debug = LaunchConfig(cluster="debug", threads=1)
    with Launcher(debug, tmp_path / "none", train) as launcher:
        assert [f.error for f in launcher.map([Job(run, here)])] == [None]
    launch = LaunchConfig(cluster="slurm", threads=1, nodes=2, extra={"ntasks-per-node": 2})
    job = Job(dataclasses.replace(run, parallel="ddp"), there)
    with Launcher(launch, tmp_path / "jobs", train) as launcher:
        launcher.submit([job])
        until((there / "checkpoint.pt").exists)
        (job_id,) = [entry.job_id for entry in squeue.entries(tmp_path / "jobs").values()]
        subprocess.run(["scancel", "--signal", "USR2", job_id], check=True)
        assert [f.error for f in launcher.map([job])] == [None]
    log = (there / "log.txt").read_text()
    assert "; requeues" in log and "continues at step" in log
    ours, theirs = RunFolder(there).read(), RunFolder(here).read()
    assert ours and theirs and len(ours) == len(theirs)
    assert ours[-1]["device"].endswith("4 ranks ddp")
    for row, other in zip(ours, theirs, strict=True):
        assert row["steps"] == other["steps"] and row["macs_total"] == other["macs_total"]
        assert row["val_loss"] == pytest.approx(other["val_loss"], abs=TOLERANCE)
    lines = [json.loads(x) for x in (there / "metrics.jsonl").read_text().splitlines()]
    assert len({(x["position"], "val_loss" in x) for x in lines}) == len(lines), "no step twice"
    assert os.environ.get("RANK") is None, "this process is no rank"
