"""The law of a loss curve under any schedule of the rate: the multi-power law, with one addition.

    L(t) = L0 + A S(t)^-alpha - B sum_k (eta_{k-1} - eta_k) G(C eta_k^-gamma S_k(t))
    G(x) = 1 - (1 + x)^-beta,   S_k(t) = eta_k + ... + eta_t,   S(t) = sum_k top (eta_k / top)^p

(Luo et al., ICLR 2025, arXiv 2503.12811, where p = 1; top: the highest rate of the curves.) Inside,
rates are shares of top, so that their unit changes nothing and S counts steps at the top rate. The
power is what steps bring, the sum what falls of the rate bring. With p = 1 a law of curves of one
length puts the loss of longer ones, whose rate was high for longer, too low; p near 0.3 follows
them, since steps at a low rate bring more than their share.

    law = fit_curve([Curve("constant", schedule, step, loss), Curve("cosine", ...)])
    law.predict(wsd(48000, 3e-4, warmup=2160)).loss[-1]

Two schedules do not determine C, beta, gamma and p: they are held near what curves published so far
had, PRIOR, as far as the curves do not say otherwise, and the intervals have that uncertainty too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import stdtrit

from scaling.analysis.laws.schedule import FLOOR, GAUSS, Schedule
from scaling.errors import UserError

NAMES = ("L0", "log A", "alpha", "log B", "log C", "beta", "gamma", "p", "before")
LOW = np.array([0.0, -40, 0.01, -40, -10, 0.01, 0, 0, 0.4])
HIGH = np.array([1e9, 40, 3.0, 60, 20, 3.0, 3, 1.5, 1.0])
# Centre and standard deviation: beta, gamma of 25M to 400M in Luo et al. (.59, .64) rounded, and
# their C (2.1) at their rate (3e-4), in shares of it; `before`: the rates before the first row sum
# to half of rate x step, as a linear warm-up that ends there.
PRIOR = {"log C": (-2.55, 0.7), "beta": (0.6, 0.15), "gamma": (0.6, 0.15), "p": (0.3, 0.15),
         "before": (0.5, 0.15)}  # fmt: skip
# log of B (in shares of the top rate) over the loss: a full fall brings 3% of it; 2.5 to 4.7% there
FALL = -3.4
FAR = 4.0  # times the longest curve's steps: no loss is said beyond


@dataclass(frozen=True)
class Curve:
    """One run: its schedule, and the loss (m,) after `step` (m,) steps, increasing."""

    name: str
    schedule: Schedule
    step: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class CurveStatus:
    """What the optimiser reached; `gradient` as of minimise.Reached."""

    converged: bool
    gradient: float
    starts: int
    at_bound: tuple[str, ...]  # parameters
    told: dict[str, float]  # share of the prior's variance that the curves took away, 0 to 1


@dataclass(frozen=True)
class CurvePrediction:
    """Losses (m,) along a schedule, with 95% intervals of the law and of one more run."""

    step: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray
    run_low: np.ndarray
    run_high: np.ndarray
    refused: str = ""  # why there is none: then all but `step` are NaN


class Design:
    """What of some curves a prediction needs, whatever the parameters."""

    def __init__(self, schedules: Sequence[Schedule], steps: Sequence[np.ndarray], top: float):
        self.rows = sum(map(len, steps))
        self.top = top
        self.row_of: list[slice] = []
        self.progress: list[tuple[np.ndarray, ...]] = []
        falls: list[tuple[np.ndarray, ...]] = []
        first: list[np.ndarray] = []
        begin = 0
        for schedule, step in zip(schedules, steps, strict=True):
            self.row_of.append(slice(begin, begin + len(step)))
            row, *others = schedule.drops(step)
            falls.append((row + begin, *others))
            self.progress.append(_progress(schedule, step, top))
            first.append(np.full(len(step), schedule.step[0]))
            begin += len(step)
        self.row, self.lag, self.log_rate, self.weight = (
            np.concatenate(column) for column in zip(*falls, strict=True)
        )
        self.log_rate, self.weight = self.log_rate - np.log(top), self.weight / top
        self.log_lag = np.log(np.maximum(self.lag / top, 1e-300))
        self.before = np.concatenate(first)  # steps before the first row
        self.steps = max(schedule.end for schedule in schedules)

    def loss(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta (9,) -> losses (n,) and their slopes (n, 9). The slopes are those of this sum."""
        l0, log_a, alpha, log_b, log_c, beta, gamma, p, before = theta
        parts = [_powers(one, p) for one in self.progress]
        total = np.concatenate([s for s, _, _ in parts])
        by_p = np.concatenate([s for _, s, _ in parts])
        share = np.concatenate([s for _, _, s in parts])  # of the top rate, at the first knot
        s = total + before * self.before * share**p
        by_p = by_p + before * self.before * share**p * np.log(share)
        power = np.exp(log_a - alpha * np.log(s))
        slopes = np.empty((self.rows, len(NAMES)))
        slopes[:, 0], slopes[:, 1], slopes[:, 2] = 1.0, power, -power * np.log(s)
        slopes[:, 7] = -alpha * power / s * by_p
        slopes[:, 8] = -alpha * power / s * self.before * share**p
        # In logs: x may be huge where the rate is nearly 0.
        log_x = np.minimum(log_c - gamma * self.log_rate + self.log_lag, 600.0)
        x = np.exp(log_x)
        growth = np.log1p(x)
        left = np.exp(-beta * growth)
        slow = self.weight * beta * left * (x / (1 + x))
        b = np.exp(log_b)

        def of_rows(values: np.ndarray) -> np.ndarray:
            summed: np.ndarray = b * np.bincount(self.row, values, self.rows)
            return summed

        fallen = of_rows(self.weight * (1 - left))
        slopes[:, 3] = -fallen
        slopes[:, 4] = -of_rows(slow)
        slopes[:, 5] = -of_rows(self.weight * left * growth)
        slopes[:, 6] = of_rows(slow * self.log_rate)
        return l0 + power - fallen, slopes

    def log_loss(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of log loss; NaN where the loss is not positive."""
        loss, slopes = self.loss(theta)
        with np.errstate(all="ignore"):
            return np.log(np.where(loss > 0, loss, np.nan)), slopes / loss[:, None]


def _progress(schedule: Schedule, step: np.ndarray, top: float) -> tuple[np.ndarray, ...]:
    """For `_powers`: log shares of the top rate and lengths of pieces, where rows lie, ends."""
    # Where a warm-up begins the power is steep.
    begin = schedule.step[0]
    steep = begin + (schedule.warm - begin) * 2.0 ** -np.arange(10)
    k = np.unique(np.concatenate([schedule.step, step, steep]))
    low, high = k[:-1], k[1:]
    where = ((low + high) / 2)[:, None] + ((high - low) / 2)[:, None] * GAUSS
    inside = np.log(np.maximum(schedule.at(where) / top, FLOOR))
    at = np.log(np.maximum(schedule.at(step) / top, FLOOR))
    first = np.log(np.maximum(schedule.rate[:1] / top, FLOOR))
    return inside, (high - low) / 2, np.searchsorted(k, step), at, first


def _powers(pieces: tuple[np.ndarray, ...], p: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of (eta / top)^p after the first knot (m,), its slope in p, and eta / top there."""
    inside, half, place, at, first = pieces
    power, ends, begin = np.exp(p * inside), np.exp(p * at), np.exp(p * first)
    whole = np.concatenate([[0.0], np.cumsum(half * power.sum(1))])[place]
    by_p = np.concatenate([[0.0], np.cumsum(half * (power * inside).sum(1))])[place]
    total = whole + (ends - begin) / 2
    return total, by_p + (ends * at - begin * first) / 2, np.full(len(at), np.exp(first[0]))


@dataclass(frozen=True)
class CurveLaw:
    """A fitted law of the loss curve, in the loss's own unit. Made by `fit_curve`."""

    theta: np.ndarray  # (9,) of NAMES
    covariance: np.ndarray = field(repr=False)  # (9, 9)
    status: CurveStatus
    objective: float  # Huber's loss of log loss, summed over the rows that were fitted
    delta: float
    level: float
    top: float  # highest rate
    noise: float  # sd of log loss of one row about its curve
    misfit: float  # sd of log loss of a stretch of a curve about the law
    freedom: int  # degrees of the intervals' Student's t
    longest: float  # steps of the longest curve
    peaks: tuple[float, float]  # lowest and highest peak rate of the curves
    rows: int  # losses that were fitted
    held_out: dict[str, float]  # curve -> rms relative error of it, predicted from the others
    warnings: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> dict[str, float]:
        """L0, A, alpha, B, C, beta, gamma, p; rates in the table's unit."""
        found = self._plain(self.theta)
        return {name: value for name, value in found.items() if name != "before"}

    @cached_property
    def ci(self) -> dict[str, tuple[float, float]]:
        """Intervals of the parameters, at `level`."""
        half = self._t * np.sqrt(np.diag(self.covariance))
        out = {}
        for j, name in enumerate(self.parameters):
            ends = []
            for side in (-1, 1):
                moved = self.theta.copy()
                moved[j] += side * half[j]
                ends.append(self._plain(moved)[name])
            out[name] = (ends[0], ends[1])
        return out

    def _plain(self, theta: np.ndarray) -> dict[str, float]:
        """Of the formula above, from those in shares of the top rate; others at their estimate."""
        log_top = np.log(self.top)
        moved = theta.copy()
        moved[NAMES.index("log A")] += self.theta[NAMES.index("alpha")] * log_top
        moved[NAMES.index("log B")] -= log_top
        moved[NAMES.index("log C")] += (self.theta[NAMES.index("gamma")] - 1) * log_top
        with np.errstate(over="ignore"):
            return {
                name.removeprefix("log "): float(np.exp(v) if name.startswith("log ") else v)
                for name, v in zip(NAMES, moved, strict=True)
            }

    @property
    def _t(self) -> float:
        return float(stdtrit(self.freedom, (1 + self.level) / 2))

    def predict(self, schedule: Schedule, step: np.ndarray | None = None) -> CurvePrediction:
        """Losses of a run on this schedule after `step` (m,) steps; at its end where None.

        Refused: a schedule more than FAR times as long as the curves, or of another peak rate.
        Raises UserError: steps beyond the schedule.
        """
        at = np.array([schedule.end]) if step is None else np.asarray(step, dtype=float)
        if len(at) == 0 or not (at > 0).all() or at.max() > schedule.end * (1 + 1e-9):
            raise UserError(f"steps must be positive and at most {schedule.end:g}")
        nothing = np.full(len(at), np.nan)
        if refused := self._refusal(schedule):
            return CurvePrediction(at, nothing, nothing, nothing, nothing, nothing, refused)
        log_loss, slopes = Design([schedule], [at], self.top).log_loss(self.theta)
        if not np.isfinite(log_loss).all():
            refused = "the law falls below 0 there"
            return CurvePrediction(at, nothing, nothing, nothing, nothing, nothing, refused)
        spread = np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes)
        law = self._t * np.sqrt(spread + self.misfit**2)
        run = self._t * np.sqrt(spread + self.misfit**2 + self.noise**2)
        loss = np.exp(log_loss)
        return CurvePrediction(
            at, loss, loss * np.exp(-law), loss * np.exp(law), loss * np.exp(-run),
            loss * np.exp(run),
        )  # fmt: skip

    def _refusal(self, schedule: Schedule) -> str:
        if schedule.end > FAR * self.longest:
            return (
                f"{schedule.end:g} steps are more than {FAR:g} times the longest curve's "
                f"{self.longest:g}"
            )
        peak, (low, high) = schedule.rate.max(), self.peaks
        if not low / 1.05 <= peak <= high * 1.05:
            return (
                f"its peak rate {peak:.3g} lies outside those of the curves, {low:.3g} to "
                f"{high:.3g}: a law of the schedule is none of the peak rate"
            )
        return ""

    def __str__(self) -> str:
        p = self.parameters
        return (
            f"L(t) = {p['L0']:.4g} + {p['A']:.4g} S^-{p['alpha']:.3f} - {p['B']:.4g} x falls of "
            f"the rate, each x 1 - (1 + {p['C']:.3g} eta^-{p['gamma']:.2f} S_k)^-{p['beta']:.2f}; "
            f"S: sum of rates^{p['p']:.2f}"
        )
