"""The law of rate and batch of anyone's runs or of a study's, with what to know before trusting it.

found = study_rates(rows)       # StudyRates: .law, .levels, .held, .warnings, .summary()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.power_law import finite
from scaling.analysis.laws.rates_fit import LEAST, RatesLaw, fit_rates, lost
from scaling.analysis.laws.rates_loss import Divergence, Levels
from scaling.analysis.questions.rate_doubts import (
    doubts,
    near_alike,
    said_batch,
    unlabelled,
    with_batch,
)  # fmt: skip
from scaling.analysis.schema import TOKEN_UNIT
from scaling.analysis.tables.units import numbers
from scaling.errors import UserError

if TYPE_CHECKING:
    import plotly.graph_objects as go

OCTAVES = (-2, -1, 1, 2)


@dataclass(frozen=True)
class HeldSize:
    """The largest size, predicted from the smaller ones.

    r2: of the loss of all its runs, those that diverged at their expected loss; r2_finite, rms (of
    log loss): of those that did not. octaves: rms of the best rate predicted against that of the
    lowest run.
    """

    n: float
    runs: int
    diverged: int
    r2: float
    r2_finite: float
    rms: float
    octaves: float

    def __str__(self) -> str:
        every = (
            f"; R2 {self.r2:.3f} of all, {self.diverged} diverged among them at their expected loss"
            if np.isfinite(self.r2) and self.diverged else ""
        )  # fmt: skip
        return (
            f"N = {self.n:.3g}, {self.runs} runs, predicted from the smaller sizes: R2 "
            f"{self.r2_finite:.3f} of those that did not diverge, rms {self.rms:.2%}{every}; the "
            f"lowest runs' rates {self.octaves:.2f} octaves (rms) from the rate predicted"
        )


@dataclass(frozen=True)
class StudyRates:
    """A law of rate and batch, the loss at and off the optimum, and how far to trust it."""

    law: RatesLaw
    levels: Levels
    divergence: Divergence | None
    held: HeldSize | None
    surface: str  # L(N, D) at the optimum, or why there is none
    warnings: tuple[str, ...]
    points: pd.DataFrame
    batch: str  # what is known of it, in words
    left_out: int  # rows: not decayed, not finished, or without a rate or counts

    def summary(self, unit: str = TOKEN_UNIT) -> str:
        """The law, its intervals and its judgement, in plain text."""
        law = self.law
        lines = [f"rates: {formula(law)}"]
        for name, (value, low, high) in law.exponents.items():
            lines.append(f"  {name:12s} exponent {value:+.3f} [{low:+.3f}, {high:+.3f}]")
        if law.shape.batch:
            value, low, high = law.parameter("along")
            lines.append(
                f"  {'lr ~ batch':12s} exponent {value:+.3f} [{low:+.3f}, {high:+.3f}] at one N, D"
            )
        n, d = float(law.cell_n.max()), float(law.cell_d[law.cell_n == law.cell_n.max()].max())
        lines.append(f"  at           {said(law, n, d)}")
        for of in ("rate", *(["batch"] if law.shape.batch else [])):
            costs = [(k, law.cost(k, of)) for k in OCTAVES]
            text = ", ".join(f"{k:+d}: {v:.2%} [{a:.2%}, {b:.2%}]" for k, (v, a, b) in costs)
            lines.append(f"  {f'{of} missed':12s} by octaves, share of the loss: {text}")
        lines += [
            f"  at optimum   {self.surface}",
            f"  fitted to    {law.runs} runs within {law.within:.0%} of their cell's best, "
            f"{law.cells} cells of one N and D; {law.far} farther, {law.diverged} diverged",
            f"  batch        {self.batch}",
            f"  curvature    {'moves with N and D' if law.smooth else 'the same in all cells'}; "
            f"noise {law.noise:.2%} of the loss",
            *(f"  {'' if i else 'neighbours':12s} {text}" for i, text in enumerate(_moves(law))),
            f"  held out     {self.held or 'too few sizes to hold the largest out'}",
            f"  interval     {law.cells} cells, each left out in turn; Student's t",
        ]  # fmt: skip
        if self.left_out:
            lines.append(
                f"  left out     {self.left_out} rows: not decayed, not finished, copies, of data "
                "seen before, or without a rate, N or D"
            )
        if self.divergence is not None:
            middle = float(np.exp2(self.divergence.middle[1]))
            at = self.divergence.threshold(middle, n, d)
            if np.isfinite(at):
                lines.append(
                    f"  diverges     half of the runs at rate {2.0**at:.3g}, N = {n:.3g}, "
                    f"D = {d:.3g}"
                )
        return "\n".join([*lines, *(f"  beware       {text}" for text in self.warnings)])

    def figure(self) -> go.Figure:
        """The loss off the best rate in every cell, and the best rates beside the law."""
        from scaling.analysis.figures.rates import rate_figure

        return rate_figure(self.law, self.points)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `rates_of_json` makes the law again."""
        law = self.law
        exponents = {k: {"value": v, "interval": [a, b]} for k, (v, a, b) in law.exponents.items()}
        data = {
            "terms": {k: list(v) for k, v in law.shape.terms.items()}, "axes": list(law.axes),
            "middle": law.middle, "theta": law.theta.tolist(), "left_out": law.left_out.tolist(),
            "cell_n": law.cell_n.tolist(), "cell_d": law.cell_d.tolist(),
            "level": law.level.tolist(), "together": law.together, "tried": dict(law.tried),
            "level_n": np.exp(self._logs(0)).tolist(), "level_d": np.exp(self._logs(1)).tolist(),
            "levels": np.exp(self.levels.log_level).tolist(),
            "surface": None if self.levels.surface is None else self.levels.surface.tolist(),
        }  # fmt: skip
        if self.divergence is not None:
            one = self.divergence
            data["divergence"] = {"slopes": one.slopes.tolist(), "middle": one.middle.tolist(),
                                  "loss": one.loss}  # fmt: skip
        numbers = ("within", "noise", "runs", "diverged", "far", "edges", "batch_edges",
                   "confidence")  # fmt: skip
        return {
            "form": "rates", "exponents": exponents, "surface": self.surface,
            "held_out": None if self.held is None else finite(vars(self.held)),
            "fit": {name: getattr(law, name) for name in numbers}, "data": data,
            "choices": [finite(vars(one)) for one in law.choices],
        }  # fmt: skip

    def _logs(self, which: int) -> np.ndarray:
        if not self.levels.varies[which]:
            return np.full(len(self.levels.log_level), self.levels.middle[which])
        column = 1 + sum(self.levels.varies[:which])
        return self.levels.design[:, column] + self.levels.middle[which]


