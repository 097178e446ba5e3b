"""Where intervals come from: noise of runs and points, resampled, and BCa.

Two regimes, chosen by the number of independent clusters (runs, when run ids are known):

*Few* (fewer than `FEW` = 20). Drawing five runs out of five with replacement drops design points
(sizes, budgets) that were chosen and are not random, so it measures the design and not the noise:
on simulated studies it is two to three times too wide, or, on the frontier's few points, too
narrow. Here the design is held fixed, the noise is split into a part common to a run and a part of
each point (`components`), and new noise is drawn. The variance itself was estimated from few
residuals, so every resample also draws its own scale, sqrt(df / chi2_df): for a straight line and
independent normal noise the result is Student's interval, exactly.

*Many*. Whole clusters are drawn with replacement, which assumes nothing about the noise; what the
resamples lack in spread for having estimated p parameters is put back (`widen`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from scaling.errors import UserError

FEW = 20
MANY = 1000  # runs beyond which limits replace eigenvalues and resamples


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log loss, common to a run and of each point; and how well the
    variance of the statistic of interest is known, as degrees of freedom (Satterthwaite)."""

    run: float
    point: float
    df: float

    @property
    def total(self) -> float:
        return float(np.hypot(self.run, self.point))

    def draw(self, run_index: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
        """New noise (resamples, points); points of one run share their run's part."""
        runs = int(run_index.max()) + 1
        noise = np.zeros((resamples, len(run_index)))
        if self.point:
            noise += self.point * rng.standard_normal((resamples, len(run_index)))
        if self.run:
            noise += self.run * rng.standard_normal((resamples, runs))[:, run_index]
        return noise * np.sqrt(self.df / rng.chisquare(self.df, resamples))[:, None]

    def draw_sums(
        self, sums: np.ndarray, square: np.ndarray, resamples: int, rng: np.random.Generator
    ) -> np.ndarray:
        """J' noise (resamples, p) without the noise of every point: sums (G, p) of J by run,
        square (p, p) is J'J."""
        common = rng.standard_normal((resamples, len(sums))) @ sums
        own = rng.standard_normal((resamples, len(square))) @ np.linalg.cholesky(square).T
        scale = np.sqrt(self.df / rng.chisquare(self.df, resamples))
        moved: np.ndarray = scale[:, None] * (self.run * common + self.point * own)
        return moved


def components(
    design: np.ndarray, residual: np.ndarray, run_index: np.ndarray, influence: np.ndarray
) -> Noise:
    """Split residuals of a (locally) linear model into a run's part and a point's part.

    design: (n, p) matrix or Jacobian of the mean; residual: (n,); run_index: (n,) integers 0..G-1;
    influence: (n,) weights of the points' noise in the statistic of interest, for its degrees of
    freedom. Method of moments (Henderson's method III): the expectations of r'r and r'ZZ'r are
    linear in the two variances. A negative estimate is set to zero and the other one takes all.
    """
    n = len(residual)
    basis, _ = np.linalg.qr(design)
    df = n - design.shape[1]
    total = float(residual @ residual)
    size = np.bincount(run_index).astype(float)
    runs = len(size)
    pooled = Noise(0.0, float(np.sqrt(total / df)), float(df))
    if runs == n or runs < 2:  # every point is its own run, or all are one: nothing to split
        return pooled
    # W = Z'MZ = diag(size) - S S' with M = I - QQ' and S = Z'Q, without any (n, n) matrix.
    sums = np.stack([np.bincount(run_index, q, runs) for q in basis.T], 1)
    if runs <= MANY:
        eigenvalues = np.linalg.eigvalsh(np.diag(size) - sums @ sums.T)
        t1, t2, t3, t4 = (float((eigenvalues**k).sum()) for k in (1, 2, 3, 4))
    else:  # the p columns of the mean are lost in that many runs
        t1, t2, t3, t4 = (float((size**k).sum()) for k in (1, 2, 3, 4))
    between = float((np.bincount(run_index, residual, runs) ** 2).sum())
    system = np.array([[df, t1], [t1, t2]])
    if np.linalg.det(system) < 1e-6 * df * t2:  # no run has two points that differ enough
        return pooled
    point, run = np.linalg.solve(system, [total, between])
    if run <= 0:
        point, run = total / df, 0.0
    elif point <= 0:
        point, run = 0.0, between / t2
    # Covariance of the two moments under normal noise, then of the two variances.
    covariance = 2 * np.array(
        [
            [point**2 * df + 2 * point * run * t1 + run**2 * t2,
             point**2 * t1 + 2 * point * run * t2 + run**2 * t3],
            [point**2 * t1 + 2 * point * run * t2 + run**2 * t3,
             point**2 * t2 + 2 * point * run * t3 + run**2 * t4],
        ]
    )  # fmt: skip
    inverse = np.linalg.inv(system)
    weight = np.array([(influence**2).sum(), (np.bincount(run_index, influence, runs) ** 2).sum()])
    variance = float(weight @ [point, run])
    uncertainty = float(weight @ inverse @ covariance @ inverse.T @ weight)
    # Satterthwaite; plus two, because squared estimates overstate squared variances by
    # (df + 2) / df (Welch's correction).
    known = 2 * variance**2 / uncertainty + 2 if uncertainty > 0 else float(df)
    return Noise(float(np.sqrt(run)), float(np.sqrt(point)), float(np.clip(known, 1.0, df)))


def effective(clusters: int, weights: np.ndarray) -> float:
    """How many clusters of equal weight the points (n,) are worth (Kish 1965): a few heavy points
    are few, however many light ones are beside them."""
    return clusters * float(weights.mean() ** 2 / (weights**2).mean())


def cluster_weights(run_index: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each point appears when whole clusters are drawn with replacement: (R, n)."""
    runs = int(run_index.max()) + 1
    counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    return counts[:, run_index].astype(float)


def widen(
    samples: np.ndarray, estimate: np.ndarray, clusters: float, parameters: int
) -> np.ndarray:
    """Undo the narrowness of drawing with replacement: its spread is too small by
    sqrt((G - p) / G), as a variance that divides by G is (Hesterberg 2015, section 4.3)."""
    factor = np.sqrt(clusters / max(clusters - parameters, 1))
    widened: np.ndarray = estimate + (samples - estimate) * factor
    return widened


def bca(
    samples: np.ndarray, estimate: float, jackknife: np.ndarray | None, level: float
) -> tuple[float, float]:
    """Bias-corrected, accelerated percentile interval (Efron 1987).

    samples: (R,), not-finite ones are a failure of the refit and make the interval infinite on
    the side where they would lie only if they exceed the tail; here they are refused.
    jackknife: leave-one-cluster-out estimates for the acceleration; None means none (a linear
    statistic of symmetric noise has none).
    Where the estimate lies outside the percentile interval there is more bias than the correction
    is good for; the interval is then symmetric about it, as wide as the resamples are far from it
    (Hall 1988, the symmetric percentile method). It always holds the estimate.
    Raises UserError where a resample is not finite.
    """
    if not np.isfinite(samples).all():
        raise UserError(
            f"{(~np.isfinite(samples)).sum()} of {len(samples)} resamples gave no finite value; "
            "an interval cannot be stated"
        )
    below = (np.sum(samples < estimate) + 0.5 * np.sum(samples == estimate)) / len(samples)
    z0 = float(ndtri(np.clip(below, 1 / len(samples), 1 - 1 / len(samples))))
    acceleration = 0.0
    if jackknife is not None:
        d = jackknife.mean() - jackknife
        scale = float((d**2).sum()) ** 1.5
        acceleration = float((d**3).sum()) / (6 * scale) if scale > 0 else 0.0
    z = ndtri([(1 - level) / 2, (1 + level) / 2])
    shifted = z0 + (z0 + z) / (1 - acceleration * (z0 + z))
    low, high = np.quantile(samples, ndtr(shifted))
    if abs(z0) < z[1] and low <= estimate <= high:
        return float(low), float(high)
    # The estimate is at or beyond the end of its own resamples: the correction, which takes what
    # they lack from their other tail, would put both ends on one extreme. Symmetric in its place.
    half = float(np.quantile(np.abs(samples - estimate), level))
    return estimate - half, estimate + half
