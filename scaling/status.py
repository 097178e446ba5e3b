"""Where a study stands, read from its directory alone: no driver, no torch, no lock taken."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from scaling.checkpoint import write_atomic
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.schedule import segments

TAIL_BYTES = 8192


def write_plan(folder: Path, runs: list[RunConfig], macs: list[int]) -> None:
    """plan.json: the runs that belong to the study as it is configured now, and their MACs."""
    entries = [
        {
            "run_id": r.run_id,
            "role": r.role,
            "size": r.model.name,
            "log2_lr": math.log2(r.lr),
            "steps": sum(s.end - s.start for s in segments(r)),
            "macs": m,
            "batch_tokens": r.batch * r.model.context,
        }
        for r, m in zip(runs, macs, strict=True)
    ]
    text = json.dumps({"runs": entries}, indent=1)
    path = folder / "plan.json"
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)


def read_plan(folder: Path) -> list[dict[str, Any]]:
    """The entries of plan.json; an empty list before the first runs are planned."""
    try:
        return json.loads((folder / "plan.json").read_text())["runs"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{folder}/plan.json: damaged ({error}); remove it and run the study again"
        ) from None


@dataclass(frozen=True)
class RunState:
    """One run. `state`: waiting | running | stopped | finished | diverged."""

    run_id: str
    role: str
    size: str
    log2_lr: float
    state: str
    steps_done: int
    steps: int
    macs: int  # of the whole run, cooldown branches included
    tokens_per_second: float | None
    val_loss: float | None
    holder: str  # host and process of a running one

    @property
    def macs_done(self) -> float:
        return self.macs * self.steps_done / self.steps


def run_states(folder: Path) -> list[RunState]:
    """The state of every run of the study's plan. Empty before the first runs are planned."""
    states = []
    for entry in read_plan(folder):
        run_dir = folder / "runs" / entry["run_id"]
        tail = _tail(run_dir / "metrics.jsonl")
        done, speed, loss = 0, None, None
        trained = [r for r in tail if "train_loss" in r]
        if trained:
            done = trained[-1]["position"]
        if len(trained) > 1 and trained[-1]["seconds"] > trained[0]["seconds"]:
            steps = trained[-1]["position"] - trained[0]["position"]
            took = trained[-1]["seconds"] - trained[0]["seconds"]
            speed = steps * entry["batch_tokens"] / took
        evaluated = [r for r in tail if "val_loss" in r]
        if evaluated:
            loss = evaluated[-1]["val_loss"]
        holder = _holder(run_dir / "lock")
        if (run_dir / "rows.json").exists():
            text = (run_dir / "rows.json").read_text()
            state = "diverged" if '"status": "diverged"' in text else "finished"
            done = entry["steps"] if state == "finished" else done
        elif holder:
            state = "running"
        else:
            state = "stopped" if run_dir.is_dir() else "waiting"
        states.append(
            RunState(
                run_id=entry["run_id"],
                role=entry["role"],
                size=entry["size"],
                log2_lr=entry["log2_lr"],
                state=state,
                steps_done=done,
                steps=entry["steps"],
                macs=entry["macs"],
                tokens_per_second=speed if state == "running" else None,
                val_loss=loss,
                holder=holder,
            )
        )
    return states


def _tail(path: Path) -> list[dict]:
    """The last records of a metrics file; a line that is being written is passed over."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # the cut first line, or one that is being written
    return records


def _holder(lock: Path) -> str:
    """Who holds a run's lock, or ''. The holder empties the file when it leaves; a crash does not,
    so on this host the process is looked up."""
    import socket

    try:
        held = json.loads(lock.read_text())
    except (OSError, ValueError):
        return ""
    if held["host"] == socket.gethostname() and not Path(f"/proc/{held['pid']}").exists():
        return ""
    return f"{held['host']}:{held['pid']}"


class Progress:
    """A line about the study's progress while work goes on: live on a terminal, else every 15 s."""

    def __init__(self, folder: Path, say: Callable[[str], None], *, live: bool) -> None:
        self.folder, self.say, self.live = folder, say, live
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._begun: tuple[float, float] | None = None  # (time, MACs done) when work began

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self.live:
            from rich.console import Console
            from rich.status import Status

            with Status("starting", console=Console(stderr=True)) as status:
                while not self._stop.wait(1.0):
                    status.update(self.line())
        else:
            while not self._stop.wait(15.0):
                self.say(self.line())

    def line(self) -> str:
        """`ladder: 3/7 runs, 41% of 1.2e+13 MACs, 21.3 GMAC/s, ETA 2:10`."""
        states = run_states(self.folder)
        if not states:
            return "planning"
        role = "ladder" if any(s.role == "ladder" for s in states) else "lr sweep"
        ended = sum(s.state in ("finished", "diverged") for s in states)
        planned = sum(s.macs for s in states)
        done = sum(s.macs if s.state == "diverged" else s.macs_done for s in states)
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, done)
        text = f"{role}: {ended}/{len(states)} runs, {done / planned:.0%} of {planned:.2e} MACs"
        rate = (done - self._begun[1]) / max(1e-9, now - self._begun[0])
        if rate > 0 and now - self._begun[0] > 3:
            left = int((planned - done) / rate)
            text += f", {rate / 1e9:.1f} GMAC/s, ETA {left // 60}:{left % 60:02d}"
        return text
