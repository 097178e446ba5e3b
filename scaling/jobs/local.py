"""Jobs on one machine: `cluster: local`.

One submitit job, the worker, loads torch once and then forks a process for each run, `parallel` of
them at a time. A run's start costs milliseconds, and a crash takes nothing but the run with it.
Each end notices at once when the other is gone, even by `kill -9`, and nothing is left behind:

    driver -> worker -> runs        a run saves at the next step boundary and ends
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Generic

from scaling.checkpoint import STOP
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
from scaling.jobs.machine import visible_gpus
from scaling.jobs.submission import executor, job_variables, new_folder
from scaling.storage import scratch
from scaling.study_folder import RunFolder

GRACE_SECONDS = 20.0  # from asking a run to stop (it saves at a step boundary) to killing it


class Local(Generic[T]):
    """`cluster: local`, the driver's side: a submitit job that connects back and takes jobs."""

    def __init__(self, folder: Path, function: Function[T], parallel: int, threads: int) -> None:
        self._folder, self._function = new_folder(folder), function
        self._threads = threads
        scratch.sign(self._folder)
        # A folder that only this user can enter; Unix socket names are limited to ~100 characters.
        self._address = str(scratch.make() / "driver")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self._address)
        self._server.listen()
        # A worker lives as long as its driver; runs have no time limit on one's own machine.
        year_min = 60 * 24 * 365
        self._executor = executor(
            self._folder, "local", timeout_min=year_min, stderr_to_stdout=True
        )
        gpus = visible_gpus() or [""]
        self._free = deque((place, gpus[place % len(gpus)]) for place in range(parallel))
        self._queue: deque[Job[T]] = deque()
        self._busy: dict[tuple[int, str], Job[T]] = {}  # by place, and the GPU that is seen there
        self._worker: connection.Connection | None = None
        self._log = self._folder  # the connected worker's
        self._started: Any = None  # its submitit job
        self._unheard = 0  # workers that were started since the last one connected
        self._failed = False

    def start(self, job: Job[T]) -> None:
        self._queue.append(job)
        self._serve()

    def wait(self) -> list[tuple[Job[T], Outcome]]:
        ended: list[tuple[Job[T], Outcome]] = []
        channels: list[Any] = [self._server, *([self._worker] if self._worker else [])]
        for ready in connection.wait(channels, timeout=0.5):
            if ready is self._server:
                self._greet(connection.Connection(self._server.accept()[0].detach()))
                continue
            assert isinstance(ready, connection.Connection)
            try:
                place, outcome = ready.recv()
                ended.append((self._leave(place), outcome))
            except (EOFError, OSError):
                outcome = Outcome("its worker process ended", lost=True)
                outcome = with_log(outcome, self._log, "log of the worker")
                ended += [(self._leave(place), outcome) for place in list(self._busy)]
                ready.close()
                self._worker = None
        self._failed |= any(outcome.error is not None for _, outcome in ended)
        self._serve()
        return [(job, with_log(outcome, RunFolder(job.run_dir).log)) for job, outcome in ended]

    def _leave(self, place: tuple[int, str]) -> Job[T]:
        self._free.append(place)
        return self._busy.pop(place)

    def _greet(self, channel: connection.Connection) -> None:
        """A new worker says which job of submitit's it is."""
        try:
            self._log = self._folder / f"{channel.recv()}_0_log.out"
        except (EOFError, OSError):
            channel.close()
            return
        self._worker, self._unheard = channel, 0

    def _serve(self) -> None:
        """Give waiting jobs to the worker; start one while there is work and none is there."""
        while self._queue and self._free and self._worker:
            place = self._free.popleft()
            job = self._busy[place] = self._queue.popleft()
            try:
                self._worker.send((place, job.payload, job.run_dir))
            except OSError:  # it is gone: wait() sees its end of file and reports its jobs
                return
        if self._queue and self._worker is None and (self._started is None or self._started.done()):
            if self._unheard > RETRIES:
                log = sorted(self._folder.glob("*_log.out"), key=lambda p: p.stat().st_mtime)[-1:]
                raise RuntimeError(
                    f"worker processes end before they can take a job; the log of the last one, "
                    f"{log[0] if log else '(none)'}:\n{tail(log[0]) if log else ''}"
                )
            self._unheard += 1
            worker = Worker(self._address, self._function, self._threads)
            # Ctrl-C reaches every process of the terminal; only the driver should act on it, and it
            # tells the rest. A blocked signal stays blocked in what is started meanwhile.
            with job_variables(self._threads), _signals_blocked(signal.SIGINT):
                self._started = self._executor.submit(worker)

    def close(self) -> None:
        """Stop the worker and its runs, and wait until their processes have ended."""
        if self._worker:
            self._worker.close()
        self._server.close()
        shutil.rmtree(Path(self._address).parent, ignore_errors=True)
        end = time.monotonic() + GRACE_SECONDS + 5
        while self._started and not self._started.done() and time.monotonic() < end:
            time.sleep(0.02)
        if self._started and not self._started.done():
            self._started._process.kill()
            self._started._process.wait()
        self._started = None  # now: submitit's __del__ fails at the end of the interpreter
        if not (self._failed or self._busy or self._queue):
            shutil.rmtree(self._folder, ignore_errors=True)  # nothing in it is worth reading


