"""Where a study stands, read from its directory alone: no driver, no torch, no lock taken."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scaling.storage import files
from scaling.study_folder import Plan, RunFolder, Study

TAIL_BYTES = 8192


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
        """Training MACs of the steps that are done."""
        return self.macs * self.steps_done / self.steps


def run_states(study: Study, jobs: Mapping[Path, SlurmJob] | None = None) -> list[RunState]:
    """The state of every run of the study's plan. Empty before the first runs are planned.

    Args:
        study: its folder.
        jobs: run directory (absolute) -> its live job, where Slurm was asked. What it says counts
            for more than a lock whose holder sits on another host and may be gone.
    """
    return _states(study, study.plan(), jobs)


def _states(study: Study, plan: Plan, jobs: Mapping[Path, SlurmJob] | None) -> list[RunState]:
    return [_state(study, entry, jobs) for entry in plan.runs]


def _state(study: Study, entry: dict[str, Any], jobs: Mapping[Path, SlurmJob] | None) -> RunState:
    run = study.run(entry["run_id"])
    state, where = _where(run, jobs)
    lines = _tail(run.metrics)
    evaluated = next((r for r in _records(reversed(lines)) if "val_loss" in r), None)
    done, speed = entry["steps"], None
    if state != "finished":
        trained = [r for r in _records(lines) if {"train_loss", "seconds"} <= r.keys()]
        done = min(trained[-1]["position"], entry["steps"]) if trained else 0
        if len(trained) > 1 and trained[-1]["seconds"] > trained[0]["seconds"]:
            steps = trained[-1]["position"] - trained[0]["position"]
            speed = steps / (trained[-1]["seconds"] - trained[0]["seconds"])
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
        val_loss=evaluated["val_loss"] if evaluated else None,
        where=where,
    )


def trunk_step(run: RunFolder) -> int:
    """The step of its trunk that a run was last heard of at; 0 where it was in a cooldown."""
    told = [r for r in _records(_tail(run.metrics)) if "branch" in r and "seconds" in r]
    return int(told[-1]["step"]) if told and told[-1]["branch"] is None else 0


def _where(run: RunFolder, jobs: Mapping[Path, SlurmJob] | None) -> tuple[str, str]:
    """(state, where or why)."""
    with contextlib.suppress(OSError):
        content = run.rows_json.read_bytes()
        if not run.goes_on.exists():
            return ("diverged" if b'"status": "diverged"' in content else "finished"), ""
    began = run.config_yaml.exists()
    holder = _holder(run.lock)
    job = jobs.get(run.path.resolve()) if jobs is not None else None
    if job is not None:
        if job.state in ("RUNNING", "COMPLETING"):
            return "running", f"{job.node} (job {job.job_id})"
        state = "requeued" if began else "pending"
        return state, f"job {job.job_id} {job.state.lower()}: {job.reason}"
    if holder and (jobs is None or holder.startswith(f"{socket.gethostname()}:")):
        return "running", holder
    with contextlib.suppress(OSError):
        return "failed", run.error.read_text().split("\n", 1)[0]
    return ("stopped" if began else "waiting"), ""


def text(study: Study, jobs: Mapping[Path, SlurmJob] | None = None) -> str:
    """A line for each run, with the final loss to expect of a running one, and the study's MACs
    done of planned."""
    plan = study.plan()
    states = _states(study, plan, jobs)
    if not states:
        return f"{study}: no runs planned yet (tokens are being made)"
    final, told = _finals(study, states)
    size = max(12, *(len(s.size) + 2 for s in states))
    wide = max(13, 2 + max(map(len, final.values()), default=0))
    head = f"{'run':14}{'role':10}{'size':>{size}}{'log2 lr':>9}{'state':>10}{'done':>6}{'loss':>9}"
    head += f"{'final (95%)':>{wide}}" if final else ""
    lines = [f"{head}{'tokens/s':>11}{'ETA':>8}  where"]
    if plan.setting:
        lines.insert(
            0, f"the ladder is trained at the setting that the sweep found: {plan.setting}"
        )
    for s in states:
        loss = f"{s.val_loss:.4f}" if s.val_loss is not None else "-"
        speed = f"{s.tokens_per_second:,.0f}" if s.tokens_per_second else "-"
        if final:
            loss = f"{loss:>9}{final.get(s.run_id, '-'):>{wide}}"
        eta = clock(s.eta_seconds) if s.eta_seconds is not None else "-"
        lines.append(
            f"{s.run_id:14}{s.role:10}{s.size:>{size}}{s.log2_lr:>9.2f}{s.state:>10}"
            f"{s.steps_done / s.steps:>6.0%}{loss:>9}{speed:>11}{eta:>8}  {s.where}".rstrip()
        )
    return "\n".join([*lines, *told, _total(states, plan.later_macs)])


def _finals(study: Study, states: list[RunState]) -> tuple[dict[str, str], list[str]]:
    """What to say of the final loss of each running run, and of how it was found."""
    running = [s for s in states if s.state == "running"]
    if not running:
        return {}, []
    from scaling.analysis.laws.forecast import FEWEST_ERRORS
    from scaling.study.forecasts import forecast_of

    finished = [s for s in states if s.state == "finished"]
    final, few = {}, 0
    for s in running:
        alike = [study.run(f.run_id) for f in finished if f.role == s.role]
        others = [study.run(f.run_id) for f in finished if f.role != s.role]
        said = forecast_of(study.run(s.run_id), s.steps_done / s.steps, alike, others)
        if said is not None and said.runs >= FEWEST_ERRORS:
            final[s.run_id] = f"{said.loss:.3f} [{said.low:.3f}, {said.high:.3f}]"
        few += said is not None and said.runs < FEWEST_ERRORS
    told = []
    if final:
        told.append(
            "final: validation loss to expect at the end, with the errors of the same forecast of "
            "runs that have finished"
        )
    elif few:
        told.append(
            f"final losses are foretold once {FEWEST_ERRORS} runs have finished, whose errors make "
            f"the interval ({len(finished)} so far)"
        )
    return final, told


def left(study: Study) -> str:
    """Of a study's plan: runs by state, the MACs that are still to be trained, and of how many."""
    plan = study.plan()
    states, later = _states(study, plan, None), plan.later_macs
    planned = sum(s.macs for s in states) + later
    undone = planned - _done(states)
    line = f"{undone:.3g} of {planned:.3g} training MACs ({undone / planned:.0%}); runs: "
    line += ", ".join(f"{n} {state}" for state, n in Counter(s.state for s in states).items())
    return line + ", and those of the ladder that cannot be named yet" * bool(later)


