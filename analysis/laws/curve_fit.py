"""Fit of the law of the loss curve (analysis/laws/curve.py) to several curves at once.

Least Huber loss of log loss, with a prior on what few schedules tell. Residuals along a curve are
correlated: a stretch of a curve, an eighth of the longest, counts as one observation, for the
prior's weight and for the intervals alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from scaling.analysis.laws.curve import (
    FALL,
    HIGH,
    LOW,
    NAMES,
    PRIOR,
    Curve,
    CurveLaw,
    CurveStatus,
    Design,
)
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.minimise import Model, Reached, minimise
from scaling.analysis.laws.solver import huber
from scaling.errors import UserError

STARTS = ((0.9, 0.5), (0.75, 0.3))  # L0 / smallest loss, alpha
FALL_SPREAD = 1.5  # of log B: nearly free, but a fit without falls does not stay there
DELTA = 1e-3  # Huber's corner, in log loss, where the noise is not larger
INEXACT = 1e-3  # in log loss: no curve published so far follows the law more closely than this
BLOCKS = 8  # stretches of a curve that count as independent
ROWS = 300  # of a curve; longer ones are averaged in stretches
FEWEST, FEWEST_IN_ALL = 3, 24  # rows of a curve, and of all
SKIPPED = 0.03  # of the longest curve: its first steps follow no power law
SHORTEST = 50  # steps of the longest curve
FELL = 0.8  # of its highest rate: a curve that ends below it tells of a fall
TINY = 1e-6  # scale at which the prior lies well within Huber's corner
Prior = Mapping[str, tuple[float, float]]  # parameter -> centre, standard deviation


def prepared(curve: Curve, longest: float) -> Curve:
    """Without warm-up and first steps, at most ROWS rows. Raises UserError: too little is left."""
    _check(curve)
    begin = max(curve.schedule.warm, SKIPPED * longest)
    keep = curve.step >= begin
    step, loss = curve.step[keep], curve.loss[keep]
    if len(step) < FEWEST:
        raise NotIdentified(
            f"curve {curve.name}: {len(step)} losses after its warm-up and the first "
            f"{SKIPPED:.0%} of the longest curve's steps (from step {begin:g} on); give at least "
            f"{FEWEST}, or leave it out (--where)"
        )
    if len(step) > ROWS:
        parts = np.array_split(np.arange(len(step)), ROWS)
        step = np.array([step[p].mean() for p in parts])
        loss = np.array([np.exp(np.log(loss[p]).mean()) for p in parts])
    return Curve(curve.name, curve.schedule, step, loss)


def _check(curve: Curve) -> None:
    step, loss = np.asarray(curve.step, dtype=float), np.asarray(curve.loss, dtype=float)
    if step.shape != loss.shape or step.ndim != 1:
        raise UserError(f"curve {curve.name}: {step.size} steps and {loss.size} losses")
    if not (np.isfinite(loss) & (loss > 0)).all():
        bad = int(np.argmin(np.isfinite(loss) & (loss > 0)))
        raise UserError(
            f"curve {curve.name}: its loss at step {step[bad]:g} is {loss[bad]:g}: losses must be "
            "positive; leave those rows out, and count them"
        )
    if len(step) > 1 and not (np.diff(step) > 0).all():
        raise UserError(f"curve {curve.name}: its steps do not increase")


def fit_curve(
    curves: Sequence[Curve], *, level: float = 0.95, delta: float | None = None, hold: bool = True
) -> CurveLaw:
    """The law of some runs of one model on one set of data, with several schedules.

    Args:
        curves: of two schedules or more, of which one's rate falls.
        level: of the intervals.
        delta: Huber's corner in log loss; None: DELTA, or 1.345 times the rows' noise if larger.
        hold: whether to predict each curve from the others, where that leaves enough.
    Raises:
        NotIdentified: one schedule only, no fall of the rate, too few rows.
        UserError: bad values, or rates of different units.
    """
    if not curves:
        raise UserError("no curves")
    longest = max(curve.schedule.end for curve in curves)
    if longest < SHORTEST:
        raise UserError(
            f"the longest curve has {longest:g} steps: are they in thousands, or epochs? Give the "
            "optimizer's steps"
        )
    _refuse_schedules(curves)
    used = tuple(prepared(curve, longest) for curve in curves)
    if sum(len(c.step) for c in used) < FEWEST_IN_ALL:
        raise NotIdentified(
            f"{sum(len(c.step) for c in used)} losses of {len(used)} curves after their warm-up: "
            f"a law of the curve wants at least {FEWEST_IN_ALL}; log it more often"
        )
    if all(np.ptp(np.log(c.loss)) < 1e-9 for c in used):
        raise NotIdentified("the loss is the same at every step: check the column of the loss")
    peaks = [float(curve.schedule.rate.max()) for curve in used]
    top = max(peaks)
    noise = noise_of(used)
    delta = delta or max(DELTA, 1.345 * noise)
    design = Design([c.schedule for c in used], [c.step for c in used], top)
    y = np.log(np.concatenate([c.loss for c in used]))
    spread = max(noise, INEXACT) ** 2 * len(y) / (BLOCKS * len(used))
    prior = PRIOR | {"log B": (FALL + float(np.median(y)), FALL_SPREAD)}
    theta, reached = solve(design, y, delta, spread, prior=prior)
    residual = y - design.log_loss(theta)[0]
    # A second time, with the prior's weight as the misfit wants it: correlated residuals are
    # worth a few stretches, not as many points.
    spread = _spread(design, residual)
    theta, reached = solve(design, y, delta, spread, theta, prior=prior)
    log_loss, slopes = design.log_loss(theta)
    residual = y - log_loss
    blocks = _blocks(design)
    covariance, misfit, freedom = _uncertainty(residual, slopes, delta, spread, blocks, prior)
    told = {
        name: float(np.clip(1 - covariance[j, j] / PRIOR[name][1] ** 2, 0, 1))
        for j, name in enumerate(NAMES)
        if name in PRIOR
    }
    bound = tuple(
        name for name, at in zip(NAMES, reached.at_bound[0], strict=True) if at and name != "before"
    )
    law = CurveLaw(
        theta=theta, covariance=covariance,
        status=CurveStatus(
            bool(reached.gradient[0] < 1e-5), float(reached.gradient[0]), len(STARTS), bound, told
        ),
        objective=float(huber(residual, delta).sum()), delta=delta, level=level, top=top,
        noise=noise, misfit=misfit, freedom=freedom, longest=longest, rows=len(y),
        peaks=(min(peaks), max(peaks)),
        held_out=_held_out(curves, delta, level) if hold else {},
    )  # fmt: skip
    return _with_warnings(law, used, residual, design)


def _refuse_schedules(curves: Sequence[Curve]) -> None:
    ends = [c.schedule.at(np.array([c.schedule.end]))[0] / c.schedule.rate.max() for c in curves]
    if min(ends) > FELL:
        raise NotIdentified(
            f"the rate of no curve falls (the lowest last rate is {min(ends):.0%} of the highest): "
            "what a cooldown gives cannot be told; add a run with one, e.g. cosine or WSD"
        )
    peaks = np.array([c.schedule.rate.max() for c in curves])
    if peaks.max() > 100 * peaks.min():
        raise UserError(
            f"peak rates from {peaks.min():.3g} to {peaks.max():.3g}: are they in one unit? Leave "
            "out what does not belong together"
        )
    grid = np.linspace(0.02, 1, 50)
    shapes = [c.schedule.at(grid * c.schedule.end) / c.schedule.rate.max() for c in curves]
    apart = max(np.abs(one - shapes[0]).max() for one in shapes)
    lengths = [c.schedule.end for c in curves]
    if apart < 0.05 and max(lengths) < 1.2 * min(lengths):
        raise NotIdentified(
            f"{len(curves)} curve{'s' * (len(curves) > 1)} of one schedule only: what comes of "
            "steps and what of the falling rate cannot be told apart; add a run of another "
            "schedule or length, e.g. at a constant rate"
        )


def noise_of(curves: Sequence[Curve]) -> float:
    """Robust sd of log loss of a row about its neighbours, from second differences."""
    wiggle = [np.diff(np.log(c.loss), 2) for c in curves if len(c.loss) > 2]
    return max(float(1.4826 * np.median(np.abs(np.concatenate(wiggle))) / np.sqrt(6)), 1e-6)


def _blocks(design: Design) -> np.ndarray:
    """The stretch (n,) of a curve that each row belongs to, numbered over all curves: BLOCKS of
    the one with the most rows, and others as long."""
    out = np.empty(design.rows, int)
    most, first = max(rows.stop - rows.start for rows in design.row_of), 0
    for rows in design.row_of:
        count = rows.stop - rows.start
        parts = max(1, round(BLOCKS * count / most))
        out[rows] = first + np.arange(count) * parts // count
        first += parts
    return out


def _spread(design: Design, residual: np.ndarray) -> float:
    """Variance of a row's log loss if every stretch were one observation."""
    blocks = _blocks(design)
    count = np.bincount(blocks)
    sums = np.bincount(blocks, residual)
    tight = np.clip(sums, -3 * _mad(sums), 3 * _mad(sums))  # one odd stretch is not the rule
    return max(float((tight**2).sum() / count.sum()), INEXACT**2 * float(count.mean()))


