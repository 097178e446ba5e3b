"""The ladder of a study: which rows count, found once, and what a law of them takes as given.

    ladder = Ladder.of(rows)                         # or of(rows, e=1.7, weights="runs")
    ladder.kept(), ladder.left_out()                 # the rows that count; what each rule left out
    ladder.cells(), ladder.designs()                 # one row a run and cost; means over seeds

A cell is one run at one budget; a design is what cells share that differ in their seed alone. The
rules are fixed beforehand and put to the rows once: all questions are asked of the ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import usable
from scaling.analysis.schema import WEIGHT
from scaling.errors import UserError

T = TypeVar("T")


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
NO_BUDGET = "no nominal budget"
COSTS = ("budget_macs", "macs_total", "params", "tokens")
NEEDED = (
    "run_id", "role", "status", "decayed", "budget_macs", "val_loss", "macs_total", "size",
    "params", "tokens",
)  # fmt: skip
# Two runs that agree in these columns (those that the table has) are one design.
DESIGN = (
    "size", "params", "tokens", "family", "parametrization", "d", "layers", "heads", "d_ff",
    "vocab", "context", "tokenizer", "data_key", "data_mix", "lr", "schedule", "warmup_steps",
    "batch_tokens", "weight_decay", "optimizer", "beta1", "beta2", "cooldown",
    "grad_clip", "precision",
)  # fmt: skip
SIZES = ("params", "tokens")
A_WEIGHT = "a weight (how many runs a row is the mean of, or 1 / its squared standard error)"
BIN, BINS, BIN_RUNS = 0.25, 12, 4  # decades, bins at most, runs of a bin at least

Excluded = tuple[tuple[str, int], ...]  # every rule with the rows it left out, zeros included


@dataclass(frozen=True, eq=False)
class Ladder:
    """Rows of a study or a table, and which of them count.

    Made by `of`. `where` and `replaced` give further ladders of these rows, to which the rules are
    not put again. Frames that are returned are kept: take them as they are, or copy them.
    """

    rows: pd.DataFrame  # all of them; costs and losses are floats
    rule: np.ndarray  # (rows,) number of the rule that leaves a row out; -1: it counts
    variable: str = "compute"  # what a law is of: compute, params or tokens
    e: float | None = None  # a floor E that is pinned
    weights: str | None = None  # column in proportion to 1 / variance of the losses
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, rows: pd.DataFrame | Ladder, *, variable: str = "compute", e: float | None = None,
        weights: str | None = None,
    ) -> Ladder:  # fmt: skip
        """The ladder of a study's rows, or of those of analysis.tables.read; a ladder as it is.

        variable: "params" or "tokens" for a law of that alone; compute and the other one need not
        be there. e: pins the floor E of every law (0: a pure law). weights: a column in proportion
        to 1 / variance of the rows' losses, such as how many runs each is the mean of.
        Raises UserError where a column is missing.
        """
        if isinstance(rows, Ladder):
            return rows
        found, rule = exclude(rows, variable)
        return cls(found, rule, variable, e, weights)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives; of one key it is made once."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def counts(self, *, budgets: bool = False) -> np.ndarray:
        """Which rows (rows,) count; budgets: and have a nominal budget."""
        counts: np.ndarray = self.rule < 0
        if budgets:
            counts = counts & usable(self.rows["budget_macs"], "compute")
        return counts

    def kept(self, *, budgets: bool = False) -> pd.DataFrame:
        """The rows that count, with their weights, if they have some, in the column WEIGHT.

        Raises UserError where one of them has no positive weight, or a loss at or below the pinned
        floor.
        """
        return self.once(("kept", budgets), lambda: self._kept(budgets))

    def _kept(self, budgets: bool) -> pd.DataFrame:
        kept = self.rows[self.counts(budgets=budgets)]
        if self.weights is not None:
            kept = kept.assign(**{WEIGHT: positive(kept, self.weights, A_WEIGHT)})
        refuse_floor(self.e, kept)
        return kept

    def left_out(self, *, budgets: bool = False) -> Excluded:
        """Every rule with the number of rows it left out."""
        names = [ALONE.get(self.variable, one)[0] if one[0] == COST else one[0] for one in RULES]
        numbers = np.bincount(self.rule[self.rule >= 0], minlength=len(names))
        counts = [(name, int(count)) for name, count in zip(names, numbers, strict=True)]
        if budgets:
            without = self.counts().sum() - self.counts(budgets=True).sum()
            counts.append((NO_BUDGET, int(without)))
        return tuple(counts)

    def cells(self, *, budgets: bool = False) -> pd.DataFrame:
        """The rows that count, one per run and cost; `design` numbers what they share.

        Only runs of different seeds are repeats of one design. Two of one seed, or without a column
        `seed`, may differ in what the table does not tell: each is a design of its own.
        """
        return self.once(
            ("cells", budgets),
            lambda: _cells(
                self.kept(budgets=budgets), "budget_macs" if budgets else "macs_total",
                self.variable,
            ),
        )  # fmt: skip

    def designs(self, *, budgets: bool = False) -> pd.DataFrame:
        """One row per design of `cells`: the mean loss of its `seeds` (how many), by their weights
        if they have some, whose sum is the design's; the other columns are those of the first run,
        by its id."""
        return self.once(("designs", budgets), lambda: seed_means(self.cells(budgets=budgets)))

    def where(self, keep: pd.Series | np.ndarray) -> Ladder:
        """The ladder of some of the rows; keep: (rows,) which."""
        keep = np.asarray(keep, dtype=bool)
        return self._with(self.rows[keep].reset_index(drop=True), self.rule[keep])

    def replaced(self, **columns: Any) -> Ladder:
        """The ladder of rows with other costs or losses, which are as usable as those before."""
        return self._with(self.rows.assign(**columns), self.rule)

    def joined(self, more: pd.DataFrame) -> Ladder:
        """The ladder with further rows, all of which count."""
        rows = pd.concat([self.rows, more.reindex(columns=self.rows.columns)], ignore_index=True)
        return self._with(rows, np.concatenate([self.rule, np.full(len(more), -1)]))

    def _with(self, rows: pd.DataFrame, rule: np.ndarray) -> Ladder:
        return replace(self, rows=rows, rule=rule)

    def binned(self) -> Ladder:
        """The ladder with bins of compute in place of nominal budgets: for a cloud of runs, of
        which no two need have the same compute.

        At most BINS bins, of equal width in log compute and of BIN decades or more; a bin of fewer
        than BIN_RUNS runs is no budget. `BestLoss` moves every run to its bin's mean compute.
        """
        return self.once("binned", self._binned)

    def _binned(self) -> Ladder:
        kept = self.kept()
        if kept.empty:
            return self.replaced(budget_macs=np.nan)
        decades = np.log10(kept["macs_total"].to_numpy(float))
        reach = max(float(np.ptp(decades)), 1e-9)
        count = int(np.clip(reach / BIN, 1, BINS))
        number = np.minimum(((decades - decades.min()) / reach * count).astype(int), count - 1)
        number = pd.Series(number, index=kept.index)
        mean = np.log(kept["macs_total"]).groupby(number).transform("mean")
        many = number.groupby(number).transform("size") >= BIN_RUNS
        return self.replaced(budget_macs=np.exp(mean.where(many)).reindex(self.rows.index))


def exclude(rows: pd.DataFrame, variable: str = "compute") -> tuple[pd.DataFrame, np.ndarray]:
    """The rows with numbers for their costs and losses, and of each (rows,) the number of the rule
    that leaves it out, -1 where none does."""
    unused = () if variable == "compute" else tuple(c for c in COSTS if c != variable)
    missing = [c for c in NEEDED if c not in rows.columns and c not in unused]
    if missing:
        raise UserError(
            f"the table has no column {', '.join(missing)}: give rows of a study, or read another "
            "table with scaling.analysis.tables.read"
        )
    rows = rows.reset_index(drop=True)
    for column in (*COSTS, "val_loss"):
        given = rows[column] if column in rows.columns else pd.Series(np.nan, rows.index)
        rows[column] = pd.to_numeric(given, errors="coerce").astype(float)
    rule = np.full(len(rows), -1)
    for number, (name, names) in enumerate(RULES):
        test = ALONE[variable][1] if name == COST and variable in ALONE else names
        rule[(rule < 0) & np.asarray(test(rows), dtype=bool)] = number
    return rows, rule


def _cells(rows: pd.DataFrame, cost: str, variable: str) -> pd.DataFrame:
    """cost: the column that tells points of one run apart."""
    once = ["run_id", cost] if variable == "compute" else ["run_id", cost, *SIZES]
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
    """The designs of cells, as `Ladder.designs`."""
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
