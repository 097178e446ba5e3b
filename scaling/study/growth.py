"""A study that grows: what a changed configuration leaves to be trained, and what an earlier
version of the tool left that is taken over."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from scaling import results
from scaling.analysis.schema import words
from scaling.config.run import RunConfig
from scaling.config.schedule import length, segments
from scaling.config.schema import StudyConfig, variant_studies
from scaling.errors import UserError
from scaling.models.family import named, shape
from scaling.plan import runs as plan
from scaling.plan.sweeps import grid_runs, sweeps
from scaling.storage import files
from scaling.study.status import run_states, trunk_step
from scaling.study_folder import RunFolder, Study
from scaling.training import points


def steps_left(folder: RunFolder, run: RunConfig) -> int:
    """Of what is asked of a run, the steps that are still to be done."""
    done = points.ended(run, points.known(folder, run))
    return length(segments(run, done, [*folder.trunks(), trunk_step(folder)]))


def left_of(config: StudyConfig, study: Study) -> str:
    """What a configuration other than the study's own leaves to be trained there: of what was
    trained, all that the two share is kept."""
    before = study.config()
    if (plan.data_of(before), before.seed) != (plan.data_of(config), config.seed):
        return (
            f"not known, for {study} was begun with other values than these, and its tokens are "
            f"others (data, tokenizer or seed): all of it is trained anew"
        )
    if config.ladder and config.ladder.macs:
        return (
            f"not known: the ladder places its own runs by the losses of those before. Runs that "
            f"{study} has and that it decides on again are not trained twice"
        )
    entries = study.plan().runs
    swept = {entry["run_id"] for entry in entries if entry["role"] == "lr_sweep"}
    found_rates: dict[str, set[float]] = {}  # by shape: of the rates that sweeps found
    for entry in entries:
        if entry["role"] == "ladder":
            found_rates.setdefault(shape(named(entry["size"])), set()).add(entry["log2_lr"])
    rates = {one: 2.0 ** min(powers) for one, powers in found_rates.items() if len(powers) == 1}
    given = [one.ladder.log2_lr for one in variant_studies(config).values() if one.ladder]
    key = _data_key(study)
    if key is None:
        return f"all of it, for no run of {study} was begun"
    found = {run.run_id for sweep in sweeps(config) for run in grid_runs(config, sweep, key)}
    needed = {sweep.shape for sweep in sweeps(config) if sweep.of_ladder}
    settings = config.lr.over.settings() if config.lr and None in given else [()]
    chosen = {words(setting): setting for setting in settings}.get(study.plan().setting)
    if not found <= swept or chosen is None or (None in given and not needed <= rates.keys()):
        return (
            f"not known, for {study} was begun with other values than these, and the learning rate "
            f"of the ladder is to be found first"
        )
    asked: list[RunConfig] = []
    for one in variant_studies(plan.with_setting(config, chosen)).values():
        rate = one.ladder.log2_lr if one.ladder else None
        runs, _ = plan.ladder_runs(one, rates if rate is None else 2.0**rate, key, Path())
        asked += runs
    undone = planned = 0.0
    states: Counter[str] = Counter()
    for run in plan.united(asked).values():
        steps, whole = steps_left(study.run(run.run_id), run), length(segments(run))
        a_step = plan.step_macs(run.model, run.batch)
        undone, planned = undone + steps * a_step, planned + whole * a_step
        states["finished" if not steps else "new" if steps == whole else "to go on"] += 1
    for state in run_states(study):
        if state.run_id in found:
            planned, undone = planned + state.macs, undone + state.macs - state.macs_done
            states["finished" if state.state in ("finished", "diverged") else "to go on"] += 1
    told = ", ".join(f"{count} {what}" for what, count in states.items())
    return f"{undone:.3g} of {planned:.3g} training MACs ({undone / planned:.0%}); runs: {told}"


def _data_key(study: Study) -> str | None:
    """Of the tokens that the planned runs are trained on."""
    for entry in study.plan().runs:
        held = study.run(entry["run_id"]).config_yaml
        if held.is_file():
            return RunConfig.from_yaml(held).data_key
    return None


def take_over(study: Study, runs: Iterable[RunConfig]) -> Iterator[str]:
    """Make the folders of runs that an earlier version trained, under the names that it gave them.

    A decayed point is the same arithmetic in both. Mid-schedule evaluations lay where the budgets
    put them and are left out; there is no state of the trunk to go on from. Yields sentences.
    """
    taken = anew = 0
    for run in runs:
        new, old = study.run(run.run_id), study.run(run.fixed_id)
        if not run.grows or new.path.exists() or not old.config_yaml.is_file():
            continue
        rows = [row for row in old.read() or [] if row["decayed"]]
        whole = {row["steps"] for row in rows} == set(run.budgets_steps)
        if whole and RunConfig.from_yaml(old.config_yaml).fixed_id == old.path.name:
            _take(old, new, run, [row | {"run_id": run.run_id} for row in rows])
            taken += 1
        else:
            anew += 1
    if taken:
        yield (
            f"{taken} runs of an earlier version are taken over with their decayed points (its "
            f"mid-schedule evaluations lay elsewhere, and are left out); its folders stay as they "
            f"are"
        )
    if anew:
        yield (
            f"{anew} runs that an earlier version began are trained anew: what it left of them "
            f"cannot be gone on from"
        )


def _take(old: RunFolder, new: RunFolder, run: RunConfig, rows: list[results.Row]) -> None:
    half = RunFolder(new.path.with_name(f".{new.path.name}{files.HALF}"))
    shutil.rmtree(half.path, ignore_errors=True)
    half.path.mkdir()
    points.write(half, rows)
    files.write(half.config_yaml, run.to_yaml())
    last = len(run.budgets_steps) - 1
    for budget, steps in enumerate(run.budgets_steps):
        held = old.checkpoint if budget == last else old.weights(budget)  # numbered, there
        if held.is_file() and not list(old.path.glob(f"{held.name}.shards-*")):
            _link(held, half.weights(steps))
    if old.metrics.is_file():
        shutil.copyfile(old.metrics, half.metrics)
    try:
        record = files.read_json(old.path / results.POSITIONS, dict)
        record["run_id"] = run.run_id
        files.write(half.positions_json(run.budgets_steps[-1]), json.dumps(record))
    except (OSError, ValueError, UserError):
        pass  # of patches there is none
    os.replace(half.path, new.path)


def _link(held: Path, to: Path) -> None:
    try:
        os.link(held, to)
    except OSError:  # a file system without
        shutil.copyfile(held, to)