def _mad(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values))) or 1e-12


def _model(design: Design, prior: Prior) -> Model:
    """Of minimise: log losses of the rows, and after them the prior's parameters as points."""
    at = [NAMES.index(name) for name in prior]
    scale = np.array([TINY / sd for _, sd in prior.values()])

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = np.empty((len(theta), design.rows + len(at)))
        slopes = np.zeros((*predicted.shape, len(NAMES)))
        for r, one in enumerate(theta):
            predicted[r, : design.rows], slopes[r, : design.rows] = design.log_loss(one)
        predicted[:, design.rows :] = theta[:, at] * scale
        slopes[:, design.rows + np.arange(len(at)), at] = scale
        return predicted, slopes

    return model


def solve(
    design: Design,
    y: np.ndarray,
    delta: float,
    spread: float,
    start: np.ndarray | None = None,
    *,
    prior: Prior,
) -> tuple[np.ndarray, Reached]:
    """The least of Huber's loss plus spread x ((theta - centre) / sd)^2 / 2 over the prior."""
    centre = {name: middle for name, (middle, _) in prior.items()}
    starts = [] if start is None else [start]
    floor = float(np.exp(y.min()))
    for share, alpha in STARTS if start is None else ():
        rest = np.exp(y.max()) - share * floor
        # A from the highest loss.
        log_a = np.log(rest) + alpha * np.log(0.1 * design.steps)
        begin = {
            "L0": share * floor, "log A": log_a, "alpha": alpha,
        } | centre  # fmt: skip
        starts.append(np.array([begin[name] for name in NAMES]))
    points = np.array([middle / sd for middle, sd in prior.values()]) * TINY
    weights = np.concatenate([np.ones(len(y)), np.full(len(points), spread / TINY**2)])
    high = np.minimum(HIGH, np.where(np.arange(len(NAMES)) == 0, np.exp(y.max()), np.inf))
    model, points = _model(design, prior), np.concatenate([y, points])
    theta = np.array(starts)
    # From afar most rows lie on Huber's flat parts, where a start may get stuck: wide corners
    # first.
    for corner in (100 * delta, 10 * delta) if start is None else ():
        wide = minimise(model, points, weights, corner, theta, LOW, high, tolerance=1e-3)
        theta = wide.theta[np.isfinite(wide.objective)]
        if not len(theta):
            raise NotIdentified("no start of the fit gives losses above 0: check the table's units")
    reached = minimise(
        model, points, weights, delta, theta, LOW, high, tolerance=1e-6
    )  # fmt: skip
    best = int(np.argmin(reached.objective))
    return reached.theta[best], Reached(
        reached.theta[best : best + 1], reached.objective[best : best + 1],
        reached.gradient[best : best + 1], reached.at_bound[best : best + 1],
    )  # fmt: skip


