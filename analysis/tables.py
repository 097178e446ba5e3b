"""Anyone's table of runs as rows that analysis/frontier.py reads.

    rows, notes = read("runs.csv")                       # columns found by their names
    rows, notes = read(frame, n="Model Size", c="Training FLOP", compute_unit="FLOPs")

A table needs a loss (nats per token) and compute, or parameters and tokens. Nothing is guessed
silently: `notes` says which column became what, and an ambiguity is an error that names both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.references import UNITS, macs_per

# Names by role, without case, spaces and punctuation; a trailing unit (tokens_B) is read too.
NAMES: dict[str, tuple[str, ...]] = {
    "n": (
        "n", "params", "parameters", "nparams", "numparams", "modelsize", "modelparams",
        "paramcount", "numparameters", "size",
    ),
    "d": (
        "d", "tokens", "ntokens", "numtokens", "traintokens", "trainingtokens", "tokensseen",
        "totaltokens",
    ),
    "c": (
        "c", "flop", "flops", "trainflop", "trainflops", "trainingflop", "trainingflops",
        "totalflop", "totalflops", "flops6nd", "c6nd",
        "compute", "computebudget", "trainingcompute", "macs", "trainmacs", "trainingmacs",
        "macstotal", "totalmacs", "pfdays",
    ),
    "loss": (
        "loss", "valloss", "evalloss", "validationloss", "finalloss", "testloss", "lossval",
    ),
    "run": ("runid", "run", "id", "expname", "runname", "name"),
    "state": ("state", "status"),
    "seed": ("seed", "randomseed", "rngseed", "trainseed"),
    "lr": ("lr", "learningrate", "peaklr", "maxlr", "baselr"),
    "batch": ("batchtokens", "tokensperbatch", "batchsize", "globalbatchsize", "bs"),
}  # fmt: skip
WORDS = {
    "n": "parameters (N)", "d": "tokens (D)", "c": "compute (C)", "loss": "loss", "run": "run id",
    "state": "state of the run", "seed": "seed", "lr": "learning rate", "batch": "batch",
}  # fmt: skip
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
FINISHED = ("finished", "completed", "complete", "done", "success", "true")
SAME_BUDGET = 1.02  # costs within this factor of their neighbour are one budget
FEWEST = 100  # parameters or tokens that a run may have without being asked for its unit
BUDGET_SIZES = 3  # sizes that share a cost make it a nominal budget


def read(
    source: str | Path | pd.DataFrame, *, n: str | None = None, d: str | None = None,
    c: str | None = None, loss: str | None = None, run: str | None = None,
    compute_unit: str | None = None, tokens_in: str | None = None, params_in: str | None = None,
    of: str = "compute", keep: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Rows in the columns of analysis/frontier.py, and notes on how they were read.

    source: a CSV / TSV / JSON file, or a frame. n, d, c, loss, run: the columns' names, where they
    cannot be told. compute_unit: "MACs", "FLOPs" or "PF-days". tokens_in, params_in: "K", "M",
    "B" or "T" when the numbers are in thousands, millions, billions, trillions. of: what the law
    will be of; for "params" or "tokens" that column and the loss are enough. keep: further
    columns, taken over as they are.
    Raises ValueError on a table that cannot be read without guessing.
    """
    table = _load(source)
    given = dict.fromkeys(NAMES) | {"n": n, "d": d, "c": c, "loss": loss, "run": run}
    columns = {role: _find(table, role, name) for role, name in given.items()}
    notes = [f"{WORDS[role]}: column {name!r}" for role, name in columns.items() if name]
    if columns["loss"] is None:
        raise ValueError(_missing(table, "loss"))
    alone = {"params": "n", "tokens": "d"}.get(of)
    if alone is not None and columns[alone] is None and columns["c"] is None:
        raise ValueError(_missing(table, alone))
    costed = columns["c"] is not None or (columns["n"] is not None and columns["d"] is not None)
    if not costed and alone is None:
        raise ValueError(_missing(table, "c" if columns["n"] is None else "d"))
    scale_d, scale_n = (
        _scale(columns["d"], tokens_in, "tokens"),
        _scale(columns["n"], params_in, "parameters"),
    )
    values = {
        role: _numbers(table, columns[role], thousands=role != "loss") * scale
        for role, scale in (("n", scale_n), ("d", scale_d), ("c", 1.0), ("loss", 1.0))
        if columns[role] is not None
    }
    _check_counts(values.get("n"), columns["n"], params_in, "parameters", "params_in")
    _check_counts(values.get("d"), columns["d"], tokens_in, "tokens", "tokens_in")
    out = pd.DataFrame({"val_loss": values["loss"]})
    if costed:
        macs, note = _macs(values, columns["c"], compute_unit)
    else:
        macs, note = np.full(len(out), np.nan), "compute: not known, and not needed"
    notes.append(note)
    out["macs_total"] = macs
    out["params"] = values.get("n", np.full(len(out), np.nan))
    out["tokens"] = values.get("d", np.full(len(out), np.nan))
    if costed and "n" in values and "d" not in values:
        out["tokens"] = macs / (3 * values["n"])
        notes.append("tokens: compute / (6 N FLOPs), as no column gives them")
    if costed and "d" in values and "n" not in values:
        out["params"] = macs / (3 * values["d"])
        notes.append("parameters: compute / (6 D FLOPs), as no column gives them")
    if columns["run"] is not None:
        out["run_id"] = table[columns["run"]].astype(str).to_numpy()
    else:
        out["run_id"] = [f"row {i}" for i in range(len(out))]
    out["status"] = "finished"
    if columns["state"] is not None:
        state = table[columns["state"]].astype(str).str.lower().to_numpy()
        out["status"] = np.where(np.isin(state, FINISHED), "finished", state)
    for role, name in (("seed", "seed"), ("lr", "lr"), ("batch", "batch_tokens")):
        if columns[role] is not None:
            out[name] = table[columns[role]].astype(str).to_numpy()
    if "seed" in out:
        notes.append("runs that differ in their seed alone are averaged")
    known = out[["params", "tokens"]].notna().any().any()
    out["size"] = [f"{v:.3g}" for v in out["params"]] if known else "unknown"
    repeat = out.duplicated(["run_id", "params", "tokens", "macs_total", "val_loss"])
    if columns["run"] is None:
        repeat = out.duplicated(["params", "tokens", "macs_total", "val_loss"])
    out["role"] = np.where(repeat, "repeat", "ladder")
    out["decayed"] = True
    for name in keep:
        if name not in table.columns:
            raise ValueError(
                f"no column {name!r}; the table has {', '.join(map(repr, table.columns[:40]))}"
            )
        out[name] = table[name].to_numpy()
    notes.append("every row is taken for a finished run whose learning rate has decayed")
    out["budget_macs"] = budgets(macs, out["params"].to_numpy(float))
    count = out["budget_macs"].nunique()
    notes.append(
        f"{count} nominal budgets" if count else "no nominal budgets: use the envelope frontier"
    )
    return out, notes


