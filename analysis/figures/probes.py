"""Figures of what the models learned: accuracy by layer, errors against compute, tracking.

Take the tables of analysis/questions/quality.py.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures.runs import add_law
from scaling.analysis.figures.style import (
    INK,
    LAW,
    SOFT,
    SYMBOL_SIZES,
    SYMBOLS,
    base_figure,
    count_text,
    escape,
    log_compute,
    shades,
)  # fmt: skip

UNTRAINED = {"random": ("random weights", "dash"), "pixels": ("pixels", "dashdot")}


def layer_figure(points: pd.DataFrame, value: str, y_title: str) -> go.Figure:
    """`value` by relative depth (Figures 4, 8 and 14): a line a model, with its intervals.

    Columns: size, params, weights, layer, depth, `value`, low, high, and chance where there is one.
    Solid: trained. Dashed: the same model before training. Dotted: chance.
    """
    figure = base_figure("layer, as a share of the depth (0: the embedding)", y_title)
    sizes = list(points.sort_values("params")["size"].dropna().unique())
    aside = min(0.008, 0.05 / max(1, len(sizes)))  # so that intervals do not cover one another
    for size, colour, i in zip(sizes, shades(len(sizes)), range(len(sizes)), strict=True):
        for weights, dash in (("trained", "solid"), ("random", "dash")):
            one = points[(points["size"] == size) & (points.weights == weights)]
            one = one.sort_values("layer")
            label = escape(size) + (", random weights" if weights == "random" else "")
            figure.add_scatter(
                x=one.depth + aside * (i - (len(sizes) - 1) / 2), y=one[value],
                mode="lines+markers", name=label,
                line={"color": colour, "width": 2 if weights == "trained" else 1.2, "dash": dash},
                marker={"symbol": SYMBOLS[i % 7], "size": SYMBOL_SIZES[i % 7]},
                opacity=1 if weights == "trained" else 0.6,
                error_y={
                    "type": "data", "array": one.high - one[value],
                    "arrayminus": one[value] - one.low, "thickness": 1, "width": 3,
                },
                customdata=one.layer,
                hovertemplate=f"{label}<br>layer %{{customdata}}: %{{y:.1%}}<extra></extra>",
            )  # fmt: skip
    pixels = points[points.weights == "pixels"]
    if len(pixels):
        figure.add_hline(y=float(pixels[value].iloc[0]), line={"color": LAW, "dash": "dashdot"},
                         annotation_text="the patches’ pixels")  # fmt: skip
    if "chance" in points:
        figure.add_hline(y=float(points.chance.mean()), line={"color": SOFT, "dash": "dot"},
                         annotation_text="chance")  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def quality_figure(points: pd.DataFrame, law: pd.DataFrame | None = None) -> go.Figure:
    """Error against training compute, one marker a probed model, with the law where there is one.

    points: columns size, params, macs_total, error, low, high. law: of `figures.law_points`.
    """
    figure = base_figure("training compute (MACs)", "error of the best layer")
    log_compute(figure)
    sizes = list(points.sort_values("params")["size"].unique())
    for size, colour, i in zip(sizes, shades(len(sizes)), range(len(sizes)), strict=True):
        one = points[points["size"] == size].sort_values("macs_total")
        figure.add_scatter(
            x=one.macs_total, y=one.error, mode="lines+markers",
            name=f"{escape(size)} ({count_text(one.params.iloc[0])} parameters)",
            line={"color": colour, "width": 1.2, "dash": "dot"},
            marker={"symbol": SYMBOLS[i % 7], "size": SYMBOL_SIZES[i % 7] + 1},
            error_y={
                "type": "data", "array": one.high - one.error, "arrayminus": one.error - one.low,
                "thickness": 1, "width": 3,
            },
            hovertemplate=f"{escape(size)}<br>%{{x:.3g}} MACs: %{{y:.1%}}<extra></extra>",
        )  # fmt: skip
    if law is not None:
        add_law(figure, law)
    figure.update_yaxes(type="log", tickformat=".0%", nticks=8)
    return figure


def frame_loss_figure(points: pd.DataFrame) -> go.Figure:
    """Mean loss by frame of what was drawn and of the clip itself. Columns what, frame, loss."""
    figure = base_figure("frame", "loss (nats per token)", height=360)
    for what, colour, name in (("clip", INK, "the clip’s own frames"), ("drawn", LAW, "drawn")):
        one = points[points.what == what]
        figure.add_scatter(
            x=one.frame, y=one.loss, mode="lines+markers", name=name,
            line={"color": colour, "width": 2}, marker={"size": 5},
            hovertemplate="frame %{x}: %{y:.3f} nats<extra></extra>",
        )  # fmt: skip
    return figure
