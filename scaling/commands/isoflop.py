"""`scaling isoflop` and `scaling targets`: the best size of each budget, and how it grows with
compute, for the loss and for what the models learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.commands.fitting import (
    FigureOption,
    SeedOption,
    SourceArg,
    WeightsOption,
    draw,
    drawn_files,
    read,
)
from scaling.commands.table_options import TableOptions, reads_tables
from scaling.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

COMMAND, TARGETS = "scaling isoflop", "scaling targets"


@reads_tables
def isoflop(
    source: SourceArg,
    within: Annotated[
        float | None,
        typer.Option(help="Compute within this factor is one budget, without a --budget-column."),
    ] = None,
    errors: Annotated[
        str | None, typer.Option(help="Column of the standard error of the loss.")
    ] = None,
    weights: WeightsOption = None,
    window: Annotated[
        float, typer.Option(help="A parabola takes sizes within this factor of the best.")
    ] = 8.0,
    at: Annotated[
        float | None, typer.Option(help="MACs at which N* and D* are told; default: the largest.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for size_laws.csv and minima.csv.")
    ] = None,
    seed: SeedOption = 0,
    *,
    table: TableOptions,
) -> None:
    """The best size N* and number of tokens D* of each budget, and the laws N* = k C^p and
    D* = k C^p, by every common method side by side, each with the interval of that method.

    Example: `scaling isoflop studies/quickstart`

    Example: `scaling isoflop runs.csv --budget-column sweep --n num_params --loss val/loss`
    """
    if table["budget_column"] is not None and within is not None:
        raise UserError(
            "--budget-column and --within: a column or a tolerance tells budgets, give one"
        )
    if errors is not None and weights is not None:
        raise UserError("--errors and --weights: an error is a weight, 1 / its square; give one")
    from scaling.storage import outputs

    files = () if out is None else (out / "size_laws.csv", out / "minima.csv")
    outputs.claim(COMMAND, *files, inputs=() if "://" in source else [Path(source)])
    from scaling.analysis.questions import isoflop as sizes
    from scaling.analysis.questions.isoflop_table import with_budgets
    from scaling.analysis.questions.size_law import minima_text, summary
    from scaling.analysis.tables.ladder import Ladder

    kept = tuple(one for one in (errors, weights) if one is not None)
    rows = read(source, keep=kept, **table)
    if within is not None:
        rows = with_budgets(rows, within=within)
    ladder = Ladder.of(rows, weights=weights)
    laws = sizes.approaches(ladder, at=at, window=window, errors=errors, seed=seed)
    tables = {"size_laws.csv": laws}
    if ladder.rows["budget_macs"].notna().any():
        minima = sizes.minima(ladder, window=window, errors=errors, seed=seed)
        print(minima_text(minima))
        tables["minima.csv"] = minima
    print(f"{summary(laws)}\n  {sizes.rule(window)}")
    if out is not None:
        _write(out, tables)


def targets(
    folder: Annotated[
        Path, typer.Argument(help="The study's folder, with what `scaling probe` or `davis` wrote.")
    ],
    figure: FigureOption = None,
    seed: SeedOption = 0,
) -> None:
    """What is best for which target: N* and D* of the loss, of probes and of tracking, whether they
    differ, and each error as a function of the loss alone.

    Example: `scaling targets studies/targets --figure targets.html`
    """
    from scaling.analysis.questions import targets as of
    from scaling.representations.learned import learned

    if figure is not None:
        drawn_files(TARGETS, figure)
    found = learned(folder).targets(seed=seed)
    print(of.summary(found))
    if figure is not None:
        from scaling.analysis.figures.targets import target_figure

        points = of.points(found, seed=seed)
        draw(TARGETS, target_figure(points, found), points, figure)


def _write(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table as CSV under its name, which is told."""
    from scaling.storage import outputs

    for name, table in tables.items():
        outputs.write(COMMAND, folder / name, table.to_csv(index=False))
    print(f"  written      {', '.join(str(folder / name) for name in tables)}")
