"""Fault campaign: studies under fire, and then the question whether anything shows.

    python -m tests.faults --out /tmp/faults                      # local and, with `sbatch`, Slurm
    python -m tests.faults --out /tmp/faults --studies 20 --faults 500 --seed 7

Every study is run undisturbed once. Then its twin is run while faults are injected at random
moments, the same command is repeated until it ends by itself, and the two tables must be equal to
the last digit (but for clocks), no finished run may have been touched again, and no process or
cluster job may be left. Prints what was injected, what survived and how much work was repeated;
exits with 1 if anything was lost. Every third study grows: it is asked for one budget after the
other while it is under fire, and must end as its twin that was asked for all at once.

The faults are real: signals, truncated and overwritten files, removed locks, a full tmpfs (needs
root), an absent MLflow, and on a cluster made by a start script (SLURM_UP, default
../shared/slurm/slurm-up, run again to mend it) killed daemons, nodes set down, preemption and a
time limit of one minute, which the longest run exceeds. The clocks of two nodes are an hour off (as
Python sees them there), and file times move.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import pandas as pd

from scaling.results import NOT_REPEATABLE
from scaling.tracking.load import load

ROOT = Path(__file__).resolve().parent.parent
START_SCRIPT = Path(os.environ.get("SLURM_UP", ROOT.parent / "shared" / "slurm" / "slurm-up"))
STUDY = """\
study: {name}
seed: {seed}
data:
  frames: 2
  size: 16
  stride: 1
  train_sequences: 2048
  val_sequences: 64
  sources:
    - {{name: leaves, kind: leaves}}
tokenizer: {{patch: 4, codes: 64, fit_frames: 1000}}
model: {{base_width: 32}}
train: {{batch: 4, warmup_steps: 10, evals: 3, checkpoint_seconds: 0.5}}
lr: {{widths: [16, 32], layers: 2, heads: 2, log2_min: -8, log2_max: -5, steps: 200}}
ladder:
  sizes: [t16, t24, t32]
  budgets_macs: [{budgets}]
  tokens_per_param: [1e-3, 86.5]
"""
BUDGETS = ("1e9", "2e9", "4e9", "8e9", "1.6e10")
LONG = "1e11"  # by tokens_per_param for t32 alone: minutes, under a limit of one
PROLOG = """\
#!/bin/sh
case $SLURMD_NODENAME in
node2) echo export CLOCK_SHIFT=3600 ;;
node3) echo export CLOCK_SHIFT=-3600 ;;
*) exit ;;
esac
echo export PYTHONPATH={folder}:$PYTHONPATH
"""
SHIFT = """\
import os, time

