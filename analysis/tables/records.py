"""JSON and JSON lines as a frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from scaling.analysis.tables.columns import listed
from scaling.errors import UserError

DEEPEST = 4


def read_json(text: str) -> pd.DataFrame:
    """Records, columns, or a mapping that holds one of them; nested ones get names with dots."""
    text = text.lstrip("\ufeff")
    try:
        held = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise UserError(f"JSON: {error}") from None
        try:
            held = [json.loads(line) for line in lines]
        except json.JSONDecodeError as of_line:
            raise UserError(f"neither JSON nor JSON lines: {of_line}") from None
    try:
        return _frame(held)
    except (TypeError, AttributeError, RuntimeError) as error:  # pandas', of odd values
        raise UserError(f"JSON that is no list of runs ({error})") from None


def _frame(held: Any) -> pd.DataFrame:
    if isinstance(held, dict):
        if isinstance(held.get("columns"), list) and isinstance(held.get("data"), list):
            return pd.DataFrame(held["data"], columns=list(map(str, held["columns"])))
        if isinstance(held.get("log_history"), list):  # Hugging Face's trainer_state.json
            rows = pd.json_normalize(held["log_history"])
            rows.attrs["log"] = "trainer_state"
            return rows
        if {"datasets", "$schema"} & set(held) and len(inside := list(_records(held, 0))) == 1:
            return pd.json_normalize(inside[0])  # Vega's
        lists = {k: v for k, v in held.items() if isinstance(v, list)}
        records = {k: v for k, v in lists.items() if v and all(isinstance(x, dict) for x in v)}
        if len(records) == 1:
            return _frame(next(iter(records.values())))
        if len(records) > 1:
            raise UserError(
                f"several lists of records, {listed(records)}: save the runs' one alone"
            )
        if lists and len({len(v) for v in lists.values()}) == 1:
            return pd.DataFrame(lists)
        mappings = {k: v for k, v in held.items() if isinstance(v, dict)}
        if mappings and len(mappings) == len(held):
            inner = [set(v) for v in mappings.values()]
            if all(str(k).isdigit() for keys in inner for k in keys):  # pandas' to_json: columns
                return pd.DataFrame(mappings).reset_index(drop=True)
            if all(isinstance(v, dict) for v in mappings.values()):  # run -> its numbers
                return pd.json_normalize([{"run": k, **v} for k, v in mappings.items()])
        if len(inside := list(_records(held, 0))) == 1:  # an interface's answer
            return pd.json_normalize(inside[0])
        raise UserError("JSON that is no list of runs: a list of objects, one a run, is read")
    if isinstance(held, list) and held and all(isinstance(row, dict) for row in held):
        return pd.json_normalize(held)
    raise UserError("JSON that is no list of runs: a list of objects, one a run, is read")


def _records(held: Any, depth: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of at least two objects inside mappings, DEEPEST levels down at most."""
    for value in held.values() if depth < DEEPEST else ():
        if isinstance(value, dict):
            yield from _records(value, depth + 1)
        elif isinstance(value, list) and len(value) > 1 and all(isinstance(x, dict) for x in value):
            yield value
