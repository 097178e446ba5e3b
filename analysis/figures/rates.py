"""The loss off the best rate in every cell, and the best rate beside its law."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from scaling.analysis.figures.style import GRID, LAW, PAPER, SOFT, base_figure, shades
from scaling.analysis.laws.rates_fit import RatesLaw

HIGHEST = 12.0  # percent above the best: what lies farther is in the table beside the figure


def rate_figure(law: RatesLaw, points: pd.DataFrame) -> go.Figure:
    """Left: loss above the cell's best, in percent, against octaves from the best rate at the run's
    batch; lines are the law's at the best batch. Right: rate of each cell's lowest run against the
    law's best rate.

    Args:
        points: of `StudyRates.points`.
    """
    drawn = make_subplots(cols=2, horizontal_spacing=0.12)
    drawn.update_layout(base_figure("", "").layout)
    some = points[points["above"] <= HIGHEST]
    order = some["n"].rank(method="dense").astype(int).to_numpy() - 1
    colours = np.array(shades(int(order.max()) + 1 if len(order) else 1))
    text = [f"N {r.n:.3g}, D {r.d:.3g}<br>lr {r.lr:.3g}, loss {r.loss:.4f}"
            for r in some.itertuples()]  # fmt: skip
    marker = {"color": colours[order].tolist(), "size": 5, "line": {"color": PAPER, "width": 0.5}}
    drawn.add_scatter(
        x=some["octaves"], y=some["above"], mode="markers", marker=marker, text=text,
        hovertemplate="%{text}<extra></extra>", showlegend=False, row=1, col=1,
    )  # fmt: skip
    line = {"color": LAW, "width": 2}
    octaves = np.linspace(-4, 4, 81)
    costs = [100 * law.cost(float(one))[0] for one in octaves]
    shown = np.array(costs) <= HIGHEST
    drawn.add_scatter(
        x=octaves[shown], y=np.array(costs)[shown], mode="lines", line=line, hoverinfo="skip",
        showlegend=False, row=1, col=1,
    )  # fmt: skip
    lowest = points.loc[points[~points["diverged"]].groupby(["n", "d"])["loss"].idxmin()]
    best = [law.best(n, d).lr for n, d in zip(lowest["n"], lowest["d"], strict=True)]
    ends = [min(best), max(best)]
    drawn.add_scatter(
        x=best, y=lowest["lr"], mode="markers", marker={"color": SOFT, "size": 7},
        text=[f"N {n:.3g}, D {d:.3g}" for n, d in zip(lowest["n"], lowest["d"], strict=True)],
        hovertemplate="%{text}<extra></extra>", showlegend=False, row=1, col=2,
    )  # fmt: skip
    drawn.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False,
                      row=1, col=2)  # fmt: skip
    axis = {"gridcolor": GRID, "zeroline": False, "tickfont": {"color": SOFT}}
    drawn.update_xaxes(title_text="octaves from the best rate", col=1, **axis)
    drawn.update_yaxes(title_text="loss above the cell's best (%)", col=1, **axis)
    drawn.update_xaxes(title_text="best rate by the law", type="log", col=2, **axis)
    drawn.update_yaxes(title_text="rate of the lowest run", type="log", col=2, **axis)
    return drawn
