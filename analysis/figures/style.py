"""The look of every figure: colours, numbers as text, axes.

Colours are the light theme's; `DARK` maps each one to its partner on a dark page. Both ramps keep
one order of lightness and the law is orange on blue, so that a figure reads with any kind of colour
vision and in grey.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

INK, SOFT, GRID, PAPER = "#1f1f1d", "#6b6963", "#e7e3da", "#fffefb"
LAW = "#c2410c"
_RAMP_LIGHT = ("#4fae8b", "#2f92b8", "#4a68c0", "#7a3fa0", "#57104a")
_RAMP_DARK = ("#2f8064", "#3b93bb", "#7f9bee", "#cf9df2", "#ffd6ee")
_STEPS = 25  # colours of a ramp; more sizes than this share neighbours
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon2", "star-square")
SYMBOL_SIZES = (8, 8, 9, 11, 10, 9, 11)  # of one visual weight
CROSS = {"color": LAW, "size": 11, "symbol": "x-thin", "line": {"color": LAW, "width": 2.5}}
DASHES = ("dash", "dot", "dashdot", "longdash")

# Of a page: it asks for nothing elsewhere.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def _ramp(anchors: Sequence[str]) -> list[str]:
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in anchors], float)
    at = np.linspace(0, len(anchors) - 1, _STEPS)
    mixed = np.stack([np.interp(at, range(len(anchors)), channel) for channel in rgb.T], 1)
    return ["#" + "".join(f"{round(v):02x}" for v in c) for c in mixed]


DARK = {
    INK: "#ebe7df",
    SOFT: "#a5a199",
    GRID: "#2b2e33",
    PAPER: "#15171a",
    LAW: "#ff9a62",
} | dict(zip(_ramp(_RAMP_LIGHT), _ramp(_RAMP_DARK), strict=True))


def shades(count: int) -> list[str]:
    """`count` colours in order, for things that have one (widths, sizes)."""
    ramp = _ramp(_RAMP_LIGHT)
    at = np.linspace(0, _STEPS - 1, count) if count > 1 else np.array([(_STEPS - 1) / 2])
    return [ramp[round(i)] for i in at]


# --- numbers as text


def superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def number_text(value: float, digits: int = 3) -> str:
    """A number for reading: '2.61', '−0.0453', '3.1 × 10¹²'; a missing one is '–'."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}\u00a0×\u00a010{superscript(int(exponent))}".replace("-", "−")
    text = f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.0f}"
    return text.replace("-", "−")


def budget_text(value: float) -> str:
    """A nominal quantity without zeros that say nothing: '5 × 10¹⁰', '1.6 × 10¹²'."""
    return readable(f"{value:.3g}")


def count_text(value: float) -> str:
    """A count for reading: '928', '22.7 K', '1.15 B' (short-scale, as sizes are named)."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}\u00a0{letter}"
    return f"{value:.0f}"


def exponent_text(value: float) -> str:
    """'−0.0453': exponents are compared with each other, so they share their decimals."""
    return f"{value:.4f}".replace("-", "−")


def power_of_two_text(log2: float) -> str:
    """'2⁻⁶', or the number itself between the powers."""
    return f"2{superscript(int(log2))}" if float(log2).is_integer() else f"{2.0**log2:.3g}"


def readable(text: str) -> str:
    """A sentence with its floats as numbers for reading: '5e+10 MACs' -> '5 × 10¹⁰ MACs'."""

    def rewritten(found: re.Match[str]) -> str:
        digits = len(re.sub(r"\D", "", found[1]))
        return number_text(float(found[0]), digits)

    # With a sign, as Python prints it, and alone: a run's name may hold 'e12' too.
    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)e[+-]\d+(?!\w)", rewritten, text)


def escape(text: object) -> str:
    """A user's name as plotly text: plotly reads a subset of HTML in every label."""
    return html.escape(str(text), quote=True)


# --- axes


def base_figure(x_title: str, y_title: str, *, height: int = 460) -> go.Figure:
    axis = {
        "showline": True,
        "linecolor": SOFT,
        "gridcolor": GRID,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": SOFT,
        "title_standoff": 12,
        "automargin": True,
    }
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 64, "r": 20, "t": 12, "b": 56},
            "paper_bgcolor": PAPER,
            "plot_bgcolor": PAPER,
            "font": {"family": FONT, "size": 13, "color": INK},
            "xaxis": {**axis, "title_text": x_title},
            "yaxis": {**axis, "title_text": y_title},
            "hovermode": "closest",
            "hoverlabel": {"bgcolor": PAPER, "bordercolor": SOFT, "font": {"color": INK}},
            "legend": {
                "orientation": "h",
                "y": 1.02,
                "yanchor": "bottom",
                "x": 0,
                "title_text": "",
            },
        }
    )


def log_compute(figure: go.Figure) -> None:
    """A log axis of compute."""
    figure.update_xaxes(type="log", exponentformat="power", dtick=1, minor={"ticks": "outside"})


def log_count(figure: go.Figure, low: float, high: float) -> None:
    """A log axis of counts (parameters, tokens) with ticks at 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low / 2 < m * 10.0**p < high * 2]
    ticks = ticks if len(ticks) <= 12 else [10.0**p for p in powers]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[count_text(t) for t in ticks])


def log_loss(figure: go.Figure, low: float, high: float) -> None:
    """A log axis of losses: they span less than a decade, so ticks are plain round numbers."""
    step = tick_step(low, high)
    figure.update_yaxes(type="log", range=[math.log10(low), math.log10(high)], dtick=f"L{step:g}")


def tick_step(low: float, high: float) -> float:
    """The round step (1, 2 or 5 times a power of ten) that gives five to ten ticks."""
    raw = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
