"""A ladder that places its own runs: which sizes, budgets and seeds the next round trains.

    round = propose(space, losses)       # None: the compute is spent

A pure function of the losses so far, so that a study that was killed takes the same decisions again
and its record can be made anew from its rows. It goes up from the smallest budgets, three sizes a
budget: the best to expect and its neighbours. Where the lowest loss is of the smallest or largest
size that was tried, the next size is added. What is left at the largest budget buys seeds, each
where it takes most off the variance of the law's exponent for its compute: with x the log budgets,
a least-squares slope has the variance of sum_k w_k^2 / n_k, w_k = (x_k - mean x) / sum (x - mean)^2
and n_k the runs near the best size of a budget.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BEGIN = 2  # budgets of the first round
TOKENS = 20.0  # per parameter, of the first guess at the best size (Hoffmann et al. 2022)
SLOPES = 0.3, 0.7  # of log best size over log compute, at most
NEAR = np.log(2.5)  # log of the ratio to the best size beyond which a run tells nothing of its loss
MOST_SEEDS = 4  # of one size at one budget
SHARE = 0.5  # of what is left, bought as seeds before another look at the edges
REST = 0.1  # of all compute; less than that is spent at once

PLACED = (
    "the ladder placed its own runs: in simulations of steep laws such intervals held the truth in "
    "5 or 6 of 10 studies, on others in 9 of 10 (docs/how-to/placed-ladder.md)"
)


class Cell(NamedTuple):
    """A decayed point that is asked for: numbers of a size and budget in a `Space`, and a seed."""

    size: int
    seed: int
    budget: int


@dataclass(frozen=True)
class Space:
    """What may be trained. Sizes by their parameters, budgets by their MACs, both increasing."""

    params: np.ndarray  # (sizes,) that a token is multiplied with
    budgets: np.ndarray  # (budgets,) training MACs
    step_macs: np.ndarray  # (sizes,) integers
    steps: np.ndarray  # (sizes, budgets) integers; 0: a rule leaves the pair out
    branches: np.ndarray  # (sizes, budgets) the step at which a cooldown begins
    macs: float  # to be spent

    def cost(self, size: int, budgets: Iterable[int]) -> int:
        """MACs of a run to these budgets: its trunk, and a cooldown for each."""
        several = list(budgets)
        if not several:
            return 0
        steps, branch = self.steps[size, several], self.branches[size, several]
        return int(self.step_macs[size]) * int(branch.max() + (steps - branch).sum())

    def total(self, cells: Iterable[Cell]) -> int:
        """MACs of all these points."""
        return sum(self.cost(run[0], budgets) for run, budgets in _by_run(cells).items())

    def tried_at(self, budget: int) -> list[int]:
        """The sizes that may be trained to a budget."""
        return np.flatnonzero(self.steps[:, budget]).tolist()


@dataclass(frozen=True)
class Round:
    """What is to be trained next, and why."""

    why: str
    cells: tuple[Cell, ...]


def propose(space: Space, losses: Mapping[Cell, float]) -> Round | None:
    """The next round; None where the compute is spent.

    losses: of every point of the rounds before; infinite where it diverged.
    """
    means = _means(losses)
    if not losses:
        cells = [c for k in range(BEGIN) for c in _around(space, means, k)]
        return Round("begin: three sizes about 20 tokens a parameter", tuple(cells))
    edges = [
        Cell(size, 0, k)
        for k, of_sizes in sorted(means.items())
        for size in _beyond(space, of_sizes, k)
    ]
    if found := _affordable(space, losses, edges):
        return Round("edge: the best size is the smallest or largest tried there", found)
    if (k := max(means) + 1) < len(space.budgets) and (
        found := _affordable(space, losses, _around(space, means, k))
    ):
        return Round("budget: three sizes about the best to expect", found)
    if found := _seeds(space, losses, means):
        return Round("seeds: where the exponent gains most for its compute", found)
    return None


def _by_run(cells: Iterable[Cell]) -> dict[tuple[int, int], set[int]]:
    """(size, seed) -> budgets."""
    runs: dict[tuple[int, int], set[int]] = {}
    for size, seed, budget in cells:
        runs.setdefault((size, seed), set()).add(budget)
    return runs


def _means(losses: Mapping[Cell, float]) -> dict[int, dict[int, float]]:
    """Budget -> size -> mean loss over its seeds; a size that diverged there is infinitely bad."""
    several: dict[int, dict[int, list[float]]] = {}
    for (size, _, budget), loss in losses.items():
        several.setdefault(budget, {}).setdefault(size, []).append(loss)
    return {k: {i: float(np.mean(v)) for i, v in at.items()} for k, at in several.items()}


def _beyond(space: Space, means: Mapping[int, float], budget: int) -> list[int]:
    """The sizes next to the best one that were not tried at a budget and may be."""
    best = min(means, key=means.__getitem__)
    allowed = space.tried_at(budget)
    return [size for size in (best - 1, best + 1) if size in allowed and size not in means]


def _affordable(
    space: Space, losses: Mapping[Cell, float], cells: Iterable[Cell]
) -> tuple[Cell, ...]:
    """Of these, in order, those that the compute buys."""
    chosen: list[Cell] = []
    for cell in cells:
        if cell not in losses and space.total({*losses, *chosen, cell}) <= space.macs:
            chosen.append(cell)
    return tuple(chosen)


def _around(space: Space, means: Mapping[int, Mapping[int, float]], budget: int) -> list[Cell]:
    """Three sizes at a budget: the best to expect and its neighbours."""
    allowed = space.tried_at(budget)
    off = np.abs(np.log(space.params[allowed]) - _best(space, means, budget))
    middle = int(np.clip(off.argmin(), 1, max(len(allowed) - 2, 1)))
    return [Cell(size, 0, budget) for size in allowed[middle - 1 : middle + 2]]


def _best(space: Space, means: Mapping[int, Mapping[int, float]], budget: int) -> float:
    """Log parameters of the best size to expect at a budget: on the line through the vertices of
    parabolas, one for each budget whose best size has both neighbours."""
    x, y = [], []
    log_n, log_c = np.log(space.params), np.log(space.budgets)
    for k, of_sizes in sorted(means.items()):
        best = min(of_sizes, key=of_sizes.__getitem__)
        three = [best - 1, best, best + 1]
        loss = np.array([of_sizes.get(size, np.inf) for size in three])
        if not np.isfinite(loss).all():
            continue
        at = log_n[three] - log_n[best]
        bend, slope, _ = np.polyfit(at, loss, 2)
        if bend > 0:
            x.append(log_c[k])
            y.append(log_n[best] + float(np.clip(-slope / (2 * bend), at[0], at[2])))
    if not x:
        return float(0.5 * (log_c[budget] - np.log(3 * TOKENS)))
    steep = float(np.clip(np.polyfit(x, y, 1)[0], *SLOPES)) if len(x) > 2 else 0.5
    return float(np.mean(y) + steep * (log_c[budget] - np.mean(x)))


def _seeds(
    space: Space, losses: Mapping[Cell, float], means: Mapping[int, Mapping[int, float]]
) -> tuple[Cell, ...]:
    """New seeds, and further budgets of those that are there, while the compute of this round
    lasts: one after the other, each the best for its compute."""
    x = np.log(space.budgets) - np.log(space.budgets).mean()
    share = (x / (x @ x)) ** 2
    best = np.array([_best(space, means, k) for k in range(len(x))])
    near = np.maximum(1 - ((np.log(space.params)[:, None] - best) / NEAR) ** 2, 0)
    near[space.steps == 0] = 0
    runs, count = _by_run(losses), np.zeros_like(near)
    for size, _, budget in losses:
        count[size, budget] += 1
    left = space.macs - space.total(losses)
    left = left * SHARE if left > REST * space.macs else left
    chosen: list[Cell] = []
    while True:
        told = np.maximum((near * count).sum(0), 0.25)
        gain = share * (1 / told - 1 / (told + near)) * (count < MOST_SEEDS)
        found = _unit(space, runs, gain, left)
        if found is None:
            return tuple(chosen)
        cost, cells = found
        left -= cost
        chosen += cells
        for size, seed, budget in cells:
            runs.setdefault((size, seed), set()).add(budget)
            count[size, budget] += 1


def _unit(
    space: Space, runs: Mapping[tuple[int, int], Collection[int]], gain: np.ndarray, left: float
) -> tuple[int, list[Cell]] | None:
    """MACs and points of the run, or of the further budgets of one, that gains most for a MAC:
    adjoining budgets, for a cooldown costs a part of its trunk."""
    best: tuple[float, int, list[Cell]] | None = None
    for size in range(len(space.params)):
        useful = np.flatnonzero(gain[size]).tolist()
        seeds = [seed for other, seed in runs if other == size]
        for seed in sorted({*seeds, max(seeds, default=-1) + 1}):
            had = set(runs.get((size, seed), ()))
            before = space.cost(size, had)
            new = [k for k in useful if k not in had]
            for low, high in _stretches(new):
                budgets = [k for k in new if low <= k <= high]
                cost = space.cost(size, had.union(budgets)) - before
                rate = float(gain[size, budgets].sum()) / cost
                if cost <= left and (best is None or rate > best[0]):
                    best = rate, cost, [Cell(size, seed, k) for k in budgets]
    return None if best is None else best[1:]


def _stretches(budgets: list[int]) -> Iterable[tuple[int, int]]:
    return ((low, high) for low in budgets for high in budgets if low <= high)
