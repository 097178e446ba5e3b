"""The loss curves that a study's runs logged, as a table of evaluations along runs."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from scaling.errors import UserError
from scaling.study_folder import RunFolder, Study

if TYPE_CHECKING:
    import pandas as pd


def records(run: RunFolder) -> list[dict[str, Any]]:
    """What a run logged, a record a window of steps or an evaluation; a torn line is passed
    over."""
    out = []
    try:
        lines = run.metrics.read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            out.append(record)
    return out


def frame(study: Study) -> pd.DataFrame:
    """run, size, params, step, lr, train_loss: a row a window of steps of every planned run.

    Each cooldown branch of a trunk is a run of its own, `t64 3be48caabe64 to 1200`, that begins
    with the trunk up to its branch point. The rate is the base rate of each step.
    Raises UserError: no run has logged anything.
    """
    import pandas as pd

    from scaling.models.macs import parameter_counts

    rows: list[tuple[Any, ...]] = []
    for entry in study.plan().runs:
        run = study.run(entry["run_id"])
        logged = [r for r in records(run) if {"train_loss", "lr"} <= r.keys()]
        if not logged or not run.config_yaml.exists():
            continue
        model = run.config().model
        params = parameter_counts(model)["all"]
        trunk = [r for r in logged if r.get("branch") is None]
        ends = sorted({r["branch"] for r in logged if r.get("branch") is not None})
        for end in ends or [None]:
            branch = [r for r in logged if end is not None and r.get("branch") == end]
            begun = min((r["step"] for r in branch), default=math.inf)
            name = f"{entry['size']} {entry['run_id']}" + (f" to {end}" if end is not None else "")
            for record in [*(r for r in trunk if r["step"] < begun), *branch]:
                # What branches share counts once, with the last of them.
                alone = end == max(ends, default=None) or record.get("branch") == end
                loss = record["train_loss"] if alone else math.nan
                rows.append((name, entry["size"], params, record["step"], record["lr"], loss))
    if not rows:
        raise UserError(f"{study}: no run has logged a loss yet; see `scaling status`")
    columns = ["run", "size", "params", "step", "lr", "train_loss"]
    return pd.DataFrame(rows, columns=columns)
