"""The coordinate check: does the size of activations stay put when the width grows?

(Tensor Programs V, arXiv 2203.03466, Appendix D.1.) Models of several widths train for a few steps;
under muP the mean absolute activation of every layer keeps its scale over width, under the standard
parametrisation some of them grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.models.family import ModelConfig
from scaling.models.parametrization import build, optimizer

FLAT = 0.1  # the largest slope of log2 scale against log2 width that passes


@dataclass(frozen=True)
class CoordCheck:
    """points: dicts of width, step, layer, seed, scale (mean absolute activation).

    slopes: layer -> slope of log2 scale against log2 width after the last step.
    """

    parametrization: str
    points: list[dict[str, int | float | str]]
    slopes: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The layer with the steepest slope, and that slope."""
        return max(self.slopes.items(), key=lambda item: abs(item[1]))

    @property
    def passed(self) -> bool:
        """Whether no layer's scale moves with width by more than FLAT (log2 by log2)."""
        return abs(self.worst[1]) <= FLAT

    @property
    def verdict(self) -> str:
        """The worst layer and its slope, in a sentence."""
        layer, slope = self.worst
        return f"{self.parametrization}: steepest slope {slope:+.3f} ({layer}), " + (
            f"within +-{FLAT}" if self.passed else f"beyond +-{FLAT}"
        )


def coord_check(
    config: ModelConfig,
    tokens_BT: Tensor,
    *,
    widths: Sequence[int],
    lr: float,
    steps: int = 5,
    weight_decay: float = 0.0,
    seeds: int = 1,
    device: str | torch.device = "cpu",
    kind: str = "adamw",
) -> CoordCheck:
    """Train `config` at each width on one batch, again and again, and measure every layer.

    tokens_BT: ids (B, T + 1) of real data: uniformly random ids hold nothing to learn, and what the
    logits then do is noise, which shrinks with width. What is measured at step s has seen s
    updates. Heads, depth and the feed-forward's proportion are those of `config`.
    kind: "adamw" or "muon".
    """
    if len(set(widths)) < 2 or steps < 1:
        raise UserError(
            f"widths {list(widths)}, {steps} steps: a slope over width after an update needs at "
            "least 2 widths and 1 step"
        )
    tokens_BT = tokens_BT.to(device)
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    points: list[dict[str, int | float | str]] = []
    for width in widths:
        d_ff, rest = divmod(config.d_ff * width, config.d)
        if rest:
            raise UserError(
                f"width {width}: a feed-forward of {config.d_ff} at width {config.d} has no whole "
                f"counterpart; choose widths that are multiples of {config.d // 4}"
            )
        wide = replace(config, name=f"{config.name} at {width}", d=width, d_ff=d_ff)
        for seed in range(seeds):
            model = build(wide, seed=seed, device=device)
            optim = optimizer(model, lr=lr, weight_decay=weight_decay, kind=kind)
            for step in range(steps + 1):
                with torch.no_grad():
                    logits, states = model(inputs_BT, hidden=True)
                for layer, x in (states | {"logits": logits}).items():
                    scale = float(x.abs().mean())
                    points.append(
                        {
                            "parametrization": config.parametrization,
                            "width": width,
                            "seed": seed,
                            "step": step,
                            "layer": layer,
                            "scale": scale,
                        }
                    )
                model.loss(inputs_BT, targets_BT).backward()
                optim.step()
                optim.zero_grad()
    return CoordCheck(config.parametrization, points, _slopes(points, steps))


def _slopes(points: list[dict[str, int | float | str]], step: int) -> dict[str, float]:
    by_layer: dict[str, list[tuple[float, float]]] = {}
    for p in points:
        if p["step"] == step:
            pair = float(p["width"]), float(p["scale"])
            by_layer.setdefault(str(p["layer"]), []).append(pair)
    slopes = {}
    for layer, pairs in by_layer.items():
        width, scale = torch.tensor(pairs, dtype=torch.float64).log2().unbind(1)
        width = width - width.mean()
        slopes[layer] = float((width * scale).sum() / (width * width).sum())
    return slopes
