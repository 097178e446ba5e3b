"""The loss of the best size at each budget, not of a lucky run, and its error.

Where a dozen runs lie within their noise of the optimum, the lowest of them is low by one and a
half standard deviations, at every budget alike, and a law through such points passes under the
truth. So the sizes near the optimum are chosen by the smooth loss (laws/smooth.py), which no
single run's luck moves, and their runs are averaged, each less what its size costs by the smooth
loss. Two distant sizes leave the better one's run as it is; of many sizes the smooth loss only says
how far each lies above the best, the level is that of their runs. The error of this estimate is
that of the same recipe on new noise, the smooth loss fitted anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.smooth import Smooth, describe
from scaling.analysis.schema import WEIGHT

NEAR = 0.1  # log loss above its budget's best within which a cell describes the smooth loss
MOST = 2000  # cells that describe it; of more, evenly chosen ones
REACH = 2.0  # standard deviations of a run above the best within which a size tells its loss
RUNS = 30  # runs that tell the loss of one budget's best size, at most
CUT = 2.0  # standard deviations beyond which a run counts as so far from the others' middle
STEPS = 100  # sizes at which the smooth loss is searched for its least


@dataclass(frozen=True)
class Level:
    """One budget: its compute, the runs near the best size, and the sizes that compete."""

    macs: float
    cells: np.ndarray  # (k,) places among the smooth loss's cells
    log_n: np.ndarray  # (k,) of these cells
    log_d: np.ndarray  # (k,)
    between_n: np.ndarray  # (STEPS,) log N from the smallest to the largest size
    between_d: np.ndarray  # (STEPS,) and log D at the budget's compute
    weight: np.ndarray  # (k,) of these cells, of mean 1 over all; 1 without weights

    def of(self, smooth: Smooth, coefficients: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
        """Log loss (R,) of the best size; coefficients (R, p), log loss of all cells (R, n)."""
        least = smooth.loss(self.between_n, self.between_d, coefficients).min(-1)
        here = np.log(smooth.loss(self.log_n, self.log_d, coefficients))
        residual = log_loss[:, self.cells] - here
        middle = np.median(residual, axis=1) if len(self.cells) > 2 else residual.mean(1)
        cut = CUT * smooth.noise.total
        off = np.clip(residual - middle[:, None], -cut, cut) * self._weight(smooth)
        level: np.ndarray = np.log(least) + middle + off.sum(1)
        return level

    def _weight(self, smooth: Smooth) -> np.ndarray:
        weight = nearness(self.above(smooth), smooth) * self.weight
        share: np.ndarray = weight / weight.sum()
        return share

    def mean_weight(self, smooth: Smooth) -> float:
        """Of the cells, by how near they are to the best size."""
        return float(np.average(self.weight, weights=nearness(self.above(smooth), smooth)))

    def above(self, smooth: Smooth) -> np.ndarray:
        """Smooth log loss (k,) of the cells' sizes above the best of them, at one compute."""
        at = np.interp(self.log_n, self.between_n, self.between_d)
        loss = np.log(smooth.loss(self.log_n, at, smooth.coefficient[None])[0])
        above: np.ndarray = loss - loss.min()
        return above


def nearness(above: np.ndarray, smooth: Smooth) -> np.ndarray:
    """Weight of runs so far (log loss) above the best size: 1 there, 0 at REACH deviations."""
    return np.maximum(1 - (above / (REACH * smooth.noise.total)) ** 2, 0)


