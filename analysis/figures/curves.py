"""Loss curves and their law."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures.style import SYMBOLS, base_figure, shades
from scaling.analysis.schema import TOKEN_UNIT


def curve_figure(points: pd.DataFrame, *, unit: str = TOKEN_UNIT) -> go.Figure:
    """Observed losses as points, the law as a line with its interval, a colour a run.

    points: of analysis.questions.curve_study.predictions.
    """
    figure = base_figure("step", f"loss ({unit})")
    runs = list(points.groupby("run", sort=False))
    for i, ((name, rows), colour) in enumerate(zip(runs, shades(len(runs)), strict=True)):
        line = {"color": colour, "width": 2}
        both = pd.concat([rows["high"], rows["low"][::-1]])
        figure.add_trace(
            go.Scatter(
                x=pd.concat([rows["step"], rows["step"][::-1]]), y=both, fill="toself",
                fillcolor=colour, opacity=0.15, line={"width": 0}, hoverinfo="skip",
                showlegend=False,
            )
        )  # fmt: skip
        marker = {"color": colour, "size": 4, "symbol": SYMBOLS[i % len(SYMBOLS)], "opacity": 0.6}
        figure.add_trace(
            go.Scatter(
                x=rows["step"], y=rows["observed"], mode="markers", marker=marker, name=str(name)
            )
        )
        figure.add_trace(
            go.Scatter(x=rows["step"], y=rows["loss"], mode="lines", line=line, showlegend=False)
        )
    return figure
