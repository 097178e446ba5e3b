"""From rows to the points of a law, and to the law.

    study = fit_frontier(rows)          # StudyLaw: .law, .points, .excluded, .summary()

Which rows count is fixed beforehand (analysis/tables/ladder.py), and what each rule left out is
counted. Seeds of one design are averaged. Per budget the frontier is the loss to expect of the
best size, and its error that of the same recipe on new noise (analysis/questions/best_loss.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scaling.analysis.laws import compare
from scaling.analysis.laws.fit import (
    DELTA,
    MIN_DECADES,
    RESAMPLES,
    NotIdentified,
    Options,
    curvature,
    select,
)
from scaling.analysis.laws.power_law import Holdout, PowerLaw, SaturatingLaw, conditions, finite
from scaling.analysis.laws.references import REFERENCES, Reference
from scaling.analysis.questions.best_loss import BestLoss, best_loss
from scaling.analysis.questions.doubts import BY_BUDGET, EXPECTED, doubts, lucky, warnings_for
from scaling.analysis.schema import TOKEN_UNIT, WEIGHT
from scaling.analysis.tables.ladder import Excluded, Ladder, of_points
from scaling.errors import UserError

if TYPE_CHECKING:
    import plotly.graph_objects as go

METHODS = ("budget", "lowest", "binned", "envelope", "hull")
BESIDE = ("gpt3", "toto")  # published laws that a study's is set beside: pure exponents too


@dataclass(frozen=True)
class StudyLaw:
    """The law of a study and everything needed to judge it; compute in MACs, losses as fitted."""

    pure: PowerLaw
    saturating: SaturatingLaw | None
    selected: str  # the form of the law: power or saturating
    choice: str  # why this form: held-out errors, or the refusal of the other
    points: pd.DataFrame  # one row per point of the frontier, sorted by macs_total
    excluded: Excluded
    warnings: tuple[str, ...]
    curvature: tuple[float, float]  # quadratic term in log10 compute, p-value
    method: str

    @property
    def law(self) -> PowerLaw:
        """The selected one."""
        if self.selected == "power":
            return self.pure
        assert self.saturating is not None
        return self.saturating

    @property
    def holdout(self) -> Holdout | None:
        """The largest budget, predicted from the rest."""
        return self.law.holdout[-1] if self.law.holdout else None

    @property
    def averages(self) -> bool:
        """Whether points were read from several runs, or moved, and are not runs as they are."""
        points = self.points
        return bool((points["averaged"] > 1).any() or (points.lowest_loss != points.val_loss).any())

    def smaller(self, ladder: Ladder, point: int = -1) -> Ladder:
        """The ladder without the rows of a point (its number; the last) and of all larger ones:
        its whole budget or bin on, or from its compute on."""
        cost, at = "macs_total", ladder.rows["macs_total"]
        if self.method in BY_BUDGET:
            cost, at = "budget_macs", ladder.rows["budget_macs"]
        elif self.method == "binned":
            cost, at = "budget_macs", ladder.binned().rows["budget_macs"].fillna(at)
        least = float(self.points[cost].iloc[point] * (1 - 1e-9))
        key = ("below", self.method, cost, least)
        return ladder.once(key, lambda: ladder.where(~(at >= least)))

    @property
    def compared(self) -> PowerLaw:
        """The law whose exponent is compared: above a floor that was pinned, else pure."""
        return self.law if self.law.given else self.pure

    def figure(
        self, runs: pd.DataFrame | None = None, *, unit: str = TOKEN_UNIT,
        slopes: Mapping[str, float] | None = None,
    ) -> go.Figure:  # fmt: skip
        """The law over its points, beside the slopes of published ones.

        runs: the rows of the study, all of which are drawn; None: the points alone. unit: of the
        losses. slopes: name -> exponent of what it is drawn beside; None: of BESIDE.
        """
        from scaling.analysis.figures import runs as figures

        law = self.law
        if slopes is None:
            slopes = {one.other: one.b_other for one in self.compare()}
        shown = figures.run_points(self.points if runs is None else runs)
        return figures.scaling_figure(
            shown, frontier=self.points,
            law=figures.law_points(law, law.compute.min(), law.compute.max()),
            slopes=slopes, unit=unit,
        )  # fmt: skip

    def residual_figure(self) -> go.Figure:
        """Measured less fitted loss of each point."""
        from scaling.analysis.figures import runs as figures

        return figures.residual_figure(figures.residual_points(self.points, self.law))

    def holdout_figure(self) -> go.Figure:
        """The error of each budget, predicted from the smaller ones by both forms."""
        from scaling.analysis.figures import runs as figures

        forms = [one for one in (self.pure, self.saturating) if one is not None]
        return figures.holdout_figure(figures.holdout_points(forms))

    @property
    def bends(self) -> tuple[float, float] | None:
        """Slopes d log L / d log C at both ends of a curve that bends; None for a straight one."""
        mixture = self.law.mixture
        return mixture.slopes if mixture is not None and mixture.bends else None

    def beside(self, other: StudyLaw | Reference, *, name: str = "this law") -> compare.Comparison:
        """The exponent beside that of another study, or beside a published one of the same form.

        name: of this law, in words of the result.
        """
        if isinstance(other, StudyLaw):
            return compare.exponents(
                self.compared, other.compared, name=name, bends=self.bends, other_bends=other.bends
            )
        above = self.saturating if other.form == "saturating" else None
        return compare.exponents(above or self.pure, other, name=name, bends=self.bends)

    def compare(self) -> list[compare.Comparison]:
        """The pure exponent next to those of BESIDE."""
        return [self.beside(REFERENCES[name]) for name in BESIDE]

    def summary(self, *, published: bool = True) -> str:
        """The law, its unit, its judgement, in plain text of several lines.

        published: next to laws of the loss that were published.
        """
        law, pure, points = self.law, self.pure, self.points
        lines = [str(law)]
        if self.saturating is not None and law is not self.saturating:
            lines.append(f"  not chosen   {self.saturating}")
        elif law is not pure:
            lines.append(f"  not chosen   {pure}")
        low, high = law.compute.min(), law.compute.max()
        runs = {run for point in points["runs"] for run in point}
        most = int(points["seeds"].max())
        seeds = f"; means over up to {most} seeds" if most > 1 else ""
        lines += [
            f"  form         {self.choice}",
            f"  fitted to    {len(points)} points ({self.method} frontier), {low:.3g} to "
            f"{high:.3g} {law.unit} ({law.decades:.2f} decades), "
            f"{points['size'].nunique()} best sizes, {len(runs)} runs{seeds}",
            *self._points_line(),
            f"  interval     {law.status.bootstrap}, {law.status.resamples} resamples",
            *conditions(law),
            f"  R2 (log-log) {law.r2:.4f}; residual {law.noise:.2%} of the loss",
        ]
        if self.holdout is not None:
            h = self.holdout
            lines.append(
                f"  held out     the largest budget ({h.compute:.3g} {law.unit}), predicted from "
                f"the rest: {h.predicted:.4f}, observed {h.actual:.4f} ({h.error:+.2%})"
            )
        coefficient, p_value = self.curvature
        if np.isfinite(p_value):
            shape = "flattens" if coefficient > 0 else "steepens"
            seen = f"the curve {shape}" if p_value < 0.05 else "none seen"
            lines.append(f"  curvature    {seen} (p = {p_value:.2g})")
        if law.mixture is not None:
            lines += law.mixture.lines()
        if published and law is not pure:
            lines.append(f"  next to      laws without a floor, the pure exponent {pure.b:.4f}:")
        if published:
            lines += [f"  next to      {c.brief}" for c in self.compare()]
            lines.append(f"               {compare.CAVEAT}")
        left_out = "; ".join(f"{count} rows: {rule}" for rule, count in self.excluded if count)
        lines.append(f"  left out     {left_out or 'no row'}")
        lines += [f"  beware       {text}" for text in self.warnings]
        return "\n".join(lines)

    def prediction(self, at: float) -> str:
        """The loss at a compute (MACs), in a line of text. Raises UserError: it is not positive."""
        return f"  predicts     {self.law.predict(at)}"

    def _points_line(self) -> list[str]:
        """How the points were read from the runs, where they are not runs themselves."""
        if not self.averages:
            return []
        few, many = self.points["averaged"].min(), self.points["averaged"].max()
        off = self.points["lowest_loss"] / self.points["val_loss"] - 1
        count = f"{few} to {many} runs" if few < many else f"{many} run{'s' if many > 1 else ''}"
        return [
            f"  points       loss to expect of each budget's best size, from {count} near it; the "
            f"lowest run is {off.min():+.2%} to {off.max():+.2%} off"
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values only; what is missing is None."""
        coefficient, p_value = self.curvature
        return {
            "law": self.law.to_json(),
            "pure": self.pure.to_json(),
            "saturating": None if self.saturating is None else self.saturating.to_json(),
            "selected": self.selected,
            "choice": self.choice,
            "method": self.method,
            "points": finite(self.points.to_dict("records")),
            "excluded": [{"rule": rule, "rows": count} for rule, count in self.excluded],
            "warnings": list(self.warnings),
            "curvature": {"coefficient": finite(coefficient), "p_value": finite(p_value)},
            "references": [finite(vars(one)) for one in self.compare()],
        }


