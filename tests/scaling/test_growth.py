"""A run that grows: budgets in any order, in any number of calls, interrupted anywhere, end bitwise
where a run ends that was planned so from the start. (Whole studies: tests/growth.py.)"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.checkpoint import Interrupted, StopFlag
from scaling.config.run import RunConfig
from scaling.config.schedule import branch, evaluation_steps, segments
from scaling.errors import UserError
from scaling.plan.runs import step_macs, united
from scaling.results import NOT_REPEATABLE, Row, dumps
from scaling.study.growth import steps_left, take_over
from scaling.study_folder import RunFolder, Study
from scaling.training import points
from scaling.training.train import train

BUDGETS = (25, 33, 45, 75, 120)  # steps; they branch at 20, 26, 36, 60 and 96


class Steps(StopFlag):
    """Counts the steps, and asks for a stop after so many."""

    def __init__(self, most: float = float("inf")) -> None:
        super().__init__()
        self.done, self.most = 0, most

    def __bool__(self) -> bool:
        self.done += 1
        return self.done >= self.most


def asked(run: RunConfig, *budgets: int) -> RunConfig:
    macs = tuple(nominal(run, steps) for steps in budgets)
    return dataclasses.replace(run, evals=8, budgets_steps=budgets, budgets_macs=macs)


def nominal(run: RunConfig, steps: int) -> float:
    return 1.001 * steps * step_macs(run.model, run.batch)


def repeatable(rows: list[Row] | None) -> list[Row]:
    return [
        {k: v for k, v in row.items() if k not in (*NOT_REPEATABLE, "git_sha")}
        for row in rows or []
    ]


def quiet(text: str) -> None:
    """Training's log is not what these tests look at."""


def trained(run: RunConfig, path: Path) -> tuple[list[Row], int]:
    """Rows, and the steps that they took."""
    steps = Steps()
    rows = train(run, path, stop=steps, log=quiet)
    return repeatable(rows), steps.done


@pytest.fixture
def planned(run: RunConfig, once: Callable[..., Path]) -> Callable[..., list[Row]]:
    """The rows of a run that was planned with these budgets from the start."""

    def make(folder: Path, *budgets: int) -> None:
        train(asked(run, *budgets), folder, log=quiet)

    def planned(*budgets: int) -> list[Row]:
        name = f"planned-{'-'.join(map(str, budgets))}"
        return repeatable(RunFolder(once(name, lambda out: make(out, *budgets))).read())

    return planned


def test_only_the_new_stretch_is_trained(
    run: RunConfig, planned: Callable[..., list[Row]], tmp_path: Path
) -> None:
    """[25, 45, 75] and then 120 steps: from the branch of 75, step 60, to 120. A budget between is
    its way from the branch below; one that is taken away is gone, and back, for nothing."""
    for budgets, steps in (
        ((25, 45, 75), 60 + 5 + 9 + 15),
        ((25, 45, 75, 120), 120 - 60),
        ((25, 33, 45, 75, 120), 33 - 20),
        ((45, 120), 0),
        ((25, 45, 75), 0),
    ):
        now = asked(run, *budgets)
        assert steps_left(RunFolder(tmp_path), now) == steps
        assert trained(now, tmp_path) == (planned(*budgets), steps)
    assert now.run_id == asked(run, *BUDGETS).run_id, "one run, whatever is asked of it"


def test_a_run_that_does_not_grow_goes_on_from_its_branch_too(
    run: RunConfig, tmp_path: Path
) -> None:
    single = dataclasses.replace(asked(run, 25, 45), role="single")
    assert not single.grows and trained(single, tmp_path)[1] == 36 + 5 + 9


