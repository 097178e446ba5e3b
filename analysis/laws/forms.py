"""Forms that a law may have, each weighed on the points exactly.

C relative to the centre of the data:

    pure         a C^b
    floor        E + a C^b
    two powers   E + a C^b + c C^d with E, a, c > 0 (the "positive spectral mixtures" of SCALE-CERT)
    break        E + a C^b (1 + (C / d)^(1 / f))^(-c f), one break of Caballero et al. 2023 (BNSL,
                 arXiv 2210.14891, equation 1), inside the data
    drift        the slope in log-log is a random walk (log loss an integrated Wiener process: the
                 local linear trend of Harvey 1989, the cubic smoothing spline of Wahba 1978)

Given its exponents, floor or break (a grid), each form is linear in what remains, so that the
marginal likelihood is exact and no search can fail: Bayesian linear regression with proper priors
for every point of the grid and every scale of the noise. laws/mixture.py averages over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtri

SLOPE = 0.3  # standard deviation of an exponent, before the data
TURN = 0.1  # and of its change at a break
FLOORS = np.linspace(0.04, 0.98, 48)  # E over the smallest loss
BREAK_FLOORS = np.array([0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
BREAKS = 21  # places of a break, evenly over the log of compute
WIDTHS = np.array([0.1, 0.3, 0.6, 1.2])  # f of a break, in log compute
EXPONENTS = np.array([0.02, 0.035, 0.06, 0.1, 0.16, 0.25, 0.4, 0.6])  # of two powers
WEIGHT = (1 / 3, 0.4)  # mean and deviation of E, a and c of two powers over the loss at the centre
DRIFTS = np.geomspace(1e-3, 0.3, 12)  # of d log L / d log10 C, over a decade
EXACT = 2e-5  # least noise of log loss
TOGETHER = 0.25  # decades over which neighbouring points share their noise, if they do
# What scipy.stats.qmc.Sobol(3, seed=0) makes its points of (scrambled direction numbers, and the
# first point), in 2^-30: importing scipy.stats takes as long as many a fit.
SOBOL_FIRST = (913309191, 1000046633, 389465047)
SOBOL_DIRECTIONS = (
    (890445161, 370832894, 238432895, 75618629, 62685513, 27862645),
    (577319138, 1055209724, 719124076, 816451087, 546003867, 1027821192),
    (801189754, 951528116, 490310762, 719540080, 812796586, 290676479),
)


def _sobol() -> np.ndarray:
    """The first 64 of its points (64, 3), by the Gray code."""
    points = [np.array(SOBOL_FIRST)]
    for n in range(1, 64):
        lowest = (n & -n).bit_length() - 1
        points.append(points[-1] ^ np.array(SOBOL_DIRECTIONS)[:, lowest])
    return np.array(points) * 2.0**-30


NORMAL = ndtri(_sobol())  # standard normal draws for constrained weights (64, 3)


class Form(Protocol):
    """One form, as many curves: one per grid point (G) and scale of the noise (S), until `keep`."""

    evidence: np.ndarray  # (G, S) log marginal likelihood

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        """Only the K curves at these indices (K,)."""
        ...

    def curve(self, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At log compute x: floor, mean and deviation of log(L - floor), each (K,)."""
        ...