def said(law: RatesLaw, n: float, d: float) -> str:
    """The best rate and batch of a size and number of tokens, in words."""
    one = law.best(n, d)
    text = f"N = {n:.3g}, D = {d:.3g}: rate {one.lr:.3g} [{one.lr_interval[0]:.3g}, "
    text += f"{one.lr_interval[1]:.3g}]"
    if law.shape.batch:
        text += (
            f", batch {one.batch:.3g} [{one.batch_interval[0]:.3g}, {one.batch_interval[1]:.3g}]"
        )
    return text + (f" ({one.outside})" if one.outside else "")


def formula(law: RatesLaw) -> str:
    def one(quantity: str, name: str) -> str:
        moves = " ".join(
            f"{axis}^{law.theta[law.shape.names.index(f'{quantity}_{axis}')]:.3f}"
            for axis in law.shape.terms[quantity]
        )
        log2 = law.theta[law.shape.names.index(quantity)] - sum(
            law.theta[law.shape.names.index(f"{quantity}_{axis}")] * law.middle[axis]
            for axis in law.shape.terms[quantity]
        )
        return f"{name} = {2.0**log2:.4g} {moves}"

    return ", ".join([one("rate", "lr"), *([one("batch", "batch")] if law.shape.batch else [])])


def _moves(law: RatesLaw) -> list[str]:
    """What the neighbourhood does to the exponents."""
    widths = sorted({c.within for c in law.choices if c.smooth == law.smooth})
    if len(widths) < 2:
        return [f"{law.within:.0%} alone"]
    out = [f"from {widths[0]:.0%} to {widths[-1]:.0%} of the best, chosen by cells left out:"]
    for name, (low, high) in law.moves.items():
        out.append(f"{name} {low:+.3f} to {high:+.3f}")
    return out


