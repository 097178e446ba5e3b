"""Heads that read hidden states: what a frozen model has learned, layer by layer (Section 3.5).

The heads of all layers are one batch of independent problems: each parameter has the layer as its
first axis, and the loss is summed over layers, so that no layer sees another's gradient.

Shapes: L layers, B sequences, T tokens, d width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.errors import UserError

KINDS = ("average", "attention", "grid", "cross")
LINEAR = ("average", "grid")  # of states that are averaged, whatever the labels
MLP_RATIO = 4
GRID_INPUTS = 9216


def grid_of(kind: str, side: int, d: int) -> int:
    """Cells on the side of the grid that a linear head reads, of `side` tokens; 1 for "average".

    "grid": the most that divide the side and leave about 9,000 inputs, as Goyal et al. 2019 pool
    convolutional features before a linear classifier.
    """
    fits = [g for g in range(1, side + 1) if side % g == 0 and g * g * d <= GRID_INPUTS]
    return max(fits, default=1) if kind == "grid" else 1


def cells(x: Tensor, side: int, grid: int) -> Tensor:
    """Means over all frames of each cell, (..., frames * side * side, d) -> (..., grid^2, d)."""
    q = side // grid
    places: Tensor = x.unflatten(-2, (-1, grid, q, grid, q))
    return places.mean((-6, -4, -2)).flatten(-3, -2)


class Heads(nn.Module):
    """Classifiers on the hidden states of L layers: (L, B, T, d) -> logits (L, B, C).

    kind: "average", mean over tokens and a linear map. "grid", a linear map of the means of
    `grid_of` cells of the frame, which keeps where things are. "attention", one learned query
    attends to the tokens through Wk and Wv (d x d, no bias), then a linear map (Section 3.5).
    "cross", with more capacity (A.7): multi-head cross-attention of a learned query, then an MLP,
    both residual and pre-norm, then a linear map.
    The linear kinds also take states that are averaged already, (L, B, grid^2 d).
    layers: their numbers. The start of a layer's head is its own, whichever others there are.
    side: tokens on the side of a frame.
    windows: of which the tokens are, one after another. The model read each by itself and cannot
    tell which it was, so a head that attends has a learned bias for each.
    Raises UserError for another kind.
    """

    def __init__(
        self,
        kind: str,
        layers: Sequence[int],
        d: int,
        classes: int,
        *,
        side: int = 1,
        heads: int = 1,
        windows: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"head {kind!r}: choose one of {', '.join(KINDS)}")
        self.kind, self.heads = kind, heads if d % heads == 0 else 1
        self.side, self.grid = side, grid_of(kind, side, d)
        seeds = [int(np.random.SeedSequence((seed, i)).generate_state(1)[0]) for i in layers]
        randoms = [torch.Generator().manual_seed(one) for one in seeds]

        def normal(*shape: int) -> Tensor:
            return torch.stack([torch.randn(shape, generator=random) for random in randoms])

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(normal(rows, columns) * columns**-0.5)

        if kind not in LINEAR:
            self.query = nn.Parameter(0.02 * normal(d))
            self.key, self.value = matrix(d, d), matrix(d, d)
        self.window = nn.Parameter(torch.zeros(len(layers), windows)) if windows > 1 else None
        if kind == "cross":
            self.project_query, self.out = matrix(d, d), matrix(d, d)
            self.up, self.down = matrix(MLP_RATIO * d, d), matrix(d, MLP_RATIO * d)
        self.weight = nn.Parameter(torch.zeros(len(layers), classes, self.grid**2 * d))
        self.bias = nn.Parameter(torch.zeros(len(layers), classes))

    def forward(self, x: Tensor) -> Tensor:
        read = {"attention": self._attend, "cross": self._cross}.get(self.kind, self._linear)
        # Adam moves every weight alike: with more inputs its rate would be too high.
        weight_LCD = self.weight / self.grid
        return _against(weight_LCD, read(x)).transpose(1, 2) + self.bias[:, None]

    def _linear(self, x: Tensor) -> Tensor:
        return cells(x, self.side, self.grid).flatten(2) if x.ndim == 4 else x

    def _attend(self, x_LBTd: Tensor) -> Tensor:
        # q.(Wk x) = (Wk'q).x and sum a Wv x = Wv (sum a x): no key or value is ever formed.
        d = x_LBTd.shape[-1]
        asked_Ld = torch.einsum("lkd,lk->ld", self.key, self.query) * d**-0.5
        score_LBT = _against(asked_Ld[:, None], x_LBTd.flatten(1, 2)).view(x_LBTd.shape[:3])
        if self.window is not None:
            score_LBT = score_LBT + _per_token(self.window, x_LBTd.shape[2])[:, None]
        weight_LBT = score_LBT.softmax(-1)
        mixed_LBd = torch.einsum("lbt,lbtd->lbd", weight_LBT, x_LBTd)
        return torch.einsum("lbd,lvd->lbv", mixed_LBd, self.value)

    def _cross(self, x_LBTd: Tensor) -> Tensor:
        d = x_LBTd.shape[-1]
        x_LBTd = F.layer_norm(x_LBTd, (d,))
        q_LHD = torch.einsum("ld,led->le", self.query, self.project_query).unflatten(
            -1, (self.heads, -1)
        )
        key_LHDd = self.key.unflatten(1, (self.heads, -1))
        value_LHDd = self.value.unflatten(1, (self.heads, -1))
        asked_LHd = torch.einsum("lhe,lhed->lhd", q_LHD, key_LHDd) * q_LHD.shape[-1] ** -0.5
        score_LHBT = _against(asked_LHd, x_LBTd.flatten(1, 2)).unflatten(2, x_LBTd.shape[1:3])
        score_LBHT = score_LHBT.transpose(1, 2)
        if self.window is not None:
            score_LBHT = score_LBHT + _per_token(self.window, x_LBTd.shape[2])[:, None, None]
        weight_LBHT = score_LBHT.softmax(-1)
        mixed_LBHd = torch.einsum("lbht,lbtd->lbhd", weight_LBHT, x_LBTd)
        heads_LBe = torch.einsum("lbhd,lhed->lbhe", mixed_LBHd, value_LHDd).flatten(2)
        y_LBd = self.query[:, None] + torch.einsum("lbe,lde->lbd", heads_LBe, self.out)
        h_LBd = F.gelu(torch.einsum("lbd,lhd->lbh", F.layer_norm(y_LBd, (d,)), self.up))
        return y_LBd + torch.einsum("lbh,ldh->lbd", h_LBd, self.down)


def _against(rows_LCd: Tensor, x_LNd: Tensor) -> Tensor:
    """Dot products (L, C, N). So written both passes read the large x once, and never copy it."""
    return torch.bmm(rows_LCd, x_LNd.transpose(1, 2))


def _per_token(window_LW: Tensor, tokens: int) -> Tensor:
    """Of every token the bias of its window, (L, T)."""
    return window_LW.repeat_interleave(tokens // window_LW.shape[1], dim=1)


@dataclass(frozen=True)
class Recipe:
    """How heads are trained: AdamW, cosine to zero."""

    steps: int = 300
    batch: int = 128  # sequences
    lr: float = 3e-3
    weight_decay: float = 0.05


def train_heads(
    heads: Heads,
    states: Callable[[Tensor], Tensor],
    rows_N: Tensor,
    labels_N: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    at_once: int | None = None,
) -> None:
    """Train the heads of all layers on the states of some rows.

    Args:
        states: from row numbers (B,) to states (L, B, T, d) or, averaged, (L, B, d).
        rows_N, labels_N: the training rows and their classes.
        at_once: rows whose states are in memory together; gradients of a batch are summed.
    """
    random = torch.Generator().manual_seed(seed)
    optim = torch.optim.AdamW(heads.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, recipe.steps)
    batch = min(recipe.batch, len(rows_N))
    order, place = torch.randperm(len(rows_N), generator=random), 0
    for _ in range(recipe.steps):
        if place + batch > len(order):
            order, place = torch.randperm(len(rows_N), generator=random), 0
        chosen = order[place : place + batch]
        place += batch
        for part in chosen.split(at_once or batch):
            logits_LBC = heads(states(rows_N[part]))
            target_LB = labels_N[part].to(logits_LBC.device).expand(len(logits_LBC), -1)
            loss = F.cross_entropy(logits_LBC.flatten(0, 1), target_LB.flatten(), reduction="sum")
            (loss / batch).backward()
        optim.step()
        schedule.step()
        optim.zero_grad(set_to_none=True)


@torch.no_grad()
def file_scores(
    heads: Heads,
    states: Callable[[Tensor], Tensor],
    rows_N: Tensor,
    file_N: Tensor,
    files: int,
    *,
    batch: int,
) -> Tensor:
    """Class probabilities of whole files, averaged over their views, (L, files, C).

    file_N: the file, 0 .. files - 1, of each row (a view: one clip and crop).
    """
    summed: Tensor | None = None
    for rows, file in zip(rows_N.split(batch), file_N.split(batch), strict=True):
        scores_LBC = heads(states(rows)).softmax(-1)
        if summed is None:
            summed = scores_LBC.new_zeros(len(scores_LBC), files, scores_LBC.shape[-1])
        summed.index_add_(1, file.to(scores_LBC.device), scores_LBC)
    if summed is None:
        raise UserError("no row to score: give at least one")
    return summed / torch.bincount(file_N, minlength=files).to(summed.device)[:, None]


def top_accuracy(scores_LFC: Tensor, labels_F: Tensor, k: int) -> Tensor:
    """Share of files whose class is among the k likeliest, (L,); all are when C <= k."""
    k = min(k, scores_LFC.shape[-1])
    best_LFk = scores_LFC.topk(k, dim=-1).indices
    return (best_LFk == labels_F.to(best_LFk.device)[:, None]).any(-1).double().mean(-1)
