"""Jobs on a real cluster: what Slurm does to them, and what the driver makes of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from scaling.config.schema import LaunchConfig
from scaling.errors import UserError
from scaling.jobs import slurm, squeue
from scaling.jobs.job import RETRIES, Job
from scaling.jobs.launch import Detached, Finished, Launcher
from scaling.study.doctor import examine
from scaling.study_folder import ENTRY, Study
from tests.shell import HANGS
from tests.slurm.cluster_work import Task, attempts, perform, ticks, until

pytestmark = pytest.mark.slurm


def jobs(tmp_path: Path, *tasks: Task) -> list[Job[Task]]:
    return [Job(task, tmp_path / "runs" / f"run{k}") for k, task in enumerate(tasks)]


def launcher(tmp_path: Path, *, detach: bool = False, **launch: Any) -> Launcher[Task]:
    config = LaunchConfig.model_validate({"cluster": "slurm", "threads": 1} | launch)
    return Launcher(config, tmp_path / "jobs", function=perform, detach=detach)


def run(tmp_path: Path, made: list[Job[Task]], **launch: Any) -> dict[str, Finished[Task]]:
    with launcher(tmp_path, **launch) as started:
        return {f.job.run_dir.name: f for f in started.map(made)}


def in_background(
    tmp_path: Path, made: list[Job[Task]], **launch: object
) -> tuple[Thread, dict[str, Finished[Task]]]:
    found: dict[str, Finished[Task]] = {}
    thread = Thread(target=lambda: found.update(run(tmp_path, made, **launch)), daemon=True)
    thread.start()
    return thread, found


def job_id(tmp_path: Path, name: str = "run0") -> str:
    return squeue.entries(tmp_path / "jobs")[tmp_path / "runs" / name].job_id


def working(tmp_path: Path, name: str = "run0", times: int = 1) -> bool:
    return len(attempts(tmp_path / "runs" / name)) >= times


def test_every_job_comes_back_once_with_what_happened(tmp_path: Path) -> None:
    made = jobs(tmp_path, Task(), Task("raise"), Task("mistake"), Task("killed once"), Task())
    finished = run(tmp_path, made, parallel=4)
    assert sorted(finished) == [f"run{k}" for k in range(5)]
    assert [finished[f"run{k}"].error for k in (0, 3, 4)] == [None] * 3
    assert "a worm in the apple" in str(finished["run1"].error)
    assert str(tmp_path / "runs" / "run1" / "log.txt") in str(finished["run1"].error)
    assert str(finished["run2"].error).startswith("lr 7: must be below 1; lower it")
    assert [len(attempts(j.run_dir)) for j in made] == [1, 1, 1, 2, 1]
    assert (tmp_path / "runs" / "run0" / "done").read_text() == "1", "OMP_NUM_THREADS"


def test_modules_where_the_command_is_given_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm starts a job in the folder that it was submitted from."""
    there = tmp_path / "there"
    for name in ("models/__init__.py", "analysis/__init__.py", "numbers.py", "random.py"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write({name!r})")
    monkeypatch.chdir(there)
    assert run(tmp_path, jobs(tmp_path, Task()))["run0"].error is None
    assert not (tmp_path / "mark").exists()


def test_a_job_that_dies_is_tried_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 3.0)
    finished = run(tmp_path, jobs(tmp_path, Task("killed")))
    assert "died without leaving a result" in str(finished["run0"].error)
    assert f"attempt {RETRIES + 1}, the last" in str(finished["run0"].error)
    assert len(attempts(tmp_path / "runs" / "run0")) == RETRIES + 1


def test_the_next_driver_attaches_to_what_the_last_one_left(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.slurm.test_slurm import *\n"
        f"p = Path({str(tmp_path)!r}); run(p, jobs(p, Task(seconds=12), Task(seconds=12)))"
    )
    driver = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: working(tmp_path) and working(tmp_path, "run1"))
    driver.kill()
    driver.wait()
    before = {name: job_id(tmp_path, name) for name in ("run0", "run1")}
    made = jobs(tmp_path, Task(seconds=12), Task(seconds=12), Task())
    with launcher(tmp_path) as started:
        finished = {f.job.run_dir.name: f.error for f in started.map(made)}
    assert finished == {"run0": None, "run1": None, "run2": None}
    assert [len(attempts(j.run_dir)) for j in made] == [1, 1, 1], "nothing was submitted twice"
    assert len(set(before.values())) == 2


