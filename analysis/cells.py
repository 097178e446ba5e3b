"""Which rows of a study count, and the noise between its runs.

A cell is one run at one budget; a design is what cells share that differ in their seed alone
(`seed_means`). `exclude` applies the rules (fixed beforehand, counted); `surface` describes the
loss of the cells near the frontier and splits what remains into noise of runs and noise of points,
from which every interval of a study follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.bootstrap import Noise, components
from analysis.laws import LIMITS, usable


def _impossible(values: pd.Series) -> pd.Series:
    """Given, and not a usable number; a missing one is missing."""
    return values.notna() & ~usable(values, "compute")


# A row is left out by the first rule that names it, in this order.
RULES: tuple[tuple[str, Callable[[pd.DataFrame], pd.Series | np.ndarray]], ...] = (
    ("learning-rate sweep, not ladder", lambda r: r["role"] == "lr_sweep"),
    ("a copy of another row", lambda r: r["role"] == "repeat"),
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
# A law of one variable needs that variable alone, and no compute.
COST = "no usable compute"
ALONE = {
    "params": ("no usable parameters", lambda r: ~usable(r["params"], "compute")),
    "tokens": ("no usable tokens", lambda r: ~usable(r["tokens"], "compute")),
}
NO_BUDGET = ("no nominal budget", lambda r: ~usable(r["budget_macs"], "compute"))
NEEDED = (
    "run_id", "role", "status", "decayed", "budget_macs", "val_loss", "macs_total", "size",
    "params", "tokens",
)  # fmt: skip
# Two runs that agree in these columns (those that the table has) are one design.
DESIGN = (
    "size", "params", "tokens", "family", "parametrization", "d", "layers", "heads", "d_ff",
    "vocab", "context", "tokenizer", "data_key", "data_mix", "lr", "schedule", "warmup_steps",
    "batch_tokens", "weight_decay", "precision",
)  # fmt: skip
KAPPA = 0.2  # spans the exponents 0 to 0.6 within the noise of a run over two decades
CUT = 2.0  # residuals beyond so many scales are cut: a wild cell is not the noise of all
WILD = 4.0  # a cell so many scales too high, which cannot win its budget, describes nothing
SIZES = ("params", "tokens")
REACH = 2.0  # standard deviations of a run above the best within which a size tells its loss
STEPS = 100  # sizes at which a smooth loss is searched for its least
BETWEEN = 400  # sizes at which a smooth loss is searched for its best
CONTENDERS = 30  # designs that tell the loss of one budget's best size, at most
NEAR = 0.1  # log loss above its budget's best within which a cell describes the surface


def exclude(
    rows: pd.DataFrame, *, budgets: bool = True, of: str = "compute"
) -> tuple[pd.DataFrame, tuple[tuple[str, int], ...]]:
    """The rows that may enter a law, and every rule with the number of rows it left out.

    budgets: also leave out rows without a nominal budget (an envelope needs none). of: what the
    law is of; where that is "params" or "tokens", compute and the other one need not be there.
    """
    costs = ("budget_macs", "macs_total", "params", "tokens")
    unused = () if of == "compute" else tuple(c for c in costs if c != of)
    missing = [c for c in NEEDED if c not in rows.columns and c not in unused]
    if missing:
        raise ValueError(
            f"the table has no column {', '.join(missing)}: give rows of a study, or read another "
            "table with analysis.tables.read"
        )
    rows = rows.copy()
    for column in (*costs, "val_loss"):
        given = rows[column] if column in rows.columns else pd.Series(np.nan, rows.index)
        rows[column] = pd.to_numeric(given, errors="coerce").astype(float)
    counts = []
    rules = [ALONE.get(of, one) if one[0] == COST else one for one in RULES]
    for rule, names in (*rules, NO_BUDGET) if budgets else rules:
        left_out = np.asarray(names(rows), dtype=bool)
        counts.append((rule, int(left_out.sum())))
        rows = rows[~left_out]
    return rows, tuple(counts)


def cells(rows: pd.DataFrame, *, budgets: bool = True, of: str = "compute") -> pd.DataFrame:
    """The rows that may enter a law, one per run and cost; `design` numbers what they share.

    Only runs of different seeds are repeats of one design. Two of one seed, or without a column
    `seed`, may differ in what the table does not tell: each is a design of its own. of: as of
    `exclude`.
    """
    rows, _ = exclude(rows, budgets=budgets, of=of)
    cost = "budget_macs" if budgets else "macs_total"
    once = ["run_id", cost] if of == "compute" else ["run_id", cost, *SIZES]
    rows = rows.drop_duplicates(once, keep="last")
    # In an order of their own, so that sums of floats do not hang on that of the table.
    rows = rows.sort_values([cost, "run_id"], kind="stable").reset_index(drop=True)
    if "seed" not in rows.columns:
        return rows.assign(design=rows.index)
    key = [cost, *(c for c in DESIGN if c in rows.columns and rows[c].nunique(dropna=False) > 1)]
    design = rows.groupby(key, sort=False, dropna=False).ngroup()
    twice = rows.duplicated([*key, "seed"], keep=False).groupby(design).transform("any")
    return rows.assign(design=design.where(~twice, design.max() + 1 + rows.index))


def seed_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per design of `cells`: the mean loss of its `seeds` (how many); the other columns
    are those of the first run, by its id."""
    if table["design"].is_unique:
        return table.assign(seeds=1)
    by = table.sort_values("run_id", kind="stable").groupby("design", sort=False)
    means = by.head(1).set_index("design", drop=False)
    means = means.assign(val_loss=by["val_loss"].mean(), seeds=by.size())
    return means.reset_index(drop=True)


