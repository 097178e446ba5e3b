"""One table of runs, read in order: columns, numbers, states, histories, settings, budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.schema import COLUMNS
from scaling.analysis.tables import columns as names
from scaling.analysis.tables.columns import Table, listed
from scaling.analysis.tables.files import load
from scaling.analysis.tables.histories import Points, carried, highest, join_sparse, reduce
from scaling.analysis.tables.layouts import Layout, adapt
from scaling.analysis.tables.losses import missing, read_loss
from scaling.analysis.tables.nominal import SAME_BUDGET, budgets, mark_budgets, part_namesakes
from scaling.analysis.tables.plausible import check
from scaling.analysis.tables.quantities import (
    TRAINING,
    Quantity,
    nominal,
    read_quantities,
    read_quantity,
)
from scaling.analysis.tables.settings import fresh, grid, mixes, mixture_notes, repeated, searched
from scaling.analysis.tables.states import condition, state_columns, statuses
from scaling.analysis.tables.trials import refuse_several
from scaling.analysis.tables.units import numbers
from scaling.errors import UserError

UNREAD = 5  # cells that are no numbers, named at most
ROLES = ("lr_sweep", "ladder", "single", "repeat")


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
    if where is not None:
        frame, said = _where(frame, where)
        notes.append(said)
    given = {"n": n, "d": d, "c": c, "loss": loss, "run": run}
    if set(COLUMNS) <= set(frame.columns):
        if budget_column not in (None, "budget_macs"):
            raise UserError(
                f"--budget-column {budget_column!r}: these are rows of a study, whose budgets are "
                "in their column 'budget_macs'; leave it out"
            )
        asked = {"--finished-if": finished_if is not None, "--history": history is not None}
        for option, given_too in asked.items():
            if given_too:
                raise UserError(
                    f"{option}: these are rows of a study, which say of each run whether it "
                    "finished and where its rate had decayed; leave it out"
                )
        if missing_ones := [one for one in keep if one not in frame.columns]:
            raise UserError(
                f"no column {missing_ones[0]!r}; the table has {listed(frame.columns, 40)}"
            )
        scales = {"n": params_in, "d": tokens_in}
        rows, more = _own(frame, given, scales, compute_unit, by, metric)
        return rows, notes + more
    refuse_several(frame, where, by)
    layout = adapt(frame, asked=set(k for k, v in given.items() if v is not None))
    frame, notes = layout.frame, notes + layout.notes
    apart = set(keep) - {*given.values(), budget_column, by, metric}
    table = Table(frame, apart)
    if metric is None:
        given = {k: v if v is not None else layout.columns.get(k) for k, v in given.items()}
    run_column, is_id = (
        (table.check("run", run), True) if run is not None else _run_column(table, layout)
    )
    step = table.first("step", names.STEP, layout.columns.get("step"))
    frame, joined = join_sparse(frame, run_column, step)
    if joined:
        notes, table = notes + joined, Table(frame, apart)
    quality, more = read_loss(table, given["loss"], metric)
    notes += more
    budget = nominal(table, budget_column)
    if given["c"] is None and budget is not None and _needs_budget(table, given):
        given["c"] = budget
    scales = {"n": params_in, "d": tokens_in}
    found, more = read_quantities(table, given, scales, compute_unit)
    check(found, scales, compute_unit)
    notes += more
    alone = {"params": "n", "tokens": "d"}.get(of)
    if alone is not None and alone not in found and "c" not in found:
        raise UserError(missing(table, alone))
    if alone is None and "c" not in found and not {"n", "d"} <= set(found):
        raise UserError(missing(table, "c" if "n" not in found else "d"))
    status, told = statuses(table, finished_if)
    finished = np.ones(len(frame), bool) if status is None else status == "finished"
    _carry(frame, quality, found, run_column, step)
    out = _assemble(quality, found)
    notes[:0] = [*_told(quality, found), *told]
    _refuse_unread(frame, [quality, *found.values()], finished)
    points = _points(table, out, run_column, is_id, step, by)
    told_decayed = _told_decayed(frame)
    if told_decayed is not None:
        kept, decayed, more = np.arange(len(out)), told_decayed, ["decayed: column 'decayed'"]
    else:
        kept, decayed, more = reduce(points, history)
    notes += more
    _refuse_nothing(out.iloc[kept], alone or "c", finished[kept])
    frame = _peak_rates(table, points, kept)
    out = out.iloc[kept].reset_index(drop=True)
    out["decayed"] = decayed
    table.frame = frame
    out["status"] = "finished" if status is None else status[kept]
    known = out[["params", "tokens"]].notna().any().any()
    out["size"] = [f"{v:.3g}" for v in out["params"]] if known else "unknown"
    kinds = list(
        dict.fromkeys([*searched(table), *mixes(table).values(), *table.named(names.SEED)[:1]])
    )
    out["run_id"], more = _run_names(frame, run_column, out, kinds)
    notes += more
    notes += _settle(table, out, found, run_column is not None, by)
    for name in keep:
        if name not in frame.columns:
            raise UserError(f"no column {name!r}; the table has {listed(frame.columns, 40)}")
        if name in out and not out[name].equals(frame[name]):
            raise UserError(
                f"column {name!r} is asked for as it is, and its name is that of a quantity which "
                "is read from it or from another column: rename it"
            )
        out[name] = frame[name].to_numpy()
    notes += mark_budgets(out, frame, budget, budget_column is not None)
    part_namesakes(out)
    used = {
        *keep,
        quality.column,
        run_column,
        step,
        budget,
        by,
        *(q.column for q in found.values()),
    }
    notes += _unused(table, used)
    return out, notes


def _where(frame: pd.DataFrame, where: str) -> tuple[pd.DataFrame, str]:
    good = condition(frame, where, "--where")
    if not good.any():
        raise UserError(f"--where {where!r}: no row of {len(frame)} is left")
    return frame[good].reset_index(
        drop=True
    ), f"where {where}: {int(good.sum())} of {len(frame)} rows"


def _run_column(table: Table, layout: Layout) -> tuple[str | None, bool]:
    if "run" in layout.columns:
        return layout.columns["run"], True
    return table.run()


def _needs_budget(table: Table, given: Mapping[str, str | None]) -> bool:
    """Whether compute can come from nominal budgets alone."""
    have = {r for r in ("n", "d", "c") if given[r] is not None or any(table.quantity(r))}
    return "c" not in have and not {"n", "d"} <= have


def _own(
    frame: pd.DataFrame, given: Mapping[str, str | None], scales: Mapping[str, str | None],
    compute_unit: str | None, by: str | None, metric: str | None,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """This tool's rows: what they say of budgets, decay and roles stands whatever is asked for."""
    table = Table(frame)
    out, notes = frame.copy(), list[str]()
    if out["decayed"].dtype != bool:
        out["decayed"] = out["decayed"].astype(str).str.lower().eq("true")
    own = {"n": "params", "d": "tokens", "c": "macs_total", "loss": "val_loss", "run": "run_id"}
    others = {role: c for role, c in given.items() if c is not None and c != own[role]}
    units = {"--params-in": ("n", scales["n"]), "--tokens-in": ("d", scales["d"]),
             "--compute-unit": ("c", compute_unit)}  # fmt: skip
    for option, (role, unit) in units.items():
        if unit is not None and role not in others:
            raise UserError(
                f"{option} {unit}: these are rows of a study, whose column {own[role]!r} is in "
                f"{'MACs' if role == 'c' else 'single ones'}; leave it out, or name another column "
                f"with --{role}"
            )
    for role, column in others.items():
        table.check(role, column)
        if role == "run":
            out[own[role]] = frame[column].astype(str)
            notes.append(f"{names.WORDS[role]}: column {column!r}")
        elif role == "loss":
            quality, _ = read_loss(table, column, None)
            out[own[role]] = quality.values
            notes.append(_line(role, quality, ""))
        else:
            quantity = read_quantity(table, role, column, scales.get(role), compute_unit)
            if role == "c" and not quantity.unit:
                raise UserError(
                    f"compute in column {column!r}: of MACs or of FLOPs? Say it with --compute-unit"
                )
            out[own[role]] = quantity.values
            notes.append(count_line(role, quantity))
    if metric is not None:
        quality, _ = read_loss(table, None, metric)
        out["val_loss"] = quality.values
        notes.append(f"metric: column {metric!r}, {'; '.join(quality.notes)}")
    if by is not None:
        out["by"] = frame[table.check("by", by)].astype(str)
    for column, kind in COLUMNS.items():
        if kind in ("float", "int"):
            out[column] = pd.to_numeric(out[column], errors="coerce")
    return out, notes


