"""Parameters, tokens, compute and loss of a table as floats in single counts, MACs and nats."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.references import UNITS, macs_per
from analysis.tables.columns import (
    WORDS,
    Table,
    agree,
    budget_columns,
    listed,
    several,
)
from analysis.tables.units import SCALES, Cells, Name, numbers, parse_name

FEWEST = {"n": 1000.0, "d": 10_000.0}  # below any run's: the unit is asked for
PER_PARAMETER = (1e-3, 1e7)  # tokens per parameter of any run
SAMPLE = 100_000  # rows that a median is taken of
SPEED = 0.7  # decades that speeds of the machines of one table span at most
ONE_PASS = 1e14  # MACs that one forward pass may cost
MACS = (1e8, 1e32)  # of any run that is worth a law
COSTS = (0.5, 20.0)  # MACs per parameter and token where the unit is read from a name
COSTS_GIVEN = (0.3, 300.0)  # where the caller has named it
NAMED = 0.03  # how close to 6 N D a column of MACs may not come
CLOSE = 0.2  # logarithm of cost over 6 N D up to which a unit of counts follows from it
COUNTED_IN = {"thousands": 1e3, "millions": 1e6, "billions": 1e9, "trillions": 1e12}
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

    given: columns by role, None where they are to be found. Raises ValueError where several
    columns could be meant and nothing tells them apart, and for implausible units.
    """
    found: dict[str, list[Quantity]] = {}
    for role in ("n", "d", "c"):
        scale = scales.get(role)
        if given[role] is not None:
            column = table.check(role, str(given[role]))
            found[role] = [_read(table, role, column, scale, compute_unit)]
            continue
        tiers = table.quantity(role)
        tiers[1] = [c for c in tiers[1] if _numeric(table.frame[c])]  # size: "small" is a name
        tier = next((t for t in tiers if t), [])
        read = [_read(table, role, column, scale, compute_unit) for column in tier]
        found[role] = _alike(read)
    _drop_impossible(found, given)
    notes = [] if given["c"] is not None else _drop_speeds(found)
    chosen = _by_cost(found)
    _checked(chosen, scales, compute_unit)
    return chosen, notes


def _numeric(column: pd.Series) -> bool:
    return bool(np.isfinite(numbers(column, thousands=True).values).any())


