"""What a law of rate and batch (laws/rates_fit.py) says of the loss: at the optimum, off it, and
where runs diverge.

The loss at the optimum is that of the cells' levels: L = E + A / N^alpha + B / D^beta where they
determine it, else a power law log L = c + a log N + b log D, which holds between the cells and a
little beyond (a floor is not in it, so far beyond it is low).
Whether a run diverges is a logistic regression on the logarithms of rate, batch, N and D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, stdtrit

from scaling.analysis.laws.parametric import fit_parametric
from scaling.errors import UserError

REACH = 4.0  # times beyond the cells' N or D up to which their loss is predicted
RIDGE = 0.05  # on the standardised slopes: rates may part the diverged from the others exactly
RESAMPLES = 400
FEW = 5  # runs that diverged and that did not, below which no probability is told


@dataclass(frozen=True, eq=False)
class Levels:
    """The loss at the optimum as a law of N and D, of the cells' levels.

    surface (R + 1, 5): log E, log A, log B, alpha, beta of the levels and of resamples; None: they
    do not determine it, and `reason` says why; then log L = c + a log N + b log D.
    """

    design: np.ndarray  # (G, k) of the cells: 1, and log N, log D less their middle as they vary
    log_level: np.ndarray  # (G,)
    middle: tuple[float, float]  # of log N and log D
    varies: tuple[bool, bool]
    confidence: float = 0.95
    surface: np.ndarray | None = None
    reason: str = ""

    @classmethod
    def of(
        cls, n: np.ndarray, d: np.ndarray, level: np.ndarray, confidence: float,
        surface: np.ndarray | None = None,
    ) -> Levels:  # fmt: skip
        """Of cells (G,). surface: as it was fitted before."""
        logs = np.log(n), np.log(d)
        middle = float(logs[0].mean()), float(logs[1].mean())
        varies = bool(np.ptp(logs[0]) > 0.05), bool(np.ptp(logs[1]) > 0.05)
        if all(varies) and abs(np.corrcoef(*logs)[0, 1]) > 0.98:
            varies = True, False
        empty = np.ones((len(n), 1))
        found = cls(empty, np.log(level), middle, varies, confidence)
        return cls(found.row(n, d), np.log(level), middle, varies, confidence, surface)

    @classmethod
    def fitted(cls, n: np.ndarray, d: np.ndarray, level: np.ndarray, confidence: float) -> Levels:
        """Of cells (G,), by the surface where it is determined."""
        plain = cls.of(n, d, level, confidence)
        try:
            with np.errstate(over="ignore"):  # of resamples that left for infinity: refused
                law = fit_parametric(n, d, level, per_token=3.0, unit="MACs", resamples=RESAMPLES)
        except UserError as refusal:  # NotIdentified among them
            return replace(plain, reason=str(refusal))
        best = [np.log(law.e), np.log(law.a), np.log(law.b), law.alpha, law.beta]
        surface = np.vstack([best, law.samples])
        if not np.isfinite(surface[0]).all():
            return replace(plain, reason="L(N, D) has no floor here")
        return replace(plain, surface=surface)

    def row(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """The design (m, k) at sizes and tokens (m,)."""
        logs = [np.log(v) - m for v, m in zip((n, d), self.middle, strict=True)]
        some = [one for one, use in zip(logs, self.varies, strict=True) if use]
        return np.column_stack([np.ones(len(np.atleast_1d(n))), *map(np.atleast_1d, some)])

    @property
    def freedom(self) -> int:
        """Cells beyond the parameters."""
        return len(self.log_level) - int(self.design.shape[1])

    @property
    def slopes(self) -> np.ndarray:
        """c, and a and b as they vary."""
        found: np.ndarray = np.linalg.lstsq(self.design, self.log_level, rcond=None)[0]
        return found

    def predict(self, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log L (m,) and its interval, that of one more cell."""
        n, d = np.atleast_1d(n).astype(float), np.atleast_1d(d).astype(float)
        if self.surface is not None:
            e, a, b, alpha, beta = (one[:, None] for one in self.surface.T)
            every = np.log(np.exp(e) + np.exp(a - alpha * np.log(n)) + np.exp(b - beta * np.log(d)))
            tail = (1 - self.confidence) / 2
            low, high = np.quantile(every[1:], [tail, 1 - tail], axis=0)
            return every[0], np.minimum(low, every[0]), np.maximum(high, every[0])
        row = self.row(n, d)
        value = row @ self.slopes
        if self.freedom < 1:
            none = np.full(len(value), np.nan)
            return value, none, none.copy()
        off = self.log_level - self.design @ self.slopes
        variance = float(off @ off) / self.freedom
        spread = np.einsum("mk,kj,mj->m", row, np.linalg.inv(self.design.T @ self.design), row)
        t = float(stdtrit(self.freedom, (1 + self.confidence) / 2))
        half = t * np.sqrt(variance * (1 + spread))
        return value, value - half, value + half


@dataclass(frozen=True, eq=False)
class Divergence:
    """The probability that a run diverges; its loss, where runs that did have one."""

    slopes: np.ndarray  # (5,): constant, and by log2 lr, batch, N, D less `middle`
    middle: np.ndarray  # (4,)
    loss: float  # median of the diverged runs; NaN: none has a loss

    @classmethod
    def of(cls, columns: np.ndarray, gone: np.ndarray, loss: np.ndarray) -> Divergence | None:
        """Of runs: columns (n, 4), log2 of lr, batch, N and D; gone (n,): which diverged. None
        where fewer than FEW did, or did not."""
        if min(gone.sum(), (~gone).sum()) < FEW:
            return None
        middle, scale = columns.mean(0), np.maximum(columns.std(0), 1e-9)
        scale = np.where(columns.std(0) < 1e-6, 1.0, scale)
        x = np.column_stack([np.ones(len(columns)), (columns - middle) / scale])

        def objective(b: np.ndarray) -> tuple[float, np.ndarray]:
            z = x @ b
            ridge = RIDGE * b * (np.arange(len(b)) > 0)
            value = np.logaddexp(0, z).sum() - z[gone].sum() + 0.5 * float(ridge @ b)
            return float(value), x.T @ (expit(z) - gone) + ridge

        found = minimize(objective, np.zeros(x.shape[1]), jac=True, method="BFGS").x
        seen = loss[gone & np.isfinite(loss)]
        typical = float(np.median(seen)) if len(seen) else float("nan")
        return cls(np.concatenate([found[:1], found[1:] / scale]), middle, typical)

    def probability(self, columns: np.ndarray) -> np.ndarray:
        """Of runs (m, 4) -> (m,)."""
        out: np.ndarray = expit(self.slopes[0] + (columns - self.middle) @ self.slopes[1:])
        return out

    def threshold(self, batch: float, n: float, d: float) -> float:
        """log2 of the rate at which half of the runs diverge; NaN: the rate does not tell."""
        if self.slopes[1] <= 0:
            return float("nan")
        rest = np.log2([batch, n, d]) - self.middle[1:]
        return float(self.middle[0] - (self.slopes[0] + rest @ self.slopes[2:]) / self.slopes[1])
