"""The simulator has the truth it says, and asks the question of power."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from scaling.analysis.questions.simulate import (
    PURE,
    TRUTH,
    Truth,
    designs,
    frontier_exponent,
    power,
    study,
)


def test_the_best_size_is_the_minimum() -> None:
    truth = Truth(1.5, 40.0, 0.3, 300.0, 0.4)
    found = minimize_scalar(
        lambda x: truth(np.exp(x), 1e13 / 3 / np.exp(x)), bounds=(5, 25), method="bounded",
        options=dict(xatol=1e-9),
    )  # fmt: skip
    assert truth.n_opt(1e13) == pytest.approx(np.exp(found.x), rel=1e-4)
    assert truth.frontier(1e13) == pytest.approx(found.fun)


def test_the_frontier_of_a_pure_truth_is_a_power_law() -> None:
    assert PURE.exponent == pytest.approx(-0.075)
    assert frontier_exponent(PURE, np.array([1e12, 1e13, 1e14])) == pytest.approx(PURE.exponent)
    assert frontier_exponent(TRUTH, np.array([1e12, 1e13])) > TRUTH.exponent, "flattened by E"


def test_a_study_without_noise_lies_on_its_truth() -> None:
    rows = study(TRUTH, run_noise=0.0, point_noise=0.0)
    assert rows["val_loss"].to_numpy() == pytest.approx(TRUTH(rows["params"], rows["tokens"]))
    assert rows["macs_total"].to_numpy() == pytest.approx(3 * rows["params"] * rows["tokens"])
    assert rows["budget_macs"].nunique() == 5 and rows["params"].nunique() == 6


@pytest.mark.parametrize("trunks", [True, False])
def test_noise_is_shared_within_a_run(trunks: bool) -> None:
    noise = []
    for seed in range(400):
        rows = study(TRUTH, run_noise=0.01, point_noise=0.0, trunks=trunks, seed=seed)
        residual = np.log(rows["val_loss"]) - np.log(TRUTH(rows["params"], rows["tokens"]))
        by = residual.groupby(rows["run_id"])
        assert by.max().to_numpy() == pytest.approx(by.min().to_numpy(), abs=1e-12)
        noise.append(by.first())
    assert pd.concat(noise).std() == pytest.approx(0.01, rel=0.05)
    assert (rows["run_id"].nunique() == rows["params"].nunique()) == trunks


def test_outliers_rates_and_warmup_only_add_loss() -> None:
    quiet: dict[str, Any] = dict(run_noise=0.0, point_noise=0.0)
    base = study(TRUTH, **quiet)
    for spoil in ("outliers", "mistuned", "short_warmup"):
        more = np.log(study(TRUTH, **quiet | {spoil: 0.5})["val_loss"] / base["val_loss"])
        assert (more >= -1e-12).all() and more.max() > 1e-4, spoil
    warm = np.log(study(TRUTH, **quiet, short_warmup=0.1)["val_loss"] / base["val_loss"])
    at = pd.Series(warm).groupby(base["budget_macs"]).mean()
    assert at.iloc[0] == pytest.approx(0.1) and at.is_monotonic_decreasing


def test_a_seed_is_a_study() -> None:
    pd.testing.assert_frame_equal(study(seed=4), study(seed=4))
    assert not study(seed=4)["val_loss"].equals(study(seed=5)["val_loss"])
    with pytest.raises(ValueError, match="point_noise is -1"):
        study(point_noise=-1)


def test_power_says_what_more_runs_buy() -> None:
    design: dict[str, Any] = dict(
        studies=25, sizes=6, trunks=False, run_noise=0.0, point_noise=0.003
    )
    few, many = power(PURE, budgets=4, **design), power(PURE, budgets=16, **design)
    assert many.runs == pytest.approx(4 * few.runs, rel=0.1)
    assert 0.4 < many.width / few.width < 0.75
    assert few.refused == 0 and few.coverage > 0.8
    hopeless = power(PURE, studies=5, sizes=6, budgets=2)
    assert hopeless.refused == 1 and np.isnan(hopeless.width)
    assert "2 distinct values of compute" in hopeless.reason and many.reason == ""
    with pytest.raises(ValueError, match="noise is -1"):
        designs(PURE, noise=-1.0)


def test_every_budget_may_have_sizes_of_its_own_around_its_optimum() -> None:
    rows = study(TRUTH, sizes=7, around=3.0, budgets=4, run_noise=0.0, point_noise=0.0)
    off = rows["params"] / TRUTH.n_opt(rows["budget_macs"])
    assert rows["run_id"].is_unique and len(rows) == 28
    for _, group in off.groupby(rows["budget_macs"]):
        assert group.to_numpy() == pytest.approx(np.geomspace(1 / 3, 3, 7))
    with pytest.raises(ValueError, match="give a factor above 1 and a number of sizes"):
        study(TRUTH, sizes=7, around=1.0)
