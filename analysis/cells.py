"""Which rows of a study count, and the noise between its runs.

A cell is one run at one budget. `exclude` applies the rules (fixed beforehand, counted);
`surface` describes the loss of the cells near the frontier and splits what remains into noise of
runs and noise of points, from which every interval of a study follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.bootstrap import Noise, components
from analysis.laws import usable


def _impossible(values: pd.Series) -> pd.Series:
    """Given, and not a usable number; a missing one is missing."""
    return values.notna() & ~usable(values, "compute")


# A row is left out by the first rule that names it, in this order.
RULES: tuple[tuple[str, Callable[[pd.DataFrame], pd.Series | np.ndarray]], ...] = (
    ("learning-rate sweep, not ladder", lambda r: r["role"] == "lr_sweep"),
    ("not of the ladder", lambda r: r["role"] != "ladder"),
    ("diverged", lambda r: r["status"] == "diverged"),
    ("did not finish", lambda r: r["status"] != "finished"),
    ("mid-schedule, learning rate not decayed", lambda r: r["decayed"] != True),  # noqa: E712
    ("no usable loss", lambda r: ~usable(r["val_loss"], "loss")),
    ("no usable compute", lambda r: ~usable(r["macs_total"], "compute")),
    (
        "impossible parameters or tokens",
        lambda r: _impossible(r["params"]) | _impossible(r["tokens"]),
    ),
)
NO_BUDGET = ("no nominal budget", lambda r: ~usable(r["budget_macs"], "compute"))
NEEDED = (
    "run_id", "role", "status", "decayed", "budget_macs", "val_loss", "macs_total", "size",
    "params", "tokens",
)  # fmt: skip
KAPPA = 0.2  # spans the exponents 0 to 0.6 within the noise of a run over two decades
CUT = 2.0  # residuals beyond so many scales are cut: a wild cell is not the noise of all
WILD = 4.0  # a cell so many scales too high, which cannot win its budget, describes nothing
CONTENDERS = 30  # cells of one budget that may win it, at most
NEAR = 0.1  # log loss above its budget's best within which a cell describes the surface


def exclude(
    rows: pd.DataFrame, *, budgets: bool = True
) -> tuple[pd.DataFrame, tuple[tuple[str, int], ...]]:
    """The rows that may enter a law, and every rule with the number of rows it left out.

    budgets: also leave out rows without a nominal budget (an envelope needs none).
    """
    missing = [c for c in NEEDED if c not in rows.columns]
    if missing:
        raise ValueError(
            f"the table has no column {', '.join(missing)}: give rows of a study, or read another "
            "table with analysis.tables.read"
        )
    rows = rows.copy()
    for column in ("budget_macs", "val_loss", "macs_total", "params", "tokens"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce").astype(float)
    counts = []
    for rule, names in (*RULES, NO_BUDGET) if budgets else RULES:
        left_out = np.asarray(names(rows), dtype=bool)
        counts.append((rule, int(left_out.sum())))
        rows = rows[~left_out]
    return rows, tuple(counts)


def cells(rows: pd.DataFrame, *, budgets: bool = True) -> pd.DataFrame:
    """The rows that may enter a law, one per run and cost, numbered in the column `cell`."""
    rows, _ = exclude(rows, budgets=budgets)
    key = ["run_id", "budget_macs"] if budgets else ["run_id", "macs_total"]
    rows = rows.drop_duplicates(key, keep="last").reset_index(drop=True)
    return rows.assign(cell=rows.index)


@dataclass(frozen=True)
class Surface:
    """Smooth loss of the cells near the frontier, and their noise."""

    cells: pd.DataFrame  # the cells described, a subset of `cells(rows)`
    fitted: np.ndarray  # (cells,) log loss
    noise: Noise
    run_index: np.ndarray  # (cells,)

    def draw(self, resamples: int, seed: int) -> np.ndarray:
        """Log losses of the same design with new noise (resamples, cells)."""
        rng = np.random.default_rng(seed)
        return self.fitted + self.noise.draw(self.run_index, resamples, rng)

    def contenders(self) -> Surface:
        """Without the cells that lie too far above their budget's best to win in any draw."""
        budget = self.cells["budget_macs"].to_numpy()
        by = pd.Series(self.fitted).groupby(budget)
        able = self.fitted <= by.transform("min").to_numpy() + 6 * self.noise.total + 1e-12
        able &= by.rank(method="first").to_numpy() <= CONTENDERS
        index = np.unique(self.run_index[able], return_inverse=True)[1]
        return Surface(self.cells[able], self.fitted[able], self.noise, index)