def frontier(rows: pd.DataFrame | Ladder, *, method: str = "budget") -> pd.DataFrame:
    """The points that a law is fitted to, sorted by compute.

    rows: of a study, or its ladder. method: "budget", the loss to expect of the best size of each
    nominal budget (questions/best_loss.py); "binned", the same of bins of compute; "lowest", the
    smallest loss at each nominal budget; "envelope", the points that no cheaper point beats;
    "hull", the corners of the lower convex hull in log-log. The last three are runs as they are,
    and the lucky ones: the more runs compete, the lower. Seeds of one design are averaged first:
    the lowest of several seeds is no size's loss, and the more seeds the lower. Returns the rows of
    the lowest designs (run_id: the first seed's) plus `design`, `seeds` (how many) and `edge`: the
    size is the smallest or largest tried at its budget, so that the optimum may lie outside the
    grid. `lowest_loss` is that design's, `val_loss` the point's; `averaged` designs tell it, of the
    `runs` (their ids).
    """
    return _points(Ladder.of(rows), method)[0]


def _points(ladder: Ladder, method: str) -> tuple[pd.DataFrame, BestLoss | None]:
    """The points, and what their errors follow from, where the runs tell it."""
    return ladder.once(("points", method), lambda: _frontier(ladder, method))


def _frontier(ladder: Ladder, method: str) -> tuple[pd.DataFrame, BestLoss | None]:
    if method not in METHODS:
        raise UserError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    budgets = method in BY_BUDGET
    if method == "binned":
        ladder, budgets = ladder.binned(), True
    single = ladder.cells(budgets=budgets)
    if single.empty:
        raise NotIdentified(
            "no row is left to fit: "
            + "; ".join(f"{n} rows: {rule}" for rule, n in ladder.left_out(budgets=budgets) if n)
        )
    table = ladder.designs(budgets=budgets)
    by_budget = table.groupby("budget_macs")["params"]
    inside = (table["params"] > by_budget.transform("min")) & (
        table["params"] < by_budget.transform("max")
    )
    table = table.assign(edge=~inside & table["params"].notna(), lowest_loss=table["val_loss"])
    best = None
    if budgets:
        table = table.loc[table.groupby("budget_macs")["val_loss"].idxmin()]
        table = table.sort_values("macs_total")
        best = best_loss(single, table, cloud=method == "binned")
    else:
        table = table.sort_values(["macs_total", "val_loss"])
        falling = table["val_loss"] < table["val_loss"].cummin().shift(fill_value=np.inf)
        table = table[falling].reset_index(drop=True)
        if method == "hull":
            table = table.loc[lower_hull(np.log(table["macs_total"]), np.log(table["val_loss"]))]
    members = [(design,) for design in table["design"]]
    if method == "binned" and best is None:
        raise NotIdentified(
            "a frontier of bins of compute needs parameters and tokens of runs near the best of "
            "every bin: choose method envelope"
        )
    if method in EXPECTED and best is not None:
        found = best.points()
        members = found["designs"].tolist()
        table[["macs_total", "val_loss"]] = found[["macs_total", "val_loss"]].to_numpy()
        if WEIGHT in table:
            table[WEIGHT] = found[WEIGHT].to_numpy()
        if method == "binned":
            table["edge"] = found["edge"].to_numpy()
    by_id = single.sort_values("run_id", kind="stable")
    ids, places = by_id["run_id"].to_numpy(object), by_id.groupby("design").indices
    runs = [tuple(itertools.chain(*(ids[places[design]] for design in one))) for one in members]
    return table.assign(
        averaged=[len(one) for one in members],
        runs=pd.Series(runs, index=table.index, dtype=object),
    ).reset_index(drop=True), best


