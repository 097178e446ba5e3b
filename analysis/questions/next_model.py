"""A fitted law as a design of further runs and their simulation see it (questions/next.py).

Around L(N, D) every size at every budget may be run; around the law of compute each new budget gets
a size on either side of the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.parametric_law import ParametricLaw
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.laws.solver import log_jacobian
from scaling.analysis.questions.best_loss import best_loss
from scaling.analysis.questions.design import Candidates
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.questions.isoflop import minima
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.tables.ladder import Ladder

REACH = 10.0  # new budgets lie at most so many times above the largest (or the target)
RATIO = 4.0  # of a size to the best of its budget, at most: further off the form is in doubt
RESAMPLES = 250  # of the best sizes
BUDGETS = 24  # new budgets that may be chosen
ENOUGH = 5  # degrees of freedom from which the noise of cells is known better than the law's
LEAST = 1e-6  # noise of log loss


@dataclass(frozen=True)
class Model:
    """A fitted law as the design and the simulation see it."""

    law: str
    what: str
    reason: str
    designs: pd.DataFrame  # a row per run: unit, budget_macs, size, params, tokens, macs_total
    gradient: np.ndarray  # (units, p)
    information: np.ndarray  # (p, p)
    direction: np.ndarray  # (p,)
    loss: np.ndarray  # expected of each row of `designs`
    noise: float  # of log loss
    estimate: float
    now: tuple[float, float]

    @property
    def units(self) -> Candidates:
        by = self.designs.groupby("unit")["macs_total"]
        return Candidates(
            self.gradient / self.noise, by.sum().to_numpy(float), by.size().to_numpy()
        )


def number(
    law: ParametricLaw | PowerLaw, target: float | None
) -> tuple[float, tuple[float, float]]:
    if isinstance(law, ParametricLaw):
        if target is None:
            return law.loss_exponent, law.ci["loss_exponent"]
        best = law.optimum(target)
        if not np.isfinite(best.loss_interval).all():
            raise NotIdentified(best.refused)
        return best.loss, best.loss_interval
    if target is None:
        return law.b, law.ci["b"]
    there = law.predict(target)
    return there.loss, (there.low, there.high)


def model_of(
    ladder: Ladder, budget: float, target: float | None, study: StudyLaw | None, seed: int,
    **options: Any,
) -> Model:  # fmt: skip
    """options: of the fit of L(N, D)."""
    if ladder.cells()[["params", "tokens"]].isna().any(axis=None):
        refused = "not all parameters and tokens are known"
        return _of_compute(
            ladder, budget, target, study or fit_frontier(ladder, seed=seed), refused
        )
    try:
        law = fit_rows(ladder, seed=seed, **options)
        _require_shape(law)
        return _of_surface(ladder, law, budget, target)
    except NotIdentified as refusal:
        refused = str(refusal)
    return _of_compute(ladder, budget, target, study or fit_frontier(ladder, seed=seed), refused)


def _require_shape(law: ParametricLaw) -> None:
    """A design rests on the exponents: where they are in doubt it is none."""
    if law.doubts:
        raise NotIdentified(f"L(N, D) is in doubt: {'; '.join(law.doubts)}")
    for name in ("alpha", "beta"):
        low, high = law.ci[name]
        if not 0 < low <= high < 5:
            raise NotIdentified(
                f"L(N, D) is not identified: the interval of {name}, {low:.3g} to {high:.3g}, "
                "reaches beyond 0 to 5"
            )


# --- around L(N, D)


def _of_surface(ladder: Ladder, law: ParametricLaw, budget: float, target: float | None) -> Model:
    n, d, compute, named = _grid(ladder.cells(), law, budget, target)
    centre = float(np.log(law.n).mean()), float(np.log(law.d).mean())
    fixed = int(law.pinned)  # parameters that are not fitted

    def gradient(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        """d log L / d (log E, log A, log B, alpha, beta), A and B at the centre: (points, 5);
        without the first where E is pinned."""
        s2, s3 = law.a / n**law.alpha, law.b / d**law.beta
        u, v = np.log(n) - centre[0], np.log(d) - centre[1]
        terms = [np.full_like(s2, law.e), s2, s3, -s2 * u, -s3 * v]
        return (np.stack(terms, 1) / (law.e + s2 + s3)[:, None])[:, fixed:]

    estimate, now = number(law, target)
    if target is None:
        total = (law.alpha + law.beta) ** 2
        direction = np.array([0, 0, 0, -(law.beta**2) / total, -(law.alpha**2) / total])[fixed:]
        what = "the exponent of L(N, D) along the best sizes, -alpha beta / (alpha + beta)"
    else:
        # At the optimum the loss does not change with N to first order, so N may be held.
        best = law.optimum(target)
        direction = gradient(np.array([best.n]), np.array([best.d]))[0]
        what = f"the loss of the best run of {target:.3g} MACs, by L(N, D)"

    noise = _spread(law.residuals, 5 - fixed)
    done = gradient(law.n, law.d) / noise
    designs = pd.DataFrame(
        {"unit": np.arange(len(n)), "budget_macs": compute, "size": named, "params": n,
         "tokens": d, "macs_total": compute}
    )  # fmt: skip
    return Model(
        "parametric", what, "the rows identify L(N, D)", designs, gradient(n, d), done.T @ done,
        direction, law(n, d), noise, estimate, now,
    )  # fmt: skip


def _spread(residuals: np.ndarray, parameters: int) -> float:
    """Standard deviation of log loss from the residuals of a fit; wild runs count as four of it.

    The median residual would not do: a robust fit passes through some of few points exactly.
    """
    size = np.abs(residuals)
    cut = 4 * float(np.quantile(size, 0.75)) / 1.15  # 1.15: the normal's third quartile of |r|
    free = max(len(size) - parameters, 1)
    return max(float(np.sqrt((np.minimum(size, cut) ** 2).sum() / free)), LEAST)


def _grid(
    table: pd.DataFrame, law: ParametricLaw, budget: float, target: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Parameters, tokens, compute and names of the candidates: (m,) each."""
    compute = _budgets(table, budget, target)
    sizes = np.unique(table["params"].to_numpy(float))
    step = _step(sizes)
    ends = law.n_opt(compute[[0, -1]])
    below = sizes[0] / step ** np.arange(
        int(np.log(max(sizes[0] / ends[0], 1)) / np.log(step)), 0, -1
    )
    above = sizes[-1] * step ** np.arange(
        1, 2 + int(np.log(max(ends[1] / sizes[-1], 1)) / np.log(step))
    )
    if len(sizes) > BUDGETS:
        sizes = np.geomspace(sizes[0], sizes[-1], BUDGETS)
    n, c = (g.ravel() for g in np.meshgrid(np.concatenate([below, sizes, above]), compute))
    near = np.abs(np.log(n / law.n_opt(c))) <= np.log(RATIO)
    n, c = n[near], c[near]
    return n, c / (law.per_token * n), c, _names(table, n)


