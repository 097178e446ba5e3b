"""Any form of laws/formulas.py, fitted to points, judged and refused.

    law = fit_form(FORMS["effective"], {"N": n, "D": d, "U": u}, loss)
    law.values["R_D"], law.ci["R_D"], law.status, law.predict(N=1e9, D=1e10, U=1e9)

Least Huber loss of log-loss residuals, from the best of many drawn starts. Parameters in which the
formula is linear (E, A, B) are solved for in every draw, as laws/surface.py does; of what is left a
few thousand draws are looked at on some of the points, and the best go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scaling.analysis.laws.bootstrap import (
    FEW,
    Noise,
    bca,
    cluster_weights,
    components,
    effective,
    widen,
)
from scaling.analysis.laws.fit import NotIdentified, checked, numbered, relative
from scaling.analysis.laws.form_law import FormLaw, HeldOut
from scaling.analysis.laws.formulas import MEANINGS, Form
from scaling.analysis.laws.minimise import CONVERGED, Reached, minimise
from scaling.analysis.laws.parametric import LOSSES
from scaling.analysis.laws.parametric_law import EXACT, SurfaceStatus
from scaling.analysis.laws.solver import huber
from scaling.errors import UserError

RESAMPLES = 1000
DELTA = LOSSES["huber"][0]  # as L(N, D), whose extensions most forms are
DRAWS = 500  # looked at, for each parameter that is not linear
LOOK, LOOSE = 100, 0.1  # points on which they are, and Huber's corner there
STARTS = 24  # that go on
LARGE = 500  # points beyond which a resample is one linear step from the estimate
UNMOVED = 1e-3  # gradient at which no start has reached a minimum
CLOSE = 1e-4  # at which a resample has: a hundredth of what noise moves it by, or less
SINGULAR = 1e13  # condition of the scaled normal matrix beyond which there is no answer
MOST = 0.5  # of the resamples on one bound: the parameter is not told from it
HELD = 0.8  # quantile of the runs' compute above which they are held out


@dataclass(frozen=True, eq=False)
class Points:
    """What is fitted to what."""

    form: Form
    columns: dict[str, np.ndarray]  # (n,) each
    y: np.ndarray  # (n,) log loss
    weights: np.ndarray  # (n,) of mean 1
    delta: float

    def model(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log loss (R, n) and slopes (R, n, p)."""
        return self.form.log_loss(self.columns, theta)

    def some(self, which: np.ndarray) -> Points:
        return replace(
            self, columns={k: v[which] for k, v in self.columns.items()}, y=self.y[which],
            weights=self.weights[which],
        )  # fmt: skip

    def reach(
        self, theta: np.ndarray, y: np.ndarray | None = None, weights: np.ndarray | None = None,
        tolerance: float = 1e-10,
    ) -> Reached:  # fmt: skip
        """Where rows theta (R, p) lead, of losses and weights (R, n) of their own."""
        return minimise(
            self.model, self.y if y is None else y, self.weights if weights is None else weights,
            self.delta, theta, *self.form.bounds, tolerance=tolerance,
        )  # fmt: skip


