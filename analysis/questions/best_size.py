"""The best size of each budget from its losses, by several estimators, many resamples at once.

Arrays: R resamples, B budgets, S sizes of a budget (NaN where a budget has fewer). Every estimator
gives log N (R, B), NaN where a budget has no usable optimum: the best size is the smallest or the
largest tried there, or the parabola does not open upwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.analysis.questions.frontier import lower_hull

MIN_SIZES = 4  # a parabola through three points is exact
NEAREST = 5  # sizes that a window holds at least, where a budget has so many
SAME_COST = 1.001  # costs within this factor are one budget's, as they are


@dataclass(frozen=True)
class Grid:
    """Cells of budgets as arrays. `cells` has one row a budget and size."""

    cells: pd.DataFrame
    log_c: np.ndarray  # (B,) log of each budget's MACs: the mean log compute of its cells
    index: np.ndarray  # (B, S) rows of `cells`, -1 where there are fewer sizes
    log_n: np.ndarray  # (B, S)
    weight: np.ndarray  # (B, S), 0 where there are fewer sizes

    @classmethod
    def of(cls, cells: pd.DataFrame) -> Grid:
        """cells: budget_macs, macs_total, params, weight; of each budget and size one."""
        cells = cells.sort_values(["budget_macs", "params"]).reset_index(drop=True)
        budget = np.unique(cells["budget_macs"].to_numpy(float), return_inverse=True)[1]
        count = np.bincount(budget)
        place = np.arange(len(cells)) - np.repeat(np.cumsum(count) - count, count)
        index = np.full((len(count), count.max(initial=0)), -1)
        index[budget, place] = np.arange(len(cells))
        here = index >= 0
        log_n = np.where(here, np.log(cells["params"].to_numpy(float))[index], np.nan)
        weight = np.where(here, cells["weight"].to_numpy(float)[index], 0.0)
        log_c = np.bincount(budget, np.log(cells["macs_total"].to_numpy(float))) / count
        return cls(cells, log_c, index, log_n, weight)

    @property
    def budgets(self) -> np.ndarray:
        """Name of each budget (B,): its `budget_macs`."""
        budgets: np.ndarray = self.cells["budget_macs"].to_numpy(float)[self.index[:, 0]]
        return budgets

    @property
    def spread(self) -> float:
        """Largest factor between the costs of a budget's cells; below SAME_COST they are one."""
        by = self.cells.groupby("budget_macs")["macs_total"]
        return float((by.max() / by.min()).max())

    def pad(self, values: np.ndarray) -> np.ndarray:
        """(R, cells) -> (R, B, S)."""
        return np.where(self.index >= 0, values[..., self.index], np.nan)

    def inside(self, log_n: np.ndarray) -> np.ndarray:
        """log N (R, B) with NaN where it is not between the smallest and the largest size."""
        low, high = self.ends
        with np.errstate(invalid="ignore"):
            return np.where((log_n > low + 1e-9) & (log_n < high - 1e-9), log_n, np.nan)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """log N (B,) of the smallest and of the largest size of each budget."""
        return np.nanmin(self.log_n, -1), np.nanmax(self.log_n, -1)

    @property
    def sizes(self) -> np.ndarray:
        """Sizes of each budget (B,)."""
        count: np.ndarray = (self.index >= 0).sum(-1)
        return count


def best_runs(grid: Grid, loss: np.ndarray) -> np.ndarray:
    """log N (R, B) of the least loss (R, B, S), wherever it lies."""
    best = np.where(np.isnan(loss), np.inf, loss).argmin(-1)
    log_n: np.ndarray = grid.log_n[np.arange(len(grid.log_n)), best]
    return log_n