def test_detached_jobs_go_on_and_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = jobs(tmp_path, *[Task(seconds=1)] * 6)
    finished_before = Job(Task(), tmp_path / "finished")
    finished_before.run_dir.mkdir()
    (finished_before.run_dir / "rows.json").touch()
    detach = launcher(tmp_path, parallel=2, detach=True).map([*made, finished_before])
    assert next(detach) == Finished(finished_before, None)
    with pytest.raises(Detached, match="6 jobs, 6 of them new"):
        next(detach)
    monkeypatch.chdir(tmp_path)  # the next driver names the same folders in another way
    nearby = [Job(job.payload, Path("runs") / job.run_dir.name) for job in made]
    with pytest.raises(Detached, match="6 jobs, 0 of them new"):
        list(launcher(Path("."), parallel=2, detach=True).map(nearby))
    (tmp_path / "study.yaml").touch()
    entry = dict.fromkeys(ENTRY, 1) | {"run_id": "run0", "role": "ladder", "size": "t16"}
    (tmp_path / "plan.json").write_text(json.dumps({"runs": [entry]}))
    assert "5 live jobs train runs that are not" in "\n".join(map(str, examine(Study(tmp_path))))
    states = [e.state for e in squeue.entries(tmp_path / "jobs").values()]
    assert len(states) == 6 and states.count("RUNNING") <= 2
    finished = run(tmp_path, made)
    assert all(f.error is None for f in finished.values())
    assert [len(attempts(j.run_dir)) for j in made] == [1] * 6


def test_detached_jobs_of_all_kinds_together_are_as_many_as_launch_says(tmp_path: Path) -> None:
    """One array runs two at a time; the arrays of another number of GPUs wait for it."""
    made = jobs(tmp_path, *[Task(seconds=2)] * 6)
    made = [dataclasses.replace(job, gpus=i % 2) for i, job in enumerate(made)]
    with pytest.raises(Detached, match="6 jobs, 6 of them new"):
        list(launcher(tmp_path, parallel=2, detach=True).map(made))
    most = 0

    def ended() -> bool:
        nonlocal most
        states = [e.state for e in squeue.entries(tmp_path / "jobs").values()]
        most = max(most, states.count("RUNNING"))
        return not states

    until(ended)
    assert 1 <= most <= 2
    assert [len(attempts(j.run_dir)) for j in made] == [1] * 6


def test_a_cancelled_job_is_not_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 3.0)
    thread, found = in_background(tmp_path, jobs(tmp_path, Task(seconds=60)))
    until(lambda: working(tmp_path))
    assert squeue.cancel(tmp_path / "jobs") == 1
    thread.join(HANGS)
    assert "was cancelled" in (found["run0"].error or "")
    assert len(attempts(tmp_path / "runs" / "run0")) == 1
    assert squeue.entries(tmp_path / "jobs") == {}


def test_a_warned_job_saves_requeues_itself_and_continues(tmp_path: Path) -> None:
    thread, found = in_background(tmp_path, jobs(tmp_path, Task(seconds=10)))
    until(lambda: ticks(tmp_path / "runs" / "run0") > 25)
    job = job_id(tmp_path)
    subprocess.run(["scancel", "--signal", "USR2", job], check=True)
    until(lambda: working(tmp_path, times=2))
    first, second = attempts(tmp_path / "runs" / "run0")
    assert first.split()[0] == second.split()[0] == job, "the same job, requeued"
    assert float(second.split()[-1]) > 1, "continued where it was"
    thread.join(HANGS)
    assert found["run0"].error is None


def test_sigterm_alone_requeues_too(tmp_path: Path) -> None:
    """Preemption where the cluster sends no user signal."""
    thread, found = in_background(tmp_path, jobs(tmp_path, Task(seconds=6)))
    until(lambda: ticks(tmp_path / "runs" / "run0") > 5)
    subprocess.run(["scancel", "--signal", "TERM", job_id(tmp_path)], check=True)
    thread.join(HANGS)
    assert found["run0"].error is None
    assert len(attempts(tmp_path / "runs" / "run0")) == 2


