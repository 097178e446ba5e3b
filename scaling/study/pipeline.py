"""The pipeline: media -> tokens -> learning-rate sweep -> ladder -> rows -> law -> report.

Each step's result is a file that the next one reads, and each step is skipped when its result is
there, so the same command continues whatever was interrupted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import results
from scaling.config.run import RunConfig
from scaling.config.schema import StudyConfig, variant_studies
from scaling.config.study_file import describe
from scaling.data.encode import prepare
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.jobs.encode_jobs import on_cluster
from scaling.jobs.job import Job, train
from scaling.jobs.launch import Detached, Finished, Launcher, check, resources
from scaling.plan import cost
from scaling.plan import runs as plan
from scaling.plan.sweeps import sweeps
from scaling.storage import outputs, scratch
from scaling.storage.files import RunBusy, RunLock
from scaling.study import growth
from scaling.study.progress import teller
from scaling.study.rates import best_rates, make_job, progress, record
from scaling.study.rounds import ladders
from scaling.study_folder import RunFolder, Study, TokenFolder
from scaling.tracking import mlflow_copy
from scaling.training import points

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]


def run_study(
    config: StudyConfig,
    study: Study,
    *,
    say: Say = print,
    detach: bool = False,
    yes: bool = False,
) -> Path | None:
    """Take a study from its media to its report, or from wherever it stopped.

    Args:
        config: what is to be run.
        study: where; made if it is not there.
        detach: on Slurm, submit the runs that can be named now and return. The next call, with or
            without it, takes up what they left: the ladder waits for the sweep's learning rate.
        yes: start although the plan is beyond launch.max_macs or launch.max_gpu_hours.
    Returns:
        The path of report.html; None when it detached from jobs.
    Raises:
        UserError: another driver works on the study, over its budget, jobs that Slurm would refuse,
            unusable media, runs that failed, no law.
    """
    study.claim_to_run(config)
    study.check_version()
    if not (study.complete() and study.says(config)):
        check(config.launch, study.folder, detach=detach)
        guard(config, say, yes=yes)
        mlflow_copy.check(config.tracking.uri, say)
        cost.check_ladders(config)
    if not study.lock.exists():
        outputs.begin(study.folder)
    try:
        with RunLock(study.folder, study.lock.name):
            scratch.tidy(study.folder)
            page = _run_study(config, study, say, detach)
            scratch.sweep(study.jobs_dir)  # all went well: nothing is to be read of killed drivers
            return page
    except Detached as left:
        say(
            f"{left.jobs} jobs are in Slurm, {left.new} of them new, and go on by themselves. See "
            f"`scaling status {study} --watch`; run the same command again when they have ended"
        )
        return None
    except RunBusy as busy:
        raise UserError(
            f"study '{config.study}': {busy}. One driver works on a study at a time; watch it with "
            f"`scaling status {study}`"
        ) from None


def guard(config: StudyConfig, say: Say, *, yes: bool) -> None:
    """Raises UserError when the plan goes beyond the study's own limits and nobody said yes."""
    if config.launch.max_macs is None and config.launch.max_gpu_hours is None:
        return
    costs, _ = cost.study_cost(config, threads=1, measure=cost.must_time(config.launch), log=say)
    over = cost.over_budget(config.launch, costs)
    if over and not yes:
        raise UserError(
            f"study '{config.study}' is over its budget: {'; '.join(over)}. Nothing was started. "
            f"Plan a smaller study (`scaling plan` shows where it goes), raise the limit, or start "
            f"it nevertheless with --yes"
        )
    for line in over:
        say(f"over budget, started with --yes: {line}")


