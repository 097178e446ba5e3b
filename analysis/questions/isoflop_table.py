"""The rows of an isoFLOP table as the estimators of analysis/questions/isoflop.py take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scaling.analysis.laws.fit import NotIdentified, usable
from scaling.analysis.laws.smooth import GRID, Smooth, describe
from scaling.analysis.questions.best_size import (
    NEAREST,
    SAME_COST,
    Grid,
    best_runs,
    frontier_sizes,
    line,
)
from scaling.analysis.schema import WEIGHT
from scaling.analysis.tables.ladder import Ladder, positive, seed_means
from scaling.errors import UserError

ERROR = "a standard error of the loss"
SAME_RATIO = 1e-3  # of log MACs per parameter and token, between budgets: one size's cost
NEAR = 2.0  # times a parabola's window: within it cells describe the smooth loss


def with_budgets(rows: pd.DataFrame, within: float) -> pd.DataFrame:
    """Rows whose `budget_macs` is told by a tolerance: the geometric mean of their compute.

    within: a factor, such as 1.5; sorted by compute, a budget takes what costs at most that much
    more than its cheapest row.
    Raises UserError for a factor that is none, or where no row has usable compute.
    """
    if not 1 < within < 10:
        raise UserError(f"within is {within:g}: give a factor above 1 and below 10, e.g. 1.5")
    macs = pd.to_numeric(rows["macs_total"], errors="coerce").to_numpy(float)
    fine = usable(macs, "compute")
    if not fine.any():
        raise UserError("no row has usable compute, by which budgets are told")
    key, first, count = np.full(len(rows), -1), 0.0, -1
    for i in np.argsort(np.where(fine, macs, np.inf), kind="stable")[: fine.sum()]:
        if macs[i] > first * within:
            first, count = macs[i], count + 1
        key[i] = count
    log_macs = pd.Series(np.log(np.where(fine, macs, np.nan)))
    budget = np.exp(log_macs.groupby(key).transform("mean").to_numpy())
    return rows.assign(budget_macs=np.where(fine, budget, np.nan))


def _log(table: pd.DataFrame, column: str) -> np.ndarray:
    log: np.ndarray = np.log(table[column].to_numpy(float))
    return log


@dataclass(frozen=True)
class Table:
    """The rows that count, and the smooth loss near their best sizes."""

    designs: pd.DataFrame  # one row a budget and size, or run; `weight` of its loss
    grid: Grid | None  # None without budgets
    per_token: Callable[[np.ndarray], np.ndarray]  # log of MACs per parameter and token, of log N
    smooth: Smooth | None
    kept: np.ndarray  # rows of `designs` that the smooth loss describes
    reason: str  # why there is no smooth loss
    notes: tuple[str, ...]

    @property
    def log_c(self) -> np.ndarray:
        return _log(self.designs, "macs_total")

    @property
    def log_n(self) -> np.ndarray:
        return _log(self.designs, "params")

    @property
    def edge(self) -> np.ndarray:
        """Which designs are the smallest or largest size of their budget, or, without budgets, of
        the table."""
        n = self.designs["params"]
        low, high = n.min(), n.max()
        if self.grid is not None:
            by = n.groupby(self.designs["budget_macs"])
            low, high = by.transform("min"), by.transform("max")
        edge: np.ndarray = ((n == low) | (n == high)).to_numpy(bool)
        return edge

    def log_tokens(self, log_c: np.ndarray, log_n: np.ndarray) -> np.ndarray:
        """log D that a size is trained on at a compute."""
        log_d: np.ndarray = log_c - log_n - self.per_token(log_n)
        return log_d

    def at_budget(self, grid: Grid, loss: np.ndarray, coefficient: np.ndarray | None) -> np.ndarray:
        """Losses (R, B, S) moved along the smooth loss to what the cells would have at their
        budget's compute. loss: (R, cells of the grid); coefficient: (R, p) of the smooth loss."""
        if self.smooth is not None and coefficient is not None and grid.spread > SAME_COST:
            log_n, log_d, own = (_log(grid.cells, c) for c in ("params", "tokens", "macs_total"))
            budget = np.searchsorted(grid.budgets, grid.cells["budget_macs"].to_numpy(float))
            moved = log_d + grid.log_c[budget] - own
            loss = loss + self.smooth.loss(log_n, moved, coefficient)
            loss = loss - self.smooth.loss(log_n, log_d, coefficient)
        return grid.pad(loss)

    def optima(
        self, coefficient: np.ndarray, log_c: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """log N (R, B) of the smooth loss's least at log compute (B,), between log N low and high
        (B,); coefficient (R, p)."""
        assert self.smooth is not None
        log_n = np.linspace(low, high, GRID, axis=-1)
        log_nd = log_c[:, None] - self.per_token(log_n)
        return self.smooth.optimum(low, high, log_nd, coefficient)


def table_of(ladder: Ladder, *, window: float, errors: str | None = None) -> Table:
    """The rows that count, as they are used. Of several designs of one size at one budget that of
    least loss does.

    window: factor of the best sizes' line within which a parabola takes sizes. errors: column of
    the standard errors of `val_loss`.
    Raises NotIdentified when no row is left, UserError on standard errors that are none.
    """
    return ladder.once(("sizes", window, errors), lambda: _table_of(ladder, window, errors))


def _table_of(ladder: Ladder, window: float, errors: str | None) -> Table:
    named = bool(usable(ladder.rows["budget_macs"], "compute").any())
    single = ladder.cells(budgets=named)
    single = single[usable(single["params"], "compute") & usable(single["tokens"], "compute")]
    if single.empty:
        raise NotIdentified("no row is left with a loss, compute, parameters and tokens")
    single = single.assign(loss_error=np.nan if errors is None else positive(single, errors, ERROR))
    cost = "budget_macs" if named else "macs_total"
    found = _table(single, cost, window)
    if found.smooth is not None and len(found.smooth.wild):
        wild = found.smooth.wild
        names = ", ".join(single.loc[wild, "run_id"].astype(str)[:4])
        note = (
            f"left out: {len(wild)} of {len(single)} runs, whose loss is too high beside all "
            f"others' to be noise: {names}{' ...' if len(wild) > 4 else ''}"
        )
        found = _table(single.drop(wild), cost, window, (note,))
    return found


def _table(
    single: pd.DataFrame, cost: str, window: float, notes: tuple[str, ...] = ()
) -> Table:  # fmt: skip
    designs = seed_means(single).sort_values("val_loss", kind="stable")
    again = designs.duplicated([cost, "params"])
    if again.any():
        notes += (
            f"left out: {again.sum()} of {len(again)} runs, which have a better one of their size "
            "at their budget (no column says that they differ in their seed alone)",
        )
    designs = designs[~again].sort_values([cost, "params"]).reset_index(drop=True)
    place = pd.Series(designs.index, index=designs["design"])
    single = single[single["design"].isin(designs["design"])]
    single = single.assign(place=single["design"].map(place))
    weight = designs["seeds"].to_numpy(float)
    if single["loss_error"].notna().all():
        inverse = (1 / single["loss_error"] ** 2).groupby(single["place"]).sum()
        weight = (inverse / inverse.median()).to_numpy()
    if WEIGHT in designs:
        weight = designs[WEIGHT].to_numpy(float)
    designs = designs.assign(weight=weight)
    grid = Grid.of(designs) if cost == "budget_macs" else None
    log_n = _log(designs, "params")
    per_token = _cost_of_size(designs)
    centre = _centre(designs, grid)
    near = _near(np.abs(log_n - centre), grid, NEAR * window)
    try:
        smooth = _described(single[near[single["place"].to_numpy()]], designs, log_n - centre)
    except NotIdentified as refusal:
        if grid is not None and grid.spread > SAME_COST:
            notes += (f"costs within a budget differ by up to {grid.spread - 1:.2%}",)
        return Table(
            designs, grid, per_token, None, np.flatnonzero(near), str(refusal), notes
        )  # fmt: skip
    if grid is not None and grid.spread > SAME_COST:
        notes += (
            f"costs within a budget differ by up to {grid.spread - 1:.2%}: each loss is moved "
            "along the smooth loss to its budget's mean compute",
        )
    kept = np.unique(smooth.cells["place"].to_numpy())
    return Table(designs, grid, per_token, smooth, kept, "", notes)


def _cost_of_size(designs: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Log of the MACs per parameter and token as a function of log N.

    Where sizes come at several budgets and cost the same at each, that is what they cost, and
    between them it is interpolated. Elsewhere each value stands for itself, with what rounding the
    columns (tokens of "0.18B") did to it, and a curve through all of them does not follow that.
    """
    log_n = _log(designs, "params")
    costs = np.log(designs["macs_total"] / (designs["params"] * designs["tokens"]))
    by = costs.groupby(log_n)
    mean = by.mean()
    at_sizes = mean.index.to_numpy(float)
    if by.size().median() >= 2 and (by.max() - by.min()).max() < SAME_RATIO:
        return lambda at: np.interp(at, at_sizes, mean.to_numpy())
    curve = np.polynomial.Polynomial.fit(log_n, costs, min(2, len(mean) - 1))
    low, high = at_sizes[[0, -1]]
    return lambda at: curve(np.clip(at, low, high))


def _centre(designs: pd.DataFrame, grid: Grid | None) -> np.ndarray:
    """log N, at each design's compute, of the straight line through the best runs of all budgets,
    or through those of the envelope."""
    log_c, log_n = (_log(designs, c) for c in ("macs_total", "params"))
    loss = designs["val_loss"].to_numpy(float)[None]
    if grid is not None:
        x, best = grid.log_c, best_runs(grid, grid.pad(loss))[0]
    else:
        found, x = frontier_sizes(log_c, log_n, np.zeros(len(log_n), bool), loss, False)
        x, best = x[np.isfinite(found[0])], found[0][np.isfinite(found[0])]
    level, slope = line(x, best[None])
    if not np.isfinite(slope[0]):
        return np.full(len(log_c), best.mean())
    on_line: np.ndarray = level[0] + slope[0] * (log_c - x.mean())
    return on_line


def _near(far: np.ndarray, grid: Grid | None, factor: float) -> np.ndarray:
    """Which designs lie within `factor` of the centre; of a budget at least the NEAREST."""
    near: np.ndarray = far <= np.log(factor)
    if grid is not None:
        here = grid.index >= 0
        padded = np.where(here, far[grid.index], np.inf)
        rank = padded.argsort(-1, kind="stable").argsort(-1, kind="stable")
        near[grid.index[here & (rank < NEAREST)]] = True
    return near


def _described(single: pd.DataFrame, designs: pd.DataFrame, off: np.ndarray) -> Smooth:
    """off: log N of the designs less that of the centre."""
    known = None
    if single["loss_error"].notna().all():
        known = (single["loss_error"] / single["val_loss"]).to_numpy(float)
    # The exponent hangs on how losses tilt within a budget, times the budget's distance.
    log_c = _log(designs, "macs_total")
    influence = off * (log_c - log_c.mean()) / designs["seeds"].to_numpy(float)
    return describe(single, influence[single["place"].to_numpy()], known)


@dataclass(frozen=True)
class Draws:
    """Resamples of a table: smooth losses that it allows, as truths, and noisy losses of them."""

    truth: np.ndarray  # (R, p)
    loss: np.ndarray  # (R, designs that are described), means over seeds
    refit: np.ndarray  # (R, p), fitted to the noisy losses


def draws_of(table: Table, resamples: int, seed: int) -> Draws | None:
    """None when no smooth loss tells noise from shape."""
    smooth = table.smooth
    if smooth is None:
        return None
    rng = np.random.default_rng(seed)
    one = smooth.cells
    log_n, log_d = (_log(one, c) for c in ("params", "tokens"))
    fitted = np.log(smooth.loss(log_n, log_d, smooth.coefficient[None]))
    truth = smooth.refit(fitted + smooth.draw(resamples, rng))
    log_loss = np.log(smooth.loss(log_n, log_d, truth)) + smooth.draw(resamples, rng)
    place = np.searchsorted(table.kept, one["place"].to_numpy())
    weight = smooth.share**-2
    share = weight / np.bincount(place, weight)[place]
    mean = csr_matrix((share, (place, np.arange(len(place)))))
    return Draws(truth, (mean @ np.exp(log_loss).T).T, smooth.refit(log_loss))
