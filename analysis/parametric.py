"""L(N, D) = E + A / N^alpha + B / D^beta: what size and how many tokens a budget should buy.

    law = fit_parametric(params, tokens, loss)
    law(n, d), law.ci["alpha"], law.optimum(1e21), law.status

Hoffmann et al. 2022 (approach 3), fitted by analysis/surface.py. With `tied` (alpha = beta) it is
the over-training law of Gadre et al. 2024: L = E + (a M^eta + b M^-eta) C^-eta, M = D / N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.bootstrap import FEW, bca, cluster_weights, components, widen
from analysis.laws import MIN_DECADES, NotIdentified, checked
from analysis.power_law import distance
from analysis.surface import Objective, newton, starts

# name -> corner of Huber's loss (nats of log loss, or of loss), of log loss?, weight below
LOSSES: dict[str, tuple[float, bool, float]] = {
    "huber": (1e-3, True, 1.0),  # Hoffmann et al. 2022
    "squared": (np.inf, True, 1.0),
    "l1": (1e-7, True, 1.0),  # the limit of a small corner, which Epoch's published numbers are
    "asymmetric": (1e-7, False, 10.0),  # fits the floor of the cloud (the `chinchilla` package)
    "linear": (np.inf, False, 1.0),  # least squares of the loss itself (Gadre et al. 2024)
}
TIE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]], float)
NAMES = ("E", "A", "B", "alpha", "beta")
NEGLIGIBLE = 1e-5  # a term that is nowhere more than this share of the loss is at its bound 0


@dataclass(frozen=True)
class SurfaceStatus:
    """What the optimiser reached; `gradient_norm` is per point and unit of the loss's slope."""

    converged: bool
    gradient_norm: float
    starts: int
    basin_share: float  # share of the starts that reached the best minimum
    basins: int  # distinct minima
    condition: float  # of the Hessian, in centred coordinates
    bootstrap: str
    resamples: int


@dataclass(frozen=True)
class Optimum:
    """The best size and tokens for a budget, with intervals."""

    compute: float
    n: float
    d: float
    loss: float
    n_interval: tuple[float, float]
    d_interval: tuple[float, float]
    loss_interval: tuple[float, float]
    decades: float  # beyond the fitted compute
    unit: str

    def __str__(self) -> str:
        (nl, nh), (dl, dh), (ll, lh) = self.n_interval, self.d_interval, self.loss_interval
        return (
            f"{self.compute:.3g} {self.unit}: {self.n:.3g} parameters [{nl:.3g}, {nh:.3g}], "
            f"{self.d:.3g} tokens [{dl:.3g}, {dh:.3g}], loss {self.loss:.4g} [{ll:.4g}, {lh:.4g}], "
            f"{distance(self.decades, 'data')}"
        )


