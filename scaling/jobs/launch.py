"""Runs as jobs: on this machine, on a Slurm cluster, or in this process. The one home of submitit.

`Launcher.map` is the same call for all three: on a cluster a run is one job (slurm.py), on one
machine a few long-lived jobs take runs in turn (lanes.py). A run's directory is its whole state: a
job that was lost is simply started again, and what was finished returns at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scaling import search_path
from scaling.checkpoint import STOP, Interrupted
from scaling.errors import UserError
from scaling.storage import files
from scaling.storage.files import RunBusy, storage_error
from scaling.threads import available_cores

if TYPE_CHECKING:
    from scaling.config.schema import LaunchConfig, RunConfig

RETRIES = 3  # of one job that was killed, lost its node or was interrupted
LOG = "log.txt"  # what a run prints, in its directory
ERROR = "error.txt"  # why its last attempt gave up; gone when it is started again
ROWS = "rows.json"  # its result


@dataclass(frozen=True)
class Job:
    """One training run and the directory that is its state."""

    run: RunConfig
    run_dir: Path
    gpus: int | None = None  # on a cluster, per node; None: `launch.gpus`


@dataclass(frozen=True)
class Finished:
    """A job that came to its end. `error` is None when its run directory is complete."""

    job: Job
    error: str | None


class Detached(Exception):
    """Jobs were handed to the cluster, and nobody waits for them."""

    def __init__(self, jobs: int, new: int) -> None:
        super().__init__(f"{jobs} jobs, {new} of them new")
        self.jobs, self.new = jobs, new


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a job ended. `lost`: not by its own fault, so it deserves another."""

    error: str | None = None
    lost: bool = False


Function = Callable[["RunConfig", Path], object]


def train(run: RunConfig, run_dir: Path) -> object:
    """The function that jobs call (it imports torch, hence not at the top of this module)."""
    from scaling.training.train import train

    return train(run, run_dir)


class Backend(Protocol):
    """Where attempts happen."""

    def start(self, job: Job) -> None: ...
    def wait(self) -> list[tuple[Job, Outcome]]: ...  # blocks for a moment at most
    def close(self) -> None: ...  # the driver leaves


class Launcher:
    """Runs jobs, at most `launch.parallel` at once, and yields them as they finish.

        with Launcher(config.launch, study_dir / "jobs") as launcher:
            for finished in launcher.map(jobs):
                ...

    Leaving the block (also by an exception or Ctrl-C) stops local jobs at their next step boundary.
    Jobs on a cluster go on: the next launcher with the same folder finds them there.

    Args:
        launch: the `launch:` section of a study.
        folder: where submitit keeps its files; the same one for every launcher of a study.
        function: what a job calls with its run and directory; must be importable on the node.
        detach: do not wait for jobs (Slurm only): `map` yields what is finished, submits the rest
            and raises Detached.
    """

    def __init__(
        self,
        launch: LaunchConfig,
        folder: Path,
        function: Function = train,
        *,
        detach: bool = False,
    ) -> None:
        self.parallel, self.threads = resources(launch)
        self._detach = detach
        self._launch, self._function = launch, function
        self._folder = folder.resolve()
        self._backend: Backend | None = None

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def map(self, jobs: Iterable[Job]) -> Iterator[Finished]:
        """Yield every job once, in the order of completion.

        `jobs` is drawn only when a place is free and after what finished was yielded, so it may be
        a generator that decides by the results so far. An attempt that was killed is repeated up
        to RETRIES times; an exception is not, since the same input would raise it again.
        """
        if self._detach:
            yield from self._hand_over(jobs)
            return
        waiting = iter(jobs)
        attempts: dict[Job, int] = {}
        while True:
            while len(attempts) < self.parallel and (job := next(waiting, None)) is not None:
                if (job.run_dir / ROWS).is_file():
                    yield Finished(job, None)
                    continue
                attempts[job] = 1
                (job.run_dir / ERROR).unlink(missing_ok=True)
                self._open().start(job)
            if not attempts:
                return
            for job, outcome in self._open().wait():
                if outcome.lost and attempts[job] <= RETRIES:
                    attempts[job] += 1
                    self._open().start(job)
                    continue
                tried = attempts.pop(job)
                error = outcome.error
                if error and outcome.lost:
                    what, *more = error.split("\n", 1)
                    error = "\n".join([f"{what} (attempt {tried}, the last)", *more])
                if error:  # for `scaling status`; where the disk is full the driver says it alone
                    with contextlib.suppress(OSError, UserError):
                        files.write(job.run_dir / ERROR, error)
                yield Finished(job, error)

    def _hand_over(self, jobs: Iterable[Job]) -> Iterator[Finished]:
        left = []
        for job in jobs:
            if (job.run_dir / ROWS).is_file():
                yield Finished(job, None)
            else:
                (job.run_dir / ERROR).unlink(missing_ok=True)
                left.append(job)
        if left:
            raise Detached(len(left), self.submit(left))

    def submit(self, jobs: Iterable[Job]) -> int:
        """Hand all jobs to the cluster and return how many were new to it.

        It runs `launch.parallel` at once of each array: of jobs with equal numbers of GPUs. A later
        `map` of the same jobs waits for them.
        """
        from scaling.jobs.slurm import Slurm

        slurm = Slurm(self._launch, self._folder, self._function, self.threads)
        return slurm.submit(list(jobs), at_once=self.parallel)

    def _open(self) -> Backend:
        """Nothing is started before there is a job: a finished study costs nothing."""
        if self._backend is None:
            if self._launch.cluster == "debug":
                self._backend = InProcess(self._function, self.threads)
            elif self._launch.cluster == "local":
                from scaling.jobs.lanes import Lanes

                self._backend = Lanes(self._folder, self._function, self.parallel, self.threads)
            else:
                from scaling.jobs.slurm import Slurm

                self._backend = Slurm(self._launch, self._folder, self._function, self.threads)
        return self._backend


