"""Jobs on a Slurm cluster: `cluster: slurm`. A run is one job, or one task of a job array.

Slurm is its own record: each submission carries the name of its folder as a comment, and that
folder lists its runs, so a driver on any login node finds what an earlier one left running.

A job that is warned (USR2 before its time limit or a preemption, or SIGTERM) saves at the next step
boundary and requeues itself through submitit. What Slurm ends without a warning (a lost node, say)
it requeues by itself, and if not the driver submits it again, a bounded number of times.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.checkpoint import STOP, write_atomic
from scaling.config import LaunchConfig
from scaling.errors import UserError
from scaling.launch import (
    LOG,
    RETRIES,
    Function,
    Job,
    Outcome,
    attempt,
    executor,
    join_tasks,
    new_folder,
    requeued,
    tail,
    thread_variables,
    to_log,
    train,
    with_log,
)

POLL_SECONDS = 0.2  # between looks for results
LOOK_SECONDS = 4.0  # between questions to Slurm
PATIENCE_SECONDS = 15.0  # before an end without a result is believed: after a lost node Slurm says
# NODE_FAIL for a moment and then runs the job again; files may arrive late over a network
UNKNOWN_SECONDS = 30.0  # before a job that Slurm does not know counts as lost
ARRAY = 500  # jobs of one submission; Slurm's default limit is 1000
RUNS = "runs.json"  # in a submission's folder: the run directory of each array task

ALIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"),
}
ENDS = {  # state of a job that left no result: what to say, and whether it deserves another try
    "OUT_OF_MEMORY": ("ran out of memory; raise launch.mem_gb", False),
    "CANCELLED": ("was cancelled; run the study again to submit it again", False),
    "DEADLINE": ("could not end before its deadline", False),
    "TIMEOUT": ("was ended at its time limit", True),
    "NODE_FAIL": ("lost its node", True),
    "BOOT_FAIL": ("lost its node while that started", True),
    "LAUNCH_FAILED": ("could not be started on its node", True),
    "PREEMPTED": ("was preempted and not requeued", True),
    "REVOKED": ("was moved away by a federation", True),
    "FAILED": ("died without leaving a result", True),
    "COMPLETED": ("ended without leaving a result", True),
}


@dataclass(frozen=True)
class Entry:
    """What Slurm says of a job. `job_id` is submitit's: `123`, or `123_4` in an array."""

    job_id: str
    state: str
    node: str = ""
    reason: str = ""
    comment: str = ""


@dataclass
class Placed:
    """A job on the cluster, and since when (monotonic) Slurm tells of an end without a result."""

    job: Job
    job_id: str
    folder: Path
    state: str | None = "PENDING"
    since: float | None = None


