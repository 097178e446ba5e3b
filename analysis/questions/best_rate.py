"""The best learning rate of one model: a parabola in log2(rate) through the losses near it.

Numbers only, so that the sweep that asks and the report that reads find the same optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from scaling.errors import UserError

NEIGHBOURHOOD = 2.0  # octaves on each side of the lowest loss that its parabola is fitted to


@dataclass(frozen=True)
class Trial:
    """One point of a sweep. `loss` is inf where the run diverged."""

    member: int  # the width, or the layers where the sweep goes over depth
    log2_lr: float
    loss: float


@dataclass(frozen=True)
class Optimum:
    """A member's best rate: the vertex of a parabola in log2(lr), with a 95% interval.

    The interval is None with fewer than four points near the minimum (nothing to judge the fit by);
    the vertex is then exact through three points, or the lowest point where no parabola opens
    upwards within an octave of it.
    """

    member: int  # as of `Trial`
    log2_lr: float
    low: float | None
    high: float | None
    loss: float  # lowest measured


def optimum(trials: Sequence[Trial], axis: str = "width") -> Optimum:
    """Best rate of one member from its trials; those that diverged do not bend the parabola.

    Least squares of loss on log2(lr) over the points within NEIGHBOURHOOD of the lowest; interval
    of the vertex -b/2a by the delta method with Student's t.

    Raises UserError when every trial diverged.
    """
    finite = [t for t in trials if math.isfinite(t.loss)]
    if not finite:
        raise UserError(
            f"{axis} {trials[0].member}: every learning rate diverged "
            f"({', '.join(f'2^{t.log2_lr:g}' for t in trials)}); lower lr.log2_min"
        )
    lowest = min(finite, key=lambda t: (t.loss, t.log2_lr))
    vertex, half = vertex_between(finite, lowest.log2_lr)
    if vertex is None:
        return Optimum(lowest.member, lowest.log2_lr, None, None, lowest.loss)
    low, high = (None, None) if half is None else (vertex - half, vertex + half)
    return Optimum(lowest.member, vertex, low, high, lowest.loss)


def vertex_between(trials: Sequence[Trial], around: float) -> tuple[float | None, float | None]:
    """Vertex (log2) of a parabola with a level for each member, and half its 95% interval.

    None where no parabola opens upwards within an octave of `around`; no interval without a degree
    of freedom to judge the fit by.
    """
    near = [t for t in trials if math.isfinite(t.loss) and abs(t.log2_lr - around) <= NEIGHBOURHOOD]
    members = sorted({t.member for t in near})
    freedom = len(near) - 2 - len(members)
    if freedom < 0 or len({t.log2_lr for t in near}) < 3:
        return None, None
    x = np.array([t.log2_lr for t in near]) - around
    y = np.array([t.loss for t in near])
    levels = [[float(t.member == w) for w in members] for t in near]
    design = np.column_stack([x**2, x, levels])
    fitted = np.linalg.lstsq(design, y, rcond=None)[0]
    a, b = fitted[:2]
    if a <= 0 or abs(b / (2 * a)) > 1:
        return None, None
    vertex = around - float(b / (2 * a))
    if freedom == 0:
        return vertex, None
    residual = y - design @ fitted
    covariance = np.linalg.inv(design.T @ design) * float(residual @ residual) / freedom
    slope = np.zeros(len(fitted))
    slope[:2] = b / (2 * a**2), -1 / (2 * a)
    error = math.sqrt(float(slope @ covariance @ slope))
    return vertex, float(stdtrit(freedom, 0.975)) * error


def drift(trials: Sequence[Trial]) -> tuple[float, float | None]:
    """Octaves by which the best rate moves from the smallest to the largest, and half its interval.

    One least-squares fit of all losses near their member's lowest: a level for each member, a
    common curvature, and an optimum that moves linearly in log2(member). Its interval (95%, delta
    method, Student's t) rests on all runs together, where a difference of two vertices rests on a
    few. None without a degree of freedom; (nan, None) where no parabola opens upwards.
    """
    finite = [t for t in trials if math.isfinite(t.loss)]
    members = sorted({t.member for t in finite})
    lowest = {w: min((t.loss, t.log2_lr) for t in finite if t.member == w)[1] for w in members}
    near = [t for t in finite if abs(t.log2_lr - lowest[t.member]) <= NEIGHBOURHOOD]
    freedom = len(near) - 3 - len(members)
    if len(members) < 2 or freedom < 0:
        return math.nan, None
    x = np.array([float(t.log2_lr) for t in near])
    x -= x.mean()
    octaves = np.log2([t.member / members[0] for t in near])
    levels = [[float(t.member == w) for w in members] for t in near]
    design = np.column_stack([x**2, x * octaves, x, levels])
    fitted, _, rank, _ = np.linalg.lstsq(design, np.array([t.loss for t in near]), rcond=None)
    a, moves = fitted[:2]
    if a <= 0 or rank < design.shape[1]:
        return math.nan, None
    span = math.log2(members[-1] / members[0])
    moved = -span * float(moves / (2 * a))
    if freedom == 0:
        return moved, None
    residual = np.array([t.loss for t in near]) - design @ fitted
    covariance = np.linalg.inv(design.T @ design)[:2, :2] * float(residual @ residual) / freedom
    slope = np.array([-moved / a, -span / (2 * a)])
    error = math.sqrt(float(slope @ covariance @ slope))
    return moved, float(stdtrit(freedom, 0.975)) * error
