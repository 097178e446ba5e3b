"""Cells parted by commas, tabs, semicolons, bars or blanks: which sign, which decimal sign, and
which lines are names, titles or comments. The cells are read by pandas.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.analysis.tables.content import HEAD, unpacked, whole
from scaling.errors import UserError

DELIMITERS = ",\t;|"


def read_delimited(
    path: Path, packed: str, encoding: str, text: str
) -> tuple[pd.DataFrame, list[str]]:
    """The table, and notes on its lines. packed: its suffix in OPENERS, or ""; text: its head.

    Raises UserError where its first lines name no columns, or not all of them.
    """
    lines = _first_lines(text)
    comments = [line for line in lines if line.startswith("#")]
    body = [line for line in lines if line.strip() and not line.startswith("#")]
    if not body:
        raise UserError("no lines")
    titles = _titles(body)
    body = body[len(titles) :]
    delimiter = _delimiter(body)
    header = next(csv.reader([body[0]], delimiter=delimiter if len(delimiter) == 1 else " "))
    names: list[str] | None = None
    joined = _two_headers(body, delimiter)
    if comments and all(_number(cell) for cell in header) and len(header) > 1:
        # NumPy's savetxt writes the names into a comment.
        last = comments[-1].lstrip("# ")
        found = re.split(r"\s+" if delimiter == r"\s+" else re.escape(delimiter), last.strip())
        names = [n.strip() for n in found] if len(found) == len(header) else None
        header = names or header
    if all(_number(cell) for cell in header if cell.strip()):
        raise UserError(
            f"its first line, {body[0][:60]!r}, has numbers only: it needs column names"
        )
    named = joined or [h.strip() for h in header if h.strip()]
    if len(set(named)) < len(named):
        twice = Counter(named).most_common(1)[0][0]
        raise UserError(f"two columns are called {twice!r}: rename one")
    options: dict[str, Any] = {"sep": delimiter, "encoding": encoding, "low_memory": False}
    if joined is not None:
        options |= {"names": joined, "header": 1, "index_col": False}
    elif names is not None:
        options |= {"names": names, "header": None}
    options["decimal"] = _decimal(body, delimiter)
    if any(f"{delimiter} " in line for line in body[:50]):
        options["skipinitialspace"] = True
    if _longer(body, delimiter, len(header)):
        options["index_col"] = False
    source: Any = io.BytesIO(unpacked(path, packed)) if packed else path
    if comments or titles:  # lines, not cells: a colour such as #faebdd stays
        kept = [x for x in whole(path, packed, encoding).splitlines() if not x.startswith("#")]
        kept = kept[kept.index(body[0]) :] if titles else kept
        source = io.StringIO("\n".join(kept))
        options.pop("encoding")
    with warnings.catch_warnings():  # of empty cells behind the last delimiter
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        table = pd.read_csv(source, **options)
    notes = []
    if comments:
        notes.append(f"{len(comments)} comment lines left out")
    if titles:
        notes.append(f"{len(titles)} lines above the names of the columns left out")
    if joined is not None:
        notes.append("two lines of names joined")
    if delimiter != ",":
        shown = {"\t": "tab", r"\s+": "blanks"}.get(delimiter, delimiter)
        notes.append(f"cells parted by {shown}" + ("" if options["decimal"] == "." else
                                                   ", decimal commas"))  # fmt: skip
    return table, notes


def _first_lines(text: str) -> list[str]:
    """The whole lines of the first HEAD bytes of a file."""
    lines = text.splitlines()
    if len(text.encode("utf-8", "replace")) < HEAD - 16:
        return lines
    if len(lines) == 1:
        raise UserError(f"its first line has more than {HEAD:,} bytes: no names of columns")
    return lines[:-1]  # the last one may be cut


def _titles(lines: list[str]) -> list[str]:
    """Lines above the names of the columns: one cell at most, by whatever sign."""
    for k, line in enumerate(lines[:20]):
        rows = [next(csv.reader([line], delimiter=sign), []) for sign in DELIMITERS]
        if any(sum(bool(cell.strip()) for cell in row) > 1 for row in rows):
            return lines[:k]
    return []  # cells parted by blanks, or a single column


def _two_headers(lines: list[str], delimiter: str) -> list[str] | None:
    """The names of columns that two lines give, "loss" above "val" and "train"; else None."""
    if len(delimiter) > 1 or len(lines) < 3:
        return None
    first, second, third = (
        [cell.strip() for cell in row] for row in csv.reader(lines[:3], delimiter=delimiter)
    )
    given = [cell for cell in first if cell]
    one_each = len(set(given)) == len(given) == len(first)
    # Names that stand alone, such as those of groups, may have nothing below them.
    named = all(
        below or (above and given.count(above) == 1) or k == 0
        for k, (above, below) in enumerate(zip(first, second, strict=False))
    )
    words = named and any(second[1:]) and not any(_number(cell) for cell in second if cell)
    if one_each or not words or len(second) != len(first) != 1 or not any(map(_number, third)):
        return None
    above = pd.Series(first).replace("", None).ffill().fillna("")
    return ["/".join(p for p in pair if p) for pair in zip(above, second, strict=True)]


def _delimiter(lines: list[str]) -> str:
    """The sign that parts the first lines into equally many cells, at least two."""
    best, most = ",", 1
    for sign in DELIMITERS:
        counts = [len(row) for row in csv.reader(lines[:50], delimiter=sign) if row]
        if counts and counts[0] > 1 and counts[0] == max(set(counts), key=counts.count):
            even = counts.count(counts[0]) >= 0.9 * len(counts)
            if even and counts[0] > most:
                best, most = sign, counts[0]
    if most == 1 and not any(sign in lines[0] for sign in DELIMITERS):
        counts = [len(line.split()) for line in lines[:50]]
        if min(counts) > 1 and len(set(counts[1:])) == 1 and 0 <= counts[-1] - counts[0] <= 1:
            return r"\s+"
    return best


def _longer(lines: list[str], delimiter: str, width: int) -> bool:
    """Whether lines end in a delimiter that the header lacks. Raises UserError for more cells
    than names: which is which would be a guess."""
    if len(delimiter) > 1:
        return False
    rows = [row for row in csv.reader(lines[1:50], delimiter=delimiter) if len(row) > width]
    if any(cell.strip() for row in rows for cell in row[width:]):
        raise UserError(
            f"its lines have more cells than the {width} names of the first line: name every "
            "column in one line, and remove the lines above it"
        )
    return bool(rows)


def _decimal(lines: list[str], delimiter: str) -> str:
    """Whether numbers have decimal commas: only where no number in sight has a point."""
    if delimiter == ",":
        return "."
    cells = [c.strip() for row in csv.reader(lines[1:50], delimiter=delimiter[-1]) for c in row]
    commas = sum(bool(re.fullmatch(r"[+-]?\d+,\d+(e[+-]?\d+)?", c, re.I)) for c in cells)
    points = sum(bool(re.fullmatch(r"[+-]?\d+\.\d+(e[+-]?\d+)?", c, re.I)) for c in cells)
    return "," if commas and not points else "."


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
