"""Jobs on one machine: `cluster: local`.

A few submitit jobs ("lanes") each load torch once and then fork one process per run. A run's start
costs milliseconds, and a crash takes nothing but the run with it. Each arrow below is a socket or
a pipe that closes with its owner, so even `kill -9` is noticed at once and nothing is left behind:

    driver -> lane -> run        the run saves at the next step boundary and ends
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


class Lanes(Generic[T]):
    """`cluster: local`, the driver's side: submitit jobs that connect back and take jobs."""

    def __init__(self, folder: Path, function: Function[T], parallel: int, threads: int) -> None:
        self._folder, self._function = new_folder(folder), function
        self._parallel, self._threads = parallel, threads
        scratch.sign(self._folder)
        # A folder that only this user can enter; Unix socket names are limited to ~100 characters.
        self._address = str(scratch.make() / "driver")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self._address)
        self._server.listen(parallel)
        # A lane lives as long as its driver; runs have no time limit on one's own machine.
        year_min = 60 * 24 * 365
        self._executor = executor(
            self._folder, "local", timeout_min=year_min, stderr_to_stdout=True
        )
        self._lanes: list[Any] = []
        self._starts = self._connected = 0
        self._queue: deque[Job[T]] = deque()
        self._idle: list[connection.Connection] = []
        self._busy: dict[connection.Connection, Job[T]] = {}
        self._logs: dict[connection.Connection, Path] = {}
        self._failed = False

    def start(self, job: Job[T]) -> None:
        self._queue.append(job)
        self._serve()

    def wait(self) -> list[tuple[Job[T], Outcome]]:
        ended = []
        channels: list[Any] = [self._server, *self._idle, *self._busy]
        for ready in connection.wait(channels, timeout=0.5):
            if ready is self._server:
                self._greet(connection.Connection(self._server.accept()[0].detach()))
                continue
            assert isinstance(ready, connection.Connection)
            try:
                outcome = ready.recv()
                self._idle.append(ready)
            except (EOFError, OSError):
                outcome = Outcome("its worker process ended", lost=True)
                outcome = with_log(outcome, self._logs[ready], "log of the worker")
                ready.close()
            if ready in self._busy:
                job = self._busy.pop(ready)
                self._failed |= outcome.error is not None
                ended.append((job, with_log(outcome, RunFolder(job.run_dir).log)))
            else:
                self._idle.remove(ready)
        self._serve()
        return ended

    def _greet(self, channel: connection.Connection) -> None:
        """A new lane says which job of submitit's it is."""
        try:
            self._logs[channel] = self._folder / f"{channel.recv()}_0_log.out"
        except (EOFError, OSError):
            channel.close()
            return
        self._idle.append(channel)
        self._connected += 1

    def _serve(self) -> None:
        """Give waiting jobs to idle lanes; start lanes while there is work for more."""
        while self._queue and self._idle:
            channel = self._idle.pop(0)
            job = self._queue.popleft()
            self._busy[channel] = job
            try:
                channel.send((job.payload, job.run_dir))
            except OSError:  # the lane is gone: wait() sees its end of file and reports the job
                continue
        self._lanes = [lane for lane in self._lanes if not lane.done()]
        wanted = min(self._parallel, len(self._queue) + len(self._busy))
        while len(self._lanes) < wanted:
            if self._starts - self._connected > self._parallel + RETRIES:
                log = sorted(self._folder.glob("*_log.out"), key=lambda p: p.stat().st_mtime)[-1:]
                raise RuntimeError(
                    f"worker processes end before they can take a job; the log of the last one, "
                    f"{log[0] if log else '(none)'}:\n{tail(log[0]) if log else ''}"
                )
            self._submit()

    def _submit(self) -> None:
        gpus = visible_gpus()
        lane = Lane(
            address=self._address,
            function=self._function,
            threads=self._threads,
            devices=gpus[self._starts % len(gpus)] if gpus else "",
        )
        self._starts += 1
        # Ctrl-C reaches every process of the terminal; only the driver should act on it, and it
        # tells the rest. A blocked signal stays blocked in what is started meanwhile.
        with job_variables(self._threads), _signals_blocked(signal.SIGINT):
            self._lanes.append(self._executor.submit(lane))

    def close(self) -> None:
        """Stop every lane and wait until its processes have ended."""
        for channel in (*self._idle, *self._busy):
            channel.close()
        self._server.close()
        shutil.rmtree(Path(self._address).parent, ignore_errors=True)
        end = time.monotonic() + GRACE_SECONDS + 5
        while any(not lane.done() for lane in self._lanes) and time.monotonic() < end:
            time.sleep(0.02)
        for lane in self._lanes:
            if not lane.done():
                lane._process.kill()
                lane._process.wait()
        if not (self._failed or self._busy or self._queue):
            shutil.rmtree(self._folder, ignore_errors=True)  # nothing in it is worth reading


@dataclass(frozen=True)
class Lane(Generic[T]):
    """The worker's side: a submitit job that runs jobs for a driver until the driver is gone."""

    address: str
    function: Function[T]
    threads: int
    devices: str

    def __call__(self) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
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
        while True:
            try:
                payload, run_dir = driver.recv()
            except (EOFError, OSError):
                break
            results, sender = processes.Pipe(duplex=False)
            process = processes.Process(
                target=_attempt_in_child, args=(sender, self.function, Job(payload, run_dir), self)
            )
            process.start()
            sender.close()
            if driver in connection.wait([driver, results]):  # only its end can be heard here
                process.terminate()
                process.join(GRACE_SECONDS)
                process.kill()
                break
            try:
                outcome = results.recv()
                process.join()
            except EOFError:
                process.join()
                outcome = _killed(process.exitcode)
            try:
                driver.send(outcome)
            except OSError:
                break
        shutil.rmtree(Path(self.address).parent, ignore_errors=True)  # a killed driver cannot


def _attempt_in_child(
    sender: connection.Connection, function: Function[T], job: Job[T], lane: Lane[T]
) -> None:
    STOP.install()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        to_log(job.run_dir)
    except UserError as error:
        sender.send(Outcome(str(error)))
    else:
        sender.send(attempt(function, job, lane.threads))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
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
