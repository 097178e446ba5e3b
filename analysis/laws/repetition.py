"""What a law of N, D and U says of repeated data: how much an epoch is worth, and what is worth
more, new data or a larger model; the best N and D of a budget when the data are given.

Every answer is read off the fitted form itself, by the estimate and by every resample, so that it
holds for any form of N, D and U.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.analysis.laws.form_law import FormLaw
from scaling.errors import UserError

EPOCHS = 60  # points of the grid of epochs
HALVINGS = 50  # of the bisection for the fresh tokens that a repeated run is worth
WORTH = 0.5  # of a fresh token: below, repeating is hardly worth its compute
SIZES, BEYOND = 241, 10.0  # grid of N for an optimum; how far beyond the sizes tried it reaches
SHOWN = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Answer:
    """A number with its interval; NaN where there is none, and why."""

    value: float
    low: float
    high: float
    refused: str = ""

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return self.refused
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Repetition:
    """Answers for a model of n parameters and u unique tokens."""

    n: float
    u: float
    epochs: float  # the most that the runs have: nothing is said beyond
    worth: dict[int, Answer]  # epochs -> as many epochs of fresh data
    half: Answer  # the epoch up to which a repeated token is worth WORTH of a fresh one or more
    data: Answer  # the epoch from which twice the data lower the loss more than twice the model

    def lines(self) -> list[str]:
        """The answers in plain text."""
        worth = "; ".join(f"{k} epochs as {said}" for k, said in self.worth.items())
        since = f"from epoch {self.data} on" if np.isfinite(self.data.value) else self.data.refused
        return [
            f"  repetition   at N = {self.n:.3g}, U = {self.u:.3g}; runs have up to "
            f"{self.epochs:.3g} epochs:",
            f"    counts as  (epochs of fresh data) {worth}",
            f"    worth it   a repeated token is worth half a fresh one or more up to epoch "
            f"{self.half}",
            f"    new data   twice the data lower the loss more than twice the model {since}",
        ]


@dataclass(frozen=True)
class RepeatedOptimum:
    """The best size and tokens of a budget when the unique tokens are given."""

    compute: float
    u: float
    n: Answer
    d: Answer
    loss: Answer
    unit: str
    note: str = ""

    def __str__(self) -> str:
        at = f"{self.compute:.3g} {self.unit} on {self.u:.3g} unique tokens"
        if not np.isfinite(self.n.value):
            return f"{at}: {self.note}"
        return (
            f"{at}: {self.n} parameters, "
            f"{self.d} tokens ({self.d.value / self.u:.3g} epochs), loss {self.loss}"
            + (f"; {self.note}" if self.note else "")
        )


def repetition(law: FormLaw, n: float | None = None, u: float | None = None) -> Repetition:
    """Answers at n and u, those of the middle of the runs that repeat where they are not given.

    Raises UserError: the law is not of N, D and U.
    """
    _require(law)
    columns = law.columns
    times = columns["D"] / columns["U"]
    again = times > 1.01
    n = float(np.exp(np.median(np.log(columns["N"][again])))) if n is None else float(n)
    u = float(np.exp(np.median(np.log(columns["U"][again])))) if u is None else float(u)
    most = float(times.max())
    grid = np.geomspace(1, most, EPOCHS)
    theta = np.vstack([law.theta, law.samples])
    worth = _fresh(law, theta, n, grid * u, u) / u
    slope = np.gradient(worth, grid, axis=1)
    twice_data = _loss(law, theta, n, grid * u, u) - _loss(law, theta, n, grid * u, 2 * u)
    twice_size = _loss(law, theta, n, grid * u, u) - _loss(law, theta, 2 * n, grid * u, u)
    shown = [k for k in SHOWN if k <= most]
    told = {}
    for k in shown:
        each = np.array([np.interp(np.log(k), np.log(grid), row) for row in worth])
        told[k] = _answer(law, each)
    never = f"at no epoch of the {most:.3g} that the runs have"
    return Repetition(
        n, u, most, told,
        half=_crossing(law, grid, slope - WORTH, f"{most:.3g} and more: it is so at every one that "
                       "the runs have"),
        data=_crossing(law, grid, twice_size - twice_data, never),
    )  # fmt: skip


def optimum(law: FormLaw, compute: float, u: float, per_token: float, unit: str) -> RepeatedOptimum:
    """N and D = compute / (per_token N) of least loss on u unique tokens.

    Raises UserError: not positive, or the law is not of N, D and U.
    """
    _require(law)
    for what, value in (("compute", compute), ("unique tokens", u)):
        if not (np.isfinite(value) and value > 0):
            raise UserError(f"{what}: {value!r} is no positive number")
    sizes = law.columns["N"]
    grid = np.geomspace(sizes.min() / BEYOND, sizes.max() * BEYOND, SIZES)
    theta = np.vstack([law.theta, law.samples])
    loss = _loss(law, theta, grid, compute / (per_token * grid), u)
    at = np.nanargmin(np.where(np.isfinite(loss), loss, np.inf), axis=1)
    edge = (at == 0) | (at == SIZES - 1)
    none = float("nan")
    if edge[0] or edge.mean() > (1 - law.level) / 2:
        said = (
            f"no optimum within a factor of {BEYOND:g} of the sizes tried ({sizes.min():.3g} to "
            f"{sizes.max():.3g})"
        )
        no = Answer(none, none, none, said)
        return RepeatedOptimum(float(compute), float(u), no, no, no, unit, said)
    inner = np.clip(at, 1, SIZES - 2)
    rows = np.arange(len(theta))
    left, mid, right = (loss[rows, inner + k] for k in (-1, 0, 1))
    bend = left - 2 * mid + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    step = float(np.log(grid[1] / grid[0]))
    best = np.exp(np.log(grid[inner]) + np.clip(shift, -1, 1) * step)
    least = _loss(law, theta, best[:, None], compute / (per_token * best[:, None]), u)[:, 0]
    nd = per_token * sizes * law.columns["D"]
    note = ""
    if not nd.min() <= compute <= nd.max():
        note = f"beyond the runs, which have {nd.min():.3g} to {nd.max():.3g} {unit}"
    return RepeatedOptimum(
        float(compute), float(u), _answer(law, best), _answer(law, compute / (per_token * best)),
        _answer(law, least), unit, note,
    )  # fmt: skip


def _require(law: FormLaw) -> None:
    if set(law.form.columns) != {"N", "D", "U"}:
        raise UserError(
            f"the form {law.form.name} is of {', '.join(law.form.columns)}: only a law of N, D and "
            "U knows of repeated data"
        )


def _loss(
    law: FormLaw, theta: np.ndarray, n: float | np.ndarray, d: float | np.ndarray,
    u: float | np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Loss (R, k) by parameters theta (R, p)."""
    return law.form.value({"N": n, "D": d, "U": u}, theta)