@dataclass(frozen=True)
class BestLoss:
    """The loss of every budget's best size."""

    smooth: Smooth
    levels: tuple[Level, ...]

    def points(self) -> pd.DataFrame:
        """macs_total, val_loss, designs (the numbers of those that tell it), edge (the smooth loss
        still falls at the smallest or the largest size) and weight, a row a budget."""
        smooth, whole = self.smooth, self.smooth.coefficient[None]
        observed = np.log(smooth.cells["val_loss"].to_numpy(float))[None]
        number = smooth.cells["design"].to_numpy()
        out = []
        for level in self.levels:
            least = smooth.loss(level.between_n, level.between_d, whole)[0].argmin()
            loss = float(np.exp(level.of(smooth, whole, observed)[0]))
            designs = tuple(dict.fromkeys(number[level.cells].tolist()))
            edge = least in (0, len(level.between_n) - 1)
            out.append((level.macs, loss, designs, edge, level.mean_weight(smooth)))
        return pd.DataFrame(out, columns=["macs_total", "val_loss", "designs", "edge", WEIGHT])

    def errors(self, resamples: int, seed: int) -> np.ndarray:
        """Errors (resamples, budgets) of the log losses of `points`."""
        smooth, log_loss = self.smooth, np.log(self._fitted())
        again = log_loss + smooth.draw(resamples, np.random.default_rng(seed))
        coefficients, whole = smooth.refit(again), smooth.coefficient[None]
        return np.stack(
            [
                level.of(smooth, coefficients, again) - level.of(smooth, whole, log_loss[None])
                for level in self.levels
            ],
            1,
        )

    def _fitted(self) -> np.ndarray:
        log_n, log_d = (np.log(self.smooth.cells[c].to_numpy(float)) for c in ("params", "tokens"))
        loss: np.ndarray = self.smooth.loss(log_n, log_d, self.smooth.coefficient[None])[0]
        return loss


def best_loss(table: pd.DataFrame, points: pd.DataFrame, *, cloud: bool = False) -> BestLoss | None:
    """None when the cells are too few or span too little to tell noise from shape.

    table: `Ladder.cells(budgets=True)`; points: the lowest design of each budget (their slope is
    what the noise is for). cloud: budgets are bins of a cloud of runs, each of which tried a few
    sizes and all together many.
    """
    lowest = table.groupby("budget_macs")["val_loss"].transform("min")
    near = table[np.log(table["val_loss"] / lowest) <= NEAR]
    if len(near) > MOST:
        near = near.sort_values(["budget_macs", "params"], kind="stable")
        near = near.iloc[np.linspace(0, len(near) - 1, MOST).astype(int)]
    x = np.log(points["macs_total"].to_numpy(float))
    if np.ptp(x) == 0:  # no slope, and no law
        return None
    slope = pd.Series((x - x.mean()) / ((x - x.mean()) ** 2).sum(), index=points["design"])
    seeds = near.groupby("design")["design"].transform("size")
    slope_of = near["design"].map(slope).fillna(0.0).to_numpy() / seeds.to_numpy()
    try:
        smooth = describe(near, slope_of, None)
    except NotIdentified:
        return None
    budget = smooth.cells["budget_macs"].to_numpy(float)
    budgets = points["budget_macs"].to_numpy(float)
    if not np.isin(budgets, budget).all():
        return None
    return BestLoss(smooth, tuple(_level(smooth, budget == one, cloud) for one in budgets))


def _level(smooth: Smooth, of_budget: np.ndarray, cloud: bool) -> Level:
    here = np.flatnonzero(of_budget)
    log_n, log_d, log_c = (
        np.log(smooth.cells[c].to_numpy(float)) for c in ("params", "tokens", "macs_total")
    )
    middle = float(log_c[here].mean())
    # Tokens at one compute for all: a size's runs may have had a little more or less.
    at_middle = log_d - log_c + middle
    tried = np.arange(len(log_n)) if cloud else here
    order = tried[np.argsort(log_n[tried], kind="stable")]
    between_n = np.linspace(log_n[order[0]], log_n[order[-1]], STEPS)
    between_d = np.interp(between_n, log_n[order], at_middle[order])
    if cloud:  # only tokens that runs had say what tokens do
        inside = (between_d >= log_d.min()) & (between_d <= log_d.max())
        between_n, between_d = between_n[inside], between_d[inside]
    weight = smooth.share**-2
    level = Level(
        float(np.exp(middle)), here, log_n[here], log_d[here], between_n, between_d, weight[here]
    )
    above = level.above(smooth)
    few = np.argsort(above, kind="stable")[:RUNS]
    few = here[few[nearness(above[few], smooth) > 0]]
    return Level(level.macs, few, log_n[few], log_d[few], between_n, between_d, weight[few])
