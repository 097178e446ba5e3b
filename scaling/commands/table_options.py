"""The options by which every command that reads runs says what a table means.

    @reads_tables
    def choices(source: SourceArg, table: TableOptions) -> None: ...

gives the command --n, --d, ... --by; `table` holds what was given, for `reading.read`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

TableOptions = dict[str, Any]

PANEL = "How to read the table"


def _option(text: str, *names: str) -> Any:
    return Annotated[str | None, typer.Option(*names, help=text, rich_help_panel=PANEL)]


# The keyword arguments of scaling.analysis.tables.read.
OPTIONS: dict[str, Any] = {
    "loss": _option("Column of the loss, in nats.", "--loss"),
    "n": _option("Column of the parameters.", "--n"),
    "d": _option("Column of the training tokens.", "--d"),
    "c": _option("Column of the compute.", "--c"),
    "run": _option("Column of the run's name.", "--run"),
    "compute_unit": _option("MACs | FLOPs | PF-days, or with a prefix: GFLOPs."),
    "tokens_in": _option("Tokens are in K | M | B | T ('': single ones)."),
    "params_in": _option("Parameters are in K | M | B ('': single ones)."),
    "budget_column": _option("Column of the nominal budgets."),
    "finished_if": _option("Words of a finished run's state, or a condition: 'exit == 0'."),
    "where": _option("Only rows for which this holds: 'seed == 1 and optimizer == \"adamw\"'."),
    "history": Annotated[
        bool | None,
        typer.Option(
            "--history/--no-history", rich_help_panel=PANEL,
            help="Rows are evaluations along runs, and the last of each counts; or each row is a "
            "finished run. Default: found out, or asked.",
        ),
    ],
    "by": _option("Column of groups: each value's rows by themselves, compared."),
    "metric": _option(
        "Another measure than the loss, e.g. acc: a law of 1 - it. Of a study: probe_top1 | "
        "probe_top5 | davis_jf."
    ),
}  # fmt: skip


def reads_tables(command: Callable[..., None]) -> Callable[..., None]:
    """The command with OPTIONS in place of its parameter `table`.

    With --by it runs for each group in turn, unless it has a parameter `groups` of its own: then it
    gets the column's name there.
    """
    several = "groups" in inspect.signature(command).parameters

    def grouped(*, table: TableOptions, **given: Any) -> None:
        source = given.get("source", given.get("like"))
        if several:
            command(**given, table=table, groups=table["by"])
        elif table["by"] is None or source is None:
            command(**given, table=table)
        else:
            from scaling.commands.fitting import read

            rows = read(source, **table)
            for value in sorted(rows["by"].unique()):
                print(f"\n{table['by']} = {value}")
                command(**given, table=table | {"group": value})

    return _taking(OPTIONS, command, grouped)


def reads_points(command: Callable[..., None]) -> Callable[..., None]:
    """The command with those of OPTIONS that a table without losses needs (of
    scaling.analysis.tables.points) in place of its parameter `table`."""
    names = ("n", "d", "c", "compute_unit", "tokens_in", "params_in")
    return _taking({name: OPTIONS[name] for name in names}, command, command)


def _taking(
    options: dict[str, Any], command: Callable[..., None], call: Callable[..., None]
) -> Callable[..., None]:
    """`call` with the signature of `command`, whose parameters `table` and `groups` are made of
    these options."""

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        table = {name: given.pop(name) for name in options}
        call(**given, table=table)

    own = inspect.signature(command, eval_str=True).parameters
    mine = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in own.items()
        if name not in ("table", "groups")
    ]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    with_options.__signature__ = inspect.Signature([*mine, *extra])  # type: ignore[attr-defined]
    return with_options


def bewares_of(notes: Sequence[str]) -> list[str]:
    """What notes on the reading of a table warn of."""
    return [n.removeprefix("beware: ") for n in notes if n.startswith("beware: ")]


def say_notes(notes: Sequence[str]) -> None:
    """Print how a table was read, a line a note."""
    for note in notes:
        beware = note.startswith("beware: ")
        print(f"  {'beware' if beware else 'read':13s}{note.removeprefix('beware: ')}")
