"""How the best size and the best number of tokens grow with compute, by every common method.

    for law in size_laws(rows): print(law)      # N* = k C^p and D* = k C^p, each with its interval
    minima(rows)                                 # the minimum of each budget, by each method
    approaches(rows)                             # the laws side by side, one row a method

1. the best run of each budget, or the runs of the envelope or of the lower convex hull; 2. at each
budget the vertex of a parabola in log N, or the minimum of Akima's interpolation; 3. the
parametric law L(N, D). Hoffmann et al. 2022, section 3; Porian et al. 2024 for the interpolation.

Which sizes a parabola takes: those within a factor WINDOW of the straight line through all
budgets' best runs, and at least the five nearest. A parabola over a finite window misses the
minimum of a curve that is not one (arXiv 2603.22339); what it misses on the smooth loss of
analysis/laws/smooth.py is taken off. The other methods are left as they are published.

Every interval is that of its estimator: in each resample the truth is another smooth loss that the
runs allow, noise is drawn on it, the method is repeated whole, its window and its refusals
included, and its estimate is set against the optimum of that smooth loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.parametric_law import NO_NOISE, ParametricLaw
from scaling.analysis.questions.best_size import (
    MIN_SIZES,
    NEAREST,
    Grid,
    Parabola,
    best_runs,
    centres,
    frontier_sizes,
    interpolated,
    line,
    parabolas,
    window,
)
from scaling.analysis.questions.isoflop_table import NEAR, Draws, Table, draws_of, table_of
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.questions.size_law import METHODS, OF, SizeLaw, side_by_side
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError

WINDOW = 8.0  # factor of the centre within which a parabola takes sizes
MIN_BUDGETS = 3  # a line through two points is exact
LOST = 0.05  # share of the resamples without an estimate beyond which there is no interval
MOST = 40  # points of a frontier at which its truth is looked up
FRONTIERS = ("envelope", "hull")
AT_BUDGETS = ("best run", "parabola", "interpolation")
NO_BUDGETS = (
    "no nominal budgets: name the column that tells them (--budget-column), or the factor of "
    "compute within one (--within)"
)


@dataclass(frozen=True)
class _Found:
    """log N (R, B) of the best size of each budget, NaN where there is none; the loss there; and,
    of the parabola, its parts."""

    log_n: np.ndarray
    loss: np.ndarray
    parabola: Parabola | None = None
    used: np.ndarray | None = None  # (R, B, S)


def _find(
    method: str, table: Table, grid: Grid, loss: np.ndarray, coefficient: np.ndarray | None,
    factor: float,
) -> _Found:  # fmt: skip
    """loss: (R, cells of the grid); coefficient: (R, p) of the smooth loss fitted to them."""
    padded = table.at_budget(grid, loss, coefficient)
    if method == "best run":
        least = np.where(np.isnan(padded), np.inf, padded).min(-1)
        return _Found(grid.inside(best_runs(grid, padded)), least)
    if method == "interpolation":
        log_n, least = interpolated(grid, padded)
        return _Found(grid.inside(log_n), least)
    used = window(grid, centres(grid, padded), factor)
    found = parabolas(grid, padded, used)
    vertex = grid.inside(np.where(found.curvature > 0, found.vertex, np.nan))
    if table.smooth is not None and coefficient is not None:
        optimum = table.optima(coefficient, grid.log_c, *grid.ends)
        log_n = np.where(grid.index >= 0, grid.log_n, 0.0)
        log_d = table.log_tokens(grid.log_c[:, None], log_n)
        on_it = parabolas(grid, table.smooth.loss(log_n, log_d, coefficient), used)
        missed = np.where(on_it.curvature > 0, on_it.vertex, np.nan) - optimum
        vertex = grid.inside(vertex - missed)
    return _Found(vertex, found.loss, found, used)


def size_laws(
    rows: pd.DataFrame | Ladder, *, window: float = WINDOW, errors: str | None = None,
    seed: int = 0, level: float = 0.95, resamples: int = 1000, methods: Sequence[str] =
    tuple(METHODS),
) -> list[SizeLaw]:  # fmt: skip
    """N* = k C^p and D* = k C^p by each of the methods, of METHODS, in turn.

    rows: of a study, or of `scaling.analysis.tables.read`, or their ladder. window: factor of the
    parabola's window, infinite for every size of a budget. errors: column of standard errors of
    `val_loss`; without it the noise is inferred from seeds and from what the smooth loss leaves.
    Raises NotIdentified when no row is left; a single method's refusal is its law's `refused`.

    >>> from scaling.analysis.questions.simulate import TRUTH, study
    >>> size, data = size_laws(study(TRUTH), methods=("parabola",), resamples=200)
    >>> low, high = size.exponent_interval
    >>> size.of, data.of, low < 0.5 < high
    ('params', 'tokens', True)
    """
    _check(window, level, resamples)
    for method in methods:
        if method not in METHODS:
            raise UserError(f"method is {method!r}: choose of {', '.join(METHODS)}")
    ladder = Ladder.of(rows)
    table = table_of(ladder, window=window, errors=errors)
    draws = draws_of(table, resamples, seed)
    out: list[SizeLaw] = []
    for method in methods:
        if method == "L(N, D)":
            out += _parametric(ladder, seed, level, resamples)
        elif method in FRONTIERS:
            out += _laws(method, table, _frontier_points(table, method, draws), level)
        else:
            out += _laws(method, table, _budget_points(table, method, draws, window), level)
    return out


def _check(window: float, level: float, resamples: int) -> None:
    if not window > 1 or not 0 < level < 1 or resamples < 100:
        raise UserError(
            f"window {window}, level {level}, resamples {resamples}: want a factor above 1, "
            "0 < level < 1 and at least 100 resamples"
        )


@dataclass(frozen=True)
class _Points:
    """Best sizes at log compute (B,), and of each resample."""

    log_c: np.ndarray
    log_n: np.ndarray
    refused: str  # why there are no more of them
    drawn: tuple[np.ndarray, np.ndarray] | None = None  # log C (B',), log N (R, B') by the method
    truth: tuple[np.ndarray, np.ndarray] | None = None  # and of the smooth loss's optima


def _budget_points(
    table: Table, method: str, draws: Draws | None, factor: float
) -> _Points:  # fmt: skip
    grid = table.grid
    if grid is None:
        none = np.empty(0)
        return _Points(none, none, NO_BUDGETS)
    found = _estimate(method, table, grid, factor)
    log_n = found.log_n[0]
    at = np.isfinite(log_n)
    reasons = pd.Series(_reasons(method, grid, found))[~at]
    why = "; ".join(f"{n} of {len(at)}: {reason}" for reason, n in reasons.value_counts().items())
    if draws is None or not at.any():
        return _Points(grid.log_c[at], log_n[at], why)
    drawn, truth = _redrawn(method, table, draws, factor)
    budgets = np.searchsorted(grid.budgets, _described(table).budgets)
    here = at[budgets]
    log_c = grid.log_c[budgets[here]]
    ends = (log_c, drawn[:, here]), (log_c, truth[:, here])
    return _Points(grid.log_c[at], log_n[at], why, *ends)


def _estimate(method: str, table: Table, grid: Grid, factor: float) -> _Found:
    loss = table.designs["val_loss"].to_numpy(float)[None]
    coefficient = None if table.smooth is None else table.smooth.coefficient[None]
    return _find(method, table, grid, loss, coefficient, factor)


def _described(table: Table) -> Grid:
    return Grid.of(table.designs.iloc[table.kept])


def _redrawn(
    method: str, table: Table, draws: Draws, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """log N (R, B) of the best sizes of the described budgets, by the method and in truth."""
    grid = _described(table)
    drawn = _find(method, table, grid, draws.loss, draws.refit, factor).log_n
    return drawn, table.optima(draws.truth, grid.log_c, *grid.ends)


def _reasons(method: str, grid: Grid, found: _Found) -> list[str]:
    """Why each budget has no best size; "" where it has one."""
    out = []
    for b, (sizes, log_n) in enumerate(zip(grid.sizes, found.log_n[0], strict=True)):
        if np.isfinite(log_n):
            out.append("")
        elif method != "best run" and sizes < MIN_SIZES:
            what = "a parabola" if method == "parabola" else "an interpolation"
            out.append(f"{sizes} sizes: {what} needs {MIN_SIZES}")
        elif found.parabola is None:
            out.append("the best size is the smallest or the largest tried")
        elif not found.parabola.curvature[0, b] > 0:
            out.append("not convex")
        else:
            out.append("the vertex lies outside the sizes tried")
    return out


def _frontier_points(table: Table, method: str, draws: Draws | None) -> _Points:
    log_c = table.log_c
    if table.grid is not None:  # what costs nearly the same is one budget's
        budget = np.searchsorted(table.grid.budgets, table.designs["budget_macs"].to_numpy(float))
        log_c = table.grid.log_c[budget]
    loss = table.designs["val_loss"].to_numpy(float)[None]
    hull = method == "hull"
    found, costs = frontier_sizes(log_c, table.log_n, table.edge, loss, hull)
    at = np.isfinite(found[0])
    why = "" if at.sum() >= MIN_BUDGETS else "the others are of the smallest or largest size tried"
    if draws is None or not at.any():
        return _Points(costs[at], found[0, at], why)
    kept = table.kept
    drawn, drawn_c = frontier_sizes(
        log_c[kept], table.log_n[kept], table.edge[kept], draws.loss, hull
    )
    some = np.unique(np.linspace(0, at.sum() - 1, MOST).round().astype(int))
    truth_c, middle = costs[at][some], found[0, at][some]
    reach = np.log(NEAR * WINDOW)
    low = np.maximum(middle - reach, table.log_n[kept].min())
    high = np.minimum(middle + reach, table.log_n[kept].max())
    truth = table.optima(draws.truth, truth_c, low, high)
    return _Points(costs[at], found[0, at], why, (drawn_c, drawn), (truth_c, truth))


def _laws(method: str, table: Table, points: _Points, level: float) -> list[SizeLaw]:
    """N* and D* as lines through the points."""
    count = len(points.log_c)
    out = []
    for of in OF:
        nan = float("nan")
        if count < MIN_BUDGETS or np.ptp(points.log_c) == 0:
            what = "budgets" if method in AT_BUDGETS else "points"
            reason = f"{count} {what} with a usable optimum: a line needs {MIN_BUDGETS}"
            reason += f" ({points.refused})" if points.refused else ""
            if method in AT_BUDGETS and table.grid is None:
                reason = NO_BUDGETS
            out.append(SizeLaw(method, of, nan, nan, 0.0, level, count, reason))
            continue

        def value(log_c: np.ndarray, log_n: np.ndarray, of: str = of) -> np.ndarray:
            return log_n if of == "params" else table.log_tokens(log_c, log_n)

        level_at, slope = line(points.log_c, value(points.log_c, points.log_n)[None])
        middle = float(points.log_c.mean())
        missed, refused = None, f"no interval: {table.reason}"
        if points.drawn is not None and points.truth is not None:
            missed, refused = _missed([points.drawn, points.truth], middle, value)
        p, at = float(slope[0]), float(level_at[0])
        out.append(SizeLaw(method, of, p, at, middle, level, count, refused, missed))
    return out


def _missed(
    drawn_and_truth: list[tuple[np.ndarray, np.ndarray]],
    middle: float,
    value: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray | None, str]:
    """Estimate less truth (R, 2) of the line's value at `middle` and of its slope; or why none."""
    ends = []
    for log_c, log_n in drawn_and_truth:
        known = np.isfinite(log_n).sum(-1) >= MIN_BUDGETS
        level, slope = line(log_c, value(log_c, log_n))
        level = level + slope * (middle - log_c.mean())
        ends.append(np.where(known, np.stack([level, slope]), np.nan).T)
    missed = ends[0] - ends[1]
    fine = np.isfinite(missed).all(1)
    if (lost := 1 - fine.mean()) > LOST:
        return None, (
            f"no interval: with noise of its size drawn anew, {lost:.0%} of the tables have fewer "
            f"than {MIN_BUDGETS} best sizes between those tried"
        )
    if not (np.ptp(missed[fine], axis=0) > 0).all():
        return None, "no interval: the table holds no noise to tell one from"
    return missed[fine], ""


