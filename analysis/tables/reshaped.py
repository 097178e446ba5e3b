"""Tables whose rows are no runs and no evaluations: curves in cells, a row for each number, runs
side by side. Each becomes a row a run or a row an evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.tables.columns import Table, listed, loss_candidates, loss_kind
from scaling.analysis.tables.units import numbers, parse_name
from scaling.errors import UserError

KEYS = {
    "key",
    "metric",
    "metricname",
    "metrickey",
    "metricskey",
    "variable",
    "measure",
    "tag",
    "quantity",
}
VALUES = {"value", "metricvalue", "lastvalue", "scalar"}
MOST_KEYS = 300  # names of numbers; more are no such table
MOST_ROWS = 100  # quantities that stand below each other in a table of runs side by side


def reshaped(frame: pd.DataFrame, given: Collection[str | None]) -> tuple[pd.DataFrame, list[str]]:
    """A row a run or a row an evaluation, and what is said of it; a table that has the columns
    `given` already is left as it is."""
    if not any(column in frame.columns for column in given if column is not None):
        for shape in (unmelted, turned):
            if (found := shape(frame)) is not None:
                return found
    return frame, []


def names_quantities(cells: pd.Series) -> bool:
    """Whether a column's cells are names of quantities, a loss among them."""
    return not pd.api.types.is_numeric_dtype(cells.dtype) and any(map(_is_loss, cells.unique()))


# --- curves in cells ------------------------------------------------------------------------------


