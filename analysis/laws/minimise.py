"""Least Huber loss of any model within bounds, for many rows (starts and resamples) at once.

    reached = minimise(model, y, weights, delta, theta, low, high)
    reached.theta, reached.objective, reached.gradient, reached.at_bound

The laws of C and of (N, D) have solvers of their own, which know the law (laws/solver.py,
laws/surface.py); this one is given predictions and their slopes. It has the same Huber's loss, the
same damping and the same rest at a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scaling.analysis.laws.solver import huber

# theta (R, p) -> predictions (R, n), in what y is in (log loss), and their slopes (R, n, p)
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

ELEMENTS = 300_000  # of the slopes that are held at once: they stay in the cache
CONVERGED = 1e-7  # gradient that counts as nil, see `Reached`
FARTHEST = 1e8  # damping at which no step helps any more
RIDGE = 1e-11  # of the scaled curvature, whose diagonal is 1: parameters that do nothing stay


@dataclass(frozen=True)
class Reached:
    """Where each row ended."""

    theta: np.ndarray  # (R, p)
    objective: np.ndarray  # (R,) sum of weights times Huber's loss; infinite: no value at the start
    # (R,) largest |cosine| between a parameter's slope and the pull of the residuals, of a free
    # parameter: 0 at a minimum, 1 at most
    gradient: np.ndarray
    at_bound: np.ndarray  # (R, p) on a bound over which the objective would push it


def minimise(
    model: Model, y: np.ndarray, weights: np.ndarray, delta: float, theta: np.ndarray,
    low: np.ndarray, high: np.ndarray, *, iterations: int = 200, tolerance: float = 1e-10,
) -> Reached:  # fmt: skip
    """Damped Gauss-Newton (Levenberg 1944, Marquardt 1963) on every row.

    The curvature is that of the points within Huber's corner; the damping is the matrix of
    reweighted least squares, so a strongly damped step is a short step of that, which always
    descends. Columns are scaled to length 1 (Marquardt), so parameters may be of any size. A step
    over a bound ends there; a parameter rests on its bound for as long as the objective would push
    it on.

    Args:
        model: of theta; a prediction that is no number is never taken.
        y: (n,) or (R, n), what is predicted; delta: Huber's corner, in y (inf: least squares).
        weights: (n,) or (R, n), not negative.
        theta: (R, p) starts, moved into [low, high], (p,) each, which may be infinite.
        iterations: at most. tolerance: gradient at which a row is done.
    """
    theta = np.clip(np.asarray(theta, dtype=float), low, high)
    rows, width = theta.shape
    count = y.shape[-1]
    block = max(1, ELEMENTS // max(count * width, 1))
    y = np.broadcast_to(y, (rows, count))
    weights = np.broadcast_to(weights, (rows, count))
    parts = [
        _minimise(model, y[some], weights[some], delta, theta[some], low, high, iterations,
                  tolerance)
        for some in (slice(i, i + block) for i in range(0, rows, block))
    ]  # fmt: skip
    return Reached(*(np.concatenate([getattr(p, name) for p in parts]) for name in (
        "theta", "objective", "gradient", "at_bound")))  # fmt: skip


def _minimise(
    model: Model, y: np.ndarray, weights: np.ndarray, delta: float, theta: np.ndarray,
    low: np.ndarray, high: np.ndarray, iterations: int, tolerance: float,
) -> Reached:  # fmt: skip
    theta = theta.copy()
    r, slopes, objective = _seen(model, theta, y, weights, delta)
    damping = np.full(len(theta), 1e-2)
    gradient = np.full(len(theta), np.inf)
    resting = np.zeros(theta.shape, bool)
    active = np.flatnonzero(np.isfinite(objective))
    for _ in range(iterations):
        if not len(active):
            break
        t, w, at, jacobian = theta[active], weights[active], r[active], slopes[active]
        pull = w * np.clip(at, -delta, delta)
        slope = np.einsum("rn,rnp->rp", pull, jacobian)
        size = np.sqrt(np.einsum("rn,rnp->rp", w, jacobian**2))
        scale = 1 / np.maximum(size, 1e-300)
        rest = ((t <= low) & (slope <= 0)) | ((t >= high) & (slope >= 0)) | (size < 1e-290)
        gradient[active] = _cosine(slope * scale * ~rest, w, at, delta)
        resting[active] = rest & (size >= 1e-290)
        going = (gradient[active] > tolerance) & (damping[active] < FARTHEST)
        if not going.any():
            break
        active, t, w, at = active[going], t[going], w[going], at[going]
        jacobian, slope, scale, rest = jacobian[going], slope[going], scale[going], rest[going]
        matrix = _damped(jacobian, scale, at, w, damping[active], delta)
        step = _step(matrix, slope * scale, rest) * scale
        # One that starts on a bound and would leave it takes no part in this step.
        blocked = ~rest & (((t <= low) & (step < 0)) | ((t >= high) & (step > 0)))
        if blocked.any():
            rest |= blocked
            step = _step(matrix, slope * scale, rest) * scale
        trial = _to_bounds(t, step, low, high)
        r_new, slopes_new, new = _seen(model, trial, y[active], w, delta)
        better = new < objective[active]
        took = active[better]
        theta[took], objective[took] = trial[better], new[better]
        r[took], slopes[took] = r_new[better], slopes_new[better]
        damping[active] *= np.where(better, 0.2, 8.0)
        damping[active] = np.maximum(damping[active], 1e-12)
    return Reached(theta, objective, gradient, resting)


def _seen(
    model: Model, theta: np.ndarray, y: np.ndarray, weights: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (R, n), slopes (R, n, p) and the sum of Huber's loss (R,).

    The sum is infinite where a point that counts has no prediction; one that does not count, and
    has none, has the residual and the slopes 0.
    """
    with np.errstate(all="ignore"):
        predicted, slopes = model(theta)
        fine = np.isfinite(predicted) & np.isfinite(slopes).all(-1)
        r = np.where(fine, y - predicted, 0.0)
        total = (weights * huber(r, delta)).sum(1)
    lost = (~fine & (weights > 0)).any(1)
    return r, np.where(fine[..., None], slopes, 0.0), np.where(lost, np.inf, total)


