"""`scaling fit --form curve`, and `scaling predict` of what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scaling.commands.table_options import TableOptions, bewares_of, say_notes
from scaling.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import plotly.graph_objects as go

    from scaling.analysis.questions.saved_law import SavedCurve


READ = ("run", "loss", "where", "by")  # of the options of a table


def fit_table(
    source: str, table: TableOptions, delta: float | None, save: Path | None, figure: Path | None,
    draw: Callable[[str, go.Figure, pd.DataFrame, Path], None],
) -> None:  # fmt: skip
    """Fit, print, save and draw the law of the loss curves of a table, or of each value of --by.

    draw: writes a figure and its points.
    """
    from scaling.analysis.laws.fit import NotIdentified
    from scaling.analysis.questions import saved_law
    from scaling.analysis.questions.curve_study import predictions, study_curves
    from scaling.runs import curves_of
    from scaling.storage import outputs

    options = {name: table[name] for name in READ}
    groups, notes = curves_of(source, **options)
    say_notes(notes)
    said = bewares_of(notes)
    without = 0
    for number, (group, curves) in enumerate(groups.items(), 1):
        if group:
            print(f"\n{group}: {len(curves)} curves")
        try:
            found = study_curves(curves, delta=delta)
        except NotIdentified as refusal:
            if len(groups) == 1:
                raise
            print(f"no law: {refusal}")
            without += 1
            continue
        print(found.summary())
        if figure is not None:
            from scaling.analysis.figures.curves import curve_figure

            draw(
                "scaling fit", curve_figure(points := predictions(found.law, curves)[0]), points,
                figure if len(groups) == 1 else figure.with_stem(f"{figure.stem}-{number}"),
            )  # fmt: skip
        if save is not None:
            path = save if len(groups) == 1 else save.with_stem(f"{save.stem}-{number}")
            outputs.write("scaling fit", path, saved_law.text(found, said))
            print(f"  saved        {path}; `scaling predict {path} SCHEDULES.csv`")
    if without == len(groups):
        raise NotIdentified("no part has a law; the reason of each stands above")


def predict_table(
    saved: SavedCurve, points: Path, table: TableOptions, out: Path | None, command: str
) -> None:
    """Print, and write, what a law of loss curves says of each schedule of a table."""
    from scaling.analysis.questions.curve_study import predictions
    from scaling.analysis.tables.curves import read_curves
    from scaling.storage import outputs

    unread = [f"--{name.replace('_', '-')}" for name, one in table.items() if one is not None]
    if unread:
        raise UserError(
            f"{' and '.join(unread)}: a law of the loss curve reads the columns step and lr alone; "
            "leave it out"
        )
    groups, notes = read_curves(points, measured=False)
    say_notes(notes)
    told, texts = predictions(saved.law, groups[""])
    for text in texts:
        print(f"  run          {text}")
    if out is not None:
        outputs.write(command, out, told.to_csv(index=False))
        print(f"  written      {out}")
