"""Laws of one variable: L = a C^b and L = E + a C^b, fitted, judged and refused.

    law = fit(macs, loss)            # PowerLaw, or a UserError that says what is missing
    law(1e15), law.b, law.ci["b"], law.status, law.predict(1e15)

The fit minimises Huber's loss of log-loss residuals. log C is centred, so that log a and b are
nearly uncorrelated; `delta` is in log loss, i.e. a relative miss: beyond 1% a point pulls with
constant force. Every start and every resample is one row of one vectorised Newton iteration.
How intervals arise: analysis/laws/bootstrap.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from scaling.analysis.laws.bootstrap import bca, components
from scaling.analysis.laws.mixture import BUDGETS, WORDS
from scaling.analysis.laws.power_law import PowerLaw, SaturatingLaw, Status
from scaling.analysis.laws.resample import Fitted, Resampled, resample
from scaling.analysis.laws.solver import best, condition_number
from scaling.analysis.laws.windows import expanding_window
from scaling.errors import UserError

DELTA = 0.01
RESAMPLES = 4000
MIN_DECADES = 1.0
# What lies outside is a mistake of units or of columns, and would overflow in the fits.
LIMITS = {"loss": (1e-9, 1e9), "compute": (1e-12, 1e40)}
FORMS = ("select", "power", "saturating")
DRAWS = 500  # of the noise of points of one run, for its covariance
HELD = {"parameters": "larger models", "tokens": "longer runs"}  # by unit
E_BOUND = 1e-3  # E below this share of the smallest loss is the bound E = 0


class NotIdentified(UserError):
    """The points cannot determine the law; the message says why and what would."""


def usable(values: npt.ArrayLike, kind: str) -> np.ndarray:
    """Which values are finite, positive and within LIMITS[kind]; a NaN is not."""
    low, high = LIMITS[kind]
    given = np.asarray(values, dtype=float)
    fine: np.ndarray = (given >= low) & (given <= high)
    return fine


def checked(
    compute: npt.ArrayLike, loss: npt.ArrayLike, names: tuple[str, str] = ("compute", "loss")
) -> tuple[np.ndarray, np.ndarray]:
    """Both as finite positive floats (n,). Raises UserError, which names the first bad value, or
    the lengths that differ."""
    try:
        compute = np.asarray(compute, dtype=float).ravel()
        loss = np.asarray(loss, dtype=float).ravel()
    except (TypeError, ValueError) as error:
        raise UserError(f"{' and '.join(names)} must be numbers: {error}") from None
    if len(compute) != len(loss):
        raise UserError(
            f"{len(compute)} values of {names[0]} but {len(loss)} of {names[1]}: give as many"
        )
    for name, values in zip(names, (compute, loss), strict=True):
        low, high = LIMITS["loss" if name == "loss" else "compute"]
        bad = ~usable(values, "loss" if name == "loss" else "compute")
        if bad.any():
            first = int(np.argmax(bad))
            raise UserError(
                f"{name}[{first}] is {values[first]:g} ({bad.sum()} such of {len(values)}): {name} "
                f"must be finite and positive, {low:g} to {high:g}; drop those rows, and count them"
            )
    return compute, loss


@dataclass(frozen=True)
class Options:
    """The arguments of `fit` that every form shares."""

    groups: Sequence[object] | None = None
    noise: np.ndarray | None = None
    weights: Sequence[float] | np.ndarray | None = None
    delta: float = DELTA
    level: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0
    unit: str = "MACs"

    def __post_init__(self) -> None:
        if not 0 < self.level < 1 or not self.delta > 0 or self.resamples < 100:
            raise UserError(
                f"level {self.level}, delta {self.delta}, resamples {self.resamples}: "
                "want 0 < level < 1, delta > 0 and at least 100 resamples"
            )

    def of_points(self, order: np.ndarray) -> np.ndarray:
        """The weights (n,) of points in this order, of mean 1."""
        if self.weights is None:
            return np.ones(len(order))
        weights: np.ndarray = relative(self.weights, len(order))[order]
        return weights

    def clusters(self, order: np.ndarray) -> np.ndarray:
        """The run (n,) of each of the points in this order, numbered from 0."""
        if self.groups is None:
            return np.arange(len(order))
        index: np.ndarray = numbered(self.groups, len(order))[order]
        return index

    def noise_of(self, order: np.ndarray) -> np.ndarray | None:
        """The draws (R, n) of the noise of points in this order, where they are given.

        Raises UserError: of another shape, or not all finite.
        """
        if self.noise is None:
            return None
        noise = np.asarray(self.noise, dtype=float)
        if noise.ndim != 2 or noise.shape[1] != len(order) or not np.isfinite(noise).all():
            raise UserError(
                f"noise has shape {noise.shape}: want (resamples, {len(order)}), all finite"
            )
        return noise[:, order]


def relative(weights: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    """Weights (count,) over their mean. Raises UserError where they are none."""
    given = np.asarray(weights, dtype=float)
    if given.shape != (count,) or not (np.isfinite(given) & (given > 0)).all():
        raise UserError(f"weights of {count} points: give as many positive finite numbers")
    weight: np.ndarray = given / given.mean()
    return weight


def numbered(groups: Sequence[object], count: int) -> np.ndarray:
    """The group (count,) of each point by its place among their sorted names.

    Raises UserError for another number of groups.
    """
    if len(groups) != count:
        raise UserError(f"{len(groups)} groups for {count} points: give one per point")
    return np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]


def fit(
    compute: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    form: str = "select",
    e: float | None = None,
    groups: Sequence[object] | None = None,
    noise: np.ndarray | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    delta: float = DELTA,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    unit: str = "MACs",
) -> PowerLaw:
    """Fit a law of compute (or of parameters, or tokens: `unit` names the variable).

    L = a C^b as Kaplan et al. 2020, L = E + a C^b as Henighan et al. 2020: least Huber loss of log
    L (Hoffmann et al. 2022), intervals BCa (Efron 1987).

    Args:
        compute, loss: (n,), positive; compute in `unit`, loss in nats.
        form: "power", "saturating", or "select" (the pure law unless the saturating one is
            identified and predicts better, see `select`).
        e: pins the irreducible loss (0: the pure law).
        groups: (n,) run ids; points of one run are correlated.
        noise: (R, n) draws of log-loss noise, when the caller knows it better than the residuals do
            (questions/frontier.py does).
        weights: (n,) positive, in proportion to 1 / variance of log loss, such as the number of
            runs that a point is the mean of.
        delta: corner of Huber's loss, in log loss.
        level: of the intervals.
        resamples, seed: of the bootstrap.
    Raises:
        NotIdentified: the points cannot determine the law.
        UserError: bad input.

    >>> compute = [1e15, 3e15, 1e16, 3e16, 1e17, 3e17]
    >>> loss = [3.560, 3.363, 3.174, 2.998, 2.826, 2.672]
    >>> law = fit(compute, loss, form="power")
    >>> round(law.b, 3), law.ci["b"][0] < law.b < law.ci["b"][1]
    (-0.05, True)
    >>> fit(compute[:2], loss[:2], form="power")
    Traceback (most recent call last):
    scaling.analysis.laws.fit.NotIdentified: 2 distinct values of compute for 2 parameters of ...
    """
    options = Options(groups, noise, weights, delta, level, resamples, seed, unit)
    if e is None and form == "saturating":  # without the pure law, which `select` fits beside it
        return _fit(compute, loss, None, "saturating", options)
    return select(compute, loss, options, form, e)[0]


def select(
    compute: npt.ArrayLike, loss: npt.ArrayLike, options: Options | None = None,
    form: str = "select", e: float | None = None,
) -> tuple[PowerLaw, PowerLaw, SaturatingLaw | None, str]:  # fmt: skip
    """The chosen law, the pure one, the saturating one (None if refused), and the reason.

    The saturating law is chosen only where it is identified (the interval of E excludes 0) and
    its error over the expanding window is smaller on the windows that both can predict. form:
    "power" or "saturating" when the choice is made beforehand, or e, a pinned E, which is a choice
    too; else the chosen law predicts by the mixture of all forms (analysis/laws/mixture.py).
    Raises NotIdentified where the points do not determine the pure law, or the form that was asked
    for; UserError on bad input.
    """
    options = options or Options()
    if form not in FORMS:
        raise UserError(f"form is {form!r}: choose one of {', '.join(FORMS)}")
    if form == "power" and e:
        raise UserError(
            f"a pure power law has no E, but E = {e:g}: choose the form saturating, or none"
        )
    pure = _fit(compute, loss, 0.0, "power", options)
    if e is not None:
        if e == 0:
            pure = replace(pure, pinned=True)
            return pure, pure, None, "E was pinned at 0, which is the pure law"
        pinned = _fit(compute, loss, e, "saturating", options)
        assert isinstance(pinned, SaturatingLaw)
        return pinned, pure, pinned, f"E was pinned at {e:g}: every interval is conditional on it"
    if form == "power":
        return pure, pure, None, "the pure law was asked for"
    try:
        saturating = _fit(compute, loss, None, "saturating", options)
    except NotIdentified as refusal:
        if form == "saturating":
            raise
        pure = replace(pure, chosen=True, covariance=_covariance(compute, loss, options))
        return pure, pure, None, str(refusal)
    assert isinstance(saturating, SaturatingLaw)
    if form == "saturating":
        return saturating, pure, saturating, "the saturating law was asked for"
    covariance = _covariance(compute, loss, options)
    common = {h.compute for h in saturating.holdout} & {h.compute for h in pure.holdout}
    if not common:
        pure = replace(pure, chosen=True, covariance=covariance)
        return pure, pure, saturating, "too few points to hold one out of a three-parameter fit"
    score = [
        float(np.sqrt(np.mean([h.error**2 for h in law.holdout if h.compute in common])))
        for law in (pure, saturating)
    ]
    text = (
        f"error on held-out {HELD.get(options.unit, 'larger compute')}: pure {score[0]:.2%}, "
        f"saturating {score[1]:.2%} "
        f"({len(common)} window{'s' * (len(common) > 1)})"
    )
    if score[1] < score[0]:
        saturating = replace(saturating, chosen=True, covariance=covariance)
        return saturating, pure, saturating, text
    pure = replace(pure, chosen=True, covariance=covariance)
    return pure, pure, saturating, text


def _covariance(compute: npt.ArrayLike, loss: npt.ArrayLike, options: Options) -> np.ndarray | None:
    """Covariance (n, n) of the noise of the points' log loss, sorted by compute: of the draws
    given, or where runs have several points each of those of `components` about a quadratic; None
    where nothing tells the noise."""
    compute, loss = checked(compute, loss)
    order = np.argsort(compute, kind="stable")
    if options.noise is not None:
        return np.cov(np.asarray(options.noise, dtype=float)[:, order].T)
    if options.groups is None or len(np.unique(compute)) < 4:
        return None
    index = numbered(options.groups, len(loss))
    if index.max() + 1 == len(loss):
        return None
    x = np.log(compute) - np.log(compute).mean()
    root = np.sqrt(options.of_points(np.arange(len(loss))))
    design = np.stack([np.ones_like(x), x, x**2], 1) * root[:, None]
    inverse = np.linalg.pinv(design)
    residual = np.log(loss) * root - design @ (inverse @ (np.log(loss) * root))
    noise = components(design, residual, index, inverse[1])
    draws = noise.draw(index, DRAWS, np.random.default_rng(options.seed)) / root
    return np.cov(draws[:, order].T)


def _fit(
    compute: npt.ArrayLike, loss: npt.ArrayLike, pin: float | None, form: str, options: Options
) -> PowerLaw:
    """pin: 0 for the pure law, None for a free E, else the value that E keeps."""
    compute, loss = checked(compute, loss)
    order = np.argsort(compute, kind="stable")
    compute, loss = compute[order], loss[order]
    free = 3 if pin is None else 2
    _require(compute, loss, free, form, options.unit)
    if pin is not None and not 0 <= pin < loss.min():
        raise UserError(
            f"pinned E = {pin:g} is not in [0, smallest loss {loss.min():.4g}): "
            "the law cannot pass below its own floor"
        )
    centre = float(np.log(compute).mean())
    x, y, weights = np.log(compute) - centre, np.log(loss), options.of_points(order)
    theta, reached = best(x, y[None], weights[None], options.delta, pin)
    law, gradient = Fitted(x, y, weights, options.delta, pin, theta[0]), reached["gradient"][0]
    if pin is None:
        _refuse_bounds(law.theta, float(gradient), loss)
    index, noise = options.clusters(order), options.noise_of(order)
    other = resample(law, index, noise, options.resamples, options.seed)
    share = 0.0 if pin is not None else _share_at_bound(other.samples, loss, options)
    n, rss = len(y), float(weights @ (y - law.log_loss) ** 2)
    total = float(weights @ (y - np.average(y, weights=weights)) ** 2)
    e, log_a, b = theta[0]
    fields: dict[str, Any] = dict(
        a=float(np.exp(log_a - b * centre)), b=float(b), e=float(e),
        unit=options.unit, level=options.level, ci=_intervals(law, other, centre, options.level),
        status=Status(
            converged=bool(gradient < 1e-8), gradient_norm=float(gradient),
            starts=int(reached["starts"][0]), basins=int(reached["basins"][0]),
            condition=condition_number(law.jacobian), bootstrap=other.how,
            resamples=len(other.samples), at_bound_share=share,
        ),
        compute=compute, loss=loss, samples=other.samples, centre=centre, r2=1 - rss / total,
        noise=float(np.sqrt(rss / (n - free))),
        aic=float(n * np.log(max(rss, 1e-300) / n) + 2 * (free + 1)),
        holdout=expanding_window(compute, loss, pin, delta=options.delta, given=weights),
        weights=None if options.weights is None else weights,
    )  # fmt: skip
    if form == "power":
        return PowerLaw(**fields)
    return SaturatingLaw(**fields, pinned=pin is not None)


def _share_at_bound(samples: np.ndarray, loss: np.ndarray, options: Options) -> float:
    """Share of the resamples in which E is 0; NotIdentified where the interval of E reaches it."""
    share = float((samples[:, 0] < E_BOUND * loss.min()).mean())
    if share > (1 - options.level) / 2:
        raise NotIdentified(
            f"L = E + a C^b is not identified: the {options.level:.0%} interval of E reaches 0 "
            f"({share:.0%} of the resamples sit on that bound), so a pure power law fits as well; "
            f"add {WORDS.get(options.unit, BUDGETS)[2]}, repeat seeds, or pin E"
        )
    return share


def _intervals(
    law: Fitted, other: Resampled, centre: float, level: float
) -> dict[str, tuple[float, float]]:
    """Of a, b and a free E; centre: mean log compute."""

    def interval(of: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        jackknife = None if other.jackknife is None else of(other.jackknife)
        return bca(of(other.samples), float(of(law.theta[None])[0]), jackknife, level)

    # log a at compute 1, not at the centre
    low, high = np.exp(interval(lambda theta: theta[:, 1] - theta[:, 2] * centre))
    found = {"a": (float(low), float(high)), "b": interval(lambda theta: theta[:, 2])}
    return found if law.pin is not None else found | {"E": interval(lambda theta: theta[:, 0])}


def curvature(
    compute: npt.ArrayLike, loss: npt.ArrayLike,
    weights: Sequence[float] | np.ndarray | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Quadratic coefficient of log loss in log10 compute, and its two-sided p-value (Student).

    Positive: the curve flattens, as it does above a floor E (its local slope is b (1 - E/L)).
    """
    compute, loss = checked(compute, loss)
    _require(compute, loss, 3, "quadratic", "MACs")
    x = np.log10(compute / np.exp(np.log(compute).mean()))
    root = np.sqrt(np.ones_like(x) if weights is None else relative(weights, len(x)))
    design = np.stack([np.ones_like(x), x, x**2], 1) * root[:, None]
    coefficient, *_ = np.linalg.lstsq(design, np.log(loss) * root, rcond=None)
    residual = np.log(loss) * root - design @ coefficient
    df = len(x) - 3
    variance = residual @ residual / df * np.linalg.inv(design.T @ design)[2, 2]
    if variance <= 0:
        return float(coefficient[2]), float(coefficient[2] == 0)
    t = coefficient[2] / np.sqrt(variance)
    return float(coefficient[2]), float(2 * stdtr(df, -abs(t)))


