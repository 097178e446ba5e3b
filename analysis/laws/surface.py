"""Robust fits of L(N, D) = E + A / N^alpha + B / D^beta for many starts and resamples at once.

theta (R, 5) holds log E, log A, log B (at the centres of log N and log D), alpha, beta. With the
centres removed the problem is well conditioned (kappa about 1e2 instead of 1e11). For given
(alpha, beta) the law is linear in E, A, B: a non-negative least squares gives the start (variable
projection), and Newton's method with the exact Hessian, vectorised over rows, does the rest, while
Huber's delta shrinks in stages to its target (an L1 fit is the limit of small delta).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

ROWS = 256  # rows of one block: its arrays stay in the second-level cache
EXPONENTS = (0.1, 0.25, 0.4, 0.6, 0.9)  # starts in alpha and in beta
ITERATIONS = 100
THIN = 1000  # points on which every start is tried, of a larger table
POLISHED = 3  # minima of the thinned points that go on to all of them


@dataclass(frozen=True)
class Objective:
    """What is minimised: sum of w rho(r), r = log L - log f, or L - f when `log` is False.

    rho is Huber's with corner `delta`; below the curve (r < 0) it counts `below` times.
    """

    u: np.ndarray  # (n,) centred log N
    v: np.ndarray  # (n,) centred log D
    y: np.ndarray  # (n,) log loss, or loss; (R, n) when every row has its own
    delta: float
    log: bool = True
    below: float = 1.0
    tie: np.ndarray | None = None  # (5, p): theta = theta0 + tie @ free parameters; None: all free
    weight: np.ndarray | None = None  # (n,) w of all points together, see `each`; None: 1
    log_e: float | None = None  # that of a pinned E, which `tie` then leaves out

    @property
    def free(self) -> np.ndarray:
        return np.eye(5) if self.tie is None else self.tie

    @property
    def tied(self) -> bool:
        """Whether alpha and beta are one parameter."""
        return bool((self.free[3:].sum(0) == 2).any())

    def each(self, rows: int) -> np.ndarray:
        """The weights of all points, for so many rows (rows, n)."""
        weight = np.ones(len(self.u)) if self.weight is None else self.weight
        return np.tile(weight, (rows, 1))

    def some(self, points: np.ndarray) -> Objective:
        """The objective of some points, whose losses are the same for every row."""
        weight = None if self.weight is None else self.weight[points]
        return replace(
            self, u=self.u[points], v=self.v[points], y=self.y[points], weight=weight
        )  # fmt: skip

    def terms(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E (R, 1), A N^-alpha and B D^-beta (R, n)."""
        return (
            np.exp(theta[:, :1]),
            np.exp(theta[:, 1:2] - theta[:, 3:4] * self.u),
            np.exp(theta[:, 2:3] - theta[:, 4:5] * self.v),
        )

    def fitted(self, theta: np.ndarray) -> np.ndarray:
        """Loss (n,) of one theta (5,)."""
        e, s2, s3 = self.terms(theta[None])
        loss: np.ndarray = (e + s2 + s3)[0]
        return loss

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d f / d theta (n, 5) of one theta (5,), or d log f / d theta where `log` is set."""
        e, s2, s3 = (term[0] for term in self.terms(theta[None]))
        s1 = np.broadcast_to(e, s2.shape)
        columns = np.stack([s1, s2, s3, -self.u * s2, -self.v * s3], 1)
        return columns / (s1 + s2 + s3)[:, None] if self.log else columns

    def pull(self, r: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """psi(r), and its slope when the corner is spread over residuals within +- width."""
        side = np.where(r < 0, self.below, 1.0)
        steep = self.delta / width if np.isfinite(width) else 1.0
        return side * np.clip(r, -self.delta, self.delta), side * steep * (np.abs(r) <= width)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(1, u, u^2), (1, v, v^2) and (1, u, v, uv): (n, 3), (n, 3), (n, 4)."""
        u, v = self.u, self.v
        one = np.ones_like(u)
        return (
            np.stack([one, u, u * u], 1),
            np.stack([one, v, v * v], 1),
            np.stack([one, u, v, u * v], 1),
        )

    def rows(self, rows: slice | np.ndarray) -> Objective:
        """The objective of some rows."""
        return self if self.y.ndim == 1 else replace(self, y=self.y[rows])

    def derivatives(
        self, theta: np.ndarray, w: np.ndarray, delta: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value (R,), gradient (R, 5), Hessian (R, 5, 5) for weights w (R, n)."""
        e, q2, q3 = self.terms(theta)
        f = q2 + q3
        f += e
        if self.log:
            q2 /= f
            q3 /= f
            f = np.log(f)
        r = self.y - f
        if self.below != 1:
            w = w * np.where(r < 0, self.below, 1.0)
        cut = np.clip(r, -delta, delta)
        pull = w * cut  # w psi(r)
        value = np.einsum("rn,rn->r", pull, r - 0.5 * cut)
        curved = w * (cut == r)
        if self.log:
            curved += pull
        one_u, one_v, _ = self.moments
        k2, k3 = (pull * q2) @ one_u, (pull * q3) @ one_v
        t, s = self._first(e)
        k1 = t * pull.sum(1) - s * (k2[:, 0] + k3[:, 0])
        gradient = -np.stack([k1, k2[:, 0], k3[:, 0], -k2[:, 1], -k3[:, 1]], 1)
        hessian = self._outer(curved, e, q2, q3)
        # minus psi times the second derivative of the exponentials
        hessian[:, 0, 0] -= k1
        hessian[:, 1, 1] -= k2[:, 0]
        hessian[:, 1, 3] += k2[:, 1]
        hessian[:, 3, 1] += k2[:, 1]
        hessian[:, 3, 3] -= k2[:, 2]
        hessian[:, 2, 2] -= k3[:, 0]
        hessian[:, 2, 4] += k3[:, 1]
        hessian[:, 4, 2] += k3[:, 1]
        hessian[:, 4, 4] -= k3[:, 2]
        return value, gradient, hessian

    def metric(self, theta: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Sum of w J'J (R, 5, 5): what a damped step is short in."""
        e, s2, s3 = self.terms(theta)
        scale = 1 / (e + s2 + s3) if self.log else 1.0
        return self._outer(w, e, s2 * scale, s3 * scale)

    def _first(self, e: np.ndarray) -> tuple[np.ndarray, float]:
        """(t, s) such that q1, the derivative along log E, is t - s (q2 + q3): in log loss the
        three shares add to one, in loss it is E itself. Saves a third of all products."""
        return (np.ones(len(e)), 1.0) if self.log else (e[:, 0], 0.0)

    def _outer(
        self, weight: np.ndarray, e: np.ndarray, q2: np.ndarray, q3: np.ndarray
    ) -> np.ndarray:
        """Sum over points of weight g g' with g = (q1, q2, q3, -u q2, -v q3): (R, 5, 5)."""
        one_u, one_v, cross = self.moments
        w2, w3 = weight * q2, weight * q3
        b2, b3 = w2 @ one_u[:, :2], w3 @ one_v[:, :2]
        w3 *= q3
        a33 = w3 @ one_v
        a22, a23 = (w2 * q2) @ one_u, (w2 * q3) @ cross
        t, s = self._first(e)
        a12 = t[:, None] * b2 - s * (a22[:, :2] + a23[:, :2])
        a13 = t[:, None] * b3 - s * (a33[:, :2] + a23[:, ::2])
        first = t * weight.sum(1) - s * (b2[:, 0] + b3[:, 0])
        out = np.empty((len(t), 5, 5))
        out[:, 0, 0] = t * first - s * (a12[:, 0] + a13[:, 0])
        out[:, 0, 1] = out[:, 1, 0] = a12[:, 0]
        out[:, 0, 3] = out[:, 3, 0] = -a12[:, 1]
        out[:, 0, 2] = out[:, 2, 0] = a13[:, 0]
        out[:, 0, 4] = out[:, 4, 0] = -a13[:, 1]
        out[:, 1, 1] = a22[:, 0]
        out[:, 1, 3] = out[:, 3, 1] = -a22[:, 1]
        out[:, 3, 3] = a22[:, 2]
        out[:, 2, 2] = a33[:, 0]
        out[:, 2, 4] = out[:, 4, 2] = -a33[:, 1]
        out[:, 4, 4] = a33[:, 2]
        out[:, 1, 2] = out[:, 2, 1] = a23[:, 0]
        out[:, 2, 3] = out[:, 3, 2] = -a23[:, 1]
        out[:, 1, 4] = out[:, 4, 1] = -a23[:, 2]
        out[:, 3, 4] = out[:, 4, 3] = a23[:, 3]
        return out


def newton(
    objective: Objective, theta: np.ndarray, w: np.ndarray, stages: tuple[float, ...],
    iterations: int = ITERATIONS, tolerance: float = 1e-11,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Minimise every row; stages are multiples of delta, ending in 1.

    theta (R, 5), w (R, n) -> theta, value (R,), gradient norm per unit of weight and delta (R,).
    """
    blocks = [slice(i, i + ROWS) for i in range(0, len(theta), ROWS)]
    # A trial step may overflow; its value is then not smaller, and it is not taken.
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [
            _newton(objective.rows(part), theta[part], w[part], stages, iterations, tolerance)
            for part in blocks
        ]
    theta, value, norm = (np.concatenate(part) for part in zip(*parts, strict=True))
    return theta, value, norm


def _newton(
    objective: Objective, theta: np.ndarray, w: np.ndarray, stages: tuple[float, ...],
    iterations: int, tolerance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    theta = theta.copy()
    free = objective.free
    p = free.shape[1]
    mass = w.sum(1)
    for stage in stages:
        last = stage == stages[-1]
        delta = objective.delta * stage
        scale = mass * min(delta, 1.0)
        # A stage on the way only has to reach the next one's neighbourhood.
        goal, limit = (tolerance, iterations) if last else (1e-3, 15)
        value, g, h = objective.derivatives(theta, w, delta)
        metric = free.T @ objective.metric(theta, w) @ free
        metric += 1e-12 * np.trace(metric, axis1=1, axis2=2)[:, None, None] * np.eye(p)
        damping = np.full(len(theta), 1e-2)
        norm = np.abs(g @ free).max(1) / scale
        active = np.flatnonzero(norm > goal)
        working, w_active, some = active, w[active], objective.rows(active)
        for _ in range(limit):
            if not len(active):
                break
            reduced = free.T @ h[active] @ free
            descent = -(g[active] @ free)
            matrix = reduced + damping[active, None, None] * metric[active]
            # Where a term has vanished its parameters have no curvature at all.
            size = np.abs(matrix).max((1, 2))[:, None, None]
            matrix += (1e-13 * size + 1e-300) * np.eye(p)
            step = np.linalg.solve(matrix, descent[..., None])[..., 0]
            uphill = (np.einsum("rp,rp->r", step, descent) <= 0) | (np.abs(step).max(1) > 3)
            trial = theta[active] + np.clip(step, -3, 3) @ free.T
            if len(active) < 0.8 * len(working):  # gathering weights costs; do it now and then
                working, w_active, some = active, w[active], objective.rows(active)
            place = np.searchsorted(working, active)
            padded = theta[working]
            padded[place] = trial
            new, g_new, h_new = (part[place] for part in some.derivatives(padded, w_active, delta))
            better = ~uphill & (new < value[active])
            took = active[better]
            theta[took], value[took] = trial[better], new[better]
            g[took], h[took] = g_new[better], h_new[better]
            norm[took] = np.abs(g[took] @ free).max(1) / scale[took]
            damping[active] *= np.where(better, 0.05, 10.0)
            damping[took] = np.maximum(damping[took], 1e-10)
            active = active[(norm[active] > goal) & (damping[active] < 1e10)]
    return theta, value, norm


def continuation(delta: float, cold: bool) -> tuple[float, ...]:
    """Multiples of delta through which Huber's corner shrinks to its target."""
    if not np.isfinite(delta):
        return (1.0,)
    top = 0.1 if cold else min(1e-3, delta)
    steps = [4.0**k for k in range(1, 20) if delta * 4.0**k <= top]
    return (*reversed(steps), 1.0)


@dataclass(frozen=True)
class Minimum:
    """The best of many starts."""

    theta: np.ndarray  # (5,)
    value: float
    gradient: float  # per point and unit of the loss's slope
    starts: int
    share: float  # of the starts that reached the best minimum
    basins: int  # distinct minima


def minimum(objective: Objective, loss: np.ndarray) -> Minimum:
    """Best of the starts. Of a large table each start leads somewhere on `THIN` points, and only
    the best distinct minima go on to all of them."""
    count, corner = len(loss), objective.delta
    part, lost = objective, loss
    if count > THIN:  # drawn, not every k-th: a table is often sorted by its design
        some = np.sort(np.random.default_rng(0).permutation(count)[:THIN])
        part, lost = objective.some(some), loss[some]
    first = starts(part, lost)
    if objective.tied:
        first = first[first[:, 3] == first[:, 4]]
    theta, value, gradient = newton(
        part, first, part.each(len(first)), continuation(corner, cold=True)
    )
    # Two minima are one when their misses differ by less than a billionth.
    same = value.min() * 1e-6 + len(lost) * min(corner, 1.0) * 1e-9
    share = float((value <= value.min() + same).mean())
    basins = 1 + int((np.diff(np.sort(value[gradient < 1e-6])) > same).sum())
    if part is not objective:
        order = np.argsort(value, kind="stable")
        new = np.diff(value[order], prepend=-np.inf) > same
        theta = theta[order[new][:POLISHED]]
        theta, value, gradient = newton(
            objective, theta, objective.each(len(theta)), continuation(corner, cold=False)
        )
    best = int(value.argmin())
    if gradient[best] > 1e-7:  # where E slides to 0 the way is long
        last = newton(objective, theta[best : best + 1], objective.each(1), (1.0,), 10 * ITERATIONS)
        theta[best], value[best], gradient[best] = (part[0] for part in last)
    return Minimum(
        theta[best], float(value[best]), float(gradient[best]), len(first), share, basins
    )


def starts(objective: Objective, loss: np.ndarray) -> np.ndarray:
    """One theta per (alpha, beta) of the grid: E, A, B by non-negative least squares of the
    relative error. A zero becomes a small share of the loss, so that its logarithm exists."""
    from scipy.optimize import nnls  # takes long to import

    out = []
    tiny = 1e-3 * loss.min()
    root = np.sqrt(objective.each(1)[0]) / loss
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = [
                np.ones_like(loss),
                np.exp(-alpha * objective.u),
                np.exp(-beta * objective.v),
            ]
            design = np.stack(columns, 1) * root[:, None]
            if objective.log_e is None:
                coefficient, _ = nnls(design, loss * root)
                out.append([*np.log(np.maximum(coefficient, tiny)), alpha, beta])
                continue
            coefficient, _ = nnls(design[:, 1:], (loss - np.exp(objective.log_e)) * root)
            out.append([objective.log_e, *np.log(np.maximum(coefficient, tiny)), alpha, beta])
    return np.array(out)
