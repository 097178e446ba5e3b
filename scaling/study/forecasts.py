"""The final losses to expect of a study's running runs, calibrated on its finished ones.

Read from the runs' folders alone, as the status is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scaling.analysis.laws.curve import Curve
from scaling.analysis.laws.forecast import FEWEST_ERRORS, Forecast, calibrated, forecast
from scaling.analysis.laws.schedule import Schedule, thinned
from scaling.config.run import RunConfig
from scaling.config.schedule import WINDOW_STEPS, Segment, branch, rate
from scaling.errors import UserError
from scaling.study.curves import records
from scaling.study_folder import RunFolder

GRID = 20  # parts of a run at which finished ones are looked at
MOST = 24  # finished runs that an interval rests on, of the same role; the last planned
EARLIEST = 0.1  # of a run's steps: before, nothing is said


def schedule_of(run: RunConfig) -> Schedule:
    """The rates that lead to the run's last budget: its trunk and the last cooldown."""
    steps = run.budgets_steps[-1]
    if run.schedule == "cosine":
        parts = [Segment(0, steps, budget=0)]
    else:
        at = branch(run, steps)
        parts = [Segment(0, at), Segment(at, steps, budget=0, cooldown=True)]
    rates = [run.lr * rate(run, part, k) for part in parts for k in range(part.start, part.end)]
    return thinned(np.arange(1.0, steps + 1), np.array(rates))


def curve_of(folder: RunFolder, run: RunConfig, share: float) -> tuple[Curve, float]:
    """The training losses on the way to the last budget, as far as a share of all the run's steps,
    and the validation loss at its end (NaN where it has none)."""
    logged = records(folder)
    total = max((r["position"] for r in logged if "position" in r), default=0)
    steps = run.budgets_steps[-1]
    step, loss = [], []
    for record in logged:
        on_way = record.get("branch") in (None, steps)
        if on_way and "train_loss" in record and record.get("position", 0) <= share * total:
            step.append(record["step"] - (WINDOW_STEPS - 1) / 2)  # the mean of a window
            loss.append(record["train_loss"])
    final = [
        r["val_loss"] for r in logged
        if r.get("decayed") and r["step"] == steps and _is_loss(r.get("val_loss"))
    ]  # fmt: skip
    where, order = np.unique(np.array(step, dtype=float), return_index=True)
    curve = Curve(folder.path.name, schedule_of(run), where, np.array(loss, dtype=float)[order])
    return curve, final[-1] if final else math.nan


def _is_loss(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


@lru_cache(maxsize=4096)
def _error(path: Path, part: int, changed: float) -> float | None:
    """Of a finished run: log of its final loss less its forecast after `part` of GRID parts."""
    folder = RunFolder(path)
    try:
        run = folder.config()
        curve, final = curve_of(folder, run, part / GRID)
        said = forecast(curve, run.budgets_steps[-1])
    except UserError:
        return None
    return None if said is None or math.isnan(final) else math.log(final) - said


def errors_of(finished: Sequence[RunFolder], share: float) -> list[float]:
    """Errors of the same forecast at the same share of finished runs."""
    part = max(1, min(GRID - 1, math.floor(share * GRID)))
    found = [_error(f.path, part, _changed(f)) for f in finished]
    return [e for e in found if e is not None]


def _changed(folder: RunFolder) -> float:
    try:
        return folder.metrics.stat().st_mtime
    except OSError:
        return 0.0


def forecast_of(
    folder: RunFolder, share: float, alike: Sequence[RunFolder], others: Sequence[RunFolder] = ()
) -> Forecast | None:
    """What to expect of a running run at a share of its steps; None where it cannot be told.

    alike: finished runs of the same role, which make the interval; where they are too few,
    `others` do too.
    """
    if share < EARLIEST:
        return None
    try:
        run = folder.config()
        curve, _ = curve_of(folder, run, math.inf)
        said = forecast(curve, run.budgets_steps[-1])
    except UserError:  # what is wrong with it is told where it is run
        return None
    if said is None:
        return None
    errors = errors_of(alike[-MOST:], share)
    if len(errors) < FEWEST_ERRORS:
        errors += errors_of(others[-MOST:], share)
    return calibrated(said, errors)