def without_lists(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with a row for each point of the curves that its cells hold, and what is said of
    it. Other lists become text: they are no numbers."""
    columns = [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c].dtype)]
    held = {c: [_list(cell) for cell in frame[c]] for c in columns if _any_list(frame[c])}
    curves = {
        c: [cell for cell in cells if cell is not None]
        for c, cells in held.items() if not any(cell is None for cell in cells)
    }  # fmt: skip
    of_loss = [c for c, cells in curves.items() if _holds_loss(c, cells)]
    notes: list[str] = []
    if len(of_loss) == 1 and len(frame):
        lengths = [len(cell) for cell in curves[of_loss[0]]]
        same = [c for c, cells in curves.items() if [len(cell) for cell in cells] == lengths]
        if len(same) > 1 or isinstance(next(iter(curves[of_loss[0]][0]), None), dict):
            frame = _exploded(frame, {c: curves[c] for c in same}, lengths)
            frame.attrs["curves"] = True
            notes = [f"curves in cells of {listed(same, 4)}: a row for each of their points"]
    for column in [c for c in frame.columns if frame[c].dtype == object]:
        if "mixed" not in pd.api.types.infer_dtype(frame[column]):
            continue
        listlike = frame[column].map(lambda cell: isinstance(cell, list | tuple | set | np.ndarray))
        if listlike.any():
            frame[column] = frame[column].where(~listlike, frame[column].astype(str))
    return frame, notes


def _any_list(cells: pd.Series) -> bool:
    first = next((cell for cell in cells if cell is not None), None)
    return isinstance(first, list | tuple | np.ndarray) or (
        isinstance(first, str) and first.startswith("[")
    )


def _list(cell: Any) -> list[Any] | None:
    if isinstance(cell, list | tuple | np.ndarray):
        return list(cell)
    if not isinstance(cell, str) or not cell.startswith("["):
        return None
    try:  # np.float64(3.1) is how NumPy 2 prints a number in a list
        found = json.loads(re.sub(r"np\.\w+\(([^()]*)\)", r"\1", cell).replace("nan", "NaN"))
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, list) else None


def _holds_loss(column: str, cells: list[Any]) -> bool:
    if all(isinstance(point, dict) for cell in cells for point in cell) and any(cells):
        points = next(cell for cell in cells if cell)
        return any(_is_loss(name) for name in pd.json_normalize(points).columns)
    return _is_loss(column)


def _is_loss(name: object) -> bool:
    return loss_kind(parse_name(name)) in ("nats", "perplexity", "bits")


def _exploded(
    frame: pd.DataFrame, curves: dict[str, list[list[Any]]], lengths: list[int]
) -> pd.DataFrame:
    row = np.repeat(np.arange(len(frame)), lengths)
    parts = [frame.drop(columns=list(curves)).iloc[row].reset_index(drop=True)]
    for column, cells in curves.items():
        points = [point for cell in cells for point in cell]
        if points and all(isinstance(point, dict) for point in points):
            parts.append(pd.json_normalize(points))
        else:
            parts.append(pd.DataFrame({column: pd.Series(points).infer_objects()}))
    out = pd.concat(parts, axis=1)
    if Table(out).run()[0] is None:
        out["run"] = [f"row {i + 1}" for i in row]
    return out


# --- a row for each number ------------------------------------------------------------------------


def unmelted(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]] | None:
    """A table with names in one column and their values in another, as trackers keep metrics, with
    a column for each name; None for another layout.

    Raises UserError where a name stands twice in rows that are otherwise alike.
    """
    table = Table(frame)
    plain = {c: re.sub(r"[^a-z]", "", str(c).lower()) for c in table.names}
    keys = [
        c for c in plain
        if plain[c] in KEYS and not pd.api.types.is_numeric_dtype(frame[c].dtype)
    ]  # fmt: skip
    values = [c for c in plain if plain[c] in VALUES]
    if not keys or len(values) != 1 or any(loss_candidates(table).values()):
        return None
    key, value = keys[0], values[0]
    kinds = frame[key].dropna().unique()
    if not any(_is_loss(kind) for kind in kinds) or len(kinds) > MOST_KEYS:
        return None
    others = [c for c in frame.columns if c not in (key, value)]
    if not others:
        return None
    row = frame.groupby(others, sort=False, dropna=False).ngroup()
    if pd.DataFrame({"row": row, "key": frame[key]}).duplicated().any():
        raise UserError(
            f"column {key!r} names some of the values in {value!r} twice in rows that are "
            f"otherwise alike ({listed(others, 4)}): add a column of the run, or of its step"
        )
    wide = frame.assign(row=row).pivot(index="row", columns=key, values=value)
    wide = wide.rename(columns=str).rename_axis(columns=None)
    kept = frame[others].groupby(row, sort=False).first()
    out = pd.concat([kept, wide], axis=1).reset_index(drop=True)
    run = Table(kept).run()[0]
    if run is not None:  # what is told once of a run holds for all of its rows
        by = out.groupby(run, sort=False)
        once = [str(c) for c in wide if not _is_loss(c) and int(by[str(c)].count().max()) == 1]
        out[once] = by[once].transform("first")
        out = out[out[wide.columns.difference(once)].notna().any(axis=1)].reset_index(drop=True)
    return out, [f"layout: names in {key!r}, their values in {value!r}: a column for each name"]


# --- runs side by side ----------------------------------------------------------------------------


def turned(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]] | None:
    """A table with a column a run and a row a quantity, the other way round; None for another."""
    if not 2 <= len(frame) <= MOST_ROWS or len(frame.columns) < 3:
        return None
    first = frame.columns[0]
    names = frame[first]
    if pd.api.types.is_numeric_dtype(names.dtype) or names.isna().any() or names.duplicated().any():
        return None
    if any(loss_candidates(Table(frame)).values()):
        return None
    out = frame.set_index(first).T.rename_axis(columns=None).rename(columns=str)
    run = next((n for n in ("run", "model") if n not in out.columns), "column")
    out = out.reset_index(names=run)
    table = Table(out)
    found = {c for columns in loss_candidates(table).values() for c in columns}
    counts = [c for role in ("n", "d", "c") for tier in table.quantity(role) for c in tier]
    readable = [
        c for c in (*found, *counts) if np.isfinite(numbers(out[c], thousands=True).values).any()
    ]
    if not found & set(readable) or not set(counts) & set(readable):
        return None
    for column in out.columns:
        numeric = pd.to_numeric(out[column], errors="coerce")
        if bool((numeric.notna() | out[column].isna()).all()):
            out[column] = numeric
    return out, [f"layout: runs side by side, quantities in {first!r}: turned"]
