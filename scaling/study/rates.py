"""The learning rates, and the setting, of a study's ladder: its sweeps, one after another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scaling import results
from scaling.analysis.schema import Setting, words
from scaling.config.run import RunConfig
from scaling.config.schema import StudyConfig
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.launch import Launcher
from scaling.plan import cost
from scaling.plan import runs as plan
from scaling.plan.sweeps import Sweep, grid_runs, sweep_run, sweeps
from scaling.study.progress import Progress
from scaling.study.sweep_result import ROUNDING, SweepResult
from scaling.study_folder import Study
from scaling.training import points

if TYPE_CHECKING:
    from scaling.analysis.questions.settings import Settings

Say = Callable[[str], None]
Found = SweepResult | list[tuple[int, float]]  # of a setting: its sweep, or (member, log2 rate)


def best_rates(
    config: StudyConfig, study: Study, data: TokenData, launcher: Launcher[RunConfig], say: Say
) -> tuple[dict[str, float], Setting, list[RunConfig]]:
    """The learning rate of each shape of the ladder and its setting, by sweeps, and their runs."""
    rates: dict[str, float] = {}
    setting: Setting = ()
    runs: list[RunConfig] = []
    for sweep in sweeps(config):
        rate, best, trained = run_sweep(config, sweep, study, data, launcher, say, runs)
        runs += trained
        if sweep.of_ladder:
            rates[sweep.shape] = rate
            setting = best or setting
    return rates, setting, runs


class _Work:
    """One sweep at work: its runs, in the plan before any of them is begun."""

    def __init__(
        self,
        config: StudyConfig,
        sweep: Sweep,
        study: Study,
        data: TokenData,
        before: list[RunConfig],
    ) -> None:
        self.config, self.sweep, self.study, self.data = config, sweep, study, data
        self.before = before
        self.runs: dict[str, RunConfig] = {}
        self.recorded = {entry["run_id"] for entry in study.plan().runs}
        ladder, _ = plan.ladder_runs(config, 1.0, data.key, data.path)  # for their cost alone
        planned = sweeps(config)
        later = planned[planned.index(sweep) + 1 :]
        after = [run for one in later for run in grid_runs(config, one)]
        self.later_macs = sum(map(plan.path_macs, [*after, *ladder]))
        self.later_macs += plan.undecided_macs(config, ladder)

    def keep(self, made: list[RunConfig]) -> list[Job[RunConfig]]:
        """Their jobs."""
        self.runs.update({run.run_id: run for run in made})
        if not self.runs.keys() <= self.recorded:
            record(self.study, [*self.before, *self.runs.values()], later_macs=self.later_macs)
            self.recorded.update(self.runs)
        return [make_job(self.config, self.study, run) for run in made]

    def runs_of(self, setting: Setting, member: int, lr: float) -> list[RunConfig]:
        key, path = self.data.key, self.data.path
        return [
            sweep_run(self.config, self.sweep, member, lr, key, path, setting, repeat)
            for repeat in range(self.sweep.asked.seeds)
        ]

    def jobs(self, setting: Setting, member: int, lr: float) -> list[Job[RunConfig]]:
        """Of every seed."""
        return self.keep(self.runs_of(setting, member, lr))

    def jobs_of_all(self, setting: Setting, lr: float) -> list[Job[RunConfig]]:
        """Of every member and seed."""
        members = self.sweep.asked.members
        return self.keep([run for m in members for run in self.runs_of(setting, m, lr)])

    def begin(self, say: Say) -> bool:
        """Plan what is known beforehand and tell of it; whether anything is left to train."""
        asked = self.sweep.asked
        if asked.sampler != "grid":
            return asked.searches
        grid = grid_runs(self.config, self.sweep, self.data.key, self.data.path)
        self.keep(grid)
        todo = [r for r in grid if points.settle(self.study.run(r.run_id), r) is None]
        if todo:
            kind = (asked.parametrization or self.config.model.parametrization) + self.sweep.named
            of = f" at {len(self.sweep.settings)} settings" * bool(asked.over.given)
            say(f"lr sweep over {asked.axis}, {kind}{of}: {len(todo)} of {len(grid)} runs to train")
        return bool(todo)


def run_sweep(
    config: StudyConfig,
    sweep: Sweep,
    study: Study,
    data: TokenData,
    launcher: Launcher[RunConfig],
    say: Say,
    before: list[RunConfig],
) -> tuple[float, Setting, list[RunConfig]]:
    """One sweep: the rate and the setting that are best, and its runs; `before`: those of the
    sweeps before it."""
    work, asked = _Work(config, sweep, study, data, before), sweep.asked
    with progress(study, say if work.begin(say) else lambda _: None):
        found = _searched(work, launcher) if asked.searches else _swept(work, launcher)
    # In the order of the trials, and also those that an earlier call trained beyond the grid.
    work.runs.clear()
    for setting, result in found.items():
        for member, log2_lr in result if isinstance(result, list) else _asked(result):
            work.jobs(setting, member, 2.0**log2_lr)
    runs = list(work.runs.values())
    unit = results.PATCH_UNIT if config.model.targets == "patches" else results.TOKEN_UNIT
    best, log2_lr = next(iter(found)), 0.0
    if asked.over.given:
        settings = compared(study, runs)
        best = {words(setting): setting for setting in found}[settings.taken]
        log2_lr = round(ROUNDING * float(settings.table.log2_lr.iloc[0])) / ROUNDING
        say("\n".join(settings.lines(unit)))
    of_best = found[best]
    if isinstance(of_best, list):
        return 2.0**log2_lr, best, runs
    if sweep.of_ladder:
        say(of_best.summary(unit, sweep.named))
    return of_best.best_lr, best, runs


def _asked(result: SweepResult) -> list[tuple[int, float]]:
    return [(trial.member, trial.log2_lr) for trial in result.trials]


def _swept(work: _Work, launcher: Launcher[RunConfig]) -> dict[Setting, Found]:
    """By setting what its sweep of the rate says."""
    from scaling.study.sweep import sweep_lr

    asked = work.sweep.asked
    found = sweep_lr(
        work.jobs, asked.members, asked.log2_min, asked.log2_max, launcher, work.study.journal,
        settings=work.sweep.settings, sampler=asked.sampler, count=asked.count, axis=asked.axis,
        each=not work.sweep.of_ladder, seed=work.config.seed,
    )  # fmt: skip
    return dict(found)


def _searched(work: _Work, launcher: Launcher[RunConfig]) -> dict[Setting, Found]:
    """By setting the members and rates at which a sampler tried it."""
    from scaling.study.sweep import search

    asked = work.sweep.asked
    one = work.runs_of((), asked.members[-1], 1.0)[0].run_id  # stands for the rest of the study
    trials = search(
        work.jobs_of_all, asked.over.given, asked.log2_min, asked.log2_max, launcher,
        work.study.journal, sampler=asked.sampler, count=asked.count, seed=work.config.seed,
        name=f"{one} {asked.members} x {asked.seeds}",
    )  # fmt: skip
    found: dict[Setting, Found] = {}
    for setting, log2_lr in trials:
        held = found.setdefault(setting, [])
        assert isinstance(held, list)
        held += [(member, log2_lr) for member in asked.members]
    return found


def compared(study: Study, runs: list[RunConfig]) -> Settings:
    """The settings of these runs beside one another. Raises UserError: none without divergence."""
    from scaling.analysis.questions.settings import compare

    rows: list[Any] = [row for run in runs for row in study.run(run.run_id).read() or []]
    found = compare(results.frame(rows))
    if found is None or found.table.val_loss.isin([float("inf")]).all():
        raise UserError(
            "learning-rate sweep: no setting and rate gave a finite loss at every model; lower "
            "lr.log2_min"
        )
    return found


def make_job(config: StudyConfig, study: Study, run: RunConfig) -> Job[RunConfig]:
    """The job that trains a run in its directory, with as many GPUs as it needs."""
    return Job(run, study.run(run.run_id).path, cost.gpus_of(config.launch, run))


def record(
    study: Study, runs: list[RunConfig], setting: Setting = (), *, later_macs: int = 0
) -> None:
    """Write plan.json. setting: that the sweep chose. later_macs: of runs not named yet."""
    once = list({run.run_id: run for run in runs}.values())  # two sweeps may share a run
    macs = [plan.path_macs(run) for run in once]
    study.write_plan(once, macs, later_macs=later_macs, setting=setting)


def progress(study: Study, say: Say) -> Progress:
    """Lines about the study while work goes on: live on a terminal."""
    return Progress(study, say, live=sys.stderr.isatty())
