"""What else the same runs could have given: refits of L(N, D) to resampled points.

Few points: every resample is refitted by Newton's method. Many (`LARGE`): a resample moves the
estimate by one linear step, the cluster's summed scores through the curvature (the sandwich, whose
limit the bootstrap is), and the parameters that go with the moved *fitted values* are then found
by least squares on `NODES` points. The law is far from linear in E, A and alpha but its values
hardly are, so that the skew of the intervals survives the linear step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from scaling.analysis.laws.bootstrap import (
    FEW,
    MANY,
    Noise,
    cluster_weights,
    components,
    effective,
    widen,
)
from scaling.analysis.laws.surface import ITERATIONS, ROWS, Objective, continuation, newton
from scaling.errors import UserError

LARGE = 500  # points beyond which a resample is a linear step from the estimate
NODES = 128  # points whose fitted values stand for the law's
FINISHED = 1e-3  # gradient of a refit per point and unit of slope: a twentieth of its spread


@dataclass(frozen=True)
class Resampled:
    """Parameters that other noise, or other runs, would have given."""

    samples: np.ndarray  # (R, 5)
    jackknife: np.ndarray | None  # (G, 5), one cluster left out each; None: linear, no skew
    how: str
    unfinished: float  # share of the resamples whose refit did not reach a minimum


def resample(
    objective: Objective, estimate: np.ndarray, index: np.ndarray, noise: np.ndarray | None,
    resamples: int, seed: int,
) -> Resampled:  # fmt: skip
    """Few clusters: the noise of `components` (or the caller's) is drawn anew on the fitted law;
    many: whole clusters are drawn with replacement.

    estimate: (5,); index: (n,) cluster of each point, 0..G-1; noise: (R, n) of log loss, or None.
    """
    rng = np.random.default_rng(seed)
    clusters, count = int(index.max()) + 1, len(index)
    if noise is not None and (noise.ndim != 2 or noise.shape[1] != count):
        raise UserError(f"noise has shape {noise.shape}: want (resamples, {count})")
    if noise is not None and not np.isfinite(noise).all():
        raise UserError("noise holds values that are not finite: every draw must be a number")
    worth = effective(clusters, objective.each(1))
    anew = noise is not None or worth < FEW
    if anew:
        how = "noise of the study's runs drawn anew"
        draws: np.ndarray | Noise
        if noise is None:
            draws = _noise(objective, estimate, index)
            how = f"noise of {clusters} clusters drawn anew"
        else:
            draws = noise
    if count > LARGE:
        if anew:
            steps = _steps_anew(objective, estimate, index, draws, resamples, rng)
            jackknife = None
        else:
            steps, jackknife, how = _steps_drawn(objective, estimate, index, resamples, rng)
        samples, gradient = _follow(objective, estimate, steps)
        how += ", linearised"
        left_out = None if jackknife is None else estimate + jackknife @ objective.free.T
        return Resampled(samples, left_out, how, float((gradient > FINISHED).mean()))
    if anew:
        if isinstance(draws, Noise):
            draws = _draw(draws, objective, index, resamples, rng)
        log_f = np.log(objective.fitted(estimate)) + draws
        moved = replace(objective, y=log_f if objective.log else np.exp(log_f))
        samples, gradient = _refit(moved, estimate, objective.each(len(log_f)))
        return Resampled(samples, None, how, float((gradient > FINISHED).mean()))
    given = objective.each(1)
    drawn = cluster_weights(index, resamples, rng) * given
    samples, gradient = _refit(objective, estimate, drawn)
    samples = widen(samples, estimate, worth, objective.free.shape[1])
    left_out = np.arange(clusters)
    drop = (index[None] != left_out[:, None]) * given
    how = f"{clusters} clusters drawn with replacement"
    return Resampled(
        samples, _refit(objective, estimate, drop)[0], how, float((gradient > FINISHED).mean())
    )


def _refit(
    objective: Objective, estimate: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    first = np.tile(estimate, (len(weights), 1))
    stages = continuation(objective.delta, cold=False)
    theta, _, gradient = newton(objective, first, weights, stages, tolerance=1e-8)
    stuck = np.flatnonzero(gradient > 1e-6)
    if len(stuck):  # where E slides to 0 the way is long
        theta[stuck], _, gradient[stuck] = newton(
            objective.rows(stuck), theta[stuck], weights[stuck], (1.0,), 4 * ITERATIONS, 1e-8
        )
    return theta, gradient


def _noise(objective: Objective, estimate: np.ndarray, index: np.ndarray) -> Noise:
    """Standard deviations of log loss by run and by point."""
    fitted = objective.fitted(estimate)
    root = np.sqrt(objective.each(1)[0])  # times it, the noise of all points is of one scale
    jacobian = replace(objective, log=True).jacobian(estimate) @ objective.free * root[:, None]
    observed = objective.y if objective.log else np.log(objective.y)
    # The statistic whose degrees of freedom count: the size exponent, beta / (alpha + beta). In
    # runs of several points it hangs on the noise of runs, of which there are few; beta alone
    # hangs on that within runs. Where they are tied it is 1/2, and alpha takes its place.
    alpha, beta = estimate[3:]
    of_size = np.array([0, 0, 0, -beta, alpha]) / (alpha + beta) ** 2
    gradient = np.array([0, 0, 0, 0.5, 0.5]) if objective.tied else of_size
    influence = gradient @ objective.free @ np.linalg.pinv(jacobian)
    residual = (observed - np.log(fitted)) * root
    if objective.below != 1:  # around a quantile, not around the middle
        residual = residual - residual.mean()
    return components(jacobian, residual, index, influence)


def _draw(
    noise: Noise, objective: Objective, index: np.ndarray, rows: int, rng: np.random.Generator
) -> np.ndarray:
    """Noise (rows, n) whose middle in the sense of the objective is 0: a fit that counts misses
    below it ten times passes through the 1/11 quantile."""
    drawn = noise.draw(index, rows, rng) - noise.total * ndtri(1 / (1 + objective.below))
    scaled: np.ndarray = drawn / np.sqrt(objective.each(1))
    return scaled


def _steps_anew(
    objective: Objective, estimate: np.ndarray, index: np.ndarray, noise: np.ndarray | Noise,
    resamples: int, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Linear steps (R, p) that noise drawn anew on the fitted law would take, block by block."""
    jacobian = objective.jacobian(estimate) @ objective.free
    fitted = objective.fitted(estimate)
    total = len(noise) if isinstance(noise, np.ndarray) else resamples
    scores, curved, width = [], np.zeros(len(index)), 0.0
    weight = objective.each(1)[0]
    for start in range(0, total, ROWS):
        rows = min(ROWS, total - start)
        if isinstance(noise, np.ndarray):
            r = noise[start : start + rows]
        else:
            r = _draw(noise, objective, index, rows, rng)
        if not objective.log:
            r = fitted * np.expm1(r)
        width = width or max(objective.delta, 0.2 * float(np.std(r)))
        pull, slope = objective.pull(r, width)
        scores.append((pull * weight) @ jacobian)
        curved += slope.sum(0) * weight
    hessian = (jacobian.T * (curved / total)) @ jacobian
    return np.linalg.solve(hessian, np.concatenate(scores).T).T


def _steps_drawn(
    objective: Objective, estimate: np.ndarray, index: np.ndarray, resamples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, str]:  # fmt: skip
    """Linear steps (R, p) of clusters drawn with replacement, and (G, p) of each one left out."""
    jacobian = objective.jacobian(estimate) @ objective.free
    p, clusters = jacobian.shape[1], int(index.max()) + 1
    residual = objective.y - (
        np.log(objective.fitted(estimate)) if objective.log else objective.fitted(estimate)
    )
    weight = objective.each(1)
    pull, slope = (w * weight[0] for w in objective.pull(residual, _bandwidth(objective, residual)))
    scores = _by_cluster(pull[:, None] * jacobian, index, clusters)
    # The exact Hessian, with a smooth count of the points at Huber's corner in place of theirs.
    _, _, exact = objective.derivatives(estimate[None], weight, objective.delta)
    inside = objective.pull(residual, objective.delta)[1] * weight[0]
    bend = objective.free.T @ exact[0] @ objective.free - (jacobian.T * inside) @ jacobian
    gauss = (jacobian.T * slope) @ jacobian
    if np.linalg.eigvalsh(gauss + bend)[0] <= 1e-3 * np.linalg.eigvalsh(gauss)[0]:
        bend = np.zeros_like(bend)
    hessian = gauss + bend
    left_out = -np.linalg.solve(hessian, scores.T).T
    worth = effective(clusters, weight)
    factor = np.sqrt(worth / (worth - p))  # see `widen`
    if clusters > MANY:  # the bootstrap's limit: normal scores, fixed curvature
        # By eigenvalues: of points without noise the scores are zero, which Cholesky refuses.
        size, axes = np.linalg.eigh(scores.T @ scores)
        moved = rng.standard_normal((resamples, p)) * np.sqrt(np.maximum(size, 0)) @ axes.T
        steps = np.linalg.solve(hessian, moved.T).T
        how = f"{clusters} clusters, the normal limit of drawing them with replacement"
        return factor * steps, left_out, how
    counts = cluster_weights(np.arange(clusters), resamples, rng)
    outer = (slope[:, None, None] * jacobian[:, :, None] * jacobian[:, None]).reshape(-1, p * p)
    each = (counts @ _by_cluster(outer, index, clusters)).reshape(-1, p, p) + bend
    low = np.linalg.eigvalsh(each)[:, 0] < 0.1 * np.linalg.eigvalsh(hessian)[0]
    each[low] = hessian
    steps = np.linalg.solve(each, (counts @ scores)[..., None])[..., 0]
    return factor * steps, left_out, f"{clusters} clusters drawn with replacement"


def _by_cluster(values: np.ndarray, index: np.ndarray, clusters: int) -> np.ndarray:
    """Sums of (n, k) by cluster: (G, k)."""
    return np.stack([np.bincount(index, column, clusters) for column in values.T], 1)


def _bandwidth(objective: Objective, residual: np.ndarray) -> float:
    """Half-width of residuals that count as at the corner: Huber's own, or, where that is so small
    that hardly a point lies within, Hall and Sheather's (1988) for the density at a quantile, as
    the covariance of quantile regression has it (Koenker 2005, section 3.4.2)."""
    tau = 1 / (1 + objective.below)
    z = ndtri(tau)
    height = np.exp(-(z**2)) / (2 * np.pi)
    h = len(residual) ** (-1 / 3) * ndtri(0.975) ** (2 / 3)
    h *= (1.5 * height / (2 * z**2 + 1)) ** (1 / 3)
    h = min(h, 0.9 * tau)
    low, high = np.quantile(residual, [0.25, 0.75])
    scale = min(float(residual.std()), float(high - low) / 1.349)
    spread = (ndtri(tau + h) - ndtri(tau - h)) / 2
    return max(objective.delta, scale * float(spread))


def _follow(
    objective: Objective, estimate: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (R, 5) whose fitted values are the linear ones after `steps` (R, p), and the
    gradients (R,) at which their search ended."""
    count = len(objective.u)
    some = np.random.default_rng(0).permutation(count)[:NODES]
    at = objective.some(some)
    here = at.fitted(estimate)
    target = np.log(here) if objective.log else here
    target = target + steps @ (at.jacobian(estimate) @ objective.free).T
    nodes = replace(at, y=target, delta=np.inf, below=1.0)
    weights = np.ones_like(target)
    theta, _, gradient = newton(
        nodes, np.tile(estimate, (len(steps), 1)), weights, (1.0,), tolerance=1e-10
    )
    return theta, gradient
