"""Which runs to do next: sizes, budgets and seeds that narrow the law most, and what to expect.

    plan = next_runs(rows, 1e13)         # Plan: .runs, .now, .expected
    print(plan)

Runs are chosen by questions/design.py around L(N, D) where the rows identify it, else around the
law of compute: each new budget then gets a size on either side of the best. The interval to expect
is not a formula's: the runs are simulated around the fitted law with the noise of the study, the
rows with them are fitted again as `scaling fit` does, and the median of these intervals is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.design import Plan, choose
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.questions.next_model import Model, model_of, number
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError

RUNS = (8, 12, 16, 24, 32, 48, 64)  # tried in turn until the budget is spent
SPENT = 0.8  # share of the budget that counts as spent
FUTURES = 16  # simulated studies of the promise
RESAMPLES = 250  # of each
FEW_RESAMPLES = 500  # of L(N, D), where a plan's own interval is not said


def next_runs(
    rows: pd.DataFrame | Ladder,
    budget: float,
    *,
    target: float | None = None,
    runs: int | None = None,
    futures: int = FUTURES,
    study: StudyLaw | None = None,
    seed: int = 0,
) -> Plan:
    """The runs that a budget should buy.

    rows: of a study, or their ladder, whose pinned floor holds. budget: training MACs for all new
    runs together. target: MACs whose loss is to be predicted; None: the exponent is to be narrowed.
    runs: at most so many; None: as many of RUNS as spend the budget. futures: simulated studies of
    the interval to expect; 0: none is said. study: of `fit_frontier`, where it is at hand.
    Raises NotIdentified when the rows have no law, UserError on a budget that buys nothing.
    """
    for name, value in (("budget", budget), ("target", target)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"{name} is {value!r}: give a positive number of MACs")
    ladder = _unweighted(Ladder.of(rows))
    model = model_of(ladder, budget, target, study, seed)
    return _plan(ladder, model, budget, target, RUNS if runs is None else (runs,), futures, seed)


def _unweighted(ladder: Ladder) -> Ladder:
    if ladder.weights is not None:
        raise UserError(
            f"weights ({ladder.weights!r}) say how well known the losses of runs are that were "
            "done, not of those to do: plan without them"
        )
    return ladder


def first_runs(
    ladder: Ladder, budget: float, target: float | None, study: StudyLaw | None, seed: int
) -> Plan:
    """The one run that narrows the law most, or around the law of compute, where a new budget takes
    three sizes, those; without the interval to expect. Arguments and errors as of `next_runs`."""
    model = model_of(_unweighted(ladder), budget, target, study, seed, resamples=FEW_RESAMPLES)
    most = 1 if model.law == "parametric" else 3
    return _plan(ladder, model, budget, target, (most,), 0, seed)


def _plan(
    ladder: Ladder, model: Model, budget: float, target: float | None,
    most_runs: Sequence[int], futures: int, seed: int,
) -> Plan:  # fmt: skip
    """The plan of the first of `most_runs` that spends the budget, or the last."""
    units = model.units
    if not (units.cost <= budget).any():
        raise UserError(
            f"a budget of {budget:.3g} MACs affords no run that helps; the cheapest costs "
            f"{units.cost.min():.3g}"
        )
    chosen: list[int] = []
    for most in most_runs:
        chosen = choose(units, model.information, model.direction, budget, most)
        if units.cost[chosen].sum() >= SPENT * budget:
            break
    if not chosen:
        raise UserError(f"{most} runs are too few: a new budget takes {units.count.min()}")
    picked = pd.concat([model.designs[model.designs["unit"] == unit] for unit in chosen])
    expected, refused = _expected(ladder, model, picked, target, futures, seed)
    key = ["budget_macs", "size", "params", "tokens", "macs_total"]
    shown = picked.groupby(key, dropna=False, sort=True).size().rename("seeds").reset_index()
    return Plan(
        shown,
        model.law,
        model.what,
        model.estimate,
        model.now,
        expected,
        refused,
        budget,
        model.reason,
    )


def fitted(
    rows: pd.DataFrame | Ladder, law: str, target: float | None = None, **options: Any
) -> tuple[float, tuple[float, float]]:
    """Estimate and interval of what a plan narrows, by the law that it names."""
    if law == "parametric":
        return number(fit_rows(rows, **options), target)
    return number(fit_frontier(rows, form=law, **options).law, target)


def _expected(
    ladder: Ladder,
    model: Model,
    picked: pd.DataFrame,
    target: float | None,
    futures: int,
    seed: int,
) -> tuple[tuple[float, float] | None, float]:
    """The median interval of simulated futures, about today's estimate; the share refused."""
    rng = np.random.default_rng(seed)
    sides, refused = [], 0
    loss = model.loss[picked.index]
    for _ in range(futures):
        drawn = loss * np.exp(model.noise * rng.standard_normal(len(loss)))
        try:
            more = expanded(ladder, picked, drawn)
            estimate, (low, high) = fitted(more, model.law, target, resamples=RESAMPLES)
        except NotIdentified:
            refused += 1
            continue
        sides.append((estimate - low, high - estimate))
    share = refused / max(futures, 1)
    if share > 0.5 or not sides:
        return None, share
    below, above = np.median(sides, axis=0)
    return (model.estimate - below, model.estimate + above), share


def expanded(ladder: Ladder, runs: pd.DataFrame, loss: np.ndarray) -> Ladder:
    """The ladder with further, finished runs: a row of `runs` (budget_macs, size, params, tokens,
    macs_total) and a loss each; a design that was run before gets a seed of its own."""
    table = ladder.cells()
    if "seed" not in table.columns:
        ladder, table = ladder.replaced(seed=0), table.assign(seed=0)
    first = 1 + pd.to_numeric(table["seed"], errors="coerce").fillna(0).max()
    like = table.drop(columns="design").sort_values("params")
    sizes = like["params"].to_numpy(float)
    place = np.abs(np.log(sizes)[None] - np.log(runs["params"].to_numpy(float))[:, None]).argmin(1)
    new = like.iloc[np.where(np.isnan(runs["params"]), 0, place)].reset_index(drop=True)
    for column in ("size", "params", "tokens", "macs_total"):
        new[column] = runs[column].to_numpy()
    nominal = runs["budget_macs"].to_numpy(float)
    new["budget_macs"] = nominal if ladder.rows["budget_macs"].notna().any() else np.nan
    new["seed"] = first + np.arange(len(new))
    new["run_id"] = [f"next {i}" for i in range(len(new))]
    new["val_loss"] = loss
    return ladder.joined(new)
