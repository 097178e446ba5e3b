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
from scaling.study.sweep_result import ROUNDING
from scaling.study_folder import Study
from scaling.training import points

if TYPE_CHECKING:
    from scaling.analysis.questions.settings import Settings

Say = Callable[[str], None]


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
    from scaling.study.sweep import search, sweep_lr

    asked = sweep.asked
    ladder, _ = plan.ladder_runs(config, 1.0, data.key, data.path)  # for their cost alone
    planned = sweeps(config)
    after = [
        run for later in planned[planned.index(sweep) + 1 :] for run in grid_runs(config, later)
    ]
    later_macs = sum(map(plan.path_macs, [*after, *ladder]))
    later_macs += plan.undecided_macs(config, ladder)
    runs: dict[str, RunConfig] = {}
    recorded = {entry["run_id"] for entry in study.plan().runs}

    def keep(made: list[RunConfig]) -> None:
        """Into the plan, before any of them is begun."""
        runs.update({run.run_id: run for run in made})
        if not runs.keys() <= recorded:
            record(study, [*before, *runs.values()], later_macs=later_macs)
            recorded.update(runs)

    def runs_of(setting: Setting, member: int, lr: float) -> list[RunConfig]:
        return [
            sweep_run(config, sweep, member, lr, data.key, data.path, setting, repeat)
            for repeat in range(asked.seeds)
        ]

    def jobs(setting: Setting, member: int, lr: float) -> list[Job[RunConfig]]:
        made = runs_of(setting, member, lr)
        keep(made)
        return [make_job(config, study, run) for run in made]

    def jobs_of_all(setting: Setting, lr: float) -> list[Job[RunConfig]]:
        made = [run for member in asked.members for run in runs_of(setting, member, lr)]
        keep(made)
        return [make_job(config, study, run) for run in made]

    todo: list[RunConfig] = []
    if asked.sampler == "grid":
        grid = grid_runs(config, sweep, data.key, data.path)
        keep(grid)
        todo = [r for r in grid if points.settle(study.run(r.run_id), r) is None]
        if todo:
            kind = (asked.parametrization or config.model.parametrization) + sweep.named
            of = f" at {len(sweep.settings)} settings" * bool(asked.over.given)
            say(f"lr sweep over {asked.axis}, {kind}{of}: {len(todo)} of {len(grid)} runs to train")
    with progress(study, say if todo or asked.searches else lambda _: None):
        if asked.searches:
            trials = search(
                jobs_of_all, asked.over.given, asked.log2_min, asked.log2_max, launcher,
                study.journal, sampler=asked.sampler, count=asked.count, seed=config.seed,
                name=runs_of((), asked.members[-1], 1.0)[0].run_id + f" {asked.members}"
                + f" x {asked.seeds}",
            )  # fmt: skip
        else:
            found = sweep_lr(
                jobs, asked.members, asked.log2_min, asked.log2_max, launcher, study.journal,
                settings=sweep.settings, sampler=asked.sampler, count=asked.count, axis=asked.axis,
                each=not sweep.of_ladder, seed=config.seed,
            )  # fmt: skip
    # In the order of the trials, and also those that an earlier call trained beyond the grid.
    runs.clear()
    unit = results.PATCH_UNIT if config.model.targets == "patches" else results.TOKEN_UNIT
    if asked.searches:
        for setting, log2_lr in trials:
            jobs_of_all(setting, 2.0**log2_lr)
        settings = compared(study, list(runs.values()))
        by_words = {words(setting): setting for setting, _ in trials}
        best = by_words[settings.taken]
        say("\n".join(settings.lines(unit)))
        log2_lr = round(ROUNDING * float(settings.table.log2_lr.iloc[0])) / ROUNDING
        return 2.0**log2_lr, best, list(runs.values())
    for setting, result in found.items():
        for trial in result.trials:
            jobs(setting, trial.member, 2.0**trial.log2_lr)
    best = next(iter(found))
    if asked.over.given and sweep.of_ladder:
        settings = compared(study, list(runs.values()))
        best = {words(setting): setting for setting in found}[settings.taken]
        say("\n".join(settings.lines(unit)))
    if sweep.of_ladder:
        say(found[best].summary(unit, sweep.named))
    return found[best].best_lr, best, list(runs.values())


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
