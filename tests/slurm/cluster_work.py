"""What the tests' jobs do: count steps on disk, as training does, and mind the stop flag."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaling.checkpoint import STOP, Interrupted
from scaling.errors import UserError
from scaling.storage import files
from scaling.storage.files import RunLock
from tests.shell import HANGS


@dataclass(frozen=True)
class Task:
    """Stands where a RunConfig stands."""

    what: str = "ok"
    seconds: float = 0.0


def perform(task: Task, run_dir: Path) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        sum_over_tasks()  # only the first of several tasks works on the directory
        return
    with RunLock(run_dir):
        state = run_dir / "seconds"
        done = float(state.read_text()) if state.exists() else 0.0
        with open(run_dir / "attempts", "a") as file:
            file.write(f"{os.environ.get('SLURM_JOB_ID')} from {done:.2f}\n")
        if (run_dir / "done").exists():
            return
        while done < task.seconds:
            time.sleep(0.05)
            done += 0.05
            with open(run_dir / "ticks", "a") as file:
                file.write(".")
            if STOP:
                files.write(state, str(done))
                raise Interrupted(f"saved at {done:.2f}")
            if task.what == "stuck" and STOP:
                raise Interrupted("saved at 0")
        if task.what == "sum":
            (run_dir / "sum").write_text(str(sum_over_tasks()))
        if task.what == "raise":
            raise RuntimeError("a worm in the apple")
        if task.what == "mistake":
            raise UserError("lr 7: must be below 1; lower it")
        if task.what == "killed" or (task.what == "killed once" and len(attempts(run_dir)) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        (run_dir / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        (run_dir / "done").write_text(os.environ.get("OMP_NUM_THREADS", ""))


def sum_over_tasks() -> float:
    """Each task gives its rank + 1."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    value = torch.tensor([distributed.get_rank() + 1.0])
    distributed.all_reduce(value)
    distributed.destroy_process_group()
    return float(value)


def attempts(run_dir: Path) -> list[str]:
    path = run_dir / "attempts"
    return path.read_text().splitlines() if path.exists() else []


def ticks(run_dir: Path) -> int:
    """Twentieths of a second that were worked, in all attempts."""
    path = run_dir / "ticks"
    return path.stat().st_size if path.exists() else 0


def until(what: Callable[[], object], seconds: float = HANGS) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.1)
