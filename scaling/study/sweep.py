"""The learning-rate sweep: powers of two over several widths or depths. The one home of Optuna.

One driver asks and tells; one trial is one job is one run directory. Each member (a width, or a
depth) is an Optuna study of its own, since losses of different models do not compare, in one
journal file, which optuna-dashboard can read. The journal says what was asked; the run directories
hold the results: a trial that a crash left open is asked of its directory again, so nothing is
trained twice, and a journal that is lost costs nothing but its dates.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scaling.analysis.questions.best_rate import Trial
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.launch import Finished
from scaling.study.sweep_result import SweepResult, read_trials
from scaling.study_folder import RunFolder

if TYPE_CHECKING:
    import optuna

EXTENSIONS = 2  # octaves by which the grid may grow on each side when the best rate is on its edge


class Mapper(Protocol):
    """What the sweep needs of a Launcher."""

    def map(self, jobs: Iterator[Job[Any]]) -> Iterator[Finished[Any]]: ...


def decayed_loss(job: Job[Any]) -> float | None:
    """Validation loss of a finished run at its (last) decayed point; None where it diverged."""
    rows = RunFolder(job.run_dir).read()
    if rows is None:
        raise UserError(f"{job.run_dir}: has no rows although its job ended; run the study again")
    losses = [r["val_loss"] for r in rows if r["decayed"] and r["status"] == "finished"]
    return losses[-1] if losses else None


def has_rows(job: Job[Any]) -> bool:
    """Whether the run's rows are in its folder."""
    return RunFolder(job.run_dir).rows_json.exists()


def sweep_lr(
    make_job: Callable[[int, float], Job[Any]],
    members: Sequence[int],
    log2_min: int,
    log2_max: int,
    launcher: Mapper,
    journal: Path,
    *,
    sampler: str = "grid",
    axis: str = "width",
    each: bool = False,
    seed: int = 0,
    read_loss: Callable[[Job[Any]], float | None] = decayed_loss,
    has_result: Callable[[Job[Any]], bool] = has_rows,
) -> SweepResult:
    """Sweep the learning rate over every member; continues whatever the journal holds.

    Args:
        make_job: (member, rate) to a job; a pure function. Its run directory names the trial.
        members: d of the models, or their layers where `axis` is "depth".
        log2_min, log2_max: ends of the grid of powers of two, both included. The grid grows by one
            octave, at most EXTENSIONS times, on the side on whose edge the best rate lies.
        launcher: runs the jobs.
        journal: Optuna's journal file. The caller sees to it that one driver uses it at a time.
        sampler: "grid", or "tpe" or "gp" (a Gaussian process): as many trials a member as the grid
            has, continuous in log2(lr), asked in rounds of one trial a member, so that the order of
            completion changes nothing.
        axis: what `members` are: "width", or "depth" (layers).
        each: grow the grid until every member's own best rate lies inside it, not only their
            mean's.
        read_loss: a finished job's loss, None where it diverged.
        has_result: whether a job's result is in its folder; where it is gone the job is done again.
    Raises:
        UserError: a damaged journal; jobs that failed (the others are kept, and the same call
            tries only those again); no rate without divergence at every member.
    """
    ends = f"2^{log2_min}..2^{log2_max}"
    # One run's directory stands for all else that determines the numbers: trials of another
    # configuration are another study.
    names = {m: f"{axis} {m} {ends} {make_job(m, 2.0**log2_min).run_dir.name}" for m in members}
    board = Board(make_job, names, journal, seed, read_loss, has_result, axis)
    low, high = log2_min, log2_max
    if sampler != "grid":
        for count in range(1, log2_max - log2_min + 2):
            board.ask_up_to(count, low, high, launcher, sampler)
        return read_trials(board.trials(low, high), low, high, sampler, axis)
    while True:
        board.grid(range(low, high + 1), launcher)
        result = read_trials(board.trials(low, high), low, high, sampler, axis)
        best = {result.log2_lr} if result.on_edge else set()
        if each and low < high:
            best |= {result.lowest(member).log2_lr for member in members}
        if low in best and low > log2_min - EXTENSIONS:
            low -= 1
        elif high in best and high < log2_max + EXTENSIONS:
            high += 1
        else:
            return result


