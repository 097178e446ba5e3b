"""Anyone's learning-rate sweep as points of questions/transfer.py: losses by rate and size, or the
best rate of each size."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.analysis.tables import columns as names
from scaling.analysis.tables.columns import Table, listed
from scaling.analysis.tables.files import load
from scaling.analysis.tables.histories import highest
from scaling.analysis.tables.layouts import adapt
from scaling.analysis.tables.losses import read_loss
from scaling.analysis.tables.settings import mixes, quoted
from scaling.analysis.tables.states import rows_where, statuses
from scaling.analysis.tables.trials import refuse_several
from scaling.analysis.tables.units import numbers
from scaling.errors import UserError

AXES = {
    "width": {"width", "d", "dmodel", "dim", "modeldim", "hiddensize", "hidden", "nembd",
              "embeddim", "hiddendim", "embdim"},
    "depth": {"depth", "layers", "nlayers", "numlayers", "nlayer", "numhiddenlayers"},
}  # fmt: skip
RATES = names.LR | {"bestlr", "optimallr", "bestlearningrate", "optlearningrate", "lropt",
                    "log2lr", "log10lr"}  # fmt: skip
CONSTANT = (1e-9, 10.0)  # of any learning rate
LARGEST = {"width": 2**18, "depth": 2**12}  # of any model; a column D of tokens is no width
EQUAL = 1.05  # tokens, batches and steps within this factor are one setting
ENDED = 0.9  # of the steps of the longest run of its size
LATER = 0.1  # share of rows of rates that begin later than others, up to which they are runs'
SWEEP = ["parametrization", "shared", "member"]


def read_sweep(
    source: str | Path | pd.DataFrame, *, loss: str | None = None, lr: str | None = None,
    width: str | None = None, where: str | None = None, finished_if: str | None = None,
    by: str | None = None, run: str | None = None, history: bool | None = None,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Points of learning-rate sweeps, and notes on how they were read.

    Returns columns parametrization (of the table, else of its columns of best rates), shape (""),
    axis ("width" or "depth"), shared (what all members have on the other axis; NaN: unknown),
    member, log2_lr, val_loss (NaN: diverged), run_id. With best rates alone val_loss is absent.
    loss, lr, width, run: columns, where they cannot be told; width may be of layers. by: a column
    that parts the runs into sweeps. history: False, every row is a run, whatever its step; else the
    last row of a run that has a loss counts, at the run's highest rate.
    Raises UserError for a table without rates or sizes.
    """
    frame, notes = load(source)
    if where is not None:
        frame, _ = rows_where(frame, where)
    refuse_several(frame, where, by)
    layout = adapt(frame, asked={"loss"} if loss is not None else set())
    frame, more = _long(layout.frame)
    notes += [*layout.notes, *more]
    table = Table(frame)
    loss = loss if loss is not None else layout.columns.get("loss")
    axis, column = _size(table, width)
    notes.append(f"{axis}: column {column!r}")
    sizes = _members(frame[column], column)
    rates = _rate_columns(table, lr)
    losses = names.loss_candidates(table)
    if loss is None and not any(losses.values()) and lr is None:
        return _best_rates(frame, axis, sizes, rates), [*notes, f"best rates: {listed(rates)}"]
    if len(rates) != 1:
        raise UserError(
            f"columns {listed(rates)} could all be the learning rate; name one with --lr"
        )
    quality, more = read_loss(table, loss, None)
    notes += [f"loss: column {quality.column!r}", f"learning rate: column {rates[0]!r}", *more]
    points = pd.DataFrame({"axis": axis, "member": sizes, "val_loss": quality.values})
    points["parametrization"] = _groups(table, by, {rates[0], column, quality.column})
    points["shape"] = ""
    points["shared"] = _other_axis(table, axis, column)
    points["rate"] = numbers(frame[rates[0]], thousands=False).values
    points["run_id"] = [f"row {i}" for i in range(len(frame))]
    points, said = _ended(table, points, finished_if, run, history)
    points = points.assign(log2_lr=_log2(points["rate"], rates[0]))
    points = points[np.isfinite(points["log2_lr"])]
    said = [*said, *_refuse_mixed(table, points, {rates[0], column, quality.column, by or ""})]
    points.loc[~np.isfinite(points["val_loss"]), "val_loss"] = np.nan
    members = points.groupby(SWEEP[:2], dropna=False)["member"].transform("nunique")
    if not (members > 1).any():
        raise UserError(
            f"one {axis} in each sweep of column {column!r}: whether the best rate moves takes at "
            "least two"
        )
    points = points[members > 1].sort_values(["parametrization", "member", "log2_lr"])
    return points.drop(columns=["rate", "step", "run"], errors="ignore"), [*notes, *said]


