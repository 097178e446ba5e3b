"""When the form of the law is not known: several forms, weighed, and what they predict together.

    mixture = mix(compute, loss)                    # noise: draws of log loss, when known
    mixture.quantiles(1e20, (0.025, 0.5, 0.975))    # of the law's loss
    mixture.shares, mixture.scores, mixture.reach, print("\n".join(mixture.lines()))

The forms, C relative to the centre of the data:

    pure         a C^b
    floor        E + a C^b
    two powers   E + a C^b + c C^d with E, a, c > 0 (the "positive spectral mixtures" of SCALE-CERT)
    break        E + a C^b (1 + (C / d)^(1 / f))^(-c f), one break of Caballero et al. 2023 (BNSL,
                 arXiv 2210.14891, equation 1), inside the data
    drift        the slope in log-log is a random walk (log loss an integrated Wiener process: the
                 local linear trend of Harvey 1989, the cubic smoothing spline of Wahba 1978)

Given its exponents, floor or break (a grid), each form is linear in what remains, so that the
marginal likelihood is exact and no search can fail: Bayesian linear regression with proper priors,
averaged over the grid, over the scale of the noise and over the forms (Hoeting et al. 1999). A
form's share is its posterior probability; its marginal likelihood is the product of its forecasts
of each point from those before it, i.e. a rolling-origin score. Held-out errors at several
distances are given beside it.

What no weighing of forms can know: a component or a break beyond the data leaves no trace in them
(the "hidden crossover" of SCALE-CERT), so no interval here allows for one. What it does allow for:
a curve that has bent may bend again (`AGAIN`), and where no window of the data was ever held out as
far away as a prediction reaches, none is given (`reach`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

# Prior probabilities. Simple first: on a pure law the interval is to stay near the pure law's own.
PRIOR = {"pure": 0.65, "floor": 0.15, "two powers": 0.07, "break": 0.08, "drift": 0.05}
SLOPE = 0.3  # standard deviation of an exponent, before the data
TURN = 0.1  # and of its change at a break
FLOORS = np.linspace(0.04, 0.98, 48)  # E over the smallest loss
BREAK_FLOORS = np.array([0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
BREAKS = 21  # places of a break, evenly over the log of compute
WIDTHS = np.array([0.1, 0.3, 0.6, 1.2])  # f of a break, in log compute
EXPONENTS = np.array([0.02, 0.035, 0.06, 0.1, 0.16, 0.25, 0.4, 0.6])  # of two powers
WEIGHT = (1 / 3, 0.4)  # mean and deviation of E, a and c of two powers over the loss at the centre
DRIFTS = np.geomspace(1e-3, 0.3, 12)  # of d log L / d log10 C, over a decade
AGAIN = 0.14  # slope goes on to change by this share of what it changed, as a random walk
EXACT = 2e-5  # least noise of log loss
POINTS = 40  # more are averaged, neighbours together
WINDOW = 0.45  # decades, and
ENOUGH = 4  # points of the least window that predicts; 3 when the noise is known
SLACK = 1.25  # a window supports a distance this much longer than its own
WINDOWS = 6  # of the rolling origin
DISTANCES = (0.5, 1.0)  # decades, up to which held-out errors are pooled
SURPRISE = 0.98  # level of the interval outside which the last point breaks with the rest
NORMAL = ndtri(qmc.Sobol(3, seed=0).random(64))  # standard normal draws for constrained weights
KEEP = 1e-5  # curves of less weight than this share of their form's largest are left out


class Form(Protocol):
    """One form, as many curves: one per grid point (G) and scale of the noise (S), until `keep`."""

    evidence: np.ndarray  # (G, S) log marginal likelihood

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        """Only the K curves at these indices (K,)."""
        ...

    def curve(self, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At log compute x: floor, mean and deviation of log(L - floor), each (K,)."""
        ...


