"""A mixture of forms at one compute: probabilities and quantiles of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from scaling.analysis.laws.forms import EXACT

CLOSE = 1e-3  # of the scatter: a quantile's last step
STEPS = 200  # of the search for a quantile, which takes 3 to 8


@dataclass(frozen=True)
class Here:
    """The mixture at one compute: K curves, each (K,), as normals of log(L - floor)."""

    weight: np.ndarray  # sums to 1
    floor: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    centre: np.ndarray  # of log L
    spread: np.ndarray  # of log L of one more point
    scatter: float

    def below(self, log_loss: np.ndarray) -> np.ndarray:
        """Probability that the law's log loss lies below each of log_loss (m,)."""
        at = np.asarray(log_loss, dtype=float)[:, None]
        # log(L - floor), without L itself: far from the data its logarithm is in the hundreds.
        share = self.floor * np.exp(-np.maximum(at, -600))
        above = at + np.log1p(-np.minimum(share, 1 - 1e-15))
        z = np.where(share < 1, (above - self.mean) / self.deviation, -40)
        share_below: np.ndarray = ndtr(z) @ self.weight
        return share_below

    def run_below(self, log_loss: np.ndarray) -> np.ndarray:
        """The same of one more point's log loss."""
        at = np.asarray(log_loss, dtype=float)[:, None]
        share_below: np.ndarray = ndtr((at - self.centre) / self.spread) @ self.weight
        return share_below

    def quantiles(self, levels: Sequence[float] | np.ndarray, *, run: bool = False) -> np.ndarray:
        """Quantiles of the loss: of the law, or of one more such point's.

        By the secant through the normal scores of the levels, which is nearly straight, within a
        bracket that shrinks to the root where it is not.
        """
        below = self.run_below if run else self.below
        wanted = ndtri(np.asarray(levels, dtype=float))
        middle = float(self.weight @ self.centre)
        wide = self.spread**2 if run else (self.deviation * np.exp(self.mean - self.centre)) ** 2
        unit = max(float(np.sqrt(self.weight @ (wide + (self.centre - middle) ** 2))), EXACT)
        at, slope = middle + unit * wanted, np.full(len(wanted), 1 / unit)
        low, high = np.full(len(wanted), -np.inf), np.full(len(wanted), np.inf)
        left = np.arange(len(wanted))  # those levels that are still searched
        before: tuple[np.ndarray, np.ndarray] | None = None
        for count in range(STEPS):
            off = ndtri(np.clip(below(at[left]), 1e-300, 1 - 1e-16)) - wanted[left]
            low[left] = np.where(off < 0, at[left], low[left])
            high[left] = np.where(off < 0, high[left], at[left])
            if before is not None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    secant = (off - before[1]) / (at[left] - before[0])
                slope[left] = np.where(secant > 0, secant, slope[left])
            step = off / slope[left]
            next_ = at[left] - np.clip(step, -8 * unit, 8 * unit)
            inside = (low[left] < next_) & (next_ < high[left])
            with np.errstate(invalid="ignore"):
                half = (low[left] + high[left]) / 2
            next_ = np.where(np.isfinite(half) & (~inside | (count % 4 == 3)), half, next_)
            done = np.abs(next_ - at[left]) < CLOSE * self.scatter
            before = at[left][~done], off[~done]
            at[left] = next_
            left = left[~done]
            if not len(left):
                break
        loss: np.ndarray = np.exp(np.minimum(at, 700))
        return loss