def executor(folder: Path, cluster: str, **parameters: Any) -> Any:
    """A submitit executor for one machine or for Slurm; its files go to a new folder."""
    import submitit

    # Runs are bounded by their steps, and give up when a whole time limit brings none (slurm.py).
    python = f"{shlex.quote(sys.executable)} -P"  # where job_variables do not travel to the node
    made = submitit.AutoExecutor(
        folder,
        cluster=cluster,
        slurm_max_num_timeout=1_000_000,
        slurm_python=python,
        local_python=python,
    )
    made.update_parameters(**parameters)
    return made


def requeued(work: Callable[[], object]) -> Any:
    """What submitit wants of a job that is to run again, with the state it has now."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(work)


def join_tasks() -> int:
    """In a job of several tasks: tell torch.distributed of the others (`env://`). Returns the rank.

    Needs a submitit job around it.
    """
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    here = JobEnvironment()
    if here.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return here.global_rank


def new_folder(folder: Path) -> Path:
    """A folder that no job used before: where job numbers repeat, old results would be taken."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for count in range(1000):
        fresh = folder / (f"{stamp}-{count}" if count else stamp)
        if not fresh.exists():
            return fresh
    raise RuntimeError(f"{folder}: no free name like {stamp}-999")


def resources(launch: LaunchConfig) -> tuple[int, int]:
    """(jobs at once, CPU threads of a job), so that their product stays within this machine.

    Threads decide the order of sums, hence the last digits: where two machines should give the
    same numbers, set `launch.threads`. With GPUs the default is one job per `launch.gpus` GPUs.
    """
    if launch.cluster == "debug":
        return 1, launch.threads or 1
    if launch.cluster == "slurm":
        return launch.parallel or 64, launch.threads or 1
    cores = available_cores()
    gpus = len(visible_gpus())
    if launch.gpus > gpus:
        raise UserError(
            f"launch.gpus is {launch.gpus}, but this machine shows {gpus} GPUs; lower it, or use "
            f"launch.cluster: slurm"
        )
    if gpus:
        parallel = launch.parallel or gpus // max(1, launch.gpus)
    else:
        parallel = min(launch.parallel or cores, cores)
    if launch.threads:
        parallel = max(1, min(parallel, cores // launch.threads))
    return parallel, launch.threads or max(1, cores // parallel)


def check(launch: LaunchConfig, study_dir: Path, *, detach: bool = False) -> None:
    """All that can be known of the `launch:` section before anything starts.

    Raises UserError: more GPUs than there are, what Slurm refuses, a folder that cannot be written,
    `detach` from jobs that end with this program.
    """
    _, threads = resources(launch)
    if launch.cluster == "slurm":
        from scaling.jobs.squeue import check as check_slurm

        check_slurm(launch, threads)
    elif detach:
        raise UserError(
            f"launch.cluster is {launch.cluster}: its jobs end with this program, so it cannot "
            f"detach from them; that takes launch.cluster: slurm"
        )
    probe = study_dir / f".writable.{os.getpid()}"
    try:
        study_dir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        known = storage_error(error, study_dir)
        if isinstance(known, UserError):
            raise known from None
        raise UserError(
            f"{study_dir}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def visible_gpus() -> list[str]:
    """CUDA devices that this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [d.strip() for d in chosen.split(",") if d.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(k) for k, line in enumerate(lines) if line.startswith("GPU ")]


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or an empty string when there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


# ---------------------------------------------------------------- one attempt, in its own process


def attempt(function: Function, job: Job, threads: int) -> Outcome:
    """Run a job here. Waits while another live process works in its directory."""
    said = False
    while True:
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(threads)
            function(job.run, job.run_dir)
            return Outcome()
        except RunBusy as busy:
            if STOP:
                return Outcome("stopped while waiting for its directory", lost=True)
            if not said:
                print(f"waiting: {busy}", flush=True)
                said = True
            time.sleep(0.2)
        except Interrupted as interrupted:
            return Outcome(f"interrupted ({interrupted})", lost=True)
        except UserError as error:
            return Outcome(str(error))
        except Exception:
            traceback.print_exc()
            return Outcome(traceback.format_exc(limit=-8))


class InProcess:
    """`cluster: debug`: jobs run here, one after the other; a debugger works as usual."""

    def __init__(self, function: Function, threads: int) -> None:
        self._function, self._threads = function, threads
        self._queue: deque[Job] = deque()

    def start(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        job = self._queue.popleft()
        return [(job, attempt(self._function, job, self._threads))]

    def close(self) -> None:
        self._queue.clear()


def to_log(run_dir: Path, name: str = LOG) -> None:
    """From here on this process prints into its run's directory. Raises UserError."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        log = os.open(run_dir / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error.strerror})") from None
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def with_log(outcome: Outcome, log: Path, name: str = "log") -> Outcome:
    """Add where to read on, and the last lines where the message does not show the cause itself."""
    if outcome.error is None or not log.is_file():
        return outcome
    lines = f"\n{tail(log)}" if outcome.lost else ""
    return Outcome(f"{outcome.error}\n{name}: {log}{lines}", outcome.lost)


@contextmanager
def job_variables(threads: int) -> Iterator[None]:
    """What is started meanwhile gives its numeric libraries this many threads, and imports ours."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    wanted = dict.fromkeys(names, str(threads)) | search_path.variables()
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
