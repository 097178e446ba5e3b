"""Synthetic studies with a known truth: for tests, and to ask how many runs an interval needs.

    rows = study(TRUTH, sizes=6, budgets=5, run_noise=0.002, point_noise=0.002, seed=0)
    fit_frontier(rows).pure.b            # next to frontier_exponent(TRUTH, budgets)
    power(TRUTH, sizes=6, budgets=5)     # the interval that such a study would give

Compute is counted as 3 N D training MACs (a forward pass costs N MACs a token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError

MACS_PER_PARAMETER_TOKEN = 3.0
MORE = 6  # designs tried for a given width


@dataclass(frozen=True)
class Truth:
    """L = e + a / N^alpha + b / D^beta, in nats per token."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, n: npt.ArrayLike, d: npt.ArrayLike) -> np.ndarray:
        size, tokens = np.asarray(n, dtype=float), np.asarray(d, dtype=float)
        return self.e + self.a / size**self.alpha + self.b / tokens**self.beta

    def __str__(self) -> str:
        return (
            f"L(N, D) = {self.e:.4g} + {self.a:.4g} / N^{self.alpha:.4g} + "
            f"{self.b:.4g} / D^{self.beta:.4g}"
        )

    @property
    def exponent(self) -> float:
        """b of the frontier's E + a C^b: -alpha beta / (alpha + beta)."""
        return -self.alpha * self.beta / (self.alpha + self.beta)

    def n_opt(self, macs: npt.ArrayLike) -> np.ndarray:
        """Parameters that minimise the loss at a budget (Hoffmann et al. 2022, eq. 4)."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        nd = np.asarray(macs, dtype=float) / MACS_PER_PARAMETER_TOKEN
        best: np.ndarray = g * nd ** (self.beta / (self.alpha + self.beta))
        return best

    def frontier(self, macs: npt.ArrayLike) -> np.ndarray:
        """The smallest loss at a budget, over all sizes."""
        n = self.n_opt(macs)
        return self(n, np.asarray(macs, dtype=float) / (MACS_PER_PARAMETER_TOKEN * n))


# Near a small video study: 2.6 nats at 3e11 MACs, and an optimum inside the default grid below.
TRUTH = Truth(e=1.6, a=30.0, alpha=0.34, b=160.0, beta=0.34)
PURE = Truth(e=0.0, a=7.4, alpha=0.15, b=15.6, beta=0.15)


def study(
    truth: Truth = TRUTH,
    *,
    sizes: int | Sequence[float] = 6,
    budgets: int | Sequence[float] = 5,
    decades: float = 1.7,
    first_macs: float = 3e11,
    run_noise: float = 0.002,
    point_noise: float = 0.002,
    trunks: bool = True,
    seeds: int = 1,
    outliers: float = 0.0,
    mistuned: float = 0.0,
    short_warmup: float = 0.0,
    reach: float = 6.0,
    around: float | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows of a ladder, in the columns that analysis/questions/frontier.py reads (and n, d).

    >>> rows = study(TRUTH, sizes=6, budgets=5, seed=0)
    >>> len(rows), rows["budget_macs"].nunique()
    (24, 5)

    sizes, budgets: how many (spaced evenly in logs: sizes over the optima of all budgets with a
    factor 2 to spare), or the parameters and MACs themselves. A size is trained at the budgets
    whose optimum lies within a factor `reach` of it.
    around: instead, every budget has `sizes` (how many) of its own, evenly in logs within this
    factor of its optimum, and so runs of its own.
    run_noise, point_noise: standard deviations of log loss, common to a run and of each point.
    trunks: one run per size and seed serves all budgets (WSD); False: one run per budget.
    outliers: share of points with 3% more loss. mistuned: standard deviation of the error of
    log2 learning rate; a run loses 0.4% of its loss per squared octave. short_warmup: relative
    loss that the smallest budget has too much, falling with the square of the budget.
    """
    _require_positive(
        run_noise=run_noise, point_noise=point_noise, mistuned=mistuned, outliers=outliers,
        short_warmup=short_warmup,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    if isinstance(budgets, int):
        macs = first_macs * np.geomspace(1, 10**decades, budgets)
    else:
        macs = np.sort(np.asarray(budgets, dtype=float))
    n_params = _sizes(truth, macs, sizes, around)
    grid = np.meshgrid(np.arange(len(n_params)), np.arange(seeds), np.arange(len(macs)))
    s, j, c = (g.transpose(1, 0, 2).ravel() for g in grid)
    near = np.abs(np.log(n_params[s] / truth.n_opt(macs[c]))) <= np.log(reach)
    if around is not None:
        near = s % len(macs) == c
    s, j, c = s[near], j[near], c[near]
    run = s * seeds + j if trunks and around is None else (s * seeds + j) * len(macs) + c
    n = n_params[s]
    d = macs[c] / (MACS_PER_PARAMETER_TOKEN * n)
    octaves = mistuned * rng.standard_normal(run.max() + 1)[run]
    log_loss = (
        np.log(truth(n, d))
        + run_noise * rng.standard_normal(run.max() + 1)[run]
        + point_noise * rng.standard_normal(len(run))
        + 0.03 * (rng.random(len(run)) < outliers)
        + 0.004 * octaves**2
        + short_warmup * (macs[0] / macs[c]) ** 2
    )
    return _rows(run, j, n, d, macs[c], np.exp(log_loss))


def _require_positive(**given: float) -> None:
    for name, value in given.items():
        if not (np.isfinite(value) and value >= 0):
            raise UserError(f"{name} is {value}: must be finite and not negative")


def _sizes(
    truth: Truth, macs: np.ndarray, sizes: int | Sequence[float], around: float | None
) -> np.ndarray:
    """Parameters of the sizes tried; around: of each size at each budget, budgets running first."""
    if around is not None:
        if not isinstance(sizes, int) or not around > 1:
            raise UserError(
                f"around is {around:g}, sizes {sizes}: give a factor above 1 and a number of sizes"
            )
        return (truth.n_opt(macs) * np.geomspace(1 / around, around, sizes)[:, None]).ravel()
    if isinstance(sizes, int):
        low, high = truth.n_opt(macs[[0, -1]])
        return np.geomspace(low / 2, high * 2, sizes)
    return np.sort(np.asarray(sizes, dtype=float))


def _rows(
    run: np.ndarray, seed: np.ndarray, n: np.ndarray, d: np.ndarray, macs: np.ndarray,
    loss: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """A row for each of these evaluations, all of a decayed rate."""
    return pd.DataFrame(
        {
            "run_id": [f"run{r:04d}" for r in run],
            "role": "ladder",
            "status": "finished",
            "decayed": True,
            "seed": seed,
            "size": [f"n{v:.3g}" for v in n],
            "params": n,
            "tokens": d,
            "tokenizer": "simulated",
            "vocab": 1,
            "macs_total": macs,
            "budget_macs": macs,
            "val_loss": loss,
        }
    )


def frontier_exponent(truth: Truth, budgets: np.ndarray) -> float:
    """Slope of the straight line through the noise-free log-log frontier at these budgets: what
    a pure power law estimates, whether or not the truth is one."""
    macs = np.unique(np.asarray(budgets, dtype=float))
    return float(np.polyfit(np.log(macs), np.log(truth.frontier(macs)), 1)[0])


@dataclass(frozen=True)
class Power:
    """What a design would deliver, over simulated studies."""

    runs: int
    macs: float
    width: float  # median width of the interval of the exponent
    coverage: float  # share of the intervals that hold the truth
    refused: float  # share of the studies in which no law was identified
    reason: str  # of the last refusal


def power(truth: Truth = TRUTH, *, studies: int = 50, seed: int = 0, **design: Any) -> Power:
    """Simulate `studies` of one design (arguments of `study`) and fit the pure law to each."""
    widths, covered, refused, reason = [], [], 0, ""
    table = study(truth, seed=seed, **design)
    expected = frontier_exponent(truth, table["budget_macs"].to_numpy())
    for i in range(studies):
        try:
            law = fit_frontier(
                study(truth, seed=seed + i, **design), resamples=500, form="power"
            ).law
        except NotIdentified as refusal:
            refused, reason = refused + 1, str(refusal)
            continue
        low, high = law.ci["b"]
        widths.append(high - low)
        covered.append(low <= expected <= high)
    last = table.loc[table.groupby("run_id")["macs_total"].idxmax()]
    return Power(
        runs=len(last), macs=float(last["macs_total"].sum()),
        width=float(np.median(widths)) if widths else float("nan"),
        coverage=float(np.mean(covered)) if covered else float("nan"), refused=refused / studies,
        reason=reason,
    )  # fmt: skip


def designs(
    truth: Truth, *, width: float | None = None, noise: float = 0.002, sizes: int = 6,
    budgets: int = 5, studies: int = 50, seed: int = 0, **design: Any,
) -> pd.DataFrame:  # fmt: skip
    """`power` of a design, and of ever larger ones (half as many sizes and budgets more each time,
    at most MORE) until the exponent's interval is no wider than `width`.

    noise: standard deviation of log loss between runs, half of its variance shared by the budgets
    of a run. Returns sizes, budgets, and the fields of `Power`.
    """
    if width is not None and not width > 0:
        raise UserError(f"width is {width:g}: give the positive width of an interval")
    if not noise >= 0:
        raise UserError(f"noise is {noise:g}: give a standard deviation of log loss, 0 or more")
    out = []
    for _ in range(MORE if width is not None else 1):
        found = power(
            truth, studies=studies, seed=seed, sizes=sizes, budgets=budgets,
            run_noise=noise / 2**0.5, point_noise=noise / 2**0.5, **design,
        )  # fmt: skip
        out.append({"sizes": sizes, "budgets": budgets, **vars(found)})
        if width is not None and found.width <= width:
            break
        sizes, budgets = -(-3 * sizes // 2), -(-3 * budgets // 2)
    return pd.DataFrame(out)


def truth_of(rows: pd.DataFrame | Ladder) -> tuple[Truth, float]:
    """A truth like the one that rows suggest, and the noise of log loss between their runs.

    Raises NotIdentified when L(N, D) is not identified in them.
    """
    law = fit_rows(rows, resamples=200)
    # Their cost of a parameter and token is taken into D, since a truth costs 3 MACs.
    scale = (law.per_token / MACS_PER_PARAMETER_TOKEN) ** law.beta
    return Truth(law.e, law.a, law.alpha, law.b * scale, law.beta), law.noise
