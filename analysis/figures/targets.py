"""The best size of each budget for each target, in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures.style import (
    SYMBOL_SIZES,
    SYMBOLS,
    base_figure,
    escape,
    log_compute,
    shades,
)

if TYPE_CHECKING:
    from scaling.analysis.questions.targets import Target

MIDDLE = 60  # points of a line


def target_figure(points: pd.DataFrame, found: Sequence[Target]) -> go.Figure:
    """N* against compute: a colour and a line a target, each budget's parabola with its interval.

    Args:
        points: of `targets.points`. found: of `targets.targets`, in whose order colours are.
    """
    figure = base_figure("training MACs", "best size, parameters", height=480)
    log_compute(figure)
    figure.update_yaxes(type="log", exponentformat="power")
    for i, (target, colour) in enumerate(zip(found, shades(len(found)), strict=True)):
        mine = points[points.target == target.name]
        name, shape = escape(target.name), i % len(SYMBOLS)
        figure.add_scatter(
            x=mine.macs_total, y=mine.params, mode="markers", name=name, legendgroup=name,
            marker={"color": colour, "size": SYMBOL_SIZES[shape], "symbol": SYMBOLS[shape]},
            error_y={
                "type": "data", "symmetric": False, "array": mine.params_high - mine.params,
                "arrayminus": mine.params - mine.params_low, "color": colour, "thickness": 1.2,
            },
            hovertemplate=f"{name}<br>%{{x:.3s}} MACs<br>%{{y:.3s}} parameters<extra></extra>",
        )  # fmt: skip
        if target.sizes is None or not np.isfinite(target.sizes[0].exponent) or mine.empty:
            continue
        macs = np.geomspace(mine.macs_total.min(), mine.macs_total.max(), MIDDLE)
        figure.add_scatter(
            x=macs, y=target.sizes[0](macs), mode="lines", legendgroup=name, showlegend=False,
            line={"color": colour, "width": 2}, hoverinfo="skip",
        )  # fmt: skip
    return figure
