"""Simulated sweeps of rate and batch, whose truth is none of the fitted forms."""

import numpy as np

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
