"""Figures that question a law: the best size of a budget, analysts' choices, the weight of single
runs, the law of the smaller budgets against what the largest turned out to be, other laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures.runs import add_law, drawn_points, law_points
from scaling.analysis.figures.style import (
    CROSS,
    LAW,
    PAPER,
    SYMBOL_SIZES,
    SYMBOLS,
    base_figure,
    budget_text,
    escape,
    log_compute,
    log_count,
    log_loss,
    shades,
)  # fmt: skip
from scaling.analysis.schema import TOKEN_UNIT

if TYPE_CHECKING:
    from scaling.analysis.laws.power_law import PowerLaw

SHOWN = 24  # lines of the influence figure, at most
REACH = 1.5  # beyond the sizes tried, the factor of parameters that the isoFLOP figure shows


def isoflop_points(table: pd.DataFrame) -> pd.DataFrame:
    """The decayed points of each budget, thinned to what a page can draw.

    Args:
        table: of `Ladder.cells` (scaling.analysis.tables.ladder).
    Returns columns budget_macs, size, params, macs_total, tokens, val_loss, run_id.
    """
    columns = ["budget_macs", "size", "params", "macs_total", "tokens", "val_loss", "run_id"]
    points = drawn_points(table[columns])
    return points.sort_values(["budget_macs", "params"]).reset_index(drop=True)


def isoflop_figure(
    points: pd.DataFrame, minima: pd.DataFrame | None = None, *, unit: str = TOKEN_UNIT
) -> go.Figure:
    """Loss against parameters, a curve a budget (Hoffmann et al. 2022, Figure 3, left).

    Args:
        points: columns budget_macs, params, val_loss, size; one row a decayed point.
        minima: columns budget_macs, params, val_loss (the parabola's vertex), curvature (of the
            loss in ln params: L = val_loss + curvature * ln(N / params)²; NaN: no parabola) and
            accepted; a vertex that was not accepted is a cross, where it is near the sizes tried.
            A budget without a parabola is a dotted line from size to size.
    """
    figure = base_figure("parameters", f"validation loss ({unit})", height=480)
    smallest, largest = float(points.params.min()), float(points.params.max())
    log_count(figure, smallest, largest)
    x_range = smallest / REACH, largest * REACH
    figure.update_xaxes(range=[math.log10(x) for x in x_range])
    vertices = {} if minima is None else minima.set_index("budget_macs").to_dict("index")
    budgets = list(points.groupby("budget_macs", sort=True))
    for i, ((key, group), colour) in enumerate(zip(budgets, shades(len(budgets)), strict=True)):
        budget = float(str(key))
        name = f"{budget_text(budget)} MACs"
        shape = i % len(SYMBOLS)
        vertex = vertices.get(budget)
        fitted = vertex is not None and bool(np.isfinite(vertex["vertex"]))
        if vertex is not None and fitted:
            n = np.geomspace(vertex["used_from"], vertex["used_to"], 48)
            x, dash = n, "solid"
            y = vertex["val_loss"] + vertex["curvature"] * np.log(n / vertex["vertex"]) ** 2
        else:
            mean = group.groupby("params").val_loss.mean()
            x, y, dash = mean.index.to_numpy(float), mean.to_numpy(), "dot"
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": colour, "width": 1.5, "dash": dash},
            legendgroup=name, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=group.params, y=group.val_loss, mode="markers", name=name, legendgroup=name,
            marker={"color": colour, "size": SYMBOL_SIZES[shape], "symbol": SYMBOLS[shape]},
            customdata=[escape(size) for size in group["size"]],
            hovertemplate=f"{name}<br>%{{customdata}}: %{{x:.3s}} parameters<br>loss %{{y:.4f}}"
            "<extra></extra>",
        )  # fmt: skip
        at = math.nan
        if vertex is not None:
            at = vertex["params" if vertex["accepted"] else "vertex"]
        if vertex is not None and x_range[0] < at < x_range[1]:
            ring = {"color": PAPER, "size": 12, "line": {"color": LAW, "width": 2}}
            figure.add_scatter(
                x=[at], y=[vertex["val_loss"]], mode="markers", legendgroup=name,
                showlegend=False, marker=ring if vertex["accepted"] else CROSS,
                hovertemplate=f"{name}<br>vertex at %{{x:.3s}} parameters<br>loss %{{y:.4f}}"
                f"{'' if vertex['accepted'] else '<br>not accepted'}<extra></extra>",
            )  # fmt: skip
    low, high = float(points.val_loss.min()), float(points.val_loss.max())
    log_loss(figure, low * 0.985, high * 1.015)
    return figure


def specification_points(table: pd.DataFrame) -> pd.DataFrame:
    """Specifications in the order of their exponent, with the column `rank` (0: the lowest b)."""
    table = table.sort_values("b", kind="stable").reset_index(drop=True)
    return table.assign(rank=table.index)


def specification_figure(
    points: pd.DataFrame, choices: Sequence[str], interval: tuple[float, float] | None = None
) -> go.Figure:
    """The exponent under every analyst's choice, and below it which choices those were.

    (Simonsohn, Simmons and Nelson 2020, "Specification curve analysis".)

    Args:
        points: of `specification_points`: rank, b, main (the study's own choices, drawn open) and
            one column of labels for each of `choices`.
        interval: the statistical interval of the main specification, drawn as a band.
    """
    rows = _choices_and_options(points, choices)
    place = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    height = 340 + 19 * len(rows)
    figure = base_figure("", "exponent b", height=height)
    share = 280 / height
    ticks = [escape(row[1]) if row[1] else f"<b>{escape(row[0])}</b>" for row in rows]
    figure.update_layout(
        xaxis={"anchor": "y2", "showticklabels": False, "ticks": "", "showgrid": False,
               "range": [-0.02 * len(points) - 0.5, 1.02 * len(points) - 0.5]},
        yaxis={"domain": [1 - share, 1]},
        yaxis2={
            "domain": [0, 1 - share - 0.02], "tickvals": [place[row] for row in rows],
            "ticktext": ticks, "range": [-0.8, len(rows) - 0.2], "automargin": True,
            "showgrid": False, "zeroline": False, "ticks": "", "anchor": "x",
        },
    )  # fmt: skip
    if interval is not None:
        figure.add_hrect(*interval, fillcolor=LAW + "2b", line_width=0, layer="below")
    figure.update_layout(yaxis_range=_around(points.b, interval))
    colour = shades(1)[0]
    text = [
        "<br>".join(f"{c}: {escape(v)}" for c, v in zip(choices, row, strict=True))
        for row in points[list(choices)].astype(str).to_numpy()
    ]
    own = points.main.to_numpy(bool)
    for mask, name, marker in (
        (~own, "another choice", {"color": colour, "size": 5}),
        (own, "this report’s choice", {"color": PAPER, "size": 12, "symbol": "diamond",
                                  "line": {"color": LAW, "width": 2.5}}),
    ):  # fmt: skip
        if not mask.any():
            continue
        figure.add_scatter(
            x=points["rank"][mask], y=points.b[mask], mode="markers", marker=marker, name=name,
            customdata=[t for t, shown in zip(text, mask, strict=True) if shown],
            hovertemplate="b %{y:.4f}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
    for row in rows:
        if row[1] is not None:
            mine = points[points[row[0]].astype(str) == row[1]]
            figure.add_scatter(
                x=mine["rank"], y=[place[row]] * len(mine), mode="markers", yaxis="y2",
                showlegend=False, hoverinfo="skip",
                marker={"size": 8, "symbol": "line-ns", "line": {"color": colour, "width": 1.5}},
            )  # fmt: skip
    return figure


def _choices_and_options(
    points: pd.DataFrame, choices: Sequence[str]
) -> list[tuple[str, str | None]]:
    """From the top down: a choice without an option, then with each, the study's own first."""
    rows: list[tuple[str, str | None]] = []
    for choice in choices:
        options = pd.concat([points[choice][points.main], points[choice].sort_values()])
        rows += [(choice, None), *((choice, option) for option in dict.fromkeys(map(str, options)))]
    return rows


def _around(values: pd.Series, interval: tuple[float, float] | None) -> list[float]:
    """A range that holds the values and the interval."""
    ends = [*values, *(interval or ())]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return [min(ends) - margin, max(ends) + margin]


def influence_figure(
    points: pd.DataFrame, b: float, interval: tuple[float, float] | None = None
) -> go.Figure:
    """The exponent without each part of the data in turn, the most influential on top.

    Args:
        points: columns left_out (its name), kind ("run" or "budget") and b (refitted without it).
        b: the exponent of the whole; `interval`: its statistical interval, drawn as a band.
    """
    points = points[np.isfinite(points.b)]
    order = (points.b - b).abs().sort_values(ascending=False, kind="stable").index
    shown = points.loc[order[:SHOWN]][::-1]
    figure = base_figure("exponent b of the rest", "", height=130 + 22 * len(shown))
    if interval is not None:
        figure.add_vrect(*interval, fillcolor=LAW + "2b", line_width=0, layer="below")
    figure.add_vline(x=b, line={"color": LAW, "width": 2})
    figure.update_xaxes(range=_around(shown.b, interval))
    names = [escape(name) for name in shown.left_out]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names, ticks="")
    kinds = list(dict.fromkeys(points.sort_values("kind", ascending=False).kind))
    for kind, colour, i in zip(kinds, shades(3)[::-2], range(len(kinds)), strict=False):
        mine = shown[shown.kind == kind]
        figure.add_scatter(
            x=mine.b, y=[escape(name) for name in mine.left_out], mode="markers",
            name=f"without one {escape(kind)}",
            marker={"color": colour, "size": SYMBOL_SIZES[i] + 1, "symbol": SYMBOLS[i]},
            hovertemplate="without %{y}: b %{x:.4f}<extra></extra>",
        )  # fmt: skip
    return figure


