"""The report's section on sweeps that are compared: does the best rate transfer?"""

from __future__ import annotations

import math

import pandas as pd

from scaling.analysis.figures.style import count_text, power_of_two_text
from scaling.analysis.figures.transfer import transfer_figure
from scaling.analysis.questions import transfer
from scaling.analysis.report.page import Column, figure, table


def transfer_section(rates: transfer.Rates, unit: str) -> str:
    """Figure, verdicts and optima; losses in `unit`."""
    text = (
        "A panel for each parametrisation, shape and axis, a line for each model: loss above its "
        "own lowest. Open markers at the foot: each model's optimum, a parabola's vertex, with its "
        "95% interval. Where they stand above one another, a rate found on the smallest model is "
        f"right for the largest; up to {transfer.TRANSFERS:g} octave apart counts as that."
    )
    drawn = figure(
        "rate", "Loss against learning rate.", text,
        transfer_figure(rates, unit=unit), rates.points,
        alt=f"Line charts: final validation loss against learning rate. {text}", wide=True,
    )  # fmt: skip
    found = rates.verdicts.assign(
        series=_titles(rates.verdicts),
        factor=rates.verdicts["last"] / rates.verdicts["first"],
    )
    verdicts = [
        Column("series", "sweep", kind="text"),
        Column("factor", "factor", lambda v: f"{v:g}"),
        Column("octaves", "best rate moves (octaves)", lambda v: f"{v:+.2f}".replace("-", "−")),
        Column("uncertainty", "±", lambda v: "–" if math.isnan(v) else f"{v:.2f}"),
        Column("cost", f"cost of carrying the rate ({unit})", _cost),
        Column("verdict", "verdict", kind="text"),
    ]
    best = rates.optima
    best = best.assign(
        series=_titles(best),
        interval=[
            "–" if math.isnan(low) else f"{low:.2f} to {high:.2f}".replace("-", "−")
            for low, high in zip(best.low, best.high, strict=True)
        ],
        edge=["at the edge" if edge else "" for edge in best.edge],
    )
    optima = [
        Column("series", "sweep", kind="text"),
        Column("member", "width or layers", count_text),
        Column("log2_lr", "best rate", power_of_two_text),
        Column("interval", "interval of log2", kind="text"),
        Column("val_loss", f"lowest loss ({unit})", lambda v: f"{v:.4f}"),
        Column("rates", "rates tried"),
        Column("diverged", "diverged"),
        Column("edge", "", kind="text"),
    ]
    return drawn + table(found, verdicts) + table(best, optima)


def _titles(rows: pd.DataFrame) -> list[str]:
    return [transfer.title(*key) for key in rows[transfer.GROUP].itertuples(index=False)]


def _cost(loss: float) -> str:
    if math.isnan(loss):
        return "not tried"
    return "diverges" if math.isinf(loss) else f"{loss:.4f}"
