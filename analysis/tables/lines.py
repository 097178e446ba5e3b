"""Lines of a table that are no runs: its names once more, a row of units, means and totals."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from scaling.analysis.tables.units import cell, parse_name

SUMMARIES = {
    "mean", "average", "avg", "median", "std", "stdev", "sd", "sum", "total", "totals", "overall",
    "grand total", "min", "max", "minimum", "maximum", "count", "σ", "∑", "μ", "mean ± std",
    "average over runs", "all runs", "geomean",
}  # fmt: skip
COUNTED = {"", "nats", "nat", "nats/token", "nats per token", "count", "#", "number", "single",
           "units", "id", "name", "1"}  # fmt: skip


def tidy(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table without such lines, units in the names of their columns, and what is said of it."""
    texts = [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c].dtype)]
    if not texts:
        return frame, []
    notes: list[str] = []
    for change in (_names_again, _units_row, _summaries):
        frame, said = change(frame, texts)
        notes += said
    return frame, notes


def _names_again(frame: pd.DataFrame, texts: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Without rows that repeat the names of the columns, as files put together have them."""
    if len(texts) < len(frame.columns):
        return frame, []  # such a row makes every column one of text
    again = np.ones(len(frame), bool)
    for column in texts:
        again &= (frame[column].astype(str).str.strip() == str(column)).to_numpy()
    if not again.any():
        return frame, []
    return _plain(frame[~again]), [
        f"{int(again.sum())} rows repeat the names of the columns and are left out"
    ]


def _units_row(frame: pd.DataFrame, texts: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """A first row of units ("M", "[billions]", "nats") as part of the columns' names."""
    units: dict[str, str] = {}
    if len(frame) < 3 or len(texts) < 2:
        return frame, []
    for column in frame.columns:
        if column not in texts:
            if pd.notna(frame[column].iloc[0]):
                return frame, []  # a number stands there: it is a run's row
            continue
        first = "" if pd.isna(frame[column].iloc[0]) else str(frame[column].iloc[0])
        rest = frame[column].iloc[1:4].dropna().astype(str)
        numeric = len(rest) > 0 and all(cell(t).kind in ("number", "percent") for t in rest)
        if cell(first).kind not in ("missing", "unread"):
            return frame, []
        said = first.strip().strip("[]()").strip()
        if numeric and said.lower() not in ("", "-"):
            name = parse_name(f"x ({said})")
            if not (name.scaled or name.unit or said.lower() in COUNTED):
                return frame, []
            units[column] = said
    if len(units) < 2:
        return frame, []
    named = {c: f"{c} ({unit})" for c, unit in units.items()}
    shown = ", ".join(f"{c!r} in {unit}" for c, unit in list(units.items())[:6])
    return _plain(frame.iloc[1:]).rename(columns=named), [f"the first row holds units: {shown}"]


def _summaries(frame: pd.DataFrame, texts: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Without rows that a word in the place of the run's name tells to be of several runs."""
    named = [c for c in texts if c == frame.columns[0] or re.fullmatch(
        r"(?i)(display[ _])?(run|model|name|exp\w*|trial)s?([ _-]?(name|id|label))?|id", str(c)
    )]  # fmt: skip
    found = np.zeros(len(frame), bool)
    for column in named:
        cells = frame[column].dropna()
        if cells.dtype == object:  # whole summaries, say
            cells = cells.astype(str)
        words = pd.Series(cells.unique(), dtype=object).astype(str)
        told = words.str.strip(" *:_").str.lower().isin(SUMMARIES)
        if not told.any():
            continue
        hit = frame[column].astype(str).isin(words[told]).to_numpy()
        if 2 * hit.sum() < len(frame):  # else a column of something else
            found |= hit
    if not found.any():
        return frame, []
    shown = frame.loc[found, named[0]].dropna().astype(str).unique()
    return frame[~found].reset_index(drop=True), [
        f"{int(found.sum())} rows are of several runs together and are left out: "
        f"{', '.join(map(repr, shown[:4]))}"
    ]


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with numbers again where a line of text had made text of a column."""
    frame = frame.reset_index(drop=True)
    for column in frame.columns:
        numeric = pd.to_numeric(frame[column], errors="coerce")
        if bool((numeric.notna() | frame[column].isna()).all()):
            frame[column] = numeric
    return frame
