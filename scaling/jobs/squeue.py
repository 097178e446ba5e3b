"""What Slurm is asked: would it take such jobs, what became of them, and to end them.

Each submission's folder lists its runs in RUNS, and its jobs carry the folder as their comment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.config.schema import LaunchConfig
from scaling.errors import UserError

RUNS = "runs.json"  # in a submission's folder: the run directory of each array task

ALIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"),
    *("RESV_DEL_HOLD", "POWER_UP_NODE", "EXPEDITING", "RECONFIG_FAIL", "UPDATE_DB"),
}
AT_ONCE = 1000  # job ids of one question: a word of a command line is at most 128 KiB
HELD = {"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}  # alive, until somebody acts


@dataclass(frozen=True)
class Entry:
    """What Slurm says of a job. `job_id` is submitit's: `123`, or `123_4` in an array."""

    job_id: str
    state: str
    node: str = ""
    reason: str = ""
    comment: str = ""


def tasks_per_node(launch: LaunchConfig) -> int:
    """What `extra: {ntasks-per-node: n}` says, else one process per GPU, one per node without."""
    extra = {name.replace("_", "-"): value for name, value in launch.extra.items()}
    return int(extra.get("ntasks-per-node", max(1, launch.gpus)))


def warning_seconds(launch: LaunchConfig) -> int:
    """How long before the time limit a job is warned: long enough for a step and a checkpoint."""
    return min(90, 15 * launch.timeout_min)


def flags(launch: LaunchConfig, threads: int) -> dict[str, Any]:
    """The `launch:` section in sbatch's words; `extra` has the last one."""
    wanted: dict[str, Any] = {
        "time": launch.timeout_min,
        "nodes": launch.nodes,
        "ntasks-per-node": tasks_per_node(launch),
        "cpus-per-task": threads,
        "gpus-per-node": launch.gpus or None,
        "mem": f"{launch.mem_gb}G" if launch.mem_gb else None,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        **{name.replace("_", "-"): value for name, value in launch.extra.items()},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def check(launch: LaunchConfig, threads: int) -> None:
    """Ask Slurm whether it would take such jobs. Raises UserError with Slurm's own words."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "launch.cluster is slurm, but there is no `sbatch` on this machine; run the study on a "
            "login node of the cluster, or with launch.cluster: local"
        )
    options = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in flags(launch, threads).items()
    ]
    asked = subprocess.run(
        ["sbatch", "--test-only", *options, "--wrap", "true"], capture_output=True, text=True
    )
    if asked.returncode:
        said = " ".join(asked.stderr.split())
        raise UserError(
            f"Slurm refuses the jobs of this study: {said} (asked with {' '.join(options)}). "
            f"Change the `launch:` section"
        )
    _check_time_limit(flags(launch, threads))


def _check_time_limit(wanted: dict[str, Any]) -> None:
    """Slurm takes a job with a limit above its partition's, and then never starts it."""
    named = str(wanted.get("partition") or "").split(",")
    limits = {}
    for line in ask(["sinfo", "-h", "-o", "%P|%l"]):
        name, _, limit = line.partition("|")
        if name.rstrip("*") in named or (named == [""] and name.endswith("*")):
            limits[name.rstrip("*")] = limit
    asked = minutes(str(wanted["time"])) or 0
    most = [minutes(limit) for limit in limits.values()]
    if limits and all(limit is not None and limit < asked for limit in most):
        shown = ", ".join(f"'{name}' ({limit})" for name, limit in limits.items())
        raise UserError(
            f"launch.timeout_min {asked:g} is above the time limit of partition {shown}; lower it "
            f"(jobs save, requeue and continue, so a short limit costs little)"
        )


def minutes(text: str) -> float | None:
    """A time limit in Slurm's words (`90`, `5:00`, `1-00:00:00`, `infinite`) in minutes."""
    days, dash, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        if dash:  # days-hours[:minutes[:seconds]]
            hours, mins, seconds = [*parts, 0, 0][:3]
            return int(days) * 1440 + hours * 60 + mins + seconds / 60
    except ValueError:
        return None
    if len(parts) == 3:
        return parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + (parts[1] / 60 if len(parts) == 2 else 0)


def queue() -> list[Entry]:
    """This user's jobs as slurmctld knows them, those that ended lately too. Raises UserError."""
    shown = ask(["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%N|%r|%k"])
    return [Entry(*line.split("|", 4)) for line in shown if line.count("|") >= 4]


def history(job_ids: list[str]) -> list[Entry]:
    """What the accounting knows of jobs that slurmctld forgot; empty without accounting."""
    if not job_ids or shutil.which("sacct") is None:
        return []
    command = ["sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList", "-j"]
    entries = []
    for k in range(0, len(job_ids), AT_ONCE):
        for line in ask([*command, ",".join(job_ids[k : k + AT_ONCE])], empty_on_failure=True):
            job_id, state, node = [*line.split("|"), "", ""][:3]
            if state:
                entries.append(Entry(job_id, state.split()[0], node))  # 'CANCELLED by 1000'
    return entries


def ask(command: list[str], *, empty_on_failure: bool = False) -> list[str]:
    """The lines that one of Slurm's commands prints. Raises UserError where it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within 60 s") from None
    except FileNotFoundError:
        raise UserError(f"there is no `{command[0]}` on this machine") from None
    except OSError as error:  # no process can be started, say
        raise UserError(f"{command[0]}: {error.strerror}") from None
    if answer.returncode:
        if empty_on_failure:
            return []
        raise UserError(f"{command[0]}: {' '.join(answer.stderr.split())}")
    return answer.stdout.splitlines()


def entries(folder: Path) -> dict[Path, Entry]:
    """Run directory -> its live job, for the submissions below a jobs folder. Raises UserError."""
    found = {}
    for entry in queue():
        batch = Path(entry.comment)
        if entry.state not in ALIVE or batch.parent != folder.resolve():
            continue
        try:
            run_dirs = json.loads((batch / RUNS).read_text())
        except (OSError, ValueError):
            continue  # a folder that someone removed: its jobs cannot be told apart
        _, _, task = entry.job_id.partition("_")
        found[Path(run_dirs[int(task or 0)])] = entry
    return found


def job_logs(folder: Path, run_dir: Path) -> list[Path]:
    """What Slurm and submitit wrote about a run's jobs, the newest last: for a job that died before
    its run could write a log."""
    found = []
    for listing in folder.glob(f"*/{RUNS}"):
        try:
            held = json.loads(listing.read_text())  # where they were when they were submitted
            index = [Path(there).name for there in held].index(Path(os.path.realpath(run_dir)).name)
        except (OSError, ValueError):
            continue
        logs = [p for p in listing.parent.glob("*_log.err") if _task(p) == index]
        found += [log for log in logs if log.stat().st_size]
    return sorted(found, key=lambda p: p.stat().st_mtime)


def _task(log: Path) -> int:
    """Of `123_4_0_log.err` 4; of a job that is no array, `123_0_log.err`, 0."""
    parts = log.name.removesuffix("_log.err").split("_")
    return int(parts[1]) if len(parts) == 3 else 0


def cancel(folder: Path) -> int:
    """End every live job of a jobs folder; returns how many there were. Raises UserError."""
    job_ids = sorted(entry.job_id for entry in entries(folder).values())
    for k in range(0, len(job_ids), AT_ONCE):
        ask(["scancel", *job_ids[k : k + AT_ONCE]])
    return len(job_ids)
