"""From rows to the points of a law, and to the law.

    study = fit_frontier(rows)          # StudyLaw: .law, .points, .excluded, .summary()

Which rows count is fixed beforehand (`RULES` in tables/cells.py), and what each rule left out is
counted. Seeds of one design are averaged. Per budget the frontier is the loss to expect of the
best size, and its error that of the same recipe on new noise (analysis/questions/best_loss.py).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.analysis.laws import compare
from scaling.analysis.laws.fit import (
    DELTA,
    MIN_DECADES,
    RESAMPLES,
    Holdout,
    NotIdentified,
    Options,
    PowerLaw,
    SaturatingLaw,
    curvature,
    select,
)
from scaling.analysis.laws.power_law import conditions
from scaling.analysis.laws.references import REFERENCES
from scaling.analysis.questions.best_loss import BestLoss, best_loss
from scaling.analysis.tables.cells import (
    DESIGN,
    WEIGHT,
    cells,
    exclude,
    of_points,
    refuse_floor,
    seed_means,
    weighted,
)
from scaling.errors import UserError

OVERFIT = 0.005  # relative rise of the validation loss; less is noise
PASSES = 4  # arXiv 2305.16264: up to here repeated data are nearly as good as fresh ones
METHODS = ("budget", "lowest", "binned", "envelope", "hull")
BY_BUDGET = ("budget", "lowest")
EXPECTED = ("budget", "binned")  # the loss to expect of the best size, not a run's own
BIN, BINS, BIN_RUNS = 0.25, 12, 4  # decades, bins at most, runs of a bin at least
SCATTER = 0.2  # of log loss around the pure law; published frontiers scatter by a hundredth
ALONE = ("parameters", "tokens")  # units of laws that are not of compute
BESIDE = ("gpt3", "toto")  # published laws that a study's is set beside: pure exponents too
COMPARABLE = "bits per pixel are (scaling.analysis.laws.references.bits_per_pixel)"


@dataclass(frozen=True)
class StudyLaw:
    """The law of a study and everything needed to judge it."""

    law: PowerLaw  # the selected one
    pure: PowerLaw
    saturating: SaturatingLaw | None
    choice: str  # why this form: held-out errors, or the refusal of the other
    points: pd.DataFrame  # one row per point of the frontier, sorted by macs_total
    excluded: tuple[tuple[str, int], ...]  # every rule with the rows it left out, zeros included
    warnings: tuple[str, ...]
    curvature: tuple[float, float]  # quadratic term in log10 compute, p-value
    method: str

    @property
    def holdout(self) -> Holdout | None:
        """The largest budget, predicted from the rest."""
        return self.law.holdout[-1] if self.law.holdout else None

    @property
    def averages(self) -> bool:
        """Whether points were read from several runs, or moved, and are not runs as they are."""
        points = self.points
        return bool((points["averaged"] > 1).any() or (points.lowest_loss != points.val_loss).any())

    def smaller(self, rows: pd.DataFrame, point: int = -1) -> pd.DataFrame:
        """The rows without those of a point (its number; the last) and of all larger ones: its
        whole budget or bin on, or from its compute on."""
        cost, at = "macs_total", rows["macs_total"]
        if self.method in BY_BUDGET:
            cost, at = "budget_macs", rows["budget_macs"]
        elif self.method == "binned":
            cost, at = "budget_macs", binned(rows)["budget_macs"].fillna(at)
        return rows[~(at >= self.points[cost].iloc[point] * (1 - 1e-9))]

    def compare(self) -> list[compare.Comparison]:
        """The pure exponent next to those of BESIDE."""
        return [compare.exponents(self.pure, REFERENCES[name]) for name in BESIDE]

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
        """The loss at a compute, in a line of text."""
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

    def to_json(self) -> dict:
        """Plain values only; what is missing is None."""
        coefficient, p_value = self.curvature
        return {
            "law": self.law.to_json(),
            "pure": self.pure.to_json(),
            "saturating": None if self.saturating is None else self.saturating.to_json(),
            "selected": self.law.form,
            "choice": self.choice,
            "method": self.method,
            "points": [
                {k: _plain(v) for k, v in row.items()} for row in self.points.to_dict("records")
            ],
            "excluded": [{"rule": rule, "rows": count} for rule, count in self.excluded],
            "warnings": list(self.warnings),
            "curvature": {"coefficient": _plain(coefficient), "p_value": _plain(p_value)},
            "references": [{k: _plain(v) for k, v in vars(c).items()} for c in self.compare()],
        }


def _plain(value):
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def frontier(rows: pd.DataFrame, *, method: str = "budget") -> pd.DataFrame:
    """The points that a law is fitted to, sorted by compute.

    method: "budget", the loss to expect of the best size of each nominal budget
    (questions/best_loss.py); "binned", the same of bins of compute; "lowest", the smallest loss at
    each nominal budget; "envelope", the points that no cheaper point beats; "hull", the corners of
    the lower convex hull in log-log. The last three are runs as they are, and the lucky ones: the
    more runs compete, the lower.
    Seeds of one design are averaged first: the lowest of several seeds is no size's loss, and the
    more seeds the lower. Returns the rows of the lowest designs (run_id: the first seed's) plus
    `design`, `seeds` (how many) and `edge`: the size is the smallest or largest tried at its
    budget, so that the optimum may lie outside the grid. `lowest_loss` is that design's,
    `val_loss` the point's; `averaged` designs tell it, of the `runs` (their ids).
    """
    return _frontier(rows, method)[0]


def binned(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with bins of compute in place of nominal budgets: for a cloud of runs, of which no
    two need have the same compute.

    At most BINS bins, of equal width in log compute and of BIN decades or more; a bin of fewer
    than BIN_RUNS runs is no budget. `BestLoss` moves every run to its bin's mean compute.
    """
    kept, _ = exclude(rows, budgets=False)
    decades = np.log10(kept["macs_total"].to_numpy(float))
    reach = max(float(np.ptp(decades)), 1e-9) if len(decades) else 1.0
    count = int(np.clip(reach / BIN, 1, BINS))
    number = np.minimum(((decades - decades.min()) / reach * count).astype(int), count - 1)
    number = pd.Series(number, index=kept.index)
    mean = np.log(kept["macs_total"]).groupby(number).transform("mean")
    many = number.groupby(number).transform("size") >= BIN_RUNS
    return rows.assign(budget_macs=np.exp(mean.where(many)).reindex(rows.index))


def _frontier(rows: pd.DataFrame, method: str) -> tuple[pd.DataFrame, BestLoss | None]:
    """The points, and what their errors follow from, where the runs tell it."""
    if method not in METHODS:
        raise UserError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    budgets = method in BY_BUDGET
    if method == "binned":
        rows, budgets = binned(rows), True
    single = cells(rows, budgets=budgets)
    if single.empty:
        counts = exclude(rows, budgets=budgets)[1]
        raise NotIdentified(
            "no row is left to fit: "
            + "; ".join(f"{count} rows: {rule}" for rule, count in counts if count)
        )
    table = seed_means(single)
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
    ids = single.sort_values("run_id", kind="stable").groupby("design")["run_id"].agg(list)
    runs = [tuple(itertools.chain(*(ids[design] for design in one))) for one in members]
    return table.assign(
        averaged=[len(one) for one in members],
        runs=pd.Series(runs, index=table.index, dtype=object),
    ).reset_index(drop=True), best


def lower_hull(x, y) -> list[int]:
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


LOWEST = "the lowest of them is taken, which is too low if they are"


def warnings_for(
    rows: pd.DataFrame, points: pd.DataFrame, repeats: str = LOWEST
) -> tuple[str, ...]:
    """What a reader must know before trusting the law. repeats: what becomes of runs that may be
    repeats."""
    out = []
    for column, why in (
        ("tokenizer", f"losses per token of different tokenizers are not comparable; {COMPARABLE}"),
        ("vocab", f"losses per token of different vocabularies are not comparable; {COMPARABLE}"),
        ("data_key", "losses on different data are not comparable"),
        ("data_mix", "losses on different data are not comparable"),
        ("context", "losses at different context lengths are not comparable"),
    ):
        if column in rows.columns and (count := rows[column].nunique()) > 1:
            out.append(f"{count} values of {column} in one law: {why}")
    edge = points[points["edge"] & points["budget_macs"].notna()]
    if len(edge):
        text = ", ".join(f"{b:.3g}" for b in edge["budget_macs"])
        out.append(
            f"at budgets {text} the best size is the smallest or largest tried there: "
            "the optimum may lie outside the grid"
        )
    if "seed" not in rows.columns:
        key = ["macs_total", *(c for c in DESIGN if c in rows.columns)]
        alike = rows["run_id"][rows.duplicated(key, keep=False) & rows["params"].notna()]
        if count := int(points["run_id"].isin(alike).sum()):
            out.append(
                f"at {count} of {len(points)} points several runs have the same size, tokens and "
                f"compute, and no column 'seed' says that they are repeats: {repeats}"
            )
    elif rows["seed"].nunique() < 2:
        out.append("one seed: no run was repeated, so the noise is inferred from the residuals")
    return tuple(out + overfitting(rows) + repetition(points))


def lucky(rows: pd.DataFrame, points: pd.DataFrame, method: str) -> list[str]:
    """Whether the points are the lowest of several runs, which luck lowers, uncorrected."""
    if method in EXPECTED and (points["lowest_loss"] != points["val_loss"]).any():
        return []
    if method in BY_BUDGET:
        crowded = rows.groupby("budget_macs")["run_id"].nunique().max() > 2
        if not crowded:
            return []
        what = "of several runs at each budget the lowest is taken"
    else:
        if rows["run_id"].nunique() < 2 * len(points):
            return []
        what = f"the {method} takes the lowest of many runs"
    return [
        f"{what}: luck lowers it, and the interval does not know; method budget or binned "
        "averages the runs near the best, where parameters and tokens are known and runs suffice"
    ]


def overfitting(rows: pd.DataFrame) -> list[str]:
    """Which runs' validation loss rose by OVERFIT or more while their training loss fell."""
    if not {"run_id", "size", "train_loss", "decayed"} <= set(rows.columns):
        return []
    seen, example = set(), ""
    decayed = rows[rows["decayed"].eq(True) & rows["val_loss"].notna() & rows["train_loss"].notna()]
    for _, run in decayed.sort_values("macs_total").groupby("run_id", sort=False):
        best, last = run.iloc[int(run["val_loss"].argmin())], run.iloc[-1]
        rises = last["val_loss"] > best["val_loss"] * (1 + OVERFIT)
        if rises and last["train_loss"] < best["train_loss"]:
            seen.add(str(last["size"]))
            example = (
                f"{last['size']}: {best['val_loss']:.3f} to {last['val_loss']:.3f} while the "
                f"training loss goes from {best['train_loss']:.3f} to {last['train_loss']:.3f}"
            )
    if not seen:
        return []
    return [
        f"overfitting: with more training the validation loss of {', '.join(sorted(seen))} rises "
        f"({example}): the training data are too few, or too unlike the validation files, for "
        "these budgets"
    ]


def repetition(points: pd.DataFrame) -> list[str]:
    """Whether the law's points went over their data more often than PASSES."""
    if "epochs" not in points.columns or not (points["epochs"] > PASSES).any():
        return []
    return [
        f"the law's points went over a source up to {points['epochs'].max():.3g} times; beyond "
        f"about {PASSES} passes repeated data teach less than fresh ones (arXiv 2305.16264)"
    ]


def doubts(pure: PowerLaw) -> tuple[str, ...]:
    """What the pure law itself says against there being a law."""
    out = []
    low, high = pure.ci["b"]
    if high >= 0:
        out.append(
            f"the interval of the pure exponent, {low:.3g} to {high:.3g}, holds 0: these points do "
            f"not show that more {pure.unit if pure.unit in ALONE else 'compute'} means less loss"
        )
    if not pure.status.converged:
        out.append(
            "the fit of the pure law did not converge (gradient per point "
            f"{pure.status.gradient_norm:.2g})"
        )
    if pure.noise > SCATTER:
        out.append(
            f"the points scatter by {pure.noise:.0%} around the pure law: check the columns and "
            "their units, and whether the runs belong together"
        )
    return tuple(out)


def auto_method(rows: pd.DataFrame) -> str:
    """Budgets where rows have them; else bins, where runs suffice for a law; else the envelope."""
    if "budget_macs" in rows.columns and bool((rows["budget_macs"] > 0).any()):
        return "budget"
    try:
        macs = _frontier(rows, "binned")[0]["macs_total"]
    except NotIdentified:
        return "envelope"
    return "binned" if len(macs) > 3 and macs.max() >= 10**MIN_DECADES * macs.min() else "envelope"


def fit_frontier(
    rows: pd.DataFrame,
    seed: int = 0,
    *,
    method: str = "auto",
    form: str = "select",
    e: float | None = None,
    weights: str | None = None,
    delta: float = DELTA,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> StudyLaw:
    """Fit the law of a study's frontier, training MACs against validation loss.

    rows: the study's rows (scaling.results), one per evaluation point of a run. method: of
    `frontier`; "auto" is "budget" where rows have nominal budgets, else "binned" where runs
    suffice, else "envelope". form: "select" (by held-out error), or "power" / "saturating" when
    the form is decided beforehand. e: pins the floor E (0: the pure law). weights: a column in
    proportion to 1 / variance of the rows' losses, such as how many runs each is the mean of.
    Raises NotIdentified (a UserError) when even the pure law cannot be determined: fewer than
    three budgets, under a decade of compute, a constant loss; UserError on a floor that is not
    below every loss, or weights that are none.
    """
    if method == "auto":
        method = auto_method(rows)
    rows = weighted(rows, weights, budgets=method in BY_BUDGET)
    kept, excluded = exclude(rows, budgets=method in BY_BUDGET)
    refuse_floor(e, kept)
    points, best = _frontier(rows, method)
    noise = None
    if method in EXPECTED and best is not None:
        noise = best.errors(resamples, seed)
    options = Options(
        groups=points["run_id"].tolist(), noise=noise, weights=of_points(points), delta=delta,
        level=level, resamples=resamples, seed=seed, unit="MACs",
    )  # fmt: skip
    macs, loss = points["macs_total"].to_numpy(float), points["val_loss"].to_numpy(float)
    law, pure, saturating, choice = select(macs, loss, options, form, e)
    bend = (
        curvature(macs, loss, options.weights)
        if len(np.unique(macs)) > 3
        else (float("nan"), float("nan"))
    )
    said = (*warnings_for(kept, points), *lucky(kept, points, method), *doubts(pure))
    return StudyLaw(law, pure, saturating, choice, points, excluded, said, bend, method)
