"""Whether parameters, tokens and compute are those of any training, and the units that follow from
6 N D; what no run has is asked about, not used."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.analysis.laws.references import UNITS, macs_per
from scaling.analysis.tables.columns import WORDS
from scaling.analysis.tables.quantities import FEWEST, TRAINING, Quantity, middle_of, says_total
from scaling.errors import UserError

PER_PARAMETER = (1e-3, 1e7)  # tokens per parameter of any run
PER_PARAMETER_ROW = (1e-5, 1e9)  # of a single one, beside a middle row that is possible
ONE_PASS = 1e14  # MACs that one forward pass may cost
MACS = (1e8, 1e32)  # of any run that is worth a law
COSTS = (0.5, 20.0)  # MACs per parameter and token where the unit is read from a name
COSTS_GIVEN = (0.3, 300.0)  # where the caller has named it
NAMED = 0.03  # how close to 6 N D a column of MACs may not come
HEAP = 0.1  # share of rows that makes a heap
UNLIKE = 1e3  # times the MACs per parameter and token of another row: embeddings do not do it
CLOSE = 0.2  # logarithm of cost over 6 N D up to which a unit of counts follows from it
COUNTED_IN = {"thousands": 1e3, "millions": 1e6, "billions": 1e9, "trillions": 1e12}


def check(
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
            raise UserError(
                f"column {compute.column!r} does not say whether it counts FLOPs or MACs{said}: "
                f"give compute_unit (--compute-unit), one of {', '.join(UNITS)}"
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


def check_rows(
    out: pd.DataFrame, rows: np.ndarray, chosen: dict[str, Quantity],
    scales: dict[str, str | None],
) -> None:  # fmt: skip
    """Raise UserError where single runs have what no run has while most have what is possible:
    then the rows are in several units.

    out: params, tokens and macs_total of the runs that count; rows: their numbers in the table.
    """
    with np.errstate(all="ignore"):
        pair = (out["tokens"] / out["params"]).to_numpy(float)
    checks = [
        (out["params"], FEWEST["n"], np.inf, "parameters", "n", scales.get("n") is None),
        (out["tokens"], FEWEST["d"], np.inf, "tokens", "d", "d" in chosen and not scales.get("d")),
        (out["macs_total"], *MACS, "MACs of compute", "c", True),
        (pair, *PER_PARAMETER_ROW, "tokens per parameter", "d", True),
    ]
    for values, low, high, what, role, checked in checks:
        values = np.asarray(values, float)
        known = np.isfinite(values) & (values > 0)
        off = known & ((values < low) | (values > high))
        if not checked or not off.any() or 2 * off.sum() > known.sum():
            continue
        row = int(np.argmax(off))
        column = f"column {chosen[role].column!r}" if role in chosen else "this table"
        raise UserError(
            f"row {rows[row] + 1} of {column} has {values[row]:.3g} {what}, and the middle row "
            f"{middle_of(values):.3g}: {int(off.sum())} rows are in another unit, or are no runs. "
            "Write all rows in one unit (or one into each cell, as in 1.95B), or leave these rows "
            "out with --where"
        )


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
        ratio: np.ndarray = c / (n * d)
    return ratio


def _check_count(quantity: Quantity, role: str, flag: str) -> None:
    """Counts below any model's are in millions or billions, unless the caller has said."""
    middle = middle_of(quantity.values)
    what = WORDS[role].split(" (")[0]
    if middle < FEWEST[role]:
        raise UserError(
            f"column {quantity.column!r} has {middle:.3g} {what} in the middle row: are they in "
            f"millions or billions? Give {flag} (--{flag.replace('_', '-')}), one of K, M, B, T "
            f"('' if they are single {what}), or another column with --{role}"
        )


def _check_pair(
    chosen: dict[str, Quantity], ratio: np.ndarray, scales: dict[str, str | None]
) -> None:
    middle = middle_of(ratio)
    explicit = scales.get("n") is not None or scales.get("d") is not None
    if not explicit and np.isfinite(middle) and not PER_PARAMETER[0] <= middle <= PER_PARAMETER[1]:
        raise UserError(
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
        raise UserError(
            f"compute is {middle:.3g} MACs per parameter and token, where training costs about 3: "
            "are tokens or parameters in millions or billions (tokens_in, params_in), do the "
            "parameters count others than those that cost (--n), or is the unit of compute another "
            f"one (compute_unit, one of {', '.join(UNITS)})?"
        )
    # Two heaps of rows at 6 N D and at 3 N D, or one far from the others.
    near = [np.abs(np.log(ratio / TRAINING / times)) < NAMED for times in (1, 2, 0.5)]
    heaps = sum(heap.mean() > HEAP for heap in near) > 1 and np.any(near, axis=0).mean() > 1 - HEAP
    if heaps or ratio.max() / ratio.min() > UNLIKE:
        raise UserError(
            f"MACs per parameter and token range from {ratio.min():.3g} to {ratio.max():.3g}: the "
            "rows mix units (FLOPs and MACs, or thousands and millions); convert them to one first"
        )


def _check_name(compute: Quantity, ratio: np.ndarray) -> None:
    """A column named MACs that holds 6 N D holds FLOPs, one named FLOPs that holds 3 N D MACs."""
    times = ratio[np.isfinite(ratio) & (ratio > 0)] / TRAINING
    if len(times) < 2:
        return
    for named, factor, held, of in (("MACs", 2.0, "FLOPs", "6"), ("FLOPs", 0.5, "MACs", "3")):
        if compute.unit == named and np.quantile(np.abs(times / factor - 1), 0.9) < NAMED:
            raise UserError(
                f"column {compute.column!r} says {named}, but holds {of} N D, which is training in "
                f"{held}: give compute_unit (--compute-unit), {held} (or {named}, if it is right)"
            )


def _check_alone(
    chosen: dict[str, Quantity], scales: dict[str, str | None], compute_unit: str | None
) -> None:
    """Compute with one of N and D, or alone: what it implies must be possible."""
    compute = chosen["c"]
    middle = middle_of(compute.values)
    if np.isfinite(middle) and not MACS[0] <= middle <= MACS[1] and compute_unit is None:
        raise UserError(
            f"column {compute.column!r} has {middle:.3g} MACs of compute in the middle row, which "
            "no training has: give compute_unit (--compute-unit PF-days?), or write its unit into "
            f"its name, as in {compute.column + ' (1e18 FLOPs)'!r}"
        )
    alone = "n" not in chosen and "d" not in chosen
    small = compute.factor != 1.0 and middle < ONE_PASS
    if alone and small and compute_unit is None and not says_total(compute):
        raise UserError(
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
            raise UserError(
                f"columns {compute.column!r} and {chosen[role].column!r} imply {ratio:.3g} tokens "
                "per parameter (compute / 6 N D FLOPs), which no training has: is one of them in "
                "other units (compute_unit, params_in, tokens_in; or the unit in the column's "
                f"name, as in {compute.column + ' (1e9 FLOPs)'!r}), or of one forward pass?"
            )