@dataclass(frozen=True)
class ParametricLaw:
    """L = E + A / N^alpha + B / D^beta. Call it with parameters and tokens."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    objective: float
    level: float
    ci: dict[str, tuple[float, float]]  # of E, A, B, alpha, beta, size_exponent, loss_exponent
    status: SurfaceStatus
    per_token: float  # compute = per_token * N * D
    unit: str
    n: np.ndarray = field(repr=False)
    d: np.ndarray = field(repr=False)
    loss: np.ndarray = field(repr=False)
    samples: np.ndarray = field(repr=False)  # (R, 5): log E, log A, log B, alpha, beta
    run_index: np.ndarray = field(repr=False)
    loss_kind: str = "huber"
    tied: bool = False

    def __call__(self, n, d):
        n, d = np.asarray(n, dtype=float), np.asarray(d, dtype=float)
        return self.e + self.a / n**self.alpha + self.b / d**self.beta

    @property
    def size_exponent(self) -> float:
        """a of N_opt ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def loss_exponent(self) -> float:
        """b of the frontier's E + a C^b."""
        return -self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def residuals(self) -> np.ndarray:
        """log observed - log fitted, per point."""
        return np.log(self.loss) - np.log(self(self.n, self.d))

    @property
    def noise(self) -> float:
        """Standard deviation of log loss, from the median residual: one wild run is not the noise
        of the next."""
        size = np.abs(self.residuals)
        free = max(len(size) - 5 + self.tied, 1)
        return max(1.4826 * float(np.median(size)) * np.sqrt(len(size) / free), 1e-6)

    def n_opt(self, compute):
        """Parameters that minimise the loss at a budget (Hoffmann et al. 2022, eq. 4)."""
        return np.exp(_log_n_opt(self._theta(), np.log(np.asarray(compute) / self.per_token)))

    def d_opt(self, compute):
        """Tokens that go with `n_opt`."""
        return np.asarray(compute) / (self.per_token * self.n_opt(compute))

    def _theta(self) -> np.ndarray:
        return np.array([*np.log([self.e, self.a, self.b]), self.alpha, self.beta])

    def optimum(self, compute: float) -> Optimum:
        """Size, tokens and loss that the law expects of the best run of a budget."""
        if not (np.isfinite(compute) and compute > 0):
            raise ValueError(f"compute is {compute!r}: give a positive number of {self.unit}")
        log_nd = np.log(compute / self.per_token)

        def outcome(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            log_n = _log_n_opt(theta, log_nd)
            log_d = log_nd - log_n
            e, a, b, alpha, beta = theta.T
            loss = np.exp(e) + np.exp(a - alpha * log_n) + np.exp(b - beta * log_d)
            return log_n, log_d, np.log(loss)

        point = [float(v) for v in outcome(self._theta())]
        bounds = [
            bca(s, p, None, self.level) for s, p in zip(outcome(self.samples), point, strict=True)
        ]
        n, d, loss = np.exp(point)
        (nl, nh), (dl, dh), (ll, lh) = np.exp(bounds)
        nd = self.per_token * self.n * self.d
        return Optimum(
            compute, float(n), float(d), float(loss),
            (float(nl), float(nh)), (float(dl), float(dh)), (float(ll), float(lh)),
            float(np.log10(compute / np.clip(compute, nd.min(), nd.max()))), self.unit,
        )  # fmt: skip

    @property
    def overtraining(self) -> tuple[float, float, float]:
        """(a, b, eta) of L = E + (a M^eta + b M^-eta) C^-eta, M = D / N; for a tied law only."""
        if not self.tied:
            raise ValueError("alpha and beta differ: fit with tied=True for the over-training law")
        eta = self.alpha / 2
        scale = self.per_token**eta
        return self.a * scale, self.b * scale, eta

    def __str__(self) -> str:
        low, high = self.ci["size_exponent"]
        best = f"N_opt ~ C^{self.size_exponent:.3f} [{low:.3f}, {high:.3f}]"
        return (
            f"L(N, D) = {self.e:.4f} + {self.a:.5g} / N^{self.alpha:.5f} + "
            f"{self.b:.5g} / D^{self.beta:.5f}; "
            + ("N_opt ~ C^0.5 as alpha = beta" if self.tied else best)
        )

    def to_json(self) -> dict:
        """Plain numbers."""
        return {
            "form": "parametric", "unit": self.unit, "per_token": self.per_token,
            "parameters": dict(zip(NAMES, (self.e, self.a, self.b, self.alpha, self.beta),
                                   strict=True)),
            "size_exponent": self.size_exponent, "loss_exponent": self.loss_exponent,
            "level": self.level, "interval": {k: list(v) for k, v in self.ci.items()},
            "loss": self.loss_kind, "objective": self.objective, "points": len(self.n),
            "status": vars(self.status).copy(),
        }  # fmt: skip


def _log_n_opt(theta: np.ndarray, log_nd) -> np.ndarray:
    """theta (..., 5) -> log N that minimises A/N^alpha + B (N/ND)^beta."""
    _, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    return (np.log(alpha / beta) + a - b + beta * log_nd) / (alpha + beta)


def continuation(delta: float, cold: bool) -> tuple[float, ...]:
    """Multiples of delta through which Huber's corner shrinks to its target."""
    if not np.isfinite(delta):
        return (1.0,)
    top = 0.1 if cold else min(1e-3, delta)
    steps = [4.0**k for k in range(1, 20) if delta * 4.0**k <= top]
    return (*reversed(steps), 1.0)


def fit_parametric(
    n: Sequence[float] | np.ndarray,
    d: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    loss_kind: str = "huber",
    delta: float | None = None,
    tied: bool = False,
    groups: Sequence | None = None,
    noise: np.ndarray | None = None,
    per_token: float = 6.0,
    unit: str = "FLOPs",
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> ParametricLaw:
    """Fit the five parameters (four when tied) to runs of n parameters on d tokens.

    n, d, loss: (points,), positive; loss in nats. loss_kind: a key of LOSSES; delta overrides its
    corner. groups: run ids, resampled whole. noise: (R, points) draws of log-loss noise, when the
    caller knows it better. per_token, unit: compute = per_token n d, e.g. 6 FLOPs or 3 MACs.
    Raises NotIdentified when the runs cannot determine the law, ValueError on bad input.
    """
    if loss_kind not in LOSSES:
        raise ValueError(f"loss_kind is {loss_kind!r}: choose one of {', '.join(LOSSES)}")
    corner, log, below = LOSSES[loss_kind]
    corner = delta if delta is not None else corner
    if not corner > 0 or not 0 < level < 1 or resamples < 100 or not per_token > 0:
        raise ValueError(
            f"delta {corner}, level {level}, resamples {resamples}, per_token {per_token}: want "
            "positive numbers, 0 < level < 1 and at least 100 resamples"
        )
    n, loss = checked(n, loss, names=("n", "loss"))
    d, loss = checked(d, loss, names=("d", "loss"))
    free = 4 if tied else 5
    _require_grid(n, d, loss, free)
    log_n, log_d = np.log(n), np.log(d)
    centre = np.array([log_n.mean(), log_d.mean()])
    objective = Objective(
        log_n - centre[0], log_d - centre[1], np.log(loss) if log else loss, corner, log, below,
        TIE if tied else None,
    )  # fmt: skip
    first = starts(objective, loss)
    if tied:
        first = first[first[:, 3] == first[:, 4]]
    ones = np.ones((len(first), len(loss)))
    theta, value, gradient = newton(objective, first, ones, continuation(corner, cold=True))
    best = int(value.argmin())
    # Two minima are one when their misses differ by less than a billionth.
    same = value[best] * 1e-6 + len(loss) * min(corner, 1.0) * 1e-9
    reached = value <= value[best] + same
    estimate = theta[best]
    _refuse_surface(objective, estimate, float(gradient[best]), loss)
    index = np.arange(len(loss))
    if groups is not None:
        if len(groups) != len(loss):
            raise ValueError(f"{len(groups)} groups for {len(loss)} points: give one per point")
        index = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    samples, jackknife, how = _resample(objective, estimate, index, noise, resamples, seed)
    outside = float((samples[:, 3:].min(1) <= 0).mean())
    if outside > (1 - level) / 2:
        raise NotIdentified(
            f"L(N, D) is not identified: in {outside:.0%} of the resamples alpha or beta is not "
            "positive, so the runs do not show that the loss falls with both size and data; add "
            "runs over a wider range, or fit a law of compute"
        )
    _, _, hessian = objective.derivatives(estimate[None], np.ones((1, len(loss))), corner)
    reduced = objective.free.T @ hessian[0] @ objective.free

    def natural(t: np.ndarray) -> np.ndarray:
        """log E, log A, log B at N = D = 1, alpha, beta."""
        out = t.copy()
        out[:, 1] += t[:, 3] * centre[0]
        out[:, 2] += t[:, 4] * centre[1]
        return out

    point, draws = natural(estimate[None])[0], natural(samples)
    jack = None if jackknife is None else natural(jackknife)
    quantities = {
        "E": lambda t: np.exp(t[:, 0]), "A": lambda t: np.exp(t[:, 1]),
        "B": lambda t: np.exp(t[:, 2]), "alpha": lambda t: t[:, 3], "beta": lambda t: t[:, 4],
        "size_exponent": lambda t: t[:, 4] / (t[:, 3] + t[:, 4]),
        "loss_exponent": lambda t: -t[:, 3] * t[:, 4] / (t[:, 3] + t[:, 4]),
    }  # fmt: skip
    ci = {
        name: bca(of(draws), float(of(point[None])[0]), None if jack is None else of(jack), level)
        for name, of in quantities.items()
    }
    return ParametricLaw(
        e=float(np.exp(point[0])), a=float(np.exp(point[1])), b=float(np.exp(point[2])),
        alpha=float(point[3]), beta=float(point[4]), objective=float(value[best]), level=level,
        ci=ci, per_token=float(per_token), unit=unit, n=n, d=d, loss=loss, samples=draws,
        run_index=index, loss_kind=loss_kind, tied=tied,
        status=SurfaceStatus(
            converged=bool(gradient[best] < 1e-7), gradient_norm=float(gradient[best]),
            starts=len(first), basin_share=float(reached.mean()),
            basins=1 + int((np.diff(np.sort(value[gradient < 1e-6])) > same).sum()),
            condition=float(np.linalg.cond(reduced)), bootstrap=how, resamples=len(samples),
        ),
    )  # fmt: skip


def _resample(
    objective: Objective, estimate: np.ndarray, index: np.ndarray, noise: np.ndarray | None,
    resamples: int, seed: int,
) -> tuple[np.ndarray, np.ndarray | None, str]:  # fmt: skip
    """As for the laws of one variable (analysis/laws.py): few clusters, new noise; many, whole
    clusters drawn with replacement."""
    rng = np.random.default_rng(seed)
    clusters, count = int(index.max()) + 1, len(index)
    stages = continuation(objective.delta, cold=False)

    def refit(target: Objective, weights: np.ndarray) -> np.ndarray:
        first = np.tile(estimate, (len(weights), 1))
        return newton(target, first, weights, stages, tolerance=1e-8)[0]

    if noise is None and clusters >= FEW:
        samples = refit(objective, cluster_weights(index, resamples, rng))
        samples = widen(samples, estimate, clusters, objective.free.shape[1])
        left_out = np.unique(np.linspace(0, clusters - 1, min(clusters, 500)).astype(int))
        drop = (index[None] != left_out[:, None]).astype(float)
        return samples, refit(objective, drop), f"{clusters} clusters drawn with replacement"
    e, s2, s3 = objective.terms(estimate[None])
    fitted = (e + s2 + s3)[0]
    how = "noise of the study's runs drawn anew"
    if noise is None:
        how = f"noise of {clusters} clusters drawn anew"
        shares = np.stack([e[0] / fitted, s2[0] / fitted, s3[0] / fitted])
        jacobian = (
            np.stack([*shares[:3], -objective.u * shares[1], -objective.v * shares[2]], 1)
            @ objective.free
        )
        observed = objective.y if objective.log else np.log(objective.y)
        # The statistic whose degrees of freedom count: the size exponent, beta / (alpha + beta). In
        # runs of several points it hangs on the noise of runs, of which there are few; beta alone
        # hangs on that within runs. Where they are tied it is 1/2, and alpha takes its place.
        alpha, beta = estimate[3:]
        of_size = np.array([0, 0, 0, -beta, alpha]) / (alpha + beta) ** 2
        gradient = np.array([0, 0, 0, 0.5, 0.5]) if objective.tie is not None else of_size
        influence = gradient @ objective.free @ np.linalg.pinv(jacobian)
        spread = components(jacobian, observed - np.log(fitted), index, influence)
        noise = spread.draw(index, resamples, rng)
    if noise.ndim != 2 or noise.shape[1] != count:
        raise ValueError(f"noise has shape {noise.shape}: want (resamples, {count})")
    target = np.log(fitted) + noise
    moved = Objective(
        objective.u, objective.v, target if objective.log else np.exp(target), objective.delta,
        objective.log, objective.below, objective.tie,
    )  # fmt: skip
    return refit(moved, np.ones_like(noise)), None, how


def _require_grid(n: np.ndarray, d: np.ndarray, loss: np.ndarray, free: int) -> None:
    points = len({*zip(n.tolist(), d.tolist(), strict=True)})
    if points <= free:
        raise NotIdentified(
            f"{points} distinct runs for {free} parameters: any such fit is exact and says "
            f"nothing; give at least {free + 1}"
        )
    for name, values in (("parameters", n), ("tokens", d)):
        if len(np.unique(values)) < 3:
            raise NotIdentified(
                f"{len(np.unique(values))} distinct values of {name}: its term has a coefficient "
                "and an exponent beside the floor, which takes at least 3"
            )
    decades = np.log10((n * d).max() / (n * d).min())
    if decades < MIN_DECADES - 1e-9:
        raise NotIdentified(
            f"compute spans {decades:.2f} decades: a law needs at least {MIN_DECADES:g}; "
            "add smaller or larger runs"
        )
    if np.ptp(np.log(loss)) < 1e-9:
        raise NotIdentified(
            "the loss is the same in every run: there is nothing to fit; check the column"
        )
    if free == 5 and abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.999:
        raise NotIdentified(
            "parameters and tokens move in step in these runs (one ratio D/N): their two terms "
            "cannot be told apart; add runs of other ratios, or fit a law of compute"
        )


def _refuse_surface(objective: Objective, theta, gradient: float, loss: np.ndarray) -> None:
    e, s2, s3 = objective.terms(theta[None])
    f = e + s2 + s3
    for name, term in (("E", e), ("A", s2), ("B", s3)):
        if (term / f).max() < NEGLIGIBLE:
            raise NotIdentified(
                f"L(N, D) is not identified: the best {name} is the bound 0, so its term (and "
                "exponent) says nothing; fit a simpler law"
            )
    if not (0 < theta[3] < 5 and 0 < theta[4] < 5):
        raise NotIdentified(
            f"L(N, D) is not identified: the best exponents are alpha {theta[3]:.3g} and beta "
            f"{theta[4]:.3g}; a loss that falls with size and data has both between 0 and 5"
        )
    if gradient > 1e-2:
        raise NotIdentified(
            f"L(N, D) is not identified: no start reached a minimum (gradient {gradient:.2g})"
        )