def _parametric(ladder: Ladder, seed: int, level: float, resamples: int) -> list[SizeLaw]:
    nan = float("nan")
    try:
        law = fit_rows(ladder, seed=seed, level=level, resamples=resamples)
    except NotIdentified as refusal:
        return [SizeLaw("L(N, D)", of, nan, nan, 0.0, level, 0, str(refusal)) for of in OF]
    middle = float(np.log(law.per_token * np.median(law.n * law.d)))
    p, runs = law.size_exponent, len(law.n)
    n, d = (float(np.log(best(np.exp(middle)))) for best in (law.n_opt, law.d_opt))
    low, high = law.ci["size_exponent"]
    refused = ""
    surface: ParametricLaw | None = law
    if law.computed:
        refused, surface = NO_NOISE, None
    elif not (low <= p <= high and low < high):
        refused, surface = "no interval: that of the resamples does not hold the estimate", None
    elif (lost := float((law.samples[:, 3:] <= 0).any(1).mean())) > 0:
        refused = f"no interval: in {lost:.2%} of the resamples alpha or beta is not positive"
        surface = None
    return [
        SizeLaw("L(N, D)", of, exponent, at, middle, level, runs, refused, surface=surface)
        for of, exponent, at in (("params", p, n), ("tokens", 1 - p, d))
    ]


