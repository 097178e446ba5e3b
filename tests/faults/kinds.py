"""The faults themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.study import BUDGETS, Study

ROOT = Path(__file__).resolve().parent.parent.parent
START_SCRIPT = Path(os.environ.get("SLURM_UP", ROOT.parent / "shared" / "slurm" / "slurm-up"))

# ---------------------------------------------------------------- faults; False: not possible now


def kill_driver(s: Study) -> bool:
    return _signal_driver(s, signal.SIGKILL)


def interrupt_driver(s: Study) -> bool:
    return _signal_driver(s, signal.SIGINT)


def terminate_driver(s: Study) -> bool:
    return _signal_driver(s, signal.SIGTERM)


def _signal_driver(s: Study, number: signal.Signals) -> bool:
    assert s.driver is not None
    if s.driver.poll() is not None:
        return False
    s.driver.send_signal(number)
    return True


def kill_job(s: Study) -> bool:
    at_work = s.training()
    if not at_work:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(s.rng.choice(at_work)[1], signal.SIGKILL)
    return True


def terminate_job(s: Study) -> bool:
    at_work = s.training()
    if not at_work:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(s.rng.choice(at_work)[1], signal.SIGTERM)
    return True


def kill_any_process(s: Study) -> bool:
    """Also workers, submitit's controllers, steps of Slurm."""
    found = s.processes()
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(s.rng.choice(found), signal.SIGKILL)
    return True


