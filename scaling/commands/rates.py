"""`scaling fit --form rates`, and `scaling predict` of what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.commands.table_options import TableOptions, bewares_of
from scaling.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import plotly.graph_objects as go

    from scaling.analysis.questions.saved_rates import SavedRates


def fit_rows(
    parts: dict[str, pd.DataFrame], notes: list[str], save: Path | None, figure: Path | None,
    draw: Callable[[str, go.Figure, pd.DataFrame, Path], None],
) -> None:  # fmt: skip
    """Fit, print, save and draw the law of rate and batch of rows, or of each part of --by.

    draw: writes a figure and its points.
    """
    from scaling.analysis.laws.fit import NotIdentified
    from scaling.analysis.questions import saved_law
    from scaling.analysis.questions.rate_study import study_rates
    from scaling.results import loss_unit
    from scaling.storage import outputs

    without = 0
    for number, (name, rows) in enumerate(parts.items(), 1):
        if name:
            print(f"\n{name}: {len(rows)} rows")
        try:
            found = study_rates(rows)
        except NotIdentified as refusal:
            if len(parts) == 1:
                raise
            print(f"no law: {refusal}")
            without += 1
            continue
        print(found.summary(loss_unit(rows.get("tokenizer", ()))))
        several = len(parts) > 1
        if figure is not None:
            path = figure.with_stem(f"{figure.stem}-{number}") if several else figure
            draw("scaling fit", found.figure(), found.points, path)
        if save is not None:
            path = save.with_stem(f"{save.stem}-{number}") if several else save
            outputs.write("scaling fit", path, saved_law.text(found, bewares_of(notes)))
            print(f"  saved        {path}; `scaling predict {path} POINTS.csv`")
    if without == len(parts):
        raise NotIdentified("no part has a law; the reason of each stands above")


def predict_table(
    saved: SavedRates, points: Path, table: TableOptions, out: Path | None, command: str
) -> None:
    """Print, and write, the best rate and batch of each point, and its loss."""
    from scaling.analysis.tables.files import load
    from scaling.analysis.tables.points import read_form_points
    from scaling.storage import outputs

    columns = ["N", "D"]
    frame, _ = load(points)
    given: dict[str, Any] = dict(table)
    from scaling.analysis.tables.columns import BATCH, LR, Table

    looked = Table(frame)
    columns += [name for name, names in (("lr", LR), ("batch", BATCH)) if looked.first(name, names)]
    if "batch" in columns and not saved.law.shape.batch:
        columns.remove("batch")
        print("  beware       the law has no batch: the points' batches change nothing")
    if "lr" in columns and saved.law.shape.batch and "batch" not in columns:
        raise UserError(
            f"{points}: it gives rates without batches, and the law has the batch: add the column "
            "batch, or leave the rate out to ask for the best of both"
        )
    rows, notes = read_form_points(points, columns, **given)
    for note in notes:
        print(f"  read         {note}")
    told, texts = saved.predict(rows)
    for number, text in enumerate(texts, start=1):
        print(f"  row {number:<8d} {text}")
    if out is not None:
        outputs.write(command, out, told.to_csv(index=False))
        print(f"  written      {out}")
