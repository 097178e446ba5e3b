"""Does the best learning rate transfer? Sweeps over width or depth, side by side, with a verdict.

A series is a parametrisation of one shape of model (Toto's, GPT-2's, ...) swept over one axis: all
widths at one depth, or all depths at one width. Its drift is how far the best rate moves from the
first to the last member, in octaves (factors of two of the rate), by one fit of all its runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from scaling.analysis.questions.best_rate import Trial, drift, optimum
from scaling.analysis.schema import TOKEN_UNIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TRANSFERS = 1.0  # octaves: the most that the best rate may move
ORDER = ("mup", "standard", "completep")
NAMES = {"mup": "muP", "standard": "standard", "completep": "CompleteP"}
GROUP = ["parametrization", "shape", "axis", "shared"]
_SHAPE = r"^(.+)-d\d+l\d+h\d+$"  # in the name of a sweep's model, before its size


def learning_rate_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The last point of each run of the learning-rate sweep.

    Returns columns parametrization, shape ("" for Toto's), d, layers, log2_lr, seed, run_id,
    val_loss (NaN: diverged), status, best (the width's lowest loss); sorted by (parametrization,
    shape, layers, d, log2_lr).
    """
    runs = rows[rows.role == "lr_sweep"].sort_values(["run_id", "steps", "decayed"])
    last = runs.groupby("run_id", as_index=False).tail(1)
    last = last.assign(shape=last["size"].str.extract(_SHAPE, expand=False).fillna(""))
    group = ["parametrization", "shape", "layers", "d"]
    points = last[[*group, "log2_lr", "seed", "run_id", "val_loss", "status"]].copy()
    points.loc[~np.isfinite(points.val_loss) | (points.status != "finished"), "val_loss"] = np.nan
    best = points.groupby(group).val_loss.transform("min")
    points["best"] = (points.val_loss == best) & points.val_loss.notna()
    return points.sort_values([*group, "log2_lr", "seed"]).reset_index(drop=True)


