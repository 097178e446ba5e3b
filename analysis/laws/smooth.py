"""A smooth loss of sizes and tokens near the best sizes, and the noise of runs around it.

What is between the sizes that were tried, what an estimator misses by its own bias, and how much
of a difference between two runs is noise all follow from one description: the sum of a polynomial
in N^-KAPPA and one in D^-KAPPA. It has the additive form of Hoffmann et al. 2022 without its
exponents or its floor, and follows laws of exponents from 0.15 to 0.45 to 1 to 3 parts in 10^4
(root mean square) within a factor of 16 of the best sizes over three decades of compute.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtr

from scaling.analysis.laws.bootstrap import Noise, components
from scaling.analysis.laws.fit import LIMITS, NotIdentified
from scaling.analysis.schema import WEIGHT

KAPPA = 0.2
# Powers of N^-KAPPA and of D^-KAPPA, and the runs, cells and sizes that they need. Runs that serve
# many budgets count once: the noise that they share is told from the shape over sizes alone.
DEGREES = ((3, 12, 12, 5), (2, 4, 8, 4))
FORM = 3e-4  # of log loss: what the polynomials may miss, drawn as noise of every point
CONDITION = 1e7  # of the columns at length 1; beyond it size and tokens are not told apart
WILD = 1e-3  # chance that any of a table's sound cells is taken for a wild one
WILD_LOSS = 0.01  # and how far above the smooth loss it lies at least: closer, the form may miss it
MOST_WILD = 0.1  # share of the cells; more of them are the table's noise
GRID = 161  # sizes at which an optimum is searched before it is refined


@dataclass(frozen=True)
class Smooth:
    """Smooth loss of `cells`, and the noise of single runs around it."""

    cells: pd.DataFrame  # one row a run and budget: params, tokens, val_loss, run_id
    wild: pd.Index  # cells that lie too far above all others to be noise; not among `cells`
    degree: int
    centre: tuple[float, float]  # of log N and log D
    coefficient: np.ndarray  # (p,)
    noise: Noise
    known: np.ndarray | None  # standard errors of log loss (cells,), where the table gives them
    # (cells,) of a cell's noise in that of a run of mean weight; 1 without weights
    share: np.ndarray

    def loss(self, log_n: np.ndarray, log_d: np.ndarray, coefficient: np.ndarray) -> np.ndarray:
        """Loss (R, ...) at sizes and tokens (...) by coefficients (R, p)."""
        values = np.tensordot(coefficient, self._basis(log_n, log_d), (-1, -1))
        return np.maximum(values, LIMITS["loss"][0])  # a polynomial may pass below zero

    def _basis(self, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        return _basis(log_n, log_d, self.centre, self.degree)

    def draw(self, resamples: int, rng: np.random.Generator) -> np.ndarray:
        """New noise of log loss (resamples, cells), on Student's scale."""
        run_index = np.unique(self.cells["run_id"].astype(str), return_inverse=True)[1]
        noise: np.ndarray
        if self.known is None:
            noise = self.share * self.noise.draw(run_index, resamples, rng)
        elif np.isfinite(self.noise.df):
            noise = self.known * self.noise.draw(np.arange(len(self.known)), resamples, rng)
        else:
            noise = self.known * rng.standard_normal((resamples, len(self.known)))
        return noise

    def refit(self, log_loss: np.ndarray) -> np.ndarray:
        """Coefficients (R, p) of the same cells with other losses, log_loss (R, cells)."""
        log_n, log_d = _logs(self.cells)
        basis = self._basis(log_n, log_d)
        weight = 1 / (basis @ self.coefficient)
        weight = weight / (self.share if self.known is None else self.known)
        inverse = np.linalg.pinv(basis * weight[:, None], rcond=1e-13)
        coefficients: np.ndarray = (np.exp(log_loss) * weight) @ inverse.T
        return coefficients

    def optimum(
        self, low: np.ndarray, high: np.ndarray, log_nd: np.ndarray, coefficient: np.ndarray
    ) -> np.ndarray:
        """log N (R, B) of the least loss of each budget; NaN where it is not inside.

        low, high: smallest and largest log N (B,); log_nd: log N D at the budget (B, GRID), on an
        even grid of log N from low to high.
        """
        log_n = np.linspace(low, high, GRID, axis=-1)
        loss = self.loss(log_n, log_nd - log_n, coefficient)
        best = loss.argmin(-1)
        inside = (best > 0) & (best < GRID - 1)
        middle = np.clip(best, 1, GRID - 2)
        left, here, right = (
            np.take_along_axis(loss, middle[..., None] + k, -1)[..., 0] for k in (-1, 0, 1)
        )
        bend = left - 2 * here + right
        shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0)
        step = (high - low) / (GRID - 1)
        return np.where(inside, low + (middle + np.clip(shift, -1, 1)) * step, np.nan)


