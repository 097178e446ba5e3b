"""Processes that are forked from one which has loaded torch: a start costs milliseconds, not the
seconds of CPU that torch takes to load (twice: its first optimizer loads as much again).

What runs in them is what a process of its own would run; a signal or `kill` meets a whole process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.shell import HANGS

LOADED = ["torch._dynamo", "torch.distributed", "scaling.cli", "scaling.training.train",
          "scaling.representations.probe"]  # fmt: skip
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(LOADED)


class Warm:
    """A running process. What it prints is in the file `said`."""

    def __init__(
        self,
        work: Callable[..., Any],
        *given: Any,
        said: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """work: importable, as are its arguments."""
        self.said = said
        self._process: ForkServerProcess = PROCESSES.Process(
            target=_begin, args=(work, given, said, {**os.environ, **(environment or {})})
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code (minus the signal that ended it), or None: it is at work."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit code; one that hangs is killed: -9."""
        self._process.join(HANGS)
        if self.poll() is None:
            self.kill()
            self._process.join()
        code = self.poll()
        assert code is not None
        return code


def command(*words: str) -> None:
    """`scaling WORDS`: the work of a process."""
    from scaling.cli import main

    sys.argv = ["scaling", *words]
    main()


def _begin(
    work: Callable[..., Any], given: tuple[Any, ...], said: Path, environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # that of TMPDIR as it is now
    with open(said, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*given)
