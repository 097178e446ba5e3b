"""Runs that one law may not silently mix: repeated data, grids of settings, other tokenizers.

Each gives a row another role than "ladder", which tables/ladder.py leaves out and counts, or a
line that begins with "beware".
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.analysis.tables.columns import (
    BATCH,
    LR,
    MIXES,
    SCHEDULE,
    SETTINGS,
    Table,
    listed,
)
from scaling.analysis.tables.units import numbers
from scaling.errors import UserError

FRESH = 1.01  # epochs up to here count as one: the last batch rarely ends with the data
SINGLE = 1e6  # a column of unique tokens with such numbers counts single ones
MOST_PASSES = 1e5
UNEVEN = 3  # times as many settings in one cell as in another: their lowest are of unlike luck
TOGETHER = 1.02  # amounts of training within this factor are one cell
MIXED = ("tokenizer", "vocab", "data_key", "context", "optimizer", "evaluated_on",
         "parametrization", "family")  # fmt: skip
_WHY = {
    "tokenizer": "losses per token of different tokenizers are not comparable",
    "vocab": "losses per token of different vocabularies are not comparable",
    "data_key": "losses on different data are not comparable",
    "context": "losses at different context lengths are not comparable",
    "optimizer": "other optimizers have other laws",
    "evaluated_on": "losses on different data are not comparable",
    "parametrization": "other parametrisations have other laws",
    "family": "other architectures have other laws",
}


def mixes(table: Table) -> dict[str, str]:
    """Output column -> column of the table, of what one law may not silently mix."""
    return {out: found[0] for out, names in MIXES.items() if (found := table.named(names))}


def mixture_notes(
    out: pd.DataFrame, columns: dict[str, str], counts: np.ndarray, by: str | None
) -> list[str]:
    """A warning for each such column that has several values among the rows that count."""
    notes = []
    for name in MIXED:
        column = columns.get(name)
        if column is None or column == by:
            continue
        values = out[name][counts].value_counts()
        if len(values) < 2 or (name == "family" and _of_sizes(out[counts], name)):
            continue
        shown = ", ".join(f"{v} ({n} rows)" for v, n in values.head(4).items())
        more = f" and {len(values) - 4} more" if len(values) > 4 else ""
        notes.append(
            f"beware: {len(values)} values of {column!r} in one law, {shown}{more}: {_WHY[name]}; "
            f"--by {quoted(column)} fits a law for each, --where picks one"
        )
    return notes


def _of_sizes(rows: pd.DataFrame, name: str) -> bool:
    """Whether each value belongs to one size alone: a name of the size, no family."""
    return (
        bool((rows.groupby(name)["params"].nunique() <= 1).all()) and rows["params"].nunique() > 1
    )


def quoted(column: str) -> str:
    return f"'{column}'" if " " in column else column


def repeated(table: Table, tokens: np.ndarray, scale: float) -> tuple[np.ndarray | None, list[str]]:
    """Passes of each row over its data, by a column of epochs or of unique tokens; None without.

    scale: of the column of tokens, for unique tokens whose name gives no unit of their own.
    """
    passes: list[np.ndarray] = []
    notes = []
    for column in table.passes()[:1]:
        read = numbers(table.frame[column], thousands=True).values
        passes.append(read)
        notes.append(f"epochs: column {column!r}")
    for column in table.unique()[:1]:
        name = table.names[column]
        cells = numbers(table.frame[column], thousands=True)
        raw = cells.values
        usable = raw[np.isfinite(raw) & (raw > 0)]
        single = len(usable) and float(np.median(usable)) >= SINGLE
        factor = name.factor if name.scaled else 1.0 if single else scale
        unique = np.where(cells.own, raw, raw * factor)
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(unique > 0, tokens / unique, np.nan)
        if np.isfinite(times).any() and float(np.nanmedian(times)) > MOST_PASSES:
            raise UserError(
                f"column {column!r} gives {float(np.nanmedian(times)):.3g} passes over the data in "
                "the middle row, which no run has: write its unit into its name, as in "
                f"{column + ' (B)'!r}"
            )
        passes.append(times)
        notes.append(f"unique tokens: column {column!r}")
    if not passes:
        return None, _trainers_epochs(table)
    if all(np.isnan(one).all() for one in passes):
        empty = [*table.passes()[:1], *table.unique()[:1]]
        return None, [
            f"beware: column {', '.join(map(repr, empty))} holds no positive number: how often "
            "runs went over their data is not known"
        ]
    stacked = np.stack([np.where(np.isnan(one), -np.inf, one) for one in passes])
    most = stacked.max(0)
    return np.where(np.isfinite(most), most, np.nan), notes


def _trainers_epochs(table: Table) -> list[str]:
    """A warning of epochs that are not known to be passes over the data."""
    for column in table.trainers_epochs()[:1]:
        most = np.nan_to_num(numbers(table.frame[column], thousands=True).values).max(initial=0)
        if most > FRESH:
            return [
                f"beware: column {column!r} goes up to {most:.3g}: if that counts passes over the "
                "data, and not what lies between two checkpoints, call it epochs: such runs are "
                "then left out"
            ]
    return []


def fresh(epochs: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Rows (of those that count) that saw their data more than once, and what is said of them."""
    again = counts & (epochs > FRESH)
    once = counts & ~again
    if not again.any():
        return np.zeros(len(epochs), bool), []
    most = float(np.nanmax(epochs[again]))
    if not once.any():
        return np.zeros(len(epochs), bool), [
            f"beware: every row went over its data more than once (up to {most:.3g} times): "
            "repeated data teach less than fresh ones (arXiv 2305.16264), and the law has that in "
            "it"
        ]
    return again, [
        f"repeated data: {int(again.sum())} rows went over their data more than once (up to "
        f"{most:.3g} times) and are left out; the law is of the {int(once.sum())} rows of fresh "
        "data (--form repeated has all in its law)"
    ]