def _require(compute: np.ndarray, loss: np.ndarray, free: int, form: str, unit: str) -> None:
    what = unit if unit in ("parameters", "tokens") else "compute"
    distinct = len(np.unique(compute))
    if distinct <= free:
        raise NotIdentified(
            f"{distinct} distinct value{'s' * (distinct != 1)} of {what} for {free} parameters of "
            f"the {form} law: any such fit is exact and says nothing; give at least {free + 1}"
        )
    decades = np.log10(compute.max() / compute.min())
    if decades < MIN_DECADES - 1e-9:
        raise NotIdentified(
            f"{what} span{'s' * (what == 'compute')} {decades:.2f} decades: a law needs at least "
            f"{MIN_DECADES:g}; add {WORDS.get(unit, BUDGETS)[2]}"
        )
    if np.ptp(np.log(loss)) < 1e-9:
        raise NotIdentified(
            f"the loss is the same at every value of {what}: there is nothing to fit; check the "
            "column"
        )


def _refuse_bounds(theta: np.ndarray, gradient: float, loss: np.ndarray) -> None:
    e, _, b = theta
    if e < E_BOUND * loss.min():
        raise NotIdentified(
            "L = E + a C^b is not identified: the best E is the bound 0, i.e. the pure power law"
        )
    if b >= 0 or e > loss.min() * (1 - 1e-6) or gradient > 1e-6:
        raise NotIdentified(
            f"L = E + a C^b is not identified: the best fit runs away (E {e:.4g}, b {b:.4g}, "
            f"smallest loss {loss.min():.4g}, gradient {gradient:.1g})"
        )