def _uncertainty(
    residual: np.ndarray, slopes: np.ndarray, delta: float, spread: float, blocks: np.ndarray,
    given: Prior,
) -> tuple[np.ndarray, float, int]:  # fmt: skip
    """Covariance (9, 9) of theta, the misfit of a stretch, and the degrees of freedom.

    The rows of a stretch are one observation of their mean: what their residuals have in common
    is misfit, and tells how far the parameters may be off.
    """
    inside = np.minimum(1, delta / np.maximum(np.abs(residual), 1e-300))
    data = (slopes * inside[:, None]).T @ slopes
    prior = np.zeros(data.shape)
    for name, (_, sd) in given.items():
        prior[NAMES.index(name), NAMES.index(name)] = 1 / sd**2
    count = np.bincount(blocks)

    def inverse(weight: float) -> np.ndarray:
        whole = data + weight * prior
        scale = 1 / np.sqrt(np.maximum(np.diag(whole), 1e-300))
        scaled = whole * scale[:, None] * scale
        found: np.ndarray = np.linalg.pinv(scaled, rcond=1e-14) * scale[:, None] * scale
        return found

    used = float(np.trace(inverse(spread) @ data))  # parameters that the rows determine
    free = max(len(count) - used, 3.0)
    # Medians: a spike is noise, a stretch that lies off is not.
    off = np.array([np.median(residual[blocks == b]) for b in range(len(count))])
    misfit = max(float(np.sqrt((off**2).sum() / free)), INEXACT)
    wide = max(misfit**2 * float(count.mean()), spread)
    return wide * inverse(wide), misfit, int(free)