class Slurm:
    """The driver's side."""

    def __init__(
        self, launch: LaunchConfig, folder: Path, function: Function, threads: int
    ) -> None:
        check(launch, threads)
        self._launch, self._folder, self._threads = launch, folder, threads
        self._function = function
        self._new: list[Job] = []
        self._placed: list[Placed] = []
        self._there = attached(folder)
        self._looked = time.monotonic()
        self._silent = False

    def start(self, job: Job) -> None:
        # Jobs may outlive this program, and the next one may stand in another folder.
        found = self._there.pop(job.run_dir.resolve(), None)
        if found is None:
            self._new.append(job)
        else:
            self._placed.append(Placed(job, *found))

    def wait(self) -> list[tuple[Job, Outcome]]:
        self._place(at_once=ARRAY)
        time.sleep(POLL_SECONDS)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        ended = []
        for placed in list(self._placed):
            outcome = result(placed) or verdict(placed, time.monotonic())
            if outcome is not None:
                self._placed.remove(placed)
                ended.append((placed.job, _with_logs(outcome, placed)))
                if outcome.error is None and not any(
                    p.folder == placed.folder for p in self._placed
                ):
                    shutil.rmtree(placed.folder, ignore_errors=True)
        return ended

    def close(self) -> None:
        """Jobs go on without the driver; the next one finds them."""
        if self._placed:
            print(
                f"{len(self._placed)} jobs go on in Slurm; the same command attaches to them, "
                f"`scaling cancel` ends them",
                file=sys.stderr,
            )

    def submit(self, jobs: list[Job], at_once: int) -> int:
        for job in jobs:
            self.start(job)
        count = len(self._new)
        self._place(at_once)
        return count

    def _place(self, at_once: int) -> None:
        """Submit what is new: one array, or one job."""
        while self._new:
            jobs, self._new = self._new[:ARRAY], self._new[ARRAY:]
            folder = new_folder(self._folder)
            folder.mkdir(parents=True)
            write_atomic(folder / RUNS, json.dumps([str(job.run_dir.resolve()) for job in jobs]))
            launch, threads = self._launch, self._threads
            made = executor(
                folder,
                "slurm",
                name=jobs[0].run_dir.parent.parent.name or "scaling",
                timeout_min=launch.timeout_min,
                nodes=launch.nodes,
                tasks_per_node=tasks_per_node(launch),
                cpus_per_task=threads,
                slurm_signal_delay_s=warning_seconds(launch),
                slurm_comment=str(folder),
                slurm_array_parallelism=at_once,
                # The first is not inherited since Slurm 22.05; of several tasks none outlives one.
                slurm_srun_args=[f"--cpus-per-task={threads}", "--kill-on-bad-exit=1"],
                slurm_additional_parameters={"requeue": True, **flags(launch, threads)},
            )
            work = [ClusterJob(self._function, job, threads) for job in jobs]
            try:
                with thread_variables(threads):
                    submitted = made.submit_array(work)
            except Exception as error:  # submitit raises bare classes around sbatch's words
                shutil.rmtree(folder, ignore_errors=True)
                raise UserError(f"sbatch refused: {str(error).strip()[:500]}") from error
            for job, handle in zip(jobs, submitted, strict=True):
                self._placed.append(Placed(job, handle.job_id, folder))

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            known = {entry.job_id: entry for entry in queue()}
            lacking = [p.job_id for p in self._placed if p.job_id not in known]
            known |= {entry.job_id: entry for entry in history(lacking)}
        except UserError as error:
            if not self._silent:
                print(f"Slurm does not answer; waiting for it ({error})", file=sys.stderr)
            self._silent = True
            return
        self._silent = False
        for placed in self._placed:
            entry = known.get(placed.job_id)
            placed.state = entry.state if entry else None
            if placed.state in ALIVE:
                placed.since = None
            elif placed.since is None:
                placed.since = self._looked


def result(placed: Placed) -> Outcome | None:
    """What the job left when it ended; None while there is nothing."""
    path = placed.folder / f"{placed.job_id}_0_result.pkl"
    try:
        kind, value = pickle.loads(path.read_bytes())
    except (FileNotFoundError, EOFError):
        return None
    return value if kind == "success" else Outcome(f"Slurm job {placed.job_id}: {value}")


def verdict(placed: Placed, now: float) -> Outcome | None:
    """What becomes of a job by its state alone; None while it lives or may yet be heard of."""
    if placed.since is None:
        return None
    if placed.state is None:
        if now - placed.since < UNKNOWN_SECONDS:
            return None
        return Outcome(f"Slurm job {placed.job_id} is unknown to Slurm", lost=True)
    if now - placed.since < PATIENCE_SECONDS:
        return None
    words, lost = ENDS.get(placed.state, (f"ended as {placed.state}", True))
    return Outcome(f"Slurm job {placed.job_id} {words}", lost)


def _with_logs(outcome: Outcome, placed: Placed) -> Outcome:
    """The run's log, and what Slurm itself said."""
    if outcome.error is None:
        return outcome
    if placed.state == "FAILED" and not any(placed.folder.glob(f"{placed.job_id}_*_log.*")):
        hint = f"; Slurm wrote no log of it: can its nodes see and write {placed.folder}?"
        outcome = Outcome(f"{outcome.error}{hint}", outcome.lost)
    outcome = with_log(outcome, placed.job.run_dir / LOG)
    said = placed.folder / f"{placed.job_id}_0_log.err"
    lines = [line for line in tail(said).splitlines() if "slurm" in line or "srun" in line]
    more = f"\n{said}:\n" + "\n".join(lines) if lines else ""
    return Outcome(f"{outcome.error}{more}", outcome.lost)


# ---------------------------------------------------------------- what is asked of Slurm


def tasks_per_node(launch: LaunchConfig) -> int:
    """What `extra: {ntasks-per-node: n}` says, else one process per GPU, one per node without."""
    extra = {name.replace("_", "-"): value for name, value in launch.extra.items()}
    return int(extra.get("ntasks-per-node", max(1, launch.gpus)))