def _cosine(slope: np.ndarray, w: np.ndarray, r: np.ndarray, delta: float) -> np.ndarray:
    """The gradient (R,) of `Reached`; slope (R, p) of columns of length 1."""
    pull = np.sqrt(w.sum(1)) * delta
    if not np.isfinite(delta):
        pull = np.sqrt((w * r**2).sum(1))
    out: np.ndarray = np.abs(slope).max(1) / np.maximum(pull, 1e-300)
    return out


def _damped(
    jacobian: np.ndarray, scale: np.ndarray, r: np.ndarray, w: np.ndarray, damping: np.ndarray,
    delta: float,
) -> np.ndarray:  # fmt: skip
    """Gauss-Newton curvature (R, p, p) without Huber's flat parts, and its damping (R,) times the
    matrix of reweighted least squares, both of scaled columns."""
    inside = w * (np.abs(r) <= delta)
    reweighted = inside
    if np.isfinite(delta):
        reweighted = w * np.minimum(1, delta / np.maximum(np.abs(r), 1e-300))
    columns = jacobian * scale[:, None]
    turned = columns.transpose(0, 2, 1)
    descent = (turned * reweighted[:, None]) @ columns
    trace = np.maximum(np.trace(descent, axis1=1, axis2=2), 1e-300)
    ridge = RIDGE * trace[:, None, None] * np.eye(scale.shape[1])
    matrix: np.ndarray = (turned * inside[:, None]) @ columns + ridge
    # By its diagonal too: along what the points hardly tell, a damped step has to be short.
    diagonal = np.einsum("rpp->rp", descent)[:, :, None] * np.eye(scale.shape[1])
    matrix += damping[:, None, None] * (0.5 * descent + 0.5 * diagonal + ridge)
    return matrix


def _step(matrix: np.ndarray, slope: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Solve matrix step = slope per row; what rests takes no part."""
    free = ~rest
    both = free[:, :, None] & free[:, None]
    alone = rest[:, :, None] * np.eye(rest.shape[1])
    return np.linalg.solve(np.where(both, matrix, alone), (slope * free)[..., None])[..., 0]


def _to_bounds(
    theta: np.ndarray, step: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """theta + step, each parameter no further than its bound: exactly on it, where it rests."""
    trial = theta + step
    out: np.ndarray = np.clip(trial, low, high)
    return out