@pytest.mark.parametrize("seed", range(2))
def test_any_order_with_interruptions_is_bitwise(
    run: RunConfig, planned: Callable[..., list[Row]], tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    for _ in range(5):
        budgets = sorted(draw.sample(BUDGETS, draw.randint(1, 3)))
        try:
            stop = Steps(draw.randint(1, 60))
            rows = train(asked(run, *budgets), tmp_path, stop=stop, log=quiet)
        except Interrupted:
            assert RunConfig.from_yaml(tmp_path / "config.yaml") == asked(run, *budgets)
            continue
        assert repeatable(rows) == planned(*budgets)
    assert trained(asked(run, *BUDGETS), tmp_path)[0] == planned(*BUDGETS)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [(x["branch"], x["step"], "val_loss" in x) for x in lines]
    assert len(set(told)) == len(told), "no step is logged twice"


def test_what_is_on_the_trunk_does_not_depend_on_the_budgets(run: RunConfig) -> None:
    every = evaluation_steps(asked(run, *BUDGETS))
    for some in ((25,), (25, 45), (33, 120)):
        last = branch(run, some[-1])
        assert evaluation_steps(asked(run, *some)) == {step for step in every if step <= last}
    cosine = dataclasses.replace(run, schedule="cosine", budgets_steps=(75,), budgets_macs=(3e6,))
    assert not cosine.grows and cosine.run_id == cosine.fixed_id
    sweep = dataclasses.replace(run, role="lr_sweep")
    assert sweep.run_id != dataclasses.replace(sweep, budgets_steps=(75,)).run_id
    both = united([asked(run, 25, 45), asked(run, 45, 120)])
    assert [r.budgets_steps for r in both.values()] == [(25, 45, 120)]


def test_a_stretch_begins_at_the_nearest_state(run: RunConfig) -> None:
    wanted = asked(run, 25, 75)  # they branch at 20 and 60
    plan = [(s.start, s.end, s.cooldown) for s in segments(wanted, ended={25}, kept={20, 36, 61})]
    assert plan == [(36, 60, False), (60, 75, True)]
    assert segments(wanted, ended={25, 75}) == []


def diverged(row: Row, run: RunConfig, step: int, budget: int) -> Row:
    macs = row["macs_total"] // row["steps"] * step
    new = {"steps": step, "macs_total": macs, "decayed": False, "val_loss": None}
    return row | new | {"status": "diverged", "budget_macs": nominal(run, budget)}


def test_a_divergence_belongs_to_its_budget_or_to_the_trunk(
    run: RunConfig, planned: Callable[..., list[Row]]
) -> None:
    rows = planned(25, 45, 75)
    early = [row for row in rows if row["steps"] <= 45]
    of_trunk = [*early, diverged(rows[0], run, 50, 75)]
    assert points.ended(asked(run, *BUDGETS), of_trunk) == {25, 45, 75, 120}
    assert points.chosen(asked(run, 25, 120), of_trunk)[-1]["budget_macs"] == nominal(run, 120)
    assert points.chosen(asked(run, 25, 45), of_trunk)[-1]["status"] == "finished"
    of_budget = [*early, diverged(rows[0], run, 70, 75)]
    assert points.ended(asked(run, *BUDGETS), of_budget) == {25, 45, 75}
    assert [r["status"] for r in points.chosen(asked(run, 75), of_budget)][-1] == "diverged"
    assert all(r["status"] == "finished" for r in points.chosen(asked(run, 45), of_budget))


@pytest.fixture
def grown(run: RunConfig, tmp_path: Path) -> RunFolder:
    train(asked(run, 25, 45), tmp_path / "grown", log=quiet)
    return RunFolder(tmp_path / "grown")


def test_files_that_were_damaged_or_changed(
    run: RunConfig, planned: Callable[..., list[Row]], grown: RunFolder
) -> None:
    wanted = asked(run, 25, 45)
    intact = grown.points_json.read_text()
    rows = json.loads(grown.rows_json.read_text())
    grown.rows_json.write_text(json.dumps([row | {"val_loss": 1.0} for row in rows]))
    assert repeatable(points.settle(grown, wanted)) == planned(25, 45), "made from points.json"
    grown.points_json.write_text(intact.replace('"steps": 25', '"steps": 26'))
    with pytest.raises(UserError, match=r"points.json: damaged, or changed by hand \(its checksum"):
        train(wanted, grown.path, log=quiet)
    grown.points_json.unlink()
    grown.rows_json.unlink()
    assert trained(wanted, grown.path) == (planned(25, 45), 5 + 9), "the cooldowns alone"
    grown.trunk(36).write_bytes(b"torn")
    assert trained(asked(run, 25, 45, 75), grown.path) == (planned(25, 45, 75), 75 - 20)
    config = grown.config_yaml.read_text()
    grown.config_yaml.write_text(config.replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match=r"holds run .* its config.yaml was changed"):
        points.settle(grown, asked(run, 25, 45, 75))


def test_what_an_earlier_version_left_is_taken_over(
    run: RunConfig, planned: Callable[..., list[Row]], grown: RunFolder, tmp_path: Path
) -> None:
    """It named a run by its budgets too, kept the last weights in checkpoint.pt, no trunk."""
    study, wanted = Study(tmp_path), asked(run, 25, 45)
    old = study.run(wanted.fixed_id)
    old.path.mkdir(parents=True)
    rows = [row | {"run_id": wanted.fixed_id} for row in grown.read() or []]
    old.rows_json.write_text(dumps(rows))
    old.config_yaml.write_text(wanted.to_yaml())
    grown.weights(25).rename(old.weights(0))
    grown.weights(45).rename(old.checkpoint)
    before = {path: path.read_bytes() for path in old.path.iterdir()}
    (said,) = take_over(study, [wanted])
    assert "1 runs of an earlier version are taken over with their decayed points" in said
    new = study.run(wanted.run_id)
    decayed = [row for row in planned(25, 45) if row["decayed"]]
    assert repeatable(points.settle(new, wanted)) == decayed
    assert new.weights(25).is_file() and new.weights(45).is_file() and new.finished
    assert {path: path.read_bytes() for path in old.path.iterdir()} == before
    assert trained(asked(run, 25, 45, 75), new.path) == (planned(25, 45, 75), 75)
    assert not list(take_over(study, [wanted])), "once"
