"""L(N) or L(D): the law of the smallest loss of each size, or of each number of tokens.

    ladder = Ladder.of(rows, variable="params")
    found = fit_variable(ladder)        # VariableLaw: .law, .pure, .warnings, .summary()

Nothing but the variable and the loss is needed. It is a law of that variable alone only as far as
the other one was ample in every run; it is fitted to what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import DELTA, RESAMPLES, NotIdentified, Options, curvature, select
from scaling.analysis.laws.power_law import PowerLaw, SaturatingLaw, conditions
from scaling.analysis.questions.doubts import doubts, warnings_for
from scaling.analysis.tables.ladder import Excluded, Ladder, of_points
from scaling.errors import UserError

MIN_RANKED = 8  # points below which a rank correlation says nothing
UNITS = {"params": "parameters", "tokens": "tokens"}


@dataclass(frozen=True)
class VariableLaw:
    """The law of one variable and everything needed to judge it."""

    law: PowerLaw  # the selected one
    pure: PowerLaw
    saturating: SaturatingLaw | None
    choice: str  # why this form: held-out errors, or the refusal of the other
    points: pd.DataFrame  # one row per value of the variable, sorted by it
    excluded: Excluded
    warnings: tuple[str, ...]
    curvature: tuple[float, float]  # quadratic term in log10 of the variable, p-value

    def summary(self) -> str:
        """The law, the one not chosen, and its judgement, in plain text of several lines."""
        law = self.law
        lines = [str(law)]
        other = self.saturating if law is self.pure else self.pure
        if other is not None:
            lines.append(f"  not chosen   {other}")
        low, high = law.compute.min(), law.compute.max()
        lines += [
            f"  form         {self.choice}",
            f"  fitted to    {len(law.compute)} points, {low:.3g} to {high:.3g} {law.unit} "
            f"({law.decades:.2f} decades)",
            f"  interval     {law.status.bootstrap}, {law.status.resamples} resamples",
            *conditions(law),
            f"  R2 (log-log) {law.r2:.4f}; residual {law.noise:.2%} of the loss",
        ]
        if law.holdout:
            h = law.holdout[-1]
            lines.append(
                f"  held out     the most {law.unit} ({h.compute:.3g}), predicted from the rest: "
                f"{h.predicted:.4f}, observed {h.actual:.4f} ({h.error:+.2%})"
            )
        if law.mixture is not None:
            lines += law.mixture.lines()
        coefficient, p_value = self.curvature
        if np.isfinite(p_value):
            shape = "flattens" if coefficient > 0 else "steepens"
            seen = f"the curve {shape}" if p_value < 0.05 else "none seen"
            lines.append(f"  curvature    {seen} (p = {p_value:.2g})")
        return "\n".join([*lines, *judged(self.excluded, self.warnings)])

    def prediction(self, at: float) -> str:
        """The loss at so many parameters or tokens, in a line of text."""
        return f"  predicts     {self.law.predict(at)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values only; what is missing is None."""
        coefficient, p_value = (float(v) if np.isfinite(v) else None for v in self.curvature)
        return {
            "law": self.law.to_json(), "pure": self.pure.to_json(),
            "saturating": None if self.saturating is None else self.saturating.to_json(),
            "selected": self.law.form, "choice": self.choice,
            "excluded": [{"rule": rule, "rows": count} for rule, count in self.excluded],
            "warnings": list(self.warnings),
            "curvature": {"coefficient": coefficient, "p_value": p_value},
        }  # fmt: skip


def judged(excluded: Excluded, warnings: tuple[str, ...]) -> list[str]:
    """The lines of what was left out and of what to beware of."""
    left_out = "; ".join(f"{count} rows: {rule}" for rule, count in excluded if count)
    return [
        f"  left out     {left_out or 'no row'}", *(f"  beware       {text}" for text in warnings),
    ]  # fmt: skip


def none_left(what: str, excluded: Excluded) -> NotIdentified:
    """The refusal when every row was left out."""
    counts = "; ".join(f"{count} rows: {rule}" for rule, count in excluded if count)
    return NotIdentified(f"no row is left with {what}: {counts or 'the table is empty'}")


def fit_variable(
    ladder: Ladder, *, form: str = "select", seed: int = 0, delta: float = DELTA,
    level: float = 0.95, resamples: int = RESAMPLES,
) -> VariableLaw:  # fmt: skip
    """L(N) or L(D): the smallest loss (mean over seeds) of each size, or number of tokens.

    ladder: of the variable "params" or "tokens", whose pinned floor and weights hold. form: of
    `laws.fit.select`.
    Raises NotIdentified when even the pure law cannot be determined, UserError on bad input.
    """
    variable, kept, excluded = ladder.variable, ladder.kept(), ladder.left_out()
    if variable not in UNITS:
        raise UserError(f"the ladder is of {variable!r}: make it of params or tokens")
    if kept.empty:
        raise none_left(f"a loss and {UNITS[variable]}", excluded)
    table = ladder.designs()
    best = table.loc[table.groupby(variable)["val_loss"].idxmin()].reset_index(drop=True)
    options = Options(
        groups=best["run_id"].tolist(), weights=of_points(best), delta=delta, level=level,
        resamples=resamples, seed=seed, unit=UNITS[variable],
    )  # fmt: skip
    x, loss = best[variable].to_numpy(float), best["val_loss"].to_numpy(float)
    law, pure, saturating, choice = select(x, loss, options, form, ladder.e)
    bend = curvature(x, loss, options.weights) if len(x) > 3 else (float("nan"), float("nan"))
    said = (
        _ample(best, variable, pure),
        *warnings_for(kept, best.assign(edge=False)),
        *doubts(pure),
    )
    return VariableLaw(law, pure, saturating, choice, best, excluded, said, bend)


def _ample(best: pd.DataFrame, variable: str, pure: PowerLaw) -> str:
    """What the law rests on: that the other variable was ample, which its residuals may deny."""
    other = "tokens" if variable == "params" else "params"
    text = f"a law of {UNITS[variable]} alone only as far as {UNITS[other]} were ample in every run"
    known = best[other].to_numpy(float)
    if np.isnan(known).all():
        return f"{text}; the table does not say how many there were"
    text += f"; the runs of these points have {np.nanmin(known):.3g} to {np.nanmax(known):.3g}"
    order = best[variable].to_numpy(float).argsort(kind="stable")
    there = np.isfinite(known[order])
    if there.sum() < MIN_RANKED or np.ptp(known[order][there]) == 0:
        return text
    from scipy.stats import spearmanr  # takes long to import

    rank = spearmanr(known[order][there], pure.residuals[there])
    if rank.statistic < 0 and rank.pvalue < 0.01:
        text += (
            f", and they were not: the fewer {UNITS[other]}, the more a run loses beside the pure "
            f"law (rank correlation {rank.statistic:.2f}); fit L(N, D) with --form parametric"
        )
    return text
