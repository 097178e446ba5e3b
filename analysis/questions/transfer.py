"""Does the best learning rate transfer? Sweeps over width or depth, side by side, with a verdict.

A series is a parametrisation swept over one axis: all widths at one depth, or all depths at one
width. Its drift is how far the best rate moves from the first to the last member, in octaves
(factors of two of the rate), by one fit of all its runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.style import PAPER, SYMBOLS, base_figure, shades, superscript
from scaling.results import TOKEN_UNIT
from scaling.study.optimum import Trial, drift, optimum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TRANSFERS = 1.0  # octaves: the most that the best rate may move
ORDER = ("mup", "standard", "completep")
NAMES = {"mup": "muP", "standard": "standard", "completep": "CompleteP"}
GROUP = ["parametrization", "axis", "shared"]


def series_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of the sweeps by series; a run that two series share is in both.

    Returns columns parametrization, axis ("width" or "depth"), shared (the layers, or the width,
    that all members have), member (the width, or the layers), log2_lr, val_loss (NaN: diverged),
    run_id; muP first, width before depth.
    """
    points = figures.learning_rate_points(rows)
    found = []
    for axis, member, shared in (("width", "d", "layers"), ("depth", "layers", "d")):
        for _, one in points.groupby(["parametrization", shared]):
            if one[member].nunique() > 1:
                named = one.rename(columns={member: "member", shared: "shared"})
                found.append(named.assign(axis=axis))
    columns = [*GROUP, "member", "log2_lr", "val_loss", "run_id"]
    if not found:
        return pd.DataFrame(columns=columns)
    table = pd.concat(found)[columns]
    place = table.parametrization.map(ORDER.index)
    table = table.assign(place=place, late=table.axis == "depth")
    order = ["late", "place", "shared", "member", "log2_lr"]
    return table.sort_values(order, kind="stable").drop(columns=["place", "late"], errors="ignore")


def optima(points: pd.DataFrame) -> pd.DataFrame:
    """Each member's best rate, with its 95% interval (of `series_points`; seeds are averaged).

    Returns columns parametrization, axis, shared, member, log2_lr, low, high (NaN: too few rates
    near it), val_loss (lowest), rates, diverged, edge (the best rate is the first or last tried).
    """
    records = []
    key: Any
    for key, one in points.groupby([*GROUP, "member"], sort=False, dropna=False):
        curve = one.groupby("log2_lr").val_loss.apply(lambda v: v.mean(skipna=False))
        losses = curve.fillna(math.inf)
        trials = [Trial(key[3], p, v) for p, v in zip(losses.index, losses, strict=True)]
        best = optimum(trials, key[1])
        edge = losses.idxmin() in (losses.index.min(), losses.index.max())
        low, high = (math.nan if x is None else x for x in (best.low, best.high))
        diverged = int(curve.isna().sum())
        records.append((*key, best.log2_lr, low, high, best.loss, len(curve), diverged, edge))
    columns = [*GROUP, "member", "log2_lr", "low", "high", "val_loss", "rates", "diverged", "edge"]
    return pd.DataFrame(records, columns=columns)


def verdicts(points: pd.DataFrame) -> pd.DataFrame:
    """One row a series: how far its best rate moves, and what carrying the rate over costs.

    Returns columns parametrization, axis, shared, first, last (members), octaves (from first to
    last, `study.optimum.drift`), uncertainty (95%; NaN: too few runs), cost (of the loss, that
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
    parametrization, axis, shared = key
    return table[
        (table.parametrization == parametrization)
        & (table.axis == axis)
        & ((table.shared == shared) | (table.shared.isna() & pd.isna(shared)))
    ]


def _cost(one: pd.DataFrame, first: int, last: int) -> float:
    """Loss of the last member at the first one's best rate of the grid, above its own lowest."""
    curves = one.assign(val_loss=one.val_loss.fillna(math.inf)).pivot_table(
        index="log2_lr", columns="member", values="val_loss", aggfunc="mean"
    )
    carried = curves[last].get(curves[first].idxmin(), math.nan)
    return float(carried - curves[last].min())


