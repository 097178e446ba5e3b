"""L(N, D) of a study's rows, with what a reader must know before trusting it.

found = fit_surface(rows)                   # StudySurface: .law, .warnings, .summary()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.parametric import fit_parametric
from scaling.analysis.laws.parametric_law import ParametricLaw
from scaling.analysis.laws.power_law import conditions
from scaling.analysis.questions.doubts import SCATTER, warnings_for
from scaling.analysis.questions.variable import judged, none_left
from scaling.analysis.tables.ladder import DESIGN, SIZES, Excluded, Ladder, of_points

SEVERAL = 3  # runs of one size and length that differ in their settings: a sweep, not repeats
REPEATS = "each counts as a run of its own"


@dataclass(frozen=True)
class StudySurface:
    """L(N, D) of a study and everything needed to judge it."""

    law: ParametricLaw
    excluded: Excluded
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """The law, its intervals, what the solver reached, and its judgement, in plain text."""
        law, reached = self.law, self.law.status
        lines = [str(law)]
        lines += [f"  {name:14s}{law.level:.0%} {law.interval(name)}" for name in law.ci]
        if law.tied:
            a, b, eta = law.overtraining
            lines.append(
                f"  L(C, M) = {law.e:.4g} + ({a:.4g} M^{eta:.4f} + {b:.4g} M^-{eta:.4f}) "
                f"C^-{eta:.4f}"
            )
        ended = "converged" if reached.converged else "not converged"
        lines += [
            f"  fitted to    {len(law.n)} points, {law.criterion}, residual {law.noise:.2%}",
            f"  minimum      {ended}, gradient {reached.gradient_norm:.1g}; "
            f"{reached.basin_share:.0%} of {reached.starts} starts reach it, of {reached.basins} "
            f"minim{'um' if reached.basins == 1 else 'a'}; condition {reached.condition:.2g}",
            f"  interval     {reached.bootstrap}, {reached.resamples} resamples, "
            f"{reached.at_bound_share:.1%} of them at a bound, {reached.unfinished_share:.1%} "
            "unfinished",
            *conditions(law),
        ]
        return "\n".join([*lines, *judged(self.excluded, self.warnings)])

    def prediction(self, compute: float) -> str:
        """The best run of a budget, and what to beware of there."""
        best = self.law.optimum(compute)
        ratio = self.law.d / self.law.n
        text = f"  best run     {best}"
        if not ratio.min() <= best.d / best.n <= ratio.max():
            text += (
                f"\n  beware       that is {best.d / best.n:.3g} tokens per parameter; the runs "
                f"have {ratio.min():.3g} to {ratio.max():.3g}, so none is near that optimum"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain values only; what is missing is None."""
        return {
            "law": self.law.to_json(),
            "excluded": [{"rule": rule, "rows": count} for rule, count in self.excluded],
            "warnings": list(self.warnings),
        }


def fit_rows(rows: pd.DataFrame | Ladder, **options: Any) -> ParametricLaw:
    """The parametric law of all decayed points, in MACs; options of `fit_parametric`."""
    ladder = Ladder.of(rows)
    table = ladder.cells()
    if table.empty:
        raise NotIdentified("no row is left to fit")
    n, d = table["params"].to_numpy(float), table["tokens"].to_numpy(float)
    per_token = float(np.median(table["macs_total"].to_numpy(float) / (n * d)))
    return fit_parametric(
        n, d, table["val_loss"].to_numpy(float), groups=table["run_id"].tolist(),
        weights=of_points(table), e=ladder.e,
        per_token=per_token, unit="MACs", **options,
    )  # fmt: skip


def fit_surface(
    rows: pd.DataFrame | Ladder, *, tied: bool = False, seed: int = 0, **options: Any
) -> StudySurface:
    """L(N, D) of all decayed points of a study (or of its ladder, whose pinned floor and weights
    hold), in MACs.

    tied: alpha = beta, the over-training law. options: of
    `scaling.analysis.laws.parametric.fit_parametric`.
    Raises NotIdentified, with what else is wrong with the rows, when they do not determine it.
    """
    whole = Ladder.of(rows)
    ladder = whole.where(whole.rows[list(SIZES)].notna().all(axis=1))
    kept = ladder.kept()
    lacking = ("no parameters or tokens", len(whole.kept()) - len(kept))
    excluded = (*whole.left_out(), lacking)
    if kept.empty:
        raise none_left("a loss, parameters and tokens", excluded)
    points = ladder.cells().assign(edge=False)
    said = (*_settings(points), *warnings_for(kept, points, REPEATS))
    try:
        law = fit_rows(ladder, tied=tied, seed=seed, **options)
    except NotIdentified as refusal:
        more = "".join(f"\n  beware       {text}" for text in said)
        raise NotIdentified(f"{refusal}{more}") from None
    return StudySurface(law, excluded, (*said, *law.doubts, *_shape(law)))


def _settings(points: pd.DataFrame) -> list[str]:
    """Whether runs of one size and length are a sweep of their settings."""
    groups = points.groupby(list(SIZES))
    size = groups["val_loss"].transform("size")
    varied = [
        c for c in DESIGN
        if c not in SIZES and c in points.columns
        and (groups[c].transform("nunique")[size >= SEVERAL] > 1).any()
    ]  # fmt: skip
    if not varied:
        return []
    return [
        f"{len(points)} runs have {groups.ngroups} sizes and lengths, up to {int(size.max())} runs "
        f"of one that differ in {', '.join(varied)}: the law is of their middle and not of the "
        "best; keep the best run of each size and length"
    ]


def scattered(noise: float) -> list[str]:
    """What the scatter of log loss about a law of several variables says against it."""
    if noise <= SCATTER:
        return []
    return [
        f"the points scatter by {noise:.0%} around the law: check the columns and their units, and "
        "whether the runs belong together"
    ]


def _shape(law: ParametricLaw) -> list[str]:
    """What the points say against the law."""
    out = scattered(law.noise)
    ratio, compute = law.d / law.n, law.per_token * law.n * law.d
    middle = float(np.exp(np.log(compute).mean()))
    best = law.d_opt(middle) / law.n_opt(middle)
    if not ratio.min() <= best <= ratio.max():
        out.append(
            f"the law's best tokens per parameter at {middle:.3g} {law.unit}, {best:.3g}, lie "
            f"outside those tried ({ratio.min():.3g} to {ratio.max():.3g}): no run is near its "
            "optimum"
        )
    return out
