"""What else the same runs could have given: refits of L = E + a C^b to resampled points.

Few points: every resample is refitted. More than LARGE: a resample moves the estimate by one Newton
step. How noise is told and drawn: analysis/laws/bootstrap.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scaling.analysis.laws.bootstrap import (
    FEW,
    MANY,
    Noise,
    cluster_weights,
    components,
    effective,
    widen,
)
from scaling.analysis.laws.solver import best, cluster_sums, log_jacobian, log_law, one_step

LARGE = 500  # points beyond which a resample is one Newton step from the estimate


@dataclass(frozen=True)
class Fitted:
    """Points, and the law that was fitted to them."""

    x: np.ndarray  # (n,) log compute about its mean
    y: np.ndarray  # (n,) log loss
    weights: np.ndarray  # (n,) of mean 1, in proportion to 1 / variance of log loss
    delta: float  # corner of Huber's loss, in log loss
    pin: float | None  # the value that E keeps (0: the pure law); None: it is free
    theta: np.ndarray  # (3,) E, log a at the mean of log compute, b

    @cached_property
    def log_loss(self) -> np.ndarray:
        """Of the law at the points, (n,)."""
        log_loss: np.ndarray = log_law(self.theta[None], self.x)[0]
        return log_loss

    @cached_property
    def jacobian(self) -> np.ndarray:
        """Of the points' noise, which times the root of their weights is of one scale: (n, p)."""
        slopes = log_jacobian(self.theta[None], self.x, self.pin)[0]
        scaled: np.ndarray = slopes * np.sqrt(self.weights)[:, None]
        return scaled

    def refit(self, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """theta (R, 3) of other log losses (R, n), each point counted so often (R, n)."""
        weights = counts * self.weights
        return best(self.x, targets, weights, self.delta, self.pin, self.theta)[0]

    def noise(self, index: np.ndarray) -> Noise:
        """What the residuals tell of the noise; index (n,): the cluster of each point."""
        residual = (self.y - self.log_loss) * np.sqrt(self.weights)
        influence = np.linalg.pinv(self.jacobian)[-1]  # of each point's noise on the exponent
        return components(self.jacobian, residual, index, influence)


@dataclass(frozen=True)
class Resampled:
    """Parameters that other noise, or other runs, would have given."""

    samples: np.ndarray  # (R, 3)
    jackknife: np.ndarray | None  # (G, 3), one cluster left out each; None: linear, no skew
    how: str


def resample(
    law: Fitted, index: np.ndarray, noise: np.ndarray | None, resamples: int, seed: int
) -> Resampled:
    """Few clusters: their noise (or the caller's) is drawn anew on the fitted law; many: whole
    clusters are drawn with replacement.

    index: (n,) cluster of each point, 0..G-1; noise: (R, n) of log loss, or None.
    """
    if noise is not None:
        targets = law.log_loss + noise
        how = "noise of the study's runs drawn anew, frontier recomputed"
        return Resampled(law.refit(targets, np.ones_like(targets)), None, how)
    rng = np.random.default_rng(seed)
    clusters = int(index.max()) + 1
    worth = effective(clusters, law.weights)
    if len(law.y) > LARGE:
        if worth < FEW:
            return _steps_anew(law, index, resamples, rng)
        return _steps_drawn(law, index, resamples, rng)
    if worth < FEW:
        drawn = law.noise(index).draw(index, resamples, rng)
        samples = law.refit(law.log_loss + drawn / np.sqrt(law.weights), np.ones_like(drawn))
        return Resampled(samples, None, f"noise of {clusters} clusters drawn anew")
    counts = cluster_weights(index, resamples, rng)
    samples = law.refit(np.broadcast_to(law.y, counts.shape), counts)
    samples = widen(samples, law.theta, worth, law.jacobian.shape[1])
    samples[:, 0] = np.maximum(samples[:, 0], 0)
    left_out = (index[None] != np.arange(clusters)[:, None]).astype(float)
    jackknife = law.refit(np.broadcast_to(law.y, left_out.shape), left_out)
    return Resampled(samples, jackknife, f"{clusters} clusters drawn with replacement")


def _steps_anew(
    law: Fitted, index: np.ndarray, resamples: int, rng: np.random.Generator
) -> Resampled:
    """The steps that noise drawn anew on the fitted law would take."""
    clusters, jacobian = int(index.max()) + 1, law.jacobian
    spread = law.noise(index)
    sums = np.stack([np.bincount(index, column, clusters) for column in jacobian.T], 1)
    moved = spread.draw_sums(sums, jacobian.T @ jacobian, resamples, rng)
    samples = one_step(law.theta, moved, (jacobian.T @ jacobian)[None])
    return Resampled(samples, None, f"noise of {clusters} clusters drawn anew, linearised")


def _steps_drawn(
    law: Fitted, index: np.ndarray, resamples: int, rng: np.random.Generator
) -> Resampled:
    """The steps of clusters drawn with replacement, and of each one left out."""
    clusters = int(index.max()) + 1
    scores, curvatures = cluster_sums(
        law.x, law.y, law.weights, index, law.delta, law.pin, law.theta
    )
    total = curvatures.sum(0)[None]
    jackknife = one_step(law.theta, -scores, total)
    if clusters > MANY:  # the bootstrap's limit: normal scores, fixed curvature
        normal = rng.standard_normal((resamples, scores.shape[1]))
        moved = normal @ np.linalg.cholesky(scores.T @ scores).T
        how = f"{clusters} clusters, the normal limit of drawing them with replacement"
        return Resampled(one_step(law.theta, moved, total), jackknife, how)
    counts = cluster_weights(np.arange(clusters), resamples, rng)
    hessian = np.tensordot(counts, curvatures, 1)
    how = f"{clusters} clusters drawn with replacement, linearised"
    return Resampled(one_step(law.theta, counts @ scores, hessian), jackknife, how)