def _held_out(curves: Sequence[Curve], delta: float, level: float) -> dict[str, float]:
    """Rms relative error of each curve predicted from the others, where they determine a law."""
    out: dict[str, float] = {}
    for i, held in enumerate(curves):
        rest = [*curves[:i], *curves[i + 1 :]]
        try:
            law = fit_curve(rest, level=level, delta=delta, hold=False)
            one = prepared(held, max(c.schedule.end for c in curves))
            said = law.predict(one.schedule, one.step)
        except NotIdentified:
            continue
        if not said.refused:
            out[held.name] = float(np.sqrt(np.mean((said.loss / one.loss - 1) ** 2)))
    return out


def _with_warnings(
    law: CurveLaw, curves: Sequence[Curve], residual: np.ndarray, design: Design
) -> CurveLaw:
    said = []
    loose = [name for name, share in law.status.told.items() if share < 0.5 and name != "before"]
    if loose:
        said.append(
            f"{', '.join(n.removeprefix('log ') for n in loose)}: not told by these curves, but "
            "taken from published ones with their spread; add runs whose rate falls at another "
            "place or speed"
        )
    if law.peaks[1] > 1.05 * law.peaks[0]:
        said.append(
            f"peak rates from {law.peaks[0]:.3g} to {law.peaks[1]:.3g}: the law was published for "
            "curves of one, and another peak changes more than the sums; fit one at a time "
            "(--where)"
        )
    if law.status.at_bound:
        said.append(f"at a bound: {', '.join(law.status.at_bound)}")
    if not law.status.converged:
        said.append(f"the fit did not reach a minimum (gradient {law.status.gradient:.1g})")
    for curve, rows in zip(curves, design.row_of, strict=True):
        off = float(residual[rows].mean())
        if abs(off) > max(0.01, 4 * law.misfit):
            said.append(
                f"curve {curve.name} lies {off:+.1%} off the law as a whole: another model, data, "
                "batch or seed? One law is of one of each"
            )
    of_stretch = max(1.0, law.rows / (BLOCKS * len(curves)))  # rows
    if law.noise > 0.05:
        said.append(
            f"a row scatters by {law.noise:.0%} about its curve: average the losses over more steps"
        )
    if law.misfit > max(0.01, 2 * law.noise / np.sqrt(of_stretch)):
        said.append(
            f"the curves depart from the law by {law.misfit:.1%} over whole stretches: it is no "
            "law of theirs; do their names mix several models?"
        )
    return replace(law, warnings=tuple(said))
