"""The row: one evaluation of one run, in the columns of analysis/schema.py.

A row holds identity, design, cost and outcome. Diverged runs are rows; a number
that is missing is missing (NaN or None), never replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.analysis.schema import ADDED as ADDED
from scaling.analysis.schema import ALWAYS as ALWAYS
from scaling.analysis.schema import COLUMNS as COLUMNS
from scaling.analysis.schema import PATCH_UNIT as PATCH_UNIT
from scaling.analysis.schema import SOURCE_PREFIX as SOURCE_PREFIX
from scaling.analysis.schema import TOKEN_UNIT as TOKEN_UNIT
from scaling.analysis.schema import loss_unit as loss_unit
from scaling.analysis.schema import predicted as predicted
from scaling.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

POSITIONS = "loss_by_position.json"  # of a run, and of a study's best: size, tokens_per_frame, loss
INFINITE = ("inf", "-inf")  # in JSON
TOGETHER = 512  # rows that are taken apart at once: a processor's cache holds them
NOT_REPEATABLE = ("seconds", "mfu")  # clocks; every other column is bitwise repeatable on a CPU

NEWEST = {  # columns of tables of what the models learned that older versions did not write
    "probes.csv": {"data_key"},
    "davis.csv": {"data"},
    "finetune.csv": {"data_key", "weights", "n_hidden"},
    "variants.csv": {"data_key", "next_token_loss"},
}


def frame(rows: Iterable[Row], more: Sequence[str] = ()) -> pd.DataFrame:
    """Rows as a DataFrame in schema order, sorted by (role, d, layers, lr, seed, steps, decayed).

    rows: read once; of many thousand only some are held at a time, where they come one by one.
    more: further columns that somebody added to the table, taken over as they are.
    Raises UserError for rows of another schema: a column that is unknown or absent.
    """
    import numpy as np
    import pandas as pd

    left = iter(rows)
    words: dict[str, str] = {}
    first = _columns(list(islice(left, TOGETHER)), more, words)
    parts = [first]
    while some := list(islice(left, TOGETHER)):
        parts.append(_columns(some, more, words))
    sources = sorted({c for part in parts for c in part} - {*COLUMNS, *more})
    made = {}
    for column in [*COLUMNS, *sources, *more]:
        several = [p.get(column, np.full(len(p["steps"]), np.nan)) for p in parts]
        if column in more:
            made[column] = pd.concat([pd.Series(cells) for cells in several], ignore_index=True)
        else:
            whole = np.concatenate(several)
            made[column] = pd.Series(whole, dtype="str" if whole.dtype == object else None)
    table = pd.DataFrame(made)
    order = ["role", "d", "layers", "size", "lr", "seed", "run_id", "steps", "decayed"]
    return table.sort_values(order, kind="stable").reset_index(drop=True)


def _columns(rows: list[Row], more: Sequence[str], words: dict[str, str]) -> dict[str, Any]:
    """Some rows by column, in arrays of one kind each; sources as far as one of the rows has them.

    words: the texts that were met before, which are held once.
    """
    alike: dict[tuple[str, ...], Row] = {}  # an example of each set of columns
    for row in rows:
        alike.setdefault(tuple(row), row)
    sources = sorted({c for names in alike for c in names if c.startswith(SOURCE_PREFIX)})
    columns = [*(c for c in COLUMNS if c in ALWAYS), *sources, *more]
    for names, row in alike.items():
        wrong = (set(names) - {*columns, *ADDED}) | (ALWAYS - set(names))
        if wrong:
            raise UserError(
                f"row of run {row.get('run_id', '?')}: columns {sorted(wrong)} do not fit this "
                f"version's schema; it was written by another version of the tool"
            )
    blank = dict.fromkeys(columns)
    same = all(len(set(names) - ADDED.keys()) == len(columns) for names in alike)
    taken = map(itemgetter(*columns), rows if same else [blank | row for row in rows])
    by_column = zip(*taken, strict=True) if rows else repeat((), len(columns))
    every = dict(zip(columns, by_column, strict=True))
    every |= {c: tuple(row.get(c, default) for row in rows) for c, default in ADDED.items()}
    made = {}
    for column, cells in every.items():
        kind = (COLUMNS | dict.fromkeys(sources, "float")).get(column, "any")
        try:
            made[column] = _cells(cells, kind, words)
        except (ValueError, TypeError, OverflowError) as error:
            number = (int, float, type(None))
            fits: Any = {"int": int, "float": number, "bool": bool, "str": str}[kind]
            runs = [row.get("run_id") for row in rows if not isinstance(row.get(column), fits)]
            raise UserError(
                f"row of run {next(iter(runs), '?')}: column {column} holds no {kind} ({error}): "
                f"damaged. Remove the file of its rows and run the study again, which makes it anew"
            ) from None
    return made


def _cells(cells: tuple[Any, ...], kind: str, words: dict[str, str]) -> Any:
    """Cells of a column of a kind of COLUMNS, or of any; text as objects. Raises ValueError,
    TypeError, OverflowError: of another kind."""
    import numpy as np
    import pandas as pd

    types = set(map(type, cells))
    if kind == "str" and types <= {str}:
        return np.array(list(map(words.setdefault, cells, cells)), dtype=object)
    if kind == "int" and types <= {int}:  # what pandas would first have to find out
        return np.array(cells, dtype="int64")
    if kind == "float" and types <= {float, type(None)}:
        return np.array(cells, dtype="float64")
    if kind == "bool" and types <= {bool}:
        return np.array(cells, dtype="bool")
    if kind == "str":
        raise ValueError("no text")
    column = pd.Series(cells)
    if kind == "int" and not (column.astype("int64") == column).all():
        raise ValueError("not whole, or too large")
    if kind == "bool" and not column.isin([True, False]).all():
        raise ValueError("neither true nor false")
    if kind == "float":
        return pd.to_numeric(column).astype("float64").to_numpy()
    if kind == "any":
        return column
    return column.astype({"int": "int64"}.get(kind, kind)).to_numpy()  # type: ignore[call-overload]


def loads(rows: list[Row]) -> list[Row]:
    """Rows as `dumps` wrote them, once their JSON is parsed."""
    return [
        {k: float(v) if v in INFINITE else v for k, v in row.items()}
        if any(word in row.values() for word in INFINITE)
        else row
        for row in rows
    ]


def dumps(rows: list[Row]) -> str:
    """Rows as strict JSON: NaN becomes null, infinities the strings 'inf' and '-inf'."""
    return json.dumps([{k: _plain(v) for k, v in r.items()} for r in rows], indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if value in (float("inf"), float("-inf")):
        return str(value)
    return value


def read_csv(path: Path) -> pd.DataFrame:
    """Rows that a study exported, to the last digit. Raises UserError: not a table of these."""
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error})") from None
    for added, default in ADDED.items():
        table[added] = table.get(added, default)
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise UserError(
            f"{path}: not a table of this tool's rows (no column {', '.join(missing[:5])}). For "
            f"any other table of runs use `scaling fit {path.name}`"
        )
    more = [c for c in table if c not in COLUMNS and not str(c).startswith(SOURCE_PREFIX)]
    for column in more:  # somebody's own: numbers where every cell is one, or empty
        numbers = pd.to_numeric(table[column], errors="coerce")
        if (numbers.notna() | (table[column] == "")).all():
            table[column] = numbers
    rows: list[Row] = []
    try:
        for record in table.to_dict("records"):
            row: Row = {}
            for column, cell in record.items():
                if column in more:
                    row[str(column)] = cell
                    continue
                kind = COLUMNS.get(str(column), "float")
                if kind == "int":
                    row[str(column)] = int(cell)
                elif kind == "float":
                    row[str(column)] = float(cell) if cell else None
                elif kind == "bool":
                    row[str(column)] = {"True": True, "False": False}[cell]
                else:
                    row[str(column)] = cell
            rows.append(row)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: column {column}: cannot read {error}") from None
    return frame(rows, [str(c) for c in more])


def read_learned(path: Path) -> pd.DataFrame | None:
    """A table of what a study's models learned (`Study.probe_files`); None where it was not made.

    Data of one name that are not the same bear the beginning of their key in the name.
    Raises UserError: it is damaged, or an older version wrote it.
    """
    import pandas as pd

    try:
        # Of digits alone they are no numbers.
        table = pd.read_csv(path, dtype={"run_id": str, "data_key": str})
    except FileNotFoundError:
        return None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and probe the study again") from None
    if missing := NEWEST.get(path.name, set()) - set(table.columns):
        raise UserError(
            f"{path}: has no column {', '.join(sorted(missing))}: an older version wrote it; "
            "remove it and probe the study again"
        )
    if "data_key" in table:
        several = table.groupby("data")["data_key"].transform("nunique") > 1
        key = table["data_key"].str[:6]
        table["data"] = table["data"].mask(several, table["data"] + " (" + key + ")")
    return table
