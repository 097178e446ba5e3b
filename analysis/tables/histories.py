"""From evaluations along runs to the last decayed point of each run.

A run's earlier points lie in the middle of its schedule: its loss there is not what a run of that
length would have reached (arXiv 2405.18392), so only the last one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.errors import UserError

TAKEN = "every row is taken for a finished run whose learning rate has decayed"
BRANCHES = (
    "several rows of one run stand at nominal budgets and are taken for decayed points of their "
    "own, as the branches of a trunk are (--history: only the last of each counts)"
)
DECAYED = 0.5  # of a run's highest rate: above it the rate has not decayed
FURTHER = 2.0  # a run whose rate ends so many times higher than others' was cut short
SIZE = 1.02  # sizes within this factor are one
ENDED = 0.995  # of its planned steps
AT_BUDGETS = 0.9  # share of rows at nominal budgets that makes each a point of its own
RESUMED = 0.3  # share of runs with several rows up to which these were resumed
FEWEST_BRANCHES, APART = 3, 1.6  # budgets of a run, each so many times the one before
MANY, CLOSE = 8, 1.15  # rows of a size, each at most so many times the training of the one before
EARLIER = 0.02  # of a run's steps: a count that was written before that is no longer the run's
EVALUATIONS = 1.5  # mean distances between evaluations: more without one is no distance
EVEN = 0.2  # spread of the distances between evaluations, relative to their mean


@dataclass(frozen=True)
class Points:
    """What a history needs, one entry a row; None where the table does not tell."""

    run: np.ndarray | None  # numbers of the names, -1 where there is none
    names: list[str]  # of the runs, by number
    is_id: bool  # whether a name belongs to one run alone
    kind: np.ndarray | None  # numbers of what runs of one name may differ in: optimizer, data
    n: np.ndarray | None
    seed: np.ndarray | None
    progress: np.ndarray | None  # tokens, or compute, that grow along a run
    step: np.ndarray | None
    loss: np.ndarray
    lr: np.ndarray | None
    schedule: np.ndarray | None
    planned: np.ndarray | None  # steps of the whole schedule
    at_budget: np.ndarray  # whether a row's cost is a nominal budget that several sizes share


def join_sparse(
    frame: pd.DataFrame, run: str | None, step: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Rows of one run and step that fill each other's gaps, as Lightning and Hugging Face write
    them, as one row."""
    if step is None:
        return frame, []
    key = [c for c in (run, step) if c is not None]
    gaps = frame.columns[frame.isna().any()]
    if set(gaps) <= set(key):
        return frame, []
    twice = frame.duplicated(key, keep=False) & frame[step].notna()
    if not twice.any():
        return frame, []
    others = [c for c in frame.columns if c not in key]
    part = frame[twice]
    by = part.groupby(key, sort=False, dropna=False)
    sparse = [c for c in others if part[c].isna().any()]
    # Two values in one cell of the join, but for columns without a gap, are two evaluations.
    clash = [c for c in sparse if int(by[c].count().max()) > 1]
    if not sparse or len(clash) > len(sparse) // 2:
        return frame, []
    joined = frame.groupby(key, sort=False, dropna=False).first().reset_index()
    joined = joined[frame.columns]
    return joined, [f"rows of one run and step joined: {len(frame)} rows to {len(joined)}"]


def carried(
    values: np.ndarray, loss: np.ndarray, run: np.ndarray, step: np.ndarray
) -> tuple[np.ndarray, int]:
    """Values at evaluations that have none of their own, from the last row of the run before them
    that has one, and how many: trackers write losses and counts in rows apart. Rows whose count
    was written too much earlier stay without."""
    wanting = np.isnan(values) & np.isfinite(loss) & (run >= 0)
    held = pd.DataFrame({"run": run, "at": step, "value": values, "known": step})
    held.loc[np.isnan(values), "known"] = np.nan
    before = held.sort_values(["run", "at"], kind="stable").groupby("run")[["value", "known"]]
    last = before.ffill().sort_index()
    known = last["known"].to_numpy()
    wanting &= step - known <= EARLIER * np.abs(step)  # NaN: no row before
    return np.where(wanting, last["value"].to_numpy(), values), int(wanting.sum())