def searched(table: Table) -> list[str]:
    """Columns of settings that runs of one size and length may be searched over."""
    found = []
    for names in (LR, BATCH, SCHEDULE, SETTINGS):
        found += [c for c in table.named(names) if c not in found]
    return found


def grid(
    out: pd.DataFrame, frame: pd.DataFrame, settings: list[str], counts: np.ndarray,
    apart: list[str],
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """Rows (of those that count) that are not the best of their cell of parameters and tokens.

    settings: columns of `frame`; apart: columns of `out` whose values have cells of their own.
    Runs that differ in their seed alone are one setting, and their mean decides.
    """
    worse = np.zeros(len(out), bool)
    numeric = out[["val_loss", "params", "tokens"]].to_numpy(float)
    usable = counts & np.isfinite(numeric).all(1)
    if not settings or usable.sum() < 2:
        return worse, []
    rows = np.flatnonzero(usable)
    part = out.iloc[rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        length = np.log(part["tokens"].to_numpy(float))
    cell = pd.DataFrame({"n": part["params"].to_numpy(float), "d": length})
    for column in apart:
        cell[column] = part[column].astype(str).to_numpy()
    keys = [str(c) for c in cell if c != "d"]
    cell = cell.sort_values([*keys, "d"], kind="stable")
    new = (cell[keys] != cell[keys].shift()).any(axis=1)
    new |= (cell["d"].diff().abs() > np.log(TOGETHER)).to_numpy()
    number = new.cumsum().sort_index().to_numpy()
    values = frame.iloc[rows][settings].astype(str)
    varying = [
        c for c in settings
        if int((values[c].groupby(number).nunique()).max()) > 1
    ]  # fmt: skip
    if not varying:
        return worse, []
    design = values[varying].assign(cell=number).groupby(["cell", *varying], sort=False).ngroup()
    loss = pd.Series(part["val_loss"].to_numpy(float))
    mean = loss.groupby(design.to_numpy()).transform("mean")
    best = mean.groupby(number).transform("min")
    chosen = pd.Series(design.to_numpy()).where(mean == best).groupby(number).transform("min")
    worse[rows] = design.to_numpy() != chosen.to_numpy()
    if not worse.any():
        return worse, []
    cells_searched = len(np.unique(number[worse[rows]]))
    tried = design.groupby(number).nunique()
    uneven = [
        f"beware: {tried.min()} to {tried.max()} settings were tried in a cell of one N and D: the "
        "best of many is lower by luck than the best of few, by up to two standard deviations of "
        "their noise, which no interval of the law has in it; --where can keep as many in each"
    ]
    return worse, [
        *(uneven if tried.max() >= UNEVEN * tried.min() else []),
        f"grid: {listed(varying, 4)} vary within {cells_searched} cells of one N and D; the best "
        f"of each cell counts, {int(worse.sum())} rows left out (the best of many is a little too "
        "low)",
    ]