def _carry(
    frame: pd.DataFrame, quality: Quantity, found: dict[str, Quantity], run: str | None,
    step: str | None,
) -> None:  # fmt: skip
    """Counts of rows of a history that have a loss alone, from the row before."""
    evaluated = np.isfinite(quality.values)
    wanting = [q for q in found.values() if np.isnan(q.values[evaluated]).any()]
    if run is None or step is None or not wanting:
        return
    codes, at = pd.factorize(frame[run])[0], numbers(frame[step], thousands=True).values
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
    lines = [_line("loss", quality, "")]
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


def count_line(role: str, quantity: Quantity) -> str:
    """The column, unit and factor of parameters, tokens or compute (role n, d or c)."""
    times = f", x {quantity.factor:g}" if quantity.factor != 1.0 else ""
    unit = f" in {quantity.unit}" if role == "c" else ""
    return _line(names.WORDS[role], quantity, times + unit)


def _line(what: str, quantity: Quantity, unit: str) -> str:
    notes = "".join(f"; {one}" for one in quantity.notes)
    return f"{what}: column {str(quantity.column)!r}{unit}{notes}"


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


def _points(
    table: Table, out: pd.DataFrame, run: str | None, is_id: bool, step: str | None,
    by: str | None,
) -> Points:  # fmt: skip
    frame = table.frame

    def column(wanted: set[str], numeric: bool = True) -> np.ndarray | None:
        found = table.first("", wanted)
        if found is None:
            return None
        if numeric:
            return numbers(frame[found], thousands=True).values
        return frame[found].to_numpy(dtype=object)

    if not is_id and {"Created", "State"} <= set(map(str, frame.columns)):
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
        run=codes, names=[str(name) for name in given], is_id=is_id, kind=kinds, n=n,
        seed=column(names.SEED), progress=progress,
        step=None if step is None else numbers(frame[step], thousands=True).values,
        loss=out["val_loss"].to_numpy(float), lr=column(names.LR),
        schedule=column(names.SCHEDULE, numeric=False), planned=column(names.PLANNED),
        at_budget=shared,
    )  # fmt: skip