def reduce(points: Points, told: bool | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(rows kept, whether the rate has decayed at each of them, notes).

    told: True, the table is a history; False, every row is a run of its own; None, find out.
    Raises UserError where rows may be a history and runs cannot be told apart.
    """
    count = len(points.loss)
    everything = np.arange(count)
    if told is False:
        return everything, np.ones(count, bool), [f"{TAKEN} (--no-history)"]
    usable = np.isfinite(points.loss)
    if points.run is None:
        _refuse_unknown_runs(points, usable, told)
        return _each(points, [TAKEN, *_close_together(points, usable)])
    key = _runs(points)
    if np.bincount(key[usable], minlength=1).max() < 2:
        return _each(points, [TAKEN])
    moving = _moving(points, key, usable)
    if not moving.any():
        return _each(points, [TAKEN])
    if told is None and points.step is None:
        if _branches(points, key, usable, moving):
            return _each(points, [BRANCHES])
        _ask_whether_history(points, key, usable, moving)
    kept = _last(points, key, usable)
    decayed = _decayed(points, kept, key) & ~_went_on(points, kept, key, usable)
    runs = len(kept)
    notes = [
        f"history: {count} rows of {runs} runs; the last point of each run counts, "
        f"{count - len(kept)} earlier rows left out"
    ]
    notes += _tell(points, kept, decayed)
    return kept, decayed, notes


def _each(points: Points, notes: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Every row as a run of its own; those at a constant rate among decaying ones are named."""
    everything = np.arange(len(points.loss))
    decayed = _reached(points, everything)
    constant = _constant(points, everything)
    if not constant.all():
        decayed &= ~constant
    elif len(constant):
        notes = [
            *notes,
            "beware: the rate of every run is constant: losses are those before any decay",
        ]
    return everything, decayed, notes if decayed.all() else [*notes, *_named(points, ~decayed)]


def _constant(points: Points, kept: np.ndarray) -> np.ndarray:
    """Whether a run's schedule is a constant rate, where the table tells."""
    if points.schedule is None:
        return np.zeros(len(kept), bool)
    said = pd.Series(points.schedule[kept]).astype(str).str.lower()
    return said.str.contains("constant|no_decay|flat", regex=True).to_numpy()


def _branches(points: Points, key: np.ndarray, usable: np.ndarray, moving: np.ndarray) -> bool:
    """Whether the rows of a run are its decayed points: at budgets that sizes share, and in wide
    steps, where evaluations lie at even distances."""
    if points.at_budget[usable].mean() < AT_BUDGETS or points.progress is None:
        return False
    seen = pd.DataFrame({"key": key, "at": points.progress})[usable & moving]
    by = seen.sort_values(["key", "at"]).groupby("key")["at"]
    times = (seen["at"] / by.shift()).groupby(seen["key"]).min()
    return bool(by.size().median() >= FEWEST_BRANCHES and times.median() >= APART)


def _ask_whether_history(
    points: Points, key: np.ndarray, usable: np.ndarray, moving: np.ndarray
) -> None:
    """Raise unless ids of runs tell that these are evaluations: a few runs that were resumed, or
    evenly spaced ones."""
    several = len(np.unique(key[moving]))
    if points.is_id:
        if several <= RESUMED * len(np.unique(key[usable])):
            return
        seen = pd.DataFrame({"key": key, "at": points.progress})[usable & moving]
        seen = seen.sort_values(["key", "at"])
        by = seen.groupby("key")["at"]
        apart = by.diff().groupby(seen["key"])
        if by.size().median() >= 4 and (apart.std() / apart.mean()).median() < EVEN:
            return
    raise UserError(
        f"{several} names of runs stand in several rows of one size that differ in their "
        "training: are these evaluations of one run (--history: the last of each counts), or runs "
        "that share a name (--no-history: every row is a finished run)?"
    )


def _runs(points: Points) -> np.ndarray:
    """A number for each run: a name, at one size and seed; a row without a name is its own."""
    assert points.run is not None
    alone = points.run < 0
    frame = pd.DataFrame({"run": points.run})
    if points.n is not None and _several(points.n, points.run, SIZE).any():
        # Sizes that follow from compute and tokens differ from row to row by roundings.
        with np.errstate(divide="ignore", invalid="ignore"):
            frame["n"] = np.round(np.log(points.n) / np.log(SIZE))
    if points.seed is not None and _several(points.seed, points.run).any():
        frame["seed"] = points.seed
    if points.kind is not None:
        frame["kind"] = points.kind
    if points.schedule is not None and not points.is_id:
        frame["schedule"] = points.schedule
    key = points.run.copy()
    if len(frame.columns) > 1:
        by = frame.groupby(list(frame.columns), sort=False, dropna=False)
        key = by.ngroup().to_numpy(copy=True)
    key[alone] = key.max(initial=0) + 1 + np.arange(int(alone.sum()))
    return key


def _several(values: np.ndarray, key: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Whether a row's group has several values, more than a factor apart."""
    return highest(values, key) > factor * -highest(-values, key)


def highest(values: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The largest value of each row's group, NaN left aside; -inf where there is no other.

    key: numbers of the groups, -1 among them. A groupby's transform takes four times as long.
    """
    top = np.full(key.max(initial=-1) + 2, -np.inf)  # the last one is of -1
    np.fmax.at(top, key, values)
    largest: np.ndarray = top[key]
    return largest


def _moving(points: Points, key: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Rows of runs that stand at several steps or amounts of training."""
    moving = np.zeros(len(key), bool)
    for values in (points.step, points.progress):
        if values is not None and not moving.all():
            moving |= _several(np.where(usable, values, np.nan), key)
    return moving


def _last(points: Points, key: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The row of each run with a loss and the most training; the later row where they are equal.

    The last step with a loss is the last one, also where its training was not written: an earlier
    row would stand in the middle of the schedule.
    """
    rows, progress = np.arange(len(key)), points.progress
    if progress is not None and points.step is not None and np.isnan(progress).any():
        step = np.where(usable, points.step, np.nan)
        progress = np.where(np.isnan(progress) & (step == highest(step, key)), np.inf, progress)
    for values in (None if usable.all() else usable, progress, points.step, np.arange(len(key))):
        if values is not None:
            known = np.nan_to_num(values[rows].astype(float), nan=-1.0, posinf=np.inf)
            rows = rows[known == highest(known, key[rows])]
    return rows


def _decayed(points: Points, kept: np.ndarray, key: np.ndarray) -> np.ndarray:
    decayed = _reached(points, kept)
    decayed &= ~_constant(points, kept)
    share = _shares(points, kept, key)
    if share is not None:
        typical = float(np.median(share[share < DECAYED])) if (share < DECAYED).any() else 0.0
        decayed &= (share < DECAYED) & (share <= max(FURTHER * typical, 0.15))
    return decayed


def _went_on(points: Points, kept: np.ndarray, key: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Whether a run's rows go on without a loss for longer than between its evaluations: it
    diverged, or was not evaluated at its end."""
    at = points.step if points.step is not None else points.progress
    if at is None or usable.all():
        return np.zeros(len(kept), bool)
    count = np.bincount(key[usable], minlength=key.max() + 1)[key[kept]]
    last = at[kept]
    beyond = highest(at, key)[kept] - last
    with np.errstate(divide="ignore", invalid="ignore"):
        went_on: np.ndarray = (beyond > EVALUATIONS * last / count) & (beyond > EARLIER * last)
    return went_on


def _shares(points: Points, kept: np.ndarray, key: np.ndarray) -> np.ndarray | None:
    """The last rate of each run over its highest; None where no rate moves along a run (then the
    column holds the rate that was configured)."""
    if points.lr is None:
        return None
    top = highest(points.lr, key)
    if not (-highest(-points.lr, key) < top * 0.999).any():
        return None
    top = top[kept]
    final = points.lr[kept]
    if np.isnan(final).any():  # the row that is kept may lack a rate: the last one that is known
        order = points.step if points.step is not None else np.arange(len(key))
        known = pd.DataFrame({"key": key, "lr": points.lr, "at": order}).dropna(subset="lr")
        last = known.sort_values("at", kind="stable").drop_duplicates("key", keep="last")
        final = last.set_index("key")["lr"].reindex(key[kept]).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(top > 0, final / top, np.nan)


def _reached(points: Points, kept: np.ndarray) -> np.ndarray:
    """Whether a run came to the end of its planned steps, where the table gives them."""
    reached = np.ones(len(kept), bool)
    if points.planned is None or points.step is None:
        return reached
    planned, step = points.planned[kept], points.step[kept]
    known = np.isfinite(planned) & np.isfinite(step) & (planned > 0)
    reached[known] = step[known] + 1 >= ENDED * planned[known]
    return reached


def _tell(points: Points, kept: np.ndarray, decayed: np.ndarray) -> list[str]:
    assert points.run is not None
    if points.lr is None and points.schedule is None and points.planned is None:
        beware = [
            "beware: no column tells whether the learning rate had decayed at the last points; "
            "they are taken for decayed"
        ]
    else:
        beware = []
    return beware if decayed.all() else [*beware, *_named(points, kept[~decayed])]


def _named(points: Points, rows: np.ndarray) -> list[str]:
    """What is said of runs whose rate had not decayed; rows: their numbers, or which they are."""
    where = np.flatnonzero(rows) if rows.dtype == bool else rows
    numbers = np.full(len(points.loss), -1) if points.run is None else points.run
    names = [points.names[numbers[i]] if numbers[i] >= 0 else f"row {i}" for i in where]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return [
        f"{len(names)} runs end before their learning rate has decayed (a constant rate, cut "
        f"short, or without a loss at the end) and are left out: {', '.join(names[:6])}{more}"
    ]


def _close_together(points: Points, usable: np.ndarray) -> list[str]:
    """A warning where rows of one size lie so close in training that they may be evaluations."""
    if points.n is None or points.progress is None:
        return []
    seen = pd.DataFrame({"n": points.n, "at": points.progress})[usable & (points.progress > 0)]
    seen = seen.drop_duplicates().sort_values(["n", "at"])
    by = seen.groupby("n")["at"]
    many = by.transform("size") >= MANY
    times = (seen["at"] / by.shift())[many].groupby(seen["n"][many]).median()
    if not len(times) or many.mean() < 0.5 or times.median() > CLOSE:
        return []
    return [
        "beware: of one size there are rows with little more training than others; if they are "
        "evaluations along runs, name the runs (--run COLUMN --history): only the last ones count"
    ]


def _refuse_unknown_runs(points: Points, usable: np.ndarray, told: bool | None) -> None:
    """A history without names of runs cannot be told from runs of several lengths."""
    if told is True:
        raise UserError("--history: no column names the runs; give it with --run")
    if points.step is None:
        return
    if points.planned is not None and _reached(points, np.flatnonzero(usable)).all():
        return  # each row is the end of its own run
    frame = pd.DataFrame({"step": points.step, "n": 0.0 if points.n is None else points.n})
    frame = frame[usable]
    steps = frame.groupby("n")["step"].nunique() if points.n is not None else None
    if points.n is None:
        if frame["step"].nunique() > 1:
            raise UserError(_UNKNOWN)
        return
    if steps is not None and len(steps) and (steps > 1).mean() > 0.2:
        raise UserError(_UNKNOWN)


_UNKNOWN = (
    "the table has a column of steps and several steps of one size, but no column that names the "
    "runs: evaluations along runs, or runs of different length? Name the runs with --run COLUMN "
    "(the last point of each counts); or say --no-history where every row is a finished run"
)
