"""A learning-rate schedule as knots, and what a law of the loss curve needs of it.

The rate is linear in the step between knots, so a table that gives the rate every 100 steps, or a
cosine of 65 knots, stands for every step. Sums over steps are exact for such a rate: the sum of
f(k) over k = a+1 ... b is the integral from a to b plus (f(b) - f(a)) / 2, and the integral is
taken by two Gauss-Legendre points a piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.errors import UserError

GAUSS = np.array([-1.0, 1.0]) / np.sqrt(3)
KNOTS = 400  # of a schedule, at most
FLAT = 1e-9  # a smaller change, relative to the highest rate, is rounding
CLOSE = 3e-4  # of the highest rate
THIN = 0.05  # half a piece over its lag: below, the middle stands for it to 1e-3 of its part
FLOOR = 1e-6  # of the highest rate: a rate of 0 has no logarithm


@dataclass(frozen=True)
class Schedule:
    """step (K,), increasing, and the rate (K,) at each; linear between them.

    Before the first knot nothing is known; the warm-up, if the knots show one, ends at `peak`.
    """

    step: np.ndarray
    rate: np.ndarray

    def __post_init__(self) -> None:
        step, rate = np.asarray(self.step, dtype=float), np.asarray(self.rate, dtype=float)
        if step.ndim != 1 or step.shape != rate.shape or len(step) < 2:
            raise UserError("a schedule wants two or more steps, and a rate for each")
        if not (np.isfinite(step).all() and np.isfinite(rate).all() and (np.diff(step) > 0).all()):
            raise UserError("a schedule's steps must increase, and all its rates be numbers")
        if (rate < 0).any() or rate.max() <= 0 or step[0] < 0:
            raise UserError("a schedule's rates must not be negative, nor all 0")
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "rate", rate)

    @property
    def end(self) -> float:
        """The last step."""
        return float(self.step[-1])

    @property
    def warm(self) -> float:
        """The step at which the first rise of the rate is over; the first knot without one."""
        rising = np.diff(self.rate) > FLAT * self.rate.max()
        stops = np.flatnonzero(~rising)
        return float(self.step[stops[0]] if len(stops) else self.step[-1])

    def at(self, step: np.ndarray) -> np.ndarray:
        """The rate at steps of any shape."""
        rate: np.ndarray = np.interp(step, self.step, self.rate)
        return rate

    def total(self, step: np.ndarray) -> np.ndarray:
        """Sum of the rates after the first knot up to a step, of any shape."""
        k, e = self.step, self.rate
        whole = np.concatenate([[0.0], np.cumsum(np.diff(k) * (e[1:] + e[:-1]) / 2)])
        j = np.clip(np.searchsorted(k, step, side="right") - 1, 0, len(k) - 2)
        here = self.at(step)
        total: np.ndarray = whole[j] + (step - k[j]) * (e[j] + here) / 2 + (here - e[0]) / 2
        return total

    def drops(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The falls of the rate before each of the steps `at` (m,), as weighted points.

        Returns (row, lag, log rate, weight), each (n,): the sum over k <= t of
        (eta_{k-1} - eta_k) f(S_k(t), eta_k) is the sum of weight * f(lag, rate) over the points of
        row t. Rises count as negative falls, but for the warm-up's. Pieces lie between knots and
        at lags of 1, 2, 4, 8 ... steps, so that f may be steep where the lag is small.
        """
        powers = 2.0 ** np.arange(np.ceil(np.log2(max(self.end, 2.0))) + 1)
        knots = self.step[self.step >= self.warm]
        top, floor = self.rate.max(), FLOOR * self.rate.max()
        rows: list[np.ndarray] = []
        places: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        for row, t in enumerate(at):
            edges = np.concatenate([knots[knots < t], t - powers, [t]])
            edges = np.unique(edges[edges >= self.warm])
            fall = -np.diff(self.at(edges))
            falls = np.abs(fall) > FLAT * FLAT * top
            low, high, fall = edges[:-1][falls], edges[1:][falls], fall[falls]
            length = high - low
            # Steps low + 1 ... high, of which a sum is an integral from half a step after low.
            middle = (low + high + 1) / 2
            middle = np.where(length <= 1, high, middle)  # a jump is at its own step
            far = (length <= 1) | (length / 2 < THIN * (t - middle))  # one point is as good as two
            near = ~far
            both = middle[near, None] + length[near, None] / 2 * GAUSS
            places += [middle[far], both.ravel()]
            weights += [fall[far], np.repeat(fall[near] / 2, 2)]
            rows.append(np.full(len(low) + int(near.sum()), row))
        row_, where, weight = (np.concatenate(x or [np.empty(0)]) for x in (rows, places, weights))
        row_ = row_.astype(int)
        where = np.minimum(where, self.end)
        rate = self.at(where)
        lag = self.total(np.asarray(at, dtype=float))[row_] - self.total(where) + rate
        return row_, np.maximum(lag, 0.0), np.log(np.maximum(rate, floor)), weight