shift, now, now_ns = int(os.environ["CLOCK_SHIFT"]), time.time, time.time_ns
time.time = lambda: now() + shift
time.time_ns = lambda: now_ns() + shift * 10**9
print("the clock here is", shift, "s off", flush=True)
"""


@dataclass
class Study:
    """One study under fire."""

    out: Path
    name: str
    seed: int
    slurm: bool
    long: bool  # one run outlasts Slurm's time limit
    rng: random.Random
    grows: bool = False  # asked for more and more of its budgets
    asked: int = len(BUDGETS)  # so many of BUDGETS
    harmed: set[str] = field(default_factory=set)  # runs whose points were damaged
    driver: subprocess.Popen[bytes] | None = None
    detached: bool = False  # the last session left its jobs to Slurm
    injected: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    lost: list[str] = field(default_factory=list)
    undo: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def command(self, *more: str) -> list[str]:
        yaml = self.out / f"{self.name}.yaml"
        if not yaml.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            yaml.write_text(STUDY.format(name=self.name, seed=self.seed, budgets="1e9"))
        budgets = [*BUDGETS[: self.asked], *([LONG] if self.long else [])]
        where = ["--set", f"ladder.budgets_macs=[{', '.join(budgets)}]"]
        where += ["--set", "launch.threads=1"]
        if self.slurm:
            where += ["--set", "launch.cluster=slurm", "--set", "launch.timeout_min=1"]
            where += ["--set", "launch.partition=low", "--set", "launch.parallel=4"]
        call = [sys.executable, "-m", "scaling.cli", "study", str(yaml), "--out", str(self.out)]
        return [*call, *where, *more]

    def start(self, *more: str) -> None:
        self.sessions += 1
        self.detached = "--detach" in more
        command = self.command(*more)
        log = open(f"{self.out}.log", "a")  # noqa: SIM115  # the driver's own
        print(f"--- session {self.sessions} {' '.join(more)}", file=log, flush=True)
        self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())
        log.close()

    def finish(self, *more: str) -> int:
        """A whole session; its exit code."""
        self.start(*more)
        assert self.driver is not None
        return self.driver.wait()

    def environment(self) -> dict[str, str]:
        """With it the nodes' clocks disagree: srun asks a script of Slurm's own kind."""
        if not self.slurm:
            return dict(os.environ)
        folder = self.out / "clocks"
        script = folder / "prolog.sh"
        if not script.exists():
            folder.mkdir()
            (folder / "sitecustomize.py").write_text(SHIFT)
            script.write_text(PROLOG.format(folder=folder))
            script.chmod(0o755)
            self.injected["clocks_disagree"] += 1
        return os.environ | {"SLURM_TASK_PROLOG": str(script)}

    def table(self) -> pd.DataFrame:
        rows = load(self.folder)
        return rows.drop(columns=[*NOT_REPEATABLE, "git_sha", "study"])

    def runs(self) -> list[Path]:
        found = (self.folder / "runs").glob("*/config.yaml")
        return sorted(p.parent for p in found if not (p.parent / "rows.json").exists())

    def training(self) -> list[tuple[Path, int]]:
        """Runs at work, with their processes (the cluster's nodes are this machine)."""
        found = []
        for run_dir in self.runs():
            with contextlib.suppress(OSError, ValueError):
                pid = int(json.loads((run_dir / "lock").read_text())["pid"])
                if Path(f"/proc/{pid}").exists():
                    found.append((run_dir, pid))
        return found

    def processes(self) -> list[int]:
        """Everything at work below this study's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().decode(errors="replace")
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if str(self.out) in line and "tests.faults" not in line and state != "Z":
                        found.append(int(entry.name))
        return found

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        self.undo.append((time.monotonic() + seconds, call))

    def mend(self, everything: bool = False) -> None:
        due = [c for at, c in self.undo if everything or at <= time.monotonic()]
        self.undo = [(at, c) for at, c in self.undo if c not in due]
        for call in due:
            call()


# ---------------------------------------------------------------- faults; False: not possible now


def kill_driver(s: Study) -> bool:
    assert s.driver is not None
    s.driver.kill()
    return True


def interrupt_driver(s: Study) -> bool:
    assert s.driver is not None
    s.driver.send_signal(signal.SIGINT)
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
    end = time.monotonic() + 15
    while not (at_work := [(r, p) for r, p in s.training() if (r / "checkpoint.pt").exists()]):
        if time.monotonic() > end or s.driver is None or s.driver.poll() is not None:
            return False
        time.sleep(0.1)
    run_dir, pid = s.rng.choice(at_work)
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
    return kill_driver(s)


def ask_for_more(s: Study) -> bool:
    """The driver is killed, and the next is asked for one budget more."""
    if s.asked == len(BUDGETS):
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


EVERYWHERE = [
    *(kill_driver, kill_driver, interrupt_driver, kill_job, kill_job, terminate_job),
    *(kill_any_process, truncate_checkpoint, tear_journal, tear_metrics, move_file_times),
    *(second_driver, overwrite_checkpoint, empty_checkpoint, damage_points, remove_lock),
]
WRITING = (tear_journal, tear_metrics, damage_points, ask_for_more)
ON_SLURM = [
    *(scancel_warning, requeue, cancel, detach, preempt, node_down, kill_slurmd, kill_slurmctld)
]


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


# ---------------------------------------------------------------- watching


class Watch:
    """Follows every run's position: what is trained again, and that finished runs stay as they are.

    Positions come every ten steps and are read several times a second, so repeated work is known to
    about that much. Neither is told of a study that grows, whose runs go on after their end, and of
    a run whose points were damaged.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.position: dict[str, int] = {}
        self.trained = self.repeated = 0
        self.finished: dict[str, tuple[int, int]] = {}
        self.touched: list[str] = []
        self._stop = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._stop.wait(0.15):
            self._look()

    def _look(self) -> None:
        for run_dir in (self.study.folder / "runs").glob("*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(run_dir / "metrics.jsonl", "rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
                    last = file.read().splitlines()[-1]
                now = int(json.loads(last)["position"])
                before = self.position.get(run_dir.name, 0)
                if not (self.study.grows or run_dir.name in self.study.harmed):
                    self.trained += max(0, now - before)
                    self.repeated += max(0, before - now)
                self.position[run_dir.name] = now
            with contextlib.suppress(OSError):
                stat = (run_dir / "rows.json").stat()
                seen = self.finished.setdefault(run_dir.name, (stat.st_ino, stat.st_size))
                own = not (self.study.grows or run_dir.name in self.study.harmed)
                if own and seen != (stat.st_ino, stat.st_size):
                    self.touched.append(run_dir.name)


@contextlib.contextmanager
def small_disk(out: Path) -> Iterator[None]:
    """A file system of 300 MB below the study, where that may be mounted."""
    out.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(out)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(out)], check=True)


