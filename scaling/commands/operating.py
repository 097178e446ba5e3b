"""Commands that look after a study: status, logs, cancel, sync, doctor. Imports are lazy."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.study_folder import Study

FolderArg = Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")]


def status(
    folder: FolderArg,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
) -> None:
    """Show every run of a study: state, progress, speed, time left, loss, the final loss to expect
    of a running one (once three have finished), and where it runs.

    Example: `scaling status studies/quickstart --watch`
    """
    from scaling.study.status import text
    from scaling.study_folder import Study

    study = Study.open(folder)
    while True:
        jobs, said = _slurm_jobs(study)
        shown = text(study, jobs) + (f"\n{said}" if said else "")
        print(("\033[2J\033[H" if watch else "") + shown, flush=True)
        if not watch:
            return
        time.sleep(2 if jobs is None else 10)  # Slurm's controller is everybody's


def _slurm_jobs(study: Study) -> tuple[dict[Path, Any] | None, str]:
    """The live jobs of a study that runs on Slurm; None when there is nobody to ask, and why."""
    if not study.yaml.is_file():
        return None, ""
    from scaling.jobs.squeue import entries

    try:
        if study.config().launch.cluster != "slurm":
            return None, ""
        return entries(study.jobs_dir), ""
    except UserError as error:
        return None, f"Slurm was not asked: {error}"


def logs(
    run: Annotated[Path, typer.Argument(help="A run's folder: studies/x/runs/RUN_ID.")],
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 40,
) -> None:
    """Print the end of a run's log; where it has none, what its Slurm jobs said.

    Example: `scaling logs studies/quickstart/runs/0a1b2c3d4e5f`
    """
    from scaling.jobs.job import tail
    from scaling.jobs.squeue import job_logs
    from scaling.study_folder import RunFolder

    there = RunFolder(Path(os.path.realpath(run)))
    if there.log.exists():
        print(tail(there.log, lines))
        return
    of_jobs = job_logs(there.study().jobs_dir, run)
    if not of_jobs:
        raise UserError(f"{run}: no log here; `scaling status` lists the runs of a study")
    print(f"{of_jobs[-1]}:\n{tail(of_jobs[-1], lines)}")


def cancel(folder: FolderArg) -> None:
    """Stop a study's driver and its jobs at their next step; `scaling study` continues them.

    Example: `scaling cancel studies/quickstart`
    """
    from scaling.storage import files
    from scaling.study_folder import Study

    study = Study.open(folder)
    config = study.config()
    holder = None
    if files.held(study.lock):  # else a number in it may be anybody's by now
        holder = files.holder(study.lock)
    if holder and holder["host"] == socket.gethostname():
        try:
            os.kill(holder["pid"], signal.SIGINT)
            print(f"asked driver {holder['pid']} to stop")
        except ProcessLookupError:
            holder = None
    elif holder:
        print(f"the driver runs on {holder['host']} (process {holder['pid']}); stop it there")
    if config.launch.cluster == "slurm":
        from scaling.jobs.squeue import cancel as cancel_jobs

        print(f"cancelled {cancel_jobs(study.jobs_dir)} Slurm jobs")
    elif not holder:
        print("nothing runs")


def sync(folder: FolderArg) -> None:
    """Send to MLflow what it does not hold yet: after its server was down, or its database lost.

    Example: `scaling sync studies/quickstart`
    """
    from scaling.storage.files import RunBusy, RunLock
    from scaling.study_folder import Study
    from scaling.tracking import mlflow_copy

    study = Study.open(folder)
    config = study.config()
    try:
        with RunLock(folder, study.lock.name):  # two at once would send a run twice
            sent = mlflow_copy.sync(study, config.tracking.uri, force=True)
    except RunBusy as busy:
        raise UserError(f"{busy}, which sends what is missing when it ends") from None
    print(f"sent {sent} runs")


def doctor(
    folder: FolderArg,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what loses nothing.")] = False,
) -> None:
    """Check a study's directory: leftovers of crashes, damaged rows, drifted configs, disk space.

    Example: `scaling doctor studies/quickstart`
    """
    from scaling.study.doctor import examine
    from scaling.study_folder import Study

    findings = examine(Study(folder), repair=repair)
    for finding in findings:
        print(finding)
    open_ones = sum(not f.repaired for f in findings)
    print(
        f"{len(findings)} findings, {len(findings) - open_ones} repaired" if findings else "sound"
    )
    if open_ones:
        raise typer.Exit(1)
