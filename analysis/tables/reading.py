"""One table of runs, read in order: columns, numbers, states, histories, settings, budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.schema import ALWAYS
from scaling.analysis.tables import columns as names
from scaling.analysis.tables import derived
from scaling.analysis.tables.columns import Table, listed
from scaling.analysis.tables.files import load
from scaling.analysis.tables.histories import (
    ENDED,
    TAKEN,
    Points,
    carried,
    highest,
    join_sparse,
    reduce,
)
from scaling.analysis.tables.layouts import Layout, adapt
from scaling.analysis.tables.losses import impossible, missing, read_loss
from scaling.analysis.tables.nominal import budgets, mark_budgets, part_namesakes
from scaling.analysis.tables.own import own_rows, refuse_told
from scaling.analysis.tables.plausible import check, check_rows
from scaling.analysis.tables.quantities import (
    TRAINING,
    Quantity,
    column_line,
    count_line,
    nominal,
    read_quantities,
    read_quantity,
)
from scaling.analysis.tables.reshaped import reshaped
from scaling.analysis.tables.roles import run_names, settle
from scaling.analysis.tables.settings import mixes, searched
from scaling.analysis.tables.states import rows_where, state_columns, statuses
from scaling.analysis.tables.trials import refuse_several
from scaling.analysis.tables.units import numbers
from scaling.errors import UserError

BEYOND = 1.1  # times its planned tokens: more than its last batch too many
UNREAD = 5  # cells that are no numbers, named at most
ALONE = {"params": "n", "tokens": "d"}  # what a law of one variable needs


def read(
    source: str | Path | pd.DataFrame, *, n: str | None = None, d: str | None = None,
    c: str | None = None, loss: str | None = None, run: str | None = None,
    compute_unit: str | None = None, tokens_in: str | None = None, params_in: str | None = None,
    budget_column: str | None = None, finished_if: str | None = None, where: str | None = None,
    history: bool | None = None, by: str | None = None, metric: str | None = None,
    of: str = "compute", keep: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Rows in the columns of analysis/questions/frontier.py, and notes on how they were read.

    source: a file (analysis/tables/files.py) or a frame. n, d, c, loss, run, budget_column: the
    columns' names, where they cannot be told. compute_unit: "MACs", "FLOPs", "PF-days", or one
    with a prefix. tokens_in, params_in: "K", "M", "B" or "T" when the numbers are in thousands,
    millions, billions, trillions, "" for single ones. finished_if: words of the state of finished
    runs, or a condition. where: a condition on the table's columns. history: whether rows are
    evaluations along runs (True) or each a finished run (False). by: a column whose values become
    the column `by` of the result. metric: a column to fit a law of 1 - it (an accuracy). of: what
    the law will be of; for "params" or "tokens" that column and the loss are enough. keep: further
    columns, taken over as they are and for nothing else.
    Raises UserError on a table that cannot be read without guessing.

    >>> runs = {"params (M)": [70, 160], "tokens (B)": [1, 3], "val_loss": [3.9, 3.5]}
    >>> rows, notes = read(pd.DataFrame(runs))
    >>> rows["macs_total"].tolist(), notes[1]
    ([2.1e+17, 1.44e+18], "parameters (N): column 'params (M)', x 1e+06")
    """
    frame, notes = load(source)
    if history is None and frame.attrs.get("curves"):
        history = True
    frame, more = reshaped(frame, (loss, n, c, metric))
    notes += more
    if where is not None:
        frame, said = rows_where(frame, where)
        notes.append(said)
    given = {"n": n, "d": d, "c": c, "loss": loss, "run": run}
    scales = {"n": params_in, "d": tokens_in}
    if set(frame.columns) >= ALWAYS:
        refuse_told(frame, budget_column, finished_if, history, keep)
        rows, more = own_rows(frame, given, scales, compute_unit, by, metric)
        return rows, notes + more
    refuse_several(frame, where, by)
    layout = adapt(frame, asked={role for role, column in given.items() if column is not None})
    apart = set(keep) - {*given.values(), budget_column, by, metric}
    table, runs, more = _told_apart(layout, run, apart)
    notes += [*layout.notes, *more]
    if metric is None:
        given = {k: v if v is not None else layout.columns.get(k) for k, v in given.items()}
    quality, more = read_loss(table, given["loss"], metric)
    notes += more
    budget = nominal(table, budget_column)
    found, more = _counts(table, given, budget, scales, compute_unit, of)
    notes += more
    status, told = statuses(table, finished_if)
    _carry(table.frame, quality, found, runs)
    notes[:0] = [*_told(quality, found), *told]
    out, more = _rows_that_count(table, runs, quality, found, status, history, by, of, scales)
    notes += more
    out["run_id"], more = run_names(table, runs.run, out)
    decided = {c for c in table.names if where is not None and str(c) in where}
    notes += [*more, *settle(table, out, found, runs.run, by, decided)]
    _keep(out, table.frame, keep)
    notes += mark_budgets(out, table.frame, budget, budget_column is not None)
    part_namesakes(out)
    used = {*keep, quality.column, runs.run, runs.step, budget, by}
    return out, notes + _unused(table, used | {one.column for one in found.values()})