def under_fire(s: Study, faults: int, pause: tuple[float, float]) -> None:
    """Inject faults until there were enough or the study ended by itself."""
    kinds = [*EVERYWHERE, *(ON_SLURM * 2 if s.slurm else [])]
    kinds += [fill_disk] * 3 if os.path.ismount(s.out) else []
    kinds += [ask_for_more] * 2 if s.grows else []
    s.start()
    assert s.driver is not None
    while sum(s.injected.values()) < faults:
        end = time.monotonic() + s.rng.uniform(*pause)
        while time.monotonic() < end:
            s.mend()
            time.sleep(0.1)
        code = s.driver.poll()
        if code == 0 and not s.detached:
            if s.asked == len(BUDGETS):
                return
            s.asked += 1
        if code is not None:
            s.start()
            continue
        fault = s.rng.choice(kinds)
        if (s.out / "filler").exists() and fault in WRITING:  # the disk is full for these too
            continue
        if fault(s):
            s.injected[fault.__name__] += 1


def campaign(s: Study, twin: Study, faults: int, pause: tuple[float, float]) -> list[str]:
    """One study's whole story; what was lost, as sentences."""
    lost = s.lost
    expected_code = twin.finish()
    with Watch(s) as watch:
        under_fire(s, faults, pause)
        s.mend(everything=True)
        s.asked = len(BUDGETS)
        warned = requeues(s)
        assert s.driver is not None
        s.driver.wait()
        while s.slurm and live_jobs(s):  # of a driver that detached, or gave up on another run
            time.sleep(1)
        if s.slurm:  # from here on nothing but the limit interrupts a run
            s.injected["time_limit"] += requeues(s) - warned
        s.finish("--set", "tracking.uri=http://127.0.0.1:9")
        s.injected["mlflow_down"] += 1
        for _ in range(10):
            if (code := s.finish()) == expected_code:
                break
        else:
            lost.append(f"the command still ends with {code}, undisturbed with {expected_code}")
    try:
        pd.testing.assert_frame_equal(s.table(), twin.table(), check_exact=True)
    except (AssertionError, ValueError) as error:
        lost.append(f"another table: {str(error)[:400]}")
    lost += [f"run {name} was written again after its end" for name in watch.touched]
    end = time.monotonic() + 40
    while (left := s.processes()) and time.monotonic() < end:
        time.sleep(0.5)
    lost += [f"process {pid} is left" for pid in left]
    if s.slurm:
        lost += [f"job {job} is left" for job in live_jobs(s)]
    share = 100 * watch.repeated / max(1, watch.trained)
    print(
        f"{s.name}: {sum(s.injected.values())} faults in {s.sessions} sessions, "
        f"{len(watch.finished)} runs, {share:.1f}% of the steps done again: "
        + ("; ".join(lost) or "the same table")
        + "\n    "
        + ", ".join(f"{n} {kind}".replace("_", " ") for kind, n in s.injected.most_common()),
        flush=True,
    )
    twin.injected.update(steps=watch.trained, again=watch.repeated)
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty folder, on a shared disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", type=int, default=6, help="at least this many")
    parser.add_argument("--faults", type=int, default=100, help="at least this many in all")
    parser.add_argument("--cluster", choices=["local", "slurm", "both"], default="both")
    parser.add_argument("--pause", type=float, nargs=2, default=(1.0, 6.0), help="seconds between")
    chosen = parser.parse_args()
    with_slurm = chosen.cluster != "local" and shutil.which("sbatch") is not None
    if chosen.cluster == "slurm" and not with_slurm:
        sys.exit("no `sbatch` on this machine")
    if chosen.cluster == "both" and not with_slurm:
        print("no Slurm here: local faults only")
    total: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    lost: list[str] = []
    begin = time.monotonic()
    number = 0
    while number < chosen.studies or sum(total.values()) < chosen.faults:
        rng = random.Random(chosen.seed * 1000 + number)
        on_slurm = with_slurm and (chosen.cluster == "slurm" or number % 2 == 1)
        where = chosen.out.resolve() / f"study{number}"
        # Nodes in name spaces of their own would not see a disk that is mounted here.
        small = number % 4 == 0 and not on_slurm
        disk = small_disk(where) if small else contextlib.nullcontext()
        name = f"fire{number}"
        with disk:
            study = Study(where, name, number, on_slurm, on_slurm, rng)
            if number % 3 == 2:
                study.grows, study.asked = True, 1
            calm = where.with_name(f"undisturbed{number}")
            twin = Study(calm, name, number, False, on_slurm, rng)
            each = max(5, chosen.faults // chosen.studies + 3)
            lost += [f"{name}: {x}" for x in campaign(study, twin, each, tuple(chosen.pause))]
        total += study.injected
        steps += twin.injected
        number += 1
    print(f"\nseed {chosen.seed}, {number} studies, {(time.monotonic() - begin) / 60:.0f} minutes")
    for name, count in sorted(total.items(), key=lambda item: -item[1]):
        print(f"  {count:4d} {name.replace('_', ' ')}")
    repeated = 100 * steps["again"] / max(1, steps["steps"])
    whole = number - len({line.split(":")[0] for line in lost})
    print(
        f"{sum(total.values())} faults injected, {whole} of {number} studies ended with the "
        f"undisturbed table, {repeated:.1f}% of the steps done again"
    )
    for line in lost:
        print(f"LOST {line}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