def _peak_rates(table: Table, points: Points, kept: np.ndarray) -> pd.DataFrame:
    """The rows kept, with the highest rate of each run in place of that of the moment."""
    frame = table.frame.iloc[kept].reset_index(drop=True)
    column = table.first("lr", names.LR)
    if column is None or points.run is None or points.lr is None or len(kept) == len(table.frame):
        return frame
    top = highest(points.lr, points.run)[kept]
    named = (points.run[kept] >= 0) & np.isfinite(top)
    return frame.assign(**{column: np.where(named, top, points.lr[kept])})


def _told_decayed(frame: pd.DataFrame) -> np.ndarray | None:
    """Whether the rate had decayed at each row, where a column of this tool's rows says so."""
    if "decayed" not in frame.columns:
        return None
    words = frame["decayed"].astype(str).str.lower()
    return words.eq("true").to_numpy() if words.isin(["true", "false"]).all() else None


def _strings(series: pd.Series) -> np.ndarray:
    """Names, None where there is none."""
    return series.astype(object).where(series.notna(), None).to_numpy(dtype=object)


def _run_names(
    frame: pd.DataFrame, run: str | None, out: pd.DataFrame, settings: list[str]
) -> tuple[np.ndarray, list[str]]:
    """A name for each run: its own, with a number where runs of other size or settings share it;
    "row i" without one. Decayed points of one trunk keep one name: they share its noise."""
    if run is None:
        return np.array([f"row {i}" for i in range(len(frame))], dtype=object), []
    given = pd.Series(_strings(frame[run]), dtype=object)
    alone = given.isna().to_numpy()
    name = np.array(given.astype(str), dtype=object)
    name[alone] = [f"row {i}" for i in np.flatnonzero(alone)]
    with np.errstate(all="ignore"):  # sizes that follow from compute differ by roundings
        size = np.round(np.log(out["params"].to_numpy(float)) / np.log(SAME_BUDGET))
    one = pd.DataFrame({"run": name, "size": size})
    one = one.join(frame[settings].astype(str).add_prefix("set "))
    first = one.drop_duplicates()
    number = one.assign(number=first.groupby("run", sort=False).cumcount())["number"]
    keys = list(one.columns)
    by = one.assign(number=number).groupby(keys, sort=False, dropna=False)["number"]
    shown = by.transform("first").to_numpy(int)
    for i in np.flatnonzero(shown):
        name[i] = f"{name[i]} #{shown[i] + 1}"
    notes = [f"run id: column {run!r}"]
    if shared := int((shown > 0).sum()):
        notes.append(f"{shared} rows share the name of another run and count as runs of their own")
    if alone.any():
        notes.append(f"{int(alone.sum())} rows without a name count as runs of their own")
    return name, notes


