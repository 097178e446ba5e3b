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

TRUTH = {"lr ~ N": -0.6, "lr ~ D": 0.25, "batch ~ N": -0.1, "batch ~ D": 0.55}
SIZES, TOKENS = np.array([1e7, 4e7, 16e7, 64e7]), np.array([1e9, 6e9, 36e9])
SCATTER, NOISE, DIVERGES = 0.1, 0.003, 4.0


def simulated(seed: int, *, batch: bool = False) -> dict[str, np.ndarray]:
    """n, d, lr, loss (inf where it diverged) and batch (runs,) of one simulated sweep."""
    rng = np.random.default_rng(seed)
    rates = np.arange(-14, -5, 1.0 if batch else 0.5)
    batches = np.arange(15, 23, 1.0) if batch else np.zeros(1)
    n, d, x, b = (a.ravel() for a in np.meshgrid(SIZES, TOKENS, rates, batches, indexing="ij"))
    log_n, log_d = np.log2(n / 8e7), np.log2(d / 6e9)
    of_cell = np.unique(np.stack([n, d]), axis=1, return_inverse=True)[1].ravel()
    off = SCATTER * rng.standard_normal((2, of_cell.max() + 1))[:, of_cell]
    v = b - (19 + TRUTH["batch ~ N"] * log_n + TRUTH["batch ~ D"] * log_d + off[1])
    v = v if batch else np.zeros_like(b)
    u = x - (-9.5 + TRUTH["lr ~ N"] * log_n + TRUTH["lr ~ D"] * log_d + off[0]) - 0.35 * v
    curvature = 0.008 * 2.0 ** (-0.2 * log_d)
    above = curvature * (u**2 / 2 + 0.03 * np.maximum(u, 0) ** 4) + 0.005 * v**2 / 2
    loss = (1.8 + 400 / n**0.34 + 410 / d**0.28) * np.exp(above)
    loss *= np.exp(NOISE * rng.standard_normal(len(n)))
    loss[u > DIVERGES + 0.5 * rng.standard_normal(len(u))] = np.inf
    return {"n": n, "d": d, "lr": 2.0**x, "loss": loss, "batch": 2.0**b}


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
            law = fit_rates(**simulated(seed, batch=asked.batch))
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
