"""A fitted law of one variable: called, asked for a prediction with its intervals, printed.

analysis/laws/fit.py makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from scipy.special import ndtri

from scaling.analysis.laws.bootstrap import bca
from scaling.analysis.laws.mixture import Mixture, mix
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.analysis.laws.parametric_law import ParametricLaw

FLOORLESS = ("pure", "drift")  # of the forms of laws/mixture.py


@dataclass(frozen=True)
class Status:
    """What the optimiser reached. `gradient_norm` is relative: |gradient| / number of points."""

    converged: bool
    gradient_norm: float
    starts: int
    basins: int  # distinct minima among the starts
    condition: float  # of the scaled normal matrix
    bootstrap: str  # how the interval arose
    resamples: int
    at_bound_share: float  # share of the resamples on a bound


@dataclass(frozen=True)
class Prediction:
    """A law's value with two intervals: of the law itself, and of the loss of one more such point.

    A point is what the law was fitted to: one run, or what is expected of several (as at the best
    size of a budget), which scatters less than one run does.
    """

    compute: float
    loss: float
    low: float
    high: float
    run_low: float
    run_high: float
    decades: float  # beyond the largest (> 0) or below the smallest (< 0) fitted compute; 0 inside
    unit: str
    refused: str = ""  # why there is no interval: then low, high, run_low and run_high are NaN
    point: str = ""  # what the loss is of, where compute alone does not say it
    note: str = ""  # what looks odd about it, and why it is so

    def __str__(self) -> str:
        point = self.point or f"{self.compute:.3g} {self.unit}"
        if self.refused:
            return f"no loss at {point}: {self.refused}"
        return (
            f"loss {self.loss:.4g} at {point} "
            f"[{self.low:.4g}, {self.high:.4g}], {distance(self.decades, 'fitted range')}"
            + (f"; {self.note}" if self.note else "")
        )


def conditions(law: PowerLaw | ParametricLaw) -> list[str]:
    """What a fit took as given, in lines of text."""
    lines = []
    if law.given:
        lines.append(f"  given        E = {law.e:g}, pinned: every interval is conditional on it")
    if law.weights is not None:
        low, high = law.weights.min(), law.weights.max()
        lines.append(f"  weights      {low:.3g} to {high:.3g} of their mean, a point")
    return lines


def one_more(curves: np.ndarray, noise: float) -> np.ndarray:
    """Log losses (R,) of a law with the noise of one more run's: by quantiles of the normal, which
    are no further draw of chance."""
    order = np.random.default_rng(0).permutation(len(curves))
    noisy: np.ndarray = curves + noise * ndtri((order + 0.5) / len(curves))
    return noisy


def distance(decades: float, what: str) -> str:
    """How far beyond `what` a prediction reaches; decades: below it where negative, 0 inside."""
    if not decades:
        return f"inside the {what}"
    side = "above" if decades > 0 else "below"
    return f"extrapolated {abs(decades):.2f} decades {side} the {what}"


@dataclass(frozen=True)
class Holdout:
    """One point predicted from all points with less compute."""

    compute: float
    fitted_points: int
    actual: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative: predicted / actual - 1."""
        return self.predicted / self.actual - 1


