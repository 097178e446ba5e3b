"""A job: some work, the directory that is its state, and one attempt at it.

What a job does is its payload, a `RunConfig` for instance: a function is called with it and with
the directory. The same call may be made again at any time, and continues what is there.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from scaling.checkpoint import STOP, Interrupted
from scaling.errors import UserError
from scaling.storage.files import RunBusy
from scaling.study_folder import RunFolder

if TYPE_CHECKING:
    from scaling.config.run import RunConfig

RETRIES = 3  # of one job that was killed, lost its node or was interrupted
T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """A payload and the directory that is its state."""

    payload: T
    run_dir: Path
    gpus: int | None = None  # on a cluster, per node; None: `launch.gpus`


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a job ended. `lost`: not by its own fault, so it deserves another."""

    error: str | None = None
    lost: bool = False


Function = Callable[[T, Path], object]


class Backend(Protocol[T]):
    """Where attempts happen."""

    def start(self, job: Job[T]) -> None: ...
    def wait(self) -> list[tuple[Job[T], Outcome]]: ...  # blocks for a moment at most
    def close(self) -> None: ...  # the driver leaves


def train(run: RunConfig, run_dir: Path) -> object:
    """The function that jobs call (it imports torch, hence not at the top of this module)."""
    from scaling.training.train import train

    return train(run, run_dir)


def attempt(function: Function[T], job: Job[T], threads: int) -> Outcome:
    """Run a job here. Waits while another live process works in its directory."""
    said = False
    while True:
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(threads)
            function(job.payload, job.run_dir)
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


def to_log(run_dir: Path, rank: int = 0) -> None:
    """From here on this process prints into its run's directory. Raises UserError."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        log = os.open(
            RunFolder(run_dir).log_of(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )
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


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or an empty string when there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
