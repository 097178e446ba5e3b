"""Laws beside each other in one figure: points and curves above, a forest plot of exponents below.

Where the levels of losses may not be compared (`analysis.compare.levels_differ`), each law is
drawn over its own loss at its smallest compute. A published law is drawn where it was fitted, for
its slope alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures.runs import drawn_points, law_points
from scaling.analysis.figures.style import (
    DASHES,
    GRID,
    INK,
    SOFT,
    SYMBOL_SIZES,
    SYMBOLS,
    base_figure,
    budget_text,
    escape,
    exponent_text,
    log_compute,
    log_loss,
    number_text,
    shades,
)  # fmt: skip
from scaling.analysis.schema import TOKEN_UNIT
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.analysis.laws.power_law import PowerLaw
    from scaling.analysis.laws.references import Reference
    from scaling.analysis.questions.frontier import StudyLaw

MARGIN = 0.7  # decades around the fitted laws in which published ones are shown
LEAST = 0.3  # decades of a published law that show a slope
BELOW = 0.985  # of the lowest law, where published slopes begin if heights are losses
# Pixels: height of the curves, of a row of a forest, of what is above it and of the axis below.
CURVES, ROW, HEAD, AXIS, LEGEND = 400, 27, 28, 74, 19
TEXT, RANGE = 0.44, 0.78  # shares of the width where the numbers beside a forest begin
NAME = 22  # letters of a name beside a row


# --- what is drawn


def comparison_points(
    studies: Mapping[str, StudyLaw], published: Sequence[Reference] = (), *, divided: bool = False
) -> pd.DataFrame:
    """What the figure of several laws of compute shows.

    Args:
        studies: the law of each by its name.
        published: laws to set them beside; one of parameters or of tokens is left out.
        divided: each law's losses by its own at its smallest compute. No two names are alike.
    Returns one table with columns law, published, kind and form ("power", "saturating"):
        kind "point" (the points a law was fitted to): macs_total, loss, height (the loss as drawn);
        kind "curve" (48 a law; of a published one none unless LEAST decades of what it was fitted
        to lie within MARGIN decades of the studies): also low, high, as drawn (NaN if published);
        kind "exponent": b, b_low, b_high (NaN: not published), e (the floor, 0 without),
        macs_from, macs_to (what it was fitted to; NaN: not known), bend_from, bend_to (local
        exponents at both ends where the curve bends, else NaN), drawn (a curve of it is shown).
    Raises UserError without a study.
    """
    if not studies:
        raise UserError("no fitted law: a comparison needs one, for its range of compute")
    parts, curves = [], []
    for name, study in studies.items():
        law = study.law
        about: dict[str, Any] = {"law": name, "published": False, "form": law.form}
        curve = law_points(law, float(law.compute.min()), float(law.compute.max()))
        scale = float(curve["loss"].iloc[0]) if divided else 1.0
        curve = curve.assign(height=curve["loss"] / scale, low=curve["low"] / scale)
        curves.append(curve.assign(high=curve["high"] / scale, kind="curve", **about))
        points = drawn_points(study.points[["size", "macs_total", "val_loss"]])
        points = points.rename(columns={"val_loss": "loss"})[["macs_total", "loss"]]
        parts.append(points.assign(height=points["loss"] / scale, kind="point", **about))
    ends = pd.concat(curves)["macs_total"]
    shown = float(ends.min()) / 10**MARGIN, float(ends.max()) * 10**MARGIN
    for known in published:
        slope = _slope(known, shown, curves, divided)
        if slope is not None:
            parts.append(slope)
    rows = [*_fitted_exponents(studies), *(_exponent(known) for known in published)]
    exponents = pd.DataFrame([row for row in rows if row])
    parts += curves
    drawn = {name: one["form"].iloc[0] for name, one in pd.concat(parts).groupby("law")}
    exponents["drawn"] = [
        drawn.get(name) == form for name, form in exponents[["law", "form"]].itertuples(index=False)
    ]
    kinds = pd.concat([*parts, exponents.assign(kind="exponent")], ignore_index=True)
    first = ["law", "published", "kind", "form"]
    return kinds[[*first, *(c for c in kinds.columns if c not in first)]]


def _slope(
    law: Reference, shown: tuple[float, float], curves: Sequence[pd.DataFrame], divided: bool
) -> pd.DataFrame | None:
    """A published law where it was fitted and is in view, from the height of the studies' own."""
    if law.fitted_macs is None:
        return None
    low, high = max(law.fitted_macs[0], shown[0]), min(law.fitted_macs[1], shown[1])
    if high < low * 10**LEAST:
        return None
    macs = np.geomspace(low, high, 48)
    loss = law.e + law.coefficient("MACs") * macs**law.b
    at = float(np.clip(min(c["macs_total"].iloc[0] for c in curves), low, high))
    start = 1.0
    if not divided:
        nearest = [c["height"].iloc[(c["macs_total"] - at).abs().argmin()] for c in curves]
        start = BELOW * min(nearest)
    height = start * loss / (law.e + law.coefficient("MACs") * at**law.b)
    return pd.DataFrame({
        "macs_total": macs, "loss": loss, "height": height, "law": law.name,
        "published": True, "kind": "curve", "form": law.form,
    })  # fmt: skip


