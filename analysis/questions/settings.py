"""Settings swept together with the learning rate: which is best, and which are not told apart.

A setting is a value of some numbers of `train` (weight decay, batch, betas). Each is judged by the
mean over the proxy models of the loss at its own best rate. Numbers only, of the rows of the runs,
so that the sweep that chooses and the report that reads find the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from scaling.analysis.questions.best_rate import NEIGHBOURHOOD, Trial, vertex_between
from scaling.analysis.questions.transfer import learning_rate_points
from scaling.analysis.schema import TOKEN_UNIT, parsed

LEVEL = 0.95  # of all verdicts of a sweep together
_IN_SHAPE = re.compile(r"(?:^|-)(\w+=[^,]+(?:,\w+=[^,]+)*)$")  # of `learning_rate_points`


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings beside one another.

    table: a row a setting, the best first: setting (words), its values (a column each), log2_lr
    (near which its best rate lies), val_loss (mean over the proxies there; inf: it diverged), above
    (the best), margin (beyond which it is told apart; NaN: not known), verdict ("taken", "not told
    apart", "worse", "not known"), rates (how many were tried), runs.
    seeds: of each point. noise: standard deviation of a setting's loss against another's; NaN.
    """

    table: pd.DataFrame
    seeds: int
    noise: float

    @property
    def taken(self) -> str:
        """The setting with the lowest loss, in words."""
        return str(self.table.setting.iloc[0])

    def lines(self, unit: str = TOKEN_UNIT) -> Iterator[str]:
        """What was found, and how sure it is; losses in `unit`."""
        table, best = self.table, self.table.iloc[0]
        yield (
            f"setting {said(best.setting)}: lowest of {len(table)}, {best.val_loss:.4f} {unit} "
            f"near rate 2^{best.log2_lr:.2f}, mean over the proxies"
        )
        count = {verdict: int((table.verdict == verdict).sum()) for verdict in VERDICTS}
        if count["not known"]:
            yield (
                "  warning: one seed, and too few rates to judge by: whether the others are worse "
                "is not known; lr.seeds: 3 would tell"
            )
        alike = table[table.verdict == "not told apart"]
        if len(alike):
            yield (
                f"  not told apart from {len(alike)} of the others (they lie within "
                f"{alike.margin.max():.2g}, 95% for all together): {_spans(alike)}"
            )
        worse = table[table.verdict == "worse"]
        if len(worse):
            yield f"  worse: {len(worse)}, by {worse.above.min():.2g} or more"
        if table.rates.max() < 3 <= len(table):
            yield (
                "  most settings were tried at one rate: what is said of them is of setting and "
                "rate together"
            )
        if self.seeds == 1 and not math.isnan(self.noise):
            yield (
                "  one seed: the noise is that of the losses about their parabolas; another seed "
                "may move settings by more (lr.seeds)"
            )


VERDICTS = ("taken", "not told apart", "worse", "not known")


def said(setting: str) -> str:
    """Words for people."""
    return setting.replace("=", " ").replace(",", ", ")


def _spans(table: pd.DataFrame) -> str:
    """Few settings by name; of many the ends of each value."""
    if len(table) <= 4:
        return "; ".join(map(said, table.setting))
    names = parsed(table.setting.iloc[0])
    return ", ".join(f"{n} {table[n].min():g} to {table[n].max():g}" for n in names)


def compare(rows: pd.DataFrame) -> Settings | None:
    """The settings of a study's sweep, the best first; None where none were swept.

    A setting's loss is that at its own best rate (the vertex of one parabola through all proxies;
    the lowest rate tried where there is none), by a parabola of each proxy and seed, averaged over
    them. With several seeds its noise is the interaction of setting and seed (of the better half,
    of more than eight settings), else the scatter about the parabolas, of all settings together. It
    is told apart from the best where it is above by more than Student's t at LEVEL, shared among
    all comparisons (Bonferroni): the truly best one is called worse in at most 5% of sweeps.
    """
    points = learning_rate_points(rows)
    found = points["shape"].str.extract(_IN_SHAPE, expand=False)
    points = points.assign(setting=found)[found.notna()]
    if points.empty:
        return None
    members = points[["layers", "d"]].drop_duplicates().shape[0]
    seeds = int(points.seed.nunique())
    judged = [_judge(str(s), one, members, seeds) for s, one in points.groupby("setting")]
    judged.sort(key=lambda one: (one.loss, one.setting))
    usable = [one for one in judged if math.isfinite(one.loss)]
    variances, freedom, noise = _noise(usable, seeds)
    records = []
    for k, one in enumerate(judged):
        above = one.loss - judged[0].loss if math.isfinite(one.loss) else math.inf
        margin = math.nan
        if freedom and k and math.isfinite(one.loss):
            critical = float(stdtrit(freedom, 1 - (1 - LEVEL) / max(1, len(usable) - 1)))
            margin = critical * math.sqrt(variances[k] + variances[0])
        verdict = "taken"
        if k:
            verdict = "worse" if math.isinf(above) or above > margin else "not told apart"
            if math.isnan(margin) and not math.isinf(above):
                verdict = "not known"
        records.append(
            {"setting": one.setting, **parsed(one.setting), "log2_lr": one.log2_lr,
             "val_loss": one.loss, "above": above, "margin": margin, "verdict": verdict,
             "rates": one.rates, "runs": one.runs}
        )  # fmt: skip
    return Settings(pd.DataFrame(records), seeds, noise)