def test_a_preempted_job_gives_way_and_comes_back(tmp_path: Path) -> None:
    """All CPUs of `low` are in use; a job of `main` needs one of its nodes."""
    shown = subprocess.run(["sinfo", "-h", "-o", "%R %c"], capture_output=True, text=True).stdout
    partitions = dict(line.split() for line in shown.splitlines())
    if not {"low", "main"} <= set(partitions):
        pytest.skip("this cluster has no partition `low` that `main` preempts")
    cpus = int(partitions["low"])
    nodes = 4
    made = jobs(tmp_path, *[Task(seconds=10)] * nodes)
    thread, found = in_background(tmp_path, made, partition="low", threads=cpus)
    until(lambda: all(ticks(tmp_path / "runs" / f"run{k}") > 15 for k in range(nodes)))
    rival = ["sbatch", "--parsable", "-p", "main", f"--cpus-per-task={cpus}", "-o", "/dev/null"]
    done = subprocess.run([*rival, "--wrap", "sleep 5"], capture_output=True, text=True, check=True)
    thread.join(HANGS)
    subprocess.run(["scancel", done.stdout.strip()], check=True)
    assert all(f.error is None for f in found.values())
    tries = [attempts(j.run_dir) for j in made]
    assert sum(len(t) for t in tries) == nodes + 1, "one gave way, once"
    (again,) = [t for t in tries if len(t) == 2]
    assert float(again[1].split()[-1]) > 0.5


