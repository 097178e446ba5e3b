"""The row: one evaluation of one run. This schema is the contract between running and reading.

A row holds identity, design, cost and outcome (columns below). Diverged runs are rows; a number
that is missing is missing (NaN or None), never replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

COLUMNS: dict[str, str] = {
    # identity
    "run_id": "str",
    "study": "str",
    "role": "str",  # lr_sweep | ladder | single
    "git_sha": "str",
    "seed": "int",
    "schema": "int",
    # design
    "size": "str",
    "family": "str",
    "parametrization": "str",
    "d": "int",
    "layers": "int",
    "heads": "int",
    "d_ff": "int",
    "vocab": "int",
    "context": "int",  # positions of a training sequence
    "params": "int",
    "params_non_embedding": "int",
    "params_matmul_head": "int",
    "tokenizer": "str",
    "data_key": "str",
    "data_mix": "str",  # JSON: source -> share of the sequences, as configured
    "lr": "float",  # muP base rate
    "log2_lr": "float",
    "schedule": "str",
    "warmup_steps": "int",
    "batch_tokens": "int",
    "weight_decay": "float",
    "precision": "str",
    # cost
    "steps": "int",
    "tokens": "int",
    "drawn": "str",  # JSON: source -> sequences drawn so far
    "epochs": "float",  # passes over the most-repeated source; NaN: every clip was new
    "macs_qkvo": "int",
    "macs_attention": "int",
    "macs_ffn": "int",
    "macs_head": "int",
    "macs_total": "int",  # training MACs (3 x forward) of the path to this point
    "seconds": "float",  # of the run's process so far; the one column that may differ in a repeat
    "device": "str",
    "mfu": "float",
    # outcome
    "budget_macs": "float",  # nominal budget that this decayed point serves; NaN mid-schedule
    "val_loss": "float",  # in `loss_unit`, sources weighted as in training
    "train_loss": "float",  # in the same, mean since the last evaluation
    "decayed": "bool",
    "status": "str",  # finished | diverged | failed
}
POSITIONS = "loss_by_position.json"  # of a run, and of a study's best: size, tokens_per_frame, loss
SOURCE_PREFIX = "val_loss/"  # one further float column per source
TOKEN_UNIT, PATCH_UNIT = "nats per token", "squared error per value"  # of a loss
NOT_REPEATABLE = ("seconds", "mfu")  # clocks; every other column is bitwise repeatable on a CPU


def predicted(tokenizer: str) -> str:
    """What the loss is of: `patch-8px` of `dvae-8px-8192 > patch-8px`, else the whole label."""
    return tokenizer.split(" > ")[-1]


def loss_unit(tokenizers: Iterable[str]) -> str:
    """The unit of the losses of rows whose column `tokenizer` has these values.

    Without any (rows of a foreign table) it is that of tokens.
    """
    patches = {predicted(label).startswith("patch-") for label in tokenizers}
    return " or ".join(PATCH_UNIT if one else TOKEN_UNIT for one in sorted(patches or {False}))


def frame(rows: list[Row], more: Sequence[str] = ()) -> pd.DataFrame:
    """Rows as a DataFrame in schema order, sorted by (role, d, layers, lr, seed, steps, decayed).

    more: further columns that somebody added to the table, taken over as they are.
    Raises UserError for rows of another schema: a column that is unknown or absent.
    """
    import pandas as pd

    sources = sorted({c for row in rows for c in row if c.startswith(SOURCE_PREFIX)})
    columns = [*COLUMNS, *sources, *more]
    for row in rows:
        wrong = (set(row) - set(columns)) | (set(COLUMNS) - set(row))
        if wrong:
            raise UserError(
                f"row of run {row.get('run_id', '?')}: columns {sorted(wrong)} do not fit this "
                f"version's schema; it was written by another version of the tool"
            )
    table = pd.DataFrame([[row.get(c) for c in columns] for row in rows], columns=columns)
    kinds = COLUMNS | dict.fromkeys(sources, "float")
    for column, kind in kinds.items():
        if kind == "float":
            table[column] = pd.to_numeric(table[column]).astype("float64")
        elif kind == "int":
            table[column] = table[column].astype("int64")
        elif kind == "bool":
            table[column] = table[column].astype("bool")
        else:
            table[column] = table[column].astype("str")
    order = ["role", "d", "layers", "size", "lr", "seed", "run_id", "steps", "decayed"]
    return table.sort_values(order, kind="stable").reset_index(drop=True)


def loads(rows: list[Row]) -> list[Row]:
    """Rows as `dumps` wrote them, once their JSON is parsed."""
    return [{k: _number(v) for k, v in row.items()} for row in rows]


def dumps(rows: list[Row]) -> str:
    """Rows as strict JSON: NaN becomes null, infinities the strings 'inf' and '-inf'."""
    return json.dumps([{k: _plain(v) for k, v in r.items()} for r in rows], indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if value in (float("inf"), float("-inf")):
        return str(value)
    return value


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") else value


def read_csv(path: Path) -> pd.DataFrame:
    """Rows that a study exported, to the last digit. Raises UserError: not a table of these."""
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error})") from None
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