def _ended(
    table: Table, points: pd.DataFrame, finished_if: str | None, run: str | None,
    history: bool | None,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Runs that finished, and, without a loss, those that diverged; of evaluations the last."""
    status, said = statuses(table, finished_if)
    kept = np.ones(len(points), bool)
    if status is not None:
        points.loc[status == "diverged", "val_loss"] = np.nan
        kept = np.isin(status, ["finished", "diverged"])
    if not kept.all():
        said = [*said, f"{int((~kept).sum())} runs that did not finish are left out"]
    step = table.first("step", names.STEP)
    if step is None or history is False:
        return points[kept], said
    named = table.check("run", run) if run is not None else table.run()[0]
    points["step"] = numbers(table.frame[step], thousands=True).values
    points["run"] = -1 if named is None else pd.factorize(table.frame[named])[0]
    points, more = _last(points[kept], named is not None)
    return points, [*said, *more]


def _last(points: pd.DataFrame, named: bool) -> tuple[pd.DataFrame, list[str]]:
    """The last row of each run with a loss, where rows are evaluations, and what is said of it.

    A run is a name at one size; without names (`named`), a rate at one size. Raises UserError
    where neither tells runs apart.
    """
    sweep = points.groupby(SWEEP, dropna=False).ngroup().to_numpy()
    what = "run" if named else "rate"
    of = points.groupby([sweep, points[what]], dropna=False).ngroup().to_numpy()
    step = np.where(np.isfinite(points["val_loss"]), points["step"], np.nan)
    if named:
        points = points.assign(rate=highest(points["rate"].to_numpy(), of))
    start, end = -highest(-step, of), highest(step, of)
    # Of one size, all rates are there from the first step, unless they are those of the moment.
    if not named and (start > -highest(-step, sweep)).mean() > LATER:
        raise UserError(
            "the table has several steps of one size, other rates at other steps, but no column "
            "that names the runs: evaluations along runs, at the rate of the moment? Name the runs "
            "with --run COLUMN; or say --no-history where every row is a finished run"
        )
    if not (end > start).any():
        return points, []
    whole = (end >= ENDED * highest(step, sweep)) | np.isinf(end)  # without any loss: diverged
    # Of a run without a loss one row stands for it.
    first = ~pd.Series(of).duplicated().to_numpy()
    last = whole & ((step == end) | (np.isinf(end) & first))
    notes = [f"history: {len(points)} rows; of each of {int(last.sum())} runs the last one counts"]
    if short := len(np.unique(of[~whole])):
        notes.append(f"{short} runs end long before the others of their size and are left out")
    return points[last], notes


def _long(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Losses by rate (rows) and size (columns named 128, d256, width=512), a row a loss."""
    table = Table(frame)
    rates = table.named(RATES)
    sizes = {}
    for column in frame.columns:
        found = re.fullmatch(r"(?:d|w|width|dim|d_model|h)?[ =_-]*(\d{2,6})", str(column).lower())
        if found:
            sizes[column] = int(found.group(1))
    others = [c for c in frame.columns if c not in sizes]
    if len(sizes) < 2 or len(rates) != 1 or set(others) != {rates[0]}:
        return frame, []
    long = frame.melt(id_vars=others, value_vars=list(sizes), var_name="width", value_name="loss")
    long["width"] = long["width"].map(sizes)
    return long, [f"layout: losses by {rates[0]!r} (rows) and width (columns)"]


def _size(table: Table, given: str | None) -> tuple[str, str]:
    """("width" or "depth", its column)."""
    if given is not None:
        column = table.check("run", given)
        plain = "".join(table.names[column].everything)
        return ("depth" if plain in AXES["depth"] else "width"), column
    beyond = ""
    for axis, wanted in AXES.items():
        for column in table.named(wanted):
            if table.frame[column].nunique() < 2:
                continue
            largest = float(
                np.nanmax(numbers(table.frame[column], thousands=True).values, initial=0)
            )
            if largest <= LARGEST[axis]:
                return axis, column
            beyond += f" ({column!r} goes up to {largest:.3g}, and is no {axis})"
    raise UserError(
        f"no column of widths (or layers): the table has {listed(table.frame.columns)}{beyond}; "
        "name one with --width"
    )


def _refuse_mixed(table: Table, points: pd.DataFrame, used: set[str]) -> list[str]:
    """Raise UserError where a sweep of one size has several lengths or batches, on which the best
    rate hangs; a note of other settings that vary there. points: rows of `table`, by its index."""
    counts = points[np.isfinite(points["val_loss"])]
    of = [counts[c] for c in SWEEP]

    def values(column: str) -> pd.Series:
        given = table.frame[column].loc[counts.index]
        found = numbers(given, thousands=True).values
        if np.isnan(found).all():
            text: pd.Series = given.astype(str)
            return text
        return pd.Series(np.log(np.where(found > 0, found, np.nan)), given.index)

    def varies(column: str) -> bool:
        some = values(column)
        if some.dtype == object:
            return bool((some.groupby(of, dropna=False).nunique() > 1).any())
        by = some.groupby(of, dropna=False)
        return bool(((by.max() - by.min()) > np.log(EQUAL)).any())

    lengths = [c for tier in table.quantity("d") for c in tier]
    held = dict.fromkeys([*lengths, *table.named(names.BATCH), *table.named(names.PLANNED)])
    if mixed := [c for c in held if c not in used and varies(c)]:
        first = table.frame[mixed[0]].loc[counts.index[0]]
        shown = f'"{first}"' if isinstance(first, str) else first
        name = mixed[0] if str(mixed[0]).isidentifier() else f"`{mixed[0]}`"
        raise UserError(
            f"runs of one size differ in {listed(mixed)}, on which the best rate hangs: hold them, "
            f"as in --where '{name} == {shown}', or part the sweeps with --by {quoted(mixed[0])}"
        )
    others = [*table.named(names.SETTINGS), *table.named(names.SCHEDULE)]
    free = [c for c in others if c not in used and varies(c)]
    return [f"beware: runs of one size differ in {listed(free)}; the best rate may"] if free else []


def _members(column: pd.Series, name: str) -> np.ndarray:
    """Widths as numbers; "d512" is 512."""
    text = column.astype(str).str.extract(r"^\D{0,8}?(\d+(?:\.\d+)?)\D{0,8}$")[0]
    values = pd.to_numeric(text, errors="coerce").to_numpy(float)
    if np.isnan(values).any():
        first = column[np.isnan(values)].iloc[0]
        raise UserError(f"column {name!r} holds {first!r}, which is no width")
    return values.astype(int)


def _rate_columns(table: Table, given: str | None) -> list[str]:
    if given is not None:
        return [table.check("lr", given)]
    found = table.named(RATES)
    # "SP opt LR", "muP best learning rate": several columns of best rates
    found += [
        c for c, name in table.names.items()
        if (c not in found and {"lr"} & set(name.everything)) or "learning rate" in str(c).lower()
    ]  # fmt: skip
    found = list(dict.fromkeys(found))
    if not found:
        raise UserError(
            f"no column for learning rate: the table has {listed(table.frame.columns)}; name one "
            "with --lr"
        )
    return found


def _log2(column: pd.Series, name: str) -> np.ndarray:
    """Rates, or logarithms of base 2 or 10 where the name says so, as log2."""
    values = numbers(column, thousands=False).values
    plain = str(name).lower().replace("_", "").replace(" ", "")
    if plain.startswith("log2"):
        return values
    if plain.startswith(("log10", "lg")):
        log2: np.ndarray = values / np.log10(2)
        return log2
    usable = values[np.isfinite(values)]
    if len(usable) and not ((usable >= CONSTANT[0]) & (usable <= CONSTANT[1])).all():
        raise UserError(
            f"column {name!r} runs from {usable.min():.3g} to {usable.max():.3g}: no learning "
            "rates. Logarithms are read where the name begins with log2 or log10"
        )
    log2 = np.log2(values)
    return log2


def _best_rates(
    frame: pd.DataFrame, axis: str, sizes: np.ndarray, rates: list[str]
) -> pd.DataFrame:
    parts = []
    for column in rates:
        label = re.sub(r"(?i)\b(opt(imal)?|best|lr|learning rate)\b|_", " ", str(column)).strip()
        parts.append(
            pd.DataFrame(
                {
                    "parametrization": label or str(column), "shape": "", "axis": axis,
                    "shared": np.nan,
                    "member": sizes, "log2_lr": _log2(frame[column], column),
                }
            )
        )  # fmt: skip
    points = pd.concat(parts, ignore_index=True).dropna(subset="log2_lr")
    if points.empty or (points.groupby("parametrization")["member"].nunique() < 2).all():
        raise UserError("best rates of fewer than two sizes: whether they move cannot be told")
    return points


def _groups(table: Table, by: str | None, used: set[str]) -> np.ndarray:
    """What parts runs into sweeps: --by, else the columns that one law may not mix."""
    if by is not None:
        return table.frame[table.check("by", by)].astype(str).to_numpy()
    found = [c for c in mixes(table).values() if c not in used and table.frame[c].nunique() > 1]
    if not found:
        return np.full(len(table.frame), "all runs", dtype=object)
    return table.frame[found].astype(str).agg(", ".join, axis=1).to_numpy()


def _other_axis(table: Table, axis: str, used: str) -> np.ndarray:
    """The layers of sweeps over width, the width of those over depth."""
    other = "depth" if axis == "width" else "width"
    found = [c for c in table.named(AXES[other]) if c != used]
    if not found:
        return np.full(len(table.frame), np.nan)
    return numbers(table.frame[found[0]], thousands=True).values
