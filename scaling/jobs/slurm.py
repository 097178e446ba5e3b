"""Jobs on a Slurm cluster: `cluster: slurm`. A run is one job, or one task of a job array.

Slurm is its own record: each submission carries the name of its folder as a comment, and that
folder lists its runs, so a driver on any login node finds what an earlier one left running.

A job that is warned (USR2 before its time limit or a preemption, or SIGTERM) saves at the next step
boundary and requeues itself through submitit. What Slurm ends without a warning (a lost node, say)
it requeues by itself, and if not the driver submits it again, a bounded number of times.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from scaling.checkpoint import STOP
from scaling.config.schema import LaunchConfig
from scaling.errors import UserError
from scaling.jobs.job import (
    RETRIES,
    Function,
    Job,
    Outcome,
    T,
    attempt,
    tail,
    to_log,
    train,
    with_log,
)
from scaling.jobs.squeue import (
    ALIVE,
    HELD,
    RUNS,
    ask,
    check,
    entries,
    flags,
    history,
    queue,
    tasks_per_node,
    warning_seconds,
)
from scaling.jobs.submission import executor, job_variables, join_tasks, new_folder, requeued
from scaling.storage import files
from scaling.study_folder import RunFolder

POLL_SECONDS = 0.2  # between looks for results
LOOK_SECONDS = 4.0  # between questions to Slurm
PATIENCE_SECONDS = 15.0  # before an end without a result is believed: after a lost node Slurm says
# NODE_FAIL for a moment and then runs the job again; files may arrive late over a network
UNKNOWN_SECONDS = 30.0  # before a job that Slurm does not know counts as lost
ARRAY = 500  # jobs of one submission; Slurm's default limit, MaxArraySize, is 1000
LAUNCH_HELD = "launch failed requeued held"  # a reason to wait for ever, unless somebody acts
SILENT = ("Unable to contact", "Socket timed out", "Zero Bytes", "try again", "temporarily")

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


@dataclass
class Placed(Generic[T]):
    """A job on the cluster, and since when (monotonic) Slurm tells of an end without a result."""

    job: Job[T]
    job_id: str
    folder: Path
    state: str | None = "PENDING"
    since: float | None = None


class Slurm(Generic[T]):
    """The driver's side."""

    def __init__(
        self, launch: LaunchConfig, folder: Path, function: Function[T], threads: int
    ) -> None:
        check(launch, threads)
        self._launch, self._folder, self._threads = launch, folder, threads
        self._function = function
        self._new: list[Job[T]] = []
        self._placed: list[Placed[T]] = []
        self._there = attached(folder)
        self._looked = self._asked = time.monotonic()
        self._silent = self._unsure = False
        self._array = ARRAY
        self._held: set[str] = set()

    def start(self, job: Job[T]) -> None:
        # Jobs may outlive this program, and the next one may stand in another folder.
        found = self._there.pop(job.run_dir.resolve(), None)
        if found is None:
            self._new.append(job)
        else:
            self._placed.append(Placed(job, *found))

    def wait(self) -> list[tuple[Job[T], Outcome]]:
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
                if outcome.error is None and not self._needed(placed.folder):
                    shutil.rmtree(placed.folder, ignore_errors=True)
        return ended

    def _needed(self, folder: Path) -> bool:
        """Whether live jobs, also those that nobody has waited for yet, use a submission."""
        return any(p.folder == folder for p in self._placed) or any(
            there == folder for _, there in self._there.values()
        )

    def close(self) -> None:
        """Jobs go on without the driver; the next one finds them."""
        if self._placed:
            print(
                f"{len(self._placed)} jobs go on in Slurm; the same command attaches to them, "
                f"`scaling cancel` ends them",
                file=sys.stderr,
            )

    def submit(self, jobs: list[Job[T]], at_once: int) -> int:
        for job in jobs:
            self.start(job)
        count = len(self._new)
        self._place(at_once, in_turn=True)
        if self._new:
            raise UserError(
                "Slurm does not answer; what it took before goes on. Run the same command again"
            )
        return count

    def _place(self, at_once: int, in_turn: bool = False) -> None:
        """Submit what is new: an array for each number of GPUs, of `at_once` running jobs at most.

        While Slurm does not answer it stays new. In turn: an array waits for the end of the one
        before it, so that all together run no more than that; nobody stays to see to it.
        """
        if self._unsure and not self._answered():
            return
        before = ""
        while self._new:
            gpus = self._new[0].gpus  # tasks of an array are alike
            alike = [job for job in self._new if job.gpus == gpus]
            jobs, more_alike = alike[: self._array], alike[self._array :]
            self._new = [*more_alike, *(job for job in self._new if job.gpus != gpus)]
            folder = new_folder(self._folder)
            folder.mkdir(parents=True)
            files.write(folder / RUNS, json.dumps([str(job.run_dir.resolve()) for job in jobs]))
            launch, threads = self._launch, self._threads
            if gpus is not None:
                launch = launch.model_copy(update={"gpus": gpus})
            more: dict[str, Any] = {"requeue": True, **flags(launch, threads)}
            if in_turn and before:
                after = [more.get("dependency"), f"afterany:{before}"]
                more["dependency"] = ",".join(filter(None, after))
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
                slurm_additional_parameters=more,
            )
            work = [ClusterJob(self._function, job, threads) for job in jobs]
            try:
                with job_variables(threads):
                    submitted = made.submit_array(work)
            except Exception as error:  # submitit raises bare classes around sbatch's words
                if any(words in str(error) for words in SILENT):
                    self._new, self._unsure = [*jobs, *self._new], True
                    self._asked = time.monotonic()
                    self._say_silent(str(error))
                    return
                shutil.rmtree(folder, ignore_errors=True)
                if "Invalid job array" in str(error) and len(jobs) > 1:  # past MaxArraySize
                    self._array = len(jobs) // 2
                    self._new = [*jobs, *self._new]
                    continue
                raise UserError(f"sbatch refused: {str(error).strip()[:500]}") from error
            for job, handle in zip(jobs, submitted, strict=True):
                self._placed.append(Placed(job, handle.job_id, folder))
            before = submitted[0].job_id.partition("_")[0]

    def _answered(self) -> bool:
        """After a submission without an answer: ask what came of it, every LOOK_SECONDS."""
        if time.monotonic() - self._asked < LOOK_SECONDS:
            return False
        self._asked = time.monotonic()
        try:
            self._there |= attached(self._folder)
        except UserError as error:
            self._say_silent(str(error))
            return False
        self._unsure = self._silent = False
        again, self._new = self._new, []
        for job in again:
            self.start(job)
        return True

    def _say_silent(self, words: str) -> None:
        if not self._silent:
            print(f"Slurm does not answer; waiting for it ({words.strip()})", file=sys.stderr)
        self._silent = True

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            known = {entry.job_id: entry for entry in queue()}
            lacking = [p.job_id for p in self._placed if p.job_id not in known]
            known |= {entry.job_id: entry for entry in history(lacking)}
        except UserError as error:
            self._say_silent(str(error))
            return
        self._silent = False
        for placed in self._placed:
            entry = known.get(placed.job_id)
            placed.state = entry.state if entry else None
            if entry and entry.state in HELD and placed.job_id not in self._held:
                self._held.add(placed.job_id)
                print(
                    f"Slurm holds job {placed.job_id} ({entry.state}, {entry.reason}) until you "
                    f"let it go on: scontrol release {placed.job_id}, or end it with scancel",
                    file=sys.stderr,
                )
            if entry and entry.reason == LAUNCH_HELD:
                with suppress(UserError):
                    ask(["scancel", placed.job_id])  # a release would need an administrator
                placed.state, placed.since = "LAUNCH_FAILED", -math.inf
            elif placed.state in ALIVE:
                placed.since = None
            elif placed.since is None:
                placed.since = self._looked


