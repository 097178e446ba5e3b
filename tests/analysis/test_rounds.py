"""A ladder that places its own runs, on losses of a known truth."""

import math

import numpy as np
import pytest

from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.rounds import Cell, Space, propose
from scaling.analysis.questions.simulate import Truth, _rows, frontier_exponent

TRUTH = Truth(e=3.0, a=56.0, alpha=0.5, b=243.0, beta=0.5)
NOISE = 0.003


def space(first: float = 5e10, macs: float = 6e12) -> Space:
    """Sizes 1.6 times apart, whose step costs 3 N x 1,000 tokens; a rule for very short runs."""
    params = 6000 * 1.6 ** np.arange(12)
    budgets = first * 2.0 ** np.arange(5)
    step = np.round(3000 * params).astype(int)
    steps = np.round(budgets / step[:, None]).astype(int) * (budgets > 100 * step[:, None])
    return Space(params, budgets, step, steps, steps - np.round(0.2 * steps).astype(int), macs)


def loss(of: Space, cell: Cell, study: int, truth: Truth) -> float:
    n, shared = of.params[cell.size], np.random.default_rng([study, cell.size, cell.seed])
    own = np.random.default_rng([study, *cell])
    noise = shared.standard_normal() + own.standard_normal()
    d = 1000.0 * of.steps[cell.size, cell.budget]
    return float(truth(n, d) * math.exp(NOISE * noise))


def ladder(
    of: Space, study: int, diverged: int | None = None, truth: Truth = TRUTH
) -> tuple[dict[Cell, float], list[str]]:
    """All losses, and the reasons of the rounds."""
    found: dict[Cell, float] = {}
    why: list[str] = []
    while (more := propose(of, found)) is not None:
        assert more.cells and not found.keys() & set(more.cells), "a round is new runs"
        assert propose(of, dict(sorted(found.items()))) == more, "whatever their order"
        why.append(more.why.split(":")[0])
        for cell in more.cells:
            found[cell] = math.inf if cell.size == diverged else loss(of, cell, study, truth)
    return found, why


def test_places_its_runs_about_the_best_sizes() -> None:
    of, inside, covered, macs = space(), [], [], []
    for study in range(5):
        found, why = ladder(of, study)
        assert why[0] == "begin" and why[-1] in ("seeds", "edge") and why.count("budget") == 3
        macs.append(of.total(found) / of.macs)
        cells = np.array(list(found))
        n, d = of.params[cells[:, 0]], 1000.0 * of.steps[cells[:, 0], cells[:, 2]]
        rows = _rows(
            cells[:, 0] * 100 + cells[:, 1], cells[:, 1], n, d, 3 * n * d,
            np.array(list(found.values())),
        ).assign(budget_macs=of.budgets[cells[:, 2]])  # fmt: skip
        law = fit_frontier(rows, form="power", resamples=300)
        inside.append(~law.points["edge"])
        low, high = law.pure.ci["b"]
        covered.append(low < frontier_exponent(TRUTH, of.budgets) < high)
        assert high - low < 0.012
    assert min(macs) > 0.9 and max(macs) <= 1
    assert np.mean(inside) > 0.9 and np.mean(covered) > 0.7


def test_a_first_guess_that_is_far_off_is_left() -> None:
    """The best size has a tenth of the parameters that are guessed first."""
    of, truth = space(first=5e11, macs=6e13), Truth(e=3.0, a=5.0, alpha=0.5, b=243.0, beta=0.5)
    assert truth.n_opt(5e11) < 0.1 * (5e11 / 60) ** 0.5
    found, why = ladder(of, 0, truth=truth)
    assert why.count("edge") > 1
    lowest = {k: min((c for c in found if c.budget == k), key=found.__getitem__) for k in range(5)}
    for k, cell in lowest.items():
        tried = {c.size for c in found if c.budget == k}
        assert min(tried) < cell.size < max(tried) or cell.size in (0, len(of.params) - 1)


@pytest.mark.parametrize("size", range(2, 6))
def test_a_size_that_diverges_is_the_worst(size: int) -> None:
    found, _ = ladder(space(), 0, diverged=size)
    assert space().total(found) <= space().macs
    assert len({c.budget for c in found}) == 5
    assert sum(c.size == size for c in found) < len(found) / 2


def test_the_cost_of_a_run_is_its_trunk_and_its_cooldowns() -> None:
    of = space()
    steps = of.steps[3, [0, 2]]
    cooldowns = np.round(0.2 * steps).astype(int)
    expected = int(of.step_macs[3]) * int(steps[1] - cooldowns[1] + cooldowns.sum())
    assert of.cost(3, [0, 2]) == expected and of.cost(3, []) == 0
