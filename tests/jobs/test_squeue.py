"""What needs no cluster of what is asked of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaling.cli import app
from scaling.config.schema import LaunchConfig
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.slurm import ARRAY, Placed, Slurm, verdict
from scaling.jobs.squeue import RUNS, flags, history, job_logs, minutes, queue


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


# What `squeue` may say of a job, of the states that Slurm 23.11 to 25.05 know (job_state_string in
# its sources), and what becomes of the job's run: None, it lives; else a word of the sentence, and
# whether the run is worth another try.
LIVES = [
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "STOPPED"),
    *("REQUEUED", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "POWER_UP_NODE", "EXPEDITING"),
    *("RECONFIG_FAIL", "UPDATE_DB"),
]
WAITS = ["REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"]  # for somebody
STATES: list[tuple[str, tuple[str, bool] | None]] = [
    *[(state, None) for state in [*LIVES, *WAITS]],
    ("COMPLETED", ("without leaving a result", True)),
    ("FAILED", ("died without", True)),
    ("TIMEOUT", ("time limit", True)),
    ("NODE_FAIL", ("lost its node", True)),
    ("BOOT_FAIL", ("lost its node while", True)),
    ("PREEMPTED", ("preempted and not requeued", True)),
    ("REVOKED", ("federation", True)),
    ("LAUNCH_FAILED", ("could not be started", True)),
    ("CANCELLED", ("was cancelled", False)),
    ("DEADLINE", ("deadline", False)),
    ("OUT_OF_MEMORY", ("raise launch.mem_gb", False)),
    ("OF_A_LATER_SLURM", ("ended as OF_A_LATER_SLURM", True)),
]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's programs that say what a test wants of them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "sinfo", "srun", "scancel"):
        says(programs, name, "")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs


def says(programs: Path, name: str, script: str) -> None:
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)


def driver(tmp_path: Path, count: int = 1) -> tuple[Slurm[None], list[Job[None]]]:
    launch = LaunchConfig(cluster="slurm", timeout_min=30)
    jobs: list[Job[None]] = [Job(None, tmp_path / "runs" / str(k)) for k in range(count)]
    return Slurm(launch, tmp_path / "jobs", print, 1), jobs


@pytest.mark.parametrize(("state", "expected"), STATES)
def test_states_of_a_job(
    state: str,
    expected: tuple[str, bool] | None,
    cluster: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slurm, (job,) = driver(tmp_path)
    placed = Placed(job, "7_3", tmp_path)
    slurm._placed.append(placed)
    says(cluster, "squeue", f"echo '7_3|{state}|n17|JobHeldUser|{tmp_path}'")
    slurm._look()
    slurm._look()
    outcome = verdict(placed, float("inf"))
    said = capsys.readouterr().err
    assert said.count("scontrol release 7_3") == (state in WAITS), "once, where somebody must act"
    if expected is None:
        assert outcome is None
    else:
        assert outcome and outcome.error and expected[0] in outcome.error
        assert outcome.lost is expected[1]


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("7_3|CANCELLED by 1000|n17", "CANCELLED"),
        ("7_3|OUT_OF_MEMORY|n[1-3]", "OUT_OF_MEMORY"),
        ("7_3|TIMEOUT|None assigned", "TIMEOUT"),
        ("7_3|PREEMPTED|n17", "PREEMPTED"),
    ],
)
def test_accounting_of_a_job_that_the_controller_forgot(
    line: str, state: str, cluster: Path, tmp_path: Path
) -> None:
    slurm, (job,) = driver(tmp_path)
    placed = Placed(job, "7_3", tmp_path)
    slurm._placed.append(placed)
    slurm._look()  # no accounting: nobody knows the job
    assert history(["7_3"]) == [] and placed.state is None
    unknown = verdict(placed, float("inf"))
    assert unknown and unknown.lost and "unknown to Slurm" in str(unknown.error)
    for failing in ("exit 1", "echo 'Slurm accounting storage is disabled' >&2; exit 1"):
        says(cluster, "sacct", failing)
        assert history(["7_3"]) == []
    says(cluster, "sacct", f"echo '{line}'")
    slurm._look()
    assert placed.state == state


def test_a_controller_that_is_away(cluster: Path) -> None:
    says(cluster, "squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    with pytest.raises(UserError, match="Unable to contact"):
        queue()


def test_arrays_past_the_clusters_limit(cluster: Path, tmp_path: Path) -> None:
    """MaxArraySize is the administrator's: arrays are halved until Slurm takes them."""
    script = """
case "$*" in *--test-only*) exit 0;; esac
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
if [ "${last:-0}" -ge 4 ]; then
  echo "sbatch: error: Batch job submission failed: Invalid job array specification" >&2; exit 1
fi
echo "$((${last:-0} + 1))" >> COUNTS
echo "Submitted batch job $(wc -l < COUNTS)"
""".replace("COUNTS", str(tmp_path / "counts"))
    says(cluster, "sbatch", script)
    slurm, jobs = driver(tmp_path, count=11)
    assert slurm.submit(jobs, at_once=ARRAY) == 11
    taken = [int(n) for n in (tmp_path / "counts").read_text().split()]
    assert sum(taken) == 11 and max(taken) <= 4
    assert len({placed.job_id for placed in slurm._placed}) == 11
    assert len(list((tmp_path / "jobs").glob(f"*/{RUNS}"))) == len(taken), "no refused one is left"