def _regress(z: np.ndarray, design: np.ndarray, scales: np.ndarray, precision: np.ndarray):
    """Bayesian linear regression for every grid point and noise scale.

    z (G, n), design (G, n, p), both in units of the noise; precision (p,) of the prior, whose mean
    is 0. Returns log marginal likelihood (G, S), mean (G, S, p), covariance (G, S, p, p).
    """
    inverse = 1 / scales**2
    turned = design.transpose(0, 2, 1)
    square, right = (turned @ design)[:, None], (turned @ z[..., None])[:, None, :, 0]
    matrix = square * inverse[:, None, None] + np.diag(precision)
    right = right * inverse[:, None]
    covariance = np.linalg.inv(matrix)
    mean = (covariance @ right[..., None])[..., 0]
    quadratic = (z**2).sum(1)[:, None] * inverse - (mean * right).sum(-1)
    volume = np.linalg.slogdet(matrix)[1] - np.log(precision).sum()
    return -z.shape[1] * np.log(scales) - (volume + quadratic) / 2, mean, covariance


class _Power:
    """log(L - E) = log a + b x, with or without a soft bend; one grid point per floor (and break).

    floor, at, width (G,).
    """

    def __init__(self, data: _Data, floor: np.ndarray, at=None, width=None) -> None:
        self.floor, self.at, self.width = floor, at, width
        loss = np.exp(data.y)
        above = loss - floor[:, None]
        self.offset = np.log(np.exp(data.centre_y) - floor)  # the floor is below every loss
        # Noise of log loss, carried over to log(L - E); the Jacobian of the change cancels it.
        shrink = above / loss
        z = (shrink * (np.log(above) - self.offset[:, None])) @ data.whiten.T
        design = data.whiten @ (shrink[..., None] * self._basis(data.x))
        deviation = np.array([1.0, SLOPE, TURN])[: design.shape[-1]]
        self.evidence, self.mean, self.covariance = _regress(z, design, data.scales, deviation**-2)

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        self.floor, self.offset = self.floor[grid], self.offset[grid]
        if self.at is not None:
            self.at, self.width = self.at[grid], self.width[grid]
        self.mean, self.covariance = self.mean[grid, scale], self.covariance[grid, scale]

    def _basis(self, x: np.ndarray) -> np.ndarray:
        """x (n,) -> (G, n, p)."""
        x = np.broadcast_to(x, (len(self.floor), len(x)))
        columns = [np.ones_like(x), x]
        if self.at is not None:
            f, d = self.width[:, None], self.at[:, None]
            columns.append(f * (np.logaddexp(0, (x - d) / f) - np.logaddexp(0, -d / f)))
        return np.stack(columns, -1)

    def curve(self, x: float):
        basis = self._basis(np.array([x]))[:, 0]
        mean = (self.mean * basis).sum(-1) + self.offset
        variance = ((self.covariance @ basis[..., None])[..., 0] * basis).sum(-1)
        return self.floor, mean, np.sqrt(variance)


class _TwoPowers:
    """L / L(centre) = w0 + w1 C^-b + w2 C^-d, all w > 0; one row per pair of exponents."""

    def __init__(self, data: _Data) -> None:
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
        evidence, mean, covariance = _regress(z, design, data.scales, np.full(3, deviation**-2))
        root = np.linalg.cholesky(covariance)
        self.weights = middle + mean[..., None, :] + NORMAL @ root.transpose(0, 1, 3, 2)
        self.inside = (self.weights > 0).all(-1)
        before = (middle + deviation * NORMAL > 0).all(-1).mean()
        share = self.inside.mean(-1)  # of the posterior, within the bounds
        self.evidence = np.where(
            share < 0.02, -np.inf, evidence + np.log(share + 1e-9) - np.log(before)
        )

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        self.rates = self.rates[grid]
        self.weights, self.inside = self.weights[grid, scale], self.inside[grid, scale]

    def curve(self, x: float):
        loss = (self.weights * np.exp(-self.rates * x)[:, None]).sum(-1)
        log_loss = np.log(np.where(self.inside, loss, 1))
        count = np.maximum(self.inside.sum(-1), 1)
        mean = log_loss.sum(-1) / count
        spread = np.where(self.inside, (log_loss - mean[..., None]) ** 2, 0).sum(-1) / count
        return np.zeros_like(mean), mean + self.centre, np.sqrt(spread)


