"""L(N, D) = E + A / N^alpha + B / D^beta: what size and how many tokens a budget should buy.

    law = fit_parametric(params, tokens, loss)
    law(n, d), law.ci["alpha"], law.optimum(1e21), law.status

Hoffmann et al. 2022 (approach 3), fitted by laws/surface.py. With `tied` (alpha = beta) it is
the over-training law of Gadre et al. 2024: L = E + (a M^eta + b M^-eta) C^-eta, M = D / N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from scaling.analysis.laws.fit import (
    E_BOUND,
    MIN_DECADES,
    NotIdentified,
    checked,
    numbered,
    relative,
)
from scaling.analysis.laws.parametric_law import (
    EXACT,
    Optimum,
    ParametricLaw,
    SurfaceStatus,
    interval,
)
from scaling.analysis.laws.surface import Minimum, Objective, minimum
from scaling.analysis.laws.surface_resample import Resampled, resample
from scaling.errors import UserError

__all__ = ["LOSSES", "Optimum", "ParametricLaw", "SurfaceStatus", "fit_parametric"]

# name -> corner of Huber's loss (nats of log loss, or of loss), of log loss?, weight below
LOSSES: dict[str, tuple[float, bool, float]] = {
    "huber": (1e-3, True, 1.0),  # Hoffmann et al. 2022
    "squared": (np.inf, True, 1.0),
    "l1": (1e-7, True, 1.0),  # the limit of a small corner, which Epoch's published numbers are
    "asymmetric": (1e-7, False, 10.0),  # fits the floor of the cloud (the `chinchilla` package)
    "linear": (np.inf, False, 1.0),  # least squares of the loss itself (Gadre et al. 2024)
}
TIE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]], float)
NO_FLOOR = 1e-300  # E of a law without one, whose logarithm exists
NEGLIGIBLE = 1e-5  # a term that is nowhere more than this share of the loss is at its bound 0
STEEPEST = 5.0  # an exponent beyond is a term that only the smallest runs see
UNMOVED = 1e-4  # gradient at which no start has reached a minimum; `CONVERGED` is what all reach
CONVERGED = 1e-7
# What is said of a law, of theta (R, 5) at N = D = 1.
QUANTITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "E": lambda t: np.exp(t[:, 0]), "A": lambda t: np.exp(t[:, 1]),
    "B": lambda t: np.exp(t[:, 2]), "alpha": lambda t: t[:, 3], "beta": lambda t: t[:, 4],
    "size_exponent": lambda t: t[:, 4] / (t[:, 3] + t[:, 4]),
    "loss_exponent": lambda t: -t[:, 3] * t[:, 4] / (t[:, 3] + t[:, 4]),
}  # fmt: skip


def fit_parametric(
    n: Sequence[float] | np.ndarray,
    d: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    loss_kind: str = "huber",
    delta: float | None = None,
    tied: bool = False,
    e: float | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    groups: Sequence[object] | None = None,
    noise: np.ndarray | None = None,
    per_token: float = 6.0,
    unit: str = "FLOPs",
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> ParametricLaw:
    """Fit the five parameters (four when tied) to runs of n parameters on d tokens.

    L = E + A / N^alpha + B / D^beta, by the third approach of Hoffmann et al. 2022.

    Args:
        n, d, loss: (points,), positive; loss in nats.
        loss_kind: a key of LOSSES; delta overrides its corner.
        tied: alpha = beta, the law of over-training (Gadre et al. 2024).
        e: pins E (0: no floor), on which all is then conditional.
        weights: (points,) positive, in proportion to 1 / variance of log loss.
        groups: (points,) run ids, resampled whole.
        noise: (R, points) draws of log-loss noise, when the caller knows it better.
        per_token, unit: compute = per_token n d, e.g. 6 FLOPs or 3 MACs.
        level: of the intervals.
        resamples, seed: of the bootstrap.
    Raises:
        NotIdentified: the runs cannot determine the law.
        UserError: bad input.

    >>> n, d = np.repeat([1e7, 3e7, 1e8, 3e8, 1e9], 3), np.tile([2e9, 2e10, 2e11], 5)
    >>> law = fit_parametric(n, d, 1.7 + 400 * n**-0.34 + 1500 * d**-0.36, resamples=100)
    >>> round(law.alpha, 3), round(law.beta, 3), round(law.size_exponent, 3)  # N* ~ C^0.514
    (0.34, 0.36, 0.514)
    >>> print(law.optimum(1e21))
    1e+21 FLOPs: 3.5e+09 parameters, 4.76e+10 tokens, loss 2.142, inside the data; no interval: ...
    """
    if loss_kind not in LOSSES:
        raise UserError(f"loss_kind is {loss_kind!r}: choose one of {', '.join(LOSSES)}")
    corner = LOSSES[loss_kind][0] if delta is None else delta
    if not corner > 0 or not 0 < level < 1 or resamples < 100 or not per_token > 0:
        raise UserError(
            f"delta {corner}, level {level}, resamples {resamples}, per_token {per_token}: want "
            "positive numbers, 0 < level < 1 and at least 100 resamples"
        )
    n, loss = checked(n, loss, names=("n", "loss"))
    d, loss = checked(d, loss, names=("d", "loss"))
    _require_runs(n, d, loss, e, tied)
    index = np.arange(len(loss)) if groups is None else numbered(groups, len(loss))
    centre = np.array([np.log(n).mean(), np.log(d).mean()])
    objective = replace(
        _objective(n, d, loss, centre, loss_kind, tied, e), delta=corner,
        weight=None if weights is None else relative(weights, len(loss)),
    )  # fmt: skip
    found = minimum(objective, loss)
    _refuse_minimum(objective, found, loss)
    other = resample(objective, found.theta, index, noise, resamples, seed)
    bound = _refuse_resamples(objective, other, loss, level)
    exact = float(np.abs(np.log(loss / objective.fitted(found.theta))).max()) < EXACT
    point, other = _at_one(found.theta[None], centre), _resamples_at_one(other, centre)
    ci = _intervals(objective, point, other, level)
    log_e, log_a, log_b, alpha, beta = point[0]
    return ParametricLaw(
        e=float(np.exp(log_e)) if e is None else float(e), a=float(np.exp(log_a)),
        b=float(np.exp(log_b)), alpha=float(alpha), beta=float(beta), objective=found.value,
        level=level, ci=dict.fromkeys(ci, (float("nan"), float("nan"))) if exact else ci,
        status=_status(objective, found, other, bound), per_token=float(per_token), unit=unit, n=n,
        d=d, loss=loss, samples=other.samples, run_index=index, loss_kind=loss_kind, tied=tied,
        corner=corner, pinned=e is not None, weights=objective.weight,
    )  # fmt: skip


def _objective(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, centre: np.ndarray, loss_kind: str,
    tied: bool, e: float | None,
) -> Objective:  # fmt: skip
    """What is minimised; centre (2,): the means of log N and log D."""
    corner, log, below = LOSSES[loss_kind]
    relations = TIE if tied else np.eye(5)
    return Objective(
        np.log(n) - centre[0], np.log(d) - centre[1], np.log(loss) if log else loss, corner, log,
        below, relations if e is None else relations[:, 1:],
        log_e=None if e is None else float(np.log(max(e, NO_FLOOR))),
    )  # fmt: skip


def _at_one(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """theta (R, 5) with log A and log B at N = D = 1, not at the centre."""
    out = theta.copy()
    out[:, 1] += theta[:, 3] * centre[0]
    out[:, 2] += theta[:, 4] * centre[1]
    return out


def _resamples_at_one(other: Resampled, centre: np.ndarray) -> Resampled:
    left_out = None if other.jackknife is None else _at_one(other.jackknife, centre)
    return replace(other, samples=_at_one(other.samples, centre), jackknife=left_out)


def _intervals(
    objective: Objective, point: np.ndarray, other: Resampled, level: float
) -> dict[str, tuple[float, float]]:
    """Of each of QUANTITIES but a pinned E, and the size exponent of tied ones, which is 1/2 by
    construction; point (1, 5) and the resamples at N = D = 1."""
    found = {}
    for name, of in QUANTITIES.items():
        if (name == "E" and objective.log_e is not None) or (
            name == "size_exponent" and objective.tied
        ):
            continue
        left_out = None if other.jackknife is None else of(other.jackknife)
        found[name] = interval(name, of(other.samples), float(of(point)[0]), left_out, level)
    return found


def _status(
    objective: Objective, found: Minimum, other: Resampled, at_bound: float
) -> SurfaceStatus:
    weights = objective.each(1)
    hessian = objective.derivatives(found.theta[None], weights, objective.delta)[2][0]
    return SurfaceStatus(
        converged=found.gradient < CONVERGED, gradient_norm=found.gradient,
        starts=found.starts, basin_share=found.share, basins=found.basins,
        condition=float(np.linalg.cond(objective.free.T @ hessian @ objective.free)),
        bootstrap=other.how, resamples=len(other.samples), at_bound_share=at_bound,
        unfinished_share=other.unfinished,
    )  # fmt: skip


def _require_runs(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, e: float | None, tied: bool
) -> None:
    if e is not None and not 0 <= e < loss.min():
        raise UserError(
            f"E pinned at {e:g} is not in [0, {loss.min():.5g}), the lowest loss: no run is below "
            "the floor; pin it lower, or leave it free"
        )
    free = 5 - tied - (e is not None)
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
    if not tied and abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.999:
        raise NotIdentified(
            "parameters and tokens move in step in these runs (one ratio D/N): their two terms "
            "cannot be told apart; add runs of other ratios, or fit a law of compute"
        )


def _refuse_minimum(objective: Objective, found: Minimum, loss: np.ndarray) -> None:
    theta = found.theta
    e, s2, s3 = objective.terms(theta[None])
    f = e + s2 + s3
    remedy = {
        "E": "these runs show no floor; add larger models on more tokens, or fit a law of compute",
        "A": "more parameters do not lower the loss in these runs; fit a law of tokens",
        "B": "more tokens do not lower the loss in these runs; fit a law of parameters",
    }
    for name, share, least in (
        ("E", e / loss.min(), E_BOUND), ("A", s2 / f, NEGLIGIBLE), ("B", s3 / f, NEGLIGIBLE),
    ):  # fmt: skip
        if share.max() < least and not (name == "E" and objective.log_e is not None):
            raise NotIdentified(
                f"L(N, D) is not identified: the best {name} is the bound 0, so its term (and "
                f"exponent) says nothing: {remedy[name]}"
            )
    if not (0 < theta[3] < STEEPEST and 0 < theta[4] < STEEPEST):
        raise NotIdentified(
            f"L(N, D) is not identified: the best exponents are alpha {theta[3]:.3g} and beta "
            f"{theta[4]:.3g}; a loss that falls with size and data has both between 0 and "
            f"{STEEPEST:g}: check the columns, or add runs over a wider range"
        )
    if found.gradient > UNMOVED:
        raise NotIdentified(
            "L(N, D) is not identified: no start reached a minimum (gradient "
            f"{found.gradient:.2g} per point): add runs over a wider range of sizes and tokens, or "
            "fit a law of compute"
        )


def _refuse_resamples(
    objective: Objective, other: Resampled, loss: np.ndarray, level: float
) -> float:
    """Share of the resamples on a bound."""
    e, a, b, alpha, beta = other.samples.T
    outside = float((other.samples[:, 3:].min(1) <= 0).mean())
    if outside > (1 - level) / 2:
        raise NotIdentified(
            f"L(N, D) is not identified: in {outside:.0%} of the resamples alpha or beta is not "
            "positive, so the runs do not show that the loss falls with both size and data; add "
            "runs over a wider range, or fit a law of compute"
        )
    least = np.log(E_BOUND * loss.min())
    if objective.log_e is not None:
        e = np.full_like(e, np.inf)  # it is given, and at no bound
    largest = np.stack([e, a - alpha * objective.u.min(), b - beta * objective.v.min()])
    steep = (other.samples[:, 3:].max(1) > STEEPEST) | (other.samples[:, 3:].min(1) <= 0)
    return float(((largest.min(0) < least) | steep).mean())