def _logs(cells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return np.log(cells["params"].to_numpy(float)), np.log(cells["tokens"].to_numpy(float))


def _basis(
    log_n: np.ndarray, log_d: np.ndarray, centre: tuple[float, float], degree: int
) -> np.ndarray:
    """1 and the powers 1 to degree of N^-KAPPA and of D^-KAPPA about one, along the last axis."""
    u, v = (np.expm1(-KAPPA * (z - c)) for z, c in zip((log_n, log_d), centre, strict=True))
    powers = range(1, degree + 1)
    return np.stack([np.ones_like(u), *(u**k for k in powers), *(v**k for k in powers)], -1)


def describe(cells: pd.DataFrame, slope_of: np.ndarray, known: np.ndarray | None) -> Smooth:
    """Describe cells near the best sizes.

    cells: params, tokens, val_loss, run_id, and their weights where they have some. slope_of:
    (cells,) weights of the cells in the statistic whose degrees of freedom count
    (analysis/laws/bootstrap.py). known: standard errors of log
    loss (cells,), where the table gives them.
    Raises NotIdentified, saying why the cells do not tell noise from shape.
    """
    share = np.ones(len(cells))
    if known is not None:
        known = np.hypot(known, FORM)
    elif WEIGHT in cells:
        given = cells[WEIGHT].to_numpy(float)
        share = np.sqrt(given.mean() / given)
    size = share if known is None else known
    wild: list[Hashable] = []
    most = int(MOST_WILD * len(cells))
    while True:
        keep = ~cells.index.isin(wild)
        fitted = _fit(cells[keep], size[keep])
        worst, chance = _wildest(*fitted[3:5])
        above = fitted[4][worst] * size[keep][worst]
        if chance * keep.sum() > WILD or above < WILD_LOSS or len(wild) == most:
            break
        wild.append(cells.index[keep][worst])
    degree, centre, coefficient, design, residual = fitted
    kept = cells[keep]
    df = len(residual) - design.shape[1]
    if known is None:
        run_index = np.unique(kept["run_id"].astype(str), return_inverse=True)[1]
        noise = components(design, residual, run_index, slope_of[keep])
        noise = replace(noise, point=float(np.hypot(noise.point, FORM)))
        standard = None
    else:
        # Residuals larger than the errors given say that those are too small (the scale factor of
        # the Particle Data Group); smaller ones do not say that they are too large.
        scale = float(residual @ residual) / df
        noise = Noise(0.0, max(scale, 1.0) ** 0.5, float(df) if scale > 1 else np.inf)
        standard = known[keep]
    return Smooth(kept, pd.Index(wild), degree, centre, coefficient, noise, standard, share[keep])


def _fit(
    cells: pd.DataFrame, size: np.ndarray
) -> tuple[int, tuple[float, float], np.ndarray, np.ndarray, np.ndarray]:
    """Degree, centre, coefficient, design (cells, p) and residuals, relative to the loss and to
    the size of its noise (cells,)."""
    log_n, log_d = _logs(cells)
    sizes, runs = len(np.unique(log_n)), cells["run_id"].nunique()
    weight = 1 / cells["val_loss"].to_numpy(float) / size
    centre = float(log_n.mean()), float(log_d.mean())
    for degree, few_runs, few, few_sizes in DEGREES:
        if runs < few_runs or len(cells) < few or sizes < few_sizes:
            continue
        basis = _basis(log_n, log_d, centre, degree)
        design = basis * weight[:, None]
        norm = np.linalg.norm(design, axis=0)
        if not (np.isfinite(norm).all() and norm.min() > 0):
            continue
        if np.linalg.cond(design / norm) > CONDITION:
            continue
        y = cells["val_loss"].to_numpy(float) * weight
        coefficient = np.linalg.lstsq(design / norm, y, rcond=None)[0] / norm
        # The noise is relative to the smooth loss, not to the one that it has moved.
        fitted = basis @ coefficient
        if not (fitted > 0).all():
            continue
        residual = np.log(cells["val_loss"].to_numpy(float) / fitted)
        relative = (1 / fitted / size)[:, None]
        return degree, centre, coefficient, basis * relative, residual / size
    _, _, few, few_sizes = DEGREES[-1]
    if len(cells) < few or sizes < few_sizes:
        raise NotIdentified(
            f"{len(cells)} points of {sizes} sizes near the best sizes: telling noise from shape "
            f"needs {few} of {few_sizes}"
        )
    raise NotIdentified(
        "size and tokens do not vary independently near the best sizes, so the smooth loss that "
        "noise is told from is not determined"
    )


def _wildest(design: np.ndarray, residual: np.ndarray) -> tuple[int, float]:
    """The cell that lies highest above all the others, and the chance of one so high (Student's
    t of its deletion residual)."""
    basis = np.linalg.qr(design)[0]
    left = np.maximum(1 - (basis**2).sum(1), 1e-9)
    df = len(residual) - design.shape[1] - 1
    if df < 1:
        return 0, 1.0
    total = float(residual @ residual)
    others = np.maximum(total - residual**2 / left, 1e-30 + 1e-12 * total)
    t = residual / np.sqrt(left * others / df)
    worst = int(t.argmax())
    return worst, float(stdtr(df, -t[worst]))
