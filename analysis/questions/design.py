"""Which of many candidate runs narrow one number of a fitted law most, within a budget.

Around a fitted law the noise of log loss is known, so the information of a run that has not been
done is known too: with g the gradient of its log loss in units of the noise, the information
matrix M becomes M + g g'. A number with gradient c has the variance c' M^-1 c (a c-optimal design,
Elfving 1952), which the exchange of single candidates lowers until none helps (Fedorov 1972).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

PASSES = 100  # exchanges at most; a few are enough


@dataclass(frozen=True)
class Candidates:
    """What may be bought: m candidates, each as often as one likes."""

    gradient: np.ndarray  # (m, p) of log loss, over the noise's standard deviation
    cost: np.ndarray  # (m,) compute
    count: np.ndarray  # (m,) runs that one is made of


@dataclass(frozen=True)
class Plan:
    """Runs to do, and the interval before and after them."""

    runs: pd.DataFrame  # a row per design: budget_macs, size, params, tokens, macs_total, seeds
    law: str  # "parametric", or the form of the law of compute: power, saturating
    what: str  # the number that is narrowed
    estimate: float
    now: tuple[float, float]
    expected: tuple[float, float] | None  # None: most simulated futures identify no law
    refused: float  # share of the simulated futures that identify no law
    budget: float
    reason: str  # why this law

    @property
    def macs(self) -> float:
        """Compute of all runs."""
        return float((self.runs["macs_total"] * self.runs["seeds"]).sum())

    @property
    def count(self) -> int:
        """Runs, seeds counted."""
        return int(self.runs["seeds"].sum())

    def __str__(self) -> str:
        shown = self.runs.rename(
            columns={"params": "parameters", "macs_total": "MACs each", "seeds": "runs"}
        ).drop(columns="budget_macs")
        low, high = self.now
        lines = [
            shown.to_string(index=False, float_format=lambda v: f"{v:.3g}"),
            f"  cost         {self.count} run{'s' * (self.count > 1)}, {self.macs:.3g} of "
            f"{self.budget:.3g} MACs ({self.macs / self.budget:.0%})",
            f"  narrows      {self.what}",
            f"  now          {self.estimate:.4f}, 95% [{low:.4f}, {high:.4f}], "
            f"{high - low:.2g} wide",
        ]
        some = f"; {self.refused:.0%} of the simulated studies identify no law"
        if self.expected is None:
            lines.append(f"  expect       no interval{some}")
        else:
            low, high = self.expected
            lines.append(
                f"  expect       [{low:.4f}, {high:.4f}], {high - low:.2g} wide, once they are "
                f"done and fitted again{some if self.refused else ''}"
            )
        lines.append(f"  because      {self.reason}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {
            "runs": self.runs.to_dict("records"), "what": self.what, "estimate": self.estimate,
            "now": list(self.now), "expected": None if self.expected is None
            else list(self.expected), "refused": self.refused, "macs": self.macs,
            "budget": self.budget, "reason": self.reason,
        }  # fmt: skip


def choose(
    candidates: Candidates, information: np.ndarray, direction: np.ndarray, budget: float, runs: int
) -> list[int]:
    """Indices (with repeats) of the candidates that leave the least variance of `direction`.

    information: (p, p) of the runs done; direction: (p,). Together they cost at most `budget` and
    are at most `runs` runs; empty when none is affordable.
    """
    scale = np.sqrt(np.diag(information))
    scaled = Candidates(candidates.gradient / scale, candidates.cost, candidates.count)
    information = information / np.outer(scale, scale)
    direction = direction / scale
    best: tuple[float, list[int]] = (np.inf, [])
    for even in (True, False):  # shared evenly, or the dearest first
        chosen = _greedy(scaled, information, direction, budget, runs, even)
        chosen = _exchange(scaled, information, direction, budget, runs, chosen)
        left = variance(_added(scaled, information, chosen), direction)
        if left < best[0]:
            best = left, chosen
    return sorted(best[1])


def variance(information: np.ndarray, direction: np.ndarray) -> float:
    """c' M^-1 c."""
    return float(direction @ np.linalg.solve(information, direction))


def _added(candidates: Candidates, information: np.ndarray, chosen: list[int]) -> np.ndarray:
    g = candidates.gradient[chosen]
    added: np.ndarray = information + g.T @ g
    return added


def _gain(candidates: Candidates, information: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """What each candidate takes off the variance: (m,)."""
    moved = np.linalg.solve(information, candidates.gradient.T).T
    own = np.einsum("mp,mp->m", moved, candidates.gradient)
    gain: np.ndarray = (moved @ direction) ** 2 / (1 + own)
    return gain


def _greedy(
    candidates: Candidates, information: np.ndarray, direction: np.ndarray, budget: float,
    runs: int, even: bool,
) -> list[int]:  # fmt: skip
    chosen: list[int] = []
    while True:
        left = budget - candidates.cost[chosen].sum()
        free = runs - int(candidates.count[chosen].sum())
        share = left * candidates.count / free if even and free > 0 else left
        fits = (candidates.cost <= np.minimum(share, left) * (1 + 1e-9)) & (
            candidates.count <= free
        )
        if not fits.any():
            return chosen
        gain = _gain(candidates, _added(candidates, information, chosen), direction)
        chosen.append(int(np.argmax(np.where(fits, gain, -1))))


def _exchange(
    candidates: Candidates, information: np.ndarray, direction: np.ndarray, budget: float,
    runs: int, chosen: list[int],
) -> list[int]:  # fmt: skip
    """Replace one candidate at a time by the best that its place affords, and fill what is free."""
    for _ in range(PASSES):
        now = variance(_added(candidates, information, chosen), direction)
        best = (now * (1 - 1e-6), chosen)
        for place in {*chosen, None}:
            rest = list(chosen)
            if place is not None:
                rest.remove(place)
            left = budget - candidates.cost[rest].sum()
            fits = (candidates.cost <= left * (1 + 1e-9)) & (
                candidates.count <= runs - candidates.count[rest].sum()
            )
            if not fits.any():
                continue
            kept = _added(candidates, information, rest)
            gain = np.where(fits, _gain(candidates, kept, direction), -1)
            new = int(gain.argmax())
            after = variance(kept, direction) - gain[new]
            if after < best[0]:
                best = (after, [*rest, new])
        if best[1] is chosen:
            break
        chosen = best[1]
    return chosen
