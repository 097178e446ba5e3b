"""What each row of a table is to a law: a run's name, its settings, and its role among the runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.analysis.tables import columns as names
from scaling.analysis.tables.columns import Table
from scaling.analysis.tables.nominal import SAME_BUDGET
from scaling.analysis.tables.quantities import BASES, Quantity, read_setting
from scaling.analysis.tables.settings import (
    fresh,
    grid,
    mixes,
    mixture_notes,
    repeated,
    searched,
)
from scaling.analysis.tables.unlike import refuse_crossed, refuse_fitted, refuse_moving, telling

SEVERAL = 3  # rows of one design that are no resumed run
SEEDS = "runs that differ in their seed alone are averaged"
ROLES = ("lr_sweep", "ladder", "single", "repeat")


def _strings(series: pd.Series) -> np.ndarray:
    """Names, None where there is none."""
    return series.astype(object).where(series.notna(), None).to_numpy(dtype=object)


def run_names(table: Table, run: str | None, out: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """A name for each run: its own, with a number where runs of other size or settings share it;
    "row i" without one. Decayed points of one trunk keep one name: they share its noise."""
    frame = table.frame
    if run is None:
        return np.array([f"row {i}" for i in range(len(frame))], dtype=object), []
    settings = dict.fromkeys(
        [*searched(table), *mixes(table).values(), *table.named(names.SEED)[:1]]
    )
    given = pd.Series(_strings(frame[run]), dtype=object)
    alone = given.isna().to_numpy()
    name = np.array(given.astype(str), dtype=object)
    name[alone] = [f"row {i}" for i in np.flatnonzero(alone)]
    with np.errstate(all="ignore"):  # sizes that follow from compute differ by roundings
        size = np.round(np.log(out["params"].to_numpy(float)) / np.log(SAME_BUDGET))
    one = pd.DataFrame({"run": name, "size": size})
    one = one.join(frame[list(settings)].astype(str).add_prefix("set "))
    first = one.drop_duplicates()
    number = one.assign(number=first.groupby("run", sort=False).cumcount())["number"]
    keys = list(one.columns)
    by = one.assign(number=number).groupby(keys, sort=False, dropna=False)["number"]
    shown = by.transform("first").to_numpy(int)
    for i in np.flatnonzero(shown):
        name[i] = f"{name[i]} #{shown[i] + 1}"
    notes = [f"run id: column {run!r}"]
    if shared := int((shown > 0).sum()):
        notes.append(f"{shared} rows share the name of another run and count as runs of their own")
    if alone.any():
        notes.append(f"{int(alone.sum())} rows without a name count as runs of their own")
    return name, notes


def _seeds(out: pd.DataFrame, same: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """A number for each of the rows that share the name of a design and differ in their loss, or
    None where they may be one run that was resumed: twice the same is what a resumed run leaves,
    three times and more, in several designs, is not.

    same: the columns that they share.
    """
    shared = out.groupby(same, dropna=False)["val_loss"]
    times = shared.transform("nunique")  # rows with the same loss are copies
    designs = times[times > 1].loc[lambda _: ~out.loc[_.index].duplicated(same)]
    if len(designs) < 2 or designs.median() < SEVERAL:
        return None, []
    number = (shared.rank(method="dense").fillna(1) - 1).where(times > 1, 0)
    return number.astype(int).astype(str).to_numpy(), [
        f"{int(designs.sum())} rows share name, size and training in {len(designs)} designs, each "
        f"with a loss of its own, {designs.median():g} in the middle design: taken for repeats "
        "(seeds), which are averaged; are they one run that was resumed, --where keeps its last row"
    ]


def _setting(
    table: Table, out: pd.DataFrame, place: str, column: str, wanted: set[str]
) -> list[str]:
    """Undo the logarithm of a rate's or a batch's column; say which other column it might be."""
    notes = []
    values = read_setting(table, column).values
    if table.names[column].log in BASES:
        out[place] = values.astype(str)
        notes.append(f"{names.WORDS[place.split('_')[0]]}: {table.names[column].log} undone")
    others = [
        other for other in table.named(wanted)
        if other != column and not np.allclose(
            read_setting(table, other).values, values, rtol=1e-3, atol=0, equal_nan=True)
    ]  # fmt: skip
    if others:
        notes.append(
            f"{names.WORDS[place.split('_')[0]]}: column {column!r}, not "
            f"{', '.join(map(repr, others))}, which differs"
        )
    return notes


def _settings(table: Table, out: pd.DataFrame) -> list[str]:
    """Write seed, rate and batch into `out`; what there is to say of their columns."""
    notes = []
    for wanted, place in ((names.SEED, "seed"), (names.LR, "lr"), (names.BATCH, "batch_tokens")):
        if (column := table.first(place, wanted)) is not None:
            out[place] = table.frame[column].astype(str).to_numpy()
            if place != "seed":
                notes += _setting(table, out, place, column, wanted)
    return notes


def settle(
    table: Table, out: pd.DataFrame, found: dict[str, Quantity], run: str | None, by: str | None,
    said: set[str],
) -> list[str]:  # fmt: skip
    """Columns of settings, and the role of each row; returns what there is to say.

    said: columns of which the caller has said which rows count (--where).
    """
    frame, notes, named = table.frame, list[str](), run is not None
    notes += _settings(table, out)
    if "seed" in out and out["seed"].nunique() > 1:
        notes.append(SEEDS)
    mixed = mixes(table)
    for place, column in mixed.items():
        out[place] = frame[column].astype(str).to_numpy()
    if by is not None:
        out["by"] = frame[table.check("by", by)].astype(str).to_numpy()
        if not named:  # as they would be called in a table of their own
            out["run_id"] = [f"row {i}" for i in out.groupby("by").cumcount()]
    same = ["params", "tokens", "macs_total", "run_id" if named else "val_loss"]
    same += [c for c in ("seed", "lr", "batch_tokens", *mixed, "by") if c in out]
    known = {*searched(table), *table.named(names.SEED), *(one.column for one in found.values())}
    key = [c for c in same if c != "val_loss"]
    named_ones = {c for c in (by, run) if c is not None}
    refuse_crossed(out, frame, key, known | named_ones)
    refuse_fitted(table)
    if named and "seed" not in out:
        again, told = _seeds(out, same)
        if again is not None:
            out["seed"] = again
            same.append("seed")
            notes += told
    repeat = out.duplicated(same, keep="last").to_numpy()
    out["role"] = np.where(repeat, "repeat", "ladder")
    if repeat.any():
        how = "repeat the name, size and training of a later row" if named else "are copies"
        notes.append(f"{int(repeat.sum())} rows {how} and are left out")
    if "role" in frame.columns and frame["role"].isin(ROLES).all():
        out["role"] = np.where(repeat, "repeat", frame["role"])
        notes.append("role: column 'role'")
    counts = ((out["role"] == "ladder") & (out["status"] == "finished") & out["decayed"]).to_numpy(
        bool, copy=True
    )
    factor = found["d"].factor if "d" in found else 1.0
    epochs, told = repeated(table, out["tokens"].to_numpy(float), factor)
    notes += told if epochs is None else []
    if epochs is not None:
        out["epochs"] = epochs
        again, more = fresh(epochs, counts)
        notes += [*(told if again.any() else []), *more]
        out.loc[again, "role"] = "repeated"
        counts &= ~again
    apart = [c for c in (*mixed, "by") if c in out]
    told_apart = {*known, *mixed.values(), *named_ones, *said, *table.passes(), *table.unique()}
    alike = [c for c in same if c in ("seed", "lr", "batch_tokens", *mixed, "by")]
    refuse_moving(out, table, counts, alike, told_apart)
    worse, more = grid(out, frame, searched(table), counts, apart)
    notes += more
    out.loc[worse, "role"] = "tuning"
    notes += telling(out, table, counts & ~worse, told_apart)
    return notes + mixture_notes(out, mixed, counts & ~worse, by)