def interpolated(grid: Grid, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log N (R, B) of the minimum of Akima's curve through a budget's losses (R, B, S) in log N,
    as Porian et al. 2024 (arXiv 2406.19146) take it, and the loss there; NaN with fewer than
    MIN_SIZES sizes."""
    from scipy.interpolate import Akima1DInterpolator  # takes long to import

    out, least = np.full((2, *loss.shape[:2]), np.nan)
    for b, count in enumerate(grid.sizes):
        if count < MIN_SIZES:
            continue
        x, y = grid.log_n[b, :count], loss[:, b, :count]
        c3, c2, c1, c0 = Akima1DInterpolator(x, y.T).c  # (4, S - 1, R), about the left size
        width = np.diff(x)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(np.maximum(c2**2 - 3 * c3 * c1, 0))
            # Of the two places of no slope the minimum; the second form serves a straight slope.
            at = np.where(c2 > 0, -c1 / (c2 + root), (root - c2) / (3 * c3))
        at = np.where((at >= 0) & (at <= width), at, 0.0)
        value = np.concatenate([((c3 * at + c2) * at + c1) * at + c0, y.T[-1:]])
        places = np.concatenate([at + x[:-1, None], np.full((1, len(y)), x[-1])])
        best = value.argmin(0)
        out[:, b] = places[best, np.arange(len(y))]
        least[:, b] = value.min(0)
    return out, least


def line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of y (R, B) on x (B,) without the NaNs of y: value at the mean of x, slope
    (R,). NaN with fewer than two values."""
    middle = x.mean() if len(x) else 0.0
    x = np.where(np.isfinite(y), x - middle, 0.0)
    count = np.isfinite(y).sum(-1)
    y = np.where(np.isfinite(y), y, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x, mean_y = x.sum(-1) / count, y.sum(-1) / count
        var = (x**2).sum(-1) - count * mean_x**2
        slope = ((x * y).sum(-1) - count * mean_x * mean_y) / np.where(var > 1e-12, var, np.nan)
    return mean_y - slope * mean_x, slope


def centres(grid: Grid, loss: np.ndarray) -> np.ndarray:
    """log N (R, B) on the straight line through the best runs of all budgets, in logs; the best
    runs themselves where there are fewer than three budgets."""
    best = best_runs(grid, loss)
    if len(grid.log_c) < 3:
        return best
    level, slope = line(grid.log_c, best)
    on_line: np.ndarray = level[:, None] + slope[:, None] * (grid.log_c - grid.log_c.mean())
    return on_line


def window(grid: Grid, centre: np.ndarray, factor: float) -> np.ndarray:
    """Which sizes (R, B, S) lie within `factor` of the centre (R, B), at least the NEAREST."""
    far = np.abs(grid.log_n - centre[..., None])
    far = np.where(np.isnan(far), np.inf, far)
    rank = far.argsort(-1, kind="stable").argsort(-1, kind="stable")
    used: np.ndarray = ((far <= np.log(factor)) | (rank < NEAREST)) & (grid.index >= 0)
    return used


@dataclass(frozen=True)
class Parabola:
    """L = loss + curvature (log N - vertex)^2 at each budget, each (R, B); NaN: too few sizes."""

    vertex: np.ndarray
    curvature: np.ndarray
    loss: np.ndarray


def parabolas(grid: Grid, loss: np.ndarray, used: np.ndarray) -> Parabola:
    """Least squares in log N through the sizes `used` (R, B, S), weighted by `grid.weight`."""
    weight = np.where(used, grid.weight, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weight.sum(-1)
        x = np.where(grid.index >= 0, grid.log_n, 0.0)
        centre = (weight * x).sum(-1) / total
        x = np.where(used, x - centre[..., None], 0.0)
        span = np.abs(x).max(-1)
        x = x / span[..., None]
        y = np.where(used, loss, 0.0)
        level = (weight * y).sum(-1) / total
        y = np.where(used, y - level[..., None], 0.0)
        powers = [weight]  # weight x^k
        for _ in range(4):
            powers.append(powers[-1] * x)
        s = [p.sum(-1) for p in powers]
        t = [np.einsum("...s,...s->...", p, y) for p in powers[:3]]
        few = used.sum(-1) < MIN_SIZES
        matrix = np.stack([np.stack([s[i + j] for j in range(3)], -1) for i in range(3)], -2)
        ok = ~few & np.isfinite(matrix).all((-1, -2)) & (total > 0)
        matrix = np.where(ok[..., None, None], matrix, np.eye(3))
        c0, c1, c2 = np.moveaxis(np.linalg.solve(matrix, np.stack(t, -1)[..., None])[..., 0], -1, 0)
        nan = np.where(ok, 0.0, np.nan)
        vertex = centre - span * c1 / (2 * c2) + nan
        return Parabola(
            vertex, c2 / span**2 + nan, level + c0 - c1**2 / (4 * c2) + nan
        )  # fmt: skip


def frontier_sizes(
    log_c: np.ndarray, log_n: np.ndarray, edge: np.ndarray, loss: np.ndarray, hull: bool
) -> tuple[np.ndarray, np.ndarray]:
    """log N (R, U) at each of the U costs, NaN where the cell is not of the frontier; and the
    costs, in logs (U,).

    log_c, log_n, edge: (cells,); loss: (R, cells). The frontier is the envelope, the cells that no
    cheaper one beats, or the corners of its lower convex hull in logs; a cell at the edge of the
    sizes tried belongs to it but says nothing of the best size.
    """
    costs, place = np.unique(log_c.round(9), return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(costs)))
    least = np.minimum.reduceat(loss[:, order], starts, axis=1)
    # The first cell that has its cost's least loss.
    where = np.where(loss == least[:, place], np.arange(loss.shape[1]), loss.shape[1])
    cell = np.minimum.reduceat(where[:, order], starts, axis=1)
    before = np.minimum.accumulate(least, 1)
    falls = np.ones_like(least, bool)
    falls[:, 1:] = least[:, 1:] < before[:, :-1]
    if hull:
        for row, y in zip(falls, np.log(least), strict=True):
            points = np.flatnonzero(row)
            row[:] = False
            row[points[lower_hull(costs[points], y[points])]] = True
    return np.where(falls & ~edge[cell], log_n[cell], np.nan), costs
