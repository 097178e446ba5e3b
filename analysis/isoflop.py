"""How the best size grows with compute: Chinchilla's three approaches on the same rows.

1. the best run of each budget; 2. the vertex of a parabola in log N at each budget; 3. the
parametric law. Hoffmann et al. 2022, section 3.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.cells import cells, surface
from analysis.frontier import frontier
from analysis.laws import NotIdentified
from analysis.parametric import ParametricLaw, fit_parametric

MIN_SIZES = 4  # a parabola through three points is exact
COLUMNS = ("budget_macs", "sizes", "params", "val_loss", "curvature", "accepted", "reason")


def minima(rows: pd.DataFrame, *, robust: bool = False) -> pd.DataFrame:
    """The vertex of L = val_loss + curvature ln(N / params)^2 at each budget.

    robust: Huber's weights (scale from the median residual) instead of least squares.
    Returns budget_macs, sizes, params, val_loss, curvature, accepted, reason; a vertex is accepted
    when the parabola opens upwards and the vertex lies between the smallest and the largest size.
    """
    out = []
    for budget, group in cells(rows).groupby("budget_macs"):
        log_n = np.log(group["params"].to_numpy(float))
        sizes = len(np.unique(log_n))
        if sizes < MIN_SIZES:
            reason = f"{sizes} sizes: a parabola needs {MIN_SIZES}"
            out.append((budget, sizes, np.nan, np.nan, np.nan, False, reason))
            continue
        centre = log_n.mean()
        c2, c1, c0 = _parabola(log_n - centre, group["val_loss"].to_numpy(float), robust)
        if c2 <= 0:
            out.append((budget, sizes, np.nan, np.nan, c2, False, "not convex"))
            continue
        vertex = centre - c1 / (2 * c2)
        inside = bool(log_n.min() < vertex < log_n.max())
        reason = "" if inside else "the vertex lies outside the sizes tried"
        loss = c0 - c1**2 / (4 * c2)
        out.append((budget, sizes, float(np.exp(vertex)), loss, c2, inside, reason))
    return pd.DataFrame(out, columns=list(COLUMNS))


def _parabola(x: np.ndarray, y: np.ndarray, robust: bool) -> np.ndarray:
    weights = np.ones_like(y)
    for _ in range(50 if robust else 1):
        coefficient = np.polyfit(x, y, 2, w=np.sqrt(weights))
        size = np.abs(y - np.polyval(coefficient, x))
        scale = max(1.4826 * float(np.median(size)), 1e-12)
        weights = np.minimum(1, 1.345 * scale / np.maximum(size, 1e-300))
    return coefficient


def approaches(
    rows: pd.DataFrame, *, seed: int = 0, level: float = 0.95, resamples: int = 2000,
    robust: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Exponent of the best size, N_opt ~ C^size_exponent, by the three approaches.

    Returns one row per approach: approach, size_exponent, low, high (NaN when the noise cannot be
    told, see analysis/cells.py), coefficient (N_opt = coefficient C^size_exponent, C in MACs),
    budgets, refused (why there is no number).
    """
    table = cells(rows)
    points = frontier(rows, method="budget")
    described = surface(table, points)
    out = [
        _row("1 best run of each budget", *_by_budget(points, points["params"]),
             _errors(described, points, _lowest, resamples, seed), level),
    ]  # fmt: skip
    vertices = minima(rows, robust=robust)
    accepted = vertices[vertices["accepted"]]
    compute = table.groupby("budget_macs")["macs_total"].mean().reindex(accepted["budget_macs"])
    at = accepted.assign(macs_total=compute.to_numpy())
    label = "2 parabola at each budget" + (", robust" if robust else "")
    out.append(
        _row(label, *_by_budget(at, at["params"]),
             None if robust else _errors(described, at, _vertex, resamples, seed), level)
    )  # fmt: skip
    try:
        law = fit_rows(rows, seed=seed, level=level, resamples=resamples)
        coefficient = float(law.n_opt(1.0))
        low, high = law.ci["size_exponent"]
        out.append(("3 L(N, D)", law.size_exponent, low, high, coefficient, len(points), ""))
    except NotIdentified as refusal:
        nan = float("nan")
        out.append(("3 L(N, D)", nan, nan, nan, nan, len(points), str(refusal)))
    names = ("approach", "size_exponent", "low", "high", "coefficient", "budgets", "refused")
    return pd.DataFrame(out, columns=list(names))