def test_a_lost_node_is_told_from_a_failure(tmp_path: Path) -> None:
    thread, found = in_background(tmp_path, jobs(tmp_path, Task(seconds=6)))
    until(lambda: working(tmp_path))
    node = squeue.entries(tmp_path / "jobs")[tmp_path / "runs" / "run0"].node
    update = ["scontrol", "update", f"nodename={node}"]
    done = subprocess.run([*update, "state=down", "reason=test"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not allowed to set a node down: {done.stderr.strip()}")
    try:
        thread.join(HANGS)
    finally:
        subprocess.run([*update, "state=resume"], check=True)
    assert found["run0"].error is None
    assert 2 <= len(attempts(tmp_path / "runs" / "run0")) <= 3


@pytest.mark.slow
def test_a_short_limit_finishes_a_longer_run(tmp_path: Path) -> None:
    finished = run(tmp_path, jobs(tmp_path, Task(seconds=75)), timeout_min=1)
    assert finished["run0"].error is None
    tries = [line.split() for line in attempts(tmp_path / "runs" / "run0")]
    assert len(tries) >= 2 and len({job for job, *_ in tries}) == 1
    starts = [float(t[-1]) for t in tries]
    assert starts == sorted(starts) and starts[0] == 0 < starts[1]


def test_tasks_of_two_nodes_find_each_other(tmp_path: Path) -> None:
    launch = {"nodes": 2, "extra": {"ntasks-per-node": 2}}
    finished = run(tmp_path, jobs(tmp_path, Task("sum")), **launch)
    assert finished["run0"].error is None
    assert (tmp_path / "runs" / "run0" / "sum").read_text() == "10.0"


def test_each_job_gets_the_gpus_of_its_size(tmp_path: Path) -> None:
    shown = subprocess.run(["sinfo", "-h", "-o", "%G"], capture_output=True, text=True).stdout
    if "gpu:2" not in shown:
        pytest.skip("this cluster has no nodes of two GPUs")
    large, *small = jobs(tmp_path, Task("sum"), Task(), Task())
    made = [dataclasses.replace(large, gpus=2), *(dataclasses.replace(j, gpus=1) for j in small)]
    finished = run(tmp_path, made, gpus=2)
    assert [finished[f"run{k}"].error for k in range(3)] == [None] * 3
    seen = [(job.run_dir / "gpus").read_text() for job in made]
    assert [len(gpus.split(",")) for gpus in seen] == [2, 1, 1]
    assert (made[0].run_dir / "sum").read_text() == "3.0", "a task for each GPU"


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ({"partition": "nowhere"}, r"Slurm refuses.*nvalid partition.*Change the `launch:`"),
        ({"gpus": 99}, r"Slurm refuses.*node configuration is not available"),
        ({"nodes": 999}, r"Slurm refuses"),
        ({"extra": {"colour": "red"}}, r"Slurm refuses.*colour"),
    ],
)
def test_what_slurm_refuses_is_said_before_anything_starts(
    tmp_path: Path, launch: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(tmp_path, jobs(tmp_path, Task()), **launch)
    assert not (tmp_path / "jobs").exists()


def test_a_limit_above_the_partitions_is_refused(tmp_path: Path) -> None:
    """Slurm itself would take the job and never start it."""
    create = ["scontrol", "create", "partitionname=brief", "maxtime=5", "nodes=ALL"]
    if subprocess.run(create, capture_output=True).returncode:
        pytest.skip("not allowed to make a partition")
    try:
        words = r"timeout_min 6 is above the time limit of partition 'brief' \(5:00\)"
        with pytest.raises(UserError, match=words):
            run(tmp_path, jobs(tmp_path, Task()), partition="brief", timeout_min=6)
        squeue.check(LaunchConfig(cluster="slurm", partition="brief", timeout_min=5), 1)
        squeue.check(LaunchConfig(cluster="slurm", partition="brief,main", timeout_min=6), 1)
    finally:
        subprocess.run(["scontrol", "delete", "partitionname=brief"], check=True)
    assert not (tmp_path / "jobs").exists()


def test_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(UserError, match=r"no `sbatch` on this machine.*cluster: local"):
            run(tmp_path, jobs(tmp_path, Task()))


def test_a_job_that_slurm_forgot_is_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a controller that died just behind a submission."""
    monkeypatch.setattr(slurm, "UNKNOWN_SECONDS", 2.0)
    original = slurm.Slurm._place

    def forget(self: slurm.Slurm[Task], at_once: int) -> None:
        before = len(self._placed)
        original(self, at_once)
        if before == 0 and self._placed and not (tmp_path / "forgot").exists():
            (tmp_path / "forgot").touch()
            subprocess.run(["scancel", self._placed[0].job_id], check=True)
            self._placed[0].job_id = "1"

    monkeypatch.setattr(slurm.Slurm, "_place", forget)
    finished = run(tmp_path, jobs(tmp_path, Task()))
    assert finished["run0"].error is None
    assert len(attempts(tmp_path / "runs" / "run0")) >= 1


def test_a_controller_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    there = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    away = tmp_path / "slurm.conf"  # the same cluster at a port where nobody listens
    text = re.sub(r"(?m)^SlurmctldPort=.*$", "SlurmctldPort=9", there.read_text())
    away.write_text(text)
    finished: list[Finished[Task]] = []
    with launcher(tmp_path) as started:
        started._open()
        monkeypatch.setenv("SLURM_CONF", str(away))
        made = jobs(tmp_path, Task(), Task())
        thread = Thread(target=lambda: finished.extend(started.map(made)), daemon=True)
        thread.start()
        until(lambda: "Slurm does not answer; waiting for it" in capfd.readouterr().err)
        monkeypatch.setenv("SLURM_CONF", str(there))
        thread.join(HANGS)
    assert [f.error for f in finished] == [None, None]
    assert [len(attempts(j.run_dir)) for j in made] == [1, 1]


def test_a_job_that_slurm_holds_after_a_failed_launch_is_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing makes a launch fail at will, so another hold stands in for that one."""
    monkeypatch.setattr(slurm, "LAUNCH_HELD", "job requeued in held state")
    thread, found = in_background(tmp_path, jobs(tmp_path, Task(seconds=4)))
    until(lambda: working(tmp_path))
    held = job_id(tmp_path)
    subprocess.run(["scontrol", "requeuehold", held], check=True)
    thread.join(HANGS)
    assert found["run0"].error is None
    assert held not in attempts(tmp_path / "runs" / "run0")[-1], "another job ended it"


def test_a_submission_is_kept_while_any_of_its_jobs_needs_it(tmp_path: Path) -> None:
    """The next driver takes a few of the jobs that were left to it at a time."""
    made = jobs(tmp_path, *[Task(seconds=1)] * 4)
    with pytest.raises(Detached):
        list(launcher(tmp_path, parallel=1, detach=True).map(made))
    finished = run(tmp_path, made, parallel=1)
    assert [f.error for f in finished.values()] == [None] * 4
    assert [len(attempts(j.run_dir)) for j in made] == [1] * 4
    assert not list((tmp_path / "jobs").iterdir())


def test_signals_in_this_process_are_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2), os.environ.get("OMP_NUM_THREADS")
    run(tmp_path, jobs(tmp_path, Task()))
    assert before == (signal.getsignal(signal.SIGUSR2), os.environ.get("OMP_NUM_THREADS"))


@pytest.mark.parametrize(
    "inherited",
    [{"SBATCH_EXPORT": "NONE"}, {"SLURM_EXPORT_ENV": "NONE"}, {"SLURM_MEM_PER_CPU": "200"}],
    ids=lambda variables: next(iter(variables)),
)
def test_what_the_submitting_shell_has_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherited: dict[str, str]
) -> None:
    """Defaults of a site or user, and an allocation (`salloc --mem-per-cpu`) around the command."""
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    (made,) = jobs(tmp_path, Task(seconds=0.1))
    found = run(tmp_path, [made], mem_gb=1)["run0"]
    assert found.error is None or not found.error, found.error
    assert len(attempts(made.run_dir)) == 1
    assert all(os.environ[name] == value for name, value in inherited.items())
