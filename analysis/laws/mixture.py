"""When the form of the law is not known: all forms, weighed, and what they predict together.

    mixture = mix(compute, loss)              # covariance: of the noise of log loss, when known
    mixture.quantiles(1e20, (0.025, 0.5, 0.975))    # of the law's loss
    mixture.shares, mixture.scores, mixture.reach, print("\n".join(mixture.lines()))

The forms of laws/forms.py are averaged over their grids, over the scale of the noise and over
one another (Bayesian model averaging: Hoeting et al. 1999). A form's share is its posterior
probability; its marginal likelihood is the product of its forecasts of each point from those
before it, i.e. a rolling-origin score. Held-out errors at several distances are given beside it.

What no weighing of forms can know: a component or a break beyond the data leaves no trace in them
(the "hidden crossover" of SCALE-CERT, github.com/jingxuxie/scaling-law-extrapolation), so no
interval here allows for one. What it does allow for: a curve that has bent may bend again
(`AGAIN`). Where no window of the data was followed by data nearly as far away as a prediction
reaches, or the last point breaks with the rest, none is given (`Mixture.reach`). PRIOR, AGAIN,
SLACK and SURPRISE are chosen for the coverage that benchmarks/coverage.py and
benchmarks/forecast.py measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scaling.analysis.laws.forms import EXACT, Form, noise_models, weighed
from scaling.analysis.laws.quantiles import Here

# Prior probabilities. Simple first: on a pure law the interval is to stay near the pure law's own.
PRIOR = {"pure": 0.6, "floor": 0.17, "two powers": 0.08, "break": 0.1, "drift": 0.05}
AGAIN = 0.12  # slope goes on to change by this share of what it changed, as a random walk
POINTS = 40  # more are averaged, neighbours together
WINDOW = 0.45  # decades, and
ENOUGH = 4  # points of the least window that predicts; 3 when the noise is known
SLACK = 1.5  # a window supports a distance this much longer than its own
WINDOWS = 6  # of the rolling origin
DISTANCES = (0.5, 1.0)  # decades, up to which held-out errors are pooled
SURPRISE = 0.95  # level of the interval outside which the last point breaks with the rest,
SEEN = 0.9  # unless break and drift have this share, and so the break is in the interval
# Unit of the axis: what its largest value is called, what to add beyond it, what to add anywhere.
BUDGETS = ("largest compute", "larger budget", "smaller or larger budgets")
WORDS = {
    "parameters": ("most parameters", "larger model", "smaller or larger models"),
    "tokens": ("most tokens", "longer run", "shorter or longer runs"),
}
KEEP = 1e-5  # curves of less weight than this share of their form's largest are left out


@dataclass(frozen=True)
class Mixture:
    """What all forms together say of the loss; made by `mix`."""

    forms: tuple[tuple[str, Form], ...] = field(repr=False)  # once per model of the noise
    shares: dict[str, float]  # posterior probability of each form
    weights: tuple[np.ndarray, ...] = field(repr=False)  # (K,) of their curves; 1 for each name
    centre: float = field(repr=False)  # mean log compute
    ends: tuple[float, float]  # smallest and largest compute
    scatter: float  # deviation of a point's log loss: of a run, or of a mean of runs
    drift: np.ndarray = field(repr=False)  # of every curve's slope, per root decade beyond
    slopes: tuple[float, float]  # d log L / d log C at both ends
    reach: float = float("nan")  # decades beyond the data that held-out windows support
    why: str = ""  # what limits the reach
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)  # see `_held_out`
    held: tuple[int, int] = (0, 0)  # held-out points inside their 95% interval, of how many
    windows: int = 0

    @property
    def bends(self) -> bool:
        """Whether the pure law is less likely than not."""
        return self.shares["pure"] < 0.5

    def _components(self, compute: float) -> tuple[np.ndarray, ...]:
        """Weight, floor, mean and deviation of log(L - floor) of every curve, each (K,)."""
        x = float(np.log(compute)) - self.centre
        curves = [form.curve(x) for _, form in self.forms]
        weight = np.concatenate(
            [self.shares[name] * w for (name, _), w in zip(self.forms, self.weights, strict=True)]
        )
        floor, mean, deviation = (np.concatenate([c[i] for c in curves]) for i in range(3))
        beyond = abs(np.log10(compute / np.clip(compute, *self.ends)))
        # e^100 times the floor is wide enough, and finite.
        part = 1 + floor * np.exp(np.minimum(-mean, 100))
        again = self.drift * beyond**1.5 / np.sqrt(3) * part
        kept = weight > KEEP * weight.max()
        return weight[kept], floor[kept], mean[kept], np.hypot(deviation, again)[kept]

    def at(self, compute: float) -> Here:
        """What is said at one compute; its parts are made once for all questions there."""
        weight, floor, mean, deviation = self._components(compute)
        weight = weight / weight.sum()
        centre = np.logaddexp(np.log(floor + 1e-300), mean)
        spread = np.hypot(deviation * np.exp(mean - centre), self.scatter)
        return Here(weight, floor, mean, deviation, centre, spread, self.scatter)

    def distribution(
        self, compute: float, *, run: bool = False
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Probability that the log loss at `compute` lies below its argument (m,): of the law, or
        of one more such point's (`Mixture.scatter`)."""
        here = self.at(compute)
        return here.run_below if run else here.below

    def quantiles(
        self, compute: float, levels: Sequence[float] | np.ndarray, *, run: bool = False
    ) -> np.ndarray:
        """Quantiles of the loss at `compute`: of the law, or of one more such point's."""
        return self.at(compute).quantiles(levels, run=run)

    def means(self, compute: float) -> dict[str, float]:
        """Posterior mean of log loss by each form (0 by one without weights)."""
        x, out = float(np.log(compute)) - self.centre, dict.fromkeys(self.shares, 0.0)
        for (name, form), weight in zip(self.forms, self.weights, strict=True):
            floor, mean, _ = form.curve(x)
            out[name] += float(weight @ np.logaddexp(np.log(floor + 1e-300), mean))
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
        held, of = self.held
        said = [
            "  forms        share of each in the prediction, and its error on points held out: "
            f"the next, .5 and 1 decade on ({self.windows} windows)"
        ]
        for name, share in self.shares.items():
            errors = " ".join("      -" if np.isnan(e) else f"{e:7.2%}" for e in self.scores[name])
            said.append(f"    {name:10s} {share:5.0%}  {errors}")
        said.append(
            f"  held out     {held} of {of} such points inside the interval predicted for them"
        )
        said.append(f"  reach        {self.reach:.2f} decades beyond the data: {self.why}")
        return said + ([f"  bends        {self.local()}"] if self.bends else [])

    def to_json(self) -> dict[str, Any]:
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