def lower_hull(x: npt.ArrayLike, y: npt.ArrayLike) -> list[int]:
    """Indices of the lower convex hull of points sorted by x (Andrew's monotone chain)."""
    x, y = np.asarray(x), np.asarray(y)
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            p, q = hull[-2], hull[-1]
            if (x[q] - x[p]) * (y[i] - y[p]) - (y[q] - y[p]) * (x[i] - x[p]) > 0:
                break
            hull.pop()
        hull.append(i)
    return hull


def auto_method(ladder: Ladder) -> str:
    """Budgets where rows have them; else bins, where runs suffice for a law; else the envelope."""
    if bool((ladder.rows["budget_macs"] > 0).any()):
        return "budget"
    try:
        macs = _points(ladder, "binned")[0]["macs_total"]
    except NotIdentified:
        return "envelope"
    return "binned" if len(macs) > 3 and macs.max() >= 10**MIN_DECADES * macs.min() else "envelope"


def fit_frontier(
    rows: pd.DataFrame | Ladder,
    seed: int = 0,
    *,
    method: str = "auto",
    form: str = "select",
    delta: float = DELTA,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> StudyLaw:
    """Fit the law of a study's frontier, training MACs against validation loss.

    rows: of a study, one per evaluation point of a run, or their ladder, whose pinned floor and
    weights hold. method: of `frontier`; "auto" is "budget" where rows have nominal budgets, else
    "binned" where runs suffice, else "envelope". form: "select" (by held-out error), or "power" /
    "saturating" when the form is decided beforehand.
    Raises NotIdentified (a UserError) when even the pure law cannot be determined: fewer than
    three budgets, under a decade of compute, a constant loss; UserError on a floor that is not
    below every loss, or weights that are none.

    >>> from scaling.analysis.questions.simulate import TRUTH, study
    >>> found = fit_frontier(study(TRUTH), resamples=400)  # a floor of 1.6, b = -0.17
    >>> low, high = found.law.ci["b"]
    >>> found.selected, len(found.points), low < -0.17 < high
    ('saturating', 5, True)
    """
    ladder = Ladder.of(rows)
    if method == "auto":
        method = auto_method(ladder)
    budgets = method in BY_BUDGET
    kept = ladder.kept(budgets=budgets)
    points, best = _points(ladder, method)
    noise = None
    if method in EXPECTED and best is not None:
        noise = best.errors(resamples, seed)
    options = Options(
        groups=points["run_id"].tolist(), noise=noise, weights=of_points(points), delta=delta,
        level=level, resamples=resamples, seed=seed, unit="MACs",
    )  # fmt: skip
    macs, loss = points["macs_total"].to_numpy(float), points["val_loss"].to_numpy(float)
    law, pure, saturating, choice = select(macs, loss, options, form, ladder.e)
    bend = (
        curvature(macs, loss, options.weights)
        if len(np.unique(macs)) > 3
        else (float("nan"), float("nan"))
    )
    said = (*warnings_for(kept, points), *lucky(kept, points, method), *doubts(pure))
    excluded = ladder.left_out(budgets=budgets)
    return StudyLaw(pure, saturating, law.form, choice, points, excluded, said, bend, method)
