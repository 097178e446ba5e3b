"""The loss near the best learning rate and batch of every size and number of tokens, as one law.

    log L = level of the cell + K f(u, s) + K_b f(v, s_b)       f(z, s) = (exp(s z) - 1 - s z) / s^2
    v = log2 batch - B*(N, D)
    u = log2 lr - lr*(N, D) - r(N, D) v

A cell is a pair (N, D), whose runs differ in rate and batch alone. f is a parabola at z = 0 (of
curvature K) that is steeper on the side of large rates where s > 0: Varian's (1975) linear and
exponential loss. r says how the best rate moves with the batch, in octaves an octave. lr* and B*
are linear in log2 N and log2 D, so they are power laws of N and D; so are K, K_b, and r is linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scaling.analysis.laws.minimise import minimise

QUANTITIES = ("rate", "curve", "skew", "batch", "along", "batch_curve", "batch_skew")
# Bounds of a quantity's constant and of how it moves by an octave of N or D.
BOUNDS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "rate": ((-60.0, 20.0), (-5.0, 5.0)),  # log2 of the best rate
    "curve": ((-20.0, 5.0), (-2.0, 2.0)),  # natural logarithm of K
    "skew": ((-2.0, 4.0), (0.0, 0.0)),
    "batch": ((-10.0, 60.0), (-5.0, 5.0)),  # log2 of the best batch, in tokens
    "along": ((-2.0, 3.0), (-1.0, 1.0)),
    "batch_curve": ((-20.0, 5.0), (-2.0, 2.0)),
    "batch_skew": ((-2.0, 4.0), (0.0, 0.0)),
}
SMALL = 1e-2  # of s z, below which f is taken by its series
LARGEST = 30.0  # of s z
ROUNDS = 8  # in which the neighbourhood and the law settle
OUTLYING = 5.0  # robust standard deviations beyond which a run is left out
EXACT = 1e-6  # log loss, below which nothing outlies


@dataclass(frozen=True)
class Shape:
    """Which quantities there are, and which of N and D each moves with.

    terms: by quantity, a subset of ("N", "D"); a quantity that is not named is not in the law.
    """

    terms: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """rate, rate_N, rate_D, curve, ...: the parameters, in order."""
        return tuple(name for name, _, _ in self._each())

    def _each(self) -> Iterator[tuple[str, str, str]]:
        for quantity in QUANTITIES:
            if quantity in self.terms:
                yield quantity, quantity, ""
                for axis in self.terms[quantity]:
                    yield f"{quantity}_{axis}", quantity, axis

    @property
    def batch(self) -> bool:
        """Whether the batch varies too."""
        return "batch" in self.terms

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value (p,) of each parameter."""
        ends = [BOUNDS[q][1 if axis else 0] for _, q, axis in self._each()]
        low, high = zip(*ends, strict=True)
        return np.array(low), np.array(high)

    def value(self, theta: np.ndarray, quantity: str, at: Mapping[str, np.ndarray]) -> np.ndarray:
        """A quantity (R, n) of theta (R, p) at log2 N and log2 D (n,), both less their middle."""
        names = self.names
        out = theta[:, names.index(quantity), None] + np.zeros(np.shape(at["N"]))
        for axis in self.terms[quantity]:
            out = out + theta[:, names.index(f"{quantity}_{axis}"), None] * at[axis]
        return out

    def place(
        self, theta: np.ndarray, at: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Octaves (R, n) of the rate from the best one at the run's batch, u, and of the batch from
        the best one, v."""
        u = at["lr"] - self.value(theta, "rate", at)
        if not self.batch:
            return u, np.zeros_like(u)
        v = at["batch"] - self.value(theta, "batch", at)
        return u - self.value(theta, "along", at) * v, v

    def above(
        self, theta: np.ndarray, at: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log loss (R, n) above the cell's best, and its slopes (R, n, p)."""
        u, v = self.place(theta, at)
        k = np.exp(self.value(theta, "curve", at))
        f, slope, by_skew = bowl(u, self.value(theta, "skew", at))
        by = {"rate": -k * slope, "curve": k * f, "skew": k * by_skew}
        total = k * f
        if self.batch:
            k_b = np.exp(self.value(theta, "batch_curve", at))
            f_b, slope_b, by_skew_b = bowl(v, self.value(theta, "batch_skew", at))
            along = self.value(theta, "along", at)
            total = total + k_b * f_b
            by |= {"batch": k * slope * along - k_b * slope_b, "along": -k * slope * v,
                   "batch_curve": k_b * f_b, "batch_skew": k_b * by_skew_b}  # fmt: skip
        slopes = [by[q] * (at[axis] if axis else 1.0) for _, q, axis in self._each()]
        return total, np.stack(slopes, -1)


def bowl(z: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f(z, s) = (exp(s z) - 1 - s z) / s^2 and its slopes in z and in s.

    >>> f, _, _ = bowl(np.array([-1.0, 1.0]), np.array([1.0, 1.0]))
    >>> f.round(4).tolist()
    [0.3679, 0.7183]
    """
    y = np.clip(s * z, -LARGEST, LARGEST)
    small = np.abs(y) < SMALL
    one = np.where(small, 1.0, y)
    h = np.where(small, 1 + y / 2 + y**2 / 6 + y**3 / 24, np.expm1(one) / one)
    g = np.where(small, 0.5 + y / 6 + y**2 / 24 + y**3 / 120, (np.expm1(one) - one) / one**2)
    turn = np.where(small, 1 / 6 + y / 12 + y**2 / 40 + y**3 / 180, (h - 2 * g) / one)
    return z**2 * g, z * h, z**3 * turn


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs that did not diverge, by cell.

    at: log2 N and log2 D less their middles, log2 lr, and log2 batch where it counts, (n,) each.
    """

    at: dict[str, np.ndarray]
    y: np.ndarray  # (n,) log loss
    cell: np.ndarray  # (n,) 0 .. cells - 1

    @property
    def cells(self) -> int:
        """How many."""
        return int(self.cell.max()) + 1

    def some(self, which: np.ndarray) -> Runs:
        """Those; cells keep their numbers."""
        at = {name: one[which] for name, one in self.at.items()}
        return Runs(at, self.y[which], self.cell[which])

    def lowest(self) -> np.ndarray:
        """Log loss (n,) above the lowest of the run's cell."""
        least = np.full(self.cells, np.inf)
        np.minimum.at(least, self.cell, self.y)
        above: np.ndarray = self.y - least[self.cell]
        return above

    def reach(self, shape: Shape, theta: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, float]:
        """Least squares of the runs `taken` (n,) from theta (p,), each cell with a level of its
        own: theta, and the solver's gradient.

        The levels are linear: at every step they are the means of what the rest leaves.
        """
        some = self.some(taken)
        one = (some.cell == np.unique(some.cell)[:, None]).astype(float)
        mean = one / one.sum(1, keepdims=True)

        def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            above, slopes = shape.above(theta, some.at)
            return above - above @ mean.T @ one, slopes - one.T @ (mean @ slopes)

        ended = minimise(
            model, some.y - some.y @ mean.T @ one, np.ones(len(some.y)), np.inf, theta[None],
            *shape.bounds(), tolerance=1e-6, iterations=30,
        )  # fmt: skip
        return ended.theta[0], float(ended.gradient[0])

    def levels(self, above: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Log loss (cells,) at each cell's best by the runs taken, of which `above` (n,) is the
        law's; NaN: none taken."""
        count = np.bincount(self.cell[taken], minlength=self.cells)
        total = np.bincount(self.cell[taken], (self.y - above)[taken], self.cells)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def start(shape: Shape, runs: Runs, curvature: float = 0.006) -> np.ndarray:
    """theta (p,) to begin from: the line through the rates (and batches) of the cells' lowest runs,
    and a parabola of an ordinary curvature."""
    lowest = np.array([
        np.flatnonzero(runs.cell == c)[runs.y[runs.cell == c].argmin()]
        for c in np.unique(runs.cell)
    ])  # fmt: skip
    found = {"curve": np.log(curvature), "batch_curve": np.log(curvature), "along": 0.3}
    for quantity, column in (("rate", "lr"), ("batch", "batch")):
        if quantity in shape.terms:
            axes = shape.terms[quantity]
            design = np.column_stack([np.ones(len(lowest)), *(runs.at[a][lowest] for a in axes)])
            line = np.linalg.lstsq(design, runs.at[column][lowest], rcond=None)[0]
            found[quantity] = float(line[0])
            found |= {f"{quantity}_{a}": float(b) for a, b in zip(axes, line[1:], strict=True)}
    return np.array([found.get(name, 0.0) for name in shape.names])


def near(
    shape: Shape, runs: Runs, within: float, keep: np.ndarray, theta: np.ndarray,
    rounds: int = ROUNDS,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
    """The law of the runs that lie, by the law itself, no farther than `within` (log loss) above
    their cell's best.

    First those that are so near the lowest run; then by the law that these gave, which no single
    run's luck decides. A run that lies more than OUTLYING robust deviations off is left out.
    keep (n,): the runs that take part. theta (p,): a start. rounds: at most.
    Returns theta (p,), the runs taken (n,) and the solver's gradient.
    """
    taken = keep & (runs.lowest() <= within)
    gradient = np.inf
    for _ in range(rounds):
        if taken.sum() <= len(shape.names) + len(np.unique(runs.cell[taken])):
            return theta, taken, np.inf  # the caller refuses so few
        theta, gradient = runs.reach(shape, theta, taken)
        above = shape.above(theta[None], runs.at)[0][0]
        off = np.abs(runs.y - above - runs.levels(above, taken)[runs.cell])
        middle = 1.4826 * float(np.median(off[taken]))
        again = keep & (above <= within) & (off <= OUTLYING * max(middle, EXACT))
        if (again != taken).mean() < 2e-3:
            break
        taken = again
    return theta, taken, gradient


def shapes(axes: Sequence[str], batch_axes: Sequence[str] | None, smooth: bool) -> Shape:
    """The law whose optimum moves with `axes`, and that of the batch with batch_axes (None: the
    batch does not vary); smooth: the curvatures and r move with them too."""
    own = tuple(axes)
    terms: dict[str, tuple[str, ...]] = {"rate": own, "curve": own if smooth else (), "skew": ()}
    if batch_axes is not None:
        of_batch = tuple(batch_axes)
        terms |= {"batch": of_batch, "along": of_batch if smooth else (),
                  "batch_curve": of_batch if smooth else (), "batch_skew": ()}  # fmt: skip
    return Shape(terms)