def result(placed: Placed[Any]) -> Outcome | None:
    """What the job left when it ended; None while there is nothing."""
    path = placed.folder / f"{placed.job_id}_0_result.pkl"
    try:
        kind, value = pickle.loads(path.read_bytes())
    except (FileNotFoundError, EOFError):
        return None
    return value if kind == "success" else Outcome(f"Slurm job {placed.job_id}: {value}")


def verdict(placed: Placed[Any], now: float) -> Outcome | None:
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


def _with_logs(outcome: Outcome, placed: Placed[Any]) -> Outcome:
    """The run's log, and what Slurm itself said, or the job before it had a log."""
    if outcome.error is None:
        return outcome
    if placed.state == "FAILED" and not any(placed.folder.glob(f"{placed.job_id}_*_log.*")):
        hint = f"; Slurm wrote no log of it: can its nodes see and write {placed.folder}?"
        outcome = Outcome(f"{outcome.error}{hint}", outcome.lost)
    outcome = with_log(outcome, RunFolder(placed.job.run_dir).log)
    said = placed.folder / f"{placed.job_id}_0_log.err"
    more = f"\n{said}:\n{tail(said)}" if tail(said) else ""
    return Outcome(f"{outcome.error}{more}", outcome.lost)


def attached(folder: Path) -> dict[Path, tuple[str, Path]]:
    """Live jobs of earlier drivers: run directory -> (job id, folder of its submission)."""
    found: dict[Path, tuple[str, Path]] = {}
    for run_dir, entry in entries(folder).items():
        found[run_dir] = (entry.job_id, Path(entry.comment))
    return found


# ---------------------------------------------------------------- on the node


@dataclass
class ClusterJob(Generic[T]):
    """What submitit runs on a node. Pickled again, with its state, when it requeues itself."""

    function: Function[T]
    job: Job[T]
    threads: int
    saved: str = field(default="", repr=False)  # where the last interruption left the run
    stalls: int = 0  # interruptions in a row that left it at the same place

    def __call__(self) -> Outcome:
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: saves this object, asks Slurm
        STOP.install()
        rank = join_tasks()
        to_log(self.job.run_dir, rank)
        if self.function is train:
            import scaling.training.train  # noqa: F401  # torch, before its threads are set
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
            states = {line.strip() for line in ask(["squeue", "-h", "-j", own, "-o", "%T"])}
        except UserError:
            return False
        return bool(states & {"RUNNING", "SUSPENDED", "PREEMPTED"})
