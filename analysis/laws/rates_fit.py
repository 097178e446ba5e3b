"""The law of laws/rates.py fitted to the runs of a sweep: its neighbourhood chosen, its intervals.

    law = fit_rates(n, d, lr, loss, batch)
    law.exponents["lr ~ N"], law.best(1e9, 2e10), law.costs()

Far from the optimum no such law holds, so only runs near their cell's best are fitted. How near,
and whether the curvature is the same in all cells or moves with N and D, is what predicts a cell
best that the fit did not see. The runs of a cell share the errors of its optimum, so intervals are
from the cells: each left out in turn, Student's t with as many degrees of freedom as cells beyond
the line through their optima (the jackknife over clusters, MacKinnon, Nielsen and Webb 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from scaling.analysis.laws.fit import NotIdentified, checked
from scaling.analysis.laws.rates import EXACT, Runs, Shape, near, shapes, start
from scaling.errors import UserError

WITHIN = (0.02, 0.03, 0.05, 0.08, 0.15, 0.3)  # log loss above a cell's best: the neighbourhoods
JUDGED = 0.03  # log loss above a cell's best within which runs judge a neighbourhood
DEEP = 5.0  # times the noise of a run that a neighbourhood has to reach up
LOST = 0.3  # log loss above a cell's best beyond which a run, at a larger rate, diverged
LEAST = 3  # rates that a cell needs to say where its best one lies
VARIES = 0.1  # octaves: what differs by less does not vary
TOGETHER = 0.98  # correlation of log N with log D beyond which they are not told apart
SMOOTH = 6  # cells from which curvatures may move with N and D
EACH, PARTS = 12, 6  # up to so many cells each is left out in turn to choose; beyond, in parts
AGAIN = 3  # rounds of a fit that begins at the law of all cells
STUCK = 1e-3  # gradient at which no minimum was reached


@dataclass(frozen=True)
class Choice:
    """A neighbourhood: its width in log loss, whether curvatures move with N and D, the error of
    cells left out (NaN: none), and the exponents there."""

    within: float
    smooth: bool
    error: float
    exponents: dict[str, float]


@dataclass(frozen=True)
class Best:
    """The best rate and batch at a size and number of tokens, each with its interval."""

    lr: float
    lr_interval: tuple[float, float]
    batch: float  # NaN: the batch does not vary
    batch_interval: tuple[float, float]
    outside: str  # how far from the runs: "" inside


@dataclass(frozen=True, eq=False)
class RatesLaw:
    """A law of the best rate and batch, and of the loss near them.

    theta (p,) by the names of `shape`, at log2 N and log2 D less `middle`; left_out (G, p): without
    each cell. cell_n, cell_d, level (G,): the swept cells, and their loss at their own best.
    edges: cells whose lowest run is at the first or last rate; batch_edges: or batch.
    """

    shape: Shape
    axes: tuple[str, ...]  # of N and D, those that the optimum moves with
    middle: dict[str, float]
    theta: np.ndarray
    left_out: np.ndarray
    cell_n: np.ndarray
    cell_d: np.ndarray
    level: np.ndarray
    within: float
    noise: float
    runs: int  # fitted
    diverged: int
    far: int  # runs that did not diverge and are too far from their cell's best
    edges: int
    batch_edges: int
    choices: tuple[Choice, ...]
    confidence: float = 0.95
    together: bool = False  # N and D move together, and are not told apart
    tried: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # see `untried`

    @property
    def cells(self) -> int:
        """How many were swept."""
        return len(self.cell_n)

    @property
    def smooth(self) -> bool:
        """Whether curvatures move with N and D."""
        return bool(self.shape.terms["curve"])

    def interval(self, of: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
        """Value and interval of a function of theta (R, p) -> (R,)."""
        value = float(of(self.theta[None])[0])
        off = of(self.left_out) - value
        count = len(off)
        error = float(np.sqrt((count - 1) / count * (off**2).sum()))
        freedom = max(count - 1 - len(self.axes), 1)
        half = float(stdtrit(freedom, (1 + self.confidence) / 2)) * error
        return value, value - half, value + half

    def parameter(self, name: str) -> tuple[float, float, float]:
        """Of `shape.names`: value and interval."""
        at = self.shape.names.index(name)
        return self.interval(lambda theta: theta[:, at])

    @property
    def exponents(self) -> dict[str, tuple[float, float, float]]:
        """By "lr ~ N", "lr ~ D", "batch ~ N", "batch ~ D", as far as told: value and ends."""
        found = {}
        for quantity, said in (("rate", "lr"), ("batch", "batch")):
            for axis in self.shape.terms.get(quantity, ()):
                found[f"{said} ~ {axis}"] = self.parameter(f"{quantity}_{axis}")
        return found

    def at(self, n: npt.ArrayLike, d: npt.ArrayLike) -> dict[str, np.ndarray]:
        """log2 N and log2 D, less their middles."""
        return {"N": np.atleast_1d(np.log2(np.asarray(n, float)) - self.middle["N"]),
                "D": np.atleast_1d(np.log2(np.asarray(d, float)) - self.middle["D"])}  # fmt: skip

    def best(self, n: float, d: float) -> Best:
        """The best rate and batch of n parameters on d tokens."""
        at = self.at(n, d)

        def of(quantity: str) -> tuple[float, tuple[float, float]]:
            log2 = self.interval(lambda theta: self.shape.value(theta, quantity, at)[:, 0])
            value, low, high = (float(2.0 ** min(max(one, -1000), 1000)) for one in log2)
            return value, (low, high)

        none = (float("nan"), (float("nan"), float("nan")))
        lr, lr_interval = of("rate")
        batch, batch_interval = of("batch") if self.shape.batch else none
        return Best(lr, lr_interval, batch, batch_interval, self.outside(n, d))

    def outside(self, n: float, d: float) -> str:
        """In words, how far a size and number of tokens lie from the swept cells; "" inside."""
        said = []
        for what, value, cells in (("parameters", n, self.cell_n), ("tokens", d, self.cell_d)):
            factor = max(value / cells.max(), cells.min() / value)
            if factor > 1.01:
                said.append(f"{what} {factor:.3g} times beyond the sweep")
        if "D" not in self.axes and not self.together and "tokens" in " ".join(said):
            said.append("how the best rate moves with tokens is not told")
        if "N" not in self.axes and "parameters" in " ".join(said):
            said.append("how the best rate moves with parameters is not told")
        return ", ".join(said)

    def above(
        self, n: npt.ArrayLike, d: npt.ArrayLike, lr: npt.ArrayLike, batch: npt.ArrayLike | None
    ) -> np.ndarray:  # fmt: skip
        """Log loss (n,) above the best of the size and tokens, at these rates and batches."""
        at = self.at(n, d) | {"lr": np.log2(np.atleast_1d(np.asarray(lr, float)))}
        if self.shape.batch:
            at["batch"] = np.log2(np.atleast_1d(np.asarray(batch, float)))
        above: np.ndarray = self.shape.above(self.theta[None], at)[0][0]
        return above

    def untried(self, n: float, d: float, lr: float, batch: float) -> str:
        """In words, how far a rate or batch lies beyond those of the runs, in octaves from the
        best one (`tried`: least and largest, by "rate" and "batch"); "" not an octave beyond."""
        at = self.at(n, d) | {"lr": np.log2([lr])}
        if self.shape.batch:
            at["batch"] = np.log2([batch])
        u, v = self.shape.place(self.theta[None], at)
        out = []
        for what, value, off in (("rate", lr, u), ("batch", batch, v)):
            low, high = self.tried.get(what, (-np.inf, np.inf))
            octaves = float(off[0, 0])
            if not low - 1 <= octaves <= high + 1:
                best = f"the best one{' at its batch' * (what == 'rate' and self.shape.batch)}"
                out.append(
                    f"{what} {value:.4g} is {octaves:+.1f} octaves from {best}, and runs that "
                    f"did not diverge were tried from {low:+.1f} to {high:+.1f}"
                )
        return "; ".join(out)

    def cost(self, octaves: float, of: str = "rate") -> tuple[float, float, float]:
        """Share of the loss that a rate (or batch) so many octaves off costs, in the middle of the
        cells, each rate at the best batch and each batch at its own best rate."""
        at = {"N": np.zeros(1), "D": np.zeros(1)}

        def share(theta: np.ndarray) -> np.ndarray:
            moved = dict(at)
            moved["lr"] = self.shape.value(theta, "rate", at)
            if self.shape.batch:
                moved["batch"] = self.shape.value(theta, "batch", at)
            if of == "rate":
                moved["lr"] = moved["lr"] + octaves
            else:
                moved["batch"] = moved["batch"] + octaves
                moved["lr"] = moved["lr"] + octaves * self.shape.value(theta, "along", at)
            rows = [
                self.shape.above(one[None], {k: np.atleast_1d(v[i] if v.ndim > 1 else v)
                                             for k, v in moved.items()})[0][0, 0]
                for i, one in enumerate(theta)
            ]  # fmt: skip
            costs: np.ndarray = np.expm1(np.array(rows))
            return costs

        value, low, high = self.interval(share)
        return value, max(low, 0.0), high

    @property
    def moves(self) -> dict[str, tuple[float, float]]:
        """Least and largest of each exponent over the neighbourhoods tried, curvatures as here."""
        alike = [c.exponents for c in self.choices if c.smooth == self.smooth]
        return {name: (min(one[name] for one in alike), max(one[name] for one in alike))
                for name in self.exponents if alike}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Swept:
    """What is fitted: runs near and far that did not diverge, and the table's own numbers."""

    runs: Runs
    middle: dict[str, float]
    n: np.ndarray  # (cells,)
    d: np.ndarray
    diverged: int
    edges: int
    batch_edges: int
    batch: bool