def _check_rates(rows: pd.DataFrame) -> None:
    rates = numbers(rows["lr"], thousands=True) if "lr" in rows else None
    if rates is None or np.isnan(rates.values).all():
        first = next(iter(rates.unread.values()), "") if rates is not None else ""
        raise UserError(
            f"--form rates: no rate is a number (the first is {first!r}): write plain numbers, or "
            "their logarithm in a column log2_lr or log10_lr"
            if first
            else "--form rates: the table has no column of the learning rate (lr, learning_rate, "
            "peak_lr); add one, a row a run"
        )


def _merge_alike(left: pd.DataFrame) -> list[str]:
    """Sizes, tokens and batches that hardly differ made one, in place; what to say of it."""
    said_ = list[str]()
    for column, what in (("n", "parameters"), ("d", "tokens")):
        left[column], merged = near_alike(left[column].to_numpy(), what)
        said_ += merged
    known = np.isfinite(left["batch"]) & (left["batch"] > 0)
    if known.any():
        near, merged = near_alike(left.loc[known, "batch"].to_numpy(), "batches")
        left.loc[known, "batch"] = near
        said_ += merged
    return said_


def rate_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs that count: n, d, lr, batch (NaN: not known), loss (inf: diverged), run_id.

    Of a study the last decayed point of each run of a sweep, every decayed point of its ladder.
    Raises UserError: no rates, or several parametrisations or settings, whose rates do not compare.
    """
    _check_rates(rows)
    status = rows["status"] if "status" in rows else pd.Series("finished", rows.index)
    diverged = status.eq("diverged")
    decayed = rows["decayed"].fillna(False).astype(bool) if "decayed" in rows else True
    kept = rows[(status.eq("finished") & decayed) | diverged]
    if "role" in kept:
        kept = kept[~kept["role"].isin(("repeat", "repeated"))]
    sweep = kept["role"].eq("lr_sweep") if "role" in kept else pd.Series(False, kept.index)
    if sweep.any():
        last = kept[sweep].sort_values(["run_id", "tokens"]).groupby("run_id").tail(1)
        kept = pd.concat([last, kept[~sweep]]).sort_index()
    for column, what in (("parametrization", "parametrisations"),):
        if column in kept and kept[column].nunique() > 1:
            names = sorted(map(str, kept[column].dropna().unique()))
            raise UserError(
                f"--form rates: runs of several {what} ({', '.join(names)}), whose rates do not "
                f"compare: choose one, as in --where '{column} == \"{names[0]}\"'"
            )
    out = pd.DataFrame({
        "n": pd.to_numeric(kept["params"], errors="coerce"),
        "d": pd.to_numeric(kept["tokens"], errors="coerce"),
        "lr": numbers(kept["lr"], thousands=True).values,
        "batch": numbers(kept["batch_tokens"], thousands=True).values
        if "batch_tokens" in kept else np.nan,
        "loss": pd.to_numeric(kept["val_loss"], errors="coerce").astype(float),
        "seed": kept["seed"].astype(str) if "seed" in kept else "",
        "run_id": kept["run_id"].astype(str) if "run_id" in kept else "",
    })  # fmt: skip
    out.loc[kept["status"].eq("diverged") if "status" in kept else [], "loss"] = np.inf
    out["loss"] = out["loss"].fillna(np.inf)
    numbers_ = out[["n", "d", "lr"]].to_numpy(float)
    if not len(numbers_):
        raise UserError(
            f"--form rates: none of {len(rows)} rows is a finished, decayed run or one that "
            "diverged; look at the columns that were read"
        )
    usable = ((numbers_ > 0) & np.isfinite(numbers_)).all(axis=1)
    if not usable.any():
        first = ", ".join(f"{k} {v:g}" for k, v in zip(("N", "D", "lr"), numbers_[0], strict=True))
        raise UserError(
            "--form rates: no row has a rate, parameters and tokens that are all positive numbers "
            f"(the first: {first}); where the rate is a logarithm, call it log2_lr or log10_lr"
        )
    left: pd.DataFrame = out[usable].reset_index(drop=True)
    said_ = _merge_alike(left)
    left.attrs |= {"left_out": len(rows) - len(left), "merged": said_}
    return left


def study_rates(rows: pd.DataFrame) -> StudyRates:
    """The law of rate and batch of rows of a study or of `scaling.analysis.tables.read`.

    Every run of a size and number of tokens that was trained at several rates counts, not the best
    alone; runs at one rate (a ladder's) tell the loss at the optimum, less what their rate costs.
    Raises NotIdentified, UserError: as of `fit_rates` and `rate_points`.
    """
    table, lacking = with_batch(rate_points(rows))
    batch = _batch(table)
    law = _fit(table, batch)
    known, differs = said_batch(law, table)
    warnings = [*doubts(law), *table.attrs["merged"], *lacking, *unlabelled(table), *differs]
    levels, more = _levels(law, table)
    warnings += more
    gone = lost(table["loss"].to_numpy(), table["lr"].to_numpy(), _cells(table))
    columns = _columns(table, law.shape.batch)
    divergence = Divergence.of(columns, gone, table["loss"].to_numpy())
    surface = _surface(levels)
    points = _told(law, table, gone)
    return StudyRates(law, levels, divergence, _held(table, batch is not None), surface,
                      tuple(warnings), points, known, table.attrs["left_out"])  # fmt: skip


def _batch(table: pd.DataFrame) -> np.ndarray | None:
    batch = table["batch"].to_numpy(float)
    return batch if (np.isfinite(batch) & (batch > 0)).all() else None


def _fit(table: pd.DataFrame, batch: np.ndarray | None) -> RatesLaw:
    return fit_rates(table["n"], table["d"], table["lr"], table["loss"], batch)


def _cells(table: pd.DataFrame) -> np.ndarray:
    found: np.ndarray = table.groupby(["n", "d"]).ngroup().to_numpy()
    return found


def _columns(table: pd.DataFrame, with_batch: bool) -> np.ndarray:
    batch = table["batch"] if with_batch else np.ones(len(table))
    columns: np.ndarray = np.log2(np.column_stack([table["lr"], batch, table["n"], table["d"]]))
    return columns


def _levels(law: RatesLaw, table: pd.DataFrame) -> tuple[Levels, list[str]]:
    """Of the swept cells, and of others less what their rate costs, as far as the law tells it."""
    n, d, level = law.cell_n.tolist(), law.cell_d.tolist(), law.level.tolist()
    left = 0
    swept = set(zip(n, d, strict=True))
    finite_ = table[np.isfinite(table["loss"])]
    for (one_n, one_d), some in finite_.groupby(["n", "d"]):
        if (one_n, one_d) in swept:
            continue
        if law.outside(one_n, one_d) or some["lr"].nunique() >= LEAST:
            left += 1
            continue
        above = law.above(some["n"], some["d"], some["lr"], some["batch"])
        n.append(one_n)
        d.append(one_d)
        level.append(float(np.exp(np.mean(np.log(some["loss"]) - above))))
    said_ = [
        f"{left} sizes and numbers of tokens were trained at too few rates and lie beyond the "
        "sweep: what their rate costs is not told, and they take no part"
    ] * bool(left)
    levels = Levels.fitted(np.array(n), np.array(d), np.array(level), law.confidence)
    return levels, said_


def _surface(levels: Levels) -> str:
    """The law of the loss at the optimum, in words."""
    if levels.surface is None:
        power = " ".join(
            f"{name}^{slope:.4f}"
            for name, slope in zip(
                [n for n, use in zip("ND", levels.varies, strict=True) if use],
                levels.slopes[1:], strict=True,
            )
        )  # fmt: skip
        return f"L ~ {power or '1'}, between the cells; {levels.reason}"
    e, a, b, alpha, beta = levels.surface[0]
    return (
        f"L = {np.exp(e):.4g} + {np.exp(a):.4g} / N^{alpha:.4f} + {np.exp(b):.4g} / D^{beta:.4f}, "
        f"of {len(levels.log_level)} cells"
    )


def _told(law: RatesLaw, table: pd.DataFrame, gone: np.ndarray) -> pd.DataFrame:
    """Runs of the swept cells: n, d, lr, batch, loss, diverged, octaves from the best rate, percent
    above the cell's best, observed and by the law."""
    level = dict(zip(zip(law.cell_n, law.cell_d, strict=True), law.level, strict=True))
    out = table.assign(diverged=gone)
    best = [level.get(key, np.nan) for key in zip(out["n"], out["d"], strict=True)]
    out = out.assign(best=best)[np.isfinite(best)]
    at = law.at(out["n"], out["d"]) | {"lr": np.log2(out["lr"].to_numpy(float))}
    if law.shape.batch:
        at["batch"] = np.log2(out["batch"].to_numpy(float))
    u, v = law.shape.place(law.theta[None], at)
    above = law.shape.above(law.theta[None], at)[0][0]
    observed = 100 * (out["loss"] / out["best"] - 1)
    return out.assign(octaves=u[0], batch_octaves=v[0], above=observed.replace(np.inf, np.nan),
                      law=100 * np.expm1(np.minimum(above, 50.0))).drop(columns="best")  # fmt: skip


def _held(table: pd.DataFrame, with_batch: bool) -> HeldSize | None:
    """The largest size predicted from the others; None where these determine no law."""
    largest = table["n"].max()
    of_cell = table.groupby(["n", "d"])["lr"].transform("nunique")
    held = table[(table["n"] == largest) & (of_cell >= LEAST)]
    rest = table[table["n"] < largest * (1 - 1e-9)]
    if held.empty or rest["n"].nunique() < 2:
        return None
    try:
        law = _fit(rest, _batch(rest) if with_batch else None)
    except NotIdentified:
        return None
    levels, _ = _levels(law, rest)
    loss = held["loss"].to_numpy(float)
    gone = lost(loss, held["lr"].to_numpy(float), _cells(held))
    expected = np.exp(
        levels.predict(held["n"].to_numpy(), held["d"].to_numpy())[0]
        + np.minimum(law.above(held["n"], held["d"], held["lr"], held["batch"]), 10.0)
    )
    off = np.log(loss[~gone] / expected[~gone])
    every = float("nan")
    gone_rest = lost(rest["loss"].to_numpy(), rest["lr"].to_numpy(), _cells(rest))
    of_batch = law.shape.batch
    found = Divergence.of(_columns(rest, of_batch), gone_rest, rest["loss"].to_numpy())
    if found is not None and np.isfinite(found.loss) and np.isfinite(loss).all():
        p = found.probability(_columns(held, of_batch))
        every = _r2(loss, (1 - p) * np.minimum(expected, found.loss) + p * found.loss)
    lowest = held[~gone].loc[held[~gone].groupby("d")["loss"].idxmin()]
    best = [law.best(n, d).lr for n, d in zip(lowest["n"], lowest["d"], strict=True)]
    octaves = np.log2(lowest["lr"].to_numpy(float) / np.array(best))
    return HeldSize(
        float(largest), len(held), int(gone.sum()), every,
        _r2(loss[~gone], expected[~gone]), float(np.sqrt((off**2).mean())),
        float(np.sqrt((octaves**2).mean())),
    )  # fmt: skip


def _r2(observed: np.ndarray, expected: np.ndarray) -> float:
    total = float(((observed - observed.mean()) ** 2).sum())
    miss = observed - expected
    return 1 - float(miss @ miss) / total if total > 0 else float("nan")
