"""`scaling predict`: what a saved law says of points that nobody has run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.commands.table_options import TableOptions, reads_points
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.analysis.questions.saved_law import SavedLaw

COMMAND = "scaling predict"


@reads_points
def predict(
    law: Annotated[
        Path, typer.Argument(help="A law of `scaling fit --save`, or law.json of a study.")
    ],
    points: Annotated[
        Path | None,
        typer.Argument(
            help="A table of compute, parameters or tokens, or of step and lr, as the law takes."
        ),
    ] = None,
    at: Annotated[float | None, typer.Option(help="Predict there, as `scaling fit --at`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the predictions to FILE.csv.")] = None,
    *,
    table: TableOptions,
) -> None:
    """Predict the loss, with 95% intervals of the law and of one more run, by a law that was
    saved. A point that the law refuses is refused on its own row, with the reason. Of a law of
    the loss curve: the loss along each schedule of a table with columns step and lr. Of a law of
    rate and batch: the best of both for each N and D, and the loss at its lr and batch.

    Example: `scaling predict law.json --at 1e20`

    Example: `scaling predict law.json points.csv --compute-unit FLOPs --out predicted.csv`

    Example: `scaling predict curve.json schedules.csv`
    """
    from scaling.storage import outputs

    if points is None and at is None:
        raise UserError("nothing to predict: give a table of points, or --at")
    given = [f"--{name.replace('_', '-')}" for name, one in table.items() if one is not None]
    if points is None and (given or out is not None):
        unread = [*given, *(["--out"] if out is not None else [])]
        raise UserError(f"{' and '.join(unread)}: of a table of points, and there is none")
    if points is not None and not points.is_file():
        raise UserError(f"{points}: no such file")
    if out is not None:
        if out.suffix != ".csv":
            raise UserError(f"--out {out}: end it in .csv")
        outputs.claim(COMMAND, out, inputs=[law, *([points] if points is not None else [])])
    from scaling.analysis.questions.saved_law import SavedCurve, load
    from scaling.analysis.questions.saved_rates import SavedRates

    saved = load(law)
    print(saved)
    if isinstance(saved, SavedCurve):
        from scaling.commands.curves import predict_table

        if points is None or at is not None:
            raise UserError(
                f"{law}: a law of the loss curve: give a table of schedules, with columns step and "
                "lr (and run), in place of --at"
            )
        predict_table(saved, points, table, out, COMMAND)
        return
    if isinstance(saved, SavedRates):
        from scaling.commands import rates

        if points is None or at is not None:
            raise UserError(
                f"{law}: a law of rate and batch: give a table of points, with columns N and D "
                "(and lr, batch), in place of --at"
            )
        rates.predict_table(saved, points, table, out, COMMAND)
        return
    if at is not None:
        print(saved.prediction(at))
    if points is not None:
        _predict_table(saved, points, table, out)


def _predict_table(saved: SavedLaw, points: Path, table: TableOptions, out: Path | None) -> None:
    """Print, and write, what the law says of every row."""
    from scaling.analysis.laws.form_law import FormLaw
    from scaling.analysis.tables.points import read_form_points, read_points
    from scaling.storage import outputs

    if isinstance(saved.law, FormLaw):
        rows, notes = read_form_points(points, saved.law.form.columns, **table)
    else:
        rows, notes = read_points(points, saved.of, **table)
    for note in notes:
        print(f"  read         {note}")
    told, texts = saved.predict(rows)
    for number, text in enumerate(texts, start=1):
        print(f"  row {number:<8d} {text}")
    if out is not None:
        outputs.write(COMMAND, out, told.to_csv(index=False))
        print(f"  written      {out}")
