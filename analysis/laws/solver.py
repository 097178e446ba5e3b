"""Least Huber loss of L = E + a C^b for many rows (starts and resamples) at once.

theta (R, 3) holds E, log a (at the centre of log compute) and b. `pin` is None for a free E, else
the value that E keeps (0: the pure power law). Nothing here knows of intervals or of refusals.
"""

from __future__ import annotations

import numpy as np

STARTS = (0.02, 0.4, 0.7, 0.9, 0.98)  # E / smallest loss, where the saturating fit begins
FEW_ROWS = 100  # whose cost is that of the calls, not of the numbers
THIN = 2000  # points of a large sample on which several starts are tried


def log_law(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """theta (R, 3) of E, log a, b; x (n,) or (R, n) -> log loss (R, n), wherever theta has run."""
    log_e = np.log(np.maximum(theta[:, :1], 1e-300))
    log_loss: np.ndarray = np.logaddexp(log_e, theta[:, 1:2] + theta[:, 2:] * x)
    return log_loss


def log_jacobian(theta: np.ndarray, x: np.ndarray, pin: float | None) -> np.ndarray:
    """d log L / d (E, log a, b) (R, n, 3); without the first column when E is pinned (R, n, 2)."""
    log_loss = log_law(theta, x)
    share = np.exp(theta[:, 1:2] + theta[:, 2:] * x - log_loss)
    columns = [share, share * x]
    if pin is None:
        columns.insert(0, np.exp(-log_loss))
    return np.stack(np.broadcast_arrays(*columns), -1)


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Huber's loss (1964): residual^2 / 2, beyond delta its tangent; the shape of `residual`."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def solve(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, delta: float, pin: float | None,
    theta: np.ndarray, iterations: int = 200,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Damped Newton (Gauss-Newton curvature, Huber's flat parts dropped) on every row, E >= 0.

    The damping is the weighted-least-squares matrix, so a strongly damped step is a short
    step of iteratively reweighted least squares, which always descends. A step that would make E
    negative ends at E = 0, where E rests for as long as the objective would push it on.
    x (n,) or (R, n). Returns theta (R, 3), objective (R,), relative norm of the projected gradient
    (R,).
    """
    theta = theta.copy()
    rows = len(theta)
    x = np.broadcast_to(x, y.shape)
    objective = (weights * huber(y - log_law(theta, x), delta)).sum(1)
    damping = np.full(rows, 1e-3)
    active = np.arange(rows)
    gradient_norm = np.full(rows, np.inf)
    mass = weights.sum(1)
    for _ in range(iterations):
        t, w, at = theta[active], weights[active], x[active]
        r = y[active] - log_law(t, at)
        jacobian = log_jacobian(t, at, pin)
        pull = w * np.clip(r, -delta, delta)
        gradient = np.einsum("rn,rnp->rp", pull, jacobian)
        resting = np.zeros(len(t), bool)
        if pin is None:
            resting = (t[:, 0] <= 0) & (gradient[:, 0] <= 0)
            gradient[resting, 0] = 0
        gradient_norm[active] = np.abs(gradient).max(1) / mass[active]
        going = (gradient_norm[active] > 1e-12) & (damping[active] < 1e8)
        if not going.any():
            break
        active, t, w, at = active[going], t[going], w[going], at[going]
        r, jacobian, gradient, resting = r[going], jacobian[going], gradient[going], resting[going]
        matrix = _damped(jacobian, r, w, damping[active], delta)
        step = _step(matrix, gradient, resting)
        if pin is None:
            blocked = ~resting & (t[:, 0] <= 0) & (step[:, 0] < 0)
            if blocked.any():
                gradient[blocked, 0] = 0
                step[blocked] = _step(matrix[blocked], gradient[blocked], blocked[blocked])
            # To the bound and no further: rounded to just above it, E would hold every step at 0.
            beyond = (step[:, 0] < 0) & (t[:, 0] + step[:, 0] <= 0)
            step[beyond] *= (t[beyond, 0] / -step[beyond, 0])[:, None]
            step[beyond, 0] = -t[beyond, 0]
        step *= np.minimum(1, 3 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
        trial = t.copy()
        trial[:, 3 - step.shape[1] :] += step
        if pin is None:
            trial[:, 0] = np.maximum(trial[:, 0], 0)
        new = (w * huber(y[active] - log_law(trial, at), delta)).sum(1)
        better = new < objective[active]
        theta[active[better]] = trial[better]
        objective[active[better]] = new[better]
        damping[active] *= np.where(better, 0.2, 8.0)
        damping[active] = np.maximum(damping[active], 1e-12)
    return theta, objective, gradient_norm


def _damped(
    jacobian: np.ndarray, r: np.ndarray, w: np.ndarray, damping: np.ndarray, delta: float
) -> np.ndarray:
    """Gauss-Newton curvature (R, p, p) without Huber's flat parts, and its damping (R,) times the
    matrix of reweighted least squares; jacobian (R, n, p), residuals r and weights w (R, n)."""
    inside = w * (np.abs(r) <= delta)
    reweighted = w * np.minimum(1, delta / np.maximum(np.abs(r), 1e-300))
    turned = jacobian.transpose(0, 2, 1)
    descent = (turned * reweighted[:, None]) @ jacobian
    # The damped matrix is as singular as this one (a law that bends at one point only), at any
    # damping: the ridge grows with it.
    ridge = 1e-10 * np.trace(descent, axis1=1, axis2=2)[:, None, None] * np.eye(len(turned[0]))
    matrix: np.ndarray = (turned * inside[:, None]) @ jacobian + ridge
    matrix += damping[:, None, None] * (descent + ridge)
    return matrix


def _step(matrix: np.ndarray, gradient: np.ndarray, resting: np.ndarray) -> np.ndarray:
    """Solve matrix step = gradient per row; a resting E takes no part."""
    if resting.any():
        matrix = matrix.copy()
        matrix[resting, 0, :] = 0
        matrix[resting, :, 0] = 0
        matrix[resting, 0, 0] = 1
    return np.linalg.solve(matrix, gradient[..., None])[..., 0]


def best(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, delta: float, pin: float | None,
    warm: np.ndarray | None = None, iterations: int = 200,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """Best of several starts for every row of y (R, n); x (n,) or (R, n). `warm` (3,) joins, and
    thins, the starts.

    A pinned law has one minimum (log L is log-linear in log a and b up to the share of E), so one
    start is enough there; a free E starts at several shares of the smallest loss.
    """
    if pin is None and warm is None and y.shape[1] > THIN:
        # Every start leads somewhere on a thinned sample; only the best goes on to all points.
        every = slice(None, None, -(-y.shape[1] // THIN))
        warm = best(x[..., every], y[:1, every], weights[:1, every], delta, pin)[0][0]
        shares = []
    elif pin is not None:
        shares = [pin]
    else:
        shares = list(STARTS if warm is None else STARTS[2:3])
    floor = np.where(weights > 0, y, np.inf).min(1)
    thetas = []
    for share in shares:
        e = np.full(len(y), pin) if pin is not None else share * np.exp(floor)
        # A pinned E may lie above a resampled loss: keep the start inside the law's domain.
        # (Three points leave one degree of freedom: a resample's y may be in the thousands.)
        share_above = 1 - e[:, None] * np.exp(-np.maximum(y, -600))
        rest = y + np.log(np.maximum(share_above, 1e-3))
        mass = weights.sum(1)
        mean_x, mean_y = (weights * x).sum(1) / mass, (weights * rest).sum(1) / mass
        dx = x - mean_x[:, None]
        slope = (weights * dx * (rest - mean_y[:, None])).sum(1)
        slope /= np.maximum((weights * dx**2).sum(1), 1e-300)
        thetas.append(np.stack([e, mean_y - slope * mean_x, slope], 1))
    if warm is not None and pin is None:
        thetas.append(np.broadcast_to(warm, (len(y), 3)).copy())
    if len(y) <= FEW_ROWS:  # the starts of all rows go together, as the rows of one iteration
        k = len(thetas)
        x = np.tile(np.broadcast_to(x, y.shape), (k, 1))
        together = solve(x, np.tile(y, (k, 1)), np.tile(weights, (k, 1)), delta, pin,
                         np.concatenate(thetas), iterations)  # fmt: skip
        results = list(zip(*(np.split(part, k) for part in together), strict=True))
    else:
        results = [solve(x, y, weights, delta, pin, theta, iterations) for theta in thetas]
    objective = np.stack([r[1] for r in results])  # (starts, R)
    chosen = objective.argmin(0), np.arange(len(y))
    basins = len({f"{value:.8g}" for value in objective[:, 0]})
    return np.stack([r[0] for r in results])[chosen], {
        "objective": objective[chosen],
        "gradient": np.stack([r[2] for r in results])[chosen],
        "starts": np.full(len(y), len(thetas)),
        "basins": np.full(len(y), basins),  # of the first row
    }


def cluster_sums(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, index: np.ndarray, delta: float,
    pin: float | None, theta: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Gradient (G, p) and curvature (G, p, p) of each cluster's descent at theta (3,), its points
    weighted (n,).

    Where all of Huber's parts are flat there is no curvature, and reweighted least squares' is
    taken instead.
    """
    jacobian = log_jacobian(theta[None], x, pin)[0]
    residual = y - log_law(theta[None], x)[0]
    inside = (np.abs(residual) <= delta).astype(float)
    if (inside[:, None] * jacobian**2).sum(0).min() < 1e-3 * (jacobian**2).sum(0).max():
        inside = np.minimum(1, delta / np.maximum(np.abs(residual), 1e-300))
    scores = (weights * np.clip(residual, -delta, delta))[:, None] * jacobian
    outer = (weights * inside)[:, None, None] * jacobian[:, :, None] * jacobian[:, None, :]
    p, clusters = jacobian.shape[1], int(index.max()) + 1
    columns = [*scores.T, *outer.reshape(-1, p * p).T]
    sums = np.stack([np.bincount(index, column, clusters) for column in columns], 1)
    return sums[:, :p], sums[:, p:].reshape(-1, p, p)


def one_step(theta: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """One Newton step from theta (3,) for every gradient (R, p) and hessian (R, p, p): for
    samples so large that a resample moves the estimate within the quadratic part."""
    ridge = 1e-12 * np.trace(hessian, axis1=-2, axis2=-1)[..., None, None]
    step = np.linalg.solve(hessian + ridge * np.eye(gradient.shape[1]), gradient[..., None])[..., 0]
    out = np.tile(theta, (len(gradient), 1))
    out[:, 3 - step.shape[1] :] += step
    out[:, 0] = np.maximum(out[:, 0], 0)
    return out


def condition_number(jacobian: np.ndarray) -> float:
    """Of J'J, its columns at length 1; jacobian: (n, p)."""
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    return float(np.linalg.cond(scaled.T @ scaled))