@dataclass(frozen=True)
class PowerLaw:
    """L = a C^b in nats. Call it with compute in `unit`, of any shape; losses of that shape."""

    a: float
    b: float
    unit: str
    level: float  # of the intervals
    ci: dict[str, tuple[float, float]]  # of "a", "b" and, of a free floor, "E"
    status: Status
    compute: np.ndarray = field(repr=False)
    loss: np.ndarray = field(repr=False)
    samples: np.ndarray = field(repr=False)  # (resamples, 3): E, log a at the centre, b
    centre: float = field(repr=False)  # mean log compute
    r2: float = float("nan")  # of log loss
    noise: float = float("nan")  # residual standard deviation of log loss
    aic: float = float("nan")
    holdout: tuple[Holdout, ...] = ()  # expanding window, the largest compute last
    e: float = 0.0
    pinned: bool = False  # E was given and not fitted
    chosen: bool = False  # among forms, as none was asked for: predicts by the mixture of all
    # (n, n) of the noise of the points' log loss, if known
    covariance: np.ndarray | None = field(default=None, repr=False)
    # (n,) of mean 1, in proportion to 1 / variance of log loss; None: all the same
    weights: np.ndarray | None = field(default=None, repr=False)

    form = "power"
    parameters = 2

    @overload
    def __call__(self, compute: float) -> float: ...
    @overload
    def __call__(self, compute: np.ndarray) -> np.ndarray: ...
    def __call__(self, compute: float | np.ndarray) -> float | np.ndarray:
        return self.e + self.a * np.asarray(compute, dtype=float) ** self.b

    @cached_property
    def mixture(self) -> Mixture | None:
        """All forms, weighed on the same points; None where one form was asked for."""
        if not self.chosen:
            return None
        return mix(self.compute, self.loss, self.covariance, self.weights, self.unit)

    @property
    def decades(self) -> float:
        """Range of the fitted compute."""
        return float(np.log10(self.compute.max() / self.compute.min()))

    @property
    def residuals(self) -> np.ndarray:
        """log observed - log fitted, per point."""
        residuals: np.ndarray = np.log(self.loss) - np.log(self(self.compute))
        return residuals

    @property
    def holdout_error(self) -> float | None:
        """Relative error of the largest compute predicted from the rest; None: not enough."""
        return self.holdout[-1].error if self.holdout else None

    @property
    def held_out(self) -> float | None:
        """Root mean square relative error over the expanding window."""
        if not self.holdout:
            return None
        return float(np.sqrt(np.mean([h.error**2 for h in self.holdout])))

    def predict(self, compute: float, *, level: float | None = None) -> Prediction:
        """Loss at `compute` with the interval of the law and of one more such point's there.

        Where the form was not asked for, of the mixture of all forms (laws/mixture.py), whose
        median the loss is; `refused` says why where the data support none so far away.
        level: of the intervals; that of the fit if it is not given.
        Raises UserError: compute is not positive.
        """
        if not (np.isfinite(compute) and compute > 0):
            raise UserError(f"compute is {compute!r}: give a positive number of {self.unit}")
        level = level or self.level
        top, bottom = self.compute.max(), self.compute.min()
        decades = float(np.log10(compute / np.clip(compute, bottom, top)))
        if self.mixture is not None:
            return self._predict_mixture(float(compute), level, decades)
        x = np.log(compute) - self.centre
        e, log_a, b = self.samples.T
        curves = np.log(e + np.exp(log_a + b * x))
        here = float(np.log(self(compute)))
        low, high = bca(curves, here, None, level)
        run_low, run_high = bca(one_more(curves, self.noise), here, None, level)
        interval, run = np.exp([low, high]), np.exp([run_low, run_high])
        return Prediction(
            compute=float(compute), loss=float(np.exp(here)), decades=decades,
            low=float(interval[0]), high=float(interval[1]),
            run_low=float(run[0]), run_high=float(run[1]), unit=self.unit,
        )  # fmt: skip

    def _predict_mixture(self, compute: float, level: float, decades: float) -> Prediction:
        assert self.mixture is not None
        tails = (1 - level) / 2, 0.5, (1 + level) / 2
        loss: float
        here = self.mixture.at(compute)
        low, loss, high = map(float, here.quantiles(tails))
        run_low, run_high = map(float, here.quantiles((tails[0], tails[2]), run=True))
        refused = self.mixture.refusal(compute)
        if refused:
            low = high = run_low = run_high = float("nan")
        note = ""
        if 0 < loss < self.e:
            # The law that is shown is one of the forms that are averaged.
            without = sum(self.mixture.shares[name] for name in FLOORLESS)
            note = (
                f"below E = {self.e:.4g} of the law above: E is uncertain, and forms with other "
                f"floors, and with none ({without:.0%}), are averaged"
            )
        return Prediction(
            compute, loss, low, high, run_low, run_high, decades, self.unit, refused, note=note
        )

    def __str__(self) -> str:
        head = f"{self.e:.4g} + " if self.e else ""
        low, high = self.ci["b"]
        x = {"parameters": "N", "tokens": "D"}.get(self.unit, "C")
        return (
            f"L({x}) = {head}{self.a:.4g} {x}^{self.b:.4f}, {x} in {self.unit}; "
            f"exponent {self.level:.0%} [{low:.4f}, {high:.4f}]{self._condition}"
        )

    @property
    def _condition(self) -> str:
        """What the interval takes as given."""
        return f" given E = {self.given['E']:g}" if self.given else ""

    @property
    def given(self) -> dict[str, float]:
        """The parameters that were not fitted, on which every interval is conditional."""
        return {"E": self.e} if self.pinned else {}

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; a missing one is None."""
        h = self.holdout[-1] if self.holdout else None
        return {
            "form": self.form,
            "unit": self.unit,
            "parameters": {"E": self.e, "a": self.a, "b": self.b},
            "level": self.level,
            "interval": {k: list(v) for k, v in self.ci.items()},
            "given": self.given,
            "r2_log": finite(self.r2),
            "noise_log": finite(self.noise),
            "aic": finite(self.aic),
            "points": len(self.compute),
            "compute_range": [float(self.compute.min()), float(self.compute.max())],
            "decades": self.decades,
            "holdout": None
            if h is None
            else {"compute": h.compute, "actual": h.actual, "predicted": h.predicted,
                  "error": h.error, "window_rms": self.held_out},
            "mixture": None if self.mixture is None else self.mixture.to_json(),
            "status": finite(vars(self.status)),
        }  # fmt: skip


@dataclass(frozen=True)
class SaturatingLaw(PowerLaw):
    """L = E + a C^b with E > 0, free or pinned."""

    form = "saturating"
    parameters = 3


def finite(value: Any) -> Any:
    """Plain values, with None for a number that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
