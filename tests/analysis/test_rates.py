"""The law of rate and batch: its slopes, a known truth recovered, diverged runs, refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.rates import bowl, shapes
from scaling.analysis.laws.rates_fit import RatesLaw, fit_rates, lost
from scaling.errors import UserError
from tests.analysis.sweep_truth import TRUTH, simulated

STEPLAW = Path(__file__).parents[3] / "shared/data/scaling_tables/steplaw_dense_lr_bs_loss.csv"


@pytest.fixture(scope="module")
def law() -> RatesLaw:
    """Of rates and batches, in one neighbourhood."""
    return fit_rates(**simulated(3, batch=True), within=0.05)


def test_slopes_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    shape = shapes("ND", "ND", True)
    at = {name: rng.standard_normal(9) for name in ("N", "D", "lr", "batch")}
    theta = 0.3 * rng.standard_normal((2, len(shape.names)))
    above, slopes = shape.above(theta, at)
    for k in range(len(shape.names)):
        step = np.zeros(len(shape.names))
        step[k] = 1e-6
        there = (shape.above(theta + step, at)[0] - shape.above(theta - step, at)[0]) / 2e-6
        np.testing.assert_allclose(slopes[..., k], there, rtol=1e-6, atol=1e-8)
    assert (above >= 0).all()


def test_series_and_closed_form_meet() -> None:
    z = np.ones(2)
    for one in bowl(z, np.array([0.00999999, 0.01000001])):
        assert one[0] == pytest.approx(one[1], rel=1e-6)


def test_a_known_truth_is_inside(law: RatesLaw) -> None:
    for name, (value, low, high) in law.exponents.items():
        assert low < TRUTH[name] < high, name
        assert low < value < high
    assert law.diverged > 0
    assert law.cells == 12
    best = law.best(4e7, 6e9)
    log_n = np.log2(4e7 / 8e7)
    assert np.log2(best.lr) == pytest.approx(-9.5 + TRUTH["lr ~ N"] * log_n, abs=0.4)
    assert best.lr_interval[0] < best.lr < best.lr_interval[1]


def test_a_missed_rate_costs_more_above_than_below(law: RatesLaw) -> None:
    low, high = law.cost(-2)[0], law.cost(2)[0]
    assert 0 < low < high
    assert law.cost(0)[0] == pytest.approx(0, abs=1e-12)
    best = law.best(4e7, 6e9)
    at_best = law.above(4e7, 6e9, best.lr, best.batch)
    assert at_best == pytest.approx(0, abs=1e-12)


def test_diverged_runs_change_nothing() -> None:
    table = simulated(5)
    gone = ~np.isfinite(table["loss"])
    assert gone.any()
    exploded = {**table, "loss": np.where(gone, 11.0, table["loss"])}
    one, other = (fit_rates(**t, within=0.05) for t in (table, exploded))
    assert one.exponents == other.exponents
    assert one.diverged == other.diverged


def test_a_run_at_a_rate_too_low_did_not_diverge() -> None:
    loss, lr = np.array([5.0, 2.0, 2.1, 6.0, np.nan]), np.array([1e-5, 1e-3, 2e-3, 4e-3, 8e-3])
    assert lost(loss, lr, np.zeros(5, int)).tolist() == [False, False, False, True, True]


def test_refusals() -> None:
    table = simulated(1)
    one_rate = {k: v[table["lr"] == 2.0**-10] for k, v in table.items()}
    with pytest.raises(NotIdentified, match="at 3 rates or more"):
        fit_rates(**one_rate, within=None)
    one_size = {k: v[(table["n"] == 1e7) & (table["d"] == 1e9)] for k, v in table.items()}
    with pytest.raises(NotIdentified, match="1 cell of one"):
        fit_rates(**one_size, within=None)
    low = {k: v[table["lr"] < 2.0**-12] for k, v in table.items()}
    with pytest.raises(NotIdentified, match="bracket their optimum"):
        fit_rates(**low, within=None)
    with pytest.raises(UserError, match="not positive"):
        fit_rates(**{**table, "loss": -table["loss"]}, within=None)


def test_n_alone_where_tokens_follow_it() -> None:
    table = simulated(2)
    along = np.isclose(np.log(table["d"] / 1e9) / np.log(6), np.log(table["n"] / 1e7) / np.log(4))
    law = fit_rates(**{k: v[along] for k, v in table.items()}, within=0.05)
    assert list(law.exponents) == ["lr ~ N"]
    assert law.together


@pytest.mark.skipif(not STEPLAW.exists(), reason="no ../shared beside this checkout")
def test_step_law_is_inside() -> None:
    """Li et al. 2025, arXiv 2503.04715: lr ~ N^-.713 D^.307, batch ~ D^.571."""
    t = pd.read_csv(STEPLAW)
    law = fit_rates(t["N"], t["D"], t["lr"], t["loss"], t["bs"] * 2048, within=0.05)
    for name, published in {"lr ~ N": -0.713, "lr ~ D": 0.307, "batch ~ D": 0.571}.items():
        _, low, high = law.exponents[name]
        assert low < published < high, name
        assert high - low < 1.5
    assert law.diverged == 181
