"""Laws and tables as plain data, and back to the last digit.

    text = json.dumps(plain(findings))
    same = back(Findings, json.loads(text))

Dataclasses become the names of their fields, tables their columns with their kinds, arrays lists;
a number that JSON has not is "nan", "inf" or "-inf". What a value is again, its type hints say.
"""

from __future__ import annotations

import functools
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.power_law import PowerLaw, SaturatingLaw

LAWS = {"power": PowerLaw, "saturating": SaturatingLaw}


def plain(value: Any) -> Any:
    """Dictionaries, lists, texts, booleans and finite numbers alone."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {one.name: plain(getattr(value, one.name)) for one in fields(value) if one.init}
        return kept | ({"form": value.form} if isinstance(value, PowerLaw) else {})
    if isinstance(value, pd.DataFrame):
        columns = {str(name): _column(value[name]) for name in value.columns}
        return {"columns": columns, "notes": plain(value.attrs.get("notes"))}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _column(column: pd.Series) -> dict[str, Any]:
    return {"kind": str(column.dtype), "values": [plain(one) for one in column.tolist()]}


def back(hint: Any, value: Any) -> Any:
    """The value of this type that `plain` made plain."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (one for one in inside if one is not type(None))
        return back(hint, value)
    if origin is tuple:
        hints = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return tuple(back(one, part) for one, part in zip(hints, value, strict=True))
    if origin is dict:
        return {key: back(inside[1], one) for key, one in value.items()}
    if hint is pd.DataFrame:
        return _frame(value)
    if hint is np.ndarray:
        return np.array(value, dtype=float)
    if hint is float:
        return float(value)
    if is_dataclass(hint):
        kind: Any = LAWS[value["form"]] if hint is PowerLaw else hint
        of_fields = _hints(kind)
        names = [one.name for one in fields(kind) if one.init]
        return kind(**{name: back(of_fields[name], value[name]) for name in names})
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _frame(value: dict[str, Any]) -> pd.DataFrame:
    columns = {name: _series(**one) for name, one in value["columns"].items()}
    frame = pd.DataFrame(columns)
    if value["notes"] is not None:
        frame.attrs["notes"] = tuple(value["notes"])
    return frame


def _series(kind: str, values: list[Any]) -> pd.Series:
    if kind.startswith("float"):
        values = [float(one) for one in values]
    elif kind == "object":
        values = [tuple(one) if isinstance(one, list) else one for one in values]
    elif kind == "str":  # a missing name is missing again
        values = [None if one == "nan" else one for one in values]
    return pd.Series(values, dtype=kind)
