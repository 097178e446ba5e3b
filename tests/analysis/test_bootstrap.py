"""The noise of runs and of points, and the interval made from it."""

import numpy as np
import pytest
from scipy import stats

from scaling.analysis.laws.bootstrap import bca, cluster_weights, components


def residuals(
    seed: int, run_noise: float, point_noise: float, runs: int = 8, each: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(runs), each)
    x = np.tile(np.linspace(-1, 1, each), runs)
    design = np.stack([np.ones_like(x), x], 1)
    y = run_noise * rng.standard_normal(runs)[index] + point_noise * rng.standard_normal(len(x))
    return design, y - design @ np.linalg.lstsq(design, y, rcond=None)[0], index


@pytest.mark.parametrize(("run_noise", "point_noise"), [(0.0, 0.3), (0.2, 0.2), (0.3, 0.05)])
def test_components_are_recovered(run_noise: float, point_noise: float) -> None:
    influence = np.ones(40) / 40
    found = [components(*residuals(s, run_noise, point_noise), influence) for s in range(400)]
    # A negative variance is set to zero, so the run's part is a little high when it is none.
    assert np.mean([n.run**2 for n in found]) == pytest.approx(run_noise**2, abs=0.006)
    assert np.mean([n.point**2 for n in found]) == pytest.approx(point_noise**2, rel=0.1)


def test_independent_points_have_the_residual_degrees_of_freedom() -> None:
    design, residual, _ = residuals(0, 0.0, 0.3)
    noise = components(design, residual, np.arange(40), np.ones(40))
    assert noise.run == 0 and noise.df == 38
    assert noise.point == pytest.approx(np.sqrt(residual @ residual / 38))


def test_degrees_of_freedom_fall_when_runs_share_their_noise() -> None:
    mean = np.ones(40) / 40  # the mean of all points rests on eight runs
    shared = components(*residuals(1, 0.3, 0.01), mean)
    assert 5 < shared.df < 10


def test_draws_have_the_estimated_spread_and_keep_runs_together() -> None:
    design, residual, index = residuals(2, 0.3, 0.1)
    noise = components(design, residual, index, np.ones(40) / 40)
    drawn = noise.draw(index, 20_000, np.random.default_rng(0))
    inflated = noise.df / (noise.df - 2)  # variance of Student's t
    assert drawn.var(0).mean() == pytest.approx(noise.total**2 * inflated, rel=0.05)
    together = np.mean(drawn[:, 0] * drawn[:, 1])
    apart = np.mean(drawn[:, 0] * drawn[:, 39])
    assert together == pytest.approx(noise.run**2 * inflated, rel=0.1)
    assert abs(apart) < 0.1 * together


def test_sums_equal_the_noise_of_every_point() -> None:
    design, residual, index = residuals(3, 0.3, 0.1)
    noise = components(design, residual, index, np.ones(40) / 40)
    sums = np.stack([np.bincount(index, column) for column in design.T], 1)
    rng = np.random.default_rng(0)
    direct = noise.draw(index, 40_000, rng) @ design
    short = noise.draw_sums(sums, design.T @ design, 40_000, rng)
    assert np.cov(short.T) == pytest.approx(np.cov(direct.T), rel=0.1, abs=0.02)


def test_clusters_are_drawn_whole() -> None:
    index = np.array([0, 0, 1, 2, 2, 2])
    weights = cluster_weights(index, 500, np.random.default_rng(0))
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()


def test_bca_of_a_normal_is_its_quantiles() -> None:
    samples = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    low, high = bca(samples, 0.0, None, 0.95)
    assert (low, high) == pytest.approx((-1.96, 1.96), abs=0.01)


def test_bca_agrees_with_scipy_on_a_skewed_mean() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    rng = np.random.default_rng(1)
    samples = rng.choice(values, (20_000, 30)).mean(1)
    jackknife = (values.sum() - values) / 29
    ours = bca(samples, values.mean(), jackknife, 0.95)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=20_000, rng=2
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=0.03)


def test_bca_refuses_failures() -> None:
    with pytest.raises(ValueError, match="1 of 3 resamples gave no finite value"):
        bca(np.array([1.0, np.nan, 2.0]), 1.0, None, 0.95)


def test_bca_holds_its_estimate_where_all_resamples_lie_on_one_side() -> None:
    samples = 1 + np.abs(np.random.default_rng(0).standard_normal(4000))
    for estimate in (0.5, 1.0, 1.001, 1.03):
        low, high = bca(samples, estimate, None, 0.95)
        assert low < estimate < high and high - low > 2
    low, high = bca(-samples, -0.5, None, 0.95)
    assert low < -0.5 < high
