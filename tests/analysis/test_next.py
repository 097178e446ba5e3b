"""The next runs: the promised narrowing is what further runs bring."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.isoflop import fit_rows
from analysis.next import best_run, next_runs
from analysis.simulate import TRUTH, study

DESIGN: dict[str, Any] = dict(sizes=8, budgets=5, trunks=False, run_noise=0.0, point_noise=0.002)


@pytest.fixture(scope="module")
def law():
    return fit_rows(study(TRUTH, **DESIGN, seed=1), loss_kind="huber", delta=0.01, resamples=200)


def test_each_run_narrows_and_the_budget_holds(law) -> None:
    plan = next_runs(law, 1e15, runs=6)
    assert plan["compute"].sum() <= 1e15 * (1 + 1e-9)
    assert (plan["sd_after"] < plan["sd_before"]).all()
    assert plan["sd_before"].iloc[1:].tolist() == pytest.approx(plan["sd_after"].iloc[:-1].tolist())
    assert (plan["compute"] / (law.per_token * plan["n"] * plan["d"])).to_numpy() == pytest.approx(
        1
    )


def test_runs_per_mac_are_cheaper_than_runs_that_spend_the_budget(law) -> None:
    cheap, spent = next_runs(law, 1e15, runs=4), next_runs(law, 1e15, runs=4, per_run=True)
    assert cheap["compute"].sum() < spent["compute"].sum() <= 1e15
    assert spent["sd_after"].iloc[-1] < cheap["sd_after"].iloc[-1]


@pytest.mark.parametrize("target", [None, 1e16])
def test_the_promise_is_kept_by_simulated_runs(law, target: float | None) -> None:
    """Noise drawn for old and new runs: the least-squares spread is what was promised."""
    from analysis.next import _exponent_gradient, _gradient, _loss_gradient

    plan = next_runs(law, 3e14, runs=5, target=target)
    n, d = np.append(law.n, plan["n"]), np.append(law.d, plan["d"])
    jacobian = _gradient(law, n, d)
    direction = _exponent_gradient(law) if target is None else _loss_gradient(law, target)
    estimator = direction @ np.linalg.pinv(jacobian)
    before = direction @ np.linalg.pinv(_gradient(law, law.n, law.d))
    shrunk = np.linalg.norm(estimator) / np.linalg.norm(before)
    promised = plan["sd_after"].iloc[-1] / plan["sd_before"].iloc[0]
    assert promised == pytest.approx(shrunk, rel=1e-4)


def test_planned_runs_beat_as_many_repeats(law) -> None:
    """The same number of MACs spent on repeats of the largest run narrows less."""
    plan = next_runs(law, 3e14, runs=4, per_run=True)
    largest = int(np.argmax(law.n * law.d))
    repeats = next_runs(law, 3e14, runs=4, per_run=True, sizes=law.n[[largest]])
    assert plan["sd_after"].iloc[-1] < repeats["sd_after"].iloc[-1]


def test_more_runs_narrow_the_fitted_interval() -> None:
    """The design's runs, done: the exponent's bootstrap interval gets narrower."""
    narrower = []
    for seed in range(4):
        rows = study(TRUTH, **DESIGN, seed=seed)
        before = fit_rows(rows, delta=0.01, resamples=200, seed=seed)
        plan = next_runs(before, 1e15, runs=6, per_run=True)
        rng = np.random.default_rng(seed)
        loss = TRUTH(plan["n"].to_numpy(), plan["d"].to_numpy()) * np.exp(
            0.002 * rng.standard_normal(len(plan))
        )
        new = rows.iloc[: len(plan)].assign(
            run_id=[f"new{i}" for i in range(len(plan))], params=plan["n"].to_numpy(),
            tokens=plan["d"].to_numpy(), macs_total=plan["compute"].to_numpy(),
            val_loss=loss,
        )  # fmt: skip
        after = fit_rows(pd.concat([rows, new]), delta=0.01, resamples=200, seed=seed)
        width = [np.ptp(one.ci["loss_exponent"]) for one in (before, after)]
        narrower.append(width[1] / width[0])
    assert np.median(narrower) < 0.8


def test_the_best_run_of_a_budget(law) -> None:
    best = best_run(law, 1e14)
    assert 3 * best.n * best.d == pytest.approx(1e14)
    low, high = best.n_interval
    assert low < float(TRUTH.n_opt(1e14)) < high


def test_what_cannot_be_planned_is_said(law) -> None:
    with pytest.raises(ValueError, match="give a positive number"):
        next_runs(law, float("nan"))
    with pytest.raises(ValueError, match="affords none"):
        next_runs(law, 1e3)
    with pytest.raises(ValueError, match="finite positive"):
        next_runs(law, 1e14, sizes=np.array([-1.0]))
    with pytest.raises(ValueError, match="widen `reach`"):
        next_runs(law, 1e14, sizes=np.array([1e15]))
