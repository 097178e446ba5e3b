"""The order of a run's steps and its learning rate, relative to the peak.

`wsd`: warm-up, constant, and for every budget of S steps a cooldown branch over the
last `cooldown` x S steps (1 - sqrt, Hägele et al. 2405.18392), after which the trunk goes on from
the branch point: one run gives one decayed point per budget. `cosine` (the paper's): one run per
budget, decayed to a tenth. The rate is always a multiple of each group's own, as muP requires.
"""

from __future__ import annotations

import math
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


def segments(run: RunConfig) -> list[Segment]:
    """The order in which a run does its steps. Raises UserError for an impossible schedule."""
    if run.schedule == "cosine":
        if len(run.budgets_steps) != 1:
            raise UserError("a cosine run serves one budget: its length is part of the schedule")
        return [Segment(0, run.budgets_steps[0], budget=0)]
    plan: list[Segment] = []
    at = 0
    for i, steps in enumerate(run.budgets_steps):
        branch = steps - max(1, round(run.cooldown * steps))
        if branch < max(at, run.warmup_steps):
            raise UserError(
                f"budget of {steps} steps: its cooldown would begin at step {branch}, before the "
                f"warm-up of {run.warmup_steps} steps or the last branch point {at} is over; use a "
                f"larger budget, a shorter warm-up or budgets further apart"
            )
        plan += [Segment(at, branch), Segment(branch, steps, budget=i, cooldown=True)]
        at = branch
    return plan


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
    """Log-spaced trunk steps at which the validation loss is taken mid-schedule."""
    last = segments(run)[-1].start if run.schedule == "wsd" else run.budgets_steps[0] - 1
    first = max(2 * run.warmup_steps, WINDOW_STEPS)
    if run.evals == 0 or last <= first:
        return set()
    points = np.geomspace(first, last, run.evals)
    return {int(round(p / WINDOW_STEPS) * WINDOW_STEPS) for p in points} - {0}


def position(plan: list[Segment], segment: int, step: int) -> int:
    """Steps done along the plan, branches included."""
    if segment >= len(plan):
        return sum(s.end - s.start for s in plan)
    return sum(s.end - s.start for s in plan[:segment]) + step - plan[segment].start
