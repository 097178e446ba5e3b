"""Commands that question a law and plan the next runs: audit, choices, next, power. Imports are
lazy."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from scaling.commands.fitting import FloorOption, SeedOption, SourceArg, WeightsOption, read
from scaling.commands.table_options import TableOptions, reads_tables
from scaling.errors import UserError


@reads_tables
def audit(
    source: SourceArg,
    at: Annotated[float | None, typer.Option(help="MACs whose loss the law is to predict.")] = None,
    e: FloorOption = None,
    weights: WeightsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Exit with 1 while a weighty question is open.")
    ] = False,
    seed: SeedOption = 0,
    *,
    table: TableOptions,
) -> None:
    """What a referee would ask of this law: each question with evidence, weight and remedy.

    Example: `scaling audit studies/quickstart --at 1e14`

    Example: `scaling audit table.csv --json --strict`
    """
    from scaling.analysis.questions.audit import audit as ask
    from scaling.analysis.tables.ladder import Ladder

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        rows = read(source, keep=() if weights is None else (weights,), **table)
    ladder = Ladder.of(rows, e=e, weights=weights)
    found = ask(ladder, notes=rows.attrs.get("notes", ()), at=at, seed=seed)
    print(json.dumps(found.to_json(), indent=1) if as_json else found)
    if strict and found.open:
        raise typer.Exit(1)


@reads_tables
def choices(
    source: SourceArg, table: TableOptions, e: FloorOption = None, weights: WeightsOption = None
) -> None:
    """The exponent under every reasonable analyst's choice, and without each run in turn.

    Example: `scaling choices studies/quickstart`
    """
    from scaling.analysis.questions.choices import (
        APART,
        alike_text,
        influence,
        specifications,
        spread,
    )
    from scaling.analysis.tables.ladder import Ladder

    rows = read(source, keep=() if weights is None else (weights,), **table)
    ladder = Ladder.of(rows, e=e, weights=weights)
    tried = specifications(ladder)
    if same := alike_text(tried):
        print(f"{tried['alike'].sum()} combinations of choices, of which {same}")
    print(f"{len(tried)} specifications; lowest, median and highest exponent by form:")
    print(spread(tried).to_string(index=False))
    if (rows["budget_macs"] > 0).any():
        print(
            f"\nwithout each run (of more than {APART}, those that move the mean of their seeds "
            "most) or budget in turn, the most influential first:"
        )
        form = "saturating" if e else "pure"
        print(influence(ladder, form=form).to_string(index=False))


@reads_tables
def next_runs(
    source: SourceArg,
    budget: Annotated[float, typer.Option(help="MACs for all new runs together.")],
    target: Annotated[
        float | None,
        typer.Option(help="Narrow the loss at this compute; default: narrow the exponent."),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="At most so many; default: 8 to 64, to spend it.")
    ] = None,
    e: FloorOption = None,
    seed: SeedOption = 0,
    *,
    table: TableOptions,
) -> None:
    """Which sizes, budgets and seeds to run next, and the interval to expect after them.

    Example: `scaling next studies/quickstart --budget 1e13`
    """
    from scaling.analysis.questions.next import next_runs as plan
    from scaling.analysis.tables.ladder import Ladder

    ladder = Ladder.of(read(source, **table), e=e)
    print(plan(ladder, budget, target=target, runs=runs, seed=seed))


@reads_tables
def power(
    like: Annotated[
        str | None, typer.Argument(help="Rows whose law and noise to take; else a small study's.")
    ] = None,
    sizes: Annotated[int, typer.Option(min=2, help="Sizes of the ladder.")] = 6,
    budgets: Annotated[int, typer.Option(min=3, help="Budgets, evenly spaced in logs.")] = 5,
    decades: Annotated[float, typer.Option(min=0.1, help="From first to last budget.")] = 1.7,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each size and budget.")] = 1,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of log loss between runs.")
    ] = None,
    first_macs: Annotated[
        float | None, typer.Option(help="The first budget; default: 3e11, or that of the rows.")
    ] = None,
    width: Annotated[
        float | None, typer.Option(help="Add sizes and budgets until the interval is so narrow.")
    ] = None,
    studies: Annotated[int, typer.Option(min=10, help="Simulated studies of a design.")] = 50,
    e: FloorOption = None,
    weights: WeightsOption = None,
    *,
    table: TableOptions,
) -> None:
    """How wide the exponent's 95% interval would be: simulated studies of a design.

    Example: `scaling power --sizes 6 --budgets 5 --decades 2 --noise 0.002 --width 0.004`
    """
    from scaling.analysis.questions.simulate import TRUTH, designs, truth_of
    from scaling.analysis.tables.ladder import Ladder

    truth, sigma, first = TRUTH, 0.002, 3e11
    of_rows = {"e": e, "weights": weights} | table
    if like is None and (given := [n for n, value in of_rows.items() if value is not None]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"{flags}: of a table of runs, and none is given: name one, or leave it out"
        )
    if like is not None:
        rows = read(like, keep=() if weights is None else (weights,), **table)
        truth, sigma = truth_of(Ladder.of(rows, e=e, weights=weights))
        first = float(rows["macs_total"][rows["role"] == "ladder"].min())
        print(f"like {like}: {truth}, noise {sigma:.2%} of the loss")
    simulated = designs(
        truth, width=width, studies=studies, sizes=sizes, budgets=budgets, decades=decades,
        seeds=seeds, first_macs=first_macs or first, noise=sigma if noise is None else noise,
    )  # fmt: skip
    print(simulated.drop(columns="reason").to_string(index=False))
    for refusal in sorted(set(simulated["reason"]) - {""}):
        print(f"refused: {refusal}")
    if width is not None and not (simulated["width"] <= width).any():
        print(f"none of these reaches a width of {width:g}: widen --decades, or lower the noise")
