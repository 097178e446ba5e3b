"""Is a study's directory sound? Finds what crashes, full disks and hands can leave behind.

Repairs only what loses nothing, and only while no driver works on the study; everything else is
said with its remedy. Runs need no doctor to continue: this is for looking before trusting.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaling.config.run import SCHEMA, RunConfig
from scaling.errors import UserError
from scaling.storage.files import HALF, RunBusy, RunLock, held
from scaling.study_folder import RunFolder, Study
from scaling.tracking import mlflow_copy
from scaling.training import points

LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. `repaired` says what was done, or is empty."""

    where: str
    what: str
    remedy: str
    repaired: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.repaired or self.remedy}"


def examine(study: Study, *, repair: bool = False) -> list[Finding]:
    """Everything that is wrong with a study's directory; an empty list for a sound one.

    Args:
        study: its folder.
        repair: mend what can be mended without loss.
    Raises:
        UserError: not a study's directory, or (with `repair`) a driver works on it.
    """
    if not study.yaml.is_file():
        raise UserError(f"{study}: not a study's folder (it has no {study.yaml.name})")
    lock = study.lock
    at_work = held(lock)
    orphaned = not at_work and lock.exists() and bool(lock.read_text().strip())
    first = [_orphaned(lock.name, repair)] if orphaned else []
    if not repair:
        return [*first, *_findings(study, mend=False, at_work=at_work)]
    try:
        with RunLock(study.folder, lock.name):  # which empties it in the end
            return [*first, *_findings(study, mend=True, at_work=False)]
    except RunBusy as busy:
        raise UserError(f"{busy}; look without --repair, or repair when it has ended") from None


def _orphaned(where: str, mended: bool) -> Finding:
    remedy = "It holds nobody up: the next start takes it"
    return Finding(where, "its holder is gone", remedy, "Emptied" if mended else "")


def _findings(study: Study, *, mend: bool, at_work: bool) -> Iterator[Finding]:
    free = shutil.disk_usage(study.folder).free
    if free < LEAST_FREE_BYTES:
        yield Finding(
            str(study), f"only {free / 1e6:.0f} MB are free on its device", "Free some space"
        )
    planned: set[str] = set()
    try:
        study.check_version()
        planned = {entry["run_id"] for entry in study.plan().runs}
    except UserError as error:
        yield Finding(study.plan_json.name, str(error), "See there")
    if not at_work:
        yield from _leftovers(study.folder, "", mend)
        yield from _journal(study.journal, mend)
    yield from _jobs(study, planned)
    strangers = []
    for run in study.run_folders():
        yield from _run(run, mend)
        if planned and run.path.name not in planned and not _older(run):
            strangers.append(run.path.name)
    if strangers:
        yield Finding(
            study.runs_dir.name,
            f"{len(strangers)} runs are not of the study as it is configured now "
            f"({', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''})",
            "They stay out of its plan and law; remove them if you do not want them back",
        )
    yield from _tracking(study)


def _run(there: RunFolder, mend: bool) -> Iterator[Finding]:
    run_dir, lock = there.path, there.lock
    name = f"{run_dir.parent.name}/{run_dir.name}"
    busy = held(lock)
    if lock.exists() and lock.read_text().strip() and not busy:
        if mend:
            lock.write_text("")
        yield _orphaned(f"{name}/{lock.name}", mend)
    if busy:
        return  # at work: what follows may be changing
    yield from _leftovers(run_dir, f"{name}/", mend)
    for damaged in sorted(run_dir.glob("*.damaged")):
        yield Finding(
            f"{name}/{damaged.name}",
            "a damaged file that was set aside; its predecessor was used",
            "Remove it when it is of no use",
        )
    about = f"{name}/{there.config_yaml.name}"
    try:
        run = RunConfig.from_yaml(there.config_yaml)
    except UserError as error:
        if there.rows_json.exists() or there.checkpoint.exists():
            yield Finding(
                f"{name}/{there.config_yaml.name}", str(error), "Remove the run's directory"
            )
        return
    if run.schema != SCHEMA:
        yield Finding(
            name,
            f"written with schema {run.schema}, this version writes {SCHEMA}",
            "Its rows are not mixed with new ones; the study trains it again under a new name. "
            "Read the old table with the version that wrote it",
        )
        return
    if _older(there):
        yield Finding(
            name,
            "of a version that named a run by its budgets too",
            f"Its finished points are taken over as {run.run_id}, where the study asks for the "
            f"same budgets; then it is of use to that version alone",
        )
    elif run.run_id != run_dir.name:
        yield Finding(
            about,
            f"describes run {run.run_id}: it was edited, or the directory renamed",
            f"Rename the directory to {run.run_id}, or remove it to train it again",
        )
    yield from _rows(there, run, name, mend)