def lost(loss: np.ndarray, lr: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Which runs (n,) diverged: no finite loss, or one far above their cell's lowest, at a rate
    above that run's."""
    out: np.ndarray = ~np.isfinite(loss)
    for one in np.unique(cell):
        mine = np.flatnonzero((cell == one) & np.isfinite(loss))
        if len(mine):
            best = mine[loss[mine].argmin()]
            far = np.log(loss[mine] / loss[best]) > LOST
            out[mine] = far & (lr[mine] > lr[best])
    return out


def swept(
    n: npt.ArrayLike, d: npt.ArrayLike, lr: npt.ArrayLike, loss: npt.ArrayLike,
    batch: npt.ArrayLike | None = None,
) -> Swept:  # fmt: skip
    """The cells of a table that have several rates. loss: not finite where a run diverged.

    Raises UserError: bad numbers; NotIdentified: no cell tries LEAST rates.
    """
    losses = np.asarray(loss, float).ravel()
    ones = np.ones_like(losses)
    n_, _ = checked(n, ones, names=("N", "loss"))
    d_, _ = checked(d, ones, names=("D", "loss"))
    lr_, _ = checked(lr, ones, names=("lr", "loss"))
    batch_ = None if batch is None else checked(batch, ones, names=("batch", "loss"))[0]
    if (np.isfinite(losses) & (losses <= 0)).any():
        bad = losses[np.isfinite(losses) & (losses <= 0)]
        raise UserError(
            f"{len(bad)} of {len(losses)} losses are not positive (the first is {bad[0]:g}): the "
            "law is of log loss; give losses in nats, and leave out what is none (--where)"
        )
    cells, cell = np.unique(np.stack([n_, d_], 1), axis=0, return_inverse=True)
    cell = cell.ravel()
    gone = lost(losses, lr_, cell)
    rates = np.array([len(np.unique(lr_[(cell == c) & ~gone])) for c in range(len(cells))])
    enough = rates >= LEAST
    if not enough.any():
        most = int(rates.max(initial=0))
        raise NotIdentified(
            f"rates: no size and number of tokens was trained at {LEAST} rates or more (at most "
            f"{most} that did not diverge): where the best rate lies cannot be told; sweep the "
            "rate, at least three values an octave or two apart"
        )
    part = ~gone & enough[cell]
    number = np.cumsum(enough) - 1
    middle = {"N": float(np.log2(cells[enough, 0]).mean()),
              "D": float(np.log2(cells[enough, 1]).mean())}  # fmt: skip
    at = {"N": np.log2(n_[part]) - middle["N"], "D": np.log2(d_[part]) - middle["D"],
          "lr": np.log2(lr_[part])}  # fmt: skip
    runs = Runs(at, np.log(losses[part]), number[cell[part]])
    several = False
    if batch_ is not None:
        at["batch"] = np.log2(batch_[part])
        tried = [len(np.unique(at["batch"][runs.cell == c])) for c in range(runs.cells)]
        several = float(np.mean(np.array(tried) >= LEAST)) >= 0.5
    edges, batch_edges = _edges(runs, "lr"), _edges(runs, "batch") if several else 0
    return Swept(
        runs, middle, cells[enough, 0], cells[enough, 1], int((gone & enough[cell]).sum()), edges,
        batch_edges, several,
    )  # fmt: skip


def _edges(runs: Runs, of: str) -> int:
    """Cells whose lowest run is at the first or last value of a column."""
    found = 0
    for c in range(runs.cells):
        mine = runs.cell == c
        values, best = runs.at[of][mine], runs.at[of][mine][runs.y[mine].argmin()]
        found += bool(best in (values.min(), values.max()))
    return found


def fit_rates(
    n: npt.ArrayLike, d: npt.ArrayLike, lr: npt.ArrayLike, loss: npt.ArrayLike,
    batch: npt.ArrayLike | None = None, *, within: float | None = None,
) -> RatesLaw:  # fmt: skip
    """Fit the best rate, and batch where it varies, as power laws of N and D.

    Args:
        n, d, lr, loss: (runs,), loss in nats; not finite where a run diverged.
        batch: (runs,), in any one unit.
        within: the neighbourhood, in log loss above a cell's best; None: chosen.
    Raises:
        NotIdentified: too few cells or rates, no optimum inside the rates that were tried.
        UserError: bad numbers.
    """
    table = swept(n, d, lr, loss, batch)
    axes, together = _axes(table)
    inside = table.runs.cells - table.edges
    if inside < 2 + len(axes):
        raise NotIdentified(
            f"rates: in {table.edges} of {table.runs.cells} cells of one N and D the lowest loss "
            "is at the smallest or largest rate tried, and the law takes at least "
            f"{2 + len(axes)} cells that bracket their optimum: add rates beyond these"
        )
    candidates = []
    for smooth in (False, True)[: 1 + (table.runs.cells >= SMOOTH)]:
        shape = shapes(axes, axes if table.batch else None, smooth)
        for width in WITHIN if within is None else (within,):
            found = _fitted(table.runs, shape, width)
            if found is not None:
                candidates.append((shape, width, *found))
    if not candidates:
        raise NotIdentified(
            "rates: no neighbourhood of the lowest runs holds a parabola that opens upwards in "
            f"rate{' and batch' * table.batch}; add rates on both sides of the best ones"
        )
    # Less deep than this, and a cell's lowest runs are those that luck favoured.
    deep = [c for c in candidates if c[1] >= DEEP * _scatter(table.runs, c[0], c[2], c[4])[1]]
    candidates = deep or [c for c in candidates if c[1] == max(one[1] for one in candidates)]
    shape, width, theta, left_out, taken, _ = min(candidates, key=lambda c: c[5])
    level, noise = _scatter(table.runs, shape, theta, taken)
    if len(left_out) < table.runs.cells:
        each = _without(table.runs, shape, width, theta, np.arange(table.runs.cells))
        if each is None:
            raise NotIdentified(
                "rates: without one of the cells the others do not hold the law: sweep more sizes"
            )
        left_out = each
    u, v = (one[0] for one in shape.place(theta[None], table.runs.at))
    tried = {"rate": (float(u.min()), float(u.max()))}
    if shape.batch:
        tried["batch"] = (float(v.min()), float(v.max()))
    return RatesLaw(
        tried=tried, shape=shape, axes=axes, middle=table.middle, theta=theta, left_out=left_out,
        cell_n=table.n, cell_d=table.d, level=np.exp(level), within=width,
        noise=noise, runs=int(taken.sum()),
        diverged=table.diverged, far=int((~taken).sum()), edges=table.edges,
        batch_edges=table.batch_edges,
        choices=tuple(_choice(*one) for one in candidates), together=together,
    )  # fmt: skip


def _scatter(
    runs: Runs, shape: Shape, theta: np.ndarray, taken: np.ndarray
) -> tuple[np.ndarray, float]:
    """Levels (cells,), and the robust deviation of the runs taken from the law."""
    above = shape.above(theta[None], runs.at)[0][0]
    level = runs.levels(above, taken)
    off = (runs.y - above - level[runs.cell])[taken]
    return level, float(1.4826 * np.median(np.abs(off)))


def _choice(
    shape: Shape, width: float, theta: np.ndarray, left_out: np.ndarray, taken: np.ndarray,
    error: float,
) -> Choice:  # fmt: skip
    said = {"rate": "lr", "batch": "batch"}
    exponents = {
        f"{said[q]} ~ {axis}": float(theta[shape.names.index(f"{q}_{axis}")])
        for q in said if q in shape.terms for axis in shape.terms[q]
    }  # fmt: skip
    return Choice(width, bool(shape.terms["curve"]), error, exponents)


def _axes(table: Swept) -> tuple[tuple[str, ...], bool]:
    """Those of N and D that the optimum can be a law of, and whether they move together."""
    logs = {"N": np.log2(table.n), "D": np.log2(table.d)}
    axes = tuple(name for name, one in logs.items() if np.ptp(one) > VARIES)
    together = False
    if len(axes) == 2 and abs(np.corrcoef(logs["N"], logs["D"])[0, 1]) > TOGETHER:
        axes, together = ("N",), True
    if not axes or table.runs.cells < 2 + len(axes):
        raise NotIdentified(
            f"rates: {table.runs.cells} cell{'s' * (table.runs.cells != 1)} of one N and D with "
            f"{LEAST} rates or more, and the best rate as a law of "
            f"{' and '.join(axes) or 'N or D'} takes at least "
            f"{2 + max(len(axes), 1)}; sweep the rate at more sizes"
            f"{' or numbers of tokens' if axes != ('N',) else ''} (`scaling transfer` says whether "
            "it moves between two)"
        )
    return axes, together


def _fitted(
    runs: Runs, shape: Shape, width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
    """theta (p,), those without each part of the cells (parts, p), the runs taken (n,), and the
    error (rms of log loss) of cells left out; None where the neighbourhood holds no such law."""
    everything = np.ones(len(runs.y), bool)
    if not _enough(runs, runs.lowest() <= width, shape):
        return None
    theta, taken, gradient = near(shape, runs, width, everything, start(shape, runs))
    if not _enough(runs, taken, shape) or _rests(shape, theta):
        return None
    if gradient > STUCK and _scatter(runs, shape, theta, taken)[1] > EXACT:
        return None
    part = np.arange(runs.cells) % (runs.cells if runs.cells <= EACH else PARTS)
    left_out = _without(runs, shape, width, theta, part)
    if left_out is None:
        return None
    judged, errors = runs.lowest() <= JUDGED, []
    for cell in range(runs.cells):
        mine = (runs.cell == cell) & judged  # its lowest run at least
        off = (runs.y - shape.above(left_out[part[cell], None], runs.at)[0][0])[mine]
        errors.append(float(((off - np.median(off)) ** 2).mean()))
    return theta, left_out, taken, float(np.sqrt(np.mean(errors)))


def _without(
    runs: Runs, shape: Shape, width: float, theta: np.ndarray, part: np.ndarray
) -> np.ndarray | None:
    """theta (parts, p) without the cells of each part (cells,); None where one does not hold it."""
    out = []
    for one in range(int(part.max()) + 1):
        there = part[runs.cell] != one
        found, taken, _ = near(shape, runs, width, there, theta, AGAIN)
        if not _enough(runs, taken, shape, int((part != one).sum())):
            return None
        out.append(found)
    return np.array(out)


def _enough(runs: Runs, taken: np.ndarray, shape: Shape, cells: int | None = None) -> bool:
    cells = runs.cells if cells is None else cells
    there = len(np.unique(runs.cell[taken]))
    return there == cells and taken.sum() > len(shape.names) + cells


def _rests(shape: Shape, theta: np.ndarray) -> bool:
    """Whether a parameter lies on its bound."""
    low, high = shape.bounds()
    near_to = 1e-6 * (high - low)
    free = low < high
    return bool((((theta <= low + near_to) | (theta >= high - near_to)) & free).any())
