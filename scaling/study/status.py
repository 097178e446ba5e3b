"""Where a study stands, read from its directory alone: no driver, no torch, no lock taken."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scaling.config.schedule import segments
from scaling.config.schema import SCHEMA, RunConfig
from scaling.errors import UserError
from scaling.storage import files

TAIL_BYTES = 8192
ENTRY = {"run_id", "role", "size", "log2_lr", "steps", "macs", "batch_tokens"}  # of plan.json


def write_plan(
    folder: Path, runs: list[RunConfig], macs: list[int], *, later_macs: int = 0
) -> None:
    """plan.json: the runs that belong to the study as it is configured now, and their MACs.

    `later_macs`: of runs that cannot be named yet, such as the ladder's before its rate is known.
    """
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
    text = json.dumps({"schema": SCHEMA, "later_macs": later_macs, "runs": entries}, indent=1)
    path = folder / "plan.json"
    if not path.exists() or path.read_text() != text:
        files.write(path, text)


def read_plan(folder: Path) -> list[dict[str, Any]]:
    """The entries of plan.json; an empty list before the first runs are planned."""
    return _plan(folder)["runs"]


def _plan(folder: Path) -> dict[str, Any]:
    try:
        plan = files.read_json(folder / "plan.json", dict)
        if not all(entry.keys() >= ENTRY for entry in plan["runs"]):
            raise UserError("a run in it is not described")
        return {"schema": SCHEMA, "later_macs": 0} | plan
    except FileNotFoundError:
        return {"schema": SCHEMA, "later_macs": 0, "runs": []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}/plan.json: damaged ({error}); remove it and run the study again"
        ) from None


def check_schema(folder: Path) -> None:
    """Refuse to go on in a directory of another version, whose rows would not mix with new ones.

    Raises UserError with what can be done.
    """
    schema = _plan(folder)["schema"]
    if schema < SCHEMA:
        raise UserError(
            f"{folder}: written with schema {schema} of the run directory; this version writes "
            f"{SCHEMA}, and its numbers need not equal those. Nothing was changed. Give the study "
            f"another name (or --out) to train it anew, or continue it with the version that began "
            f"it; its rows.csv stays readable for `scaling fit`"
        )
    if schema > SCHEMA:
        raise UserError(
            f"{folder}: written with schema {schema} of the run directory by a newer version; this "
            f"one knows {SCHEMA}. Install the newer version to go on"
        )


class SlurmJob(Protocol):
    """What is shown of a job on a cluster (scaling.jobs.squeue.Entry)."""

    @property
    def job_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class RunState:
    """One run.

    `state`: waiting | pending | running | requeued | stopped | failed | finished | diverged;
    pending and requeued are Slurm's (requeued: it worked before). `where`: host and process, or
    node and job, or the reason why it does not run.
    """

    run_id: str
    role: str
    size: str
    log2_lr: float
    state: str
    steps_done: int
    steps: int
    macs: int  # of the whole run, cooldown branches included
    tokens_per_second: float | None
    eta_seconds: float | None  # of a running one, at its present speed
    val_loss: float | None
    where: str

    @property
    def macs_done(self) -> float:
        return self.macs * self.steps_done / self.steps


def run_states(folder: Path, jobs: Mapping[Path, SlurmJob] | None = None) -> list[RunState]:
    """The state of every run of the study's plan. Empty before the first runs are planned.

    Args:
        folder: the study's directory.
        jobs: run directory (absolute) -> its live job, where Slurm was asked. What it says counts
            for more than a lock whose holder sits on another host and may be gone.
    """
    return [_state(folder, entry, jobs) for entry in read_plan(folder)]


def _state(folder: Path, entry: dict[str, Any], jobs: Mapping[Path, SlurmJob] | None) -> RunState:
    run_dir = folder / "runs" / entry["run_id"]
    tail = _tail(run_dir / "metrics.jsonl")
    trained = [r for r in tail if {"train_loss", "seconds"} <= r.keys()]
    evaluated = [r for r in tail if "val_loss" in r]
    done = trained[-1]["position"] if trained else 0
    speed = None
    if len(trained) > 1 and trained[-1]["seconds"] > trained[0]["seconds"]:
        steps = trained[-1]["position"] - trained[0]["position"]
        speed = steps / (trained[-1]["seconds"] - trained[0]["seconds"])
    state, where = _where(run_dir, jobs)
    if state == "finished":
        done = entry["steps"]
    running = state == "running" and speed is not None and speed > 0
    return RunState(
        run_id=entry["run_id"],
        role=entry["role"],
        size=entry["size"],
        log2_lr=entry["log2_lr"],
        state=state,
        steps_done=done,
        steps=entry["steps"],
        macs=entry["macs"],
        tokens_per_second=speed * entry["batch_tokens"] if running and speed else None,
        eta_seconds=(entry["steps"] - done) / speed if running and speed else None,
        val_loss=evaluated[-1]["val_loss"] if evaluated else None,
        where=where,
    )


def _where(run_dir: Path, jobs: Mapping[Path, SlurmJob] | None) -> tuple[str, str]:
    """(state, where or why)."""
    try:
        text = (run_dir / "rows.json").read_text()
        return ("diverged" if '"status": "diverged"' in text else "finished"), ""
    except OSError:
        pass
    began = (run_dir / "config.yaml").exists()
    holder = _holder(run_dir / "lock")
    job = jobs.get(run_dir.resolve()) if jobs is not None else None
    if job is not None:
        if job.state in ("RUNNING", "COMPLETING"):
            return "running", f"{job.node} (job {job.job_id})"
        state = "requeued" if began else "pending"
        return state, f"job {job.job_id} {job.state.lower()}: {job.reason}"
    if holder and (jobs is None or holder.startswith(f"{socket.gethostname()}:")):
        return "running", holder
    with contextlib.suppress(OSError):
        return "failed", (run_dir / "error.txt").read_text().split("\n", 1)[0]
    return ("stopped" if began else "waiting"), ""


def text(folder: Path, jobs: Mapping[Path, SlurmJob] | None = None) -> str:
    """A line for each run, and the study's MACs done of planned.

    Raises UserError when there is no such study.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such study; see the folders in {folder.parent}/")
    states = run_states(folder, jobs)
    if not states:
        return f"{folder}: no runs planned yet (tokens are being made)"
    head = f"{'run':14}{'role':10}{'size':>12}{'log2 lr':>9}{'state':>10}{'done':>6}{'loss':>9}"
    lines = [f"{head}{'tokens/s':>11}{'ETA':>8}  where"]
    for s in states:
        loss = f"{s.val_loss:.4f}" if s.val_loss is not None else "-"
        speed = f"{s.tokens_per_second:,.0f}" if s.tokens_per_second else "-"
        eta = clock(s.eta_seconds) if s.eta_seconds is not None else "-"
        lines.append(
            f"{s.run_id:14}{s.role:10}{s.size:>12}{s.log2_lr:>9.2f}{s.state:>10}"
            f"{s.steps_done / s.steps:>6.0%}{loss:>9}{speed:>11}{eta:>8}  {s.where}".rstrip()
        )
    return "\n".join([*lines, _total(states, _plan(folder)["later_macs"])])


