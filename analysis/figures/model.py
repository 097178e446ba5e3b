"""Figures of models and tokens: coordinate check, loss by position, n-gram distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures.style import (
    DASHES,
    LAW,
    SOFT,
    base_figure,
    count_text,
    escape,
    number_text,
    shades,
)  # fmt: skip
from scaling.errors import UserError

RANKS = 300  # points of an n-gram curve, at most


def coordinate_points(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Activation scales averaged over seeds, and each layer's growth with width.

    Args:
        records: dicts of width, layer, step, scale (mean absolute activation) and, when there are
            several, seed.
    Returns columns step, layer, width, scale, slope (of log2 scale against log2 width at that step
    and layer; 0: the scale does not depend on the width). Layers keep the order of `records`.
    """
    table = pd.DataFrame(records)
    order = list(dict.fromkeys(table.layer))
    mean = table.groupby(["step", "layer", "width"]).scale.mean().reset_index()
    mean["place"] = mean.layer.map(order.index)
    mean = mean.sort_values(["step", "place", "width"]).drop(columns="place")
    slopes = {
        key: float(np.polyfit(np.log2(g.width), np.log2(g.scale), 1)[0])
        for key, g in mean.groupby(["step", "layer"])
        if g.width.nunique() > 1 and (g.scale > 0).all()
    }
    keys = zip(mean.step, mean.layer, strict=True)
    return mean.assign(slope=[slopes.get(key, np.nan) for key in keys]).reset_index(drop=True)


def coordinate_figure(points: pd.DataFrame) -> go.Figure:
    """Mean absolute activation against width, a line a layer, before and after training.

    (Tensor Programs V, Figure 5.) Takes `coordinate_points`; the first step is dotted, the last
    solid. Under muP the lines are flat.
    """
    figure = base_figure("width", "mean absolute activation")
    steps = sorted(points.step.unique())
    layers = list(dict.fromkeys(points.layer))
    for layer, colour in zip(layers, shades(len(layers)), strict=True):
        for step in dict.fromkeys((steps[0], steps[-1])):
            one = points[(points.layer == layer) & (points.step == step)]
            slope = one.slope.iloc[0]
            figure.add_scatter(
                x=one.width, y=one.scale, mode="lines+markers", name=escape(layer),
                legendgroup=str(layer), showlegend=bool(step == steps[-1]),
                line={"color": colour, "width": 2, "dash": "solid" if step == steps[-1] else "dot"},
                marker={"size": 6},
                hovertemplate=f"{escape(layer)}, after {step} steps<br>width %{{x}}: %{{y:.4g}}<br>"
                f"slope {slope:+.3f}<extra></extra>",
            )  # fmt: skip
    widths = sorted(points.width.unique())
    figure.update_xaxes(type="log", tickvals=widths, ticktext=[str(w) for w in widths])
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, minor={"ticks": "outside"})
    return figure


def position_points(loss_T: np.ndarray, tokens_per_frame: int) -> pd.DataFrame:
    """Mean loss by token position and by frame (the paper's Figure 10).

    Args:
        loss_T: nats, position 0 is the first code, predicted from the start token alone. What is
            left after the last whole frame (the end token) belongs to no frame.
    Returns columns position, frame (-1: none), loss, frame_loss.
    """
    loss_T = np.asarray(loss_T, float)
    if loss_T.ndim != 1 or tokens_per_frame < 1 or len(loss_T) < tokens_per_frame:
        raise UserError(
            f"losses of shape {loss_T.shape} with {tokens_per_frame} tokens a frame: want one loss "
            "a position, and at least one whole frame"
        )
    position = np.arange(len(loss_T))
    frame = position // tokens_per_frame
    frame[frame >= len(loss_T) // tokens_per_frame] = -1
    table = pd.DataFrame({"position": position, "frame": frame, "loss": loss_T})
    mean = table[table.frame >= 0].groupby("frame").loss.mean()
    return table.assign(frame_loss=table.frame.map(mean))


def position_figure(points: pd.DataFrame) -> go.Figure:
    """Loss against token position, with the mean of each frame (points of `position_points`).

    The end token, which belongs to no frame and costs next to nothing, is not drawn.
    """
    figure = base_figure("token position", "validation loss (nats per token)")
    whole = points[points.frame >= 0]
    starts = whole.position[whole.frame.diff().fillna(1) > 0]
    for start in starts if len(starts) <= 64 else []:
        figure.add_vline(x=start, line={"color": SOFT, "width": 0.5, "dash": "dot"}, layer="below")
    figure.add_scatter(
        x=whole.position, y=whole.loss, mode="lines", name="position",
        line={"color": shades(1)[0], "width": 1},
        hovertemplate="position %{x}: %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=whole.position, y=whole.frame_loss, mode="lines", name="mean of the frame",
        line={"color": LAW, "width": 2.5, "shape": "hv"}, customdata=whole.frame,
        hovertemplate="frame %{customdata}: %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    return figure


def ngram_points(counts: Mapping[str, tuple[np.ndarray, float]]) -> pd.DataFrame:
    """Rank-frequency curves of n-grams (the paper's Figures 3, 12 and 13).

    Args:
        counts: name of a tokenizer -> (how often each distinct n-gram occurs, how many n-grams are
            possible: codes ** n).
    Returns columns tokenizer, rank (1: the most frequent), share (of all occurrences), cumulative,
    distinct, coverage (distinct / possible); at most `RANKS` ranks a tokenizer, log-spaced.
    """
    tables = []
    for name, (occurrences, possible) in counts.items():
        sorted_counts = np.sort(np.asarray(occurrences, float))[::-1]
        sorted_counts = sorted_counts[sorted_counts > 0]
        if not len(sorted_counts):
            raise UserError(f"{name}: no n-gram occurs; give the counts of encoded frames")
        distinct = len(sorted_counts)
        rank = np.unique(np.geomspace(1, distinct, RANKS).round().astype(int))
        share = sorted_counts / sorted_counts.sum()
        tables.append(
            pd.DataFrame(
                {
                    "tokenizer": name,
                    "rank": rank,
                    "share": share[rank - 1],
                    "cumulative": np.cumsum(share)[rank - 1],
                    "distinct": distinct,
                    "coverage": distinct / possible,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def ngram_figure(points: pd.DataFrame) -> go.Figure:
    """Share of each n-gram against its rank, a line a tokenizer (points of `ngram_points`)."""
    figure = base_figure("rank of the n-gram", "share of all occurrences")
    names = list(dict.fromkeys(points.tokenizer))
    for i, (name, colour) in enumerate(zip(names, shades(len(names)), strict=True)):
        one = points[points.tokenizer == name]
        distinct, coverage = one.distinct.iloc[0], 100 * one.coverage.iloc[0]
        figure.add_scatter(
            x=one["rank"], y=one.share, mode="lines",
            name=f"{escape(name)}: {count_text(distinct)} used, {number_text(coverage)}%",
            line={"color": colour, "width": 2, "dash": ("solid", *DASHES)[i % 5]},
            customdata=one.cumulative,
            hovertemplate=f"{escape(name)}<br>rank %{{x}}: %{{y:.3g}}<br>the first %{{x}} make "
            "%{customdata:.1%}<extra></extra>",
        )  # fmt: skip
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(type="log", exponentformat="power", dtick=1)
    return figure
