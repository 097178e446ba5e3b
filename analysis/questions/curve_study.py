"""The law of the loss curves of a table, and what it says of schedules that nobody ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.curve import (
    NAMES,
    Curve,
    CurveLaw,
    CurvePrediction,
    CurveStatus,
)
from scaling.analysis.laws.curve_fit import fit_curve
from scaling.analysis.laws.power_law import finite
from scaling.analysis.laws.schedule import Schedule, constant, cosine, wsd

COOLDOWNS = (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class StudyCurve:
    """A law and the schedules that it was asked about: `answers` by their name."""

    law: CurveLaw
    answers: dict[str, CurvePrediction]
    curves: tuple[str, ...]  # names

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before its predictions are used."""
        return self.law.warnings

    def summary(self) -> str:
        """The law, how sure it is, and the answers, in lines of text."""
        law = self.law
        lines = [str(law)]
        ends = ", ".join(
            f"{name} {law.parameters[name]:.3g} [{low:.3g}, {high:.3g}]"
            for name, (low, high) in law.ci.items()
        )
        lines.append(f"  {law.level:.0%} of       {ends}")
        lines.append(
            f"  fitted to    {law.rows} losses of {len(self.curves)} curves: "
            f"{', '.join(self.curves[:6])}{' ...' * (len(self.curves) > 6)}"
        )
        lines.append(
            f"  departs      by {law.misfit:.2%} of the loss over an eighth of a curve, a row by "
            f"{law.noise:.2%} about its curve"
        )
        if law.held_out:
            said = ", ".join(f"{name} {error:.2%}" for name, error in law.held_out.items())
            lines.append(f"  held out     predicted from the other curves, rms: {said}")
        else:
            lines.append("  held out     no curve: the others would not determine a law")
        for name, one in self.answers.items():
            lines.append(f"  at the end   {name}: {said_of(one)}")
        lines += [f"  beware       {text}" for text in self.warnings]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `law_of_json` makes the law again."""
        law = self.law
        return {
            "form": "curve",
            "parameters": law.parameters,
            "level": law.level,
            "interval": {name: list(ends) for name, ends in law.ci.items()},
            "objective": law.objective,
            "held_out": law.held_out,
            "curves": list(self.curves),
            "rows": law.rows,
            "status": finite(vars(law.status)),
            "data": {
                "theta": dict(zip(NAMES, law.theta.tolist(), strict=True)),
                "covariance": law.covariance.tolist(), "delta": law.delta, "top": law.top,
                "noise": law.noise, "misfit": law.misfit, "freedom": law.freedom,
                "longest": law.longest, "peaks": list(law.peaks),
            },
        }  # fmt: skip


def said_of(one: CurvePrediction, row: int = -1) -> str:
    """The loss of a row in words, or why there is none."""
    if one.refused:
        return f"no loss: {one.refused}"
    return (
        f"loss {one.loss[row]:.4f} [{one.low[row]:.4f}, {one.high[row]:.4f}], of one more run "
        f"[{one.run_low[row]:.4f}, {one.run_high[row]:.4f}]"
    )


def study_curves(curves: Sequence[Curve], **options: Any) -> StudyCurve:
    """The law of curves of one model, and its answers for schedules of their length and of twice
    that; options, errors: as of `fit_curve`."""
    law = fit_curve(curves, **options)
    peaked = max(curves, key=lambda c: (c.schedule.rate.max(), c.schedule.end))
    first = peaked.schedule
    seen = first.warm > first.step[0]  # the warm-up, by its rates
    warmup = first.warm if seen else first.step[0]
    lowest = min(c.schedule.rate[-1] / c.schedule.rate.max() for c in curves)
    longest, peak = law.longest, float(first.rate.max())
    asked: dict[str, Schedule] = {}
    for steps in (longest, 2 * longest):
        if warmup >= steps * (1 - max(COOLDOWNS)):
            continue
        asked[f"constant, {steps:g} steps"] = constant(steps, peak, warmup)
        asked[f"cosine to {lowest:.0%}, {steps:g} steps"] = cosine(steps, peak, warmup, lowest)
        for share in COOLDOWNS:
            name = f"last {share:.0%} down to {lowest:.0%}, {steps:g} steps"
            asked[name] = wsd(steps, peak, warmup, share, lowest)
    if not seen and warmup > 1:  # what came before the first row is as it was for the curves
        asked = {name: Schedule(s.step[1:], s.rate[1:]) for name, s in asked.items()}
    answers = {name: law.predict(schedule) for name, schedule in asked.items()}
    return StudyCurve(law, answers, tuple(curve.name for curve in curves))


def predictions(law: CurveLaw, curves: Sequence[Curve]) -> tuple[pd.DataFrame, list[str]]:
    """The loss along each schedule, a row a step, and a line each: its end, and the error where
    the curve has losses.

    run, step, lr, loss (predicted), low, high, run_low, run_high, observed, refused.
    """
    frames, texts = [], []
    for curve in curves:
        schedule = curve.schedule
        there = curve.step > 0
        at = curve.step[there] if there.any() else schedule.step[schedule.step > 0]
        one = law.predict(schedule, at)
        observed = curve.loss[there] if there.any() else np.full(len(at), np.nan)
        columns = {
            "run": curve.name, "step": at, "lr": schedule.at(at), "loss": one.loss, "low": one.low,
            "high": one.high, "run_low": one.run_low, "run_high": one.run_high,
            "observed": observed, "refused": one.refused,
        }  # fmt: skip
        frames.append(pd.DataFrame(columns))
        text = f"{curve.name}, step {at[-1]:g}: {said_of(one)}"
        after = at >= schedule.warm
        if not one.refused and np.isfinite(observed[after]).sum() > 2:
            off = np.abs(one.loss[after] / observed[after] - 1)
            scatter = ((observed[after] - observed[after].mean()) ** 2).sum()
            r2 = 1 - ((one.loss[after] - observed[after]) ** 2).sum() / max(scatter, 1e-300)
            text += (
                f"; observed {observed[-1]:.4f}; along the curve R2 {r2:.4f}, error "
                f"{off.mean():.2%} in the mean, {off.max():.2%} at worst"
            )
        texts.append(text)
    return pd.concat(frames, ignore_index=True), texts


def law_of_json(content: dict[str, Any], warnings: Sequence[str]) -> CurveLaw:
    """The law that `to_json` told of. Raises KeyError, TypeError, ValueError: damaged."""
    data, status = content["data"], content["status"]
    theta = np.array([float(data["theta"][name]) for name in NAMES])
    covariance = np.array(data["covariance"], dtype=float)
    low, high = (float(v) for v in data["peaks"])
    if covariance.shape != (len(NAMES),) * 2 or not np.isfinite(covariance).all():
        raise ValueError("covariance")
    numbers = {k: float(data[k]) for k in ("delta", "top", "noise", "misfit", "longest")}
    if not all(0 < v < 1e18 for v in numbers.values()) or not np.isfinite(theta).all():
        raise ValueError("a number of it")
    return CurveLaw(
        theta=theta, covariance=covariance,
        status=CurveStatus(
            bool(status["converged"]), float(status["gradient"]), int(status["starts"]),
            tuple(map(str, status["at_bound"])),
            {str(k): float(v) for k, v in status["told"].items()},
        ),
        objective=float(content["objective"]), level=float(content["level"]),
        freedom=max(1, int(data["freedom"])), peaks=(low, high), rows=int(content["rows"]),
        held_out={str(k): float(v) for k, v in content["held_out"].items()},
        warnings=tuple(warnings), **numbers,
    )  # fmt: skip