def _weigh(
    log_compute: np.ndarray,
    log_loss: np.ndarray,
    covariance: np.ndarray | None,
    weights: np.ndarray | None,
) -> Mixture:
    """The mixture of sorted points (n,), without its rolling origin."""
    found, logs = [], []
    for data in noise_models(log_compute, log_loss, covariance, weights):
        for name, form in weighed(data).items():
            found.append((name, form))
            prior = data.prior + np.log(PRIOR[name] / len(form.evidence))
            logs.append(form.evidence + prior)
    top = max(float(log.max()) for log in logs)
    # A form that nowhere fits has no evidence and no weights.
    best = {name: max(float(g.max()) for (m, _), g in zip(found, logs, strict=True) if m == name)
            for name in PRIOR}  # fmt: skip
    shared, evidence, variance = [], dict.fromkeys(PRIOR, 0.0), 0.0
    for (name, form), log in zip(found, logs, strict=True):
        relative = np.exp(log - max(best[name], -1e300))
        grid, scale = np.nonzero(relative > KEEP)
        form.keep(grid, scale)
        shared.append(relative[grid, scale])
        odds = np.exp(best[name] - top) * shared[-1]
        evidence[name] += float(odds.sum())
        variance += float(odds @ data.scales[scale] ** 2)
    total = sum(evidence.values())
    shares = {name: value / total for name, value in evidence.items()}
    mass = dict.fromkeys(PRIOR, 0.0)
    for (name, _), weight in zip(found, shared, strict=True):
        mass[name] += float(weight.sum())
    shared = [w / max(mass[name], 1e-300) for (name, _), w in zip(found, shared, strict=True)]
    noise_level = 1.0 if covariance is None else float(np.sqrt(np.diag(covariance).mean()))
    scatter = max(float(np.sqrt(variance / total)) * noise_level, EXACT)
    step = 0.05
    at = data.x[0], data.x[0] + step, data.x[-1] - step, data.x[-1]
    span, drift, slopes = (data.x[-1] - data.x[0]) / np.log(10), [], np.zeros(2)
    for (name, form), weight in zip(found, shared, strict=True):
        a, b, c, d = (np.logaddexp(np.log(f + 1e-300), m) for f, m, _ in map(form.curve, at))
        slopes += shares[name] * np.array([weight @ (b - a), weight @ (d - c)]) / step
        turn = np.abs((d - c) - (b - a)) / step * np.log(10)
        drift.append(AGAIN * turn / np.sqrt(span) * (name != "drift"))
    ends = float(np.exp(log_compute[0])), float(np.exp(log_compute[-1]))
    return Mixture(
        tuple(found), shares, tuple(shared), float(log_compute.mean()), ends, scatter,
        np.concatenate(drift), (float(slopes[0]), float(slopes[1])),
    )  # fmt: skip


