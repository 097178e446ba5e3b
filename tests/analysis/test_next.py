"""The next runs: the budget is spent where it helps, and the promised interval is what comes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.design import Candidates, Plan, choose, variance
from scaling.analysis.questions.next import expanded, fitted, next_runs
from scaling.analysis.questions.simulate import PURE, TRUTH, Truth, study
from scaling.analysis.tables.ladder import Ladder
from scaling.tracking.load import load

DESIGN: dict[str, Any] = dict(sizes=8, budgets=5, trunks=False, run_noise=0.0)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return study(TRUTH, **DESIGN, seed=1)


@pytest.fixture(scope="module")
def plan(rows: pd.DataFrame) -> Plan:
    return next_runs(rows, 1e14)


def test_the_design_is_the_best_of_all_subsets() -> None:
    """A line through the origin's neighbours: every multiset of candidates is tried."""
    from itertools import combinations_with_replacement

    x = np.array([-1.0, -0.4, 0.3, 0.9, 2.0])
    candidates = Candidates(
        np.stack([np.ones(5), x], 1),
        cost=np.array([1.0, 1.5, 2.0, 3.0, 6.0]),
        count=np.ones(5, int),
    )
    information, direction = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([0.0, 1.0])

    def left(chosen: list[int]) -> float:
        g = candidates.gradient[chosen]
        return variance(information + g.T @ g, direction)

    for budget in (4.0, 7.0, 9.0, 14.0):
        every = [
            list(some)
            for k in range(1, 5)
            for some in combinations_with_replacement(range(5), k)
            if candidates.cost[list(some)].sum() <= budget
        ]
        found = choose(candidates, information, direction, budget, 4)
        assert left(found) == pytest.approx(min(map(left, every)), rel=1e-9), budget


def test_the_budget_is_spent_and_not_exceeded(plan: Plan) -> None:
    assert 0.8 * 1e14 <= plan.macs <= 1e14 * (1 + 1e-9)
    assert plan.count <= 8 and plan.law == "parametric"
    runs = plan.runs
    assert (runs["macs_total"] / (3 * runs["params"] * runs["tokens"])).to_numpy() == pytest.approx(
        1
    )
    assert plan.expected is not None
    assert np.ptp(plan.expected) < 0.85 * np.ptp(plan.now)
    assert plan.expected[0] < plan.estimate < plan.expected[1]


def test_a_plan_is_text_and_json(plan: Plan) -> None:
    assert json.loads(json.dumps(plan.to_json()))["expected"] == list(plan.expected or ())
    said = str(plan)
    assert "of 1e+14 MACs" in said and "expect       [" in said and "narrows" in said


def test_where_no_surface_is_identified_a_new_budget_has_sizes_about_the_best() -> None:
    rows = study(PURE, seed=1)
    plan = next_runs(rows, 1e14)
    assert plan.law == "power" and "not identified" in plan.reason
    assert plan.macs >= 0.8e14
    new = plan.runs[plan.runs["size"] == "new"]
    for _, group in new.groupby("budget_macs"):
        budget = float(group["budget_macs"].iloc[0])
        assert len(group) == 3 and budget > rows["budget_macs"].max()
        assert group["params"].min() < float(PURE.n_opt(budget)) < group["params"].max()


@pytest.mark.parametrize(
    ("truth", "design", "target"),
    [(TRUTH, DESIGN, None), (TRUTH, DESIGN, 1.5e14), (PURE, {"sizes": 7}, None)],
    ids=["L(N, D), exponent", "L(N, D), loss", "law of compute, exponent"],
)
def test_the_promise_is_kept(truth: Truth, design: dict[str, Any], target: float | None) -> None:
    """The runs, done at the truth: the interval that comes is about the one promised (of 40
    studies a kind: benchmarks/next_promise.py)."""
    ratios = []
    for seed in range(3):
        rows = study(truth, **design, seed=seed)
        plan = next_runs(rows, 1e14, target=target, seed=seed)
        assert plan.expected is not None
        runs = plan.runs.loc[plan.runs.index.repeat(plan.runs["seeds"])]
        noise = np.hypot(design.get("run_noise", 0.002), 0.002)
        loss = truth(runs["params"].to_numpy(float), runs["tokens"].to_numpy(float))
        loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(runs)))
        _, interval = fitted(expanded(Ladder.of(rows), runs, loss), plan.law, target, resamples=500)
        ratios.append(np.ptp(interval) / np.ptp(plan.expected))
    assert 0.75 < np.median(ratios) < 1.33, ratios


def test_runs_are_added_as_rows_of_their_own() -> None:
    rows = study(PURE, seed=3).drop(columns="seed")
    first = Ladder.of(rows).cells(budgets=True).iloc[[0, 0]]
    ladder = Ladder.of(rows)
    grown = expanded(ladder, first, np.array([2.0, 2.2]))
    more = grown.rows
    added = more[more["run_id"].str.startswith("next")]
    assert len(more) == len(rows) + 2 and added["val_loss"].tolist() == [2.0, 2.2]
    assert added["seed"].is_unique and (added["seed"] > 0).all()
    assert len(grown.cells(budgets=True)) == len(ladder.cells(budgets=True)) + 2
    again = Ladder.of(more)  # the rules, put to the rows anew, say the same
    assert (again.rule == grown.rule).all()


def test_compute_alone_is_enough() -> None:
    """A table without parameters: runs are named by their compute."""
    rows = study(PURE, sizes=1, budgets=7, decades=2.5, reach=1e9, seed=2)
    rows = rows.assign(params=np.nan, tokens=np.nan, budget_macs=np.nan, size="unknown")
    plan = next_runs(rows, 1e15)
    assert plan.macs >= 0.8e15 and plan.runs["params"].isna().all()


def test_the_readme_s_study_is_planned(shared_data: Path) -> None:
    """Five sizes, six budgets: no L(N, D), so around the law of compute, nearly all is spent."""
    path = shared_data.parent / "cases" / "tables" / "own_rows.csv"
    if not path.exists():
        pytest.skip(f"the quickstart's rows are not at {path}")
    plan = next_runs(load(path), 1e13, futures=2)
    assert plan.law != "parametric" and plan.macs >= 0.8e13
    assert plan.expected is not None


def test_what_cannot_be_planned_is_said(rows: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="budget is nan: give a positive number"):
        next_runs(rows, float("nan"))
    with pytest.raises(ValueError, match=r"target is -1\.0: give a positive number"):
        next_runs(rows, 1e14, target=-1.0)
    with pytest.raises(ValueError, match="affords no run that helps; the cheapest costs"):
        next_runs(rows, 1e3)
    with pytest.raises(NotIdentified):
        next_runs(study(PURE, sizes=4, budgets=1), 1e14)
