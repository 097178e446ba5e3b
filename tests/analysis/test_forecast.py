"""The final loss of a run that goes on: truth recovered, interval by the errors of others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.curve import NAMES, Curve, Design
from scaling.analysis.laws.forecast import calibrated, forecast
from scaling.analysis.laws.schedule import Schedule, constant, cosine, thinned, wsd


def study(seed: int, runs: int = 20) -> list[tuple[Curve, float]]:
    """Half of each run of a study, and the log of its final loss: one schedule, one law whose floor
    and slope move with the size, noise that is correlated along a run."""
    rng = np.random.default_rng(seed)
    centre = np.array([2.8, 3.15, rng.normal(0.45, 0.03), -2.31, -2.55, 0.6, 0.6, 0.3, 0.5])
    out = []
    for i in range(runs):
        theta = centre + np.array([rng.normal(0, 0.3), *rng.normal(0, 0.01, 2), *[0.0] * 6])
        theta[NAMES.index("log B")] += rng.normal(0, 0.05)
        steps = float(rng.choice([12_000, 24_000, 48_000]))
        schedule: Schedule = (
            constant(steps, 3e-4, 600), cosine(steps, 3e-4, 600), wsd(steps, 3e-4, 600, 0.2, 0.1)
        )[seed % 3]  # fmt: skip
        at = np.linspace(700, steps, 120)
        noise = np.zeros(len(at))
        for k in range(1, len(at)):
            noise[k] = 0.7 * noise[k - 1] + rng.normal(0, 0.0005)
        log_loss = Design([schedule], [at], 3e-4).log_loss(theta)[0] + noise
        half = at <= steps / 2
        out.append((Curve(str(i), schedule, at[half], np.exp(log_loss[half])), log_loss[-1]))
    return out


def inside_and_width(runs: list[tuple[Curve, float]]) -> tuple[list[bool], list[float]]:
    """Of each run, with the errors of the others."""
    said = [forecast(curve, curve.schedule.end) for curve, _ in runs]
    errors = np.array(
        [final - s for (_, final), s in zip(runs, said, strict=True) if s is not None]
    )
    assert len(errors) == len(runs)
    inside, width = [], []
    for i, (_, final) in enumerate(runs):
        told = calibrated(said[i], np.delete(errors, i))  # type: ignore[arg-type]
        inside.append(bool(told.low <= np.exp(final) <= told.high))
        width.append((told.high - told.low) / told.loss)
    return inside, width


def test_half_of_a_run_tells_its_end_within_the_interval() -> None:
    """benchmarks/curve_forecast.py has 1,000 curves."""
    inside, width = inside_and_width(study(1, runs=10))
    assert sum(inside) >= 8
    assert np.median(width) < 0.012


def test_published_curves_at_half_of_each(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "scaling_tables/multipowerlaw_12_curves.csv")
    runs = []
    for name, rows in table.groupby("run"):
        step, loss = rows["step"].to_numpy(float), rows["loss"].to_numpy()
        half = step <= step[-1] / 2
        curve = Curve(str(name), thinned(step, rows["lr"].to_numpy()), step[half], loss[half])
        runs.append((curve, float(np.log(loss[-1]))))
    inside, width = inside_and_width(runs)
    assert sum(inside) >= 11 and np.median(width) < 0.03


def test_an_interval_needs_errors() -> None:
    assert np.isnan(calibrated(1.0, [0.1, -0.1]).low)
    told = calibrated(np.log(3.0), [0.02, 0.01, 0.03])
    assert told.loss == pytest.approx(3.0 * np.exp(0.02)) and told.runs == 3
    assert told.low < told.loss < told.high


def test_too_short_a_curve_is_not_carried_on() -> None:
    schedule = wsd(1000, 1e-3, 100)
    assert forecast(Curve("a", schedule, np.arange(4.0) * 10, np.ones(4)), 1000) is None
    nothing = np.full(20, np.nan)
    assert forecast(Curve("a", schedule, np.arange(200.0, 400, 10), nothing), 1000) is None
    huge = Curve("a", schedule, np.arange(200.0, 400, 10), np.full(20, 1e300))
    said = forecast(huge, 1000)
    assert said is None or np.isfinite(said)
    same = calibrated(1.0, [0.01] * 5)
    assert same.low < same.loss < same.high
