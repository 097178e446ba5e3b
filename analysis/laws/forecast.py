"""The final loss of a run that is still running, from its curve so far.

    said = forecast(curve, steps)                  # log loss after `steps`, by the law of the curve
    told = calibrated(said, errors)                # with an interval

One run tells little of a law with nine parameters, so all are held near what published curves had.
How far that carries is not taken on trust: the same forecast is made for runs of the same study
that have finished, from as large a part of them, and its errors there are its bias and its
spread (Student's t of their mean and one more).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from scaling.analysis.laws.curve import FALL, PRIOR, Curve, Design
from scaling.analysis.laws.curve_fit import DELTA, INEXACT, noise_of, solve

ROWS = 60  # of a curve; longer ones are averaged in stretches
FEWEST = 5  # rows after the warm-up
FEWEST_ERRORS = 3
ALPHA = (0.45, 0.15)
FLOOR = (0.85, 0.1)  # L0 over the last loss seen
FALL_SPREAD = 0.5  # of log B
LEAST = 1e-4  # spread of errors, in log loss: none are alike to the last digit
STRETCHES = 6  # of a curve so far, that count as independent


@dataclass(frozen=True)
class Forecast:
    """A final loss and its interval; `low` and `high` are NaN where nothing calibrates it."""

    loss: float
    low: float
    high: float
    runs: int  # finished ones whose errors made the interval


def forecast(curve: Curve, steps: float) -> float | None:
    """Log of the loss after `steps`; None where the curve is too short to tell.

    curve: its schedule whole, its losses as far as they are known.
    """
    begin = max(curve.schedule.warm, 0.1 * curve.step.max(initial=0))
    keep = (curve.step > begin) & np.isfinite(curve.loss) & (curve.loss > 0)
    step, log_loss = curve.step[keep], np.log(curve.loss[keep])
    if len(step) < FEWEST:
        return None
    if len(step) > ROWS:
        parts = np.array_split(np.arange(len(step)), ROWS)
        step = np.array([step[p].mean() for p in parts])
        log_loss = np.array([log_loss[p].mean() for p in parts])
    top = float(curve.schedule.rate.max())
    design = Design([curve.schedule], [step], top)
    noise = max(noise_of([Curve(curve.name, curve.schedule, step, np.exp(log_loss))]), INEXACT)
    last = float(np.exp(np.median(log_loss[-5:])))
    prior = PRIOR | {
        "alpha": ALPHA, "L0": (FLOOR[0] * last, FLOOR[1] * last),
        "log B": (FALL + float(np.log(last)), FALL_SPREAD),
    }  # fmt: skip
    spread = noise**2 * len(step) / STRETCHES
    theta, _ = solve(design, log_loss, max(DELTA, 1.345 * noise), spread, prior=prior)
    said, _ = Design([curve.schedule], [np.array([float(steps)])], top).log_loss(theta)
    return float(said[0]) if np.isfinite(said[0]) else None


def calibrated(said: float, errors: Sequence[float], level: float = 0.95) -> Forecast:
    """A forecast (log loss) moved by the mean of `errors`, with the interval of one more.

    errors: log of the final loss less the forecast of it, of finished runs.
    """
    known = np.asarray(errors, dtype=float)
    if len(known) < FEWEST_ERRORS:
        return Forecast(float(np.exp(said)), float("nan"), float("nan"), len(known))
    mean, sd = float(known.mean()), max(float(known.std(ddof=1)), LEAST)
    half = float(stdtrit(len(known) - 1, (1 + level) / 2)) * sd * np.sqrt(1 + 1 / len(known))
    low, middle, high = np.exp(said + mean + np.array([-half, 0.0, half]))
    return Forecast(float(middle), float(low), float(high), len(known))
