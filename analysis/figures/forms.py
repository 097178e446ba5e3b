"""A form's law beside its points: observed against predicted, and what is left over."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from scaling.analysis.figures.style import GRID, LAW, PAPER, SOFT, base_figure, shades
from scaling.analysis.laws.form_law import FormLaw
from scaling.analysis.schema import TOKEN_UNIT


def form_points(law: FormLaw) -> pd.DataFrame:
    """A row a point: the law's columns, observed and predicted loss, miss (log observed - log
    predicted)."""
    return pd.DataFrame(
        {**law.columns, "observed": law.loss, "predicted": law.fitted, "miss": law.residuals}
    )


def form_figure(points: pd.DataFrame, *, unit: str = TOKEN_UNIT) -> go.Figure:
    """Left: observed against predicted loss, on the line where they agree. Right: the miss, in
    percent, against the predicted loss.

    Args:
        points: of `form_points`. Colours are by the first column of the law.
    """
    of = str(points.columns[0])
    order = points[of].rank(method="dense").astype(int).to_numpy() - 1
    colours = np.array(shades(int(order.max()) + 1))[order].tolist()
    drawn = make_subplots(cols=2, horizontal_spacing=0.1)
    drawn.update_layout(base_figure("", "").layout)
    text = [
        "<br>".join(f"{name} {row[name]:.4g}" for name in points.columns)
        for row in points.to_dict("records")
    ]
    marker = {"color": colours, "size": 7, "line": {"color": PAPER, "width": 0.5}}
    for column, y in ((1, points["observed"]), (2, 100 * points["miss"])):
        drawn.add_scatter(
            x=points["predicted"], y=y, mode="markers", marker=marker, text=text,
            hovertemplate="%{text}<extra></extra>", showlegend=False, row=1, col=column,
        )  # fmt: skip
    ends = [float(f(points[["observed", "predicted"]].to_numpy())) for f in (np.min, np.max)]
    line = {"color": LAW, "width": 2}
    for column, level in ((1, ends), (2, [0.0, 0.0])):
        drawn.add_scatter(
            x=ends, y=level, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=1,
            col=column,
        )  # fmt: skip
    axis = {"gridcolor": GRID, "zeroline": False, "tickfont": {"color": SOFT}}
    drawn.update_xaxes(title_text=f"predicted loss ({unit})", **axis)
    drawn.update_yaxes(title_text=f"observed loss ({unit})", col=1, **axis)
    drawn.update_yaxes(title_text="observed over predicted (log, %)", col=2, **axis)
    return drawn