def _total(states: list[RunState], later_macs: int) -> str:
    counts = Counter(s.state for s in states)
    planned = sum(s.macs for s in states) + later_macs
    # A diverged run is at its end.
    done = sum(s.macs if s.state == "diverged" else s.macs_done for s in states)
    line = (
        f"{', '.join(f'{n} {state}' for state, n in counts.items())}; "
        f"{done:.3g} of {planned:.3g} training MACs ({done / planned:.0%})"
    )
    if later_macs:
        line += f", {later_macs:.3g} of them in ladder runs that wait for the learning rate"
    rate = sum(
        (s.macs - s.macs_done) / s.eta_seconds for s in states if s.eta_seconds
    )  # MACs per second
    return f"{line}; ETA {clock((planned - done) / rate)} at the present speed" if rate else line


def clock(seconds: float) -> str:
    """`2:05` (minutes), `3:02:05`, `4d 1:00:00`."""
    left = round(seconds)
    days, hours, minutes = left // 86400, left // 3600 % 24, left // 60 % 60
    shown = f"{hours}:{minutes:02d}" if days or hours else f"{minutes}"
    return (f"{days}d " if days else "") + f"{shown}:{left % 60:02d}"


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
            record = json.loads(line)
            if "position" in record.keys():  # noqa: SIM118 (only a mapping has keys)
                records.append(record)
        except (ValueError, AttributeError, RecursionError):
            continue  # the cut first line, or one that is being written
    return records


def _holder(lock: Path) -> str:
    """Who holds a run's lock, or ''. The holder empties the file when it leaves; a crash does not,
    so on this host the process is looked up."""
    held = files.holder(lock)
    if held is None:
        return ""
    if held["host"] == socket.gethostname() and not Path(f"/proc/{held['pid']}").exists():
        return ""
    return f"{held['host']}:{held['pid']}"
