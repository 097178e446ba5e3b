"""Which of many candidate runs narrow one number of a fitted law most, within a budget.

Around a fitted law the noise of log loss is known, so the information of a run that has not been
done is known too: with g the gradient of its log loss in units of the noise, the information
matrix M becomes M + g g'. A number with gradient c has the variance c' M^-1 c (a c-optimal design,
Elfving 1952), which the exchange of single candidates lowers until none helps (Fedorov 1972).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PASSES = 100  # exchanges at most; a few are enough


@dataclass(frozen=True)
class Candidates:
    """What may be bought: m candidates, each as often as one likes."""

    gradient: np.ndarray  # (m, p) of log loss, over the noise's standard deviation
    cost: np.ndarray  # (m,) compute
    count: np.ndarray  # (m,) runs that one is made of


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
    return information + g.T @ g


def _gain(candidates: Candidates, information: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """What each candidate takes off the variance: (m,)."""
    moved = np.linalg.solve(information, candidates.gradient.T).T
    return (moved @ direction) ** 2 / (1 + np.einsum("mp,mp->m", moved, candidates.gradient))


def _greedy(candidates, information, direction, budget, runs, even) -> list[int]:
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


def _exchange(candidates, information, direction, budget, runs, chosen) -> list[int]:
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
