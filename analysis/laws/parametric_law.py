"""A fitted L(N, D): called, asked for the best size and tokens of a budget, printed.

analysis/laws/parametric.py makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from scaling.analysis.laws.bootstrap import bca
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.power_law import Prediction, distance, one_more
from scaling.analysis.laws.value import Value
from scaling.errors import UserError

NAMES = ("E", "A", "B", "alpha", "beta")
FEW_STARTS = 0.2  # of the starts; on sound tables most reach the best minimum
ELSEWHERE = 0.01  # of the resamples
COMPUTED = 1e-6  # largest miss, relative to the loss, below which no loss was measured
EXACT = 1e-9  # and below which no noise is left to draw
NO_NOISE = "no interval: the points lie on the law to the last digit, so no noise is seen"


def interval(
    name: str, samples: np.ndarray, estimate: float, jackknife: np.ndarray | None, level: float
) -> tuple[float, float]:
    """BCa interval of samples (R,) of `name`.

    Raises NotIdentified where one is not finite, or they lie elsewhere than the estimate.
    """
    lost = (~np.isfinite(samples)).mean()
    if lost:
        raise NotIdentified(
            f"L(N, D) is not identified: {lost:.0%} of the resamples give "
            f"no finite {name}; add runs over a wider range, or fit a law of compute"
        )
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    if not low <= estimate <= high:
        raise NotIdentified(
            f"L(N, D) is not identified: {name} is {estimate:.4g}, but {level:.0%} of the "
            f"resamples lie from {low:.4g} to {high:.4g}: they end elsewhere than the fit; add "
            "runs over a wider range, or fit a law of compute"
        )
    return bca(samples, estimate, jackknife, level)


def span(low: float, high: float, digits: int = 4) -> str:
    """[low, high] with as many digits as tell the ends apart."""
    for more in range(digits, 16):
        ends = f"{low:.{more}g}", f"{high:.{more}g}"
        if ends[0] != ends[1]:
            break
    return f"[{ends[0]}, {ends[1]}]"


@dataclass(frozen=True)
class SurfaceStatus:
    """What the optimiser reached; `gradient_norm` is per point and unit of the loss's slope."""

    converged: bool
    gradient_norm: float
    starts: int
    basin_share: float  # share of the starts that reached the best minimum
    basins: int  # distinct minima
    condition: float  # of the Hessian, in centred coordinates
    bootstrap: str
    resamples: int
    at_bound_share: float  # of the resamples: E, A or B is nil, or alpha or beta not in (0, 5]
    unfinished_share: float  # of the resamples: their refit did not reach a minimum


@dataclass(frozen=True)
class Optimum:
    """The best size and tokens for a budget, with intervals."""

    compute: float
    n: float
    d: float
    loss: float
    n_interval: tuple[float, float]
    d_interval: tuple[float, float]
    loss_interval: tuple[float, float]
    decades: float  # beyond the fitted compute
    unit: str
    refused: str = ""  # why an interval is not a number

    def __str__(self) -> str:
        n, d, loss = (
            f" {span(*ends, digits)}" if np.isfinite(ends).all() else ""
            for ends, digits in (
                (self.n_interval, 3), (self.d_interval, 3), (self.loss_interval, 4),
            )
        )  # fmt: skip
        return (
            f"{self.compute:.3g} {self.unit}: {self.n:.3g} parameters{n}, "
            f"{self.d:.3g} tokens{d}, loss {self.loss:.4g}{loss}, "
            f"{distance(self.decades, 'data')}" + (f"; {self.refused}" if self.refused else "")
        )


def rough(unfinished_share: float, residuals: np.ndarray) -> list[str]:
    """What refits that reached no minimum, and points that a law fits exactly, say against its
    intervals."""
    out = []
    if unfinished_share > ELSEWHERE:
        out.append(
            f"{unfinished_share:.0%} of the resamples did not reach a minimum: the intervals are "
            "rough"
        )
    size = float(np.abs(residuals).max())
    if size < COMPUTED:
        out.append(
            f"every point lies within {size:.1g} of the law: these losses were computed and not "
            "measured, and the intervals say nothing of runs"
        )
    return out


def _beyond(value: float, runs: np.ndarray, what: str) -> tuple[float, str]:
    """Decades by which a value lies beyond those of the runs, and why there is no interval there:
    nothing was held out so far away that a form without a break could be trusted."""
    decades = float(np.log10(value / np.clip(value, runs.min(), runs.max())))
    reach = float(np.log10(runs.max() / runs.min()))
    if abs(decades) <= reach:
        return decades, ""
    return decades, (
        f"no interval of the loss: {abs(decades):.2f} decades beyond the runs, whose {what} spans "
        f"{reach:.2f}; no law is carried farther than its runs reach"
    )


