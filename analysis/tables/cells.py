"""Which rows of a study count.

A cell is one run at one budget; a design is what cells share that differ in their seed alone
(`seed_means`). `exclude` applies the rules (fixed beforehand, counted).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import usable
from scaling.errors import UserError


def _impossible(values: pd.Series) -> pd.Series:
    """Given, and not a usable number; a missing one is missing."""
    return values.notna() & ~usable(values, "compute")


# A row is left out by the first rule that names it, in this order.
RULES: tuple[tuple[str, Callable[[pd.DataFrame], pd.Series | np.ndarray]], ...] = (
    ("learning-rate sweep, not ladder", lambda r: r["role"] == "lr_sweep"),
    ("a copy of another row", lambda r: r["role"] == "repeat"),
    ("not the best setting of its size and tokens", lambda r: r["role"] == "tuning"),
    ("data seen more than once", lambda r: r["role"] == "repeated"),
    ("not of the ladder", lambda r: r["role"] != "ladder"),
    ("diverged", lambda r: r["status"] == "diverged"),
    ("did not finish", lambda r: r["status"] != "finished"),
    ("mid-schedule, learning rate not decayed", lambda r: r["decayed"] != True),  # noqa: E712
    ("no usable loss", lambda r: ~usable(r["val_loss"], "loss")),
    ("no usable compute", lambda r: ~usable(r["macs_total"], "compute")),
    (
        "impossible parameters or tokens",
        lambda r: _impossible(r["params"]) | _impossible(r["tokens"]),
    ),
)
# A law of one variable needs that variable alone, and no compute.
COST = "no usable compute"
ALONE = {
    "params": ("no usable parameters", lambda r: ~usable(r["params"], "compute")),
    "tokens": ("no usable tokens", lambda r: ~usable(r["tokens"], "compute")),
}
NO_BUDGET = ("no nominal budget", lambda r: ~usable(r["budget_macs"], "compute"))
NEEDED = (
    "run_id", "role", "status", "decayed", "budget_macs", "val_loss", "macs_total", "size",
    "params", "tokens",
)  # fmt: skip
# Two runs that agree in these columns (those that the table has) are one design.
DESIGN = (
    "size", "params", "tokens", "family", "parametrization", "d", "layers", "heads", "d_ff",
    "vocab", "context", "tokenizer", "data_key", "data_mix", "lr", "schedule", "warmup_steps",
    "batch_tokens", "weight_decay", "precision",
)  # fmt: skip
SIZES = ("params", "tokens")
WEIGHT = "relative_weight"  # of rows whose weights are known: in proportion to 1 / variance


def exclude(
    rows: pd.DataFrame, *, budgets: bool = True, of: str = "compute"
) -> tuple[pd.DataFrame, tuple[tuple[str, int], ...]]:
    """The rows that may enter a law, and every rule with the number of rows it left out.

    budgets: also leave out rows without a nominal budget (an envelope needs none). of: what the
    law is of; where that is "params" or "tokens", compute and the other one need not be there.
    """
    costs = ("budget_macs", "macs_total", "params", "tokens")
    unused = () if of == "compute" else tuple(c for c in costs if c != of)
    missing = [c for c in NEEDED if c not in rows.columns and c not in unused]
    if missing:
        raise UserError(
            f"the table has no column {', '.join(missing)}: give rows of a study, or read another "
            "table with scaling.analysis.tables.read"
        )
    rows = rows.copy()
    for column in (*costs, "val_loss"):
        given = rows[column] if column in rows.columns else pd.Series(np.nan, rows.index)
        rows[column] = pd.to_numeric(given, errors="coerce").astype(float)
    counts, kept = [], np.ones(len(rows), dtype=bool)
    rules = [ALONE.get(of, one) if one[0] == COST else one for one in RULES]
    for rule, names in (*rules, NO_BUDGET) if budgets else rules:
        left_out = kept & np.asarray(names(rows), dtype=bool)
        counts.append((rule, int(left_out.sum())))
        kept &= ~left_out
    return rows[kept], tuple(counts)


def cells(rows: pd.DataFrame, *, budgets: bool = True, of: str = "compute") -> pd.DataFrame:
    """The rows that may enter a law, one per run and cost; `design` numbers what they share.

    Only runs of different seeds are repeats of one design. Two of one seed, or without a column
    `seed`, may differ in what the table does not tell: each is a design of its own. of: as of
    `exclude`.
    """
    rows, _ = exclude(rows, budgets=budgets, of=of)
    cost = "budget_macs" if budgets else "macs_total"
    once = ["run_id", cost] if of == "compute" else ["run_id", cost, *SIZES]
    rows = rows.drop_duplicates(once, keep="last")
    # In an order of their own, so that sums of floats do not hang on that of the table.
    rows = rows.sort_values([cost, "run_id"], kind="stable").reset_index(drop=True)
    if "seed" not in rows.columns:
        return rows.assign(design=rows.index)
    key = [cost, *(c for c in DESIGN if c in rows.columns and rows[c].nunique(dropna=False) > 1)]
    design = rows.groupby(key, sort=False, dropna=False).ngroup()
    twice = rows.duplicated([*key, "seed"], keep=False).groupby(design).transform("any")
    return rows.assign(design=design.where(~twice, design.max() + 1 + rows.index))


def seed_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per design of `cells`: the mean loss of its `seeds` (how many), by their weights if
    they have some, whose sum is the design's; the other columns are those of the first run, by
    its id."""
    if table["design"].is_unique:
        return table.assign(seeds=1)
    by = table.sort_values("run_id", kind="stable").groupby("design", sort=False)
    means = by.head(1).set_index("design", drop=False)
    loss = by["val_loss"].mean()
    if WEIGHT in table:
        total = by[WEIGHT].sum()
        weighted = (table["val_loss"] * table[WEIGHT]).groupby(table["design"], sort=False).sum()
        loss, means[WEIGHT] = weighted / total, total
    return means.assign(val_loss=loss, seeds=by.size()).reset_index(drop=True)


