"""The learning-rate sweep: powers of two over several widths or depths. The one home of Optuna.

One driver asks and tells; a trial is a job of each seed, and a job is one run directory. Each
member (a width, or a depth) at each setting is an Optuna study of its own, since losses of
different models do not compare, in one journal file, which optuna-dashboard can read. Where a
sampler chooses settings and rate together there is one study, whose trials train every member.
The journal says what was asked; the run directories hold the results: a trial that a crash left
open is asked of its directories again, so nothing is trained twice, and a journal that is lost
costs nothing but its dates.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scaling.analysis.questions.best_rate import Trial
from scaling.analysis.schema import Setting, words
from scaling.config.over import Range
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.launch import Finished
from scaling.study.sweep_result import ROUNDING, SweepResult, read_trials
from scaling.study_folder import RunFolder

if TYPE_CHECKING:
    import optuna

Place = tuple[int, int]  # number of a setting, and a member
Asked = Mapping[str, Any]  # of a trial: log2_lr, and what a sampler chose beside it
Opened = tuple[Place, Asked, int]  # with the trial's number

ROUND = 4  # trials of a search that are asked before any of them is told
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
    make_jobs: Callable[[Setting, int, float], Sequence[Job[Any]]],
    members: Sequence[int],
    log2_min: int,
    log2_max: int,
    launcher: Mapper,
    journal: Path,
    *,
    settings: Sequence[Setting] = ((),),
    sampler: str = "grid",
    count: int | None = None,
    axis: str = "width",
    each: bool = False,
    seed: int = 0,
    read_loss: Callable[[Job[Any]], float | None] = decayed_loss,
    has_result: Callable[[Job[Any]], bool] = has_rows,
) -> dict[Setting, SweepResult]:
    """Sweep the learning rate over every member at every setting; continues whatever the journal
    holds. A setting that diverged at every rate of a member is left out, unless they all did.

    Args:
        make_jobs: (setting, member, rate) to a job of each seed; a pure function. The directory of
            the first names the trial.
        members: d of the models, or their layers where `axis` is "depth".
        log2_min, log2_max: ends of the grid of powers of two, both included. The grid of a setting
            grows by one octave, at most EXTENSIONS times, on the side on whose edge its best rate
            lies.
        launcher: runs the jobs.
        journal: Optuna's journal file. The caller sees to it that one driver uses it at a time.
        settings: each with a sweep of its own, all at once; [()]: the study's own.
        sampler: "grid", or "tpe" or "gp" (a Gaussian process): `count` trials a member, continuous
            in log2(lr), asked in rounds of one trial a member, so that the order of completion
            changes nothing.
        count: None: as many as the grid has rates.
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
    places = [(k, m) for k in range(len(settings)) for m in sorted(members)]

    def jobs_of(place: Place, asked: Asked) -> Sequence[Job[Any]]:
        return make_jobs(settings[place[0]], place[1], 2.0 ** asked["log2_lr"])

    def name(place: Place) -> str:
        # One run's directory stands for all else that determines the numbers: trials of another
        # configuration are another study.
        jobs = jobs_of(place, {"log2_lr": log2_min})
        several = f" x {len(jobs)}" * (len(jobs) > 1)
        return f"{axis} {place[1]} {ends} {jobs[0].run_dir.name}{several}"

    def told(place: Place, asked: Asked) -> str:
        at = f"{words(settings[place[0]])}, " if settings[place[0]] else ""
        return f"{at}{axis} {place[1]}, lr 2^{asked['log2_lr']:g}"

    board = Board(jobs_of, {p: name(p) for p in places}, told, journal, seed, read_loss, has_result)

    def result(k: int, low: int, high: int) -> SweepResult:
        trials = [
            Trial(place[1], asked["log2_lr"], loss)
            for place, asked, loss in board.trials()
            if place[0] == k and low <= asked["log2_lr"] <= high
        ]
        trials.sort(key=lambda t: (t.member, t.log2_lr))
        return read_trials(trials, low, high, sampler, axis)

    if sampler == "grid":
        found = _of_grids(board, len(settings), log2_min, log2_max, launcher, result, each)
        return {settings[k]: found[k] for k in sorted(found)}
    for number in range(1, (count or log2_max - log2_min + 1) + 1):
        board.ask_up_to(number, _rates(log2_min, log2_max), launcher, sampler)
    return {setting: result(k, log2_min, log2_max) for k, setting in enumerate(settings)}