@dataclass(frozen=True)
class RunColumns:
    """The columns that tell a run's rows apart, where the table has them."""

    run: str | None
    is_id: bool  # whether a name belongs to one run alone
    step: str | None


def _told_apart(
    layout: Layout, run: str | None, apart: set[str]
) -> tuple[Table, RunColumns, list[str]]:
    """The table, with rows of one run and step joined; run: the column that was named; apart:
    columns that are taken over and mean nothing here."""
    table = Table(layout.frame, apart)
    column, is_id = table.run()
    if run is not None:
        column, is_id = table.check("run", run), True
    elif "run" in layout.columns:
        column, is_id = layout.columns["run"], True
    step = table.first("step", names.STEP, layout.columns.get("step"))
    frame, joined = join_sparse(layout.frame, column, step)
    return (Table(frame, apart) if joined else table), RunColumns(column, is_id, step), joined


def _counts(
    table: Table, given: dict[str, str | None], budget: str | None,
    scales: dict[str, str | None], compute_unit: str | None, of: str,
) -> tuple[dict[str, Quantity], list[str]]:  # fmt: skip
    """Parameters, tokens and compute. Raises UserError where a law of `of` lacks one of them."""
    if given["c"] is None and budget is not None and _needs_budget(table, given):
        given = given | {"c": budget}
    ratio = derived.ratio_given(table, given["d"])
    found, notes = read_quantities(
        table, given | {"d": None} if ratio else given, scales, compute_unit
    )
    if ratio or not {"c", "d"} & set(found):
        product = derived.tokens(table, found.get("n"), given["d"] if ratio else None)
        found |= {"d": product} if product is not None else {}
    check(found, scales, compute_unit)
    alone = ALONE.get(of)
    if alone is not None and alone not in found and "c" not in found:
        raise UserError(missing(table, alone))
    if alone is None and "c" not in found and not {"n", "d"} <= set(found):
        lacking = "d" if "n" in found else "n" if "d" in found else "c"
        more = {"d": derived.HOW, "n": "; or name compute (--c)", "c": ""}
        raise UserError(missing(table, lacking) + more[lacking])
    return found, notes