def _settle(
    table: Table, out: pd.DataFrame, found: dict[str, Quantity], named: bool, by: str | None
) -> list[str]:
    """Columns of settings, and the role of each row; returns what there is to say."""
    frame, notes = table.frame, []
    for wanted, place in ((names.SEED, "seed"), (names.LR, "lr"), (names.BATCH, "batch_tokens")):
        if (column := table.first(place, wanted)) is not None:
            out[place] = frame[column].astype(str).to_numpy()
    if "seed" in out and out["seed"].nunique() > 1:
        notes.append("runs that differ in their seed alone are averaged")
    mixed = mixes(table)
    for place, column in mixed.items():
        out[place] = frame[column].astype(str).to_numpy()
    if by is not None:
        out["by"] = frame[table.check("by", by)].astype(str).to_numpy()
        if not named:  # as they would be called in a table of their own
            out["run_id"] = [f"row {i}" for i in out.groupby("by").cumcount()]
    same = ["params", "tokens", "macs_total", "run_id" if named else "val_loss"]
    same += [c for c in ("seed", "lr", "batch_tokens", *mixed, "by") if c in out]
    repeat = out.duplicated(same, keep="last").to_numpy()
    out["role"] = np.where(repeat, "repeat", "ladder")
    if repeat.any():
        how = "repeat the name, size and training of a later row" if named else "are copies"
        notes.append(f"{int(repeat.sum())} rows {how} and are left out")
    if "role" in frame.columns and frame["role"].isin(ROLES).all():
        out["role"] = np.where(repeat, "repeat", frame["role"])
        notes.append("role: column 'role'")
    counts = ((out["role"] == "ladder") & (out["status"] == "finished") & out["decayed"]).to_numpy(
        bool, copy=True
    )
    factor = found["d"].factor if "d" in found else 1.0
    epochs, told = repeated(table, out["tokens"].to_numpy(float), factor)
    if epochs is not None:
        out["epochs"] = epochs
        again, more = fresh(epochs, counts)
        notes += [*(told if again.any() else []), *more]
        out.loc[again, "role"] = "repeated"
        counts &= ~again
    apart = [c for c in (*mixed, "by") if c in out]
    worse, more = grid(out, frame, searched(table), counts, apart)
    notes += more
    out.loc[worse, "role"] = "tuning"
    return notes + mixture_notes(out, mixed, counts & ~worse, by)


def _unused(table: Table, used: set[Any]) -> list[str]:
    read = {*used, *searched(table), *mixes(table).values()}
    for wanted in (names.SEED, names.EPOCHS, names.UNIQUE, names.PLANNED):
        read |= set(table.named(wanted)[:1])
    read |= set(state_columns(table))
    rest = [c for c in table.frame.columns if c not in read]
    return [f"not used: {listed(rest, 8)}"] if rest else []
