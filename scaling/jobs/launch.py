"""Jobs on this machine, on a Slurm cluster, or in this process.

`Launcher.map` is the same call for all three: on a cluster a run is one job (slurm.py), on one
machine a long-lived worker forks a process for each run (local.py). A run's directory is its whole
state: a job that was lost is simply started again, and what was finished returns at once.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from scaling.errors import UserError
from scaling.jobs.job import RETRIES, Backend, Function, Job, Outcome, T, attempt
from scaling.jobs.machine import available_cores, visible_gpus
from scaling.storage import files
from scaling.storage.files import storage_error
from scaling.study_folder import RunFolder

if TYPE_CHECKING:
    from scaling.config.schema import LaunchConfig


@dataclass(frozen=True)
class Finished(Generic[T]):
    """A job that came to its end. `error` is None when its run directory is complete."""

    job: Job[T]
    error: str | None


class Detached(Exception):
    """Jobs were handed to the cluster, and nobody waits for them."""

    def __init__(self, jobs: int, new: int) -> None:
        super().__init__(f"{jobs} jobs, {new} of them new")
        self.jobs, self.new = jobs, new


class Launcher(Generic[T]):
    """Runs jobs, at most `launch.parallel` at once, and yields them as they finish.

        with Launcher(config.launch, study.jobs_dir, train) as launcher:
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
        function: Function[T],
        *,
        detach: bool = False,
    ) -> None:
        self.parallel, self.threads = resources(launch)
        self._detach = detach
        self._launch, self._function = launch, function
        self._folder = folder.resolve()
        self._backend: Backend[T] | None = None

    def __enter__(self) -> Launcher[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def map(self, jobs: Iterable[Job[T]]) -> Iterator[Finished[T]]:
        """Yield every job once, in the order of completion.

        `jobs` is drawn only when a place is free and after what finished was yielded, so it may be
        a generator that decides by the results so far. An attempt that was killed is repeated up
        to RETRIES times; an exception is not, since the same input would raise it again.
        """
        if self._detach:
            yield from self._hand_over(jobs)
            return
        waiting = iter(jobs)
        attempts: dict[Job[T], int] = {}
        while True:
            while len(attempts) < self.parallel and (job := next(waiting, None)) is not None:
                if RunFolder(job.run_dir).finished:
                    yield Finished(job, None)
                    continue
                attempts[job] = 1
                RunFolder(job.run_dir).error.unlink(missing_ok=True)
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
                        files.write(RunFolder(job.run_dir).error, error)
                yield Finished(job, error)

    def _hand_over(self, jobs: Iterable[Job[T]]) -> Iterator[Finished[T]]:
        left = []
        for job in jobs:
            if RunFolder(job.run_dir).finished:
                yield Finished(job, None)
            else:
                RunFolder(job.run_dir).error.unlink(missing_ok=True)
                left.append(job)
        if left:
            raise Detached(len(left), self.submit(left))

    def submit(self, jobs: Iterable[Job[T]]) -> int:
        """Hand all jobs to the cluster and return how many were new to it.

        It runs `launch.parallel` at once of each array: of jobs with equal numbers of GPUs. A later
        `map` of the same jobs waits for them.
        """
        from scaling.jobs.slurm import Slurm

        slurm = Slurm(self._launch, self._folder, self._function, self.threads)
        return slurm.submit(list(jobs), at_once=self.parallel)

    def _open(self) -> Backend[T]:
        """Nothing is started before there is a job: a finished study costs nothing."""
        if self._backend is None:
            if self._launch.cluster == "debug":
                self._backend = InProcess(self._function, self.threads)
            elif self._launch.cluster == "local":
                from scaling.jobs.local import Local

                self._backend = Local(self._folder, self._function, self.parallel, self.threads)
            else:
                from scaling.jobs.slurm import Slurm

                self._backend = Slurm(self._launch, self._folder, self._function, self.threads)
        return self._backend


class InProcess(Generic[T]):
    """`cluster: debug`: jobs run here, one after the other; a debugger works as usual."""

    def __init__(self, function: Function[T], threads: int) -> None:
        self._function, self._threads = function, threads
        self._queue: deque[Job[T]] = deque()

    def start(self, job: Job[T]) -> None:
        self._queue.append(job)

    def wait(self) -> list[tuple[Job[T], Outcome]]:
        job = self._queue.popleft()
        return [(job, attempt(self._function, job, self._threads))]

    def close(self) -> None:
        self._queue.clear()


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