def _fresh(law: FormLaw, theta: np.ndarray, n: float, tokens: np.ndarray, u: float) -> np.ndarray:
    """Fresh tokens (R, k) that teach a model of n as much as `tokens` (k,) on u unique ones."""
    goal = _loss(law, theta, n, tokens, u)
    low = np.full(goal.shape, np.log(u) - 10.0)
    high = np.broadcast_to(np.log(tokens) + 0.5, goal.shape).copy()
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        more = _loss(law, theta, n, np.exp(middle), np.exp(middle)) > goal
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    fresh: np.ndarray = np.exp(0.5 * (low + high))
    return fresh


def _answer(law: FormLaw, values: np.ndarray) -> Answer:
    """values (1 + R,): the estimate's and the resamples'."""
    low, high = law.interval_of(values[1:], float(values[0]))
    return Answer(float(values[0]), low, high)


def _crossing(law: FormLaw, grid: np.ndarray, values: np.ndarray, never: str) -> Answer:
    """Where values (1 + R, k) first fall below 0; `never` says it where the estimate's do not.

    Of resamples that do not cross, the grid's end is taken, beyond which nothing is said.
    """
    below = values < 0
    first = np.where(below.any(1), below.argmax(1), len(grid) - 1)
    rows = np.arange(len(values))
    before = np.maximum(first - 1, 0)
    a, b = values[rows, before], values[rows, first]
    part = np.where((a != b) & (first > 0) & below.any(1), a / np.where(a != b, a - b, 1.0), 1.0)
    logs = np.log(grid)
    at = np.exp(logs[before] + np.clip(part, 0, 1) * (logs[first] - logs[before]))
    if not below[0].any():
        return Answer(float("nan"), float("nan"), float("nan"), never)
    return _answer(law, at)