class _Regression:
    """Bayesian linear regression for every grid point (G) and scale of the noise (S).

    z (G, n), design (G, n, p), both in units of the noise; deviation (p,) of the prior, whose mean
    is 0. In units of the prior the posterior precision is 1 + eigenvalues of the design's square,
    so that it stays positive however small the noise and however alike the columns.

    evidence (G, S) log marginal likelihood, mean (G, S, p).
    """

    def __init__(
        self, z: np.ndarray, design: np.ndarray, scales: np.ndarray, deviation: np.ndarray
    ) -> None:
        design = design * deviation
        turned = design.transpose(0, 2, 1)
        values, self.vectors = np.linalg.eigh(turned @ design)  # (G, p), (G, p, p)
        right = ((turned @ z[..., None])[..., 0][:, None] @ self.vectors)[:, 0]
        inverse = 1 / scales[:, None] ** 2
        self.precision = 1 + np.maximum(values, 0)[:, None] * inverse  # (G, S, p)
        turned_mean = right[:, None] * inverse / self.precision
        self.vectors *= deviation[:, None]
        self.mean = turned_mean @ self.vectors.transpose(0, 2, 1)
        quadratic = (z**2).sum(1)[:, None] * inverse[:, 0] - (
            turned_mean * right[:, None] * inverse
        ).sum(-1)
        volume = np.log(self.precision).sum(-1)
        self.evidence = -z.shape[1] * np.log(scales) - (volume + quadratic) / 2

    def root(self, grid: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """A square root R of the posterior covariance R @ R.T at K indices, (K, p, p)."""
        root: np.ndarray = self.vectors[grid] / np.sqrt(self.precision[grid, scale])[:, None]
        return root


class _Power:
    """log(L - E) = log a + b x, with or without a soft bend; one grid point per floor (and break).

    floor (G,); bend: where, in x, and over what width, (G,) each.
    """

    floor: np.ndarray
    bend: tuple[np.ndarray, np.ndarray] | None
    offset: np.ndarray  # (G,) log of the typical loss above the floor

    def __init__(
        self, data: Points, floor: np.ndarray, bend: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        self.floor, self.bend = floor, bend
        loss = np.exp(data.y)
        above = loss - floor[:, None]
        self.offset = np.log(np.exp(data.centre_y) - floor)  # the floor is below every loss
        # Noise of log loss, carried over to log(L - E); the Jacobian of the change cancels it.
        shrink = above / loss
        z = (shrink * (np.log(above) - self.offset[:, None])) @ data.whiten.T
        design = data.whiten @ (shrink[..., None] * self._basis(data.x))
        deviation = np.array([1.0, SLOPE, TURN])[: design.shape[-1]]
        self.posterior = _Regression(z, design, data.scales, deviation)
        self.evidence = self.posterior.evidence

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        self.floor, self.offset = self.floor[grid], self.offset[grid]
        if self.bend is not None:
            at, width = self.bend
            self.bend = at[grid], width[grid]
        self.mean, self.root = self.posterior.mean[grid, scale], self.posterior.root(grid, scale)

    def _basis(self, x: np.ndarray) -> np.ndarray:
        """x (n,) -> (G, n, p)."""
        x = np.broadcast_to(x, (len(self.floor), len(x)))
        columns = [np.ones_like(x), x]
        if self.bend is not None:
            d, f = (one[:, None] for one in self.bend)
            columns.append(f * (np.logaddexp(0, (x - d) / f) - np.logaddexp(0, -d / f)))
        return np.stack(columns, -1)

    def curve(self, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        basis = self._basis(np.array([x]))[:, 0]
        mean = (self.mean * basis).sum(-1) + self.offset
        turned = (basis[:, None] @ self.root)[:, 0]
        return self.floor, mean, np.sqrt((turned**2).sum(-1))


class _TwoPowers:
    """L / L(centre) = w0 + w1 C^-b + w2 C^-d, all w > 0; one row per pair of exponents."""

    def __init__(self, data: Points) -> None:
        slow, fast = (e.ravel() for e in np.meshgrid(EXPONENTS, EXPONENTS))
        apart = fast > 1.3 * slow
        self.rates = np.stack([np.zeros(apart.sum()), slow[apart], fast[apart]], -1)
        self.centre = data.centre_y
        relative = np.exp(data.y - data.centre_y)
        design = np.exp(-self.rates[:, None] * data.x[:, None]) / relative[:, None]
        design = data.whiten @ design
        middle, deviation = WEIGHT
        # The draws of the noise are of log loss, which L / observed - 1 is to first order.
        z = data.whiten.sum(1) - middle * design.sum(-1)
        posterior = _Regression(z, design, data.scales, np.full(3, float(deviation)))
        evidence, mean = posterior.evidence, posterior.mean
        grid, scale = (i.ravel() for i in np.indices(evidence.shape))
        spread = NORMAL @ posterior.root(grid, scale).transpose(0, 2, 1)
        self.weights = middle + mean[..., None, :] + spread.reshape(*evidence.shape, -1, 3)
        self.inside = (self.weights > 0).all(-1)
        before = (middle + deviation * NORMAL > 0).all(-1).mean()
        share = self.inside.mean(-1)  # of the posterior, within the bounds
        self.evidence = np.where(
            share < 0.02, -np.inf, evidence + np.log(share + 1e-9) - np.log(before)
        )

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        self.rates = self.rates[grid]
        self.weights, self.inside = self.weights[grid, scale], self.inside[grid, scale]

    def curve(self, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        loss = (self.weights * np.exp(-self.rates * x)[:, None]).sum(-1)
        log_loss = np.log(np.where(self.inside, loss, 1))
        count = np.maximum(self.inside.sum(-1), 1)
        mean = log_loss.sum(-1) / count
        spread = np.where(self.inside, (log_loss - mean[..., None]) ** 2, 0).sum(-1) / count
        return np.zeros_like(mean), mean + self.centre, np.sqrt(spread)


class _Drift:
    """log L = an integrated Wiener process about a line; one row per size of the drift."""

    variance: np.ndarray  # (Q, S, n)
    covariance: np.ndarray  # (Q, S, 2, 2) of the line
    mean: np.ndarray  # (Q, S, 2)
    residual: np.ndarray  # (Q, S, n)

    def __init__(self, data: Points) -> None:
        self.first, self.centre = data.x[0], data.centre_y
        self.u = (data.x - self.first) / np.log(10)
        values, vectors = np.linalg.eigh(data.whiten @ self._kernel(self.u) @ data.whiten.T)
        self.rotate = vectors.T @ data.whiten
        noise = data.scales[None, :, None] ** 2
        self.variance = noise + DRIFTS[:, None, None] ** 2 * np.maximum(values, 0)
        design = self.rotate @ np.stack([np.ones_like(data.x), data.x], -1)
        z = self.rotate @ (data.y - data.centre_y)
        precision = np.array([1.0, SLOPE]) ** -2
        turned = design.T / self.variance[..., None, :]
        matrix, right = turned @ design + np.diag(precision), turned @ z
        self.covariance = np.linalg.inv(matrix)
        self.mean = (self.covariance @ right[..., None])[..., 0]
        quadratic = (z**2 / self.variance).sum(-1) - (self.mean * right).sum(-1)
        volume = np.linalg.slogdet(matrix)[1] - np.log(precision).sum()
        self.evidence = -(np.log(self.variance).sum(-1) + volume + quadratic) / 2
        self.design, self.residual = design, z - self.mean @ design.T

    def _kernel(self, at: np.ndarray) -> np.ndarray:
        """Covariance of the process at `u` (n,) and `at` (m,), decades from the first point."""
        low, high = np.minimum(self.u[:, None], at), np.maximum(self.u[:, None], at)
        covariance: np.ndarray = low**2 * (3 * high - low) / 6
        return covariance

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        self.size = DRIFTS[grid] ** 2
        self.variance, self.residual = self.variance[grid, scale], self.residual[grid, scale]
        self.mean, self.covariance = self.mean[grid, scale], self.covariance[grid, scale]

    def curve(self, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        u = (x - self.first) / np.log(10)
        at = max(u, 0.0)  # before the data the process starts anew, backwards
        kernel = self.size[:, None] * (self.rotate @ self._kernel(np.array([at])))[:, 0]
        gain = kernel / self.variance
        basis = np.array([1, x]) - gain @ self.design
        mean = self.mean @ np.array([1, x]) + (gain * self.residual).sum(-1)
        variance = self.size * abs(u) ** 3 / 3 - (gain * kernel).sum(-1)
        variance += ((self.covariance @ basis[..., None])[..., 0] * basis).sum(-1)
        return np.zeros_like(mean), mean + self.centre, np.sqrt(np.maximum(variance, 1e-14))


@dataclass(frozen=True)
class Points:
    """Points as the forms see them: x log compute about its mean, y log loss, both (n,)."""

    x: np.ndarray
    y: np.ndarray
    whiten: np.ndarray  # (n, n): the noise of whiten @ y is independent, of one scale
    scales: np.ndarray  # (S,) of that noise
    prior: np.ndarray  # (S,) log prior of the scales

    @property
    def centre_y(self) -> float:
        """Log of the typical loss; every floor is below it."""
        return float(self.y.mean())


def noise_models(
    log_compute: np.ndarray,
    log_loss: np.ndarray,
    covariance: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[Points]:
    """The points under each model of their noise: of this covariance (n, n), or of one unknown
    scale over the root of the weights (n,), independent or, where points lie close together,
    correlated (a size's runs lie above or below the law together, and a frontier follows one size
    for a while)."""
    n = len(log_loss)
    x = log_compute - log_compute.mean()
    if covariance is not None:
        ridge = max(EXACT**2, 1e-6 * float(np.trace(covariance)) / n)
        whiten = np.linalg.inv(np.linalg.cholesky(covariance + ridge * np.eye(n)))
        scales = np.geomspace(0.5, 4, 9)
        return [Points(x, log_loss, whiten, scales, -((np.log(scales) / 0.3) ** 2) / 2)]
    # The scale lies around what a cubic leaves, or less where there are few points or computes.
    root = np.ones(n) if weights is None else np.sqrt(weights)
    columns = np.vander(x / max(np.abs(x).max(), EXACT), min(3, n - 2) + 1) * root[:, None]
    solved, _, rank, _ = np.linalg.lstsq(columns, log_loss * root)
    left_over = log_loss * root - columns @ solved
    middle = max(np.sqrt((left_over**2).sum() / (n - rank)), EXACT)
    scales, flat = middle * np.geomspace(1 / 3, 3, 9), np.zeros(9)
    found = [Points(x, log_loss, np.diag(root), scales, flat + np.log(root).sum())]
    apart = np.abs(x[:, None] - x) / np.log(10)
    if np.median(np.diff(x)) / np.log(10) < TOGETHER / 2:
        together = 0.2 * np.eye(n) + 0.8 * np.exp(-apart / TOGETHER)
        whiten = np.linalg.inv(np.linalg.cholesky(together)) * root
        found.append(Points(x, log_loss, whiten, scales, flat + np.log(np.diag(whiten)).sum()))
    return found


def weighed(data: Points) -> dict[str, Form]:
    """Every form, weighed on the points."""
    least = float(np.exp(data.y.min()))
    places = np.linspace(data.x[0], data.x[-1], BREAKS + 1)[1:]
    floor, at, width = (
        v.ravel() for v in np.meshgrid(least * BREAK_FLOORS, places, WIDTHS, indexing="ij")
    )
    return {
        "pure": _Power(data, np.zeros(1)),
        "floor": _Power(data, least * FLOORS),
        "two powers": _TwoPowers(data),
        "break": _Power(data, floor, (at, width)),
        "drift": _Drift(data),
    }
