"""Sweeps of the learning rate over width or depth, side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from scaling.analysis.figures.style import PAPER, SYMBOLS, base_figure, shades, superscript
from scaling.analysis.questions.transfer import GROUP, Rates, of_series, title
from scaling.analysis.schema import TOKEN_UNIT


def transfer_figure(rates: Rates, *, unit: str = TOKEN_UNIT) -> go.Figure:
    """Loss above each member's lowest against the rate, a panel a series, a line a member.

    The open marker at the foot of a line is its optimum, with the 95% interval: where they stand
    above one another, the rate transfers. Diverged runs are left out.
    """
    points, best = rates.points, rates.optima
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
            name = f"{key[2]} {member}"
            mine = of_series(best, key)
            vertex = mine[mine.member == member].iloc[0]
            curve = one.dropna(subset="val_loss").groupby("log2_lr").val_loss.mean()
            highest = max(highest, float((curve - vertex.val_loss).median()))
            losses, optimum = _member(name, curve, vertex, colour, j)
            losses.showlegend = name not in shown
            figure.add_trace(losses, **place)
            figure.add_trace(optimum, **place)
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


def _member(
    name: str, curve: pd.Series, vertex: pd.Series, colour: str, number: int
) -> tuple[go.Scatter, go.Scatter]:
    """A model's losses by rate, above its lowest, and its optimum at the foot."""
    symbol = SYMBOLS[number % len(SYMBOLS)]
    losses = go.Scatter(
        x=curve.index, y=curve - vertex.val_loss, mode="lines+markers", name=name,
        legendgroup=name, line={"color": colour, "width": 2},
        marker={"size": 7, "symbol": symbol}, customdata=curve,
        hovertemplate=f"{name}<br>rate 2^%{{x}}<br>loss %{{customdata:.4f}}<extra></extra>",
    )  # fmt: skip
    interval = None
    if not math.isnan(vertex.low):
        half = [float(vertex.high - vertex.log2_lr)]
        interval = {"type": "data", "array": half, "color": colour, "thickness": 1.5}
    optimum = go.Scatter(
        x=[vertex.log2_lr], y=[-0.02 * (number + 1)], mode="markers", legendgroup=name,
        showlegend=False, error_x=interval,
        marker={"color": PAPER, "size": 10, "symbol": symbol,
                "line": {"color": colour, "width": 2}},
        hovertemplate=f"{name}: optimum 2^%{{x:.2f}}<extra></extra>",
    )  # fmt: skip
    return losses, optimum