@dataclass(frozen=True)
class ParametricLaw:
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, eq. 2), in nats.

    Call it with parameters and tokens, of one shape; losses of that shape.
    """

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    objective: float  # the least, summed over points
    level: float
    # of E unless pinned, A, B, alpha, beta, loss_exponent and, unless tied, size_exponent; NaN
    # where `computed`
    ci: dict[str, tuple[float, float]]
    status: SurfaceStatus
    per_token: float  # compute = per_token * N * D
    unit: str
    n: np.ndarray = field(repr=False)
    d: np.ndarray = field(repr=False)
    loss: np.ndarray = field(repr=False)
    samples: np.ndarray = field(repr=False)  # (R, 5): log E, log A, log B, alpha, beta
    run_index: np.ndarray = field(repr=False)
    loss_kind: str = "huber"
    tied: bool = False
    corner: float = 1e-3  # of Huber's loss
    pinned: bool = False  # E was given and not fitted
    weights: np.ndarray | None = field(default=None, repr=False)  # (points,) of mean 1; None: 1

    @overload
    def __call__(self, n: float, d: float) -> float: ...
    @overload
    def __call__(self, n: np.ndarray, d: np.ndarray) -> np.ndarray: ...
    def __call__(self, n: float | np.ndarray, d: float | np.ndarray) -> float | np.ndarray:
        size, tokens = np.asarray(n, dtype=float), np.asarray(d, dtype=float)
        return self.e + self.a / size**self.alpha + self.b / tokens**self.beta

    @property
    def size_exponent(self) -> float:
        """a of N_opt ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def loss_exponent(self) -> float:
        """b of the frontier's E + a C^b."""
        return -self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def residuals(self) -> np.ndarray:
        """log observed - log fitted, per point."""
        residuals: np.ndarray = np.log(self.loss) - np.log(self(self.n, self.d))
        return residuals

    @property
    def noise(self) -> float:
        """Standard deviation of log loss, from the median residual: one wild run is not the noise
        of the next."""
        size = np.abs(self.residuals)
        if self.weights is not None:
            size = size * np.sqrt(self.weights)
        free = max(len(size) - 5 + self.tied + self.pinned, 1)
        return max(float(1.4826 * float(np.median(size)) * np.sqrt(len(size) / free)), 1e-6)

    def n_opt(self, compute: Value) -> Value:
        """Parameters that minimise the loss at budgets in `unit`, of any shape (Hoffmann et al.
        2022, eq. 4)."""
        log_nd = np.log(np.asarray(compute) / self.per_token)
        best: Value = np.exp(_log_n_opt(self._theta(), log_nd))
        return best

    def d_opt(self, compute: Value) -> Value:
        """Tokens that go with `n_opt`."""
        best: Value = compute / (self.per_token * self.n_opt(compute))
        return best

    @property
    def given(self) -> dict[str, float]:
        """The parameters that were not fitted, on which every interval is conditional."""
        return {"E": self.e} if self.pinned else {}

    @property
    def criterion(self) -> str:
        """What was minimised, in words."""
        corner = f" with its corner at {self.corner:g}" if 1e-6 < self.corner < np.inf else ""
        return f"{self.loss_kind} loss{corner}"

    def _theta(self) -> np.ndarray:
        log_e = np.log(self.e) if self.e else -np.inf
        return np.array([log_e, *np.log([self.a, self.b]), self.alpha, self.beta])

    def optimum(self, compute: float) -> Optimum:
        """Size, tokens and loss that the law expects of the best run of a budget in `unit`.

        Raises UserError: it is not positive.
        """
        if not (np.isfinite(compute) and compute > 0):
            raise UserError(f"compute is {compute!r}: give a positive number of {self.unit}")
        log_nd = np.log(compute / self.per_token)

        def outcome(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            log_n = _log_n_opt(theta, log_nd)
            log_d = log_nd - log_n
            e, a, b, alpha, beta = theta.T
            alpha, beta = np.maximum(alpha, 1e-6), np.maximum(beta, 1e-6)
            loss = np.exp(e) + np.exp(a - alpha * log_n) + np.exp(b - beta * log_d)
            return log_n, log_d, np.log(loss)

        point = [float(v[0]) for v in outcome(self._theta()[None])]
        nd = self.per_token * self.n * self.d
        decades, far = _beyond(compute, nd, "compute")
        names = ("size", "tokens", "loss")
        bounds, refused = [], [NO_NOISE] if self.computed else [far] if far else []
        for name, of, at in zip(names, outcome(self.samples), point, strict=True):
            try:
                bounds.append(
                    interval(f"the best {name}", np.exp(of), np.exp(at), None, self.level)
                )
            except NotIdentified as reason:
                bounds.append((np.nan, np.nan))
                refused.append(str(reason))
        if self.computed:
            bounds = [(np.nan, np.nan)] * 3
        elif far:  # N* and D* are lines in logs, whose coefficient is their value at 1 MAC
            bounds[2] = np.nan, np.nan
        n, d, loss = np.exp(point)
        return Optimum(
            float(compute), float(n), float(d), float(loss), bounds[0], bounds[1], bounds[2],
            decades, self.unit, "; ".join(refused),
        )  # fmt: skip

    def predict(self, n: float, d: float) -> Prediction:
        """Loss of n parameters on d tokens, with the interval of the law and of one more run's loss
        there; `decades` by which n or d, whichever is farther, lies beyond those of the runs.

        `refused` says why there is no interval. Raises UserError: n or d is not positive.
        """
        for name, value in (("parameters", n), ("tokens", d)):
            if not (np.isfinite(value) and value > 0):
                raise UserError(f"{name} are {value!r}: give a positive number")
        e, a, b, alpha, beta = self.samples.T
        loss = np.exp(e) + np.exp(a - alpha * np.log(n)) + np.exp(b - beta * np.log(d))
        here = float(self(n, d))
        low, high, run_low, run_high = (float("nan"),) * 4
        (of_n, n_far), (of_d, d_far) = _beyond(n, self.n, "N"), _beyond(d, self.d, "D")
        refused = NO_NOISE if self.computed else "; ".join(filter(None, (n_far, d_far)))
        if not refused:
            try:
                low, high = interval("the loss", loss, here, None, self.level)
                ends = bca(one_more(np.log(loss), self.noise), np.log(here), None, self.level)
                run_low, run_high = map(float, np.exp(ends))
            except NotIdentified as reason:
                refused = str(reason)
        return Prediction(
            self.per_token * n * d, here, low, high, run_low, run_high, max(of_n, of_d, key=abs),
            self.unit, refused, f"{n:.3g} parameters, {d:.3g} tokens",
        )  # fmt: skip

    @property
    def computed(self) -> bool:
        """The points lie on the law to the last digits: nothing was measured, no noise is seen."""
        return float(np.abs(self.residuals).max()) < EXACT

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the fit itself says against the law."""
        reached, out = self.status, []
        if not reached.converged:
            out.append(
                f"the fit did not converge (gradient {reached.gradient_norm:.2g} per point): "
                "another start may find other parameters"
            )
        if reached.basin_share < FEW_STARTS:
            out.append(
                f"only {reached.basin_share:.0%} of {reached.starts} starts reached the best "
                f"minimum (of {reached.basins}): the runs hardly tell the parameters apart"
            )
        if below := int((self.loss < self.e).sum()):
            out.append(
                f"E = {self.e:.4g} lies above the loss of {below} of {len(self.loss)} points (the "
                f"lowest is {self.loss.min():.4g}): no run can be below its own floor; check those "
                "rows, and fit again without them"
            )
        if reached.at_bound_share > ELSEWHERE:
            out.append(
                f"in {reached.at_bound_share:.0%} of the resamples E, A or B is nil or an exponent "
                "runs away: the intervals of E, A, B, alpha and beta rest on that bound"
            )
        return (*out, *rough(reached.unfinished_share, self.residuals))

    @property
    def overtraining(self) -> tuple[float, float, float]:
        """(a, b, eta) of L = E + (a M^eta + b M^-eta) C^-eta, M = D / N (Gadre et al. 2024).

        Raises UserError of a law that is not tied.
        """
        if not self.tied:
            raise UserError("alpha and beta differ: fit with tied=True for the over-training law")
        eta = self.alpha / 2
        scale = self.per_token**eta
        return self.a * scale, self.b * scale, eta

    def __str__(self) -> str:
        best = "N_opt ~ C^0.5 as alpha = beta"
        if not self.tied:
            best = f"N_opt ~ C^{self.size_exponent:.3f} {self.interval('size_exponent', 3)}"
        return (
            f"L(N, D) = {self.e:.4f} + {self.a:.5g} / N^{self.alpha:.5f} + "
            f"{self.b:.5g} / D^{self.beta:.5f}; {best}"
            + (f", given E = {self.e:g}" if self.pinned else "")
        )

    def interval(self, name: str, digits: int = 4) -> str:
        """The interval of one of `ci`, or why there is none."""
        low, high = self.ci[name]
        return span(low, high, digits) if np.isfinite([low, high]).all() else f"({NO_NOISE})"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "form": "parametric", "tied": self.tied, "unit": self.unit, "per_token": self.per_token,
            "parameters": dict(zip(NAMES, (self.e, self.a, self.b, self.alpha, self.beta),
                                   strict=True)),
            "size_exponent": self.size_exponent, "loss_exponent": self.loss_exponent,
            "level": self.level,
            "interval": {k: None if self.computed else list(v) for k, v in self.ci.items()},
            "given": self.given, "doubts": list(self.doubts), "noise_log": self.noise,
            "loss": self.loss_kind,
            "corner": self.corner if np.isfinite(self.corner) else None,
            "objective": self.objective, "points": len(self.n),
            "status": vars(self.status).copy(),
        }  # fmt: skip


def _log_n_opt(theta: np.ndarray, log_nd: float | np.ndarray) -> np.ndarray:
    """theta (..., 5) -> log N that minimises A/N^alpha + B (N/ND)^beta."""
    _, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    # A resample whose loss does not fall with a term has its optimum far away, not nowhere.
    alpha, beta = np.maximum(alpha, 1e-6), np.maximum(beta, 1e-6)
    log_n: np.ndarray = (np.log(alpha / beta) + a - b + beta * log_nd) / (alpha + beta)
    return log_n