def weighted(
    rows: pd.DataFrame, column: str | None, *, budgets: bool = False, of: str = "compute"
) -> pd.DataFrame:
    """The rows with a column's values as their weights, if one is named. Raises UserError as
    `positive`, of the rows that `exclude` leaves."""
    if column is None:
        return rows
    rows = rows.reset_index(drop=True)
    kept, _ = exclude(rows, budgets=budgets, of=of)
    what = "a weight (how many runs a row is the mean of, or 1 / its squared standard error)"
    values = pd.Series(positive(kept, column, what), index=kept.index)
    return rows.assign(**{WEIGHT: values.reindex(rows.index)})


def positive(rows: pd.DataFrame, column: str, what: str) -> np.ndarray:
    """A column of positive finite numbers, one for each of these rows, all of which count. Raises
    UserError, naming the first row without one, where it is none."""
    if column not in rows.columns:
        raise UserError(
            f"no column {column!r} for {what}; the table has "
            f"{', '.join(map(repr, rows.columns[:40]))}"
        )
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(values) & (values > 0))
    if rows[column].dtype == bool:
        bad[:] = True
    if bad.any():
        first = rows.astype(object).iloc[int(np.argmax(bad))]
        raise UserError(
            f"column {column!r} is {first[column]!r} for run {first['run_id']!r} ({bad.sum()} such "
            f"of {len(values)} rows that count): {what} is a positive number; give one for every "
            "run, or leave the column away"
        )
    return values


def refuse_floor(e: float | None, kept: pd.DataFrame) -> None:
    """Raise UserError where a pinned floor is not below the loss of every row that counts."""
    least = kept["val_loss"].min()
    if e is not None and len(kept) and not 0 <= e < least:
        raise UserError(
            f"E pinned at {e:g} is not in [0, {least:.5g}), the lowest loss of the rows that "
            "count: no run is below the floor; pin it lower, or leave it free"
        )


def of_points(points: pd.DataFrame) -> np.ndarray | None:
    """The weights of points, where they have some."""
    return points[WEIGHT].to_numpy(float) if WEIGHT in points else None