class Board:
    """The trials of every member, on disk."""

    def __init__(
        self,
        make_job: Callable[[int, float], Job[Any]],
        names: dict[int, str],
        journal: Path,
        seed: int,
        read_loss: Callable[[Job[Any]], float | None],
        has_result: Callable[[Job[Any]], bool],
        axis: str,
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.make_job, self.seed, self.read_loss = make_job, seed, read_loss
        self.has_result, self.axis = has_result, axis
        path = str(journal.resolve())
        repair(journal)
        Path(path + ".lock").unlink(missing_ok=True)  # of a killed driver: there is only one
        backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        storage = optuna.storages.JournalStorage(backend)
        there = {study.study_name for study in storage.get_all_studies()}
        self.studies = {
            member: (optuna.load_study if names[member] in there else optuna.create_study)(
                storage=storage, study_name=names[member], pruner=optuna.pruners.NopPruner()
            )
            for member in sorted(names)
        }
        self.failed: dict[tuple[int, float], str] = {}

    def grid(self, log2_lrs: Sequence[int], launcher: Mapper) -> None:
        """Bring every (member, rate) to a result."""
        from optuna.distributions import IntDistribution
        from optuna.trial import TrialState

        space = {"log2_lr": IntDistribution(min(log2_lrs), max(log2_lrs))}
        for study in self.studies.values():
            self._close_empty(study)
            live = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
            there = {_asked(t) for t in study.get_trials(deepcopy=False) if t.state in live}
            for log2_lr in log2_lrs:
                if log2_lr not in there:
                    study.enqueue_trial({"log2_lr": log2_lr})
        self._run(launcher, space, wanted=None)

    def ask_up_to(
        self, count: int, low: float, high: float, launcher: Mapper, sampler: str
    ) -> None:
        """Bring every member to `count` trials with a result, proposed by TPE or GP."""
        import optuna

        kind = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}[sampler]

        for study in self.studies.values():
            self._close_empty(study)
            # A sampler made anew from the same seed would propose the same start-up points again.
            trials = len(study.get_trials(deepcopy=False))
            study.sampler = kind(seed=(self.seed + trials) % 2**32, n_startup_trials=4)
        space = {"log2_lr": optuna.distributions.FloatDistribution(low, high)}
        self._run(launcher, space, wanted=count)

    def _run(self, launcher: Mapper, space: dict[str, Any], wanted: int | None) -> None:
        """Bring to a result what `_open` gives. Raises UserError, at the end, for what failed."""
        opened: dict[Path, tuple[int, float, int]] = {}

        def jobs() -> Iterator[Job[Any]]:
            for member, log2_lr, number in self._open(space, wanted):
                job = self.make_job(member, 2.0**log2_lr)
                opened[job.run_dir] = (member, log2_lr, number)
                yield job

        for finished in launcher.map(jobs()):
            self._settle(finished, *opened.pop(finished.job.run_dir))
        if self.failed:
            errors = [
                f"  {self.axis} {w}, lr 2^{p:g}: {e}" for (w, p), e in sorted(self.failed.items())
            ]
            raise UserError(
                f"learning-rate sweep: {len(errors)} runs failed; the others are kept. Mend the "
                f"cause and run the same command again, which trains only what is missing:\n"
                + "\n".join(errors)
            )

    def _open(self, space: dict[str, Any], wanted: int | None) -> Iterator[tuple[int, float, int]]:
        """(member, log2 of the rate, number) of open trials and those whose result is gone, then of
        waiting ones, then (with `wanted`) of new ones up to that count."""
        from optuna.trial import TrialState

        for member, study in self.studies.items():
            known = (TrialState.RUNNING, TrialState.COMPLETE)
            for trial in study.get_trials(deepcopy=False, states=known):
                log2_lr = trial.params["log2_lr"]
                there = self.has_result(self.make_job(member, 2.0**log2_lr))
                if trial.state == TrialState.RUNNING or not there:
                    yield member, log2_lr, trial.number

        def more(study: optuna.Study) -> bool:
            if wanted is None:
                return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
            there = (TrialState.COMPLETE, TrialState.RUNNING)
            return len(study.get_trials(deepcopy=False, states=there)) < wanted

        for member, study in self.studies.items():
            while more(study):
                asked = study.ask(fixed_distributions=space)
                yield member, asked.params["log2_lr"], asked.number

    def _settle(self, finished: Finished[Any], member: int, log2_lr: float, number: int) -> None:
        """Write a job's loss, or why it has none, into its trial."""
        from optuna.trial import TrialState

        study = self.studies[member]
        trial = study.get_trials(deepcopy=False)[number]
        trial_id, storage = trial._trial_id, study._storage
        again = trial.state == TrialState.COMPLETE  # its loss stands in the journal
        if finished.error is not None:
            self.failed[member, log2_lr] = finished.error
            if not again:
                storage.set_trial_user_attr(trial_id, "error", finished.error)
                study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            return
        self.failed.pop((member, log2_lr), None)
        if again:
            return
        loss = self.read_loss(finished.job)
        storage.set_trial_user_attr(trial_id, "run_id", finished.job.run_dir.name)
        storage.set_trial_user_attr(trial_id, "diverged", loss is None)
        study.tell(number, math.inf if loss is None else loss, skip_if_finished=True)

    def _close_empty(self, study: optuna.Study) -> None:
        """A crash between opening a trial and giving it its rate leaves one that names no job."""
        from optuna.trial import TrialState

        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "log2_lr" not in trial.params:
                study.tell(trial.number, state=TrialState.FAIL)

    def trials(self, low: float, high: float) -> list[Trial]:
        """What is known within [low, high] (log2), by member and rate."""
        from optuna.trial import TrialState

        found = {
            (member, t.params["log2_lr"]): Trial(member, t.params["log2_lr"], t.value)
            for member, study in self.studies.items()
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if t.value is not None and low <= t.params["log2_lr"] <= high
        }
        return [found[key] for key in sorted(found)]


def _asked(trial: Any) -> float | None:
    """The rate of a trial, also of one that waits in the queue."""
    fixed = trial.system_attrs.get("fixed_params", {})
    rate: float | None = trial.params.get("log2_lr", fixed.get("log2_lr"))
    return rate


def repair(journal: Path) -> bool:
    """Drop a last line that a crash tore; True when there was one.

    Raises UserError when a line before the last is damaged: then it was not a crash.
    """
    try:
        content = journal.read_bytes()
    except FileNotFoundError:
        return False
    lines = content.splitlines(keepends=True)
    whole = 0
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            json.loads(line)
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{journal}:{number}: not a line of Optuna's journal. Move the file away and "
                    f"run the study again: finished runs are found in their directories"
                ) from None
            os.truncate(journal, whole)
            return True
        whole += len(line)
    return False