def warning_seconds(launch: LaunchConfig) -> int:
    """How long before the time limit a job is warned: long enough for a step and a checkpoint."""
    return min(90, 15 * launch.timeout_min)


def flags(launch: LaunchConfig, threads: int) -> dict[str, Any]:
    """The `launch:` section in sbatch's words; `extra` has the last one."""
    wanted: dict[str, Any] = {
        "time": launch.timeout_min,
        "nodes": launch.nodes,
        "ntasks-per-node": tasks_per_node(launch),
        "cpus-per-task": threads,
        "gpus-per-node": launch.gpus or None,
        "mem": f"{launch.mem_gb}G" if launch.mem_gb else None,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        **{name.replace("_", "-"): value for name, value in launch.extra.items()},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def check(launch: LaunchConfig, threads: int) -> None:
    """Ask Slurm whether it would take such jobs. Raises UserError with Slurm's own words."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "launch.cluster is slurm, but there is no `sbatch` on this machine; run the study on a "
            "login node of the cluster, or with launch.cluster: local"
        )
    options = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in flags(launch, threads).items()
    ]
    asked = subprocess.run(
        ["sbatch", "--test-only", *options, "--wrap", "true"], capture_output=True, text=True
    )
    if asked.returncode:
        said = " ".join(asked.stderr.split())
        raise UserError(
            f"Slurm refuses the jobs of this study: {said} (asked with {' '.join(options)}). "
            f"Change the `launch:` section"
        )
    _check_time_limit(flags(launch, threads))


def _check_time_limit(wanted: dict[str, Any]) -> None:
    """Slurm takes a job with a limit above its partition's, and then never starts it."""
    named = str(wanted.get("partition") or "").split(",")
    limits = {}
    for line in _ask(["sinfo", "-h", "-o", "%P|%l"]):
        name, _, limit = line.partition("|")
        if name.rstrip("*") in named or (named == [""] and name.endswith("*")):
            limits[name.rstrip("*")] = limit
    minutes = _minutes(str(wanted["time"]))
    if (
        limits
        and minutes
        and all((_minutes(limit) or minutes) < minutes for limit in limits.values())
    ):
        shown = ", ".join(f"'{name}' ({limit})" for name, limit in limits.items())
        raise UserError(
            f"launch.timeout_min {minutes:g} is above the time limit of partition {shown}; lower "
            f"it (jobs save, requeue and continue, so a short limit costs little)"
        )


def _minutes(text: str) -> float | None:
    """A time limit in Slurm's words (`90`, `5:00`, `1-00:00:00`, `infinite`) in minutes."""
    days, dash, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        if dash:  # days-hours[:minutes[:seconds]]
            hours, minutes, seconds = [*parts, 0, 0][:3]
            return int(days) * 1440 + hours * 60 + minutes + seconds / 60
    except ValueError:
        return None
    if len(parts) == 3:
        return parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + (parts[1] / 60 if len(parts) == 2 else 0)


def queue() -> list[Entry]:
    """This user's jobs as slurmctld knows them, those that ended lately too. Raises UserError."""
    shown = _ask(
        ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%N|%r|%k"]
    )
    return [Entry(*line.split("|", 4)) for line in shown if line.count("|") >= 4]


def history(job_ids: list[str]) -> list[Entry]:
    """What the accounting knows of jobs that slurmctld forgot; empty without accounting."""
    if not job_ids or shutil.which("sacct") is None:
        return []
    command = ["sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList", "-j", ",".join(job_ids)]
    entries = []
    for line in _ask(command, empty_on_failure=True):
        job_id, state, node = line.split("|")
        if state:
            entries.append(Entry(job_id, state.split()[0], node))  # 'CANCELLED by 1000'
    return entries


def _ask(command: list[str], *, empty_on_failure: bool = False) -> list[str]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within 60 s") from None
    except FileNotFoundError:
        raise UserError(f"there is no `{command[0]}` on this machine") from None
    except OSError as error:  # no process can be started, say
        raise UserError(f"{command[0]}: {error.strerror}") from None
    if answer.returncode:
        if empty_on_failure:
            return []
        raise UserError(f"{command[0]}: {' '.join(answer.stderr.split())}")
    return answer.stdout.splitlines()


def attached(folder: Path) -> dict[Path, tuple[str, Path]]:
    """Live jobs of earlier drivers: run directory -> (job id, folder of its submission)."""
    found: dict[Path, tuple[str, Path]] = {}
    for run_dir, entry in entries(folder).items():
        found[run_dir] = (entry.job_id, Path(entry.comment))
    return found


def entries(folder: Path) -> dict[Path, Entry]:
    """Run directory -> its live job, for the submissions below a jobs folder. Raises UserError."""
    found = {}
    for entry in queue():
        batch = Path(entry.comment)
        if entry.state not in ALIVE or batch.parent != folder.resolve():
            continue
        try:
            run_dirs = json.loads((batch / RUNS).read_text())
        except (OSError, ValueError):
            continue  # a folder that someone removed: its jobs cannot be told apart
        _, _, task = entry.job_id.partition("_")
        found[Path(run_dirs[int(task or 0)])] = entry
    return found


def job_logs(folder: Path, run_dir: Path) -> list[Path]:
    """What Slurm and submitit wrote about a run's jobs, the newest last: for a job that died before
    its run could write a log."""
    found = []
    for listing in folder.glob(f"*/{RUNS}"):
        try:
            index = json.loads(listing.read_text()).index(str(run_dir.resolve()))
        except (OSError, ValueError):
            continue
        logs = [p for p in listing.parent.glob("*_log.err") if _task(p) == index]
        found += [log for log in logs if log.stat().st_size]
    return sorted(found, key=lambda p: p.stat().st_mtime)


def _task(log: Path) -> int:
    """Of `123_4_0_log.err` 4; of a job that is no array, `123_0_log.err`, 0."""
    parts = log.name.removesuffix("_log.err").split("_")
    return int(parts[1]) if len(parts) == 3 else 0


def cancel(folder: Path) -> int:
    """End every live job of a jobs folder; returns how many there were. Raises UserError."""
    job_ids = sorted(entry.job_id for entry in entries(folder).values())
    if job_ids:
        _ask(["scancel", *job_ids])
    return len(job_ids)


# ---------------------------------------------------------------- on the node


@dataclass
class ClusterJob:
    """What submitit runs on a node. Pickled again, with its state, when it requeues itself."""

    function: Function
    job: Job
    threads: int
    saved: str = field(default="", repr=False)  # where the last interruption left the run
    stalls: int = 0  # interruptions in a row that left it at the same place

    def __call__(self) -> Outcome:
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: saves this object, asks Slurm
        STOP.install()
        rank = join_tasks()
        to_log(self.job.run_dir, LOG if rank == 0 else f"log.{rank}.txt")
        if self.function is train:
            import scaling.train  # noqa: F401  # torch, before its threads are set
        outcome = attempt(self.function, self.job, self.threads)
        if not (outcome.lost and STOP):
            return outcome
        self.stalls = self.stalls + 1 if outcome.error == self.saved else 0
        self.saved = outcome.error or ""
        if self.stalls >= RETRIES:
            return Outcome(
                f"was interrupted {self.stalls + 1} times at the same step: the time limit is too "
                f"short for one step and a checkpoint; raise launch.timeout_min"
            )
        print(f"{outcome.error}; {'requeues' if self._may_requeue() else 'ends'}", flush=True)
        if self._may_requeue() and callable(requeue):
            try:
                requeue(signal.SIGUSR2, None)  # does not return, but for ranks other than 0
            except Exception:
                traceback.print_exc()  # not allowed to, say: the driver submits the job again
        if rank:
            time.sleep(60)  # rank 0 ends the job; whoever leaves first would end it unsaved
        sys.exit(1)  # leaves no result: whether the job runs again is Slurm's word

    def checkpoint(self) -> Any:
        return requeued(self)

    def _may_requeue(self) -> bool:
        """USR2 announces a limit or a preemption; SIGTERM may be a `scancel`, not to be undone."""
        if STOP.signal == signal.SIGUSR2:
            return True
        own = os.environ.get("SLURM_JOB_ID", "")
        try:
            states = {line.strip() for line in _ask(["squeue", "-h", "-j", own, "-o", "%T"])}
        except UserError:
            return False
        return bool(states & {"RUNNING", "SUSPENDED", "PREEMPTED"})
