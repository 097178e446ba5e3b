"""Commands that read rows: fit, compare, choices, next, report. Imports are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SourceArg = Annotated[
    Path,
    typer.Argument(help="A study's folder, its rows.csv, or any table of runs (CSV, TSV, JSON)."),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the bootstrap.")]


def read(source: Path, **columns: Any) -> pd.DataFrame:
    """Rows of a study, or of anyone's table; prints how the latter was read."""
    from scaling.results import COLUMNS, load

    if source.is_dir():
        return load(source)
    if not source.exists():
        raise UserError(f"{source}: not a study directory and no such file")
    header = source.open(errors="replace").readline().strip().split(",")
    if set(COLUMNS) <= set(header) and not any(columns.values()):
        return load(source)
    from analysis.tables import read as read_table

    rows, notes = read_table(source, **columns)
    for note in notes:
        print(f"  read         {note}")
    return rows


def fit(
    source: SourceArg,
    form: Annotated[str, typer.Option(help="select | power | saturating | parametric")] = "select",
    method: Annotated[str, typer.Option(help="Frontier: budget | envelope | hull")] = "budget",
    loss: Annotated[str | None, typer.Option(help="Column of the loss, in nats.")] = None,
    n: Annotated[str | None, typer.Option("--n", help="Column of the parameters.")] = None,
    d: Annotated[str | None, typer.Option("--d", help="Column of the training tokens.")] = None,
    c: Annotated[str | None, typer.Option("--c", help="Column of the compute.")] = None,
    compute_unit: Annotated[str | None, typer.Option(help="MACs | FLOPs | PF-days")] = None,
    tokens_in: Annotated[str | None, typer.Option(help="Tokens are in K | M | B | T.")] = None,
    at: Annotated[float | None, typer.Option(help="Predict the loss at this compute.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Fit a law to finished runs: L = a C^b, L = E + a C^b, or L(N, D) with --form parametric.

    Example: `scaling fit studies/quickstart`

    Example: `scaling fit table.csv --n "Model Size" --c "Training FLOP" --compute-unit FLOPs`
    """
    rows = read(source, loss=loss, n=n, d=d, c=c, compute_unit=compute_unit, tokens_in=tokens_in)
    if form == "parametric":
        from analysis.isoflop import approaches, fit_rows

        law = fit_rows(rows, seed=seed)
        print(law)
        if at is not None:
            print(f"  best run     {law.optimum(at)}")
        if rows["budget_macs"].notna().any():
            print(approaches(rows, seed=seed).to_string(index=False))
        return
    from analysis.frontier import fit_frontier

    if method == "budget" and not (rows["budget_macs"] > 0).any():
        method = "envelope"
    law_of_study = fit_frontier(rows, seed=seed, form=form, method=method)
    print(law_of_study.summary())
    if at is not None:
        print(f"  predicts     {law_of_study.law.predict(at)}")


def compare(
    source: SourceArg,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="A published law by name, or another study; repeatable."),
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Compare exponents with published laws or other studies: interval, test, what it may mean.

    Example: `scaling compare studies/quickstart --to gpt3 --to toto --to henighan-video`
    """
    from analysis.compare import compute_multiplier, exponents
    from analysis.frontier import fit_frontier
    from analysis.references import reference

    law = fit_frontier(read(source), seed=seed).pure
    print(f"{source}: {law}")
    for other in to or ["gpt3", "toto"]:
        if not Path(other).exists():
            published = reference(other)
            print(f"\n{exponents(law, published)}\n  source: {published.source}")
            if published.note:
                print(f"  note: {published.note}")
            continue
        theirs = fit_frontier(read(Path(other)), seed=seed).pure
        print(f"\n{other}: {theirs}\n{exponents(law, theirs)}")
        loss = float(max(law.loss.min(), theirs.loss.min()))
        times, low, high = compute_multiplier(law, theirs, loss)
        print(
            f"  at {loss:.4f} nats/token {other} needs {times:.3g}x the compute of {source} "
            f"[{low:.3g}, {high:.3g}], if both were trained on the same tokens"
        )


def choices(source: SourceArg) -> None:
    """The exponent under every reasonable analyst's choice, and without each run in turn.

    Example: `scaling choices studies/quickstart`
    """
    from analysis.choices import influence, specifications, spread

    rows = read(source)
    table = specifications(rows)
    print(f"{len(table)} specifications; exponents by form:")
    print(spread(table).to_string(index=False))
    print("\nwithout each run (or size) in turn, the most influential first:")
    print(influence(rows).to_string(index=False))


def next_runs(
    source: SourceArg,
    budget: Annotated[float, typer.Option(help="MACs for all new runs together.")],
    target: Annotated[
        float | None,
        typer.Option(help="Narrow the loss at this compute; default: narrow the exponent."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="At most so many.")] = 8,
) -> None:
    """Which runs to do next: those that narrow the law most per MAC.

    Example: `scaling next studies/quickstart --budget 2e12`
    """
    from analysis.next import best_run
    from analysis.next import next_runs as design

    rows = read(source)
    print(design(rows, budget, target=target, runs=runs).to_string(index=False))
    print(f"best single run of the whole budget: {best_run(rows, target or budget)}")


def report(
    folder: Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")],
) -> None:
    """Write report.html of a study again from its rows.

    Example: `scaling report studies/quickstart`
    """
    from scaling import study as pipeline
    from scaling.config import load_study

    config, table = load_study(folder / "study.yaml"), read(folder)
    law = pipeline.fit_law(config, folder, table, lambda _: None)
    data_dir = folder / "data" / str(table["data_key"].iloc[0])
    print(f"report  {pipeline.report(config, folder, data_dir, table, *law)}")
