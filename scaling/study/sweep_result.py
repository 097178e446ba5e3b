"""What the trials of a learning-rate sweep say: the rate that is taken, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.analysis.questions.best_rate import (
    NEIGHBOURHOOD,
    Optimum,
    Trial,
    drift,
    optimum,
    vertex_between,
)
from scaling.errors import UserError
from scaling.results import TOKEN_UNIT

ROUNDING = 4  # rates are used to a quarter of an octave: finer than any sweep can tell apart, and
# the same on machines whose last digits differ


@dataclass(frozen=True)
class SweepResult:
    """What the sweep found.

    `best_lr` is the vertex of one parabola in log2(lr) through all members (equal curvature and
    optimum, a level for each member), to a quarter of an octave. It is fitted around the rate with
    the lowest excess loss, averaged over the members (excess: above each one's own best; of equals
    the smaller), and stays within half an octave of it, below it where the next rate up diverged.
    Without a bowl, or on the edge of the grid, that rate itself. With TPE or GP, which share no
    rates between members, the parabola lies around the mean of the members' optima.
    """

    best_lr: float
    log2_lr: float
    low: float | None  # 95% interval of the vertex, log2; None where no parabola was used
    high: float | None
    trials: tuple[Trial, ...]  # by member, then rate
    optima: tuple[Optimum, ...]  # by member
    drift_octaves: float  # from the smallest to the largest (`best_rate.drift`); nan: no bowl
    drift_half: float | None  # half its 95% interval
    on_edge: bool  # the best rate is the first or last one tried
    warnings: tuple[str, ...]
    axis: str = "width"  # or "depth": what the members are

    def lowest(self, member: int) -> Trial:
        """The trial of a member with the lowest loss."""
        return min(
            (t for t in self.trials if t.member == member), key=lambda t: (t.loss, t.log2_lr)
        )

    def summary(self, unit: str = TOKEN_UNIT, shape: str = "") -> str:
        """A line for the whole, one for each member, one for each warning; losses in `unit`.

        shape: told behind the rate, where a study has a rate for each shape of model.
        """
        optimum = _interval(self.low, self.high, "95% ", ", ")
        error = "" if self.drift_half is None else f" ± {self.drift_half:.2f}"
        moved = f"drift {self.drift_octaves:+.2f}{error} octaves"
        if math.isnan(self.drift_octaves):
            moved = "drift not determined"
        lines = [f"learning rate 2^{self.log2_lr:g}{shape} ({optimum}{moved})"]
        for best in self.optima:
            interval = _interval(best.low, best.high, " ")
            mine = [t for t in self.trials if t.member == best.member]
            diverged = sum(not math.isfinite(t.loss) for t in mine)
            lines.append(
                f"  {self.axis} {best.member}: best near 2^{best.log2_lr:.2f}{interval}, lowest "
                f"{best.loss:.4f} {unit} of {len(mine)} rates"
                + (f", {diverged} diverged" if diverged else "")
            )
        return "\n".join([*lines, *(f"  warning: {w}" for w in self.warnings)])


def _interval(low: float | None, high: float | None, before: str, after: str = "") -> str:
    if low is None or high is None:
        return ""
    if high - low > 2 * NEIGHBOURHOOD:  # wider than what it was fitted to
        return f"{before}(the losses do not determine it){after}"
    return f"{before}[{low:.2f}, {high:.2f}]{after}"


def read_trials(
    trials: Sequence[Trial], low: int, high: int, sampler: str = "grid", axis: str = "width"
) -> SweepResult:
    """What trials between 2^low and 2^high say.

    Raises UserError when no rate has a finite loss at every member.
    """
    members = sorted({t.member for t in trials})
    by_member = {m: [t for t in trials if t.member == m] for m in members}
    optima = tuple(optimum(by_member[m], axis) for m in members)
    warnings = []
    if sampler == "grid":
        anchor = _lowest_mean_excess(by_member)
        on_edge = low < high and anchor in (low, high)
    else:
        anchor = float(np.mean([o.log2_lr for o in optima]))
        on_edge = min(anchor - low, high - anchor) < 0.25
    vertex, half = (None, None) if on_edge else vertex_between(trials, anchor)
    log2_lr = anchor
    if vertex is not None:
        next_up = [t.loss for t in trials if 0 < t.log2_lr - anchor <= 1]
        highest = anchor + 0.5 if all(map(math.isfinite, next_up)) else anchor
        rounded = round(ROUNDING * vertex) / ROUNDING
        log2_lr = min(max(rounded, anchor - 0.5), highest)
    if on_edge:
        side = "log2_min" if log2_lr - low < high - log2_lr else "log2_max"
        warnings.append(
            f"the best learning rate, 2^{log2_lr:g}, lies on the edge of what was tried "
            f"(2^{low:g}..2^{high:g}); move lr.{side} to be sure of it"
        )
    moves, moves_half = drift(trials) if len(members) > 1 else (0.0, None)
    if abs(moves) > 1:
        warnings.append(
            f"the best rate moves by {moves:+.1f} octaves from {axis} {optima[0].member} to "
            f"{optima[-1].member}: it does not transfer well at this setting"
        )
    return SweepResult(
        best_lr=2.0**log2_lr,
        log2_lr=log2_lr,
        low=None if vertex is None or half is None else vertex - half,
        high=None if vertex is None or half is None else vertex + half,
        trials=tuple(trials),
        optima=optima,
        drift_octaves=moves,
        drift_half=moves_half,
        on_edge=on_edge,
        warnings=tuple(warnings),
        axis=axis,
    )


def _lowest_mean_excess(by_member: dict[int, list[Trial]]) -> float:
    """The rate, tried at every member, with the lowest mean loss above each member's lowest."""
    excess: dict[float, list[float]] = {}
    for trials in by_member.values():
        lowest = min(t.loss for t in trials)
        for t in trials:
            excess.setdefault(t.log2_lr, []).append(t.loss - lowest)
    means = {
        p: sum(found) / len(found)
        for p, found in excess.items()
        if len(found) == len(by_member) and all(map(math.isfinite, found))
    }
    if not means:
        raise UserError(
            "learning-rate sweep: no rate gave a finite loss at every width; lower lr.log2_min"
        )
    return min(means, key=lambda p: (means[p], p))