@dataclass(frozen=True)
class _Judged:
    setting: str
    log2_lr: float
    by_seed: tuple[float, ...]  # mean loss over the proxies at its best rate; inf: diverged
    leverage: float  # variance of that mean, of one seed, over that of a loss
    rss: float
    freedom: int
    rates: int
    runs: int

    @property
    def loss(self) -> float:
        return float(np.mean(self.by_seed))


def _judge(setting: str, points: pd.DataFrame, members: int, seeds: int) -> _Judged:
    x, y = points.log2_lr.to_numpy(float), points.val_loss.fillna(math.inf).to_numpy(float)
    model = points.groupby(["layers", "d"]).ngroup().to_numpy()
    seed = points.groupby("seed").ngroup().to_numpy()
    rates = np.unique(x)
    tried = len(rates), len(points)
    means = {
        rate: float(y[x == rate].mean())
        for rate in rates.tolist()
        if (x == rate).sum() == members * seeds and np.isfinite(y[x == rate]).all()
    }
    if not means:
        return _Judged(setting, math.nan, (math.inf,) * seeds, 1.0, 0.0, 0, *tried)
    anchor = min(means, key=means.__getitem__)
    trials = [Trial(*one) for one in zip(model.tolist(), x.tolist(), y.tolist(), strict=True)]
    vertex = None if anchor in (rates[0], rates[-1]) else vertex_between(trials, anchor)[0]
    at = anchor if vertex is None else min(max(vertex, anchor - 0.5), anchor + 0.5)
    values = np.zeros((seeds, members))
    leverage, rss, freedom = 0.0, 0.0, 0
    for r, m in np.ndindex(values.shape):
        mine = (seed == r) & (model == m)
        values[r, m], weight, squares, free = _at(x[mine], y[mine], anchor, at)
        leverage, rss, freedom = leverage + weight, rss + squares, freedom + free
    share = leverage / (seeds * members**2)
    return _Judged(setting, at, tuple(values.mean(1).tolist()), share, rss, freedom, *tried)


def _at(x: np.ndarray, y: np.ndarray, anchor: float, at: float) -> tuple[float, float, float, int]:
    """Loss at a rate by a parabola of the losses near the anchor: value, leverage, sum of squares,
    degrees of freedom; the loss at the anchor where too few points hold one."""
    near = (np.abs(x - anchor) <= NEIGHBOURHOOD) & np.isfinite(y)
    if near.sum() >= 4:
        design = np.vander(x[near] - at, 3, increasing=True)
        inverse = np.linalg.inv(design.T @ design)
        fitted = inverse @ design.T @ y[near]
        if fitted[2] > 0:
            residual = y[near] - design @ fitted
            squares = float(residual @ residual)
            return float(fitted[0]), float(inverse[0, 0]), squares, int(near.sum()) - 3
    return float(y[x == anchor][0]), 1.0, 0.0, 0


def _noise(usable: list[_Judged], seeds: int) -> tuple[list[float], int, float]:
    """Variance of each setting's loss, degrees of freedom (0: not known), and a typical error."""
    unknown = ([math.nan] * len(usable), 0, math.nan)
    if len(usable) < 2:
        return unknown
    if seeds > 1:
        few = usable if len(usable) <= 8 else usable[: len(usable) // 2]
        table = np.array([one.by_seed for one in few])
        residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        freedom = (len(few) - 1) * (seeds - 1)
        variance = float((residual**2).sum()) / freedom / seeds
        return [variance] * len(usable), freedom, math.sqrt(2 * variance)
    freedom = sum(one.freedom for one in usable)
    if not freedom:
        return unknown
    variance = sum(one.rss for one in usable) / freedom
    variances = [variance * one.leverage for one in usable]
    return variances, freedom, math.sqrt(2 * float(np.mean(variances)))
