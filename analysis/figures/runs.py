"""The figures of a study. What is drawn is apart from how it is drawn.

`*_points` functions turn rows into a tidy table (tested; it is also the figure's CSV) and
`*_figure` functions draw such a table with plotly, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from scaling.analysis.figures.style import (
    CROSS,
    DASHES,
    LAW,
    PAPER,
    SOFT,
    SYMBOL_SIZES,
    SYMBOLS,
    base_figure,
    count_text,
    escape,
    log_compute,
    log_loss,
    shades,
    superscript,
)  # fmt: skip
from scaling.analysis.schema import TOKEN_UNIT

if TYPE_CHECKING:
    import pandas as pd

    from scaling.analysis.laws.power_law import PowerLaw

DRAWN_POINTS = 3000  # points of one kind in a figure, at most; above it they are thinned
LEGEND_SIZES = 24  # more than that are drawn by half decades of parameters


# --- what is drawn


def run_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Every evaluation of the ladder's runs, thinned to what a page can draw: mid-schedule points
    evenly along each run, decayed ones as `drawn_points` does.

    Returns columns run_id, size, params, seed (where the rows have it), kind ('mid': the rate has
    not decayed, 'decayed', 'diverged': a run's last point), macs_total, tokens, val_loss; sorted by
    (params, size, run_id, macs_total). A run that diverged before its first evaluation has a NaN
    loss.
    """
    points = rows[rows.role != "lr_sweep"].sort_values(
        ["params", "size", "run_id", "macs_total", "decayed"]
    )
    kind = np.where(points.decayed, "decayed", "mid")
    last = ~points.duplicated("run_id", keep="last")
    points = points.assign(kind=np.where(last & (points.status != "finished"), "diverged", kind))
    mid, done = points.kind == "mid", points.kind == "decayed"
    if mid.sum() > DRAWN_POINTS:  # every k-th of a run; of more runs than that, every k-th run
        kept = points[mid & (points.groupby("run_id").cumcount() % _stride(mid.sum()) == 0)]
        runs = kept.run_id.drop_duplicates().iloc[:: _stride(len(kept))]
        mid &= points.index.isin(kept.index[kept.run_id.isin(runs)])
    lost = points.index[points.kind == "diverged"]
    shown = drawn_points(points[done]).index.append(lost[:: max(1, _stride(len(lost)))])
    points = points[mid | points.index.isin(shown)]
    columns = ["run_id", "size", "params", "seed", "kind", "macs_total", "tokens", "val_loss"]
    return points[[c for c in columns if c in points]].reset_index(drop=True)


def drawn_points(points: pd.DataFrame) -> pd.DataFrame:
    """About DRAWN_POINTS of the points at most (columns size, macs_total, val_loss).

    Of points that cannot be told apart (one size, compute within 2%, loss within 0.2%) the best
    stays, of what is left every k-th; the lowest loss of each size and compute always stays.
    """
    if len(points) <= DRAWN_POINTS:
        return points
    place = points[["size"]].assign(
        macs=np.round(np.log(points.macs_total.astype(float)) / 0.02),
        loss=np.round(np.log(points.val_loss.where(points.val_loss > 0)) / 0.002),
    )
    place = place.loc[points.val_loss.sort_values(kind="stable").index].drop_duplicates()
    best = ~place.duplicated(["size", "macs"])
    every = np.arange(len(place)) % _stride(len(place)) == 0
    shown: pd.DataFrame = points.loc[place.index[best | every]].sort_index()
    return shown