def surface(table: pd.DataFrame, points: pd.DataFrame) -> Surface | None:
    """Describe cells; None when they are too few or span too little to tell noise from shape.

    table: `cells(rows)`; points: the frontier's (their slope is what the noise is wanted for).
    The loss is the sum of a smooth function of parameters and one of tokens, as in Hoffmann et
    al. 2022 but without its exponents: 1, u, u^2, v, v^2 with u = N^-KAPPA, v = D^-KAPPA. What
    remains is split into a part common to a run (its seed; all budgets cut from one trunk share
    it) and a part of each cell. A cell that is wildly too high cannot win and is left out of the
    description; any other wild cell counts as two standard deviations.
    """
    best = table.groupby("budget_macs")["val_loss"].transform("min")
    near = table[np.log(table["val_loss"] / best) <= NEAR]
    described = _describe(near)
    if described is None:
        return None
    wild = (described[2] > WILD * described[3]) & ~near["cell"].isin(points["cell"]).to_numpy()
    if wild.any() and (again := _describe(near[~wild])) is not None:
        near, described = near[~wild], again
    design, fitted, residual, scale = described
    # Cut, and stretched so that normal residuals keep their variance.
    kept = 2 * stats.norm.cdf(CUT) - 1 - 2 * CUT * stats.norm.pdf(CUT)
    kept += 2 * CUT**2 * stats.norm.sf(CUT)
    residual = np.clip(residual, -CUT * scale, CUT * scale) / np.sqrt(kept)
    run_index = np.unique(near["run_id"].astype(str), return_inverse=True)[1]
    x = np.log(points["macs_total"].to_numpy(float))
    influence = np.zeros(len(near))
    spread = ((x - x.mean()) ** 2).sum()
    influence[near.index.get_indexer(pd.Index(points["cell"]))] = (x - x.mean()) / spread
    noise = components(design, residual, run_index, influence)
    return Surface(near, fitted, noise, run_index)


def _describe(near: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
    """Design (cells, 5), fitted log loss, relative residual, and the residuals' robust scale."""
    loss = near["val_loss"].to_numpy(float)
    log_n, log_d = (np.log(near[c].to_numpy(float)) for c in ("params", "tokens"))
    with np.errstate(over="ignore", invalid="ignore"):
        u, v = np.exp(-KAPPA * (log_n - log_n.mean())), np.exp(-KAPPA * (log_d - log_d.mean()))
        # Divided by the loss: the noise is relative.
        design = np.stack([np.ones_like(u), u, u**2, v, v**2], 1) / loss[:, None]
    if len(near) < design.shape[1] + 3 or not np.abs(design).max() < 1e100:  # or a NaN
        return None
    norm = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    if np.linalg.cond(design / norm) > 1e5:
        return None
    residual, scale = _robust(design, np.ones_like(loss))
    return design, np.log(np.maximum(1 - residual, 1e-6)) + np.log(loss), residual, scale


def _robust(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Residuals of a Huber fit, and their scale from the median residual."""
    weights = np.ones_like(y)
    for _ in range(30):
        root = np.sqrt(weights)
        coefficient, *_ = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)
        residual = y - design @ coefficient
        # 1.4826 median |r| is the normal's deviation; the fit has shrunk the residuals.
        shrunk = np.sqrt(len(y) / (len(y) - design.shape[1]))
        scale = max(1.4826 * float(np.median(np.abs(residual))) * shrunk, 1e-12)
        weights = np.minimum(1, 1.345 * scale / np.maximum(np.abs(residual), 1e-300))
    return residual, scale
