"""What a study's directory and Slurm say of each run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
from pathlib import Path

import pytest

from scaling.config.run import SCHEMA, RunConfig
from scaling.errors import UserError
from scaling.jobs.squeue import Entry
from scaling.models.family import FAMILY
from scaling.study.status import clock, left, run_states, text
from scaling.study_folder import Study

RUNS = [
    RunConfig(
        model=FAMILY["t16"],
        data_key="tokens",
        role="ladder",
        lr=2.0**-6,
        budgets_steps=(100,),
        budgets_macs=(1e9,),
        warmup_steps=10,
        seed=seed,
    )
    for seed in range(8)
]
MACS = 10**9


@pytest.fixture
def study(tmp_path: Path) -> Path:
    Study(tmp_path).write_plan(RUNS, [MACS] * len(RUNS))
    return tmp_path


def begin(study: Path, run: RunConfig, *, lock: str = "", **records: float) -> Path:
    """A run that trained 20 of its 100 steps in one second."""
    run_dir = study / "runs" / run.run_id
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(run.to_yaml())
    (run_dir / "lock").write_text(lock)
    lines = [{"position": p, "train_loss": 3.0, "seconds": p / 20} for p in (10, 20)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return run_dir


def lock(host: str, pid: int) -> str:
    return json.dumps({"host": host, "pid": pid, "job": None})


def test_states_without_slurm(study: Path) -> None:
    here = socket.gethostname()
    begin(study, RUNS[1], lock=lock(here, os.getpid()))
    begin(study, RUNS[2], lock=lock(here, 2**22 + 1))  # crashed: no such process
    begin(study, RUNS[3], lock=lock("elsewhere", 7))
    (begin(study, RUNS[4]) / "error.txt").write_text("a worm in the apple\nand more")
    (begin(study, RUNS[5]) / "rows.json").write_text('[{"status": "finished"}]')
    (begin(study, RUNS[6]) / "rows.json").write_text('[{"status": "diverged"}]')
    (study / "runs" / RUNS[7].run_id).mkdir()
    states = run_states(Study(study))
    assert [s.state for s in states] == [
        *("waiting", "running", "stopped", "running", "failed", "finished", "diverged", "waiting")
    ]
    assert [s.steps_done for s in states] == [0, 20, 20, 20, 20, 100, 20, 0]
    running = states[1]
    tokens = RUNS[1].batch * RUNS[1].model.context
    assert running.tokens_per_second == pytest.approx(20 * tokens)
    assert running.eta_seconds == pytest.approx(4.0)
    assert running.where == f"{here}:{os.getpid()}" and states[3].where == "elsewhere:7"
    assert states[4].where == "a worm in the apple"
    assert [s.tokens_per_second for s in (states[0], states[2], states[5])] == [None] * 3
    shown = text(Study(study))
    # four runs at 20%, one at its end, one diverged: 2.8 of 8; two run at 0.2e9 MACs/s each
    assert "2.8e+09 of 8e+09 training MACs (35%); ETA 0:13 at the present speed" in shown
    assert re.search(rf"{RUNS[4].run_id} .* failed +20% .*a worm in the apple$", shown, re.M)


def test_slurm_knows_better_than_a_lock_of_another_host(study: Path) -> None:
    dirs = [begin(study, run, lock=lock("node9", 7)) for run in RUNS[:3]]
    fresh = study / "runs" / RUNS[3].run_id
    jobs = {
        dirs[0].resolve(): Entry("7_0", "RUNNING", "node2", "None"),
        dirs[1].resolve(): Entry("7_1", "PENDING", "", "BeginTime"),
        fresh.resolve(): Entry("7_3", "PENDING", "", "Resources"),
    }
    states = run_states(Study(study), jobs)
    assert [s.state for s in states[:5]] == ["running", "requeued", "stopped", "pending", "waiting"]
    assert [s.where for s in states[:4]] == [
        *("node2 (job 7_0)", "job 7_1 pending: BeginTime", "", "job 7_3 pending: Resources")
    ]


def test_the_ladder_counts_before_its_rate_is_known(study: Path) -> None:
    Study(study).write_plan(RUNS[:1], [MACS], later_macs=3 * MACS)
    assert "0 of 4e+09 training MACs (0%), 3e+09 of them in ladder runs" in text(Study(study))
    assert left(Study(study)).startswith(
        "4e+09 of 4e+09 training MACs (100%); runs: 1 waiting, and"
    )


def test_directories_of_other_versions_are_refused(study: Path) -> None:
    Study(study).check_version()
    Study(study / "new").check_version()
    plan = json.loads((study / "plan.json").read_text())
    for schema, words in ((SCHEMA - 1, "another name"), (SCHEMA + 1, "Install the newer version")):
        (study / "plan.json").write_text(json.dumps(plan | {"schema": schema}))
        with pytest.raises(UserError, match=rf"written with schema {schema} .*{words}"):
            Study(study).check_version()
        said: list[str] = []
        assert Study.open(study, said.append).plan().schema == schema, "it can be read"
        assert f"written with schema {schema}" in said[0]
    assert dataclasses.replace(RUNS[0], schema=SCHEMA - 1).run_id != RUNS[0].run_id


def test_damaged_or_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such study"):
        Study.open(tmp_path / "none")
    with pytest.raises(UserError, match="not a study's folder"):
        Study.open(tmp_path)
    assert "no runs planned yet" in text(Study(tmp_path))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan.json: damaged"):
        text(Study(tmp_path))


def test_clock() -> None:
    assert [clock(s) for s in (4, 65, 3725, 90000)] == ["0:04", "1:05", "1:02:05", "1d 1:00:00"]


def logged(study: Path, run: RunConfig, done: int, *, scale: float = 1.0) -> Path:
    """A run with a smooth loss up to a step of its 100."""
    folder = begin(study, run, lock=lock(socket.gethostname(), os.getpid()))
    lines = []
    for step in range(10, done + 1, 10):
        loss = scale * (2 + 2 * step**-0.3)
        at = {"position": step, "step": step, "branch": 100 if step > 80 else None}
        lines.append(at | {"train_loss": loss, "lr": run.lr, "seconds": step / 20})
    if done == 100:
        end = {"position": 100, "step": 100, "branch": 100, "decayed": True}
        lines.append(end | {"val_loss": 0.98 * loss})
        (folder / "rows.json").write_text('[{"status": "finished"}]')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def test_the_final_loss_of_a_running_run_is_foretold(study: Path) -> None:
    """With the errors of the same forecast of finished runs; before there are some, none."""
    for run in RUNS[:2]:
        logged(study, run, 100)
    logged(study, RUNS[4], 80)
    assert "foretold once 3 runs have finished, whose errors make the interval (2 so far)" in text(
        Study(study)
    )
    for i, run in enumerate(RUNS[2:4]):
        logged(study, run, 100, scale=1.1 + i / 10)
    shown = text(Study(study))
    (row,) = [line for line in shown.splitlines() if line.startswith(RUNS[4].run_id)]
    found = re.search(r"running +80% +- +([\d.]+) \[([\d.]+), ([\d.]+)\]", row)
    assert found is not None, shown
    loss, low, high = map(float, found.groups())
    assert low <= 0.98 * (2 + 2 * 100**-0.3) <= high and low <= loss <= high
    assert "final: validation loss to expect at the end" in shown