def series_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of the sweeps by series; a run that two series share is in both.

    Returns columns parametrization, shape, axis ("width" or "depth"), shared (the layers, or the
    width, that all members have), member (the width, or the layers), log2_lr, val_loss (NaN:
    diverged), run_id; muP first, width before depth.
    """
    points = learning_rate_points(rows)
    found = []
    for axis, member, shared in (("width", "d", "layers"), ("depth", "layers", "d")):
        for _, one in points.groupby(["parametrization", "shape", shared]):
            # A sampler that chooses settings tries each at one rate: no series.
            chosen = "=" in str(one["shape"].iloc[0]) and one.log2_lr.nunique() < 2
            if one[member].nunique() > 1 and not chosen:
                named = one.rename(columns={member: "member", shared: "shared"})
                found.append(named.assign(axis=axis))
    columns = [*GROUP, "member", "log2_lr", "val_loss", "run_id"]
    if not found:
        return pd.DataFrame(columns=columns)
    table = pd.concat(found)[columns]
    place = table.parametrization.map(ORDER.index)
    table = table.assign(place=place, late=table.axis == "depth")
    order = ["late", "place", "shape", "shared", "member", "log2_lr"]
    return table.sort_values(order, kind="stable").drop(columns=["place", "late"], errors="ignore")


def optima(points: pd.DataFrame) -> pd.DataFrame:
    """Each member's best rate, with its 95% interval (of `series_points`; seeds are averaged).

    Returns columns parametrization, shape, axis, shared, member, log2_lr, low, high (NaN: too few
    rates near it), val_loss (lowest), rates, diverged, edge (the best is the first or last tried).
    """
    records = []
    key: Any
    for key, one in points.groupby([*GROUP, "member"], sort=False, dropna=False):
        curve = one.groupby("log2_lr").val_loss.apply(lambda v: v.mean(skipna=False))
        losses = curve.fillna(math.inf)
        trials = [Trial(key[-1], p, v) for p, v in zip(losses.index, losses, strict=True)]
        best = optimum(trials, key[2])
        edge = losses.idxmin() in (losses.index.min(), losses.index.max())
        low, high = (math.nan if x is None else x for x in (best.low, best.high))
        diverged = int(curve.isna().sum())
        records.append((*key, best.log2_lr, low, high, best.loss, len(curve), diverged, edge))
    columns = [*GROUP, "member", "log2_lr", "low", "high", "val_loss", "rates", "diverged", "edge"]
    return pd.DataFrame(records, columns=columns)


def verdicts(points: pd.DataFrame) -> pd.DataFrame:
    """One row a series: how far its best rate moves, and what carrying the rate over costs.

    Returns columns parametrization, shape, axis, shared, first, last (members), octaves (from first
    to last, `best_rate.drift`), uncertainty (95%; NaN: too few runs), cost (of the loss, that
    the last member loses at the first one's best rate; NaN: not tried, inf: it diverges), verdict:
    "transfers" or "does not transfer" where the whole interval lies on that side of TRANSFERS, else
    "not decided", as where an optimum may lie beyond the rates tried.
    """
    records = []
    key: Any
    best = optima(points)
    for key, one in points.groupby(GROUP, sort=False, dropna=False):
        losses = one.val_loss.fillna(math.inf)
        octaves, half = drift(
            [Trial(*run) for run in zip(one.member, one.log2_lr, losses, strict=True)]
        )
        uncertainty = math.nan if half is None else half
        verdict = "not decided"
        if abs(octaves) + uncertainty <= TRANSFERS and not of_series(best, key).edge.any():
            verdict = "transfers"
        elif abs(octaves) - uncertainty > TRANSFERS:
            verdict = "does not transfer"
        first, last = int(one.member.min()), int(one.member.max())
        cost = _cost(one, first, last)
        records.append((*key, first, last, octaves, uncertainty, cost, verdict))
    columns = [*GROUP, "first", "last", "octaves", "uncertainty", "cost", "verdict"]
    return pd.DataFrame(records, columns=columns)


def of_series(table: pd.DataFrame, key: Sequence[Any]) -> pd.DataFrame:
    """The rows of one series."""
    parametrization, shape, axis, shared = key
    rows: pd.DataFrame = table[
        (table.parametrization == parametrization)
        & (table["shape"] == shape)
        & (table.axis == axis)
        & ((table.shared == shared) | (table.shared.isna() & pd.isna(shared)))
    ]
    return rows


def _cost(one: pd.DataFrame, first: int, last: int) -> float:
    """Loss of the last member at the first one's best rate of the grid, above its own lowest."""
    curves = one.assign(val_loss=one.val_loss.fillna(math.inf)).pivot_table(
        index="log2_lr", columns="member", values="val_loss", aggfunc="mean"
    )
    carried = curves[last].get(curves[first].idxmin(), math.nan)
    return float(carried - curves[last].min())


@dataclass(frozen=True, eq=False)
class Rates:
    """Sweeps side by side: their runs, the best rate of each member, and what follows."""

    points: pd.DataFrame  # of `series_points`
    optima: pd.DataFrame
    verdicts: pd.DataFrame

    @classmethod
    def of(cls, points: pd.DataFrame) -> Rates:
        """Of the runs of sweeps, as `series_points` gives them."""
        return cls(points, optima(points), verdicts(points))

    @property
    def count(self) -> int:
        """How many series there are."""
        return self.points.groupby(GROUP).ngroups

    def lines(self, unit: str = TOKEN_UNIT) -> Iterator[str]:
        """The verdicts and the optima that they rest on, as text; losses in `unit`."""
        for row in self.verdicts.to_dict("records"):
            key = [row[k] for k in GROUP]
            axis = row["axis"]
            error = "" if math.isnan(row["uncertainty"]) else f" ± {row['uncertainty']:.2f}"
            cost = (
                f"the rate of {axis} {row['first']} costs {row['cost']:.4f} {unit} at {axis} "
                f"{row['last']}"
            )
            if math.isnan(row["cost"]):
                cost = f"{axis} {row['last']} was not tried at the rate of {axis} {row['first']}"
            yield (
                f"{title(*key)}: the best rate moves by {row['octaves']:+.2f}{error} octaves over "
                f"a factor {row['last'] / row['first']:g}: {row['verdict']}; {cost}"
            )
            for one in of_series(self.optima, key).to_dict("records"):
                low, high = one["low"], one["high"]
                interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
                yield (
                    f"  {axis} {one['member']}: 2^{one['log2_lr']:.2f}{interval}, "
                    f"{one['val_loss']:.4f} {unit}"
                    + (", at the edge of the rates tried" if one["edge"] else "")
                )


def verdict_lines(points: pd.DataFrame, unit: str = TOKEN_UNIT) -> Iterator[str]:
    """`Rates.lines` of the runs of sweeps."""
    return Rates.of(points).lines(unit)


def title(parametrization: str, shape: str, axis: str, shared: float) -> str:
    """Of a series. shared: the layers, or the width, of all members; NaN: not known."""
    fixed = f" ({shared:g} layers)" if axis == "width" else f" (width {shared:g})"
    name = NAMES.get(parametrization, parametrization) + f" {shape}" * bool(shape)
    return f"{name} over {axis}{'' if math.isnan(shared) else fixed}"


def best_rate_verdicts(points: pd.DataFrame) -> pd.DataFrame:
    """One row a series of best rates (columns GROUP, member, log2_lr), as `verdicts` gives them.

    The drift is the slope of a line through log2 rate against log2 size. Its uncertainty is the
    larger of that of the line (Student's t) and that of best rates which are only known to the
    spacing of their grid: uniform within it.
    """
    records = []
    key: Any
    steps = np.diff(np.unique(np.round(points["log2_lr"], 2)))
    spacing = float(steps.min()) if len(steps) else math.nan
    for key, one in points.groupby(GROUP, sort=False, dropna=False):
        x = np.log2(one["member"].to_numpy(float))
        y = one["log2_lr"].to_numpy(float)
        if np.ptp(x) == 0:
            continue
        x, span = x - x.mean(), float(np.ptp(x))
        slope = float(x @ y / (x @ x))
        residual = y - y.mean() - slope * x
        freedom = len(x) - 2
        uncertainty = math.nan
        if freedom > 0:
            scatter = float(np.sqrt(residual @ residual / freedom))
            line = float(stdtrit(freedom, 0.975)) * scatter
            grid = 1.96 * (0.0 if math.isnan(spacing) else spacing) / math.sqrt(12)
            uncertainty = span * max(line, grid) / math.sqrt(x @ x)
        octaves = slope * span
        verdict = "not decided"
        if abs(octaves) + uncertainty <= TRANSFERS:
            verdict = "transfers"
        elif abs(octaves) - uncertainty > TRANSFERS:
            verdict = "does not transfer"
        first, last = int(one["member"].min()), int(one["member"].max())
        records.append((*key, first, last, octaves, uncertainty, verdict))
    columns = [*GROUP, "first", "last", "octaves", "uncertainty", "verdict"]
    return pd.DataFrame(records, columns=columns)


def best_rate_lines(points: pd.DataFrame) -> Iterator[str]:
    """The verdicts on best rates as text."""
    for row in best_rate_verdicts(points).to_dict("records"):
        error = "" if math.isnan(row["uncertainty"]) else f" ± {row['uncertainty']:.2f}"
        yield (
            f"{title(*[row[k] for k in GROUP])}: the best rate moves by {row['octaves']:+.2f}"
            f"{error} octaves over a factor {row['last'] / row['first']:g}: {row['verdict']}"
        )