def fit_form(
    form: Form, columns: Mapping[str, npt.ArrayLike], loss: npt.ArrayLike, *,
    groups: Sequence[object] | None = None, weights: Sequence[float] | np.ndarray | None = None,
    order: np.ndarray | None = None, held_by: str = "C", delta: float = DELTA, level: float = 0.95,
    resamples: int = RESAMPLES, seed: int = 0,
) -> FormLaw:  # fmt: skip
    """Fit a form's parameters to points.

    Args:
        form: of laws/formulas.py.
        columns: (n,) each, those that the formula names: N, D, C, U, lr and batch positive, any
            other finite.
        loss: (n,), positive, in nats.
        groups: (n,) run ids, resampled whole.
        weights: (n,) positive, in proportion to 1 / variance of log loss.
        order: (n,) by which the largest points are held out, `held_by` its name; None: nothing is.
        delta: corner of Huber's loss, in log loss. level: of the intervals.
        resamples, seed: of the bootstrap.
    Raises:
        NotIdentified: the points cannot determine it: fewer points than parameters, a column of one
            value, a parameter on its bound, two that cannot be told apart, no minimum.
        UserError: bad input.

    >>> from scaling.analysis.laws.formulas import Form
    >>> form = Form("mine", "E + A / N^a", {"E": (0, 5), "A": (1, 1e6), "a": (0.01, 2)})
    >>> n = np.logspace(6, 9, 12)
    >>> law = fit_form(form, {"N": n}, 1.7 + 400 / n**0.34, resamples=100)
    >>> {name: round(value, 3) for name, value in law.values.items()}
    {'E': 1.7, 'A': 400.0, 'a': 0.34}
    """
    if not delta > 0 or not 0 < level < 1 or resamples < 100:
        raise UserError(
            f"delta {delta}, level {level}, resamples {resamples}: want delta > 0, 0 < level < 1 "
            "and at least 100 resamples"
        )
    points, losses = _points(form, columns, loss, weights, delta)
    theta, reached, share, basins = best(points, seed)
    _refuse(points, reached)
    index = _clusters(points, groups)
    samples, left_out, how, unfinished = _resample(points, theta, index, resamples, seed)
    estimate = form.outer(theta)
    at_bound, resting = _at_bounds(form, samples)
    for name, part in resting.items():
        if part > MOST:
            raise NotIdentified(
                f"{form.name}: {name} is not told: in {part:.0%} of the resamples it rests on a "
                f"bound of {list(form.parameters[name])}; {_REMEDY}"
            )
    exact = float(np.abs(np.log(losses) - points.model(theta[None])[0][0]).max()) < EXACT
    ci = {}
    for i, name in enumerate(form.names):
        low, high = form.parameters[name]
        if low < high:
            ends = bca(samples[:, i], theta[i], None if left_out is None else left_out[:, i], level)
            pair = [np.full(len(theta), end) for end in ends]
            ci[name] = (float(form.outer(pair[0])[i]), float(form.outer(pair[1])[i]))
    condition = _condition(points, theta)
    return FormLaw(
        form=form, values=dict(zip(form.names, estimate.tolist(), strict=True)),
        level=level, ci=dict.fromkeys(ci, (float("nan"), float("nan"))) if exact else ci,
        status=SurfaceStatus(
            converged=bool(reached.gradient[0] < CONVERGED),
            gradient_norm=float(reached.gradient[0]), starts=STARTS, basin_share=share,
            basins=basins, condition=condition, bootstrap=how, resamples=len(samples),
            at_bound_share=at_bound, unfinished_share=unfinished,
        ),
        objective=float(reached.objective[0]), corner=delta, columns=points.columns, loss=losses,
        samples=form.outer(samples), run_index=index,
        weights=None if weights is None else points.weights,
        held=None if order is None else held_out(points, np.asarray(order, float), held_by, seed),
        resting=tuple(f"{n} ({part:.0%})" for n, part in resting.items() if part > 0.01),
    )  # fmt: skip


def judge(
    form: Form, columns: Mapping[str, npt.ArrayLike], loss: npt.ArrayLike, order: np.ndarray, *,
    held_by: str = "C", weights: Sequence[float] | np.ndarray | None = None, delta: float = DELTA,
    seed: int = 0,
) -> HeldOut | None:  # fmt: skip
    """The error of a form on the held-out runs, without intervals; arguments and errors as of
    `fit_form`, but for what its resamples say."""
    points, _ = _points(form, columns, loss, weights, delta)
    _refuse(points, best(points, seed)[1])
    return held_out(points, np.asarray(order, float), held_by, seed)


def _points(
    form: Form, columns: Mapping[str, npt.ArrayLike], loss: npt.ArrayLike,
    weights: Sequence[float] | np.ndarray | None, delta: float,
) -> tuple[Points, np.ndarray]:  # fmt: skip
    """What is fitted, and the losses (n,)."""
    given, losses = _checked(form, columns, loss)
    weight = np.ones(len(losses)) if weights is None else relative(weights, len(losses))
    points = Points(form, given, np.log(losses), weight, delta)
    _require(points)
    return points, losses


_REMEDY = (
    "widen its bounds, give it as a number, take its term out of the formula, or add runs over a "
    "wider range"
)