def truncate_checkpoint(s: Study) -> bool:
    """The newest checkpoint of a run loses its second half while its process is killed."""
    return _harm_checkpoint(s, lambda path: os.truncate(path, path.stat().st_size // 2))


def overwrite_checkpoint(s: Study) -> bool:
    """The same with a block of zeros in the middle, as a file system leaves after a crash."""

    def harm(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(4096))

    return _harm_checkpoint(s, harm)


def empty_checkpoint(s: Study) -> bool:
    return _harm_checkpoint(s, lambda path: os.truncate(path, 0))


def _harm_checkpoint(s: Study, harm: Callable[[Path], None]) -> bool:
    """Of a run at work; where none is, of one that ended in the middle."""
    at_work = [(r, p) for r, p in s.training() if (r / "checkpoint.pt").exists()]
    broken_off = [(r, 0) for r in s.runs() if (r / "checkpoint.pt").exists()]
    if not (at_work or broken_off):
        return False
    run_dir, pid = s.rng.choice(at_work or broken_off)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        harm(run_dir / "checkpoint.pt")
    return True


def damage_points(s: Study) -> bool:
    """A digit of a finished run's points is another: the next session must name the file, and ends
    as before once it is removed with its rows, as the message says."""
    finished = sorted((s.folder / "runs").glob("*/points.json"))
    if not finished or s.slurm:  # where jobs go on without a driver
        return False
    kill_driver(s)
    assert s.driver is not None
    s.driver.wait()
    path = s.rng.choice(finished)
    s.harmed.add(path.parent.name)
    text = path.read_text()
    at = s.rng.choice([k for k, letter in enumerate(text) if letter.isdigit()])
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    s.sessions += 1
    done = subprocess.run(s.command(), capture_output=True, text=True, env=s.environment())
    if done.returncode != 2 or str(path) not in done.stderr:
        s.lost.append(f"{path} was damaged and nothing said (exit {done.returncode})")
    path.unlink()
    path.with_name("rows.json").unlink(missing_ok=True)
    return True


def remove_lock(s: Study) -> bool:
    """The lock of a run at work is removed, and its driver killed: the next may meet the run."""
    at_work = s.training()
    if not at_work:
        return False
    (s.rng.choice(at_work)[0] / "lock").unlink(missing_ok=True)
    kill_driver(s)
    return True


def ask_for_more(s: Study) -> bool:
    """The driver is killed, and the next is asked for one budget more."""
    if s.kind != "grows" or s.asked == len(BUDGETS):
        return False
    kill_driver(s)
    assert s.driver is not None
    s.driver.wait()
    s.asked += 1
    return True


def tear_journal(s: Study) -> bool:
    journal = s.folder / "sweep.journal"
    if not journal.exists():
        return False
    kill_driver(s)
    assert s.driver is not None
    s.driver.wait()
    with open(journal, "ab") as file:
        file.write(b'{"op_code":6,"worker_id":"torn in the mid')
    return True


def tear_metrics(s: Study) -> bool:
    at_work = s.training()
    if not at_work:
        return False
    run_dir, pid = s.rng.choice(at_work)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with open(run_dir / "metrics.jsonl", "ab") as file:
        file.write(b'{"position": 1')
    return True


def move_file_times(s: Study) -> bool:
    runs = s.runs()
    if not runs:
        return False
    moved = time.time() + s.rng.choice([-3600, 3600])
    for path in s.rng.choice(runs).iterdir():
        with contextlib.suppress(OSError):
            os.utime(path, (moved, moved))
    return True


def second_driver(s: Study) -> bool:
    """It must be told so and leave (2), or, where the first ended meanwhile, do the work (0)."""
    assert s.driver is not None
    if not (s.folder / "driver.lock").exists() or s.driver.poll() is not None:
        return False
    done = subprocess.run(s.command(), capture_output=True, text=True)
    return done.returncode != 2 or "One driver works on a study at a time" in done.stderr


def fill_disk(s: Study) -> bool:
    if not os.path.ismount(s.out):
        return False
    filler = s.out / "filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    s.later(s.rng.uniform(1, 4), lambda: filler.unlink(missing_ok=True))
    return True


def scancel_warning(s: Study) -> bool:
    jobs = live_jobs(s)
    if jobs:
        slurm("scancel", "--signal", "USR2", s.rng.choice(jobs))
    return bool(jobs)


def requeue(s: Study) -> bool:
    jobs = live_jobs(s)
    if jobs:
        slurm("scontrol", "requeue", s.rng.choice(jobs))
    return bool(jobs)


def cancel(s: Study) -> bool:
    """By hand: the driver gives up on that run, the next session submits it again."""
    jobs = live_jobs(s)
    if jobs:
        slurm("scancel", s.rng.choice(jobs))
    return bool(jobs)


def detach(s: Study) -> bool:
    """The driver dies; another submits what can run, and leaves it to Slurm."""
    kill_driver(s)
    assert s.driver is not None
    s.driver.wait()
    s.finish("--detach")
    return True


def preempt(s: Study) -> bool:
    """A job of a higher partition takes whole nodes for some seconds."""
    if not live_jobs(s):
        return False
    slurm("sbatch", "-p", "main", "--exclusive", "-N", "2", "-o", "/dev/null", "--wrap", "sleep 4")
    return True


def node_down(s: Study) -> bool:
    nodes = busy_nodes(s)
    if not nodes:
        return False
    node = s.rng.choice(nodes)
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=fault")
    s.later(6, lambda: slurm("scontrol", "update", f"nodename={node}", "state=resume"))
    return True


def kill_slurmd(s: Study) -> bool:
    nodes = busy_nodes(s)
    return bool(nodes) and kill_daemon(s, f"slurmd-{s.rng.choice(nodes)}")


def kill_slurmctld(s: Study) -> bool:
    return bool(live_jobs(s)) and kill_daemon(s, "slurmctld")


PROCESSES = [kill_driver, kill_driver, interrupt_driver, terminate_driver, kill_any_process]
TRAINING = [
    *(kill_job, kill_job, terminate_job, truncate_checkpoint, tear_journal, tear_metrics),
    *(move_file_times, second_driver, overwrite_checkpoint, empty_checkpoint, damage_points),
    *(remove_lock,),
]
WRITING = (tear_journal, tear_metrics, damage_points, ask_for_more)
ON_SLURM = [
    *(scancel_warning, requeue, cancel, detach, preempt, node_down, kill_slurmd, kill_slurmctld)
]


def possible(s: Study) -> list[Callable[[Study], bool]]:
    """What may happen to the study, the more frequent more than once."""
    kinds: list[Callable[[Study], bool]] = [
        *PROCESSES,
        *([fill_disk] * 3 if os.path.ismount(s.out) else []),
    ]
    if s.kind in ("encode", "probe"):
        return kinds
    kinds += [*TRAINING, *(ON_SLURM * 2 if s.slurm else [])]
    return kinds + ([ask_for_more] * 2 if s.kind == "grows" else [])


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def live_jobs(s: Study) -> list[str]:
    listed = slurm("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i|%k").splitlines()
    return [job for job, _, at in (x.partition("|") for x in listed) if str(s.folder) in at]


def requeues(s: Study) -> int:
    """How often runs of the study have saved, ended and asked Slurm to run them again."""
    logs = (s.folder / "runs").glob("*/log.txt")
    return sum(log.read_text(errors="replace").count("; requeues") for log in logs)


def busy_nodes(s: Study) -> list[str]:
    listed = slurm("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%N|%k").splitlines()
    return sorted({n for n, _, at in (x.partition("|") for x in listed) if str(s.folder) in at})


def cluster_root() -> Path:
    return Path(os.environ.get("SLURM_CONF", "/nowhere/etc/slurm.conf")).parent.parent


def kill_daemon(s: Study, name: str) -> bool:
    pid_file = cluster_root() / "run" / f"{name}.pid"
    if not (pid_file.exists() and START_SCRIPT.exists()):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    s.later(s.rng.uniform(2, 14), restart_cluster)
    return True


def restart_cluster() -> None:
    """On a busy machine a daemon may need more than one call to come up."""
    root = {"SLURM_ROOT": str(cluster_root())}
    for _ in range(5):
        command = [str(START_SCRIPT)]
        done = subprocess.run(command, env={**os.environ, **root}, capture_output=True, text=True)
        if done.returncode == 0:
            return
    sys.exit(f"{START_SCRIPT} does not bring the cluster back:\n{done.stdout}{done.stderr}")
