"""`scaling transfer`: does the best learning rate move with width or depth? Imports are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.commands.fitting import FigureOption, SourceArg, draw, drawn_files
from scaling.commands.table_options import TableOptions, reads_tables
from scaling.errors import UserError

OF_SWEEPS = ("loss", "where", "finished_if", "by", "run", "history")  # of the table's options


@reads_tables
def transfer(
    source: SourceArg,
    lr: Annotated[str | None, typer.Option("--lr", help="Column of the learning rate.")] = None,
    width: Annotated[str | None, typer.Option(help="Column of the width, or of layers.")] = None,
    figure: FigureOption = None,
    *,
    table: TableOptions,
    groups: str | None = None,
) -> None:
    """Does the best learning rate move with width or depth? Of anyone's sweep: losses by rate and
    size, or the best rate of each size; or of a study's `transfer:` sweeps.

    Example: `scaling transfer sweep.csv --by parametrization`
    """
    from scaling.analysis.questions import transfer as of_sweeps
    from scaling.analysis.tables.sweeps import read_sweep
    from scaling.runs import source_of

    if figure is not None:
        drawn_files("scaling transfer", figure, source)
    frame, ours = source_of(source)
    given = {name: value for name, value in table.items() if value is not None}
    asked = given if not ours else {"lr": lr, "width": width} | given
    if unread := [n for n, v in asked.items() if v is not None and (ours or n not in OF_SWEEPS)]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unread)
        raise UserError(
            f"{flags}: scaling transfer does not read "
            + ("them of a study, whose sweeps it knows" if ours else "them: it reads rates, sizes "
               f"and losses (--{', --'.join(name.replace('_', '-') for name in OF_SWEEPS)})")
            + "; leave them out"
        )  # fmt: skip
    if not isinstance(frame, Path) and ours:
        points = of_sweeps.series_points(frame)
        if points.empty:
            raise UserError(f"{source}: no learning-rate sweep over several widths or depths")
    else:
        points, notes = read_sweep(frame, lr=lr, width=width, **given)
        for note in notes:
            print(f"  read         {note}")
    if "val_loss" not in points:
        print("\n".join(of_sweeps.best_rate_lines(points)))
        if figure is not None:
            raise UserError("--figure draws losses by rate; this table has best rates alone")
        return
    rates = of_sweeps.Rates.of(points)
    print("\n".join(rates.lines()))
    if figure is not None:
        from scaling.analysis.figures.transfer import transfer_figure

        draw("scaling transfer", transfer_figure(rates), points, figure)
