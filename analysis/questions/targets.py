"""What is best for which target: the loss, the accuracy of a probe, tracking.

    for target in targets(rows, {"probe_top1": probes}): print(target.summary())

Each target has sizes of its own that are best for a budget (arXiv 2511.08704 finds so of pixels).
And two steps lead from compute to a quality: the law of the loss, and the error as a function of
the loss alone, which falls from chance to a floor along a logistic curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from scaling.analysis.laws.fit import RESAMPLES, NotIdentified
from scaling.analysis.laws.form_fit import fit_form
from scaling.analysis.laws.form_law import FormLaw
from scaling.analysis.laws.formulas import Form
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.questions.doubts import warnings_for
from scaling.analysis.questions.isoflop import MIN_BUDGETS, minima, size_laws
from scaling.analysis.questions.quality import errors_of
from scaling.analysis.questions.size_law import SizeLaw
from scaling.analysis.schema import loss_unit
from scaling.analysis.tables.ladder import Ladder

LOSS = "loss"
# Error against loss (in nats): chance far above M, a floor E far below it.
CURVES = {
    "to a floor": "E + (X - E) / (1 + exp(k * (M - loss)))",
    "to none": "X / (1 + exp(k * (M - loss)))",
}
STEEP = (0.05, 200.0)  # k, one over nats
BEYOND = 3.0  # nats beyond the runs' losses where M may lie
BY_CHANCE = 0.05  # probability (F test) above which sizes explain no more than chance does
LEFT = 0.1  # of the spread of what the curve leaves, that sizes explain: the loss is not enough


@dataclass(frozen=True, eq=False)
class Target:
    """One target of a study."""

    name: str  # "loss", or of `quality.errors_of`
    rows: pd.DataFrame = field(repr=False)  # whose val_loss is the target's
    sizes: tuple[SizeLaw, SizeLaw] | None  # N* and D* = k C^p, by parabolas
    refusal: str  # why there are none
    by_loss: FormLaw | None = None  # the error as a function of the loss; None of the loss itself
    by_loss_refusal: str = ""
    warnings: tuple[str, ...] = ()

    def lines(self, at: float) -> list[str]:
        """What is said of it, N* and D* at so many MACs."""
        out = [self.name]
        if self.sizes is None:
            out.append(f"  best sizes   none: {self.refusal}")
        else:
            for one in self.sizes:
                low, high = one.interval(at)
                value = "" if not np.isfinite(one.exponent) else f"; {one(at):.3g} at {at:.3g} MACs"
                if value and np.isfinite(low):
                    value += f" [{low:.3g}, {high:.3g}]"
                out.append(f"  best sizes   {one}{value}")
        if self.by_loss is not None:
            law = self.by_loss
            ends = ", ".join(f"{name} {v:.4g} {_ends(law, name)}" for name, v in law.values.items())
            out += [
                f"  by the loss  error = {law.form.formula}; {ends}",
                f"               R2 {law.r2:.3f}, residual {law.noise:.2%}, "
                f"{len(law.loss)} points; held out: {law.held or 'too few points'}",
            ]
        elif self.by_loss_refusal:
            out.append(f"  by the loss  no curve: {self.by_loss_refusal}")
        return [*out, *(f"  beware       {text}" for text in self.warnings)]

    def through(self, law: PowerLaw, compute: float) -> tuple[float, float, float]:
        """The error at so much compute by both steps, with the interval that both together leave.

        law: of the loss, in MACs. Resamples of the two are paired at random, as if independent.
        Raises NotIdentified: no curve of this target.
        """
        if self.by_loss is None:
            raise NotIdentified(f"{self.name}: no curve: {self.by_loss_refusal}")
        curve = self.by_loss
        e, log_a, b = law.samples.T
        losses = e + np.exp(log_a + b * (np.log(compute) - law.centre))
        theta = curve.samples[np.arange(len(losses)) % len(curve.samples)]
        drawn = np.array(
            [curve.form.value({"loss": one[None]}, t[None])[0, 0]
             for one, t in zip(losses, theta, strict=True)]
        )  # fmt: skip
        low, high = np.quantile(drawn, ((1 - law.level) / 2, (1 + law.level) / 2))
        return float(curve(loss=float(law(compute)))), float(low), float(high)


def targets(
    rows: pd.DataFrame, tables: Mapping[str, pd.DataFrame], *, seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Target]:  # fmt: skip
    """The loss, and every error of what the models learned.

    Args:
        rows: of the study.
        tables: metric of `quality.METRICS` -> the table that it is of.
        seed, resamples: of the intervals.
    """
    own = rows[rows.decayed & (rows.role == "ladder")]
    loss = _target(f"{LOSS} ({loss_unit(own.tokenizer)})", own, seed, resamples)
    found = [loss]
    for metric, table in tables.items():
        for name, one in errors_of(rows, table, metric):
            ladder = one[one.role == "ladder"].reset_index(drop=True)
            target = _target(name, ladder, seed, resamples)
            found.append(replace(target, warnings=(*target.warnings, *_absent(ladder, len(own)))))
    return found


def _absent(rows: pd.DataFrame, points: int) -> list[str]:
    """Points of the ladder that a target lacks, or has no positive error at."""
    out = []
    if len(rows) < points:
        out.append(
            f"{len(rows)} of the ladder's {points} points have this error: the loss beside it is "
            "of all"
        )
    bad = rows[~(rows["val_loss"] > 0)]
    if len(bad):
        first = f"{bad['run_id'].iloc[0]}: {bad['val_loss'].iloc[0]:g}"
        out.append(
            f"{len(bad)} of {len(rows)} points have no error above 0 ({first}), and take no part: "
            "where these are the best runs, best sizes are too far from theirs"
        )
    return out


def _target(name: str, rows: pd.DataFrame, seed: int, resamples: int) -> Target:
    """Noise is what the smooth loss leaves: by the files that are tested, which are the same for
    all models, sizes do not differ."""
    sizes, refusal = None, ""
    try:
        n, d = size_laws(rows, methods=("parabola",), seed=seed, resamples=resamples)
        sizes = (n, d)
    except NotIdentified as why:
        refusal = str(why)
    if "chance" not in rows:
        return Target(name, rows, sizes, refusal, warnings=_mixed(rows))
    return Target(name, rows, sizes, refusal, *_by_loss(rows, seed, resamples))


def _mixed(rows: pd.DataFrame) -> tuple[str, ...]:
    """What speaks against one law of these rows, for every target alike."""
    ladder = Ladder.of(rows)
    return warnings_for(ladder.kept(), ladder.cells().assign(edge=False))


def _by_loss(
    rows: pd.DataFrame, seed: int, resamples: int
) -> tuple[FormLaw | None, str, tuple[str, ...]]:
    """The curve of least held-out error, or why there is none, and what speaks against it."""
    loss, error = rows["loss"].to_numpy(float), rows["val_loss"].to_numpy(float)
    chance = float(rows["chance"].mean())
    top = 1.0 if np.isnan(chance) else chance
    if len(rows) < 4 or not np.ptp(loss) > 0:
        return None, f"{len(rows)} points: a curve needs 4 of several losses", ()
    if not (error > 0).all():
        bad = rows[~(error > 0)]
        return None, (
            f"{len(bad)} of {len(rows)} points have no error above 0 ({bad['run_id'].iloc[0]}: "
            f"{bad['val_loss'].iloc[0]:g}): the curve is of its logarithm"
        ), ()  # fmt: skip
    bounds = {
        "E": (0.0, float(error.min())), "X": (top, top), "k": STEEP,
        "M": (float(loss.min()) - BEYOND, float(loss.max()) + BEYOND),
    }  # fmt: skip
    if np.isnan(chance):  # of tracking nobody knows what none would have
        bounds["X"] = (float(error.max()), 1.0)
    fits, refused = list[FormLaw](), list[str]()
    for name, formula in CURVES.items():
        form = Form(name, formula, {p: b for p, b in bounds.items() if p != "E" or "E" in formula})
        try:
            fits.append(
                fit_form(
                    form, {"loss": loss}, error, groups=rows["run_id"].tolist(),
                    order=rows["macs_total"].to_numpy(float), seed=seed, resamples=resamples,
                )
            )  # fmt: skip
        except NotIdentified as why:
            refused.append(str(why))
    if not fits:
        return None, "; ".join(refused), ()
    best = min(fits, key=lambda law: np.inf if law.held is None else law.held.rms)
    return best, "", (*best.doubts, *_by_size(rows, best))


def _by_size(rows: pd.DataFrame, curve: FormLaw) -> tuple[str, ...]:
    """Whether sizes explain what the loss leaves: then the error is no function of it alone."""
    left = pd.Series(curve.residuals).groupby(rows["params"].to_numpy())
    if left.ngroups < 2 or left.ngroups == len(rows):
        return ()
    rest = (pd.Series(curve.residuals) - left.transform("mean")).to_numpy()
    count, groups = len(rest), left.ngroups
    within = float(rest @ rest) / (count - groups)
    total = float(curve.residuals @ curve.residuals) / max(count - curve.form.free, 1)
    share = 1 - within / total if total > 0 else 0.0
    between = (float(curve.residuals @ curve.residuals) - float(rest @ rest)) / (groups - 1)
    chance = float(fdtrc(groups - 1, count - groups, between / within)) if within > 0 else 0.0
    if share < LEFT or chance > BY_CHANCE:
        return ()
    means = left.mean()
    return (
        f"at one loss sizes differ: {share:.0%} of what the curve leaves is of the size "
        f"({means.idxmin():.3g} parameters are {-means.min():.1%} better than it, "
        f"{means.idxmax():.3g} {means.max():.1%} worse): the loss alone does not tell",
    )


def _ends(law: FormLaw, name: str) -> str:
    return "given" if name in law.given else law.interval(name)


def apart(one: Target, other: Target, at: float) -> list[str]:
    """Whether their best sizes grow alike, and are the same at so many MACs.

    Intervals of differences from those of their parts, taken as independent (MOVER: Zou and Donner
    2008).
    """
    if one.sizes is None or other.sizes is None:
        return []
    mine, theirs = one.sizes[0], other.sizes[0]
    pairs = [
        ("exponents of N*", theirs.exponent - mine.exponent,
         _mover(theirs.exponent, theirs.exponent_interval, mine.exponent, mine.exponent_interval)),
    ]  # fmt: skip
    if not np.isfinite([mine.exponent, theirs.exponent]).all():
        return []
    logs = [np.log(size(at)) for size in (theirs, mine)]
    ends = [np.log(size.interval(at)) for size in (theirs, mine)]
    ratio = _mover(float(logs[0]), tuple(ends[0]), float(logs[1]), tuple(ends[1]))
    pairs.append((f"log N* at {at:.3g} MACs", float(logs[0] - logs[1]), ratio))
    out = []
    for what, difference, (low, high) in pairs:
        if not np.isfinite([low, high]).all():
            out.append(f"{what}: {difference:+.3g}, no interval")
            continue
        verdict = "told apart" if low > 0 or high < 0 else "not told apart"
        out.append(f"{what}: {difference:+.3g} [{low:+.3g}, {high:+.3g}], {verdict}")
    return out


def _mover(
    a: float, a_ends: tuple[float, ...], b: float, b_ends: tuple[float, ...]
) -> tuple[float, float]:
    low = a - b - float(np.hypot(a - a_ends[0], b_ends[1] - b))
    high = a - b + float(np.hypot(a_ends[1] - a, b - b_ends[0]))
    return low, high


def points(found: list[Target], *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Each target's best size at each budget, by the parabola: target, budget_macs, macs_total,
    params, params_low, params_high. Budgets without a minimum inside are left out."""
    parts = []
    for one in found:
        try:
            table = minima(one.rows, seed=seed, resamples=resamples)
        except NotIdentified:
            continue
        parts.append(table[(table.method == "parabola") & table.accepted].assign(target=one.name))
    columns = ["target", "budget_macs", "macs_total", "params", "params_low", "params_high"]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def summary(found: list[Target]) -> str:
    """All targets in plain text, and each beside the loss, in the middle of the runs' compute,
    where the best sizes are known best."""
    at = float(np.exp(np.log(found[0].rows["macs_total"].to_numpy(float)).mean()))
    lines = [line for one in found for line in one.lines(at)]
    for other in found[1:]:
        lines += [f"{other.name} beside the {LOSS}: {text}" for text in apart(found[0], other, at)]
    if all(one.sizes is None or not np.isfinite(one.sizes[0].exponent) for one in found):
        lines.append(f"no target has a law of its best size: it needs {MIN_BUDGETS} budgets")
    return "\n".join(lines)