class _Drift:
    """log L = an integrated Wiener process about a line; one row per size of the drift."""

    def __init__(self, data: _Data) -> None:
        self.first, self.centre = data.x[0], data.centre_y
        self.u = (data.x - self.first) / np.log(10)
        values, vectors = np.linalg.eigh(data.whiten @ self._kernel(self.u) @ data.whiten.T)
        self.rotate = vectors.T @ data.whiten
        noise = data.scales[None, :, None] ** 2
        self.variance = noise + DRIFTS[:, None, None] ** 2 * np.maximum(values, 0)  # (Q, S, n)
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
        return low**2 * (3 * high - low) / 6

    def keep(self, grid: np.ndarray, scale: np.ndarray) -> None:
        self.size = DRIFTS[grid] ** 2
        self.variance, self.residual = self.variance[grid, scale], self.residual[grid, scale]
        self.mean, self.covariance = self.mean[grid, scale], self.covariance[grid, scale]

    def curve(self, x: float):
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
class _Data:
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


def _data(log_compute: np.ndarray, log_loss: np.ndarray, noise: np.ndarray | None) -> _Data:
    n = len(log_loss)
    x = log_compute - log_compute.mean()
    if noise is None:  # one unknown scale, around what a cubic (or less) leaves
        degree = min(3, n - 2)
        residual = log_loss - np.polynomial.Polynomial.fit(x, log_loss, degree)(x)
        middle = max(np.sqrt((residual**2).sum() / (n - degree - 1)), EXACT)
        return _Data(x, log_loss, np.eye(n), middle * np.geomspace(1 / 3, 3, 9), np.zeros(9))
    covariance = np.cov(noise.T)
    ridge = max(EXACT**2, 1e-6 * float(np.trace(covariance)) / n)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance + ridge * np.eye(n)))
    scales = np.geomspace(0.5, 4, 9)
    return _Data(x, log_loss, whiten, scales, -((np.log(scales) / 0.3) ** 2) / 2)


def _forms(data: _Data) -> dict[str, Form]:
    least = float(np.exp(data.y.min()))
    places = np.linspace(data.x[0], data.x[-1], BREAKS + 1)[1:]
    floor, at, width = (
        v.ravel() for v in np.meshgrid(least * BREAK_FLOORS, places, WIDTHS, indexing="ij")
    )
    return {
        "pure": _Power(data, np.zeros(1)),
        "floor": _Power(data, least * FLOORS),
        "two powers": _TwoPowers(data),
        "break": _Power(data, floor, at, width),
        "drift": _Drift(data),
    }