def _budgets(table: pd.DataFrame, budget: float, target: float | None) -> np.ndarray:
    """Budgets of the rows, and new ones beyond them that the budget affords: ascending."""
    nominal = table["budget_macs"].dropna().unique()
    macs = table["macs_total"].to_numpy(float)
    if not len(nominal):
        nominal = np.geomspace(macs.min(), macs.max(), BUDGETS)
    top = float(nominal.max())
    limit = min(budget, REACH * max(top, target or 0))
    if limit <= top:
        return np.sort(nominal[nominal <= max(budget, nominal.min())])
    return np.concatenate([np.sort(nominal), np.geomspace(top, limit, BUDGETS + 1)[1:]])


def _step(sizes: np.ndarray) -> float:
    """Ratio of neighbouring sizes of the study, between 1.3 and 3."""
    if len(sizes) < 2:
        return 2.0
    return float(np.clip(np.exp(np.median(np.diff(np.log(sizes)))), 1.3, 3.0))


def _names(table: pd.DataFrame, n: np.ndarray) -> list[str]:
    """The study's own name of a size, where it has that size."""
    known = table.drop_duplicates("params").set_index("params")["size"].astype(str).to_dict()
    return [known.get(value, "new") for value in n]


# --- around the law of compute


def _of_compute(
    ladder: Ladder, budget: float, target: float | None, study: StudyLaw, refusal: str
) -> Model:
    law, points = study.law, study.points
    pin = law.e if law.form != "saturating" or law.pinned else None
    theta = np.array([[law.e, np.log(law.a) + law.b * law.centre, law.b]])

    def gradient(compute: np.ndarray) -> np.ndarray:
        slopes: np.ndarray = log_jacobian(theta, np.log(compute) - law.centre, pin)[0]
        return slopes

    estimate, now = number(law, target)
    noise = _noise(ladder, study)
    done = gradient(points["macs_total"].to_numpy(float))
    told_by = points["seeds"] * points["averaged"]  # runs
    done = done * np.sqrt(told_by.to_numpy(float))[:, None] / noise
    if target is None:
        direction = np.eye(done.shape[1])[-1]
        what = f"the exponent of the {law.form} law of compute"
    else:
        direction = gradient(np.array([target]))[0]
        what = f"the loss at {target:.3g} MACs, by the {law.form} law of compute"
    designs, bent = _candidates(ladder, study, budget, target)
    of_unit = designs.groupby("unit")["macs_total"].first().to_numpy(float)
    loss = law(designs["macs_total"].to_numpy(float)) * np.exp(bent)
    return Model(
        law.form, what, refusal, designs, gradient(of_unit), done.T @ done, direction, loss, noise,
        estimate, now,
    )  # fmt: skip