def thinned(step: np.ndarray, rate: np.ndarray, knots: int = KNOTS) -> Schedule:
    """The rates of a log by at most about `knots` knots: those that straight lines need to follow
    it to CLOSE of the highest rate, or as closely as so many can."""
    tolerance = CLOSE * rate.max()
    while True:
        keep = {0, len(step) - 1}
        spans = [(0, len(step) - 1)]
        while spans and len(keep) <= knots:
            a, b = spans.pop()
            if b - a < 2:
                continue
            line = np.interp(step[a : b + 1], [step[a], step[b]], [rate[a], rate[b]])
            off = np.abs(rate[a : b + 1] - line)
            if off.max() > tolerance:
                mid = a + int(np.argmax(off))
                keep.add(mid)
                spans += [(a, mid), (mid, b)]
        if len(keep) <= knots:
            kept = np.array(sorted(keep))
            return Schedule(step[kept], rate[kept])
        tolerance *= 4


def constant(steps: float, peak: float, warmup: float = 0) -> Schedule:
    """A linear warm-up of so many steps, then `peak` up to `steps`."""
    _check(steps, peak, warmup, 0)
    return Schedule(*_warm(warmup, peak, np.array([max(warmup, 1.0), steps]), np.ones(2)))


def cosine(steps: float, peak: float, warmup: float = 0, floor: float = 0.1) -> Schedule:
    """A linear warm-up, then half a cosine from `peak` to `floor` x peak at `steps`."""
    _check(steps, peak, warmup, floor)
    done = np.linspace(0, 1, 65)  # straight lines follow it to 3e-4
    share = floor + (1 - floor) * (1 + np.cos(np.pi * done)) / 2
    first = max(warmup, 1.0)
    return Schedule(*_warm(warmup, peak, first + done * (steps - first), share))


def wsd(
    steps: float, peak: float, warmup: float = 0, cooldown: float = 0.2, floor: float = 0.0
) -> Schedule:
    """A linear warm-up, a constant rate, and a linear fall to `floor` x peak over the last
    `cooldown` of the steps."""
    _check(steps, peak, warmup, floor)
    if not 0 < cooldown < 1 or steps * (1 - cooldown) <= max(warmup, 1.0):
        raise UserError(
            f"cooldown {cooldown:g} of {steps:g} steps: want a share between 0 and 1 that begins "
            f"after the warm-up of {warmup:g} steps"
        )
    first = max(warmup, 1.0)
    at = np.concatenate([[first], np.linspace(steps * (1 - cooldown), steps, 33)])
    share = np.concatenate([[1.0], np.linspace(1, floor, 33)])
    return Schedule(*_warm(warmup, peak, at, share))


def _warm(
    warmup: float, peak: float, at: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if warmup > 1:
        at, share = np.concatenate([[0.0], at]), np.concatenate([[0.0], share])
    return at, peak * share


def _check(steps: float, peak: float, warmup: float, floor: float) -> None:
    if not (0 <= warmup < steps and 1 < steps < 1e12 and 0 < peak < 1e6 and 0 <= floor <= 1):
        raise UserError(
            f"a schedule of {steps:g} steps, peak rate {peak:g}, warm-up {warmup:g}, floor "
            f"{floor:g}: want 0 <= warm-up < steps, a positive rate, a floor from 0 to 1"
        )