def prediction_points(before: PowerLaw, points: pd.DataFrame) -> pd.DataFrame:
    """A law of the smaller budgets, continued to the points that it has not seen.

    Args:
        before: the law without the largest budget.
        points: columns macs_total, val_loss: all points of the frontier.
    Returns `law_points` (kind 'law', with the interval of the law) and the points (kind 'fitted',
    or 'held out' with the prediction in `loss` and the interval of such a point in low, high).
    """
    macs = points.macs_total.astype(float)
    curve = law_points(before, float(macs.min()), float(macs.max())).assign(kind="law")
    measured = points[["macs_total", "val_loss"]].assign(kind="fitted")
    unseen = macs > float(before.compute.max()) * (1 + 1e-9)
    measured.loc[unseen, "kind"] = "held out"
    promised = [before.predict(float(c)) for c in macs[unseen]]
    measured.loc[unseen, "loss"] = [p.loss for p in promised]
    measured.loc[unseen, "low"] = [p.run_low for p in promised]
    measured.loc[unseen, "high"] = [p.run_high for p in promised]
    return pd.concat([curve, measured], ignore_index=True)


def prediction_figure(points: pd.DataFrame, *, unit: str = TOKEN_UNIT) -> go.Figure:
    """The law of the smaller budgets and what the largest was (points of `prediction_points`)."""
    figure = base_figure("training compute (MACs)", f"validation loss ({unit})", height=380)
    log_compute(figure)
    curve, known = points[points.kind == "law"], points[points.kind == "fitted"]
    unseen = points[points.kind == "held out"]
    colour = shades(1)[0]
    figure.add_scatter(
        x=known.macs_total, y=known.val_loss, mode="markers", name="smaller budgets",
        marker={"color": colour, "size": 9},
        hovertemplate="fitted<br>%{x:.3s} MACs<br>loss %{y:.4f}<extra></extra>",
    )  # fmt: skip
    add_law(figure, curve, name="their law")
    figure.add_scatter(
        x=unseen.macs_total, y=unseen.loss, mode="markers", name="promised",
        marker={"size": 13, "symbol": "line-ew", "line": {"color": LAW, "width": 2}},
        error_y={
            "symmetric": False, "array": unseen.high - unseen.loss,
            "arrayminus": unseen.loss - unseen.low, "color": LAW, "thickness": 1.5, "width": 5,
        },
        customdata=unseen[["low", "high"]],
        hovertemplate="promised %{y:.4f}<br>95% of points: %{customdata[0]:.4f} to "
        "%{customdata[1]:.4f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=unseen.macs_total, y=unseen.val_loss, mode="markers", name="measured",
        marker={"color": PAPER, "size": 11, "symbol": "diamond",
                "line": {"color": colour, "width": 2.5}},
        hovertemplate="measured %{y:.4f}<br>%{x:.3s} MACs<extra></extra>",
    )  # fmt: skip
    ends = points[["loss", "val_loss", "low", "high"]].to_numpy(float)
    log_loss(figure, float(np.nanmin(ends)) * 0.99, float(np.nanmax(ends)) * 1.01)
    return figure
