"""Commands that look after a study: logs, cancel, sync, doctor. Imports are lazy."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Annotated

import typer

from scaling.errors import UserError

FolderArg = Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")]


def logs(
    run: Annotated[Path, typer.Argument(help="A run's folder: studies/x/runs/RUN_ID.")],
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 40,
) -> None:
    """Print the end of a run's log.

    Example: `scaling logs studies/quickstart/runs/0a1b2c3d4e5f`
    """
    from scaling.launch import LOG, tail

    if not (run / LOG).exists():
        raise UserError(f"{run}: no log here; `scaling status` lists the runs of a study")
    print(tail(run / LOG, lines))


def cancel(folder: FolderArg) -> None:
    """Stop a study's driver and its jobs at their next step; `scaling study` continues them.

    Example: `scaling cancel studies/quickstart`
    """
    from scaling.config import load_study

    config = load_study(folder / "study.yaml")
    try:
        holder = json.loads((folder / "driver.lock").read_text())
    except (OSError, ValueError):
        holder = None
    if holder and holder["host"] == socket.gethostname():
        try:
            os.kill(holder["pid"], signal.SIGINT)
            print(f"asked driver {holder['pid']} to stop")
        except ProcessLookupError:
            holder = None
    elif holder:
        print(f"the driver runs on {holder['host']} (process {holder['pid']}); stop it there")
    if config.launch.cluster == "slurm":
        from scaling.slurm import cancel as cancel_jobs

        print(f"cancelled {cancel_jobs(folder / 'jobs')} Slurm jobs")
    elif not holder:
        print("nothing runs")


def sync(folder: FolderArg) -> None:
    """Send to MLflow what it does not hold yet: after its server was down, or its database lost.

    Example: `scaling sync studies/quickstart`
    """
    from scaling import track
    from scaling.config import load_study

    config = load_study(folder / "study.yaml")
    print(f"sent {track.sync(folder, config.tracking.uri, force=True)} runs")


def doctor(
    folder: FolderArg,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what loses nothing.")] = False,
) -> None:
    """Check a study's directory: leftovers of crashes, damaged rows, drifted configs, disk space.

    Example: `scaling doctor studies/quickstart`
    """
    from scaling.doctor import examine

    findings = examine(folder, repair=repair)
    for finding in findings:
        print(finding)
    open_ones = sum(not f.repaired for f in findings)
    print(
        f"{len(findings)} findings, {len(findings) - open_ones} repaired" if findings else "sound"
    )
    if open_ones:
        raise typer.Exit(1)