def _read(
    table: Table, role: str, column: str, scale: str | None, compute_unit: str | None
) -> Quantity:
    name = table.names.get(column) or Table(table.frame[[column]]).names.get(column)
    if name is None:
        raise ValueError(f"column {column!r} is empty: there is no number in it")
    cells = numbers(table.frame[column], thousands=True)
    if not np.isfinite(cells.values).any():
        first = str(table.frame[column].dropna().iloc[0])
        raise ValueError(f"column {column!r} holds no numbers (its first value is {first!r})")
    factor = name.factor
    if scale is not None:
        if scale.lower() not in SCALES:
            what = WORDS[role].split(" (")[0]
            raise ValueError(f"{what} in {scale!r}: choose one of K, M, B, T")
        factor = SCALES[scale.lower()]
    with np.errstate(over="ignore", invalid="ignore"):
        values = cells.values
        if name.log in ("log10", "ln", "log2"):
            values = {"log10": 10.0, "ln": np.e, "log2": 2.0}[name.log] ** values
        elif name.log:
            raise ValueError(
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

    Raises ValueError for an unknown one.
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
        if both.sum() < 3 or _says_total(one) or np.ptp(nd[both]) < 1:
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
        elif (total := [q for q in options if _says_total(q)]) and len(total) == 1 and role == "c":
            chosen[role] = total[0]
            others = [q.column for q in options if q is not total[0]]
            chosen[role].notes.append(f"of all training, not {listed(others, 3)}")
        else:
            raise several(role, [q.column for q in options])
    return chosen


def _says_total(quantity: Quantity) -> bool:
    words = quantity.column.lower().replace("_", " ").replace("/", " ").split()
    return bool({"total", "train", "training", "cumulative", "compute", "budget"} & set(words))


# --- plausibility -----------------------------------------------------------------------------


def _checked(
    chosen: dict[str, Quantity], scales: dict[str, str | None], compute_unit: str | None
) -> None:
    """Raise where the numbers are those of no run; set the units of compute or counts by 6 N D."""
    _scale_by_cost(chosen, scales)
    for role, flag in (("n", "params_in"), ("d", "tokens_in")):
        if role in chosen and scales.get(role) is None:
            _check_count(chosen[role], role, flag)
    n, d, c = (chosen[r].values if r in chosen else None for r in ("n", "d", "c"))
    if c is None:
        if n is not None and d is not None:
            _check_pair(chosen, d / np.where(n > 0, n, np.nan), scales)
        return
    compute = chosen["c"]
    ratio = None if n is None or d is None else _ratio(c, n, d)
    if not compute.unit:
        middle = float("nan") if ratio is None else middle_of(ratio)
        if 4.5 <= middle < 9:
            compute.unit = "FLOPs"
        elif 2 <= middle < 4.5:
            compute.unit = "MACs"
        else:
            said = "" if ratio is None else f" ({middle:.3g} per parameter and token)"
            raise ValueError(
                f"column {compute.column!r} does not say whether it counts FLOPs or MACs{said}: "
                f"give compute_unit, one of {', '.join(UNITS)}"
            )
        compute.values = c = c * macs_per(compute.unit)
        compute.notes.append("unit by 6 N D")
        ratio = _ratio(c, n, d) if n is not None and d is not None else None
    if ratio is not None:
        _check_ratio(ratio, compute_unit is not None)
        if compute_unit is None:
            _check_name(compute, ratio)
    else:
        _check_alone(chosen, scales, compute_unit)


def _scale_by_cost(chosen: dict[str, Quantity], scales: dict[str, str | None]) -> None:
    """Counts too small to be single ones, in the thousands, millions or billions with which
    training costs 6 N D, where one such reading alone is possible."""
    if not {"n", "d", "c"} <= set(chosen):
        return
    n, d, c = (chosen[role] for role in ("n", "d", "c"))
    small = {
        role: scales.get(role) is None and middle_of(chosen[role].values) < FEWEST[role]
        for role in ("n", "d")
    }
    if not any(small.values()):
        return
    options = {role: COUNTED_IN if is_small else {"": 1.0} for role, is_small in small.items()}
    ratio = _ratio(c.values, n.values, d.values) / TRAINING
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    middle = middle_of(d.values / np.where(n.values > 0, n.values, np.nan))

    def agrees(times: float) -> bool:  # in MACs; without a unit, in MACs or FLOPs
        off = [np.log(ratio / times / of) for of in ((1.0,) if c.unit else (1.0, 2.0))]
        return any(np.quantile(np.abs(one), 0.9) < CLOSE for one in off)

    possible = [
        (of_n, of_d)
        for of_n, times_n in options["n"].items()
        for of_d, times_d in options["d"].items()
        if len(ratio) > 1 and agrees(times_n * times_d)
        and PER_PARAMETER[0] <= middle * times_d / times_n <= PER_PARAMETER[1]
    ]  # fmt: skip
    if len(possible) != 1:
        return
    for quantity, word in zip((n, d), possible[0], strict=True):
        if word:
            quantity.factor = COUNTED_IN[word]
            quantity.values = quantity.values * quantity.factor
            quantity.notes.append(f"in {word}: training costs 6 N D so")


def _ratio(c: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return c / (n * d)


def _check_count(quantity: Quantity, role: str, flag: str) -> None:
    """Counts below any model's are in millions or billions, unless the caller has said."""
    middle = middle_of(quantity.values)
    what = WORDS[role].split(" (")[0]
    if middle < FEWEST[role]:
        raise ValueError(
            f"column {quantity.column!r} has {middle:.3g} {what} in the middle row: are they in "
            f"millions or billions? Give {flag}, one of K, M, B, T ('' if they are single "
            f"{what}), or another column with --{role}"
        )


def _check_pair(
    chosen: dict[str, Quantity], ratio: np.ndarray, scales: dict[str, str | None]
) -> None:
    middle = middle_of(ratio)
    explicit = scales.get("n") is not None or scales.get("d") is not None
    if not explicit and np.isfinite(middle) and not PER_PARAMETER[0] <= middle <= PER_PARAMETER[1]:
        raise ValueError(
            f"{middle:.3g} tokens per parameter in the middle row, which no training has: are "
            f"columns {chosen['n'].column!r} and {chosen['d'].column!r} in the units that they "
            "seem? Say with params_in and tokens_in, one of K, M, B, T ('' for single ones)"
        )


def _check_ratio(ratio: np.ndarray, given: bool) -> None:
    """MACs per parameter and token are near 3; far from it the units are not what they seem."""
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(ratio):
        return
    middle = float(np.median(ratio))
    low, high = COSTS_GIVEN if given else COSTS
    if not low <= middle <= high and len(ratio) > 1:
        raise ValueError(
            f"compute is {middle:.3g} MACs per parameter and token, where training costs about 3: "
            "are tokens or parameters in millions or billions (tokens_in, params_in), do the "
            "parameters count others than those that cost (--n), or is the unit of compute another "
            f"one (compute_unit, one of {', '.join(UNITS)})?"
        )
    if ratio.max() / ratio.min() > 1e4:
        raise ValueError(
            f"MACs per parameter and token range from {ratio.min():.3g} to {ratio.max():.3g}: the "
            "rows mix units; convert them to one first"
        )


def _check_name(compute: Quantity, ratio: np.ndarray) -> None:
    """A column named MACs that holds 6 N D holds FLOPs, one named FLOPs that holds 3 N D MACs."""
    times = ratio[np.isfinite(ratio) & (ratio > 0)] / TRAINING
    if len(times) < 2:
        return
    for named, factor, held, of in (("MACs", 2.0, "FLOPs", "6"), ("FLOPs", 0.5, "MACs", "3")):
        if compute.unit == named and np.quantile(np.abs(times / factor - 1), 0.9) < NAMED:
            raise ValueError(
                f"column {compute.column!r} says {named}, but holds {of} N D, which is training in "
                f"{held}: give compute_unit, {held} (or {named}, if it is right)"
            )


def _check_alone(
    chosen: dict[str, Quantity], scales: dict[str, str | None], compute_unit: str | None
) -> None:
    """Compute with one of N and D, or alone: what it implies must be possible."""
    compute = chosen["c"]
    middle = middle_of(compute.values)
    if np.isfinite(middle) and not MACS[0] <= middle <= MACS[1] and compute_unit is None:
        raise ValueError(
            f"column {compute.column!r} has {middle:.3g} MACs of compute in the middle row, which "
            "no training has: give compute_unit (PF-days?), or write its unit into its name, as "
            f"in {compute.column + ' (1e18 FLOPs)'!r}"
        )
    alone = "n" not in chosen and "d" not in chosen
    small = compute.factor != 1.0 and middle < ONE_PASS
    if alone and small and compute_unit is None and not _says_total(compute):
        raise ValueError(
            f"column {compute.column!r} has {middle:.3g} MACs in the middle row: of all training, "
            "or of one forward pass? Write total or train into its name, or say compute_unit"
        )
    for role, other in (("n", "d"), ("d", "n")):
        if role not in chosen or other in chosen or scales.get(role) is not None:
            continue
        implied = compute.values / (
            TRAINING * np.where(chosen[role].values > 0, chosen[role].values, np.nan)
        )
        pair = implied / chosen[role].values if role == "n" else chosen[role].values / implied
        ratio = middle_of(pair)
        if np.isfinite(ratio) and not PER_PARAMETER[0] <= ratio <= PER_PARAMETER[1]:
            raise ValueError(
                f"columns {compute.column!r} and {chosen[role].column!r} imply {ratio:.3g} tokens "
                "per parameter (compute / 6 N D FLOPs), which no training has: is one of them in "
                "other units (compute_unit, params_in, tokens_in; or the unit in the column's "
                f"name, as in {compute.column + ' (1e9 FLOPs)'!r}), or of one forward pass?"
            )


def nominal(table: Table, given: str | None) -> str | None:
    """The column of nominal budgets."""
    if given is not None:
        return table.check("budget", given)
    found = budget_columns(table)
    return found[0] if len(found) == 1 else None