def _of_grids(
    board: Board,
    count: int,
    log2_min: int,
    log2_max: int,
    launcher: Mapper,
    result: Callable[[int, int, int], SweepResult],
    each: bool,
) -> dict[int, SweepResult]:
    """What the grids of so many settings say, by number, after they have grown as far as they need.

    result: of a setting's number between two ends. each: of `sweep_lr`.
    Raises UserError where no setting has a rate without divergence at every member.
    """
    bounds = dict.fromkeys(range(count), (log2_min, log2_max))
    found: dict[int, SweepResult] = {}
    hopeless: list[UserError] = []
    left = list(bounds)
    while left:
        board.grid(
            {p: range(bounds[p[0]][0], bounds[p[0]][1] + 1) for p in board.studies}, launcher
        )
        for k in list(left):
            low, high = bounds[k]
            try:
                one = result(k, low, high)
            except UserError as error:  # it diverged everywhere
                hopeless.append(error)
                left.remove(k)
                continue
            best = {one.log2_lr} if one.on_edge else set()
            if each and low < high:
                best |= {one.lowest(optimum.member).log2_lr for optimum in one.optima}
            if low in best and low > log2_min - EXTENSIONS:
                bounds[k] = low - 1, high
            elif high in best and high < log2_max + EXTENSIONS:
                bounds[k] = low, high + 1
            else:
                found[k] = one
                left.remove(k)
    if not found:
        raise hopeless[0]
    return found


