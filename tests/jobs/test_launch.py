"""Jobs: bounded, isolated, retried when killed, and never left behind."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scaling.checkpoint import STOP, Interrupted
from scaling.config.schema import LaunchConfig
from scaling.errors import UserError
from scaling.jobs.job import RETRIES, Job, tail
from scaling.jobs.launch import Finished, Launcher, check, resources
from tests.shell import HANGS


@dataclass(frozen=True)
class Task:
    """Stands where a RunConfig stands; the launcher only hands it over."""

    what: str = "ok"
    seconds: float = 0.0


def perform(task: Task, run_dir: Path) -> None:
    """What the tests' jobs do: leave a line per attempt, then what their task says."""
    with open(run_dir / "attempts", "a") as file:
        file.write(f"{time.time()} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    print("working on", task.what, flush=True)
    end = time.monotonic() + task.seconds
    while time.monotonic() < end:  # as training does: look at the flag between short steps
        if STOP:
            (run_dir / "saved").touch()
            raise Interrupted("state saved")
        time.sleep(0.01)
    if task.what == "raise":
        raise RuntimeError("a worm in the apple")
    if task.what == "mistake":
        raise UserError("lr 7: must be below 1; lower it")
    if task.what == "killed" or (task.what == "killed once" and len(attempts(run_dir)) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.what == "exit":
        os._exit(3)
    if task.what == "worker killed":
        os.kill(os.getppid(), signal.SIGKILL)
        while not STOP:  # its end is heard
            time.sleep(0.01)
        os._exit(1)
    (run_dir / "done").write_text(f"{time.time()}")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions travel to jobs by name, so the jobs must find this file."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def attempts(run_dir: Path) -> list[str]:
    return (run_dir / "attempts").read_text().splitlines()


def jobs(tmp_path: Path, *tasks: Task) -> list[Job[Task]]:
    made = []
    for k, task in enumerate(tasks):
        run_dir = tmp_path / f"run{k}"
        run_dir.mkdir()
        made.append(Job(task, run_dir))
    return made


def run(tmp_path: Path, made: list[Job[Task]], **launch: object) -> dict[str, Finished[Task]]:
    config = LaunchConfig.model_validate({"parallel": 2, "threads": 1} | launch)
    with Launcher(config, tmp_path / "jobs", function=perform) as launcher:
        return {f.job.run_dir.name: f for f in launcher.map(made)}


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_every_job_comes_back_once_with_what_happened(tmp_path: Path, cluster: str) -> None:
    made = jobs(tmp_path, Task(), Task("raise"), Task("mistake"), Task())
    finished = run(tmp_path, made, cluster=cluster)
    assert sorted(finished) == ["run0", "run1", "run2", "run3"]
    assert finished["run0"].error is None and finished["run3"].error is None
    assert "a worm in the apple" in str(finished["run1"].error)
    assert "perform" in str(finished["run1"].error), "the traceback names the place"
    assert str(finished["run2"].error).startswith("lr 7: must be below 1; lower it")
    assert "Traceback" not in str(finished["run2"].error)
    for k in range(4):
        assert len(attempts(tmp_path / f"run{k}")) == 1, "an exception is not worth a retry"


def test_a_killed_job_is_retried_a_bounded_number_of_times(tmp_path: Path) -> None:
    finished = run(tmp_path, jobs(tmp_path, Task("killed"), Task("killed once"), Task("exit")))
    assert finished["run1"].error is None
    assert len(attempts(tmp_path / "run1")) == 2
    assert "SIGKILL" in str(finished["run0"].error) and "memory" in str(finished["run0"].error)
    assert str(tmp_path / "run0" / "log.txt") in str(finished["run0"].error)
    assert "working on killed" in str(finished["run0"].error)
    assert "exit code 3" in str(finished["run2"].error)
    assert len(attempts(tmp_path / "run0")) == len(attempts(tmp_path / "run2")) == RETRIES + 1


def test_a_worker_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    error = str(run(tmp_path, jobs(tmp_path, Task("worker killed")))["run0"].error)
    first, second, *more = error.splitlines()
    assert first == f"its worker process ended (attempt {RETRIES + 1}, the last)"
    log = Path(second.removeprefix("log of the worker: "))
    assert log.parent.parent == tmp_path / "jobs"
    assert log.read_text().splitlines()[-1] in more and "Loading pickle" in error
    assert f"log: {tmp_path / 'run0' / 'log.txt'}" in more and "working on worker killed" in more


def test_jobs_are_bounded_drawn_late_and_processes_are_their_own(tmp_path: Path) -> None:
    started: list[int] = []
    yielded: list[int] = []

    def lazily() -> Iterator[Job[Task]]:
        for k, job in enumerate(jobs(tmp_path, *[Task(seconds=0.1)] * 6)):
            assert len(started) - len(yielded) < 2, "drawn only when a place is free"
            started.append(k)
            yield job

    config = LaunchConfig(parallel=2, threads=1)
    with Launcher(config, tmp_path / "jobs", function=perform) as launcher:
        for f in launcher.map(lazily()):
            assert f.error is None
            yielded.append(1)
    lines = [attempts(tmp_path / f"run{k}")[0].split() for k in range(6)]
    assert len({pid for _, pid, _ in lines}) == 6, "one process per run"
    assert {threads for *_, threads in lines} == {"1"}
    begins = [float(line[0]) for line in lines]
    ends = [float((tmp_path / f"run{k}" / "done").read_text()) for k in range(6)]
    together = [sum(b <= t < e for b, e in zip(begins, ends, strict=True)) for t in begins]
    assert max(together) <= 2
    assert not (tmp_path / "jobs").exists() or not any((tmp_path / "jobs").iterdir())


def test_a_function_that_jobs_cannot_import_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("def perform(task, run_dir): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = importlib.import_module("elsewhere").perform
    with (
        pytest.raises(RuntimeError, match="No module named 'elsewhere'"),
        Launcher(LaunchConfig(parallel=2, threads=1), tmp_path / "jobs", function) as launcher,
    ):
        list(launcher.map(jobs(tmp_path, Task())))


DRIVER = """
    from pathlib import Path
    from tests.jobs.test_launch import Job, Task, perform
    from scaling.config.schema import LaunchConfig
    from scaling.jobs.launch import Launcher

    made = [Job(Task(seconds={hangs}), Path({tmp!r}) / f"run{{k}}") for k in range(2)]
    for job in made:
        job.run_dir.mkdir()
    with Launcher(LaunchConfig(parallel=2, threads=1), Path({tmp!r}) / "jobs", perform) as launcher:
        for finished in launcher.map(made):
            print(finished, flush=True)
"""


def processes_of(marker: str) -> list[int]:
    """Every live process whose environment carries the marker: the driver and all it started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_its_driver(tmp_path: Path, ended_by: signal.Signals) -> None:
    script = textwrap.dedent(DRIVER).format(tmp=str(tmp_path), hangs=HANGS)
    marker = f"SCALING_TEST={tmp_path.name}-{os.getpid()}"
    name, _, value = marker.partition("=")
    driver = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, name: value}, stderr=subprocess.PIPE
    )
    try:
        runs = [tmp_path / "run0", tmp_path / "run1"]
        end = time.monotonic() + HANGS
        while not all((r / "attempts").exists() for r in runs):
            assert driver.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        assert len(processes_of(marker)) >= 5, "driver, controller, worker, 2 runs"
        driver.send_signal(ended_by)
        driver.wait(timeout=HANGS)
        end = time.monotonic() + HANGS
        while processes_of(marker):
            assert time.monotonic() < end, "processes outlive their driver"
            time.sleep(0.05)
        assert all((r / "saved").exists() for r in runs), "each run saved its state before its end"
    finally:
        for pid in processes_of(marker):
            os.kill(pid, signal.SIGKILL)
        driver.communicate()


def test_why_a_run_gave_up_is_kept_until_it_starts_again(tmp_path: Path) -> None:
    failing, finished = jobs(tmp_path, Task("raise"), Task())
    (finished.run_dir / "rows.json").write_text("[]")
    found = run(tmp_path, [failing, finished], cluster="debug")
    assert (failing.run_dir / "error.txt").read_text() == found["run0"].error
    assert found["run1"].error is None and not (finished.run_dir / "attempts").exists()
    mended = Job(Task(), failing.run_dir)
    assert run(tmp_path, [mended], cluster="debug")["run0"].error is None
    assert not (failing.run_dir / "error.txt").exists()


def test_what_can_be_known_before_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = LaunchConfig()
    check(local, tmp_path / "new" / "study")
    with pytest.raises(UserError, match=r"its jobs end with this program.*cluster: slurm"):
        check(local, tmp_path, detach=True)
    with pytest.raises(UserError, match=r"launch.gpus is 99, but this machine shows \d+ GPUs"):
        check(LaunchConfig(gpus=99), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/study: cannot be written \(Not a directory\)"):
        check(local, tmp_path / "file" / "study")
    with pytest.raises(UserError, match=r"/proc/study: cannot be written .*--out"):
        check(local, Path("/proc/study"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"no `sbatch` on this machine"):
        check(LaunchConfig(cluster="slurm"), tmp_path)


def test_resources_divide_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.jobs.launch.available_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resources(LaunchConfig()) == (8, 1)
    assert resources(LaunchConfig(parallel=2)) == (2, 4)
    assert resources(LaunchConfig(threads=3)) == (2, 3)
    assert resources(LaunchConfig(parallel=8, threads=4)) == (2, 4)
    assert resources(LaunchConfig(parallel=100)) == (8, 1)
    assert resources(LaunchConfig(threads=16)) == (1, 16)
    assert resources(LaunchConfig(cluster="debug")) == (1, 1)
    assert resources(LaunchConfig(cluster="slurm")) == (64, 1)
    with pytest.raises(UserError, match=r"launch.gpus is 2, but this machine shows 0"):
        resources(LaunchConfig(gpus=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert resources(LaunchConfig()) == (4, 2)
    assert resources(LaunchConfig(gpus=2)) == (2, 4)


def test_tail_reads_only_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {k}" for k in range(10_000)))
    assert tail(log, 2) == "line 9998\nline 9999"
    assert tail(tmp_path / "absent") == ""
