"""A ladder that places its own runs: one round after another, and the record of what was decided.

`design.json` holds every round with its reason, and is written before the round is trained. A study
that was killed takes up the rounds it had decided; without the record it decides the same again,
for a decision is a function of the losses (`analysis.questions.rounds`), and these are repeatable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scaling.analysis.questions.rounds import Cell, Round, Space, propose
from scaling.config.run import RunConfig
from scaling.config.schema import StudyConfig
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.plan import runs as plan
from scaling.storage import files
from scaling.study_folder import Study


def ladders(
    config: StudyConfig,
    study: Study,
    rates: Mapping[str, float],
    data: TokenData,
    say: Callable[[str], None],
) -> Iterator[list[RunConfig]]:
    """All runs that are decided on, again after each round: they are to be trained before the next.

    rates: that sweeps found, by shape.
    Raises UserError: the record was changed.
    """
    names, space = plan.ladder_space(config)
    given = config.ladder.log2_lr if config.ladder else None
    rate = rates if given is None else 2.0**given

    def runs_of(cells: list[Cell]) -> list[RunConfig]:
        return plan.ladder_runs(config, rate, data.key, data.path, cells)[0]

    every = plan.every_cell(config)
    assert every is not None
    asked = _sha256([space.macs, space.budgets.tolist(), [r.run_id for r in runs_of(every)]])
    rounds = _read(study, asked, names, space)
    if rounds:
        say(f"ladder: {len(rounds)} rounds were decided before ({study.design_json.name})")
    while True:
        cells = [cell for one in rounds for cell in one.cells]
        if rounds:
            yield runs_of(cells)
        losses = _losses(config, study, names, space, runs_of(cells), cells) if cells else {}
        found = propose(space, losses)
        if found is None:
            spent = sum(map(plan.path_macs, runs_of(cells)))
            say(f"ladder: {len(rounds)} rounds, {spent:.3g} of {space.macs:.3g} MACs")
            return
        rounds.append(found)
        _write(study, asked, names, space, rounds)
        say(f"ladder: round {len(rounds)}: {len(found.cells)} points. {found.why}")


def _losses(
    config: StudyConfig,
    study: Study,
    names: list[str],
    space: Space,
    runs: list[RunConfig],
    cells: list[Cell],
) -> dict[Cell, float]:
    """Of every point; infinite where its run diverged."""
    held: dict[tuple[str, int, float], float] = {}
    for run in runs:
        for row in study.run(run.run_id).read() or []:
            if row["decayed"] and row["val_loss"] is not None:
                key = (run.model.name, run.seed - config.seed, row["budget_macs"])
                held[key] = float(row["val_loss"])
    found = {}
    for cell in cells:
        loss = held.get((names[cell.size], cell.seed, float(space.budgets[cell.budget])), math.inf)
        found[cell] = loss if math.isfinite(loss) else math.inf
    return found


# -------------------------------------------------------------------------------------- the record


def _sha256(held: Any) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _write(study: Study, asked: str, names: list[str], space: Space, rounds: list[Round]) -> None:
    told = [
        {
            "why": one.why,
            "points": [
                {"size": names[i], "seed": seed, "budget_macs": float(space.budgets[k])}
                for i, seed, k in one.cells
            ],
        }
        for one in rounds
    ]
    held = {"asked": asked, "macs": space.macs, "rounds": told}
    files.write(study.design_json, json.dumps(held | {"sha256": _sha256(held)}, indent=1))


def _read(study: Study, asked: str, names: list[str], space: Space) -> list[Round]:
    """The rounds that were decided; none where something else was asked for then."""
    try:
        held = files.read_json(study.design_json, dict)
        if held.pop("sha256") != _sha256(held):
            raise UserError("its checksum differs")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{study.design_json}: damaged, or changed by hand ({error}). Remove it and run the "
            f"study again: the same is decided anew from the losses that are there, and nothing is "
            f"trained twice"
        ) from None
    if held["asked"] != asked:
        return []
    budgets = space.budgets.tolist()
    return [
        Round(
            one["why"],
            tuple(
                Cell(names.index(p["size"]), p["seed"], budgets.index(p["budget_macs"]))
                for p in one["points"]
            ),
        )
        for one in held["rounds"]
    ]
