"""Nominal budgets: costs that several sizes share."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.errors import UserError

SAME_BUDGET = 1.02  # costs within this factor of their neighbour are one budget
WIDEST = 2.0  # costs of one nominal budget differ by less than this factor
BUDGET_SIZES = 3  # sizes that share a cost make it a nominal budget: two may be chance


def mark_budgets(
    out: pd.DataFrame, frame: pd.DataFrame, column: str | None, asked: bool
) -> list[str]:
    """Nominal budgets of the rows that count: a column's values, or costs that lie together."""
    counts = (out["role"] == "ladder").to_numpy()
    macs, params = out["macs_total"].to_numpy(float), out["params"].to_numpy(float)
    out["budget_macs"] = np.nan
    notes: list[str] = []
    if column is not None:
        label = frame[column].astype(str).where(frame[column].notna())
        usable = pd.Series(np.where(np.isfinite(macs) & (macs > 0), macs, np.nan))
        by = usable.where(counts).apply(np.log).groupby(label)
        wide = float(np.exp((by.transform("max") - by.transform("min")).max()))
        rows = counts & usable.notna().to_numpy()
        alone = int((by.transform("count")[rows] == 1).sum())
        apart = f"costs within one of its values differ by a factor {wide:.3g}"
        if 2 * alone > rows.sum():
            said = (
                f"column {column!r} tells no budgets: {alone} of {rows.sum()} rows share its value "
                "with no other"
            )
            if asked:
                raise UserError(
                    f"{said}; name the column that is equal for the runs of one budget, or the "
                    "factor of compute within one (--within)"
                )
            notes.append(said)
        elif wide <= WIDEST or asked:
            out["budget_macs"] = np.exp(by.transform("mean")).to_numpy()
            count = int(out["budget_macs"].nunique())
            told = f"; {apart}" if wide > WIDEST else ""
            return [f"nominal budgets: column {column!r}, {count} of them{told}"]
        else:
            notes.append(
                f"column {column!r} gives no budgets: {apart} (--budget-column takes it as it is)"
            )
    out.loc[counts, "budget_macs"] = budgets(macs[counts], params[counts])
    count = int(out["budget_macs"].nunique())
    said = f"{count} nominal budgets" if count else "no nominal budgets"
    return [*notes, said]


def part_namesakes(out: pd.DataFrame) -> None:
    """Number rows that share a name and a budget: of one run there is one row a budget."""
    counts = ((out["role"] == "ladder") & out["budget_macs"].notna()).to_numpy()
    key = ["run_id", "budget_macs", *(["by"] if "by" in out else [])]
    number = out[counts].groupby(key).cumcount().to_numpy()
    for row, k in zip(np.flatnonzero(counts)[number > 0], number[number > 0], strict=True):
        out.loc[row, "run_id"] = f"{out.loc[row, 'run_id']} /{k + 1}"


def budgets(macs: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Nominal budget of each row: costs that lie together, shared by several sizes; else NaN.

    Where no size is known (params all NaN), each row counts as one. When most rows share their
    cost with no other size the costs are a cloud, and the few groups in it are chance: then no row
    has a budget. Two sizes are enough where all rows have another at the same cost.
    """
    out = np.full(len(macs), np.nan)
    if np.isnan(params).all():
        params = np.arange(len(macs), dtype=float)
    usable = np.flatnonzero(np.isfinite(macs) & (macs > 0) & np.isfinite(params))
    if not len(usable):
        return out
    order = usable[np.argsort(macs[usable], kind="stable")]
    group = np.cumsum(np.diff(np.log(macs[order]), prepend=-np.inf) > np.log(SAME_BUDGET))
    frame = pd.DataFrame({"group": group, "macs": np.log(macs[order]), "n": params[order]})
    by = frame.groupby("group")
    narrow = by["macs"].transform("max") - by["macs"].transform("min") < 2 * np.log(SAME_BUDGET)
    sizes = by["n"].transform("nunique")
    all_pairs = bool(((sizes >= 2) & narrow).all())
    shared = ((sizes >= (2 if all_pairs else BUDGET_SIZES)) & narrow).to_numpy()
    if shared.mean() < 0.5:
        return out
    out[order[shared]] = np.exp(by["macs"].transform("mean")).to_numpy()[shared]
    return out
