"""Do 95% intervals cover 95% of the time? Simulated studies with known truth, by kind.

    python benchmarks/coverage.py [--studies 1000] [--kinds NAME ...]

Per kind and quantity: the share of intervals that hold the truth, the bias of the estimate in its
own standard deviations, the median width of the interval over that of an oracle (3.92 standard
deviations of the estimates), and the share of studies that were refused. The truth of a pure law
fitted to a curve that saturates is the line through the noise-free frontier of its budgets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from analysis.frontier import fit_frontier
from analysis.isoflop import approaches, fit_rows
from analysis.laws import NotIdentified, fit
from analysis.simulate import PURE, TRUTH, Truth, frontier_exponent, study

Quantity = tuple[float, float, float, float]  # truth, estimate, low, high
RESAMPLES = 1000


def ladder(truth: Truth, **design) -> Callable[[int], dict[str, Quantity]]:
    """A study of a ladder of sizes; the pure exponent of its frontier."""
    budgets = study(truth, **design)["budget_macs"].to_numpy()
    expected = frontier_exponent(truth, budgets)

    def one(seed: int) -> dict[str, Quantity]:
        rows = study(truth, seed=seed, **design)
        law = fit_frontier(rows, seed=seed, form="power", resamples=RESAMPLES).law
        return {"exponent": (expected, law.b, *law.ci["b"])}

    return one


def table(n: int, e: float, noise: float, decades: float, groups: int = 0):
    """Points of a law of compute, independent or in runs that share half of the variance."""

    def one(seed: int) -> dict[str, Quantity]:
        rng = np.random.default_rng(seed)
        compute = 1e12 * np.geomspace(1, 10**decades, n)
        share = noise * np.sqrt(0.5) if groups else 0.0
        index = np.arange(n) * groups // n if groups else np.arange(n)
        shock = np.sqrt(noise**2 - share**2) * rng.standard_normal(n)
        shock += share * rng.standard_normal(n)[index]
        b = -0.17 if e else -0.045
        loss = (e + (1.0 if e else 2.6) * (compute / 1e12) ** b) * np.exp(shock)
        form = "saturating" if e else "power"
        law = fit(compute, loss, form=form, groups=index.tolist(), seed=seed, resamples=RESAMPLES)
        out = {"exponent": (b, law.b, *law.ci["b"])}
        if e:
            out["floor"] = (e, law.e, *law.ci["E"])
        ahead = law.predict(compute[-1] * 10)
        truth = e + (1.0 if e else 2.6) * (10 ** (decades + 1)) ** b
        out["a decade on"] = (truth, ahead.loss, ahead.low, ahead.high)
        return out

    return one


def surface(truth: Truth, **design) -> Callable[[int], dict[str, Quantity]]:
    """L(N, D) of a study's cells."""

    def one(seed: int) -> dict[str, Quantity]:
        rows = study(truth, seed=seed, **design)
        law = fit_rows(rows, seed=seed, loss_kind="huber", delta=0.01, resamples=RESAMPLES)
        size = truth.beta / (truth.alpha + truth.beta)
        best = law.optimum(1e15)
        return {
            "alpha": (truth.alpha, law.alpha, *law.ci["alpha"]),
            "beta": (truth.beta, law.beta, *law.ci["beta"]),
            "size exponent": (size, law.size_exponent, *law.ci["size_exponent"]),
            "loss at 1e15": (float(truth.frontier(np.array(1e15))), best.loss, *best.loss_interval),
        }

    return one


def best_sizes(truth: Truth, **design) -> Callable[[int], dict[str, Quantity]]:
    """Growth of the best size, by the three approaches of analysis/isoflop.py."""

    def one(seed: int) -> dict[str, Quantity]:
        found = approaches(study(truth, seed=seed, **design), seed=seed, resamples=RESAMPLES)
        expected = truth.beta / (truth.alpha + truth.beta)
        return {
            f"approach {row['approach'][0]}": (
                expected,
                row["size_exponent"],
                row["low"],
                row["high"],
            )
            for row in found.to_dict("records")
        }

    return one