def _noise(ladder: Ladder, study: StudyLaw) -> float:
    """Standard deviation of a run's log loss: of the cells near the frontier, else of the law."""
    best = best_loss(ladder.cells(budgets=True), study.points) if study.method == "budget" else None
    if best is not None and best.smooth.noise.df >= ENOUGH:
        return max(best.smooth.noise.total, LEAST)
    return max(study.law.noise, LEAST)


def _candidates(
    ladder: Ladder, study: StudyLaw, budget: float, target: float | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Candidates, and by how much (log loss) each lies above the best of its budget.

    A budget of the study may have its best size again, with another seed. A new budget has three
    sizes about the best, which is expected on the line of the best sizes so far.
    """
    points = study.points
    again = points.assign(unit=np.arange(len(points)))
    columns = ["unit", "budget_macs", "size", "params", "tokens", "macs_total"]
    new = _budgets(points, budget, target)
    new = new[new > points["macs_total"].max() * (1 + 1e-9)]
    if points["params"].isna().any():  # compute alone is known
        more = pd.DataFrame({"budget_macs": new, "size": "unknown", "macs_total": new})
        more = more.assign(unit=len(points) + np.arange(len(new)), params=np.nan, tokens=np.nan)
        return pd.concat([again[columns], more[columns]], ignore_index=True), np.zeros(
            len(points) + len(new)
        )
    line, curvature = _best_sizes(ladder, study)
    table = ladder.designs(budgets=study.method == "budget")
    step = _step(np.unique(table["params"].to_numpy(float)))
    offset = np.tile([-1, 0, 1], len(new)) * np.log(step)
    compute = np.repeat(new, 3)
    n = np.exp(np.polyval(line, np.log(compute)) + offset)
    per_token = float(np.median(points["macs_total"] / (points["params"] * points["tokens"])))
    more = pd.DataFrame(
        {"unit": len(points) + np.arange(len(n)) // 3, "budget_macs": compute, "size": "new",
         "params": n, "tokens": compute / (per_token * n), "macs_total": compute}
    )  # fmt: skip
    bent = np.concatenate([np.zeros(len(points)), curvature * offset**2])
    return pd.concat([again[columns], more], ignore_index=True), bent


def _best_sizes(ladder: Ladder, study: StudyLaw) -> tuple[np.ndarray, float]:
    """Line of log N against log compute through the best sizes, and the relative curvature of the
    loss about them in log N; where too few are known the slope is one half."""
    points = study.points
    x, y = np.log(points["macs_total"].to_numpy(float)), np.log(points["params"].to_numpy(float))
    curvature = 0.02
    if study.method == "budget":
        try:
            vertices = minima(ladder, resamples=RESAMPLES)
        except NotIdentified:  # no budget has sizes enough; the points' own sizes do
            vertices = pd.DataFrame({"accepted": np.zeros(0, bool), "curvature": np.zeros(0)})
        vertices = vertices[vertices["accepted"] & (vertices["curvature"] > 0)]
        if len(vertices):
            curvature = float((vertices["curvature"] / vertices["val_loss"]).median())
        if len(vertices) >= 3:
            x, y = (np.log(vertices[c].to_numpy(float)) for c in ("budget_macs", "params"))
    slope = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0 else 0.5
    slope = slope if 0 < slope < 1 else 0.5
    return np.array([slope, y.mean() - slope * x.mean()]), curvature
