"""Losses by size and budget, with a column or several for each budget: a row for each cell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scaling.analysis.tables.columns import listed
from scaling.errors import UserError

FEWEST = 3  # columns of one quantity that make a table of losses by size and budget
COMPUTE = (1e9, 1e30)
MOST_OTHERS = 3  # columns beside them, such as the size
_NUMBER = r"(?P<number>\d+(?:\.\d+)?e\+?\d+|(?:\d+(?:\.\d+)?\s*[x*×·]\s*)?10\^\{?\d+\}?|\d{10,})"
_GAP = r"[\s_@/:.,;=()\[\]-]"
_UNIT = r"(?P<unit>flops?|macs?|tokens?|params?|parameters?)"
_LAST = re.compile(rf"(?P<what>.*?)(?<![\d.]){_NUMBER}(?:{_GAP}*{_UNIT})?{_GAP}*", re.I)
_FIRST = re.compile(
    rf"{_NUMBER}(?:{_GAP}*(?P<unit>flops?|macs?)(?![a-z]))?{_GAP}*(?P<what>.*)", re.I
)
_EQUALS = re.compile(r"(?i)(?:^|(?<=[^a-z]))(c|d|n|compute|flops?|macs?|tokens?|params?)\s*=$")
_BUDGET = re.compile(r"(?i)(?:^|(?<=[^a-z]))(at|for|budget|compute|flops?|macs?)$")
_AXES = {"c": "compute", "f": "compute", "m": "compute", "b": "compute", "d": "tokens",
         "t": "tokens", "n": "parameters", "p": "parameters"}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """What the name of a column says: a quantity ("loss") at a value of compute ("1e17 FLOPs")."""

    what: str
    value: float
    axis: str  # compute | tokens | parameters | "" where no word tells
    unit: str  # FLOPs | MACs | ""


def head(column: object) -> Head | None:
    """The name of a column as a quantity at a number, or None."""
    text = str(column).strip()
    found = _FIRST.fullmatch(text) or _LAST.fullmatch(text)
    if found is None:
        return None
    words = [(found["unit"] or "").lower()]
    what = found["what"].rstrip(" _@/:.,;([-")
    for pattern in (_EQUALS, _BUDGET):
        if (word := pattern.search(what)) is not None:
            words.append(word[1].lower())
            what = what[: word.start()].rstrip(" _@/:.,;([-")
    words = [w for w in words if w not in ("", "at", "for")]
    axis = next((_AXES[w[0]] for w in words), "")
    unit = next(("FLOPs" if w[0] == "f" else "MACs" for w in words if w[0] in "fm"), "")
    what = "loss" if what.lower() in ("", "l") else what
    return Head(what, _value(found["number"]), axis, unit)


def _value(text: str) -> float:
    front, power, exponent = re.sub(r"[\s{}]", "", text.lower()).partition("10^")
    if not power:
        return float(text)
    return float(front.strip("x*×·") or 1) * 10.0 ** int(exponent)


def unpivoted(frame: pd.DataFrame) -> tuple[pd.DataFrame, str, list[str]] | None:
    """(a row a cell, its column of compute, notes); None for another layout.

    Raises UserError for losses by tokens or parameters side by side.
    """
    heads = {c: one for c in frame.columns if (one := head(c)) is not None}
    of: dict[str, dict[float, Any]] = {}
    for column, one in heads.items():
        of.setdefault(one.what, {})[one.value] = column
    of = {what: columns for what, columns in of.items() if len(columns) >= FEWEST}
    parts = {c: one for c, one in heads.items() if one.what in of}
    others = [c for c in frame.columns if c not in parts]
    losses = [what for what in of if "loss" in what.lower()]
    if not losses or len(others) > MOST_OTHERS:
        return None
    axes = {one.axis for one in parts.values()} - {""}
    if axes - {"compute"}:
        raise UserError(
            f"columns {listed(parts, 3)} hold losses by {' and '.join(sorted(axes))} side by side, "
            "and whether a row is one run evaluated several times, or several runs, cannot be "
            "told. Write a row for each loss, with its run, parameters, tokens and loss"
        )
    low, high = COMPUTE
    if not all(low <= one.value <= high for one in parts.values()):
        return None
    units = {one.unit for one in parts.values()} - {""}
    name = "compute" if len(units) != 1 else f"compute ({units.pop()})"
    values = sorted({one.value for one in parts.values()})
    cells = []
    for value in values:
        named = {columns[value]: what for what, columns in of.items() if value in columns}
        cells.append(
            frame[[*others, *named]].rename(columns=named).assign(**{name: value})
        )  # fmt: skip
    long = pd.concat(cells, ignore_index=True)
    long = long[long[losses].notna().any(axis=1)].reset_index(drop=True)
    note = (
        f"layout: {listed(of)} by {listed(others) if others else 'row'} (rows) and compute "
        f"(columns), {len(values)} budgets; {len(long)} cells"
    )
    return long, name, [note]
