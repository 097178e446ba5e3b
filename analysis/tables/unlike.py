"""Rows that are no runs of one law, told apart by a column whose meaning is not known: domains,
splits, unnamed settings, points of a fitted curve. Which of them count is asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from scaling.analysis.tables.columns import VALIDATION, Table, listed
from scaling.analysis.tables.settings import TOGETHER, quoted
from scaling.errors import UserError

MOST_KINDS = 50  # values of a column that tells rows apart
SURE = 8  # cells of one N and D in which the losses of two values differ in the same sense
FEWER = 4  # so many are enough where the difference is FAR times its standard error
FAR = 8.0
MOST_TERMS = 6  # of a quadratic in two variables
MOST_TOLD = 8  # values of a column that is tested against it
UNLIKELY = 1e-6  # of as large a share by chance
COUNT = 1e5  # numbers of this size may be in proportion to tokens or parameters
NO_RUNS = {
    "fit", "fits", "fitted", "fit line", "fitted curve", "best fit", "curve fit", "curve",
    "prediction", "predictions", "predicted", "pred", "extrapolation", "extrapolated", "forecast",
    "projection", "projected", "theory", "theoretical", "trend", "trendline", "interpolated",
    "interpolation", "law", "scaling law", "power law",
}  # fmt: skip


def refuse_fitted(table: Table) -> None:
    """Raise UserError where a column of words says that some rows are of a curve, not of a run."""
    for column in table.names:
        values = table.frame[column]
        if pd.api.types.is_numeric_dtype(values.dtype) or values.nunique() > MOST_KINDS:
            continue
        words = values.astype(str).str.strip().str.lower().str.replace(r"[\s_-]+", " ", regex=True)
        drawn = words.isin(NO_RUNS)
        if drawn.any() and not drawn.all():
            kinds = sorted(values[drawn].astype(str).unique())
            away = " and ".join(condition(column, kind, "!=") for kind in kinds)
            raise UserError(
                f"{int(drawn.sum())} rows have {listed(kinds, 3)} in column {column!r}: points of "
                f'a curve are no runs; leave them out, as in --where "{away}"'
            )


def refuse_crossed(out: pd.DataFrame, frame: pd.DataFrame, key: list[str], known: set[str]) -> None:
    """Raise UserError where rows of one run, or of one size and training, are told apart by a
    column whose meaning is not known and which has the same values for each: domains, splits.

    key: columns of `out` that tell runs apart; known: columns of `frame` whose meaning is known.
    """
    part = pd.DataFrame({c: out[c] for c in key}).assign(loss=out["val_loss"])
    for column in known & set(frame.columns):
        part[f"known {column}"] = frame[column].astype(str).to_numpy()
    sized = out[["val_loss", "params", "tokens"]].to_numpy(float)
    part = part[np.isfinite(sized).all(1)]  # else a column of text may tell the sizes apart
    by = part.groupby([c for c in part if c != "loss"], sort=False, dropna=False)
    several = (by["loss"].transform("nunique") > 1).to_numpy()
    if 2 * several.sum() < len(part) or not several.any():
        return
    run = by.ngroup()[several]
    for column in frame.columns:
        values = frame.loc[run.index, column]
        text = not pd.api.types.is_numeric_dtype(values.dtype)
        if column in known or not (text or "run_id" in key) or values.isna().any():
            continue
        kinds = values.astype(str).unique()
        of_run = values.astype(str).groupby(run)
        if 2 <= len(kinds) <= MOST_KINDS and bool((of_run.nunique() == len(kinds)).all()):
            told = [v for v in values.unique() if str(v).lower() in VALIDATION]
            one = condition(column, next(iter(told), values.iloc[0]))
            raise UserError(
                f"{run.nunique()} runs stand in {len(kinds)} rows each, which differ in column "
                f"{column!r} ({listed(kinds, 4)}): of which is the law? Take one, as in --where "
                f'"{one}", or --by {quoted(column)} for a law of each'
            )


def refuse_moving(
    out: pd.DataFrame, table: Table, counts: np.ndarray, same: list[str], known: set[str]
) -> None:
    """Raise UserError where runs of one size and length differ in a column whose meaning is not
    known, and their losses differ with it in the same sense from cell to cell: a setting, or
    repeated data, in words that are not known here.

    counts: (rows,) those that count; same: columns of `out` in which such runs are alike; known:
    columns of the table whose meaning is known.
    """
    sized = out[["val_loss", "params", "tokens"]].to_numpy(float)
    rows = np.flatnonzero(counts & (np.nan_to_num(sized, posinf=0) > 0).all(1))
    if len(rows) < 2 * FEWER:
        return
    part = out.iloc[rows]
    step = np.log(TOGETHER)
    keys = {
        "n": np.round(np.log(part["params"]) / step),
        "d": np.round(np.log(part["tokens"]) / step),
    }
    keys |= {c: part[c].astype(str) for c in same}
    cell = pd.DataFrame(keys).groupby(list(keys), sort=False, dropna=False).ngroup().to_numpy()
    shared = np.bincount(cell)[cell] > 1
    if np.unique(cell[shared]).size < FEWER:
        return
    loss = np.log(part["val_loss"].to_numpy(float))
    for column, label in _labels(table, part, rows, known):
        told = _apart(cell[shared], label[shared], loss[shared])
        if told is not None:
            low, high, cells, share = told
            one = table.frame[column].iloc[rows[0]]
            remedy = (
                "if it counts the tokens of the data before any is repeated, call it "
                "unique_tokens; else keep one kind of rows with --where"
                if " x the " in low
                else f'take one value, as in --where "{condition(column, one)}", or --by '
                f"{quoted(column)} for a law of each (several that are named in --where all count)"
                + ("" if isinstance(one, str) else "; if it counts passes over the data, call it "
                   "epochs")
            )  # fmt: skip
            raise UserError(
                f"runs of one N and D differ in column {column!r} ({listed(pd.unique(label), 4)}), "
                f"and their losses with it: by {share:+.2%} from {low} to {high} in {cells} cells "
                f"of one N and D. Which runs count? {remedy[0].upper()}{remedy[1:]}"
            )


def _labels(
    table: Table, part: pd.DataFrame, rows: np.ndarray, known: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Columns that take few values: as they stand, or in proportion to tokens or parameters."""
    for column in table.names:
        if column in known:
            continue
        values = table.frame[column].iloc[rows]
        if values.isna().any():
            continue
        if 2 <= values.nunique() <= MOST_KINDS:
            yield column, values.astype(str).to_numpy()
        elif pd.api.types.is_numeric_dtype(values.dtype) and values.median() > COUNT:
            for of in ("tokens", "params"):
                share = values.to_numpy(float) / part[of].to_numpy(float)
                label = np.array([f"{v:.2g} x the {of}" for v in share], dtype=object)
                if 2 <= len(set(label)) <= MOST_KINDS:
                    yield column, label