@dataclass(frozen=True)
class Worker(Generic[T]):
    """The worker's side: a submitit job that runs jobs for a driver until the driver is gone."""

    address: str
    function: Function[T]
    threads: int

    def __call__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)  # submitit ignores the first, requeues on USR2
        try:
            driver = connection.Client(self.address, family="AF_UNIX")
            driver.send(os.environ["SUBMITIT_LOCAL_JOB_ID"])
        except OSError:  # the driver ended while this process started
            shutil.rmtree(Path(self.address).parent, ignore_errors=True)
            return
        if self.function is train:
            # Once, so that every run's process is forked warm; the second is what torch imports
            # at a process's first optimizer, for as long as torch itself.
            import torch._dynamo  # noqa: F401

            import scaling.training.train  # noqa: F401
        # Forking is safe here: this process has one thread and never computes.
        processes: Any = get_context("fork" if sys.platform == "linux" else "spawn")
        runs: dict[connection.Connection, tuple[Any, Any]] = {}  # results: (place, process)
        while True:
            try:
                for ready in connection.wait([driver, *runs]):
                    assert isinstance(ready, connection.Connection)
                    if ready is not driver:
                        place, process = runs.pop(ready)
                        driver.send((place, _outcome(ready, process)))
                        continue
                    place, payload, run_dir = driver.recv()
                    results, sender = processes.Pipe(duplex=False)
                    process = processes.Process(
                        target=_attempt_in_child,
                        args=(sender, self.function, Job(payload, run_dir), self.threads, place[1]),
                    )
                    process.start()
                    sender.close()
                    runs[results] = place, process
            except (EOFError, OSError):  # the driver is gone
                break
        for _, process in runs.values():
            process.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for _, process in runs.values():
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
        shutil.rmtree(Path(self.address).parent, ignore_errors=True)  # a killed driver cannot


def _outcome(results: connection.Connection, process: Any) -> Outcome:
    """What an ended run's process said; what its end says where it said nothing."""
    try:
        outcome: Outcome = results.recv()
    except EOFError:
        process.join()
        return _killed(process.exitcode)
    finally:
        results.close()
    process.join()
    return outcome


def _attempt_in_child(
    sender: connection.Connection, function: Function[T], job: Job[T], threads: int, gpu: str
) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    STOP.install()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        to_log(job.run_dir)
    except UserError as error:
        sender.send(Outcome(str(error)))
    else:
        sender.send(attempt(function, job, threads))


def _end_with_parent() -> None:
    """Asked of the system: the pipe by which multiprocessing would tell stays open for as long as
    a process that was forked later lives."""
    parent = parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _killed(exitcode: int | None) -> Outcome:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (often: the machine ran out of memory)" if name == "SIGKILL" else ""
        return Outcome(f"its process was ended by {name}{hint}", lost=True)
    return Outcome(f"its process ended with exit code {exitcode}", lost=True)


@contextmanager
def _signals_blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