def search(
    make_jobs: Callable[[Setting, float], Sequence[Job[Any]]],
    over: Mapping[str, tuple[int | float, ...] | Range],
    log2_min: int,
    log2_max: int,
    launcher: Mapper,
    journal: Path,
    *,
    sampler: str,
    count: int,
    name: str,
    seed: int = 0,
    read_loss: Callable[[Job[Any]], float | None] = decayed_loss,
    has_result: Callable[[Job[Any]], bool] = has_rows,
) -> list[tuple[Setting, float]]:
    """Let TPE or GP choose settings and rate together; continues whatever the journal holds.

    A trial trains every member and seed, and its value is their mean loss. Trials are asked in
    rounds of ROUND, none of which knows of the others of its round, so that the order of completion
    and a crash change nothing.

    Args:
        make_jobs: (setting, rate) to a job of each member and seed; a pure function.
        over: of `Over.given`.
        count: trials.
        name: of the search: all but `over` and the ends that determines its numbers.
    Returns:
        (setting, log2 of the rate) of every trial, in order.
    Raises:
        UserError: as `sweep_lr`.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    space: dict[str, Any] = {"log2_lr": FloatDistribution(log2_min, log2_max, step=1 / ROUNDING)}
    for key, tried in over.items():
        if not isinstance(tried, Range):
            space[key] = CategoricalDistribution(tried)
        elif key == "warmup_steps":
            space[key] = IntDistribution(int(tried.min), int(tried.max), log=tried.log)
        else:
            space[key] = FloatDistribution(tried.min, tried.max, log=tried.log)

    def jobs_of(_: Place, asked: Asked) -> Sequence[Job[Any]]:
        return make_jobs(_setting(asked, over), 2.0 ** asked["log2_lr"])

    def told(_: Place, asked: Asked) -> str:
        return f"{words(_setting(asked, over))}, lr 2^{asked['log2_lr']:g}"

    one = (0, 0)
    whole = f"{sampler} {name} 2^{log2_min}..2^{log2_max} {space}"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    names = {one: f"{', '.join(over)} by {sampler} {digest}"}
    board = Board(jobs_of, names, told, journal, seed, read_loss, has_result)
    for number in range(ROUND, count + ROUND, ROUND):
        board.ask_up_to(min(number, count), space, launcher, sampler)
    return [(_setting(asked, over), asked["log2_lr"]) for _, asked, _ in board.trials()]


def _setting(asked: Asked, over: Iterable[str]) -> Setting:
    """The values of a trial, to three digits: finer than any sweep can tell apart."""
    values = ((key, asked[key]) for key in over)
    return tuple((k, v if isinstance(v, int) else float(f"{v:.3g}")) for k, v in values)


def _rates(low: float, high: float) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    return {"log2_lr": FloatDistribution(low, high)}


class Board:
    """The trials of every place, on disk. A place is a setting and a member."""

    def __init__(
        self,
        jobs_of: Callable[[Place, Asked], Sequence[Job[Any]]],
        names: dict[Place, str],
        told: Callable[[Place, Asked], str],
        journal: Path,
        seed: int,
        read_loss: Callable[[Job[Any]], float | None],
        has_result: Callable[[Job[Any]], bool],
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.jobs_of, self.told, self.seed = jobs_of, told, seed
        self.read_loss, self.has_result = read_loss, has_result
        path = str(journal.resolve())
        repair(journal)
        Path(path + ".lock").unlink(missing_ok=True)  # of a killed driver: there is only one
        backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        storage = optuna.storages.JournalStorage(backend)
        there = {study.study_name for study in storage.get_all_studies()}
        self.studies = {
            place: (optuna.load_study if names[place] in there else optuna.create_study)(
                storage=storage, study_name=names[place], pruner=optuna.pruners.NopPruner()
            )
            for place in sorted(names)
        }
        self.failed: dict[tuple[Place, int], str] = {}

    def grid(self, log2_lrs: Mapping[Place, Sequence[int]], launcher: Mapper) -> None:
        """Bring every rate of every place to a result."""
        from optuna.distributions import IntDistribution
        from optuna.trial import TrialState

        spaces: dict[Any, dict[str, Any]] = {
            place: {"log2_lr": IntDistribution(min(powers), max(powers))}
            for place, powers in log2_lrs.items()
        }
        for place, study in self.studies.items():
            self._close_empty(study, ["log2_lr"])
            live = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
            there = {_rate_of(t) for t in study.get_trials(deepcopy=False) if t.state in live}
            for log2_lr in log2_lrs[place]:
                if log2_lr not in there:
                    study.enqueue_trial({"log2_lr": log2_lr})

        def more(study: optuna.Study) -> bool:
            return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

        def opened() -> Iterator[Opened]:
            yield from self._known()
            for place, study in self.studies.items():
                while more(study):
                    asked = study.ask(fixed_distributions=spaces[place])
                    yield place, asked.params, asked.number

        self._run(opened(), launcher)

    def ask_up_to(self, count: int, space: dict[str, Any], launcher: Mapper, sampler: str) -> None:
        """Bring every place to `count` trials with a result, proposed by TPE or GP."""
        import optuna
        from optuna.trial import TrialState

        kind = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}[sampler]
        there = (TrialState.COMPLETE, TrialState.RUNNING)
        opened = []
        for place, study in self.studies.items():
            self._close_empty(study, space)
            while (held := len(study.get_trials(deepcopy=False, states=there))) < count:
                # A sampler made anew from the same seed would propose the same points again.
                study.sampler = kind(
                    seed=(self.seed + held) % 2**32, n_startup_trials=4 * len(space)
                )
                asked = study.ask(fixed_distributions=space)
                opened.append((place, asked.params, asked.number))
        asked_now = {(place, number) for place, _, number in opened}
        before = [one for one in self._known() if (one[0], one[2]) not in asked_now]
        self._run(iter([*before, *opened]), launcher)

    def _run(self, trials: Iterator[Opened], launcher: Mapper) -> None:
        """Bring trials to a result. Raises UserError, at the end, for what failed."""
        waiting: dict[Path, list[Opened]] = {}  # two trials may share a job
        undone: dict[tuple[Place, int], set[Path]] = {}

        def jobs() -> Iterator[Job[Any]]:
            for trial in trials:
                made = self.jobs_of(trial[0], trial[1])
                undone[trial[0], trial[2]] = {job.run_dir for job in made}
                for job in made:
                    others = waiting.setdefault(job.run_dir, [])
                    others.append(trial)
                    if len(others) == 1:
                        yield job

        errors: dict[tuple[Place, int], str] = {}
        for finished in launcher.map(jobs()):
            for place, asked, number in waiting.pop(finished.job.run_dir):
                if finished.error is not None:
                    errors[place, number] = finished.error
                undone[place, number].discard(finished.job.run_dir)
                if not undone[place, number]:
                    self._settle(place, asked, number, errors.get((place, number)))
        if self.failed:
            lines = [f"  {error}" for _, error in sorted(self.failed.items())]
            raise UserError(
                f"learning-rate sweep: {len(lines)} runs failed; the others are kept. Mend the "
                f"cause and run the same command again, which trains only what is missing:\n"
                + "\n".join(lines)
            )

    def _known(self) -> Iterator[Opened]:
        """Open trials, and those whose result is gone."""
        from optuna.trial import TrialState

        known = (TrialState.RUNNING, TrialState.COMPLETE)
        for place, study in self.studies.items():
            for trial in study.get_trials(deepcopy=False, states=known):
                jobs = self.jobs_of(place, trial.params)
                if trial.state == TrialState.RUNNING or not all(map(self.has_result, jobs)):
                    yield place, trial.params, trial.number

    def _settle(self, place: Place, asked: Asked, number: int, error: str | None) -> None:
        """Write the mean loss of a trial's jobs, or why it has none, into it."""
        from optuna.trial import TrialState

        study = self.studies[place]
        trial = study.get_trials(deepcopy=False)[number]
        trial_id, storage = trial._trial_id, study._storage
        again = trial.state == TrialState.COMPLETE  # its loss stands in the journal
        if error is not None:
            self.failed[place, number] = f"{self.told(place, asked)}: {error}"
            if not again:
                storage.set_trial_user_attr(trial_id, "error", error)
                study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            return
        if again:
            return
        jobs = self.jobs_of(place, asked)
        losses = [self.read_loss(job) for job in jobs]
        whole = [loss for loss in losses if loss is not None]
        diverged = len(whole) < len(losses)
        run_ids = " ".join(job.run_dir.name for job in jobs)
        storage.set_trial_user_attr(trial_id, "run_id", run_ids)
        storage.set_trial_user_attr(trial_id, "diverged", diverged)
        mean = math.inf if diverged else math.fsum(whole) / len(whole)
        study.tell(number, mean, skip_if_finished=True)

    def _close_empty(self, study: optuna.Study, names: Iterable[str]) -> None:
        """A crash between opening a trial and giving it its values leaves one that names no job."""
        from optuna.trial import TrialState

        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not set(names) <= set(trial.params):
                study.tell(trial.number, state=TrialState.FAIL)

    def trials(self) -> list[tuple[Place, Asked, float]]:
        """What is known: by place and, of one, in the order of asking; each point once."""
        from optuna.trial import TrialState

        found: dict[Any, tuple[Place, Asked, float]] = {}
        for place, study in self.studies.items():
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                if t.value is not None:
                    found[place, tuple(sorted(t.params.items()))] = (place, t.params, t.value)
        return list(found.values())


def _rate_of(trial: Any) -> float | None:
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
