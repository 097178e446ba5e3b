"""A table of points at which a law is to predict: compute, parameters or tokens, and no loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.analysis.laws.formulas import MEANINGS
from scaling.analysis.tables.columns import BATCH, LR, WORDS, Table
from scaling.analysis.tables.files import load
from scaling.analysis.tables.losses import missing
from scaling.analysis.tables.plausible import check
from scaling.analysis.tables.quantities import (
    TRAINING,
    Quantity,
    count_line,
    read_quantities,
    read_setting,
)
from scaling.analysis.tables.settings import repeated
from scaling.errors import UserError

NEEDED = {"compute": ("c",), "params": ("n",), "tokens": ("d",), "both": ("n", "d")}
PLACES = {"c": "macs_total", "n": "params", "d": "tokens"}


def read_points(
    source: str | Path | pd.DataFrame, of: str, *, n: str | None = None, d: str | None = None,
    c: str | None = None, compute_unit: str | None = None, tokens_in: str | None = None,
    params_in: str | None = None,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """One row for each row of the table, in its order, and notes on how they were read.

    of: what the law is of, a key of NEEDED. For one of compute, compute that no column gives is
    that of training, 3 N D MACs; for one of both, compute alone stands for the best run of that
    budget. The other arguments are those of `scaling.analysis.tables.read`.
    Returns macs_total, params and tokens, those that the law takes, and `refused`: why a row is no
    point, as its cells are no positive numbers.
    Raises UserError on a table that has none of these columns or cannot be read without guessing.
    """
    frame, notes = load(source)
    table = Table(frame)
    given = {"n": n, "d": d, "c": c}
    scales = {"n": params_in, "d": tokens_in}
    found, more = read_quantities(table, given, scales, compute_unit)
    check(found, scales, compute_unit)
    notes += more
    roles = NEEDED[of]
    if of == "compute" and "c" not in found and {"n", "d"} <= set(found):
        roles = ("n", "d")
    if of == "both" and not {"n", "d"} <= set(found) and "c" in found:
        roles = ("c",)
    for role in roles:
        if role not in found:
            raise UserError(missing(table, role))
    notes += [count_line(role, found[role]) for role in roles]
    out = pd.DataFrame({PLACES[role]: found[role].values for role in roles})
    refused = np.full(len(out), "", dtype=object)
    for role in roles:
        cells, values = found[role].cells, found[role].values
        what = WORDS[role].split(" (")[0]
        for i in np.flatnonzero(~(np.isfinite(values) & (values > 0)) & (refused == "")):
            text = None if cells is None else cells.unread.get(int(i))
            is_ = "missing" if np.isnan(values[i]) else f"{values[i]:g}"
            said = is_ if text is None else f"{text!r}, which is no number"
            refused[i] = f"{what} {'is' if role == 'c' else 'are'} {said}"
    if of == "compute" and roles == ("n", "d"):
        out["macs_total"] = TRAINING * out["params"] * out["tokens"]
        notes.append("compute: 3 N D training MACs (6 N D FLOPs), as no column gives it")
    return out.assign(refused=refused), notes


def read_form_points(
    source: str | Path | pd.DataFrame, columns: Sequence[str], *, n: str | None = None,
    d: str | None = None, c: str | None = None, compute_unit: str | None = None,
    tokens_in: str | None = None, params_in: str | None = None,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """As `read_points`, of a form's columns by the names in its formula.

    N, D and C are read as everywhere; U from unique tokens or passes over the data; lr and batch by
    their usual names; any other column by its own name.
    """
    frame, notes = load(source)
    own = [name for name in columns if name not in MEANINGS]
    table = Table(frame, own)
    roles = {"N": "n", "D": "d", "C": "c"}
    scales = {"n": params_in, "d": tokens_in}
    found, more = read_quantities(table, {"n": n, "d": d, "c": c}, scales, compute_unit)
    check(found, scales, compute_unit)
    notes += more
    values: dict[str, np.ndarray] = {}
    unread: dict[str, dict[int, str]] = {}
    for name in columns:
        if name in roles:
            if roles[name] not in found:
                raise UserError(missing(table, roles[name]))
            values[name] = found[roles[name]].values
            notes.append(count_line(roles[name], found[roles[name]]))
        elif name == "U":
            values[name], more = _unique(table, found)
            notes += more
        else:
            column = {"lr": table.first("lr", LR), "batch": table.first("batch", BATCH)}.get(
                name, table.check(name, name) if name in own else None
            )
            if column is None:
                raise UserError(missing(table, name))
            cells = read_setting(table, column)
            values[name], unread[name] = cells.values, cells.unread
            notes.append(f"{name}: column {column!r}")
    out = pd.DataFrame(values)
    refused = np.full(len(out), "", dtype=object)
    for name in columns:
        one = values[name]
        wrong = ~(np.isfinite(one) & ((one > 0) | (name not in MEANINGS)))
        for i in np.flatnonzero(wrong & (refused == "")):
            text = unread.get(name, {}).get(int(i))
            is_ = "missing" if np.isnan(one[i]) else f"{one[i]:g}"
            refused[i] = f"{name} is {is_ if text is None else f'{text!r}, which is no number'}"
    return out.assign(refused=refused), notes


def _unique(table: Table, found: dict[str, Quantity]) -> tuple[np.ndarray, list[str]]:
    """Tokens before any is repeated (rows,)."""
    if "d" not in found:
        raise UserError(missing(table, "d"))
    tokens = found["d"].values
    passes, notes = repeated(table, tokens, found["d"].factor)
    if passes is None:
        raise UserError(
            "U (tokens before any is repeated): the points have neither a column of epochs nor one "
            "of unique tokens; add 'epochs' or 'unique_tokens'"
        )
    unique: np.ndarray = tokens / np.maximum(passes, 1.0)
    return unique, notes