def _done(states: list[RunState]) -> float:
    """MACs. A diverged run is at its end."""
    return sum(s.macs if s.state == "diverged" else s.macs_done for s in states)


def _total(states: list[RunState], later_macs: int) -> str:
    counts = Counter(s.state for s in states)
    planned = sum(s.macs for s in states) + later_macs
    done = _done(states)
    line = (
        f"{', '.join(f'{n} {state}' for state, n in counts.items())}; "
        f"{done:.3g} of {planned:.3g} training MACs ({done / planned:.0%})"
    )
    if later_macs:
        line += (
            f", {later_macs:.3g} of them in ladder runs that wait for the learning rate or for "
            f"losses"
        )
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


def _tail(path: Path) -> list[bytes]:
    """The last lines of a metrics file, of which the first may be cut."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().splitlines()
    except OSError:
        return []


def _records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Of lines of a metrics file; one that is cut, or is being written, is passed over."""
    for line in lines:
        try:
            record = json.loads(line)
            if "position" in record.keys():  # noqa: SIM118 (only a mapping has keys)
                yield record
        except (ValueError, AttributeError, RecursionError):
            continue


def _holder(lock: Path) -> str:
    """Who holds a run's lock, or ''. The holder empties the file when it leaves; a crash does not,
    so on this host the process is looked up."""
    held = files.holder(lock)
    if held is None:
        return ""
    if held["host"] == socket.gethostname() and not Path(f"/proc/{held['pid']}").exists():
        return ""
    return f"{held['host']}:{held['pid']}"