def _run_study(config: StudyConfig, study: Study, say: Say, detach: bool) -> Path:
    if not study.says(config):
        study.write(study.yaml, describe(config))
    choices = variant_studies(config)
    tokens: dict[str, TokenData] = {}
    for name, one in choices.items():
        tokens[name] = TokenData.open(encode(one, study, say))
        check_sources(one, tokens[name])
    with Launcher(config.launch, study.jobs_dir, train, detach=detach) as launcher:
        first = next(iter(tokens.values()))
        rates, setting, swept = best_rates(config, study, first, launcher, say)
        chosen = plan.with_setting(config, setting)
        places = bool(config.ladder and config.ladder.macs)
        rounds = (
            ladders(chosen, study, rates, first, say)
            if places
            else iter([listed(chosen, study, rates, tokens, say)])
        )
        runs, failed = swept, []
        for ladder in rounds:
            if places:  # the others' were looked at before the sweep
                check_sources(config, first, ladder)
            runs = [*swept, *ladder]
            record(study, runs, setting, later_macs=plan.undecided_macs(config, ladder))
            # The longest first, so that no place idles at the end.
            ladder.sort(key=plan.path_macs, reverse=True)
            for line in growth.take_over(study, ladder):
                say(line)
            jobs = [make_job(config, study, run) for run in ladder]
            if failed := train_ladder(study, jobs, launcher, say):
                break
        else:
            record(study, runs, setting)
    table = export(study)
    if failed:
        errors = "\n".join(
            f"  {f.job.payload.run_id} ({f.job.payload.model.name}): {f.error}" for f in failed
        )
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the others are kept. Mend the cause and "
            f"run the same command again, which trains only what is missing:\n{errors}"
        )
    path = conclude(config, study, first.path, table, say)
    say(f"rows    {study.rows_csv}\nreport  {path}")
    # Last: a tracking server that is down costs neither the law nor the report.
    mlflow_copy.sync(study, config.tracking.uri)
    return path


def listed(
    config: StudyConfig,
    study: Study,
    rates: dict[str, float],
    tokens: dict[str, TokenData],
    say: Say,
) -> list[RunConfig]:
    """The runs of a ladder of listed budgets, or of the variants."""
    of_variants: dict[str, list[str]] = {}
    asked: list[RunConfig] = []
    for name, one in variant_studies(config).items():
        given = one.ladder.log2_lr if one.ladder else None
        rate = rates if given is None else 2.0**given
        found, left = plan.ladder_runs(one, rate, tokens[name].key, tokens[name].path)
        for pair in left:
            say(f"left out: {pair.size} at {pair.budget_macs:.3g} MACs: {pair.rule}")
        of_variants[name] = [run.run_id for run in found]
        asked += found
    if config.variants:
        study.write(study.variants_json, json.dumps(of_variants, indent=1))
    return list(plan.united(asked).values())  # variants may share runs


def train_ladder(
    study: Study, jobs: list[Job[RunConfig]], launcher: Launcher[RunConfig], say: Say
) -> list[Finished[RunConfig]]:
    """Bring every run of the ladder to all its budgets; those that failed.

    Raises UserError where a job of an earlier session, asked for other budgets, is still at work.
    """
    failed: list[Finished[RunConfig]] = []
    for again in (False, True):  # what was in the cluster before may have been asked for less
        tried = {finished.job for finished in failed}
        todo = [j for j in jobs if j not in tried and unfinished(j)]
        if not todo:
            return failed
        grown = sum(bool(points.known(RunFolder(job.run_dir), job.payload)) for job in todo)
        say(
            f"ladder: {len(todo)} runs to train, {len(jobs) - len(todo)} finished before"
            + f"; {grown} of them go on from where they are" * bool(grown and not again)
        )
        with progress(study, say):
            for finished in launcher.map(todo):
                say(_outcome(finished))
                if finished.error:
                    failed.append(finished)
    tried = {finished.job for finished in failed}
    if left := [job.payload.run_id for job in jobs if job not in tried and unfinished(job)]:
        raise UserError(
            f"{', '.join(left)}: a job of an earlier session works on other budgets there; run the "
            f"same command again when it has ended"
        )
    return failed


def unfinished(job: Job[RunConfig]) -> bool:
    """Whether a run lacks anything that is asked of it, after its folder was settled."""
    return points.settle(RunFolder(job.run_dir), job.payload) is None