def _fitted_exponents(studies: Mapping[str, StudyLaw]) -> list[dict[str, Any]]:
    """A row for each fitted exponent: the pure one, and that above a floor where identified."""
    rows = []
    for name, study in studies.items():
        turn = study.bends or (np.nan, np.nan)
        laws: list[PowerLaw | None] = [study.pure, study.saturating]
        for law in laws:
            if law is None:
                continue
            (low, high), at = law.ci["b"], law.compute
            rows.append({
                "law": name, "published": False, "form": law.form, "b": law.b, "b_low": low,
                "b_high": high, "e": law.e, "macs_from": float(at.min()),
                "macs_to": float(at.max()), "bend_from": turn[0], "bend_to": turn[1],
            })  # fmt: skip
    return rows


def _exponent(law: Reference) -> dict[str, Any]:
    """The row of a published exponent; empty for a law of something else than compute."""
    if law.x != "compute":
        return {}
    low, high = law.interval or (np.nan, np.nan)
    at = law.fitted_macs or (np.nan, np.nan)
    return {
        "law": law.name, "published": True, "form": law.form, "b": law.b, "b_low": low,
        "b_high": high, "e": law.e, "macs_from": at[0], "macs_to": at[1],
    }  # fmt: skip


# --- how it is drawn


def comparison_figure(
    points: pd.DataFrame, *, divided: bool = False, unit: str = TOKEN_UNIT
) -> go.Figure:
    """Laws on one axis of compute over a forest plot of their exponents, a panel a form.

    Args:
        points: of `comparison_points`, made with the same `divided`.
        unit: of the losses (scaling.results.loss_unit), where they are drawn as they are.
    """
    title = "loss / own law’s loss at its smallest compute" if divided else f"loss ({unit})"
    figure = base_figure("training compute (MACs)", title)
    log_compute(figure)
    looks = _looks(points)
    for name, look in looks.items():
        _add_curve(figure, points[points["law"] == name], name, look)
    # A published slope may leave the panel: it would else flatten the others.
    ends = points.loc[points["published"].eq(False), ["height", "low", "high"]].to_numpy(float)
    log_loss(figure, float(np.nanmin(ends)) * 0.985, float(np.nanmax(ends)) * 1.015)
    blocks = _blocks(points)
    _lay_out(figure, [len(block) for _, block in blocks], int(points["drawn"].eq(True).sum()))
    for i, (heading, block) in enumerate(blocks):
        _add_forest(figure, i + 2, heading, block, looks)
    return figure