def minima(
    rows: pd.DataFrame | Ladder, *, window: float = WINDOW, errors: str | None = None,
    seed: int = 0, level: float = 0.95, resamples: int = 1000,
) -> pd.DataFrame:  # fmt: skip
    """The best size of each budget by the best run, the parabola and the interpolation.

    Arguments as of `size_laws`. Returns one row a method and budget: method, budget_macs,
    macs_total (the mean), sizes, used (those that a parabola takes), used_from and used_to (in
    parameters), params, params_low, params_high, tokens, val_loss; vertex and curvature of the
    parabola val_loss + curvature ln(N / vertex)^2, which params is without the parabola's own
    bias; accepted, and reason: why there is no best size, or no interval of it.
    """
    _check(window, level, resamples)
    table = table_of(Ladder.of(rows), window=window, errors=errors)
    if table.grid is None:
        raise NotIdentified(NO_BUDGETS)
    draws = draws_of(table, resamples, seed)
    return pd.concat(
        [_of_budgets(m, table, table.grid, draws, window, level) for m in AT_BUDGETS],
        ignore_index=True,
    )


def _of_budgets(
    method: str, table: Table, grid: Grid, draws: Draws | None, factor: float, level: float
) -> pd.DataFrame:
    found = _estimate(method, table, grid, factor)
    log_n = found.log_n[0]
    low, high = np.full((2, len(log_n)), np.nan)
    reasons = _reasons(method, grid, found)
    if draws is not None:
        drawn, truth = _redrawn(method, table, draws, factor)
        described = np.searchsorted(grid.budgets, _described(table).budgets)
        for b, one in zip(described, (drawn - truth).T, strict=True):
            fine = np.isfinite(one)
            if fine.mean() >= 1 - LOST and np.ptp(one[fine]) > 0:
                ends = log_n[b] - np.quantile(one[fine], ((1 + level) / 2, (1 - level) / 2))
                low[b], high[b] = min(ends[0], log_n[b]), max(ends[1], log_n[b])
    for b, reason in enumerate(reasons):
        if not reason and not np.isfinite(low[b]):
            reasons[b] = "no interval: " + (
                table.reason or "drawn anew, the best size is often the smallest or largest tried"
            )
    parabola = found.parabola
    used = grid.index >= 0 if found.used is None else found.used[0]
    return pd.DataFrame(
        {
            "method": method,
            "budget_macs": grid.budgets,
            "macs_total": np.exp(grid.log_c),
            "sizes": grid.sizes,
            "used": used.sum(-1),
            "used_from": np.exp(np.where(used, grid.log_n, np.inf).min(-1)),
            "used_to": np.exp(np.where(used, grid.log_n, -np.inf).max(-1)),
            "params": np.exp(log_n),
            "params_low": np.exp(low),
            "params_high": np.exp(high),
            "tokens": np.exp(table.log_tokens(grid.log_c, log_n)),
            "val_loss": found.loss[0],
            "vertex": np.nan if parabola is None else np.exp(parabola.vertex[0]),
            "curvature": np.nan if parabola is None else parabola.curvature[0],
            "accepted": np.isfinite(log_n),
            "reason": reasons,
        }
    )


