"""The points of a run: every evaluation that it ever made, and those of the budgets asked for now.

A run that grows (`RunConfig.grows`) is asked for more budgets, or for others, as its study changes.
`points.json` holds all that it has; `rows.json` is chosen from it, so that the table of a study is
a function of its configuration, whatever was asked for before and in which order.

No torch here: a study's driver settles its runs before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable

from scaling import results
from scaling.config.run import RunConfig
from scaling.config.schedule import WINDOW_STEPS, branch
from scaling.errors import UserError
from scaling.results import Row
from scaling.storage import files
from scaling.storage.files import RunBusy, RunLock
from scaling.study_folder import RunFolder


def merged(run: RunConfig, *several: Iterable[Row]) -> list[Row]:
    """Rows without repetition, by steps; of the same evaluation the last one counts."""
    found = {_what(run, row): row for rows in several for row in rows}
    return sorted(found.values(), key=lambda row: (row["steps"], row["decayed"]))


def ended(run: RunConfig, rows: Iterable[Row]) -> set[int]:
    """Steps of the budgets that have a point, or that cannot have one: they diverged."""
    done, stopped = set(), math.inf
    for row in rows:
        kind, steps = _what(run, row)
        if kind in ("point", "stop"):
            done.add(steps)
        elif kind == "end":
            stopped = min(stopped, steps)
    if run.grows:
        done |= {steps for steps in run.budgets_steps if branch(run, steps) >= stopped}
    elif stopped < math.inf:
        done |= set(run.budgets_steps)
    return done


def chosen(run: RunConfig, rows: Iterable[Row]) -> list[Row]:
    """The rows that a study has of a run: those of its budgets, and of the trunk up to the last."""
    if not run.grows:
        return merged(run, rows)
    labels: dict[int, list[float]] = {}
    for steps, nominal in zip(run.budgets_steps, run.budgets_macs, strict=True):
        labels.setdefault(steps, []).append(nominal)
    last = branch(run, run.budgets_steps[-1])
    out: list[Row] = []
    for row in merged(run, rows):
        kind, steps = _what(run, row)
        if kind in ("point", "stop"):
            out += [row | {"budget_macs": nominal} for nominal in labels.get(steps, ())]
        elif kind == "trunk" and steps <= last:
            out.append(row)
        elif kind == "end":
            ahead = [s for s in run.budgets_steps if branch(run, s) >= steps]
            out += [row | {"budget_macs": labels[s][0]} for s in ahead[:1]]
    return out


def _what(run: RunConfig, row: Row) -> tuple[str, int]:
    """What a row is of, and where: an evaluation of the `trunk` at a step, the `point` at the end
    of a budget of so many steps, the `stop` of its cooldown, which diverged, or the `end` of a
    trunk that did at a step."""
    if row["decayed"]:
        return "point", row["steps"]
    if row["budget_macs"] is None:
        return "trunk", row["steps"]
    asked = dict(zip(run.budgets_macs, run.budgets_steps, strict=True))
    steps = asked.get(row["budget_macs"], 0)  # of the budget that was ahead
    if not steps:  # not asked for any more: in steps as the plan rounds them
        steps = max(1, round(row["budget_macs"] / (row["macs_total"] // row["steps"])))
    on_trunk = row["steps"] <= branch(run, steps) and row["steps"] % WINDOW_STEPS == 0
    if run.schedule == "cosine" or on_trunk:
        return "end", row["steps"]
    return "stop", steps


# --------------------------------------------------------------------------------------- the files


def known(folder: RunFolder, run: RunConfig) -> list[Row]:
    """All points that are there; those of another run, whose files lie there, are none.

    Raises UserError: they were changed since they were written.
    """
    try:
        held = files.read_json(folder.points_json, dict)
        rows = results.loads(held["rows"])
        if held["sha256"] != _sha256(rows):
            raise UserError("its checksum differs")
    except FileNotFoundError:  # of a version whose runs did not grow
        rows = folder.read() or []
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{folder.points_json}: damaged, or changed by hand ({error}). Remove it with "
            f"{folder.rows_json.name} and run the study again: what is missing is trained from the "
            f"states that the run has kept"
        ) from None
    return [row for row in rows if row.get("run_id") == run.run_id]


def write(folder: RunFolder, rows: list[Row]) -> None:
    """Make these the points of a run."""
    held = {"sha256": _sha256(rows), "rows": json.loads(results.dumps(rows))}
    files.write(folder.points_json, json.dumps(held, indent=1))


def _sha256(rows: list[Row]) -> str:
    return hashlib.sha256(results.dumps(rows).encode()).hexdigest()


def settle(folder: RunFolder, run: RunConfig, *, locked: bool = False) -> list[Row] | None:
    """Bring a run's folder to what is asked of it now; its rows where they are all there.

    Args:
        folder: of the run; nothing is made where it is not there.
        run: with the budgets that are asked for.
        locked: whether this process holds the folder; else it is taken to change anything, and a
            run that is at work is left alone.
    Raises:
        UserError: the folder is another run's, or its points are damaged.
    """
    if not folder.path.is_dir():
        return None
    _claim(folder, run)
    points = known(folder, run)
    rows = chosen(run, points)
    if not points:
        if locked and not _says(folder, run, all_of_it=True):
            files.write(folder.config_yaml, run.to_yaml())
        return None
    there = set(run.budgets_steps) <= ended(run, points)
    text = results.dumps(rows).encode() if there or any(r["decayed"] for r in rows) else b""
    old = folder.rows_json.read_bytes() if folder.rows_json.is_file() else b""
    if text == old and there != folder.goes_on.exists() and _says(folder, run):
        return rows if there else None
    if not locked:
        try:
            with RunLock(folder.path):
                return settle(folder, run, locked=True)
        except RunBusy:
            return None
    if not there:
        folder.goes_on.touch()
    if text != old:
        files.write(folder.rows_json, text) if text else folder.rows_json.unlink()
    if not _says(folder, run):
        files.write(folder.config_yaml, run.to_yaml())
    if there:
        folder.goes_on.unlink(missing_ok=True)
    return rows if there else None


def _says(folder: RunFolder, run: RunConfig, *, all_of_it: bool = False) -> bool:
    """Whether its config.yaml asks for the same budgets, or says the same in everything."""
    if not folder.config_yaml.is_file():
        return False
    if folder.config_yaml.read_text() == run.to_yaml():
        return True
    held = RunConfig.from_yaml(folder.config_yaml)
    if all_of_it:
        return held == run
    return (held.budgets_steps, held.budgets_macs) == (run.budgets_steps, run.budgets_macs)


def _claim(folder: RunFolder, run: RunConfig) -> None:
    """Raises UserError for the directory of another run."""
    there = folder.config_yaml
    if not there.exists() or there.read_text() == run.to_yaml():
        return
    held = RunConfig.from_yaml(there).run_id
    if held != run.run_id:
        raise UserError(
            f"{folder.path} holds run {held}, not {run.run_id}: its {there.name} was changed, or "
            f"it is another run's. Put the file back, use its own folder, or remove the folder to "
            f"train the run again"
        )
