"""A law of rate and batch out of its file, and what it says of points that nobody has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.rates import Shape
from scaling.analysis.laws.rates_fit import Choice, RatesLaw
from scaling.analysis.laws.rates_loss import REACH, Divergence, Levels
from scaling.analysis.questions.rate_study import formula, said


@dataclass(frozen=True)
class SavedRates:
    """A law of rate and batch that was loaded."""

    law: RatesLaw
    levels: Levels
    divergence: Divergence | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"rates: {formula(self.law)}"]
        return "\n".join([*lines, *(f"  beware       {text}" for text in self.warnings)])

    def predict(self, points: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The best rate and batch, and the loss at the point's own rate and batch, or at the best.

        points: columns N, D, and lr, batch where they are known. Returns N, D, best_lr, lr_low,
        lr_high, best_batch, batch_low, batch_high, lr, batch, loss, low, high, diverges, refused.
        """
        records, texts = [], []
        for point in points.to_dict("records"):
            at = {str(k): float(v) for k, v in point.items() if k != "refused"}
            one = _predicted(self, at, str(point.get("refused", "")))
            records.append(one[0])
            texts.append(one[1])
        return pd.DataFrame(records), texts


def _predicted(
    saved: SavedRates, at: dict[str, float], refused: str
) -> tuple[dict[str, Any], str]:  # fmt: skip
    law, nan = saved.law, float("nan")
    names = ("best_lr", "lr_low", "lr_high", "best_batch", "batch_low", "batch_high", "lr", "batch",
             "loss", "low", "high", "diverges")  # fmt: skip
    out: dict[str, Any] = {**at, **{k: at.get(k, nan) for k in names}}
    if not refused:
        n, d = at["N"], at["D"]
        best = law.best(n, d)
        far = max(n / law.cell_n.max(), law.cell_n.min() / n, d / law.cell_d.max(),
                  law.cell_d.min() / d)  # fmt: skip
        out |= {"best_lr": best.lr, "lr_low": best.lr_interval[0], "lr_high": best.lr_interval[1],
                "best_batch": best.batch, "batch_low": best.batch_interval[0],
                "batch_high": best.batch_interval[1]}  # fmt: skip
        text = said(law, n, d)
        if far > REACH:
            refused = (
                f"{far:.3g} times beyond the sweep: its loss is told up to {REACH:g} times; fit "
                "--form parametric"
            )
            return out | {"refused": refused}, f"{text}; no loss: {refused}"
        lr = best.lr if not at.get("lr", nan) > 0 else at["lr"]
        batch = best.batch if not at.get("batch", nan) > 0 else at["batch"]
        diverges = nan
        if saved.divergence is not None:
            columns = np.log2([[lr, batch if batch > 0 else 1.0, n, d]])
            diverges = float(saved.divergence.probability(columns)[0])
        if untried := law.untried(n, d, lr, batch):
            text += f"; no loss: {untried}"
            if diverges > 0.05:
                text += f"; it diverges with probability {diverges:.0%}"
            return out | {"refused": untried, "diverges": diverges}, text
        place = law.at(n, d) | {"lr": np.log2([lr]), "batch": np.log2([batch])}
        above, *sides = law.interval(lambda theta: law.shape.above(theta, place)[0][:, 0])
        value, low, high = (
            float(one[0]) for one in saved.levels.predict(np.array([n]), np.array([d]))
        )
        share = above if above > law.within else 0.0  # beyond the neighbourhood: at least so unsure
        low, high = (
            value + above + sign * (np.hypot(end - value, side - above) + share)
            for sign, end, side in ((-1, low, sides[0]), (1, high, sides[1]))
        )
        ends = np.exp(np.array([low, high]))
        out |= {"lr": lr, "batch": batch, "loss": float(np.exp(value + above)),
                "low": float(ends[0]), "high": float(ends[1]), "diverges": diverges}  # fmt: skip
        text += f"; loss at rate {lr:.3g} {out['loss']:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"
        if diverges > 0.05:
            text += f" if it does not diverge, with probability {diverges:.0%} it does"
        return out | {"refused": ""}, text
    return out | {"refused": refused}, f"no loss: {refused}"


def rates_of_json(content: dict[str, Any], warnings: Sequence[str]) -> SavedRates:
    """What `to_json` told. Raises KeyError, TypeError, ValueError: damaged."""
    data, fit = content["data"], content["fit"]
    shape = Shape({str(k): tuple(map(str, v)) for k, v in data["terms"].items()})
    theta = np.array(data["theta"], float)
    left_out = np.array(data["left_out"], float)
    cells = [np.array(data[k], float) for k in ("cell_n", "cell_d", "level")]
    if theta.shape != (len(shape.names),) or left_out.shape[1:] != theta.shape:
        raise ValueError("theta")
    if len({len(one) for one in cells}) != 1 or not all((one > 0).all() for one in cells):
        raise ValueError("cells")
    if not np.isfinite(theta).all() or not np.isfinite(left_out).all():
        raise ValueError("a number of it")
    law = RatesLaw(
        shape=shape, axes=tuple(map(str, data["axes"])),
        middle={k: float(data["middle"][k]) for k in ("N", "D")}, theta=theta, left_out=left_out,
        cell_n=cells[0], cell_d=cells[1], level=cells[2], within=float(fit["within"]),
        noise=float(fit["noise"]), runs=int(fit["runs"]), diverged=int(fit["diverged"]),
        far=int(fit["far"]), edges=int(fit["edges"]), batch_edges=int(fit["batch_edges"]),
        choices=tuple(
            Choice(float(one["within"]), bool(one["smooth"]), float(one["error"]),
                   {str(k): float(v) for k, v in one["exponents"].items()})
            for one in content["choices"]
        ),
        confidence=float(fit["confidence"]), together=bool(data["together"]),
        tried={str(k): (float(a), float(b)) for k, (a, b) in data["tried"].items()},
    )  # fmt: skip
    found = [np.array(data[k], float) for k in ("level_n", "level_d", "levels")]
    surface = None if data["surface"] is None else np.array(data["surface"], float)
    if surface is not None and (surface.ndim != 2 or surface.shape[1] != 5 or len(surface) < 2):
        raise ValueError("surface")
    levels = Levels.of(found[0], found[1], found[2], law.confidence, surface)
    divergence = None
    if (one := data.get("divergence")) is not None:
        loss = float("nan") if one["loss"] is None else float(one["loss"])
        divergence = Divergence(
            np.array(one["slopes"], float), np.array(one["middle"], float), loss
        )
        if divergence.slopes.shape != (5,) or divergence.middle.shape != (4,):
            raise ValueError("divergence")
    return SavedRates(law, levels, divergence, tuple(warnings))