def _rows_that_count(
    table: Table, runs: RunColumns, quality: Quantity, found: dict[str, Quantity],
    status: np.ndarray | None, history: bool | None, by: str | None, of: str,
    scales: dict[str, str | None],
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Losses and costs of runs, or of the decayed ends of their histories, to which the table is
    reduced too."""
    finished = np.ones(len(table.frame), bool) if status is None else status == "finished"
    out = _assemble(quality, found)
    _refuse_unread(table.frame, [quality, *found.values()], finished)
    points = _points(table, out, runs, by)
    decayed = _told_decayed(table.frame)
    if decayed is not None:
        kept, notes = np.arange(len(out)), ["decayed: column 'decayed'"]
    else:
        kept, decayed, notes = reduce(points, history)
        short, more = _before_their_end(table, found, out)
        decayed = decayed & ~short[kept]
        notes = [*(n for n in notes if n != TAKEN or not short.any()), *more]
    _refuse_nothing(out.iloc[kept], ALONE.get(of, "c"), finished[kept])
    table.frame = _peak_rates(table, points, kept, runs.run)
    count = kept[finished[kept]]
    check_rows(out.iloc[count], count, found, scales)
    out = out.iloc[kept].reset_index(drop=True)
    out["decayed"] = decayed
    out["status"] = "finished" if status is None else status[kept]
    far, more = impossible(np.where(finished[kept], out["val_loss"], np.nan))
    out.loc[far, "status"] = "diverged"
    notes += more
    known = out[["params", "tokens"]].notna().any().any()
    out["size"] = [f"{v:.3g}" for v in out["params"]] if known else "unknown"
    return out, notes


def _keep(out: pd.DataFrame, frame: pd.DataFrame, keep: Sequence[str]) -> None:
    """Take columns over as they are."""
    for name in keep:
        if name not in frame.columns:
            raise UserError(f"no column {name!r}; the table has {listed(frame.columns, 40)}")
        if name in out and not out[name].equals(frame[name]):
            raise UserError(
                f"column {name!r} is asked for as it is, and its name is that of a quantity which "
                "is read from it or from another column: rename it"
            )
        out[name] = frame[name].to_numpy()


def _needs_budget(table: Table, given: Mapping[str, str | None]) -> bool:
    """Whether compute can come from nominal budgets alone."""
    have = {r for r in ("n", "d", "c") if given[r] is not None or any(table.quantity(r))}
    return "c" not in have and not {"n", "d"} <= have


def _carry(
    frame: pd.DataFrame, quality: Quantity, found: dict[str, Quantity], runs: RunColumns
) -> None:
    """Counts of rows of a history that have a loss alone, from the row before."""
    evaluated = np.isfinite(quality.values)
    wanting = [q for q in found.values() if np.isnan(q.values[evaluated]).any()]
    if runs.run is None or runs.step is None or not wanting:
        return
    codes = pd.factorize(frame[runs.run])[0]
    at = numbers(frame[runs.step], thousands=True).values
    for quantity in wanting:
        quantity.values, count = carried(quantity.values, quality.values, codes, at)
        if count:
            quantity.notes.append(f"{count} rows with a loss alone take that of the row before")


def _assemble(quality: Quantity, found: dict[str, Quantity]) -> pd.DataFrame:
    """Loss, MACs, parameters and tokens; what follows from C = 6 N D FLOPs where one is missing."""
    out = pd.DataFrame({"val_loss": quality.values})
    n, d, c = (found[r].values if r in found else None for r in ("n", "d", "c"))
    with np.errstate(all="ignore"):
        if c is None and n is not None and d is not None:
            c = TRAINING * n * d
        if n is not None and d is None and c is not None:
            d = np.where(n > 0, c / (TRAINING * n), np.nan)
        elif d is not None and n is None and c is not None:
            n = np.where(d > 0, c / (TRAINING * d), np.nan)
    nothing = np.full(len(out), np.nan)
    out["macs_total"] = nothing if c is None else c
    out["params"] = nothing if n is None else n
    out["tokens"] = nothing if d is None else d
    return out


def _told(quality: Quantity, found: dict[str, Quantity]) -> list[str]:
    """A line for each meaning: its column, its unit and factor."""
    lines = [column_line("loss", quality, "")]
    lines += [count_line(role, found[role]) for role in ("n", "d", "c") if role in found]
    if "c" not in found and not {"n", "d"} <= set(found):
        lines.append("compute: not known, and not needed")
    elif "c" not in found:
        lines.append("compute: 3 N D training MACs (6 N D FLOPs), as no column gives it")
    elif "n" in found and "d" not in found:
        lines.append("tokens: compute / (6 N FLOPs), as no column gives them")
    elif "d" in found and "n" not in found:
        lines.append("parameters: compute / (6 D FLOPs), as no column gives them")
    return lines


def _refuse_unread(frame: pd.DataFrame, read: list[Quantity], counts: np.ndarray) -> None:
    """A cell of a finished run that is no number may be the best of its budget: it is named."""
    said: list[str] = []
    total = 0
    for quantity in read:
        cells = quantity.cells
        for row, text in (cells.unread if cells is not None else {}).items():
            if counts[row]:
                total += 1
                if len(said) < UNREAD:
                    said.append(f"{text!r} in column {str(quantity.column)!r}, row {row + 1}")
    if said:
        more = f" and {total - len(said)} more" if total > len(said) else ""
        raise UserError(
            f"{total} cells are no numbers: {'; '.join(said)}{more}. Write plain numbers there (or "
            "leave the cell empty where there is none), or leave the rows out with --where"
        )


def _refuse_nothing(out: pd.DataFrame, of: str, finished: np.ndarray) -> None:
    """Rows of which none has what a law needs are the table's, not the law's, to explain."""
    if not finished.any():
        raise UserError(
            f"none of {len(out)} rows finished, by the columns of states: --finished-if names the "
            "words of finished runs"
        )
    place = {"c": "macs_total", "n": "params", "d": "tokens"}[of]
    if not np.isfinite(out.loc[finished, ["val_loss", place]]).all(axis=1).any():
        raise UserError(
            f"no row has both a loss and {names.WORDS[of]}: they stand in different rows, and "
            "which belong together cannot be told; write them into one row a run"
        )


def _points(table: Table, out: pd.DataFrame, runs: RunColumns, by: str | None) -> Points:
    frame, run, step = table.frame, runs.run, runs.step

    def column(wanted: set[str], numeric: bool = True) -> np.ndarray | None:
        found = table.first("", wanted)
        if found is None:
            return None
        if numeric:
            return numbers(frame[found], thousands=True).values
        return frame[found].to_numpy(dtype=object)

    rate = _rate(table, run)
    rates = np.array([]) if rate is None else numbers(frame[rate], thousands=True).values
    if not runs.is_id and {"Created", "State"} <= set(map(str, frame.columns)):
        step = None  # a table of runs, whose step is each run's last
    n: np.ndarray | None = out["params"].to_numpy(float)
    if np.isnan(out["params"]).all():
        size = table.first("", {"modelsize", "size", "width", "depth", "model"})
        n = None if size is None else pd.factorize(frame[size])[0].astype(float)
    progress = out["tokens"].to_numpy(float)
    if np.isnan(progress).all():
        progress = out["macs_total"].to_numpy(float)
    shared = np.zeros(len(out), bool)
    if n is not None and run is not None and step is None:
        shared = np.isfinite(budgets(out["macs_total"].to_numpy(float), n))
    codes, given = (None, pd.Index([])) if run is None else pd.factorize(frame[run])
    apart = {*mixes(table).values(), *([table.check("by", by)] if by is not None else [])}
    apart = {c for c in apart if frame[c].nunique() > 1}
    kinds = frame.groupby(sorted(apart), dropna=False).ngroup().to_numpy() if apart else None
    return Points(
        run=codes, names=[str(name) for name in given], is_id=runs.is_id, kind=kinds, n=n,
        seed=column(names.SEED), progress=progress,
        step=None if step is None else numbers(frame[step], thousands=True).values,
        loss=out["val_loss"].to_numpy(float), lr=None if rate is None else rates,
        schedule=column(names.SCHEDULE, numeric=False), planned=column(names.PLANNED),
        at_budget=shared,
    )  # fmt: skip


def _rate(table: Table, run: str | None) -> str | None:
    """The column of the learning rate; of several, the one that moves along runs, if any does."""
    found = table.named(names.LR)
    if len(found) > 1 and run is not None:
        most = table.frame.groupby(run)[found].nunique().max()
        found = sorted(found, key=lambda c: most[c] <= 1)
    return found[0] if found else None


def _peak_rates(table: Table, points: Points, kept: np.ndarray, run: str | None) -> pd.DataFrame:
    """The rows kept, with the highest rate of each run in place of that of the moment."""
    frame = table.frame.iloc[kept].reset_index(drop=True)
    column = _rate(table, run)
    if column is None or points.run is None or points.lr is None or len(kept) == len(table.frame):
        return frame
    top = highest(points.lr, points.run)[kept]
    named = (points.run[kept] >= 0) & np.isfinite(top)
    return frame.assign(**{column: np.where(named, top, points.lr[kept])})


def _before_their_end(
    table: Table, found: dict[str, Quantity], out: pd.DataFrame
) -> tuple[np.ndarray, list[str]]:
    """Which rows have seen fewer tokens than their schedule is long, where a column says so."""
    short = np.zeros(len(out), bool)
    used = found["d"].column if "d" in found else None
    column = next((c for c in table.named(names.PLANNED_TOKENS) if c != used), None)
    if column is None or used is None:
        return short, []
    planned = read_quantity(table, "d", column, None, None).values
    seen = out["tokens"].to_numpy(float)
    with np.errstate(invalid="ignore"):
        if (seen > BEYOND * planned).any():  # what runs go beyond is not where they end
            return short, []
        short = seen < ENDED * planned
    if short.all():
        return ~short, [f"beware: no row has seen the tokens of its column {column!r}"]
    said = (
        f"decayed: {short.sum()} rows have seen fewer tokens than {column!r} and are mid-schedule"
    )
    return short, [said] * bool(short.any())


def _told_decayed(frame: pd.DataFrame) -> np.ndarray | None:
    """Whether the rate had decayed at each row, where a column of this tool's rows says so."""
    if "decayed" not in frame.columns:
        return None
    words = frame["decayed"].astype(str).str.lower()
    return words.eq("true").to_numpy() if words.isin(["true", "false"]).all() else None


def _unused(table: Table, used: set[Any]) -> list[str]:
    read = {*used, *searched(table), *mixes(table).values()}
    for wanted in (names.SEED, names.PLANNED, names.PLANNED_TOKENS):
        read |= set(table.named(wanted)[:1])
    read |= {*table.passes()[:1], *table.unique()[:1]}
    read |= set(state_columns(table))
    rest = [c for c in table.frame.columns if c not in read]
    return [f"not used: {listed(rest, 8)}"] if rest else []
