"""The order of a run's steps and its learning rate, relative to the peak.

`wsd`: warm-up, constant, and for every budget of S steps a cooldown branch over the
last `cooldown` x S steps (1 - sqrt, Hägele et al. 2405.18392), after which the trunk goes on from
the branch point: one run gives one decayed point per budget. Nothing on the trunk depends on the
budgets, so one that is added later costs what lies between it and the nearest state that was kept.
`cosine` (the paper's): one run per budget, decayed to a tenth; its length is part of its schedule.
The rate is always a multiple of each group's own, as muP requires.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scaling.config.run import RunConfig
from scaling.errors import UserError

WINDOW_STEPS = 10  # training loss is averaged, checked and logged over windows of this many steps
COSINE_FLOOR = 0.1  # LLaMA's final share of the peak rate


@dataclass(frozen=True)
class Segment:
    """Steps `start` to `end` at the trunk's rate, or (cooldown) falling to the budget's end."""

    start: int
    end: int
    budget: int | None = None  # index of the budget that ends here
    cooldown: bool = False


def branch(run: RunConfig, steps: int) -> int:
    """The trunk's step at which the cooldown of a budget of so many steps begins."""
    return steps - max(1, round(run.cooldown * steps))


def segments(run: RunConfig, ended: Iterable[int] = (), kept: Iterable[int] = ()) -> list[Segment]:
    """The order in which a run does its steps. Raises UserError for an impossible schedule.

    Args:
        run: with the budgets that are asked for.
        ended: steps of the budgets that are done.
        kept: steps of the trunk whose state is at hand; each stretch begins at the nearest below.
    """
    done, held = set(ended), {0, *kept}
    if run.schedule == "cosine":
        if len(run.budgets_steps) != 1:
            raise UserError("a cosine run serves one budget: its length is part of the schedule")
        (steps,) = run.budgets_steps
        return [] if steps in done else [Segment(max(held), steps, budget=0)]
    plan: list[Segment] = []
    for i, steps in enumerate(run.budgets_steps):
        at = branch(run, steps)
        if at < run.warmup_steps:
            raise UserError(
                f"budget of {steps} steps: its cooldown would begin at step {at}, before the "
                f"warm-up of {run.warmup_steps} steps is over; use a larger budget or a shorter "
                f"warm-up"
            )
        if steps in done:
            continue
        start = max(step for step in held if step <= at)
        if start < at:
            plan.append(Segment(start, at))
        plan.append(Segment(at, steps, budget=i, cooldown=True))
        done.add(steps)  # two budgets may round to the same steps
        held.add(at)
    return plan


def length(plan: Iterable[Segment]) -> int:
    """Steps of a plan, cooldowns included."""
    return sum(s.end - s.start for s in plan)


def rate(run: RunConfig, segment: Segment, step: int) -> float:
    """Multiple of the peak learning rate at a step (0-based)."""
    warm = min(1.0, (step + 1) / run.warmup_steps) if run.warmup_steps else 1.0
    if run.schedule == "cosine":
        total = run.budgets_steps[0]
        done = max(0.0, (step - run.warmup_steps) / max(1, total - run.warmup_steps))
        cosine = COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * min(1.0, done))) / 2
        return warm * cosine
    if segment.cooldown:
        return warm * (1 - math.sqrt((step - segment.start) / (segment.end - segment.start)))
    return warm


def evaluation_steps(run: RunConfig) -> set[int]:
    """Log-spaced trunk steps at which the validation loss is taken mid-schedule: `evals` of them,
    or, on a trunk that may grow, `evals` for a factor of ten, whatever its budgets."""
    last = branch(run, run.budgets_steps[-1])
    if run.schedule == "cosine":
        last = run.budgets_steps[0] - 1
    first = max(2 * run.warmup_steps, WINDOW_STEPS)
    if run.evals == 0 or last <= first:
        return set()
    points = list(np.geomspace(first, last, run.evals))
    if run.grows:
        count = math.floor(run.evals * math.log10(last / first)) + 2
        points = [first * 10 ** (k / run.evals) for k in range(count)]
    steps = {int(round(p / WINDOW_STEPS) * WINDOW_STEPS) for p in points} - {0}
    return {step for step in steps if step <= last} if run.grows else steps
