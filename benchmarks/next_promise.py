"""Does `scaling next` keep its promise? Simulated studies whose planned runs are done.

    python benchmarks/next_promise.py [--studies 40] [--kinds NAME ...]

Per kind: the median over studies of the width of the interval that comes, once the planned runs
are simulated at the truth and the rows are fitted again, over the width that was promised; the
middle half of these ratios; the median share of the budget that the plan spends; how much narrower
the interval became; and the studies in which a law was refused before or after.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.next import expanded, fitted, next_runs
from scaling.analysis.questions.simulate import PURE, TRUTH, Truth, study
from scaling.analysis.tables.ladder import Ladder

Kind = tuple[Truth, dict[str, Any], float, float | None]  # truth, design, budget, target
KINDS: dict[str, Kind] = {
    "L(N, D), exponent": (TRUTH, dict(sizes=8, trunks=False, run_noise=0.0), 1e14, None),
    "L(N, D), loss a decade on": (TRUTH, dict(sizes=8, trunks=False, run_noise=0.0), 1e14, 1.5e14),
    "L(N, D) of trunks, exponent": (TRUTH, {}, 1e14, None),
    "compute, pure, exponent": (PURE, {}, 1e14, None),
    "compute, pure, loss a decade on": (PURE, {}, 1e14, 1.5e14),
    "compute, two sizes a budget": (TRUTH, dict(sizes=4, reach=2.5, trunks=False), 5e13, None),
}


def one(kind: Kind, seed: int) -> tuple[float, float, float]:
    """Width that comes over the width promised; over today's; share of the budget spent."""
    truth, design, budget, target = kind
    rows = study(truth, seed=seed, **design)
    plan = next_runs(rows, budget, target=target, seed=seed)
    if plan.expected is None:
        raise NotIdentified("no interval was promised")
    rng = np.random.default_rng(seed)
    runs = plan.runs.loc[plan.runs.index.repeat(plan.runs["seeds"])]
    n, d = runs["params"].to_numpy(float), runs["tokens"].to_numpy(float)
    noise = np.hypot(design.get("run_noise", 0.002), 0.002)
    loss = truth(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    _, (low, high) = fitted(expanded(Ladder.of(rows), runs, loss), plan.law, target)
    promised, now = (float(np.ptp(pair)) for pair in (plan.expected, plan.now))
    return (high - low) / promised, (high - low) / now, plan.macs / budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    print(f"{'kind':34}{'came / promised':>17}{'middle half':>16}{'came / now':>12}{'spent':>8}"
          f"{'refused':>9}{'s':>6}")  # fmt: skip
    for name in arguments.kinds:
        start, found, refused = time.perf_counter(), [], 0
        for seed in range(arguments.studies):
            try:
                found.append(one(KINDS[name], seed))
            except NotIdentified:
                refused += 1
        ratio, narrower, spent = np.array(found).T
        low, high = np.quantile(ratio, [0.25, 0.75])
        print(
            f"{name:34}{np.median(ratio):17.3f}{f'{low:.2f} to {high:.2f}':>16}"
            f"{np.median(narrower):12.2f}{np.median(spent):8.0%}{refused:9d}"
            f"{time.perf_counter() - start:6.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
