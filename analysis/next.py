"""Which runs to do next: the design that narrows the law most per MAC.

Around the fitted L(N, D) the noise of log loss is known, so the information of a run that has not
been done is known too: with gradient g of log L at its (N, D), the covariance V of the parameters
becomes V - V g g'V / (sigma^2 + g'V g). A target (the frontier's exponent, or the log loss of the
best run of a budget) has variance c'V c, and the gain of a run is what that loses.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.isoflop import fit_rows
from analysis.parametric import Optimum, ParametricLaw


def next_runs(
    law: ParametricLaw | pd.DataFrame,
    budget: float,
    *,
    target: float | None = None,
    sizes: np.ndarray | None = None,
    runs: int = 8,
    per_run: bool = False,
    reach: float = 8.0,
) -> pd.DataFrame:
    """Choose runs one by one, each the largest gain per unit of compute that the rest affords.

    With per_run each is the largest gain that an even share of what is left affords, which spends
    the budget on few, larger runs. A pair that comes twice is a repeat with another seed.

    law: a fitted law, or the rows to fit one to. budget: compute for all new runs together, in
    law.unit. target: compute whose best loss is to be predicted; None: the frontier's exponent is
    to be narrowed. sizes: parameters that can be trained (default: a grid over and a factor two
    beyond those that were). A run's tokens lie within a factor `reach` of the compute-optimal
    ratio. Returns n, d, compute, sd_before, sd_after (of the exponent, or of the relative loss).
    """
    if isinstance(law, pd.DataFrame):
        law = fit_rows(law)
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"budget is {budget!r}: give a positive number of {law.unit}")
    covariance, sigma = _state(law)
    direction = _exponent_gradient(law) if target is None else _loss_gradient(law, target)
    n, d = _candidates(law, budget, sizes, reach)
    compute = law.per_token * n * d
    gradients = _gradient(law, n, d)  # (candidates, 5)
    left = budget
    out: list[tuple[float, ...]] = []
    for _ in range(runs):
        affordable = compute <= (left / (runs - len(out)) if per_run else left)
        if not affordable.any():
            break
        reach_v = gradients @ covariance  # V g for every candidate
        spread = sigma**2 + np.einsum("cp,cp->c", reach_v, gradients)
        gain = (reach_v @ direction) ** 2 / spread
        worth = gain if per_run else gain / compute
        best = int(np.argmax(np.where(affordable, worth, -1)))
        before = float(np.sqrt(direction @ covariance @ direction))
        moved = covariance @ gradients[best]
        covariance = covariance - np.outer(moved, moved) / spread[best]
        after = float(np.sqrt(max(direction @ covariance @ direction, 0.0)))
        out.append((float(n[best]), float(d[best]), float(compute[best]), before, after))
        left -= compute[best]
    if not out:
        raise ValueError(
            f"a budget of {budget:.3g} {law.unit} affords none of the candidates; the cheapest "
            f"costs {compute.min():.3g}"
        )
    return pd.DataFrame(out, columns=["n", "d", "compute", "sd_before", "sd_after"])


def best_run(law: ParametricLaw | pd.DataFrame, compute: float) -> Optimum:
    """The size and tokens that a target budget should buy, and the loss to expect."""
    return (fit_rows(law) if isinstance(law, pd.DataFrame) else law).optimum(compute)


def _state(law: ParametricLaw) -> tuple[np.ndarray, float]:
    """Covariance of (log E, log A, log B, alpha, beta), and the noise of a run's log loss.

    From the information of the runs done, not from the resamples: those have heavy tails in A
    and B, which a single number per parameter cannot carry.
    """
    jacobian = _gradient(law, law.n, law.d)
    scale = np.linalg.norm(jacobian, axis=0)
    information = (jacobian / scale).T @ (jacobian / scale)
    covariance = np.linalg.pinv(information, rcond=1e-14) / np.outer(scale, scale)
    return covariance * law.noise**2, law.noise


def _gradient(law: ParametricLaw, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """d log L / d (log E, log A, log B, alpha, beta) at (N, D): (points, 5)."""
    s2, s3 = law.a / n**law.alpha, law.b / d**law.beta
    terms = [np.full_like(s2, law.e), s2, s3, -s2 * np.log(n), -s3 * np.log(d)]
    return np.stack(terms, 1) / (law.e + s2 + s3)[:, None]


def _exponent_gradient(law: ParametricLaw) -> np.ndarray:
    total = (law.alpha + law.beta) ** 2
    return np.array([0, 0, 0, -(law.beta**2) / total, -(law.alpha**2) / total])


def _loss_gradient(law: ParametricLaw, compute: float) -> np.ndarray:
    # At the optimum the loss does not change with N to first order, so N may be held.
    n = np.array([float(law.n_opt(compute))])
    return _gradient(law, n, compute / (law.per_token * n))[0]


def _candidates(law, budget, sizes, reach) -> tuple[np.ndarray, np.ndarray]:
    if sizes is None:
        sizes = np.geomspace(law.n.min() / 2, law.n.max() * 2, 24)
    sizes = np.unique(np.asarray(sizes, dtype=float))
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError("sizes must be finite positive numbers of parameters")
    done = law.per_token * law.n * law.d
    compute = np.geomspace(done.min(), max(budget, done.min() * 1.01), 48)
    n, c = (g.ravel() for g in np.meshgrid(sizes, compute))
    near = np.abs(np.log(n / law.n_opt(c))) <= np.log(reach)
    if not near.any():
        raise ValueError("no size lies near the optimum of an affordable budget; widen `reach`")
    return n[near], c[near] / (law.per_token * n[near])