def _checked(
    form: Form, columns: Mapping[str, npt.ArrayLike], loss: npt.ArrayLike
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    missing = [name for name in form.columns if name not in columns]
    if missing:
        raise UserError(
            f"form {form.name} needs {', '.join(map(told, missing))}; there is "
            f"{', '.join(columns) or 'nothing'}"
        )
    given: dict[str, np.ndarray] = {}
    for name in form.columns:
        if name in MEANINGS:
            given[name], losses = checked(columns[name], loss, names=(name, "loss"))
            continue
        _, losses = checked(loss, loss, names=("loss", "loss"))
        given[name] = np.asarray(columns[name], dtype=float).ravel()
        if given[name].shape != losses.shape or not np.isfinite(given[name]).all():
            raise UserError(
                f"{name} has {len(given[name])} values for {len(losses)} losses, or some are no "
                "numbers: give one finite number for each"
            )
    return given, losses


def told(name: str) -> str:
    """A column's name with its meaning."""
    return f"{name} ({MEANINGS[name]})" if name in MEANINGS else name


def _require(points: Points) -> None:
    form = points.form
    distinct = len(np.unique(np.stack([*points.columns.values()], 1), axis=0))
    if distinct <= form.free:
        raise NotIdentified(
            f"{form.name}: {distinct} distinct runs for {form.free} parameters: any such fit is "
            f"exact and says nothing; give at least {form.free + 1}, or fix parameters (a number "
            "in place of bounds)"
        )
    for name, values in points.columns.items():
        if np.ptp(values) < 1e-9 * np.abs(values).max():
            raise NotIdentified(
                f"{form.name}: every run has the same {told(name)}, {values[0]:g}: what the loss "
                "owes to it cannot be told; add runs that differ in it, or take it out of the "
                "formula"
            )
    if "U" in form.columns and "D" in form.columns:
        again = points.columns["D"] > 1.01 * points.columns["U"]
        if again.sum() < 3:
            raise NotIdentified(
                f"{form.name}: {int(again.sum())} of {len(again)} runs repeat data: a law of "
                "repetition needs at least 3, at several numbers of epochs; fit --form parametric"
            )
        if again.all():
            raise NotIdentified(
                f"{form.name}: no run has fresh data alone (one epoch or less), so what repetition "
                "takes away cannot be told from what data give: add such runs"
            )
        times = np.unique(np.round((points.columns["D"] / points.columns["U"])[again], 2))
        if len(times) < 2:
            raise NotIdentified(
                f"{form.name}: the runs that repeat data all do so {times[0]:g} times: how "
                "repetition adds up takes at least two numbers of epochs beside fresh data"
            )
    if np.ptp(points.y) < 1e-9:
        raise NotIdentified(
            f"{form.name}: the loss is the same in every run: there is nothing to fit; check the "
            "column"
        )


def best(points: Points, seed: int) -> tuple[np.ndarray, Reached, float, int]:
    """The best theta (p,), where it ended (one row), the share of the starts that got there, and
    how many minima there are."""
    reached = points.reach(starts(points, seed))
    order = np.argsort(reached.objective, kind="stable")
    least = float(reached.objective[order[0]])
    if not np.isfinite(least):
        raise NotIdentified(
            f"{points.form.name}: the formula has no value at these runs anywhere within its "
            "bounds: check its logarithms, roots and powers, or the bounds"
        )
    same = least * 1e-5 + len(points.y) * min(points.delta, 1.0) ** 2 * 1e-9
    share = float((reached.objective <= least + same).mean())
    done = np.sort(reached.objective[(reached.gradient < 1e-6) & np.isfinite(reached.objective)])
    basins = 1 + int((np.diff(done) > same).sum())
    first = order[:1]
    if reached.gradient[first[0]] > CONVERGED:  # a long way: once more from there
        again = points.reach(reached.theta[first])
        return again.theta[0], again, share, basins
    one = Reached(*(getattr(reached, k)[first] for k in (
        "theta", "objective", "gradient", "at_bound")))  # fmt: skip
    return one.theta[0], one, share, basins


def starts(points: Points, seed: int) -> np.ndarray:
    """theta (STARTS, p): the best of many draws between the bounds, each with those parameters in
    which the formula is linear solved for."""
    form, rng = points.form, np.random.default_rng(seed)
    low, high = form.bounds
    names = list(form.names)
    free = [name for name in names if form.parameters[name][0] < form.parameters[name][1]]
    linear = [] if form.expression is None else list(form.expression.linear_in(free))
    count = min(DRAWS * (1 + len(free) - len(linear)), 20_000)
    theta = low + (high - low) * rng.random((count, len(names)))
    some = points
    if len(points.y) > LOOK:
        some = points.some(rng.permutation(len(points.y))[:LOOK])
    block = max(1, 2_000_000 // (len(some.y) * len(names)))
    value = np.empty(count)
    for i in range(0, count, block):
        rows = slice(i, i + block)
        if linear:
            theta[rows] = _solved(some, theta[rows], [names.index(name) for name in linear])
        with np.errstate(all="ignore"):
            r = some.y - form.log_loss(some.columns, theta[rows])[0]
            value[rows] = (some.weights * huber(r, LOOSE)).sum(1)
    value[~np.isfinite(value)] = np.inf
    found: np.ndarray = theta[np.argsort(value, kind="stable")[:STARTS]]
    return found


def _solved(points: Points, theta: np.ndarray, linear: list[int]) -> np.ndarray:
    """theta (R, p) with the linear parameters of least squared relative error, within bounds."""
    form = points.form
    values = form.outer(theta)
    values[:, linear] = 0.0
    with np.errstate(all="ignore"):
        rest, slopes = form.loss(points.columns, values)
    root = np.sqrt(points.weights) / np.exp(points.y)
    design = slopes[..., linear] * root[:, None]
    target = (np.exp(points.y) - rest) * root
    fine = np.isfinite(design).all((1, 2)) & np.isfinite(target).all(1)
    design, target = np.where(fine[:, None, None], design, 0), np.where(fine[:, None], target, 0)
    scale = np.sqrt((design**2).sum(1)) + 1e-300
    design = design / scale[:, None]
    square = design.transpose(0, 2, 1) @ design + 1e-9 * np.eye(len(linear))
    found = np.linalg.solve(square, np.einsum("rnp,rn->rp", design, target)[..., None])[..., 0]
    ends = np.array([form.parameters[form.names[i]] for i in linear])
    values = values.copy()
    values[:, linear] = np.clip(found / scale, ends[:, 0], ends[:, 1])
    # What was clipped away leaves more for the others than they were given; the search mends it.
    return form.inner(values)


def _refuse(points: Points, reached: Reached) -> None:
    form = points.form
    names = [
        name for name, at, (low, high) in zip(
            form.names, reached.at_bound[0], form.parameters.values(), strict=True
        ) if at and low < high
    ]  # fmt: skip
    if names:
        value = dict(zip(form.names, form.outer(reached.theta)[0], strict=True))
        said = "; ".join(f"{n} = {value[n]:.4g} of {list(form.parameters[n])}" for n in names)
        raise NotIdentified(
            f"{form.name} is not identified: the best fit rests on a bound ({said}), so that "
            f"{'it is' if len(names) == 1 else 'they are'} no finding: {_REMEDY}"
        )
    if reached.gradient[0] > UNMOVED:
        raise NotIdentified(
            f"{form.name} is not identified: no start reached a minimum (gradient "
            f"{reached.gradient[0]:.2g}): narrow the bounds, take a term out, or add runs"
        )
    if _condition(points, reached.theta[0]) > SINGULAR:
        raise NotIdentified(
            f"{form.name} is not identified: {_confused(points, reached.theta[0])} cannot be told "
            f"apart by these runs: {_REMEDY}"
        )


def _scaled(points: Points, theta: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Slopes (n, free) of columns of length 1, and whose they are."""
    form = points.form
    free = np.array([low < high for low, high in form.parameters.values()])
    slopes = points.model(theta[None])[1][0][:, free] * np.sqrt(points.weights)[:, None]
    size = np.sqrt((slopes**2).sum(0))
    names = [name for name, is_free in zip(form.names, free, strict=True) if is_free]
    return slopes / np.maximum(size, 1e-300), names


def _condition(points: Points, theta: np.ndarray) -> float:
    slopes, _ = _scaled(points, theta)
    return float(np.linalg.cond(slopes.T @ slopes))


def _confused(points: Points, theta: np.ndarray) -> str:
    """The parameters that move together in the direction that the runs tell least."""
    slopes, names = _scaled(points, theta)
    axis = np.abs(np.linalg.eigh(slopes.T @ slopes)[1][:, 0])
    return ", ".join(n for n, part in zip(names, axis, strict=True) if part > 0.1 * axis.max())


def _clusters(points: Points, groups: Sequence[object] | None) -> np.ndarray:
    """The cluster (n,) of each point, from 0 on: its run."""
    count = len(points.y)
    return np.arange(count) if groups is None else numbered(groups, count)


def _resample(
    points: Points, theta: np.ndarray, index: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None, str, float]:
    """Resampled theta (R, p), those of one cluster left out (G, p), how, and the share of refits
    that reached no minimum: few clusters' noise drawn anew, or whole clusters drawn."""
    rng = np.random.default_rng(seed)
    clusters, form = int(index.max()) + 1, points.form
    worth = effective(clusters, points.weights)
    if worth < FEW:
        noise = _noise(points, theta, index).draw(index, resamples, rng) / np.sqrt(points.weights)
        y = points.model(theta[None])[0][0] + noise
        how = f"noise of {clusters} clusters drawn anew"
        if len(points.y) > LARGE:
            pull = points.weights * np.clip(noise, -points.delta, points.delta)
            return _stepped(points, theta, pull, noise), None, f"{how}, linearised", 0.0
        ended = points.reach(np.tile(theta, (resamples, 1)), y=y, tolerance=CLOSE)
        return ended.theta, None, how, float((ended.gradient > UNMOVED).mean())
    how = f"{clusters} clusters drawn with replacement"
    counts = cluster_weights(index, resamples, rng) * points.weights
    drop = (index[None] != np.arange(clusters)[:, None]) * points.weights
    r = points.y - points.model(theta[None])[0][0]
    pull = np.clip(r, -points.delta, points.delta)
    left_out = _stepped(points, theta, drop * pull, r, drop)  # of the skew alone
    if len(points.y) > LARGE:
        samples = _stepped(points, theta, counts * pull, r, counts)
        return _widened(form, samples, theta, worth), left_out, f"{how}, linearised", 0.0
    ended = points.reach(np.tile(theta, (resamples, 1)), weights=counts, tolerance=CLOSE)
    unfinished = float((ended.gradient > UNMOVED).mean())
    return _widened(form, ended.theta, theta, worth), left_out, how, unfinished


def _widened(form: Form, samples: np.ndarray, theta: np.ndarray, worth: float) -> np.ndarray:
    found: np.ndarray = np.clip(widen(samples, theta, worth, form.free), *form.bounds)
    return found


def _noise(points: Points, theta: np.ndarray, index: np.ndarray) -> Noise:
    """Standard deviations of log loss by cluster and by point; of the parameters, the degrees of
    freedom of that which knows its variance least."""
    root = np.sqrt(points.weights)
    slopes, _ = _scaled(points, theta)
    residual = (points.y - points.model(theta[None])[0][0]) * root
    found = [components(slopes, residual, index, one) for one in np.linalg.pinv(slopes)]
    return min(found, key=lambda noise: noise.df)


def _stepped(
    points: Points, theta: np.ndarray, pull: np.ndarray, r: np.ndarray,
    counts: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """theta (R, p) one Newton step away by pulls (R, n) of the points; r (n,) or (R, n): residuals,
    of which those within Huber's corner bend the objective; counts (R, n) of the points."""
    slopes = points.model(theta[None])[1][0]
    size = np.sqrt((slopes**2).sum(0)) + 1e-300
    columns = slopes / size
    inside = (np.abs(r) <= points.delta) * (points.weights if counts is None else counts)
    outer = (columns[:, :, None] * columns[:, None]).reshape(len(columns), -1)
    square = (inside @ outer).reshape(-1, len(theta), len(theta))
    square = square + 1e-10 * np.trace(square, axis1=1, axis2=2)[:, None, None] * np.eye(len(theta))
    step = np.linalg.solve(square, (pull @ columns)[..., None])[..., 0] / size
    out: np.ndarray = np.clip(theta + step, *points.form.bounds)
    return out


def _at_bounds(form: Form, samples: np.ndarray) -> tuple[float, dict[str, float]]:
    """Share of the resamples with a free parameter on a bound, and of each parameter."""
    low, high = form.bounds
    near = 1e-9 * (high - low)
    at = ((samples <= low + near) | (samples >= high - near)) & (low < high)
    return float(at.any(1).mean()), dict(zip(form.names, at.mean(0).tolist(), strict=True))


def held_out(points: Points, order: np.ndarray, by: str, seed: int) -> HeldOut | None:
    """The points above the quantile HELD of `order` (n,), or of its largest value where that is as
    many or more, predicted from the others; None where these are too few for a fit."""
    above = order > np.quantile(order, HELD) * (1 + 1e-9)
    if not above.any():
        above = order >= order.max() * (1 - 1e-9)
    rest = points.some(~above)
    try:
        _require(rest)
        theta, reached, _, _ = best(rest, seed)
    except NotIdentified:
        return None
    held = points.some(above)
    actual, expected = np.exp(held.y), np.exp(held.model(theta[None])[0][0])
    miss = actual - expected
    total = float(((actual - actual.mean()) ** 2).sum())
    return HeldOut(
        by=by, above=float(order[~above].max()), fitted=int((~above).sum()), held=int(above.sum()),
        r2=1 - float(miss @ miss) / total if total > 0 else float("nan"),
        rms=float(np.sqrt((miss**2).mean())),
        relative=float(np.sqrt(((miss / actual) ** 2).mean())),
        resting=tuple(
            n for n, at, (a, b) in zip(
                points.form.names, reached.at_bound[0], points.form.parameters.values(), strict=True
            ) if at and a < b
        ),
    )  # fmt: skip