def fit_rows(rows: pd.DataFrame, **options) -> ParametricLaw:
    """The parametric law of all decayed points, in MACs; options of `fit_parametric`."""
    table = cells(rows, budgets=False)
    n, d = table["params"].to_numpy(float), table["tokens"].to_numpy(float)
    per_token = float(np.median(table["macs_total"].to_numpy(float) / (n * d)))
    return fit_parametric(
        n, d, table["val_loss"].to_numpy(float), groups=table["run_id"].tolist(),
        per_token=per_token, unit="MACs", **options,
    )  # fmt: skip


def _by_budget(points: pd.DataFrame, params: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    return np.log(points["macs_total"].to_numpy(float)), np.log(params.to_numpy(float))


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of y (..., n) on x (n,)."""
    x = x - x.mean()
    return (y * x).sum(-1) / (x**2).sum()


def _row(label, x, y, errors, level) -> tuple:
    nan = float("nan")
    if len(x) < 3 or np.ptp(x) == 0:
        reason = f"{len(x)} budgets with a usable optimum: a line needs 3"
        return (label, nan, nan, nan, nan, len(x), reason)
    slope = float(_slope(x, y))
    coefficient = float(np.exp(y.mean() - slope * x.mean()))
    low = high = nan
    if errors is not None and np.isfinite(errors).mean() > level:
        tails = (1 + level) / 2, (1 - level) / 2
        # The sizes tried may push the exponent out of its own interval, which is stretched to it.
        low, high = slope - np.nanquantile(errors, tails)
        low, high = min(float(low), slope), max(float(high), slope)
    return (label, slope, low, high, coefficient, len(x), "")


def _errors(described, at, find, resamples, seed) -> np.ndarray | None:
    """Estimate minus truth (resamples,) of the exponent, when `find` (log N of the designs, log
    loss (resamples, designs), seeds -> log N (resamples,)) takes the best size of each budget.

    The best size tried is not the best size, even without noise: the exponent of the best runs
    jumps from value to value, and by how much it misses hangs on where the optimum lies between
    the sizes. So in every resample the truth is another surface that the cells allow, and its own
    optimum is what the estimate should have been.
    """
    if described is None or len(at) < 3:
        return None
    noise, other = (described.draw(resamples, s) for s in (seed, seed + 1))
    surfaces = described.coefficients(other)
    loss = described.fitted_by(surfaces) + noise
    log_n = np.log(described.designs["params"].to_numpy(float))
    budget, seeds = (described.designs[c].to_numpy(float) for c in ("budget_macs", "seeds"))
    missed = []
    for one in at["budget_macs"]:
        here = budget == one
        found = find(log_n[here], loss[:, here], seeds[here])
        missed.append(found - described.optimum(one, surfaces))
    return _slope(np.log(at["macs_total"].to_numpy(float)), np.stack(missed, 1))


def _lowest(log_n: np.ndarray, log_loss: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    return log_n[log_loss.argmin(1)]


def _vertex(log_n: np.ndarray, log_loss: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """NaN where the parabola is not convex or the sizes are too few."""
    if len(np.unique(log_n)) < MIN_SIZES:
        return np.full(len(log_loss), np.nan)
    centre = log_n.mean()
    c2, c1, _ = np.polyfit(log_n - centre, np.exp(log_loss).T, 2, w=np.sqrt(seeds))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(c2 > 0, centre - c1 / (2 * c2), np.nan)