def thinned(
    compute: np.ndarray, loss: np.ndarray, covariance: np.ndarray | None, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Log compute and log loss (n,), sorted, their covariance and weights; more than POINTS are
    averaged by place."""
    order = np.argsort(compute, kind="stable")
    x, y = np.log(compute[order]), np.log(loss[order])
    covariance = None if covariance is None else covariance[np.ix_(order, order)]
    weights = None if weights is None else weights[order]
    if len(x) <= POINTS:
        return x, y, covariance, weights
    edges = np.linspace(x[0], x[-1], POINTS + 1)[1:-1]
    index = np.unique(np.searchsorted(edges, x), return_inverse=True)[1]
    total = np.eye(index.max() + 1)[:, index]
    if weights is not None:
        total = total * weights
    mean = total / total.sum(1, keepdims=True)
    if covariance is not None:
        covariance = mean @ covariance @ mean.T
    return mean @ x, mean @ y, covariance, None if weights is None else total.sum(1)


def mix(
    compute: np.ndarray,
    loss: np.ndarray,
    covariance: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    unit: str = "MACs",
) -> Mixture:
    """Weigh the forms on points (n,) and hold out what lies above each of several origins.

    covariance: (n, n) of the noise of log loss, where it is known; else weights: (n,), in
    proportion to 1 / variance of log loss. unit: of `compute`, which may be "parameters" or
    "tokens" as well.
    """
    x, y, covariance, weights = thinned(
        np.asarray(compute, float), np.asarray(loss, float), covariance, weights
    )

    def up_to(top: int) -> Mixture:
        return _weigh(
            x[:top], y[:top], None if covariance is None else covariance[:top, :top],
            None if weights is None else weights[:top],
        )  # fmt: skip

    whole = up_to(len(x))
    if len(x) < len(compute):  # a run scatters more than a mean of runs
        at = np.interp(np.log(compute), x, y)
        residual = float(np.std(np.log(loss) - at))
        whole = replace(whole, scatter=max(whole.scatter, residual))
    known = covariance is not None
    tops = _tops(x, known)
    reach, why = _reach(x, tops, known, unit)
    if not len(tops):
        nothing = {name: (float("nan"),) * (1 + len(DISTANCES)) for name in PRIOR}
        return replace(whole, reach=reach, why=why, scores=nothing)
    chosen = np.unique(tops[np.linspace(0, len(tops) - 1, WINDOWS).astype(int)])
    windows = {int(top): up_to(int(top)) for top in chosen}
    scores, held = _held_out(windows, x, y)
    largest = windows[int(tops[-1])]
    surprised = not _within(largest, float(np.exp(x[-1])), y[-1], SURPRISE)
    if surprised and whole.shares["break"] + whole.shares["drift"] < SEEN:
        reach, why = 0.0, _broken(largest, whole.ends[1], y[-1], unit)
    return replace(
        whole, reach=reach, why=why, scores=scores, held=(sum(held), len(held)),
        windows=len(windows),
    )  # fmt: skip


def _tops(x: np.ndarray, known: bool) -> np.ndarray:
    """Where windows of the sorted points end: below a distinct compute, with points and decades
    enough; known: whether the noise is."""
    tops = np.flatnonzero(np.diff(x) > 1e-9) + 1
    distinct = np.arange(1, len(tops) + 1)
    span = (x[tops - 1] - x[0]) / np.log(10)
    enough: np.ndarray = tops[(distinct >= ENOUGH - known) & (span >= WINDOW)]
    return enough


def _held_out(
    windows: Mapping[int, Mixture], x: np.ndarray, y: np.ndarray
) -> tuple[dict[str, tuple[float, ...]], list[bool]]:
    """Root mean square error of each form on the next point and at DISTANCES, and whether each
    point lies in the interval predicted for it; windows: by where they end."""
    errors: dict[str, list[list[float]]] = {
        name: [[] for _ in range(1 + len(DISTANCES))] for name in PRIOR
    }
    held = []
    for top, window in windows.items():
        for k, target in enumerate(_targets(x, top)):
            if target is None:
                continue
            at = float(np.exp(x[target]))
            held.append(_within(window, at, y[target], 0.95))
            for name, mean in window.means(at).items():
                if window.shares[name] > 0 or mean:
                    errors[name][k].append(mean - y[target])
    scores = {
        name: tuple(float(np.sqrt(np.mean(np.square(e)))) if e else float("nan") for e in one)
        for name, one in errors.items()
    }
    return scores, held


def _broken(window: Mixture, compute: float, log_loss: float, unit: str) -> str:
    """Why nothing is predicted beyond the last point, which the others did not expect."""
    most, larger, _ = WORDS.get(unit, BUDGETS)
    tails = (1 - SURPRISE) / 2, (1 + SURPRISE) / 2
    low, high = window.quantiles(compute, tails, run=True)
    return (
        f"the loss at the {most}, {np.exp(log_loss):.4g}, lies outside the "
        f"{SURPRISE:.0%} interval that the rest predict for it, {low:.4g} to {high:.4g}: the "
        f"curve may have broken there; add a {larger}, or repeat that one"
    )


def _within(mixture: Mixture, compute: float, log_loss: float, level: float) -> bool:
    """Whether the interval of one more such point holds the loss."""
    below = mixture.distribution(compute, run=True)(np.array([log_loss]))[0]
    return bool((1 - level) / 2 <= below <= (1 + level) / 2)


def _targets(x: np.ndarray, top: int) -> list[int | None]:
    """The next point after a window, and those nearest to each of DISTANCES above it."""
    out: list[int | None] = [top]
    above = (x[top:] - x[top - 1]) / np.log(10)
    for distance in DISTANCES:
        nearest = int(np.abs(above - distance).argmin())
        near = abs(above[nearest] - distance) <= 0.35 * distance
        out.append(top + nearest if near else None)
    return out


def _reach(x: np.ndarray, tops: np.ndarray, known: bool, unit: str) -> tuple[float, str]:
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
        f"{distance:.2f} decades; add {WORDS.get(unit, BUDGETS)[2]}"
    )