def verdict_lines(points: pd.DataFrame, unit: str = TOKEN_UNIT) -> Iterator[str]:
    """The verdicts and the optima that they rest on, as text; losses in `unit`."""
    best = optima(points)
    for row in verdicts(points).to_dict("records"):
        key = [row[k] for k in GROUP]
        axis = row["axis"]
        error = "" if math.isnan(row["uncertainty"]) else f" ± {row['uncertainty']:.2f}"
        yield (
            f"{title(*key)}: the best rate moves by {row['octaves']:+.2f}{error} octaves over a "
            f"factor {row['last'] / row['first']:g}: {row['verdict']}; the rate of {axis} "
            f"{row['first']} costs {row['cost']:.4f} {unit} at {axis} {row['last']}"
        )
        for one in of_series(best, key).to_dict("records"):
            low, high = one["low"], one["high"]
            interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
            yield (
                f"  {axis} {one['member']}: 2^{one['log2_lr']:.2f}{interval}, "
                f"{one['val_loss']:.4f} {unit}"
                + (", at the edge of the rates tried" if one["edge"] else "")
            )


def title(parametrization: str, axis: str, shared: float) -> str:
    """shared: the layers, or the width, of all members; NaN where it is not known."""
    fixed = f" ({shared:g} layers)" if axis == "width" else f" (width {shared:g})"
    name = NAMES.get(parametrization, parametrization)
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
            line = float(stats.t.ppf(0.975, freedom)) * scatter
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


def transfer_figure(points: pd.DataFrame, *, unit: str = TOKEN_UNIT) -> go.Figure:
    """Loss above each member's lowest against the rate, a panel a series, a line a member.

    The open marker at the foot of a line is its optimum, with the 95% interval: where they stand
    above one another, the rate transfers. Takes `series_points`; diverged runs are left out.
    """
    best = optima(points)
    panels: Any = list(points.groupby(GROUP, sort=False, dropna=False))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    base = base_figure("", "", height=60 + 330 * rows)
    figure = make_subplots(
        rows, columns, subplot_titles=[title(*key) for key, _ in panels],
        shared_yaxes=True, vertical_spacing=0.3 / rows, horizontal_spacing=0.06,
    )  # fmt: skip
    axes = base.layout.xaxis.to_plotly_json(), base.layout.yaxis.to_plotly_json()
    layout = {k: v for k, v in base.layout.to_plotly_json().items() if k not in ("xaxis", "yaxis")}
    figure.update_layout(layout | {"margin": {"l": 64, "r": 20, "t": 72, "b": 56}})
    shown: set[str] = set()
    highest = 0.0
    for i, (key, panel) in enumerate(panels):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        members = list(panel.groupby("member"))
        for j, ((member, one), colour) in enumerate(
            zip(members, shades(len(members)), strict=True)
        ):
            name = f"{key[1]} {member}"
            mine = of_series(best, key)
            vertex = mine[mine.member == member].iloc[0]
            curve = one.dropna(subset="val_loss").groupby("log2_lr").val_loss.mean()
            excess = curve - vertex.val_loss
            highest = max(highest, float(excess.median()))
            symbol = SYMBOLS[j % len(SYMBOLS)]
            figure.add_scatter(
                x=curve.index, y=excess, mode="lines+markers", name=name, legendgroup=name,
                showlegend=name not in shown, line={"color": colour, "width": 2},
                marker={"size": 7, "symbol": symbol}, customdata=curve,
                hovertemplate=f"{name}<br>rate 2^%{{x}}<br>loss %{{customdata:.4f}}<extra></extra>",
                **place,
            )  # fmt: skip
            interval = None
            if not math.isnan(vertex.low):
                half = [float(vertex.high - vertex.log2_lr)]
                interval = {"type": "data", "array": half, "color": colour, "thickness": 1.5}
            figure.add_scatter(
                x=[vertex.log2_lr], y=[-0.02 * (j + 1)], mode="markers", legendgroup=name,
                showlegend=False, error_x=interval,
                marker={"color": PAPER, "size": 10, "symbol": symbol,
                        "line": {"color": colour, "width": 2}},
                hovertemplate=f"{name}: optimum 2^%{{x:.2f}}<extra></extra>", **place,
            )  # fmt: skip
            shown.add(name)
    low, high = int(np.floor(points.log2_lr.min())), int(np.ceil(points.log2_lr.max()))
    ticks = list(range(low, high + 1, 2))
    figure.update_xaxes(**axes[0])
    figure.update_yaxes(**axes[1])
    figure.update_xaxes(
        tickvals=ticks,
        ticktext=[f"2{superscript(t)}" for t in ticks],
        range=[low - 0.3, high + 0.3],
    )
    figure.update_xaxes(title_text="base learning rate", row=rows)
    figure.update_yaxes(title_text=f"loss above the lowest ({unit})", col=1)
    figure.update_yaxes(range=[-0.14, max(0.3, 2 * highest)])
    return figure
