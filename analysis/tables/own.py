"""Rows of this tool in a table: what they say of budgets, decay and roles stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from scaling.analysis.schema import COLUMNS
from scaling.analysis.tables import columns as names
from scaling.analysis.tables.columns import Table, listed
from scaling.analysis.tables.losses import read_loss
from scaling.analysis.tables.quantities import column_line, count_line, read_quantity
from scaling.errors import UserError


def refuse_told(
    frame: pd.DataFrame, budget_column: str | None, finished_if: str | None,
    history: bool | None, keep: Sequence[str],
) -> None:  # fmt: skip
    """Raise UserError where what the rows say is said otherwise, or a column to keep is missing."""
    if budget_column not in (None, "budget_macs"):
        raise UserError(
            f"--budget-column {budget_column!r}: these are rows of a study, whose budgets are "
            "in their column 'budget_macs'; leave it out"
        )
    asked = {"--finished-if": finished_if is not None, "--history": history is not None}
    for option, given in asked.items():
        if given:
            raise UserError(
                f"{option}: these are rows of a study, which say of each run whether it "
                "finished and where its rate had decayed; leave it out"
            )
    if absent := [one for one in keep if one not in frame.columns]:
        raise UserError(f"no column {absent[0]!r}; the table has {listed(frame.columns, 40)}")


def own_rows(
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
            notes.append(column_line(role, quality, ""))
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
        if kind in ("float", "int") and column in out:
            out[column] = pd.to_numeric(out[column], errors="coerce")
    return out, notes