def _looks(points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, symbol and dash of each law by its name: fitted ones in colour, published in grey."""
    exponents = points[points["kind"] == "exponent"]
    fitted = list(dict.fromkeys(exponents.loc[~exponents["published"].astype(bool), "law"]))
    known = list(dict.fromkeys(exponents.loc[exponents["published"].astype(bool), "law"]))
    return {
        name: {"color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)], "dash": "solid",
               "size": SYMBOL_SIZES[i % len(SYMBOLS)]}
        for i, (name, colour) in enumerate(zip(fitted, shades(len(fitted)), strict=True))
    } | {
        name: {"color": SOFT, "symbol": "diamond-open", "dash": DASHES[i % len(DASHES)], "size": 9}
        for i, name in enumerate(known)
    }  # fmt: skip


def _add_curve(figure: go.Figure, mine: pd.DataFrame, name: str, look: dict[str, Any]) -> None:
    """One law's curve, with its band and the points that it was fitted to."""
    curve, dots = mine[mine["kind"] == "curve"], mine[mine["kind"] == "point"]
    if curve.empty:
        return
    colour, known = look["color"], bool(curve["published"].iloc[0])
    exponent = mine[(mine["kind"] == "exponent") & mine["drawn"].eq(True)].iloc[0]
    label = f"{escape(name)}: {_exponent_text(exponent)}"
    if not known:
        figure.add_scatter(
            x=[*curve["macs_total"], *curve["macs_total"][::-1]],
            y=[*curve["high"], *curve["low"][::-1]], fill="toself", fillcolor=colour + "2b",
            line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
    height = "<br>its height means nothing" if known else ""
    figure.add_scatter(
        x=curve["macs_total"], y=curve["height"], mode="lines", legendgroup=name,
        name=f"slope of {label}" if known else label, showlegend=known,
        line={"color": colour, "width": 1.5 if known else 2.2, "dash": look["dash"]},
        customdata=curve["loss"],
        hovertemplate=f"{escape(name)}<br>%{{x:.3s}} MACs<br>loss %{{customdata:.4f}} by its law"
        f"{height}<extra></extra>",
    )  # fmt: skip
    if known:
        return
    figure.add_scatter(
        x=dots["macs_total"], y=dots["height"], mode="markers", legendgroup=name, showlegend=False,
        marker={"color": colour, "symbol": look["symbol"], "size": look["size"]},
        customdata=dots["loss"],
        hovertemplate=f"{escape(name)}<br>%{{x:.3s}} MACs<br>loss %{{customdata:.4f}}"
        "<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(  # the legend's entry: the line with its symbol
        x=[None], y=[None], mode="lines+markers", name=label, legendgroup=name,
        line={"color": colour, "width": 2.2},
        marker={"symbol": look["symbol"], "size": look["size"]},
    )  # fmt: skip


def _blocks(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Heading and rows of each forest plot. Exponents above a floor are of another kind than those
    of pure laws; they are shown where such a law was chosen or published."""
    rows = points[points["kind"] == "exponent"]
    pure, floor = (rows[rows["form"] == form] for form in ("power", "saturating"))
    blocks = [("exponent b of L = a C<sup>b</sup>", pure)]
    if (floor["drawn"].eq(True) | floor["published"].eq(True)).any():
        blocks.append(("exponent b of L = E + a C<sup>b</sup>", floor))
    return blocks


def _lay_out(figure: go.Figure, rows: Sequence[int], laws: int) -> None:
    """Panels under each other: the curves, then a forest plot of so many rows each."""
    heights = [CURVES, *(HEAD + ROW * count for count in rows)]
    total = sum(heights) + AXIS * len(rows)
    above = 28 + LEGEND * laws
    figure.update_layout(
        height=total + above + 60, margin={"t": above, "b": 60},
        legend={"orientation": "v", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12},
                "tracegroupgap": 0},
        yaxis={"domain": [1 - CURVES / total, 1]}, xaxis={"title_standoff": 6},
    )  # fmt: skip
    plain = {"showline": True, "linecolor": SOFT, "zeroline": False, "tickcolor": SOFT}
    top = 1.0
    for panel, height in enumerate(heights, start=1):
        bottom = max(0.0, top - height / total)
        if panel > 1:
            figure.update_layout({
                f"xaxis{panel}": {**plain, "domain": [0, TEXT], "anchor": f"y{panel}",
                                  "gridcolor": GRID, "ticks": "outside", "nticks": 7},
                f"yaxis{panel}": {**plain, "domain": [bottom, top - HEAD / total],
                                  "anchor": f"x{panel}", "automargin": True, "showgrid": False},
            })  # fmt: skip
        top = bottom - AXIS / total


def _add_forest(
    figure: go.Figure,
    panel: int,
    heading: str,
    rows: pd.DataFrame,
    looks: dict[str, dict[str, Any]],
) -> None:
    """Exponents with their intervals, one under the other; a published one also as a line."""
    x, y = f"x{panel}", f"y{panel}"

    def write(text: str, column: float, place: float, colour: str, **where: str) -> None:
        figure.add_annotation({
            "xref": "paper", "yref": y, "x": column, "y": place, "xanchor": "left", "text": text,
            "showarrow": False, "font": {"size": 12, "color": colour}, **where,
        })  # fmt: skip

    ends = rows[["b", "b_low", "b_high"]].to_numpy(float)
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    margin = 0.06 * (high - low) or 0.01
    for place, row in enumerate(rows.to_dict("records")):
        look, known = looks[row["law"]], bool(row["published"])
        colour = SOFT if known else INK
        if known:
            figure.add_shape(
                type="line", xref=x, yref=f"{y} domain", x0=row["b"], x1=row["b"], y0=0, y1=1,
                line={"color": SOFT, "width": 1, "dash": look["dash"]}, layer="below",
            )  # fmt: skip
        bar = None
        if math.isfinite(row["b_low"]):
            bar = {
                "symmetric": False, "array": [row["b_high"] - row["b"]], "thickness": 2, "width": 5,
                "arrayminus": [row["b"] - row["b_low"]], "color": look["color"],
            }  # fmt: skip
        figure.add_scatter(
            x=[row["b"]], y=[place], xaxis=x, yaxis=y, mode="markers", showlegend=False,
            marker={"color": look["color"], "symbol": look["symbol"], "size": look["size"] + 1},
            error_x=bar,
            hovertemplate=f"{escape(row['law'])}<br>{_exponent_text(row)}<extra></extra>",
        )  # fmt: skip
        bends = row["form"] == "power" and math.isfinite(row["bend_from"])
        write(_interval_text(row) + " bends" * bends, TEXT + 0.02, place, colour)
        write(_range_text(row), RANGE, place, colour)
    for text, column in (("b [95% interval]", TEXT + 0.02), ("fitted to, MACs", RANGE)):
        write(text, column, 1, SOFT, yref=f"{y} domain", yanchor="bottom")
    names = [escape(_short(name)) for name in rows["law"]]
    figure.update_layout({
        f"xaxis{panel}": {"title": {"text": heading, "standoff": 6},
                          "range": [low - margin, high + margin]},
        f"yaxis{panel}": {"tickvals": list(range(len(names))), "ticktext": names,
                          "range": [len(names) - 0.5, -0.5]},
    })  # fmt: skip


def _short(name: str) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-(NAME // 2) :]}"


def _interval_text(row: Any) -> str:
    """'−0.0453 [−0.0470, −0.0437]'."""
    text = exponent_text(row["b"])
    if math.isfinite(row["b_low"]):
        text += f" [{exponent_text(row['b_low'])}, {exponent_text(row['b_high'])}]"
    return text


def _exponent_text(row: Any) -> str:
    """The exponent with what it is not to be read without: its interval, its floor, a bend."""
    text = _interval_text(row)
    if row["e"]:
        text += f", above a floor of {number_text(row['e'])}"
    if row["form"] == "power" and math.isfinite(row["bend_from"]):
        ends = (exponent_text(row[f"bend_{end}"]) for end in ("from", "to"))
        text += f"; the curve bends, local {' to '.join(ends)}"
    return text


def _range_text(row: Any) -> str:
    """'4.3 × 10¹³ to 1.6 × 10²³': the compute that an exponent was fitted to."""
    if not math.isfinite(row["macs_from"]):
        return "not recorded"
    return " to ".join(budget_text(float(f"{row[f'macs_{end}']:.2g}")) for end in ("from", "to"))