@dataclass(frozen=True)
class Mixture:
    """What all forms together say of the loss; made by `mix`."""

    forms: dict[str, Form] = field(repr=False)
    shares: dict[str, float]  # posterior probability of each form
    weights: dict[str, np.ndarray] = field(repr=False)  # (K,) of the curves of a form; sum to 1
    centre: float = field(repr=False)  # mean log compute
    ends: tuple[float, float]  # smallest and largest compute
    scatter: float  # deviation of one run's log loss
    drift: np.ndarray = field(repr=False)  # of every curve's slope, per root decade beyond
    slopes: tuple[float, float]  # d log L / d log C at both ends
    reach: float = float("nan")  # decades beyond the data that held-out windows support
    why: str = ""  # what limits the reach
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)  # see `held_out`
    held: tuple[int, int] = (0, 0)  # held-out points inside their 95% interval, of how many
    windows: int = 0

    @property
    def bends(self) -> bool:
        """Whether the pure law is less likely than not."""
        return self.shares["pure"] < 0.5

    def _components(self, compute: float) -> tuple[np.ndarray, ...]:
        """Weight, floor, mean and deviation of log(L - floor) of every curve, each (K,)."""
        x = float(np.log(compute)) - self.centre
        curves = [form.curve(x) for form in self.forms.values()]
        weight = np.concatenate([self.shares[name] * w for name, w in self.weights.items()])
        floor, mean, deviation = (np.concatenate([c[i] for c in curves]) for i in range(3))
        beyond = abs(np.log10(compute / np.clip(compute, *self.ends)))
        again = self.drift * beyond**1.5 / np.sqrt(3) * (1 + floor * np.exp(-mean))
        kept = weight > KEEP * weight.max()
        return weight[kept], floor[kept], mean[kept], np.hypot(deviation, again)[kept]

    def distribution(self, compute: float, *, run: bool = False) -> Callable:
        """Probability that the log loss at `compute` lies below its argument (m,): of the law, or
        of one more run's."""
        weight, floor, mean, deviation = self._components(compute)
        weight = weight / weight.sum()
        centre = np.logaddexp(np.log(floor + 1e-300), mean)
        spread = np.hypot(deviation * np.exp(mean - centre), self.scatter)

        def below(log_loss: np.ndarray) -> np.ndarray:
            at = np.asarray(log_loss, dtype=float)[:, None]
            if run:
                return ndtr((at - centre) / spread) @ weight
            above = np.exp(at) - floor
            z = np.where(above > 0, (np.log(np.maximum(above, 1e-300)) - mean) / deviation, -40)
            return ndtr(z) @ weight

        return below

    def quantiles(
        self, compute: float, levels: Sequence[float], *, run: bool = False
    ) -> np.ndarray:
        """Quantiles of the loss at `compute`: of the law, or of one more run's."""
        wanted = np.asarray(levels, dtype=float)
        below = self.distribution(compute, run=run)
        middle = sum(self.shares[name] * mean for name, mean in self.means(compute).items())
        low, high = np.full(len(wanted), middle), np.full(len(wanted), middle)
        step = self.scatter
        while (outside := below(low) >= wanted).any():
            low, step = low - step * outside, 2 * step
        step = self.scatter
        while (outside := below(high) < wanted).any():
            high, step = high + step * outside, 2 * step
        while (high - low).max() > 1e-3 * self.scatter:  # bisection
            middle = (low + high) / 2
            under = below(middle) < wanted
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        return np.exp((low + high) / 2)

    def means(self, compute: float) -> dict[str, float]:
        """Posterior mean of log loss by each form (0 by one without weights)."""
        x, out = float(np.log(compute)) - self.centre, {}
        for name, form in self.forms.items():
            floor, mean, _ = form.curve(x)
            weight = self.weights[name]
            log_loss = np.logaddexp(np.log(floor + 1e-300), mean)
            out[name] = float((weight * log_loss).sum())
        return out

    def refusal(self, compute: float) -> str:
        """Why nothing is predicted at `compute`; empty where something is."""
        beyond = abs(float(np.log10(compute / np.clip(compute, *self.ends))))
        if beyond <= self.reach + 1e-9 or beyond == 0:
            return ""
        return f"{beyond:.2f} decades beyond the data, which support {self.reach:.2f}: {self.why}"

    def local(self) -> str:
        """The range of the local exponent where the curve bends; empty where it does not."""
        if not self.bends:
            return ""
        (first, last), (low, high) = self.slopes, self.ends
        return f"local exponent {first:.4f} at {low:.3g} to {last:.4f} at {high:.3g}"

    def lines(self) -> list[str]:
        """Shares, held-out errors and reach, in plain text."""
        said = []
        for name, share in self.shares.items():
            errors = "/".join("-" if np.isnan(e) else f"{e:.2%}" for e in self.scores[name])
            said.append(f"{name} {share:.0%} ({errors})")
        held, of = self.held
        return [
            f"  forms        {', '.join(said)}",
            "               share of each form in the prediction (and its held-out error at the "
            f"next point, .5 and 1 decade on; {self.windows} windows)",
            f"  held out     {held} of {of} points inside the interval predicted from the rest",
            f"  reach        {self.reach:.2f} decades beyond the data: {self.why}",
            *([f"  bends        {self.local()}"] if self.bends else []),
        ]

    def to_json(self) -> dict:
        """Plain numbers; a missing one is None."""
        return {
            "shares": self.shares,
            "held_out": {
                name: [None if np.isnan(e) else e for e in errors]
                for name, errors in self.scores.items()
            },
            "windows": self.windows,
            "held": list(self.held),
            "reach_decades": self.reach,
            "reach_why": self.why,
            "bends": self.bends,
            "local_exponents": list(self.slopes),
        }