NOISE = dict(run_noise=0.002, point_noise=0.002)
KINDS: dict[str, Callable[[int], dict[str, Quantity]]] = {
    "ladder, independent noise": ladder(PURE, run_noise=0.0, point_noise=0.003),
    "ladder, trunks share noise": ladder(PURE, **NOISE),
    "ladder, mostly shared noise": ladder(
        PURE, sizes=8, budgets=6, run_noise=0.003, point_noise=0.001
    ),
    "ladder, one run per budget": ladder(
        PURE, sizes=7, budgets=6, trunks=False, run_noise=0.0, point_noise=0.003
    ),
    "ladder, saturating truth": ladder(TRUTH, **NOISE),
    "ladder, saturating, 5 x 4": ladder(TRUTH, sizes=5, budgets=4, **NOISE),
    "ladder, saturating, 8 x 6": ladder(TRUTH, sizes=8, budgets=6, **NOISE),
    "ladder, two seeds": ladder(TRUTH, seeds=2, **NOISE),
    "ladder, 5% outliers": ladder(PURE, outliers=0.05, **NOISE),
    "ladder, mistuned rates": ladder(PURE, mistuned=0.5, run_noise=0.001, point_noise=0.002),
    "table, 5 points": table(5, 0.0, 0.003, 1.7),
    "table, 8 points": table(8, 0.0, 0.003, 1.7),
    "table, 30 points": table(30, 0.0, 0.005, 2.0),
    "table, 24 points of 8 runs": table(24, 0.0, 0.005, 2.0, groups=8),
    "table, saturating, 12 points": table(12, 1.6, 0.001, 3.0),
    "table, saturating, 40 points": table(40, 1.6, 0.002, 3.0),
    "surface, 24 runs": surface(TRUTH, trunks=False, run_noise=0.0, point_noise=0.002),
    "surface, 60 runs": surface(
        TRUTH, sizes=10, budgets=8, decades=2.5, trunks=False, run_noise=0.0, point_noise=0.003
    ),
    "best size, 10 x 6": best_sizes(
        TRUTH, sizes=10, budgets=6, decades=2.5, trunks=False, run_noise=0.0, point_noise=0.002
    ),
    "best size, trunks, 8 x 6": best_sizes(TRUTH, sizes=8, budgets=6, **NOISE),
}  # fmt: skip


def run(one: Callable[[int], dict[str, Quantity]], first_seed: int, studies: int) -> list[str]:
    """Lines of the table for one kind."""
    found: dict[str, list[Quantity]] = {}
    refused = 0
    for seed in range(first_seed, first_seed + studies):
        try:
            for name, quantity in one(seed).items():
                found.setdefault(name, []).append(quantity)
        except NotIdentified:
            refused += 1
    lines = []
    for name, quantities in found.items():
        truth, estimate, low, high = np.array(quantities).T
        covered = ((low <= truth) & (truth <= high)).mean()
        deviation = estimate.std()
        bias = (estimate - truth).mean() / deviation
        width = np.median(high - low) / (3.92 * deviation)
        lines.append(
            f"{name:14s} {covered:7.1%} {bias:+8.2f} {width:8.2f} {refused / studies:9.1%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    print(f"{options.studies} studies of each kind, {RESAMPLES} resamples, 95% intervals")
    print(f"{'kind':32s}{'quantity':15s} covered  bias/sd    width   refused")
    for name in options.kinds:
        start = time.perf_counter()
        # Seeds of its own: kinds that shared theirs would be lucky or unlucky together.
        first_seed = 1_000_000 * (1 + list(KINDS).index(name))
        for line in run(KINDS[name], first_seed, options.studies):
            print(f"{name:32s}{line}", flush=True)
        print(f"{'':32s}({time.perf_counter() - start:.0f} s)", flush=True)
    exact = refused_exact(options.studies)
    print(f"three points, three parameters: refused {exact} of {options.studies}")


def refused_exact(studies: int) -> int:
    """A three-parameter fit to three points must be refused, every time."""
    count = 0
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        compute = 1e12 * np.sort(10 ** rng.uniform(0, 3, 3))
        loss = np.sort(rng.uniform(1.5, 4, 3))[::-1]
        try:
            fit(compute, loss, form="saturating", resamples=100)
        except NotIdentified:
            count += 1
    return count


if __name__ == "__main__":
    main()
