"""Loss curves of a table that was logged along runs: the rate and the loss at each step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.analysis.laws.curve import Curve
from scaling.analysis.laws.schedule import thinned
from scaling.analysis.tables import columns as names
from scaling.analysis.tables.columns import Table, listed
from scaling.analysis.tables.files import load
from scaling.analysis.tables.histories import join_sparse
from scaling.analysis.tables.losses import read_loss
from scaling.analysis.tables.quantities import column_line
from scaling.analysis.tables.states import rows_where
from scaling.analysis.tables.units import Cells, numbers
from scaling.errors import UserError

SIZES = 1.02  # within this factor they are one


@dataclass(frozen=True)
class Rows:
    """A table's rows with a step and a rate, by run and step, as arrays of one length."""

    run: np.ndarray  # names
    step: np.ndarray
    rate: np.ndarray
    loss: np.ndarray  # NaN where there is none


def read_curves(
    source: str | Path | pd.DataFrame, *, run: str | None = None, loss: str | None = None,
    where: str | None = None, by: str | None = None, measured: bool = True,
) -> tuple[dict[str, list[Curve]], list[str]]:  # fmt: skip
    """The curves of each group (one, "", without `by`), and notes on how they were read.

    run, loss, where, by: as of `scaling.analysis.tables.read`. measured: whether losses are needed;
    a curve without any has none (m = 0).
    Raises UserError: no column of steps, rates or losses; runs of several sizes in a group.
    """
    frame, notes = load(source)
    if where is not None:
        frame, said = rows_where(frame, where)
        notes.append(said)
    table = Table(frame)
    name = table.check("run", run) if run is not None else table.run()[0]
    step = table.first("step", names.STEP)
    if step is None:
        raise UserError(
            "no column of steps: the law of a loss curve wants a row for each evaluation along a "
            f"run, with step, lr and loss; the table has {listed(frame.columns)}"
        )
    frame, joined = join_sparse(frame, name, step)
    table = Table(frame)
    rate = _rate(table, name)
    values: np.ndarray = np.full(len(frame), np.nan)
    cells = {step: numbers(frame[step], thousands=True), rate: numbers(frame[rate], thousands=True)}
    if measured or names.choose_loss(table, loss, lambda _: True)[0] is not None:
        quality, more = read_loss(table, loss, None)
        values = quality.values
        if quality.cells is not None:
            cells[str(quality.column)] = quality.cells
        notes += [column_line("loss", quality, ""), *more]
    notes += [*joined, f"step: column {step!r}", f"learning rate: column {rate!r}, of each step"]
    at = cells[step].values
    _refuse_unread(cells, None if name is not None else at)
    known = np.isfinite(at) & np.isfinite(cells[rate].values)
    if lost := int((known & ~np.isfinite(values)).sum()) * measured:
        notes.append(f"{lost} rows have no finite loss; of them the rate alone counts")
    if lost := int((~known & np.isfinite(values)).sum()):
        notes.append(f"beware: {lost} rows with a loss have no step or no rate, and are left out")
    rows = Rows(
        np.full(len(frame), "run") if name is None else frame[name].astype(str).to_numpy(),
        at, cells[rate].values, values,
    )  # fmt: skip
    groups = {"": np.ones(len(frame), bool)}
    if by is not None:
        column = table.check("by", by)
        groups = {
            f"{by} = {value}": (frame[column] == value).to_numpy()
            for value in frame[column].dropna().unique()
        }
    out = {}
    for group, which in groups.items():
        _refuse_sizes(table, rows.run, which, group)
        out[group] = _curves(rows, which, measured)
    return out, notes


def _refuse_unread(cells: dict[str, Cells], alone: np.ndarray | None) -> None:
    """Cells that are no numbers; alone: the steps of a table without runs, which must increase."""
    for column, read in cells.items():
        for row, text in read.unread.items():
            raise UserError(
                f"{len(read.unread)} cells are no numbers: {text!r} in column {str(column)!r}, row "
                f"{row + 1}; write plain numbers there, or leave the row out with --where"
            )
    if alone is not None and (np.diff(alone) <= 0).any():
        raise UserError(
            "no column of runs, and steps that go back: are these several runs? Add a column run, "
            "or name it with --run"
        )


def _rate(table: Table, run: str | None) -> str:
    """The column of the rate; of several, the one that moves along runs."""
    found = table.named(names.LR)
    if not found:
        raise UserError(
            "no column of the learning rate (lr, learning_rate, ...): without the rate at each "
            "step a schedule cannot be told; log it, or add the column as the schedule was, and "
            f"call it lr; the table has {listed(table.frame.columns)}"
        )
    if len(found) > 1 and run is not None:
        most = table.frame.groupby(run)[found].nunique().max()
        found = sorted(found, key=lambda c: most[c] <= 1)
    return found[0]


def _refuse_sizes(table: Table, run: np.ndarray, which: np.ndarray, group: str) -> None:
    """Curves of several models have several laws."""
    for column in [c for tier in table.quantity("n")[:2] for c in tier]:
        sizes = pd.Series(numbers(table.frame[column], thousands=False).values[which])
        of_runs = sizes.groupby(run[which]).median().dropna()
        if len(of_runs) > 1 and of_runs.min() > 0 and of_runs.max() > SIZES * of_runs.min():
            shown = ", ".join(f"{v:.3g}" for v in sorted(of_runs.unique())[:5])
            raise UserError(
                f"{group + ': ' if group else ''}curves of several sizes (column {column!r}: "
                f"{shown}): a law of the curve is of one model; --by {column!r} fits one each, "
                "--where chooses one"
            )


def _curves(rows: Rows, which: np.ndarray, measured: bool) -> list[Curve]:
    out = []
    known = which & np.isfinite(rows.step) & np.isfinite(rows.rate)
    for name in dict.fromkeys(rows.run[known]):
        mine = np.flatnonzero(known & (rows.run == name))
        mine = mine[np.argsort(rows.step[mine], kind="stable")]
        step, rate, loss = rows.step[mine], rows.rate[mine], rows.loss[mine]
        if (rate < 0).any() or (step < 0).any():
            raise UserError(f"run {name}: steps and rates must not be negative")
        if rate.max(initial=0) <= 0:
            raise UserError(f"run {name}: its rate is 0 everywhere: is it logged as a percentage?")
        twice = np.flatnonzero(np.diff(step) == 0)
        if len(twice):
            at = step[twice[0]]
            raise UserError(
                f"run {name}: several rows of step {at:g}: do several runs share the name? Give "
                "each its own (--run), or leave one out (--where)"
            )
        if len(mine) < 2:
            raise UserError(f"run {name}: one row is no curve; leave it out with --where")
        there = np.isfinite(loss)
        if measured and not there.any():
            raise UserError(f"run {name}: no row has both a rate and a loss")
        out.append(Curve(str(name), thinned(step, rate), step[there], loss[there]))
    if not out:
        raise UserError("no row has both a step and a learning rate")
    return out