def _weigh(log_compute: np.ndarray, log_loss: np.ndarray, noise: np.ndarray | None) -> Mixture:
    """The mixture of sorted points (n,), without its rolling origin."""
    data = _data(log_compute, log_loss, noise)
    forms = _forms(data)
    logs = {
        name: form.evidence + data.prior - np.log(len(form.evidence)) + np.log(PRIOR[name])
        for name, form in forms.items()
    }
    best = {name: float(value.max()) for name, value in logs.items()}
    weights, evidence, by_scale = {}, {}, np.zeros(len(data.scales))
    for name, value in logs.items():  # a form that nowhere fits has no evidence and no weights
        relative = np.exp(value - max(best[name], -1e300))
        odds = np.exp(best[name] - max(best.values()))
        evidence[name] = float(relative.sum() * odds)
        by_scale += relative.sum(0) * odds
        grid, scale = np.nonzero(relative > KEEP)
        forms[name].keep(grid, scale)
        weights[name] = relative[grid, scale] / max(float(relative[grid, scale].sum()), 1e-300)
    total = sum(evidence.values())
    shares = {name: float(value / total) for name, value in evidence.items()}
    noise_level = 1.0 if noise is None else float(np.sqrt(np.diag(np.cov(noise.T)).mean()))
    scatter = max(float(np.sqrt(by_scale @ data.scales**2 / total)) * noise_level, EXACT)
    step = 0.05
    at = data.x[0], data.x[0] + step, data.x[-1] - step, data.x[-1]
    span, drift, slopes = (data.x[-1] - data.x[0]) / np.log(10), [], np.zeros(2)
    for name, form in forms.items():
        a, b, c, d = (np.logaddexp(np.log(f + 1e-300), m) for f, m, _ in map(form.curve, at))
        slopes += (
            shares[name]
            * np.array([(weights[name] * (b - a)).sum(), (weights[name] * (d - c)).sum()])
            / step
        )
        turn = np.abs((d - c) - (b - a)) / step * np.log(10)
        drift.append(AGAIN * turn / np.sqrt(span) * (name != "drift"))
    ends = float(np.exp(log_compute[0])), float(np.exp(log_compute[-1]))
    return Mixture(
        forms, shares, weights, float(log_compute.mean()), ends, scatter, np.concatenate(drift),
        (float(slopes[0]), float(slopes[1])),
    )  # fmt: skip