def encode(config: StudyConfig, study: Study, say: Say) -> Path:
    """Media to token shards; returns the data directory."""
    mapper = None
    if config.launch.cluster == "slurm":
        mapper = on_cluster(config.launch, study)
    data_dir = prepare(
        config.data,
        config.tokenizer,
        study.data_dir,
        seed=config.seed,
        progress=teller(lambda text: say(f"tokens: {text}")),
        workers=resources(config.launch)[0],
        mapper=mapper,
    )
    for line in not_whole(TokenFolder(data_dir).manifest):
        say(line)
    return data_dir


def check_sources(
    config: StudyConfig, data: TokenData, ladder: list[RunConfig] | None = None
) -> None:
    """Raises UserError where a run would need a source for a second time that may not repeat.

    ladder: its runs; None: those that are known before anything is trained.
    """
    if ladder is None:
        ladder, _ = plan.ladder_runs(config, 1.0, data.key, data.path)
    sequences = [run.budgets_steps[-1] * run.batch for run in ladder]
    sequences += [sweep.asked.steps * config.train.batch for sweep in sweeps(config)]
    passes = data.epochs(max(sequences, default=0), 1, config.seed)
    short = [
        f"{source.name}: {passes[source.name]:.3g} times"
        for source in config.data.sources
        if source.exhausted == "error" and passes[source.name] > 1
    ]
    if short:
        raise UserError(
            f"the longest run goes through sources that may not repeat (exhausted: error): "
            f"{'; '.join(short)}. Give them more data or a smaller weight, lower the budgets, or "
            f"set exhausted: repeat"
        )


def not_whole(manifest: Path, most: int = 8) -> list[str]:
    """Lines about the files that gave no tokens or not all of theirs; empty when all did."""
    with open(manifest, newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["status"] != "ok" or r["error"]]
    lines = [f"  {r['source']}: {r['path']}: {r['status']}: {r['error']}" for r in rows[:most]]
    if rows:
        lines.insert(0, f"tokens: {len(rows)} files were not used, or not whole (all: {manifest})")
    return lines


def _outcome(finished: Finished[RunConfig]) -> str:
    run = finished.job.payload
    if finished.error:
        return f"failed   {run.run_id} {run.model.name}: {finished.error.splitlines()[0]}"
    rows = RunFolder(finished.job.run_dir).read() or []
    points = ", ".join(f"{r['val_loss']:.4f}" for r in rows if r["decayed"])
    status = "diverged" if any(r["status"] == "diverged" for r in rows) else "finished"
    unit = results.loss_unit(r["tokenizer"] for r in rows)
    return f"{status} {run.run_id} {run.model.name}: {points} {unit}"


def export(study: Study) -> pd.DataFrame:
    """rows.csv of the study's runs; written only when it changes."""
    table = study.rows()
    study.write(study.rows_csv, table.to_csv(index=False))
    return table


def conclude(
    config: StudyConfig, study: Study, data_dir: Path, table: pd.DataFrame, say: Say
) -> Path:
    """What the rows say: whether the rate transfers, the law, and the page, whose path it is."""
    from scaling.analysis.questions.transfer import series_points, verdict_lines
    from scaling.study.page import law_and_page

    if config.transfer:
        unit = results.loss_unit(table.tokenizer)
        say("\n".join(verdict_lines(series_points(table), unit)))
    keep_positions(study, table)
    page, _ = law_and_page(config, study, data_dir, table, say)
    return page


def keep_positions(study: Study, table: pd.DataFrame) -> None:
    """Beside the report: the loss by token position of the ladder's best run (Figure 10)."""
    best = table[table.decayed & (table.role == "ladder")].sort_values("val_loss")
    for run_id, steps in zip(best.run_id, best.steps, strict=True):
        run = study.run(run_id)
        for there in (run.positions_json(steps), run.path / results.POSITIONS):  # of any version
            if there.is_file():
                study.write(study.positions_json, there.read_text())
                return
