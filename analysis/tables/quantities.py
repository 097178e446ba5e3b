"""Parameters, tokens, compute and loss of a table as floats in single counts, MACs and nats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from scaling.analysis.laws.references import macs_per
from scaling.analysis.tables.columns import (
    WORDS,
    Table,
    agree,
    budget_columns,
    listed,
    several,
)
from scaling.analysis.tables.units import SCALES, Cells, Name, numbers, parse_name
from scaling.errors import UserError

FEWEST = {"n": 1000.0, "d": 10_000.0}  # below any run's: the unit is asked for
SAMPLE = 100_000  # rows that a median is taken of
SPEED = 0.7  # decades that speeds of the machines of one table span at most
BASES = {"log10": 10.0, "ln": np.e, "log2": 2.0}
TRAINING = 3.0  # MACs per parameter and token of training: 6 N D FLOPs


@dataclass
class Quantity:
    """One column, read."""

    column: str
    values: np.ndarray  # single counts, MACs or nats
    factor: float = 1.0
    unit: str = ""
    cells: Cells | None = None
    notes: list[str] = field(default_factory=list)


def read_quantities(
    table: Table, given: dict[str, str | None], scales: dict[str, str | None],
    compute_unit: str | None,
) -> tuple[dict[str, Quantity], list[str]]:  # fmt: skip
    """Parameters, tokens and compute (those that there are), by role "n", "d", "c".

    given: columns by role, None where they are to be found. Raises UserError where several
    columns could be meant and nothing tells them apart. Compute may be without a unit, and counts
    in thousands of themselves: analysis/tables/plausible.py sees to that.
    """
    found: dict[str, list[Quantity]] = {}
    for role in ("n", "d", "c"):
        scale = scales.get(role)
        if given[role] is not None:
            column = table.check(role, str(given[role]))
            found[role] = [read_quantity(table, role, column, scale, compute_unit)]
            continue
        tiers = table.quantity(role)
        tiers[1] = [c for c in tiers[1] if _numeric(table.frame[c])]  # size: "small" is a name
        tier = next((t for t in tiers if t), [])
        if role == "n":  # of a mixture of experts, which costs those that are active
            tier = [*tier, *(c for c in tiers[3] if c not in tier and _active(table.names[c]))]
        read = [read_quantity(table, role, column, scale, compute_unit) for column in tier]
        found[role] = _alike(read)
    _drop_impossible(found, given)
    notes = [] if given["c"] is not None else _drop_speeds(found)
    chosen = _by_cost(found)
    if given["n"] is None and "n" in chosen:
        _tell_other_counts(table, chosen, scales.get("n"))
    return chosen, notes


def _tell_other_counts(table: Table, chosen: dict[str, Quantity], scale: str | None) -> None:
    """Note which other parameters the table counts, and whether training costs 6 N D with them."""
    n = chosen["n"]
    for column in table.quantity("n")[3]:
        if column == n.column or not _numeric(table.frame[column]):
            continue
        other = read_quantity(table, "n", column, scale, None)
        if agree(n.values, other.values):
            continue
        fit = ""
        if {"c", "d"} <= set(chosen) and chosen["c"].unit:
            off = [
                np.abs(np.log(middle_of(chosen["c"].values / q.values / chosen["d"].values / 3)))
                for q in (n, other)
            ]
            fit = ", with which training costs 6 N D" if off[1] < min(0.05, off[0]) else ""
        n.notes.append(f"not {column!r}{fit} (--n takes it)")


def _active(name: Name) -> bool:
    return bool({"active", "activated"} & set(name.words))


def _numeric(column: pd.Series) -> bool:
    return bool(np.isfinite(numbers(column, thousands=True).values).any())


def read_quantity(
    table: Table, role: str, column: str, scale: str | None, compute_unit: str | None
) -> Quantity:
    """One column as parameters, tokens or compute (role n, d or c); arguments as of `read`."""
    name = table.names.get(column) or Table(table.frame[[column]]).names.get(column)
    if name is None:
        raise UserError(f"column {column!r} is empty: there is no number in it")
    cells = numbers(table.frame[column], thousands=True)
    if not np.isfinite(cells.values).any():
        first = str(table.frame[column].dropna().iloc[0])
        raise UserError(f"column {column!r} holds no numbers (its first value is {first!r})")
    factor = name.factor
    if scale is not None:
        if scale.lower() not in SCALES:
            what = WORDS[role].split(" (")[0]
            raise UserError(f"{what} in {scale!r}: choose one of K, M, B, T")
        factor = SCALES[scale.lower()]
    with np.errstate(over="ignore", invalid="ignore"):
        values = cells.values
        if name.log in BASES:
            values = BASES[name.log] ** values
        elif name.log:
            raise UserError(
                f"column {column!r} seems to be a logarithm; of which base? Rename it log10_... or "
                "ln_..., or give a column of the plain numbers"
            )
        if factor != 1.0:
            values = np.where(cells.own, values, values * factor)
    quantity = Quantity(column, values, factor, name.unit or cells.unit or "", cells)
    if cells.own.any() and factor != 1.0:
        quantity.notes.append("cells with a unit of their own keep it")
    if name.log:
        quantity.notes.append(f"{name.log} undone")
    if role == "c":
        _to_macs(quantity, name, compute_unit)
    return quantity


def read_setting(table: Table, column: str) -> Cells:
    """A column of rates or batches as floats, the logarithm that its name gives undone."""
    cells = numbers(table.frame[column], thousands=True)
    name = table.names.get(column)
    if name is None or name.log not in BASES:
        return cells
    with np.errstate(over="ignore"):
        return replace(cells, values=BASES[name.log] ** cells.values)


def _to_macs(quantity: Quantity, name: Name, compute_unit: str | None) -> None:
    """Values in MACs where the unit is known; else `unit` stays empty, and 6 N D decides."""
    unit = compute_unit or (name.unit if name.unit in ("FLOPs", "MACs") else None)
    if unit is None and {"6nd", "c6nd"} & set(name.words):
        unit = "FLOPs"
    if unit is None and quantity.cells is not None:
        unit = quantity.cells.unit
    quantity.unit = unit or ""
    if unit:
        scale, prefixed = macs_in(unit)
        if compute_unit is not None and prefixed and name.unit:
            scale /= quantity.factor  # the name had said the same
        quantity.values = quantity.values * scale


def macs_in(unit: str) -> tuple[float, bool]:
    """MACs in one unit, "GFLOPs" and "1e18 FLOPs" among them, and whether it has a factor.

    Raises UserError for an unknown one.
    """
    try:
        return macs_per(unit), "day" in unit.lower()
    except ValueError:
        name = parse_name(f"compute ({unit})")
        if name.unit not in ("FLOPs", "MACs") or name.rate:
            raise
        return name.factor * macs_per(name.unit), name.scaled


def _alike(read: list[Quantity]) -> list[Quantity]:
    """One of each group of columns that hold the same numbers."""
    kept: list[Quantity] = []
    for one in read:
        twin = next((k for k in kept if agree(k.values, one.values) and _same_unit(k, one)), None)
        if twin is None:
            kept.append(one)
        else:
            twin.notes.append(f"the same as {one.column!r}")
    return kept


def _same_unit(a: Quantity, b: Quantity) -> bool:
    return bool(a.unit) == bool(b.unit)


def middle_of(values: np.ndarray) -> float:
    """The median of the usable values, of a million by a sample: it is for plausibility."""
    values = values[:: max(1, len(values) // SAMPLE)]
    usable = values[np.isfinite(values) & (values > 0)]
    return float(np.median(usable)) if len(usable) else float("nan")


def _drop_impossible(found: dict[str, list[Quantity]], given: dict[str, str | None]) -> None:
    """A letter alone whose values are no counts means something else: width `d`, layers `n`."""
    for role in ("n", "d"):
        if given[role] is None:
            found[role] = [
                q for q in found[role]
                if len(q.column.strip()) > 1
                or q.column.strip().isupper() or not middle_of(q.values) < FEWEST[role] * 2
                or not _whole(q.values)
            ]  # fmt: skip


def _drop_speeds(found: dict[str, list[Quantity]]) -> list[str]:
    """Compute of another kind than training's, a speed or one forward pass: while N D grows by
    orders of magnitude it hardly moves. Returns what is said of it."""
    notes: list[str] = []
    if len(found["n"]) != 1 or len(found["d"]) != 1:
        return notes
    with np.errstate(all="ignore"):
        nd = np.log10(found["n"][0].values * found["d"][0].values)
    for one in list(found["c"]):
        with np.errstate(all="ignore"):
            c = np.log10(one.values)
        both = np.isfinite(nd) & np.isfinite(c)
        if both.sum() < 3 or says_total(one) or np.ptp(nd[both]) < 1:
            continue
        if np.ptp(c[both]) < min(SPEED, np.ptp(nd[both]) / 3):
            found["c"].remove(one)
            notes.append(
                f"column {one.column!r} is not the compute of training: it varies by a factor "
                f"{10 ** np.ptp(c[both]):.3g} while N D does by {10 ** np.ptp(nd[both]):.3g}"
            )
    return notes


def _whole(values: np.ndarray) -> bool:
    """Whole numbers: of layers or of a width, where counts in billions have fractions."""
    usable = values[np.isfinite(values)]
    return bool(len(usable)) and bool((usable == np.round(usable)).all())


def _by_cost(found: dict[str, list[Quantity]]) -> dict[str, Quantity]:
    """One candidate for each role: the only one, or the one with which training costs 6 N D."""
    chosen: dict[str, Quantity] = {}
    several_of = {r: qs for r, qs in found.items() if len(qs) > 1}
    if not several_of:
        return {role: qs[0] for role, qs in found.items() if qs}
    fits = []
    if all(found[r] for r in ("n", "d", "c")):
        for n in found["n"]:
            for d in found["d"]:
                for c in found["c"]:
                    with np.errstate(all="ignore"):
                        ratio = c.values / (n.values * d.values) * (1 if c.unit else 0.5)
                    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
                    if len(ratio) and np.quantile(np.abs(np.log(ratio / TRAINING)), 0.75) < 0.2:
                        fits.append({"n": n, "d": d, "c": c})
    for role, options in found.items():
        if not options:
            continue
        fitting = list({id(f[role]): f[role] for f in fits}.values())
        if len(options) == 1:
            chosen[role] = options[0]
        elif len(fitting) == 1 and role != "c":
            chosen[role] = fitting[0]
            others = [q.column for q in options if q is not fitting[0]]
            chosen[role].notes.append(f"training costs 6 N D with it, not with {listed(others, 3)}")
        elif (total := [q for q in options if says_total(q)]) and len(total) == 1 and role == "c":
            chosen[role] = total[0]
            others = [q.column for q in options if q is not total[0]]
            chosen[role].notes.append(f"of all training, not {listed(others, 3)}")
        else:
            raise several(role, [q.column for q in options])
    return chosen


def says_total(quantity: Quantity) -> bool:
    words = quantity.column.lower().replace("_", " ").replace("/", " ").split()
    return bool({"total", "train", "training", "cumulative", "compute", "budget"} & set(words))


def nominal(table: Table, given: str | None) -> str | None:
    """The column of nominal budgets."""
    if given is not None:
        return table.check("budget", given)
    found = budget_columns(table)
    return found[0] if len(found) == 1 else None


def count_line(role: str, quantity: Quantity) -> str:
    """The column, unit and factor of parameters, tokens or compute (role n, d or c)."""
    times = f", x {quantity.factor:g}" if quantity.factor != 1.0 else ""
    unit = f" in {quantity.unit}" if role == "c" else ""
    return column_line(WORDS[role], quantity, times + unit)


def column_line(what: str, quantity: Quantity, unit: str) -> str:
    notes = "".join(f"; {one}" for one in quantity.notes)
    return f"{what}: column {str(quantity.column)!r}{unit}{notes}"
