"""A fitted form: called, asked for a prediction with its intervals, printed, saved.

analysis/laws/form_fit.py makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaling.analysis.laws.bootstrap import bca
from scaling.analysis.laws.formulas import MEANINGS, Form
from scaling.analysis.laws.parametric_law import (
    EXACT,
    FEW_STARTS,
    NO_NOISE,
    SurfaceStatus,
    rough,
    span,
)
from scaling.analysis.laws.power_law import Prediction, finite, one_more
from scaling.errors import UserError

HARDLY = 1e8  # condition beyond which parameters are hardly told apart


@dataclass(frozen=True)
class HeldOut:
    """The runs of the largest compute (or size), predicted from the others."""

    by: str  # the column they are the largest of
    above: float  # the largest value that was fitted to
    fitted: int
    held: int
    r2: float  # of the loss; NaN where all have one
    rms: float  # of the loss
    relative: float  # root mean square of the miss over the loss
    resting: tuple[str, ...] = ()  # parameters that rested on a bound in that fit

    def __str__(self) -> str:
        r2 = f", R2 {self.r2:.3f}" if np.isfinite(self.r2) else ""
        rest = f"; there {', '.join(self.resting)} rested on a bound" if self.resting else ""
        return (
            f"{self.held} runs of {self.by} above {self.above:.3g}, predicted from the other "
            f"{self.fitted}: rms {self.rms:.4f} ({self.relative:.2%}){r2}{rest}"
        )


@dataclass(frozen=True, eq=False)
class FormLaw:
    """A form with its parameters. Call it with its columns by name, of one shape."""

    form: Form
    values: dict[str, float]
    level: float
    ci: dict[str, tuple[float, float]]  # of every parameter that is not fixed
    status: SurfaceStatus
    objective: float  # the least, summed over points
    corner: float  # of Huber's loss
    columns: dict[str, np.ndarray] = field(repr=False)  # (n,) each
    loss: np.ndarray = field(repr=False)
    samples: np.ndarray = field(repr=False)  # (R, p) of the parameters
    run_index: np.ndarray = field(repr=False)  # (n,) of the clusters that were resampled
    weights: np.ndarray | None = field(default=None, repr=False)  # (n,) of mean 1; None: 1
    held: HeldOut | None = None
    resting: tuple[str, ...] = ()  # parameters that rest on a bound in some resamples, how many

    def __call__(self, **columns: float | np.ndarray) -> Any:
        """The loss, a number or an array, at columns by name. Raises UserError: another set."""
        arrays = self._given(columns)
        shape = np.broadcast_shapes(*(one.shape for one in arrays.values()))
        flat = {name: np.broadcast_to(one, shape).ravel() for name, one in arrays.items()}
        loss = self.form.value(flat, self.theta[None])[0].reshape(shape)
        return float(loss) if loss.ndim == 0 else loss

    @property
    def theta(self) -> np.ndarray:
        """The parameters (p,) in the form's order."""
        return np.array([self.values[name] for name in self.form.names])

    def _given(self, columns: dict[str, Any]) -> dict[str, np.ndarray]:
        wanted = set(self.form.columns)
        if set(columns) != wanted:
            raise UserError(
                f"the form {self.form.name} is of {', '.join(sorted(wanted))}; given are "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
        return {name: np.asarray(value, dtype=float) for name, value in columns.items()}

    def sampled(self, **columns: float) -> np.ndarray:
        """The loss (R,) at one point by every resample."""
        at = {name: np.atleast_1d(one) for name, one in self._given(columns).items()}
        with np.errstate(all="ignore"):
            loss: np.ndarray = self.form.value(at, self.samples)[:, 0]
        return loss

    @property
    def fitted(self) -> np.ndarray:
        """The law's loss (n,) at its points."""
        fitted: np.ndarray = self.form.value(self.columns, self.theta[None])[0]
        return fitted

    @property
    def residuals(self) -> np.ndarray:
        """log observed - log fitted, per point."""
        residuals: np.ndarray = np.log(self.loss) - np.log(self.fitted)
        return residuals

    @property
    def noise(self) -> float:
        """Standard deviation of log loss, from the median residual."""
        size = np.abs(self.residuals)
        if self.weights is not None:
            size = size * np.sqrt(self.weights)
        free = max(len(size) - self.form.free, 1)
        return max(float(1.4826 * float(np.median(size)) * np.sqrt(len(size) / free)), 1e-6)

    @property
    def r2(self) -> float:
        """Of the loss, in the sample."""
        miss = self.loss - self.fitted
        return 1 - float(miss @ miss) / float(((self.loss - self.loss.mean()) ** 2).sum())

    @property
    def given(self) -> dict[str, float]:
        """Parameters that were not fitted, on which every interval is conditional."""
        fixed = {name for name, (low, high) in self.form.parameters.items() if low == high}
        return {name: self.values[name] for name in self.form.names if name in fixed}

    @property
    def computed(self) -> bool:
        """The points lie on the law to the last digits: no noise is seen."""
        return float(np.abs(self.residuals).max()) < EXACT

    def interval_of(self, samples: np.ndarray, estimate: float) -> tuple[float, float]:
        """Of a quantity with one value (R,) a resample; NaN where it is not told: no noise, or
        resamples that have no value."""
        if self.computed or not np.isfinite(samples).all() or not np.isfinite(estimate):
            return float("nan"), float("nan")
        return bca(samples, estimate, None, self.level)

    def predict(self, **columns: float) -> Prediction:
        """Loss at one point, with the interval of the law and of one more run's loss there.

        `decades` by which the column that is farthest off lies beyond those of the runs; `refused`
        says why there is no interval. Raises UserError: a column that is missing or not positive.
        """
        far, refused = 0.0, [NO_NOISE] if self.computed else []
        for name, value in self._given(columns).items():
            runs, own = self.columns[name], name not in MEANINGS
            if value.shape or not (np.isfinite(value) and (own or value > 0)):
                kind = "finite" if own else "positive"
                raise UserError(f"{name} is {columns[name]!r}: give one {kind} number")
            if own:  # of any sign: no decades
                if abs(value - np.clip(value, runs.min(), runs.max())) > np.ptp(runs):
                    refused.append(
                        f"no interval: {name} is farther beyond the runs than they reach"
                    )
                continue
            decades = float(np.log10(value / np.clip(value, runs.min(), runs.max())))
            reach = float(np.log10(runs.max() / runs.min()))
            far = max(far, decades, key=abs)
            if abs(decades) > reach:
                refused.append(
                    f"no interval: {abs(decades):.2f} decades beyond the runs, whose {name} spans "
                    f"{reach:.2f}"
                )
        here, others = float(self(**columns)), self.sampled(**columns)
        with np.errstate(all="ignore"):
            logs = np.log(others)
        if not np.isfinite(here) or here <= 0 or not np.isfinite(logs).all():
            refused.append("the formula has no positive loss there, by the fit or its resamples")
        low, high, run_low, run_high = (float("nan"),) * 4
        if not refused:
            low, high = np.exp(bca(logs, float(np.log(here)), None, self.level))
            ends = bca(one_more(logs, self.noise), float(np.log(here)), None, self.level)
            run_low, run_high = map(float, np.exp(ends))
        at = ", ".join(f"{name} = {columns[name]:.4g}" for name in self.form.columns)
        return Prediction(
            float("nan"), here, float(low), float(high), run_low, run_high, far, "",
            "; ".join(refused), at,
        )  # fmt: skip

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the fit itself says against the law."""
        reached, out = self.status, []
        if not reached.converged:
            out.append(
                f"the fit did not converge (gradient {reached.gradient_norm:.2g}): another start "
                "may find other parameters"
            )
        if reached.basin_share < FEW_STARTS:
            out.append(
                f"only {reached.basin_share:.0%} of {reached.starts} starts reached the best "
                f"minimum (of {reached.basins}): the runs hardly tell the parameters apart"
            )
        if reached.condition > HARDLY:
            out.append(
                f"the parameters are hardly told apart (condition {reached.condition:.1g}): trust "
                "predictions near the runs, and not single parameters"
            )
        if self.resting:
            out.append(
                f"in some resamples parameters rest on a bound: {', '.join(self.resting)}; their "
                "intervals end there because the bounds do"
            )
        return (*out, *rough(reached.unfinished_share, self.residuals))

    def interval(self, name: str) -> str:
        """The interval of one of `ci`, or why there is none."""
        low, high = self.ci[name]
        return span(low, high) if np.isfinite([low, high]).all() else f"({NO_NOISE})"

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.5g}" for name, value in self.values.items())
        return f"L = {self.form.formula}; {values}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers.

        Raises UserError of a function of Python, of which a file can keep nothing.
        """
        if self.form.expression is None:
            raise UserError(
                f"form {self.form.name} is a function of Python, which no file can hold: write it "
                "as a formula, in YAML, to save its law"
            )
        return {
            "form": "formula", "name": self.form.name, "formula": self.form.formula,
            "bounds": {name: list(ends) for name, ends in self.form.parameters.items()},
            "reference": self.form.reference,
            "parameters": self.values, "level": self.level,
            "interval": {k: finite(list(v)) if np.isfinite(v).all() else None
                         for k, v in self.ci.items()},
            "given": self.given, "objective": self.objective, "corner": finite(self.corner),
            "noise_log": self.noise, "r2": self.r2, "points": len(self.loss),
            "held_out": None if self.held is None else finite(vars(self.held)),
            "resting": list(self.resting), "status": finite(vars(self.status)),
        }  # fmt: skip


def ranges(law: FormLaw) -> str:
    """The columns of the points with their ranges, in words."""
    return ", ".join(
        f"{MEANINGS.get(name, name)} {one.min():.3g} to {one.max():.3g}"
        for name, one in law.columns.items()
    )