def _older(there: RunFolder) -> bool:
    """Whether a version whose runs did not grow made a run's folder."""
    try:
        run = RunConfig.from_yaml(there.config_yaml)
    except UserError:
        return False
    return run.grows and run.fixed_id == there.path.name


def _leftovers(folder: Path, where: str, mend: bool) -> Iterator[Finding]:
    for leftover in sorted([*folder.glob(f".*{HALF}*"), *folder.glob(".writable.*")]):
        repaired = ""
        if mend:
            leftover.unlink(missing_ok=True)
            repaired = "Removed"
        yield Finding(
            f"{where}{leftover.name}", "a write that a crash cut short", "Use --repair", repaired
        )


def _jobs(study: Study, planned: set[str]) -> Iterator[Finding]:
    """Live cluster jobs of runs that the study has no use for any more."""
    from scaling.jobs.squeue import RUNS, entries

    submitted = any(study.jobs_dir.glob(f"*/{RUNS}"))  # never, where a study is local
    if not submitted or shutil.which("squeue") is None:
        return

    try:
        live = entries(study.jobs_dir)
    except UserError as error:
        yield Finding(
            study.jobs_dir.name, f"Slurm was not asked ({error})", "Try again when it answers"
        )
        return
    strangers = [
        job.job_id
        for run_dir, job in live.items()
        if run_dir.parent.name == study.runs_dir.name and run_dir.name not in planned
    ]
    if planned and strangers:
        yield Finding(
            study.jobs_dir.name,
            f"{len(strangers)} live jobs train runs that are not of the study as it is configured "
            f"now ({', '.join(strangers[:5])}{', ...' if len(strangers) > 5 else ''})",
            f"End them: scancel {' '.join(strangers[:20])}",
        )


def _rows(there: RunFolder, run: RunConfig, name: str, mend: bool) -> Iterator[Finding]:
    where = f"{name}/{there.rows_json.name}"
    has_points = there.points_json.exists()
    has_state = has_points or there.checkpoint.exists()
    if has_points:
        try:
            points.known(there, run)
        except UserError as error:
            yield Finding(f"{name}/{there.points_json.name}", str(error), "See there")
    try:
        rows = there.read()
    except UserError as error:
        repaired = ""
        if mend and has_state:
            there.rows_json.rename(there.path / f"{there.rows_json.name}.damaged")
            source = there.points_json if has_points else there.checkpoint
            repaired = f"Set aside: the next run of the study makes it from {source.name}"
        yield Finding(
            where,
            str(error),
            "Use --repair" if has_state else "Remove the directory to train the run again",
            repaired,
        )
        return
    if rows is None:
        return
    if any(row.get("run_id") != there.path.name for row in rows):
        yield Finding(where, "holds rows of another run", "Remove the directory")
    if run.grows and not there.trunks():
        yield Finding(
            name,
            "has rows but no state of its trunk",
            "The rows count; only a budget that is added would have to start from nothing",
        )


def _journal(journal: Path, mend: bool) -> Iterator[Finding]:
    """The same rules as scaling.study.sweep, without importing Optuna."""
    lock = journal.with_name(journal.name + ".lock")
    if lock.exists():
        if mend:
            lock.unlink(missing_ok=True)
        remedy = "The next run of the study removes it"
        yield Finding(lock.name, "of a driver that is gone", remedy, "Removed" if mend else "")
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        whole = content.rfind(b"\n") + 1
        repaired = ""
        if mend:
            with open(journal, "r+b") as file:
                file.truncate(whole)
            repaired = "Dropped"
        yield Finding(
            journal.name,
            f"its last line ({len(content) - whole} bytes) is torn",
            "The next run of the study drops it",
            repaired,
        )


def _tracking(study: Study) -> Iterator[Finding]:
    try:
        uri = study.config().tracking.uri
    except UserError as error:
        remedy = "Give the study's own file to `scaling study` again, which writes it anew"
        yield Finding(study.yaml.name, str(error).splitlines()[0], remedy)
        return
    try:
        missing = mlflow_copy.unsent(study, uri)
    except (OSError, UserError):
        return  # plan.json, which is named above
    if missing:
        yield Finding(
            "mlflow",
            f"{len(missing)} finished runs have not been sent",
            "Run `scaling sync`, or the study again",
        )