@dataclass(frozen=True)
class Level:
    """How the loss of one budget's best size is read from the designs near it."""

    macs: float
    designs: np.ndarray  # (k,) their places among all
    weight: np.ndarray  # (k,), sum 1
    at: np.ndarray  # (k, 5) basis of their sizes
    between: np.ndarray  # (STEPS, 5) basis from the smallest to the largest size, at this compute
    scale: float  # standard deviation of a run's log loss

    def of(self, coefficients: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
        """Log loss (R,) of the best size; coefficients (R, 5), log loss of all designs (R, n)."""
        floor = np.maximum(coefficients @ self.between.T, LIMITS["loss"][0]).min(1)
        smooth = np.maximum(coefficients @ self.at.T, LIMITS["loss"][0])
        return np.log(floor) + self._mean(log_loss[:, self.designs] - np.log(smooth))

    def edge(self, coefficient: np.ndarray) -> bool:
        """Whether the smooth loss still falls at the smallest or the largest size."""
        return int((self.between @ coefficient).argmin()) in (0, len(self.between) - 1)

    def _mean(self, residual: np.ndarray) -> np.ndarray:
        """Weighted mean (R,) of residuals (R, k), a wild one cut at CUT standard deviations."""
        middle = np.median(residual, axis=1) if len(self.weight) > 2 else residual @ self.weight
        off = np.clip(residual - middle[:, None], -CUT * self.scale, CUT * self.scale)
        return middle + off @ self.weight


@dataclass(frozen=True)
class Surface:
    """Smooth loss of the designs near the frontier, and the noise of single runs."""

    designs: pd.DataFrame  # the designs described, a subset of `seed_means(cells(rows))`
    coefficient: np.ndarray  # (5,) of `_basis`
    centre: tuple[float, float]  # of log N and log D
    noise: Noise
    # Budgets are bins of a cloud of runs: each tried a few sizes, all together tried many.
    cloud: bool = False

    @property
    def fitted(self) -> np.ndarray:
        """Smooth log loss of the designs."""
        return self.fitted_by(self.coefficient[None])[0]

    def fitted_by(self, coefficients: np.ndarray) -> np.ndarray:
        """Smooth log loss (R, designs) by other coefficients (R, 5)."""
        loss = coefficients @ self._basis().T
        return np.log(np.maximum(loss, LIMITS["loss"][0]))  # a polynomial may pass below zero

    def coefficients(self, noise: np.ndarray) -> np.ndarray:
        """Coefficients (R, 5) that the same designs would have given with noise (R, designs)."""
        root = np.sqrt(self.designs["seeds"].to_numpy(float))[:, None]
        relative = self._basis() / np.exp(self.fitted)[:, None] * root
        return self.coefficient + (np.linalg.pinv(relative) @ (noise.T * root)).T

    def best(self, budgets: np.ndarray) -> pd.DataFrame:
        """The loss of the best size at each budget, not of a lucky run.

        Where a dozen runs lie within their noise of the optimum, the lowest of them is low by
        one and a half standard deviations, at every budget alike, and a law through such points
        passes under the truth. So the sizes near the optimum are chosen by the smooth loss, which
        no single run's luck moves, and their runs are averaged, each less what its size costs by
        the smooth loss. Two distant sizes leave the better one's run as it is; of many sizes the
        smooth loss only says how far each lies above the best, the level is that of their runs.
        Returns macs_total, val_loss, designs (the numbers of those that tell it) and edge (the
        smooth loss still falls at the smallest or largest size).
        """
        levels = [self._level(np.flatnonzero(self._budget == one)) for one in budgets]
        observed = np.log(self.designs["val_loss"].to_numpy(float))[None]
        number = self.designs["design"].to_numpy()
        return pd.DataFrame(
            {
                "macs_total": [level.macs for level in levels],
                "val_loss": [
                    float(np.exp(level.of(self.coefficient[None], observed)[0])) for level in levels
                ],
                "designs": [tuple(number[level.designs]) for level in levels],
                "edge": [level.edge(self.coefficient) for level in levels],
            }
        )

    def errors(self, budgets: np.ndarray, resamples: int, seed: int) -> np.ndarray:
        """Errors (R, B) of `best`: the same recipe on new noise, the smooth loss fitted anew."""
        noise = self.draw(resamples, seed)
        drawn, whole = self.coefficients(noise), self.coefficient[None]
        noise += self.fitted
        levels = [self._level(np.flatnonzero(self._budget == one)) for one in budgets]
        return np.stack(
            [level.of(drawn, noise) - level.of(whole, self.fitted[None]) for level in levels], 1
        )

    @property
    def _budget(self) -> np.ndarray:
        return self.designs["budget_macs"].to_numpy(float)

    def _level(self, here: np.ndarray) -> Level:
        log_n, log_d, log_c = (
            np.log(self.designs[c].to_numpy(float)) for c in (*SIZES, "macs_total")
        )
        middle = float(log_c[here].mean())
        # Tokens at one compute for all: a size's runs may have had a little more or less.
        at_middle = log_d - log_c + middle
        tried = np.arange(len(log_n)) if self.cloud else here
        order = tried[np.argsort(log_n[tried], kind="stable")]
        between = np.linspace(log_n[order[0]], log_n[order[-1]], STEPS)
        between_d = np.interp(between, log_n[order], at_middle[order])
        if self.cloud:  # only tokens that runs had say what tokens do
            inside = (between_d >= log_d.min()) & (between_d <= log_d.max())
            between, between_d = between[inside], between_d[inside]
        line = _basis(between, between_d, self.centre)
        smooth = _basis(log_n[here], at_middle[here], self.centre) @ self.coefficient
        above = np.log(np.maximum(smooth, 1e-9) / np.maximum(smooth, 1e-9).min())
        weight = self.designs["seeds"].to_numpy(float)[here]
        weight = weight * np.maximum(1 - (above / (REACH * self.noise.total + 1e-12)) ** 2, 0)
        few = np.flatnonzero(weight > 0)
        few = few[np.argsort(above[few], kind="stable")[:CONTENDERS]]
        return Level(
            float(np.exp(middle)), here[few], weight[few] / weight[few].sum(),
            self._basis()[here[few]], line, self.noise.total,
        )  # fmt: skip

    def optimum(self, budget: float, coefficients: np.ndarray) -> np.ndarray:
        """log N (R,) of the best size of a budget, between those tried there."""
        here = self.designs[self.designs["budget_macs"] == budget].sort_values("params")
        log_n, log_d = (np.log(here[c].to_numpy(float)) for c in SIZES)
        between = np.linspace(log_n[0], log_n[-1], BETWEEN)
        basis = _basis(between, np.interp(between, log_n, log_d), self.centre)
        return between[(basis @ coefficients.T).argmin(0)]

    def _basis(self) -> np.ndarray:
        log_n, log_d = (np.log(self.designs[c].to_numpy(float)) for c in SIZES)
        return _basis(log_n, log_d, self.centre)

    def draw(self, resamples: int, seed: int) -> np.ndarray:
        """New noise of the designs' log loss, means over seeds: (resamples, designs)."""
        rng = np.random.default_rng(seed)
        # Seeds of one design go through its budgets together, so their first stands for them.
        run_index = np.unique(self.designs["run_id"].astype(str), return_inverse=True)[1]
        noise = self.noise.draw(run_index, resamples, rng)
        return noise / np.sqrt(self.designs["seeds"].to_numpy())


def surface(table: pd.DataFrame, points: pd.DataFrame) -> Surface | None:
    """Describe cells; None when they are too few or span too little to tell noise from shape.

    table: `cells(rows)`; points: of the budget frontier (their slope is what the noise is for).
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
    wild = described[3] > WILD * described[4]
    wild &= ~near["design"].isin(points["design"]).to_numpy()
    if wild.any() and (again := _describe(near[~wild])) is not None:
        near, described = near[~wild], again
    if not points["budget_macs"].isin(near["budget_macs"]).all():
        return None
    design, coefficient, centre, residual, scale = described
    # Cut, and stretched so that normal residuals keep their variance.
    kept = 2 * stats.norm.cdf(CUT) - 1 - 2 * CUT * stats.norm.pdf(CUT)
    kept += 2 * CUT**2 * stats.norm.sf(CUT)
    residual = np.clip(residual, -CUT * scale, CUT * scale) / np.sqrt(kept)
    run_index = np.unique(near["run_id"].astype(str), return_inverse=True)[1]
    x = np.log(points["macs_total"].to_numpy(float))
    weight = pd.Series((x - x.mean()) / ((x - x.mean()) ** 2).sum(), index=points["design"])
    seeds = near.groupby("design")["design"].transform("size")
    influence = near["design"].map(weight).fillna(0.0).to_numpy() / seeds.to_numpy()
    noise = components(design, residual, run_index, influence)
    return Surface(seed_means(near), coefficient, centre, noise)


def _basis(log_n: np.ndarray, log_d: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """1, u, u^2, v, v^2 along the last axis, u and v about one."""
    u, v = (np.exp(-KAPPA * (z - c)) for z, c in zip((log_n, log_d), centre, strict=True))
    return np.stack([np.ones_like(u), u, u**2, v, v**2], -1)


def _describe(near: pd.DataFrame):
    """Design (cells, 5) relative to the loss, its coefficients, the centre of log N and log D,
    relative residuals, and their robust scale; None when the cells do not determine it."""
    loss = near["val_loss"].to_numpy(float)
    log_n, log_d = (np.log(near[c].to_numpy(float)) for c in SIZES)
    centre = float(log_n.mean()), float(log_d.mean())
    with np.errstate(over="ignore", invalid="ignore"):
        # Divided by the loss: the noise is relative.
        design = _basis(log_n, log_d, centre) / loss[:, None]
    if len(near) < design.shape[1] + 3 or not np.abs(design).max() < 1e100:  # or a NaN
        return None
    norm = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    if np.linalg.cond(design / norm) > 1e5:
        return None
    coefficient, residual, scale = _robust(design, np.ones_like(loss))
    return design, coefficient, centre, residual, scale


def _robust(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients and residuals of a Huber fit, and their scale from the median residual."""
    weights = np.ones_like(y)
    for _ in range(30):
        root = np.sqrt(weights)
        coefficient, *_ = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)
        residual = y - design @ coefficient
        # 1.4826 median |r| is the normal's deviation; the fit has shrunk the residuals.
        shrunk = np.sqrt(len(y) / (len(y) - design.shape[1]))
        scale = max(1.4826 * float(np.median(np.abs(residual))) * shrunk, 1e-12)
        weights = np.minimum(1, 1.345 * scale / np.maximum(np.abs(residual), 1e-300))
    return coefficient, residual, scale