def budgets(macs: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Nominal budget of each row: costs that lie together, shared by several sizes; else NaN.

    When most rows share their cost with no other size the costs are a cloud, and the few groups in
    it are chance: then no row has a budget.
    """
    out = np.full(len(macs), np.nan)
    usable = np.flatnonzero(np.isfinite(macs) & (macs > 0) & np.isfinite(params))
    if not len(usable):
        return out
    order = usable[np.argsort(macs[usable], kind="stable")]
    group = np.cumsum(np.diff(np.log(macs[order]), prepend=-np.inf) > np.log(SAME_BUDGET))
    frame = pd.DataFrame({"group": group, "macs": np.log(macs[order]), "n": params[order]})
    by = frame.groupby("group")
    narrow = by["macs"].transform("max") - by["macs"].transform("min") < 2 * np.log(SAME_BUDGET)
    shared = ((by["n"].transform("nunique") >= BUDGET_SIZES) & narrow).to_numpy()
    if shared.mean() < 0.5:
        return out
    out[order[shared]] = np.exp(by["macs"].transform("mean")).to_numpy()[shared]
    return out


def _load(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        table = source.reset_index(drop=True)
    else:
        path = Path(source)
        try:
            if path.suffix.lower() == ".json":
                table = pd.read_json(path)
            else:
                with path.open(errors="replace") as file:
                    header = file.readline()
                sep = "\t" if path.suffix.lower() == ".tsv" else ","
                if ";" in header and "," not in header:  # a sheet saved where commas are decimal
                    sep = ";"
                table = pd.read_csv(path, sep=sep, decimal="," if sep == ";" else ".")
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except (ValueError, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{path}: not a table of runs ({str(error).strip()})") from None
    if table.empty:
        raise ValueError("the table has no rows")
    if table.columns.duplicated().any():
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"two columns are called {twice!r}: rename one")
    return table


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"[\[(].*?[\])]", "", str(name)).lower())


def _find(table: pd.DataFrame, role: str, given: str | None) -> str | None:
    if given is not None:
        if given not in table.columns:
            raise ValueError(
                f"no column {given!r} for {WORDS[role]}; the table has "
                f"{', '.join(map(repr, table.columns[:20]))}"
            )
        return given
    found: list[str] = []
    for column in table.columns:
        # "eval/loss" and "tokens_B" are read by their last and first part
        parts = {_plain(column), _plain(str(column).split("/")[-1]), _plain(_stem(str(column)))}
        if parts & set(NAMES[role]):
            found.append(column)
    if len(found) < 2:
        return found[0] if found else None
    if role not in ("n", "d", "c", "loss"):
        return min(found, key=lambda f: _rank(role, f))
    exact = [f for f in found if _plain(f) == NAMES[role][0]]
    if len(exact) == 1:
        return exact[0]
    raise ValueError(
        f"{WORDS[role]}: columns {', '.join(map(repr, found))} could all be meant; name one "
        f"({role}=...)"
    )


def _rank(role: str, column: str) -> int:
    plain = _plain(column)
    return NAMES[role].index(plain) if plain in NAMES[role] else len(NAMES[role])


def _stem(column: str) -> str:
    """The name without a trailing unit: tokens_B, "params (M)"."""
    return re.sub(r"[_ ]*[\[(]?(?<=[_ (\[])[kKmMbBgGtT][\])]?$", "", column)


def _scale(column: str | None, given: str | None, what: str) -> float:
    """1e9 for a column of billions, from the flag or the column's own name."""
    if given is not None:
        if given.lower() not in SCALES:
            raise ValueError(f"{what} in {given!r}: choose one of K, M, B, T")
        return SCALES[given.lower()]
    if column is None:
        return 1.0
    unit = re.search(r"[_ (\[]([kKmMbBgGtT])[\])]?$", column)
    return SCALES[unit.group(1).lower()] if unit else 1.0


def _numbers(table: pd.DataFrame, column: str | None, thousands: bool) -> np.ndarray:
    """A column as floats; text such as "1.3B", and "1,024" where thousands may be meant, is read,
    anything else becomes NaN."""
    series = table[column]
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    numeric = pd.to_numeric(series, errors="coerce")
    unread = numeric.isna() & series.notna()
    if unread.any():
        text = series[unread].astype(str).str.strip()
        if thousands:
            grouped = text.str.fullmatch(r"\d{1,3}(,\d{3})+(\.\d*)?")
            text = text.mask(grouped, text.str.replace(",", "", regex=False))
        parts = text.str.extract(r"^([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([kKmMbBgGtT]?)$")
        scale = parts[1].str.lower().map(SCALES)
        numeric = numeric.astype(float)
        numeric[unread] = pd.to_numeric(parts[0], errors="coerce") * scale
    values = numeric.to_numpy(dtype=float, na_value=np.nan)
    if not np.isfinite(values).any():
        if series.isna().all():
            raise ValueError(f"column {column!r} is empty: there is no number in it")
        first = str(series.dropna().iloc[0])
        raise ValueError(f"column {column!r} holds no numbers (its first value is {first!r})")
    return values


def _macs(
    values: dict[str, np.ndarray], column: str | None, unit: str | None
) -> tuple[np.ndarray, str]:
    """Training MACs, and how they were read."""
    nd = values["n"] * values["d"] if "n" in values and "d" in values else None
    if column is None:
        assert nd is not None
        _check_ratio(np.ones(1))
        return 3 * nd, "compute: 3 N D training MACs (6 N D FLOPs), as no column gives it"
    if unit is None:
        name = _plain(column)
        if "flop" in name or name == "c6nd":
            unit = "FLOPs"
        elif "mac" in name:
            unit = "MACs"
        elif "pfday" in name:
            unit = "PF-days"
    ratio = None if nd is None else values["c"] / nd
    if unit is None and ratio is not None:
        middle = float(np.nanmedian(ratio))
        if 4.5 <= middle < 9:
            unit = "FLOPs"
        elif 2 <= middle < 4.5:
            unit = "MACs"
    if unit is None:
        raise ValueError(
            f"column {column!r} does not say whether it counts FLOPs or MACs: give compute_unit, "
            f"one of {', '.join(UNITS)}"
        )
    macs = values["c"] * macs_per(unit)
    if nd is not None:
        _check_ratio(macs / nd)
    return macs, f"compute: column {column!r} in {unit}"


def _check_counts(
    values: np.ndarray | None, column: str | None, given: str | None, what: str, flag: str
) -> None:
    """Counts below any model's are in millions or billions, unless the caller has said."""
    if values is None or given is not None:
        return
    usable = values[np.isfinite(values) & (values > 0)]
    if len(usable) and (middle := float(np.median(usable))) < FEWEST:
        raise ValueError(
            f"column {column!r} has {middle:.3g} {what} in the middle row: are they in millions or "
            f"billions? Give {flag}, one of K, M, B, T ('' if they are single {what})"
        )


def _check_ratio(ratio: np.ndarray) -> None:
    """MACs per parameter and token are near 3; far from it the units are not what they seem."""
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(ratio):
        return
    middle = float(np.median(ratio))
    if not 0.3 <= middle <= 300 and len(ratio) > 1:
        raise ValueError(
            f"compute is {middle:.3g} MACs per parameter and token, where training costs about 3: "
            "are tokens or parameters in millions or billions (tokens_in, params_in), or is the "
            "unit of compute another one (compute_unit)?"
        )
    if ratio.max() / ratio.min() > 1e4:
        raise ValueError(
            f"MACs per parameter and token range from {ratio.min():.3g} to {ratio.max():.3g}: the "
            "rows mix units; convert them to one first"
        )


def _missing(table: pd.DataFrame, role: str) -> str:
    return (
        f"no column for {WORDS[role]}: the table has {', '.join(map(repr, table.columns[:20]))}; "
        f"name one ({role}=..., or --{role} on the command line)"
    )
