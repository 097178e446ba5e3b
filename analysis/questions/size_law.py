"""N* = k C^p and D* = k C^p by one method, and the laws of all methods side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.parametric_law import ParametricLaw
from scaling.analysis.laws.value import Value
from scaling.errors import UserError

METHODS = {
    "best run": "1 best run of each budget",
    "envelope": "1 runs of the envelope",
    "hull": "1 runs of the lower hull",
    "parabola": "2 parabola at each budget",
    "interpolation": "2 interpolation between sizes",
    "L(N, D)": "3 L(N, D)",
}
OF = {"params": "N*", "tokens": "D*"}


@dataclass(frozen=True)
class SizeLaw:
    """N* = k C^p, or D* = k C^p, C in MACs, by one method. Call it with a budget."""

    method: str  # a key of METHODS
    of: str  # "params" (N*) or "tokens" (D*)
    exponent: float
    value: float  # logarithm of N* or D* at `middle`
    middle: float  # log MACs
    level: float
    budgets: int  # or points of the frontier, or runs of L(N, D)
    refused: str  # why there is no law, or no interval; "" where there are both
    # Estimate less truth, of `value` and of the exponent: (R, 2).
    missed: np.ndarray | None = field(repr=False, default=None)
    surface: ParametricLaw | None = field(repr=False, default=None)

    def __call__(self, macs: Value) -> Value:
        """Parameters, or tokens, at a budget."""
        given = np.asarray(macs, float)
        if not (np.isfinite(given) & (given > 0)).all():
            raise UserError(f"macs is {macs}: give a positive number of MACs")
        with np.errstate(over="ignore", under="ignore"):
            best: Value = np.exp(self._log(given))
        return best

    def _log(self, macs: float | np.ndarray) -> np.ndarray:
        log_best: np.ndarray = self.value + self.exponent * (np.log(macs) - self.middle)
        return log_best

    @property
    def coefficient(self) -> float:
        """k: parameters or tokens at one MAC."""
        return float(self(1.0))

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """NaN where `refused` says why there is none."""
        if self.surface is not None:
            low, high = self.surface.ci["size_exponent"]
            return (low, high) if self.of == "params" else (1 - high, 1 - low)
        return self._interval(self.exponent, (0.0, 1.0))

    def interval(self, macs: float) -> tuple[float, float]:
        """Of the value at a budget; NaN where `refused` says why there is none."""
        self(macs)  # refuses what is no budget
        if self.surface is not None:
            best = self.surface.optimum(macs)
            return best.n_interval if self.of == "params" else best.d_interval
        weights = (1.0, float(np.log(macs)) - self.middle)
        with np.errstate(over="ignore", under="ignore"):
            low, high = np.exp(self._interval(float(self._log(macs)), weights))
        return float(low), float(high)

    @property
    def coefficient_interval(self) -> tuple[float, float]:
        return self.interval(1.0)

    def _interval(self, estimate: float, weights: tuple[float, float]) -> tuple[float, float]:
        if self.missed is None:
            return float("nan"), float("nan")
        tails = (1 + self.level) / 2, (1 - self.level) / 2
        low, high = estimate - np.quantile(self.missed @ np.array(weights), tails)
        # A bias beyond the noise pushes the estimate out of its own interval, which is stretched
        # to it.
        return min(float(low), estimate), max(float(high), estimate)

    def __str__(self) -> str:
        name = OF[self.of]
        if not np.isfinite(self.exponent):
            return f"{name}: no law by {self.method}: {self.refused}"
        low, high = self.exponent_interval
        text = f"{name} = {self.coefficient:.4g} C^{self.exponent:.4f}"
        if not np.isfinite(low):
            return f"{text} (C in MACs), {self.refused}"
        try:
            k_low, k_high = self.coefficient_interval
        except NotIdentified as refusal:
            return (
                f"{text} (C in MACs), {self.level:.0%} [{low:.4f}, {high:.4f}] of the exponent; no "
                f"interval of the coefficient: {refusal}"
            )
        return (
            f"{text} (C in MACs), {self.level:.0%} [{low:.4f}, {high:.4f}] of the exponent, "
            f"[{k_low:.3g}, {k_high:.3g}] of the coefficient"
        )


def side_by_side(laws: list[SizeLaw], macs: float) -> pd.DataFrame:
    """One row a method; columns of `approaches`."""
    records: dict[str, dict[str, Any]] = {}
    for law in laws:
        row = records.setdefault(law.method, {"approach": METHODS[law.method]})
        known = np.isfinite(law.exponent)
        nothing = (float("nan"), float("nan"))
        refused = law.refused
        asked: tuple[tuple[str, float, Callable[[SizeLaw], tuple[float, float]]], ...] = (
            (f"{law.of}_exponent", law.exponent, lambda one: one.exponent_interval),
            (f"{law.of}_coefficient", law.coefficient, lambda one: one.coefficient_interval),
            (law.of, float(law(macs)), lambda one: one.interval(macs)),
        )
        for key, value, interval in asked:
            low, high = nothing
            try:
                low, high = interval(law) if known else nothing
            except NotIdentified as refusal:  # of one number alone
                refused = f"no interval of {key}: {refusal}"
            row |= {key: value, f"{key}_low": low, f"{key}_high": high}
        row |= {"macs": macs, "budgets": law.budgets, "refused": row.get("refused") or refused}
    return pd.DataFrame(list(records.values()))


def summary(found: pd.DataFrame, *, level: float = 0.95) -> str:
    """`approaches` as text: N* = k C^p, then D* = k C^p, a line a method."""
    macs = float(found["macs"].iloc[0])
    lines = list(found.attrs.get("notes", ()))
    for of, name in OF.items():
        unit = "parameters" if of == "params" else "tokens"
        lines.append(
            f"{name} = k C^p in {unit}, C in MACs, [{level:.0%} intervals]; {name} at {macs:.3g} "
            "MACs"
        )
        for row in found.to_dict("records"):
            lines.append(f"  {row['approach']:31s}{_line(row, of)}")
    return "\n".join(lines)


def _line(row: Mapping[Hashable, Any], of: str) -> str:
    if not np.isfinite(row[f"{of}_exponent"]):
        return f"no law: {row['refused']}"
    parts = []
    for label, key, digits in (("p", f"{of}_exponent", ".4f"), ("k", f"{of}_coefficient", ".3g"),
                               (OF[of], of, ".3g")):  # fmt: skip
        text = f"{label} {row[key]:{digits}}"
        if np.isfinite(row[f"{key}_low"]):
            text += f" [{row[f'{key}_low']:{digits}}, {row[f'{key}_high']:{digits}}]"
        parts.append(text)
    return "  ".join(parts) + (f"; {row['refused']}" if row["refused"] else "")


def minima_text(minima: pd.DataFrame) -> str:
    """`scaling.analysis.questions.isoflop.minima` as text: a line a budget and method."""
    lines = []
    for budget, group in minima.groupby("budget_macs"):
        first = group.iloc[0]
        lines.append(f"{budget:.4g} MACs, {first['sizes']} sizes")
        for row in group.to_dict("records"):
            text, reason = f"  {row['method']:15s}", row["reason"]
            if not row["accepted"]:
                text, reason = f"{text}no optimum: {reason}", ""
            else:
                text += f"N* {row['params']:.3g}"
                if np.isfinite(row["params_low"]):
                    text += f" [{row['params_low']:.3g}, {row['params_high']:.3g}]"
                text += f"  D* {row['tokens']:.3g}  loss {row['val_loss']:.4f}"
            lines.append("; ".join(part for part in (text, reason) if part))
    return "\n".join(lines)