def _stride(count: int) -> int:
    """Every how many-th of `count` points is drawn."""
    return -(-int(count) // DRAWN_POINTS)


def law_points(law: PowerLaw, macs_from: float, macs_to: float) -> pd.DataFrame:
    """A law on 48 log-spaced computes: columns macs_total, loss, and its interval low, high."""
    import pandas as pd

    predictions = [law.predict(float(macs)) for macs in np.geomspace(macs_from, macs_to, 48)]
    return pd.DataFrame(
        [(p.compute, p.loss, p.low, p.high) for p in predictions],
        columns=["macs_total", "loss", "low", "high"],
    )


def residual_points(points: pd.DataFrame, law: PowerLaw) -> pd.DataFrame:
    """Measured against fitted loss: adds columns `fitted` and `residual_percent`."""
    fitted = law(points.macs_total.to_numpy(float))
    return points.assign(fitted=fitted, residual_percent=100 * (points.val_loss / fitted - 1))


def holdout_points(laws: Sequence[PowerLaw]) -> pd.DataFrame:
    """Each budget predicted from all smaller ones by each form of law, the largest last.

    Returns columns form, macs_total, fitted_points, actual, predicted, error_percent.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            (law.form, h.compute, h.fitted_points, h.actual, h.predicted, 100 * h.error)
            for law in laws
            for h in law.holdout
        ],
        columns=["form", "macs_total", "fitted_points", "actual", "predicted", "error_percent"],
    )


# --- how it is drawn


def learning_rate_figure(
    points: pd.DataFrame, chosen_log2_lr: float | None = None, *, unit: str = TOKEN_UNIT
) -> go.Figure:
    """Final loss against the learning rate, a line a width (the paper's Figure 11).

    Args:
        points: of `learning_rate_points`.
        chosen_log2_lr: the rate that the ladder uses, drawn as a vertical line.
    """
    figure = base_figure("base learning rate", f"validation loss ({unit})")
    groups = list(points.groupby(["parametrization", "shape", "layers", "d"], sort=True))
    both, shapes = points.parametrization.nunique() > 1, points["shape"].nunique() > 1
    deep = points.layers.nunique() > 1
    top = float(points.val_loss.max())
    for ((kind, shape, layers, d), group), colour, i in zip(
        groups, shades(len(groups)), range(len(groups)), strict=True
    ):
        name = f"width {d}" + (f", {layers} layers" if deep else "")
        name += f", {escape(kind)}" if both else ""
        name += f", {escape(shape or 'toto')}" if shapes else ""
        mean = group.groupby("log2_lr", as_index=False).val_loss.mean()
        line = {"color": colour, "width": 2, "dash": "dot" if kind == "standard" else "solid"}
        figure.add_scatter(
            x=mean.log2_lr, y=mean.val_loss, mode="lines", line=line, legendgroup=name,
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip
        symbol, size = SYMBOLS[i % len(SYMBOLS)], SYMBOL_SIZES[i % len(SYMBOLS)]
        figure.add_scatter(
            x=group.log2_lr, y=group.val_loss, mode="markers", name=name, legendgroup=name,
            marker={"color": colour, "size": size, "symbol": symbol},
            customdata=group.run_id,
            hovertemplate=f"{name}<br>rate 2^%{{x}}<br>loss %{{y:.4f}}<br>run %{{customdata}}"
            "<extra></extra>",
        )  # fmt: skip
        best = group[group.best]
        figure.add_scatter(
            x=best.log2_lr, y=best.val_loss, mode="markers", legendgroup=name, showlegend=False,
            marker={"color": PAPER, "size": 1.7 * size, "symbol": symbol,
                    "line": {"color": colour, "width": 2.5}},
            hovertemplate=f"{name}: best<br>rate 2^%{{x}}<br>loss %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    lost = points[points.val_loss.isna()]
    if len(lost):
        figure.add_scatter(
            x=lost.log2_lr, y=[top * 1.02] * len(lost), mode="markers", name="diverged",
            marker=CROSS,
            customdata=np.stack([lost.d, lost.run_id], 1),
            hovertemplate="width %{customdata[0]} diverged<br>rate 2^%{x}<br>run %{customdata[1]}"
            "<extra></extra>",
        )  # fmt: skip
    if chosen_log2_lr is not None:
        figure.add_vline(
            x=chosen_log2_lr, line={"color": SOFT, "width": 1, "dash": "dash"}, layer="below"
        )
    low, high = int(np.floor(points.log2_lr.min())), int(np.ceil(points.log2_lr.max()))
    ticks = list(range(low, high + 1, max(1, (high - low) // 12)))
    figure.update_xaxes(tickvals=ticks, ticktext=[f"2{superscript(t)}" for t in ticks])
    return figure


def scaling_figure(
    points: pd.DataFrame,
    *,
    frontier: pd.DataFrame | None = None,
    law: pd.DataFrame | None = None,
    pure: pd.DataFrame | None = None,
    slopes: Mapping[str, float] | None = None,
    unit: str = TOKEN_UNIT,
) -> go.Figure:
    """Loss against training MACs: every run, the frontier and the law (the paper's Figure 9).

    Args:
        points: of `run_points`. Faint lines: mid-schedule; filled: decayed; cross: diverged.
        frontier: columns macs_total, val_loss of the points that the law was fitted to.
        law: of `law_points`.
        pure: the same of the pure power law, drawn dashed where the law is another.
        slopes: name -> exponent of published laws, drawn under the frontier from its left end. Only
            their slopes mean anything: their losses are of other tokens.
        unit: of the loss (scaling.results.loss_unit).
    """
    figure = base_figure("training compute (MACs)", f"validation loss ({unit})", height=560)
    log_compute(figure)
    sizes = _by_size(points)
    for (size, group), colour, i in zip(sizes, shades(len(sizes)), range(len(sizes)), strict=True):
        _add_size(figure, escape(size), group, colour, i % len(SYMBOLS))
    seen = points[np.isfinite(points.val_loss)]
    solid = seen[seen.kind == "decayed"] if (seen.kind == "decayed").any() else seen
    low, high = float(solid.val_loss.min()) * 0.975, float(solid.val_loss.max()) * 1.12
    inside = seen[seen.val_loss <= high].macs_total.astype(float)
    figure.update_xaxes(
        range=[math.log10(inside.min()) - 0.12, math.log10(seen.macs_total.max()) + 0.12]
    )
    lost = points[points.kind == "diverged"]
    if len(lost):
        figure.add_scatter(
            x=lost.macs_total, y=[high / 1.01] * len(lost), mode="markers", name="diverged",
            marker=CROSS,
            customdata=np.stack([[escape(s) for s in lost["size"]], lost.run_id], 1),
            hovertemplate="%{customdata[0]} diverged<br>%{x:.3s} MACs<br>run %{customdata[1]}"
            "<extra></extra>",
        )  # fmt: skip
    if law is not None:
        low = min(low, _add_slopes(figure, law, slopes or {}))
        add_law(figure, law)
    if pure is not None:
        figure.add_scatter(
            x=pure.macs_total, y=pure.loss, mode="lines", name="pure law",
            line={"color": LAW, "width": 1.5, "dash": "dash"},
            hovertemplate="pure law<br>%{x:.3s} MACs<br>loss %{y:.4f}<extra></extra>",
        )  # fmt: skip
    if frontier is not None:
        figure.add_scatter(
            x=frontier.macs_total, y=frontier.val_loss, mode="markers", name="frontier",
            marker={"color": "#00000000", "size": 14, "line": {"color": LAW, "width": 2}},
            hoverinfo="skip",
        )  # fmt: skip
    log_loss(figure, low, high)
    return figure


def _add_size(figure: go.Figure, name: str, group: pd.DataFrame, colour: str, shape: int) -> None:
    """Runs of one size: lines before the decay, dotted through it, a marker at each end."""
    label = name
    if group.params.nunique() == 1:
        label += f" ({count_text(group.params.iloc[0])} parameters)"
    mid, done = group[group.kind != "decayed"], group[group.kind == "decayed"]
    x, y = _broken_lines(mid)
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": colour, "width": 1.2}, opacity=0.55,
        legendgroup=name, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    x, y = _cooldowns(mid, done)
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": colour, "width": 1, "dash": "dot"}, opacity=0.7,
        legendgroup=name, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=done.macs_total, y=done.val_loss, mode="markers", name=name, legendgroup=name,
        marker={"color": colour, "size": SYMBOL_SIZES[shape], "symbol": SYMBOLS[shape]},
        customdata=np.stack([done.run_id, done.tokens], 1) if len(done) else None,
        hovertemplate=f"{label}<br>%{{x:.3s}} MACs, %{{customdata[1]:.3s}} tokens<br>"
        "loss %{y:.4f}<br>run %{customdata[0]}<extra></extra>",
    )  # fmt: skip


def _by_size(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(name, points) of each size, the smallest first; of half decades of parameters where there
    are more sizes than a legend can hold (a cloud of runs)."""
    if points["size"].nunique() > LEGEND_SIZES and points.params.notna().all():
        half = np.floor(2 * np.log10(points.params.astype(float)))
        names = {
            h: f"{count_text(10 ** (h / 2))} to {count_text(10 ** ((h + 1) / 2))}" for h in half
        }
        return [(names[h], group) for h, group in points.groupby(half)]
    by = points.groupby(["params", "size"], sort=True, dropna=False)
    return [(str(size), group) for (_, size), group in by]


def _broken_lines(points: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """All runs of one size as one line with gaps between the runs."""
    ends = np.flatnonzero(np.diff(points.run_id.factorize()[0])) + 1
    x = np.insert(points.macs_total.to_numpy(float), ends, np.nan)
    return x, np.insert(points.val_loss.to_numpy(float), ends, np.nan)


def _cooldowns(mid: pd.DataFrame, done: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """From each decayed point back to the last mid-schedule point of its run: (x, y) with gaps."""
    before = {run: (g.macs_total.to_numpy(float), g.val_loss.to_numpy(float))
              for run, g in mid.groupby("run_id")}  # fmt: skip
    x: list[float] = []
    y: list[float] = []
    for run, macs, loss in zip(done.run_id, done.macs_total, done.val_loss, strict=True):
        run_macs, run_loss = before.get(run, (np.empty(0), np.empty(0)))
        i = int(np.searchsorted(run_macs, macs)) - 1
        if i >= 0:
            x += [run_macs[i], macs, np.nan]
            y += [run_loss[i], loss, np.nan]
    return np.array(x), np.array(y)


def add_law(figure: go.Figure, law: pd.DataFrame, name: str = "law") -> None:
    """A law's curve, and its interval where there is one (`law_points`)."""
    if "low" in law:
        figure.add_scatter(
            x=np.concatenate([law.macs_total, law.macs_total[::-1]]),
            y=np.concatenate([law.low, law.high[::-1]]),
            mode="lines", line={"width": 0, "color": LAW}, fill="toself", fillcolor=LAW + "2b",
            name="95% interval", hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=law.macs_total, y=law.loss, mode="lines", name=name, line={"color": LAW, "width": 2.5},
        hovertemplate="law<br>%{x:.3s} MACs<br>loss %{y:.4f}<extra></extra>",
    )  # fmt: skip


def _add_slopes(figure: go.Figure, law: pd.DataFrame, slopes: Mapping[str, float]) -> float:
    """Published slopes from one point under the law's left end; returns the lowest loss drawn."""
    macs = law.macs_total.to_numpy()
    start = float(law.loss.iloc[0]) * 0.97
    lowest = math.inf
    for i, (name, exponent) in enumerate(slopes.items()):
        loss = start * (macs / macs[0]) ** exponent
        lowest = min(lowest, float(loss.min()) * 0.99)
        text = f"{exponent:.4g}".replace("-", "−")
        figure.add_scatter(
            x=macs, y=loss, mode="lines", name=f"slope of {escape(name)}, {text}",
            line={"color": SOFT, "width": 1.5, "dash": DASHES[i % len(DASHES)]},
            hovertemplate=f"slope of {escape(name)}: {text}<br>height means nothing<extra></extra>",
        )  # fmt: skip
    return lowest


def residual_figure(points: pd.DataFrame) -> go.Figure:
    """Measured minus fitted loss in percent against MACs (points of `residual_points`)."""
    figure = _misses(points.residual_percent, "measured − fitted")
    figure.add_scatter(
        x=points.macs_total, y=points.residual_percent, mode="markers",
        marker={"color": shades(1)[0], "size": 9}, showlegend=False,
        customdata=[escape(size) for size in points["size"]],
        hovertemplate="%{customdata}<br>%{x:.3s} MACs<br>%{y:+.3f}%<extra></extra>",
    )  # fmt: skip
    return figure


def holdout_figure(points: pd.DataFrame) -> go.Figure:
    """How far off each budget was predicted from the smaller ones (points of `holdout_points`)."""
    figure = _misses(points.error_percent, "predicted − measured")
    for (form, group), colour, symbol in zip(
        points.groupby("form"), shades(3)[::2], SYMBOLS, strict=False
    ):
        figure.add_scatter(
            x=group.macs_total, y=group.error_percent, mode="lines+markers", name=f"{form} law",
            line={"color": colour, "width": 1.5}, marker={"size": 9, "symbol": symbol},
            customdata=group[["fitted_points", "predicted", "actual"]],
            hovertemplate=f"{form} law<br>%{{x:.3s}} MACs from %{{customdata[0]}} smaller points"
            "<br>predicted %{customdata[1]:.4f}, measured %{customdata[2]:.4f}<br>%{y:+.3f}%"
            "<extra></extra>",
        )  # fmt: skip
    return figure


def _misses(percent: pd.Series, title: str) -> go.Figure:
    """An empty chart of signed misses in percent around a zero line."""
    figure = base_figure("training compute (MACs)", f"{title} (%)", height=320)
    log_compute(figure)
    figure.add_hline(y=0, line={"color": LAW, "width": 2})
    bound = max(0.1, 1.25 * float(percent.abs().max()))
    figure.update_yaxes(range=[-bound, bound], ticksuffix="%")
    return figure