def approaches(
    rows: pd.DataFrame | Ladder, *, at: float | None = None, window: float = WINDOW,
    errors: str | None = None, seed: int = 0, level: float = 0.95, resamples: int = 1000,
) -> pd.DataFrame:  # fmt: skip
    """`size_laws` side by side, one row a method.

    at: MACs at which N* and D* are told; the largest compute of the rows that count by default.
    Returns approach; for params (N*) and for tokens (D*) the exponent and coefficient of k C^p and
    the value at `macs`, each with _low and _high; macs, budgets, refused (why there is no number,
    or no interval). `attrs["notes"]`: what was left out or moved.
    """
    ladder = Ladder.of(rows)
    laws = size_laws(
        ladder, window=window, errors=errors, seed=seed, level=level, resamples=resamples
    )
    table = table_of(ladder, window=window, errors=errors)
    found = side_by_side(laws, float(np.exp(table.log_c.max())) if at is None else at)
    found.attrs["notes"] = table.notes
    return found


def rule(window: float = WINDOW) -> str:
    """The printed rule of which sizes a parabola takes."""
    which = "every size of a budget" if np.isinf(window) else (
        f"the sizes within {window:g}x of the line through all budgets' best runs, at least the "
        f"{NEAREST} nearest"
    )  # fmt: skip
    return f"a parabola takes {which}; what it misses of a smooth loss's minimum is taken off"