def _apart(
    cell: np.ndarray, label: np.ndarray, loss: np.ndarray
) -> tuple[str, str, int, float] | None:
    """(a value, another, cells that have both, mean difference of log loss) of the two values
    that most cells have, where the losses differ with them; else None."""
    mean = pd.DataFrame({"cell": cell, "label": label, "loss": loss})
    mean = mean.groupby(["cell", "label"], sort=False)["loss"].mean().unstack()
    mean = mean[mean.notna().sum(axis=1) > 1]
    if len(mean) < FEWER or (2 * mean.notna().sum() < len(mean)).any():
        return None
    common = mean.notna().sum().sort_values(ascending=False, kind="stable").index
    for low, high in ((a, b) for i, a in enumerate(common) for b in common[i + 1 : i + 4]):
        off = (mean[high] - mean[low]).dropna().to_numpy(float)
        same = len(off) >= FEWER and (np.sign(off) == np.sign(off[0])).all() and off[0] != 0
        if not same:
            continue
        error = float(off.std(ddof=1)) / np.sqrt(len(off))
        if len(off) >= SURE or abs(off.mean()) > FAR * error:
            return str(low), str(high), len(off), float(np.expm1(off.mean()))
    return None


def telling(out: pd.DataFrame, table: Table, counts: np.ndarray, known: set[str]) -> list[str]:
    """A warning for each column that is not known and tells the losses of runs apart, whatever
    their size and length: beside a quadratic in log N and log D, its values explain most of what
    is left of log loss (F test of nested least squares)."""
    sized = out[["val_loss", "params", "tokens"]].to_numpy(float)
    rows = np.flatnonzero(counts & (np.nan_to_num(sized, posinf=0) > 0).all(1))
    if len(rows) < MOST_TERMS + 2 * FEWER:
        return []
    loss, n, d = np.log(sized[rows]).T
    n, d = (v - v.mean() for v in (n, d))
    smooth = np.stack([np.ones_like(n), n, d, n * n, n * d, d * d], 1)
    alone = _left(smooth, loss)
    notes = []
    for column in table.names:
        label = table.frame[column].iloc[rows].astype(str)
        kinds = label.value_counts()
        if column in known or not 2 <= len(kinds) <= MOST_TOLD or kinds.min() < FEWER:
            continue
        code = pd.factorize(label)[0]
        orders = (np.argsort(v, kind="stable") for v in (n, d, n + d, d - n))
        if min((np.diff(code[order]) != 0).sum() for order in orders) < 2 * len(kinds):
            continue  # in heaps along the sizes, as a name of the size is
        both = np.hstack([smooth, np.eye(len(kinds))[code][:, 1:]])
        more, free = len(kinds) - 1, len(rows) - both.shape[1]
        if free < FEWER:
            continue
        left = _left(both, loss)
        ratio = (alone - left) / more / (left / free) if left > 0 else np.inf
        if left < alone / 2 and fdtrc(more, free, ratio) < UNLIKELY:
            notes.append(
                f"beware: {len(kinds)} values of {column!r} in one law, {listed(kinds.index, 4)}, "
                f"and losses differ with them at the same size and length; --by {quoted(column)} "
                "fits a law for each, --where picks one"
            )
    return notes


def _left(design: np.ndarray, values: np.ndarray) -> float:
    """The sum of squares that least squares leaves."""
    solved = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(((values - design @ solved) ** 2).sum())


def condition(column: str, value: object, sign: str = "==") -> str:
    """As --where takes it."""
    named = column if column.isidentifier() else f"`{column}`"
    return f"{named} {sign} {value!r}" if isinstance(value, str) else f"{named} {sign} {value}"