def thinned(
    compute: np.ndarray, loss: np.ndarray, noise: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Log compute and log loss (n,), sorted, and noise; more than POINTS are averaged by place."""
    order = np.argsort(compute, kind="stable")
    x, y = np.log(compute[order]), np.log(loss[order])
    noise = None if noise is None else noise[:, order]
    if len(x) <= POINTS:
        return x, y, noise
    edges = np.linspace(x[0], x[-1], POINTS + 1)[1:-1]
    index = np.unique(np.searchsorted(edges, x), return_inverse=True)[1]
    mean = np.eye(index.max() + 1)[:, index]
    mean /= mean.sum(1, keepdims=True)
    return mean @ x, mean @ y, None if noise is None else noise @ mean.T


def mix(compute: np.ndarray, loss: np.ndarray, noise: np.ndarray | None = None) -> Mixture:
    """Weigh the forms on points (n,) and hold out what lies above each of several origins.

    noise: (R, n) draws of log-loss noise, where it is known.
    """
    x, y, noise = thinned(np.asarray(compute, float), np.asarray(loss, float), noise)
    whole = _weigh(x, y, noise)
    if len(x) < len(compute):  # a run scatters more than a mean of runs
        at = np.interp(np.log(compute), x, y)
        residual = float(np.std(np.log(loss) - at))
        whole = replace(whole, scatter=max(whole.scatter, residual))
    known = noise is not None
    tops = np.flatnonzero(np.diff(x) > 1e-9) + 1  # a window ends below a distinct compute
    distinct = np.arange(1, len(tops) + 1)
    span = (x[tops - 1] - x[0]) / np.log(10)
    tops = tops[(distinct >= ENOUGH - known) & (span >= WINDOW)]
    reach, why = _reach(x, tops, known)
    if not len(tops):
        nothing = {name: (float("nan"),) * (1 + len(DISTANCES)) for name in whole.forms}
        return replace(whole, reach=reach, why=why, scores=nothing)
    chosen = np.unique(tops[np.linspace(0, len(tops) - 1, WINDOWS).astype(int)])
    errors: dict[str, list[list[float]]] = {
        name: [[] for _ in range(1 + len(DISTANCES))] for name in whole.forms
    }
    held, surprised = [], False
    for top in chosen:
        window = _weigh(x[:top], y[:top], None if noise is None else noise[:, :top])
        for k, target in enumerate(_targets(x, top)):
            if target is None:
                continue
            at = float(np.exp(x[target]))
            held.append(_within(window, at, y[target], 0.95))
            for name, mean in window.means(at).items():
                if window.weights[name].any():
                    errors[name][k].append(mean - y[target])
        if top == tops[-1]:
            surprised = not _within(window, float(np.exp(x[-1])), y[-1], SURPRISE)
    if surprised:
        tails = (1 - SURPRISE) / 2, (1 + SURPRISE) / 2
        low, high = window.quantiles(whole.ends[1], tails, run=True)
        reach = 0.0
        why = (
            f"the loss at the largest compute, {np.exp(y[-1]):.4g}, lies outside the "
            f"{SURPRISE:.0%} interval that the rest predict for it, {low:.4g} to {high:.4g}: the "
            "curve may have broken there; add a larger budget, or repeat that one"
        )
    scores = {
        name: tuple(float(np.sqrt(np.mean(np.square(e)))) if e else float("nan") for e in one)
        for name, one in errors.items()
    }
    return replace(
        whole, reach=reach, why=why, scores=scores, held=(sum(held), len(held)),
        windows=len(chosen),
    )  # fmt: skip


def _within(mixture: Mixture, compute: float, log_loss: float, level: float) -> bool:
    """Whether one more run's interval holds the loss."""
    below = mixture.distribution(compute, run=True)(np.array([log_loss]))[0]
    return bool((1 - level) / 2 <= below <= (1 + level) / 2)


def _targets(x: np.ndarray, top: int) -> list[int | None]:
    """The next point after a window, and those nearest to each of DISTANCES above it."""
    out: list[int | None] = [top]
    above = (x[top:] - x[top - 1]) / np.log(10)
    for distance in DISTANCES:
        nearest = int(np.abs(above - distance).argmin())
        near = abs(above[nearest] - distance) <= distance / 4
        out.append(top + nearest if near else None)
    return out


def _reach(x: np.ndarray, tops: np.ndarray, known: bool) -> tuple[float, str]:
    """Decades beyond the data that its own windows support, and why no more.

    Two windows (one, where the noise is known and is no guess of the same few residuals) must have
    been followed by data as far away, up to SLACK.
    """
    needed = 1 if known else 2
    least = ENOUGH - known
    if len(tops) < needed:
        return 0.0, (
            f"{len(tops)} windows of {least} points or more, over {WINDOW} decades or more, have "
            f"data above them, and {needed} must"
        )
    distance = float(x[-1] - x[tops[needed - 1] - 1]) / np.log(10)
    return SLACK * distance, (
        f"data follow on {needed} window{'s' * (needed > 1)} of {least} points or more for "
        f"{distance:.2f} decades; add smaller or larger budgets"
    )
