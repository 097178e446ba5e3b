"""How often the intervals of the law of rate and batch hold a known truth.

    python benchmarks/rates_coverage.py --count 200            # rates alone; --batch: with batches

Simulated sweeps of 4 sizes x 3 numbers of tokens. The truth is none of the fitted forms: a parabola
below the best rate and, above it, one that steepens with the fourth power, of a curvature that
falls with D; the optimum of each cell lies sd 0.1 octaves off its power law; 0.3% of noise; rates
far above the best diverge.
"""

from __future__ import annotations

import argparse

import numpy as np

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.rates_fit import fit_rates
from tests.analysis.sweep_truth import TRUTH, simulated


def main() -> None:
    """Print the share of intervals that hold the truth, and their width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch", action="store_true")
    asked = parser.parse_args()
    held: dict[str, list[tuple[bool, float]]] = {}
    refused = 0
    for seed in range(asked.count):
        try:
            law = fit_rates(**simulated(seed, batch=asked.batch), within=None)
        except NotIdentified as refusal:
            refused += 1
            print(f"seed {seed}: {refusal}")
            continue
        for name, (_, low, high) in law.exponents.items():
            held.setdefault(name, []).append((low <= TRUTH[name] <= high, high - low))
        if seed % 50 == 49:
            report(held, refused)


def report(held: dict[str, list[tuple[bool, float]]], refused: int) -> None:
    """Print the shares so far."""
    for name, each in held.items():
        inside, width = np.array(each).T
        print(f"{name}: {inside.mean():.1%} of {len(each)}, median width {np.median(width):.3f}")
    print(f"refused: {refused}", flush=True)


if __name__ == "__main__":
    main()
