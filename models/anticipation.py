"""What will be touched next: a pyramid on a transformer's layers and a single-stage head on it.

The pyramid is StillFast's (arXiv 2304.03959) on tokens, as Toto's Section 4.4 has it: of each of
five layers the last frame's states are a map (still), and those of the frames before it, averaged
over time, another (fast); the fast map is enlarged to the still one, convolved, added and
convolved again. Levels differ in resolution, and are added from the coarsest to the finest.

The head is not StillFast's, which has two stages: every place of the finest level says how likely
a centre of a next-active object it is (Zhou et al. 2019), and of that object the box, noun, verb
and time to contact.

Shapes: B sequences, T tokens, d width, c channels, h w places, G objects of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (2.0, 1.0, 0.5, 0.25, 0.125)  # resolution of each, in places a token
PEAKS = 100  # predictions of a frame, at most
MAX_OVERLAP = 0.5  # of two predictions of one noun
TIME_WEIGHT = 0.5  # of the loss, StillFast's


@dataclass(frozen=True)
class Layout:
    """How a sequence lies: `before` frames of fast_hw tokens each, then one of still_hw."""

    before: int
    fast_hw: tuple[int, int]
    still_hw: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Of the sequence, without its start token."""
        fast, still = (h * w for h, w in (self.fast_hw, self.still_hw))
        return self.before * fast + still


def five_of(layers: int) -> list[int]:
    """Layers evenly over the depth, the last one among them; of fewer than five the embedding (0)
    too, and some serve two levels.

    >>> five_of(12), five_of(3)
    ([1, 4, 7, 9, 12], [0, 1, 2, 2, 3])
    """
    first = 1 if layers >= len(LEVELS) else 0
    steps = len(LEVELS) - 1
    return [first + int((layers - first) * i / steps + 0.5) for i in range(len(LEVELS))]


class Anticipator(nn.Module):
    """States of five layers -> maps (B, 6 + nouns + verbs, 2 h, 2 w).

    Channels: the centre's logit; the box's sides from the place's middle, in places (left, top,
    right, bottom), as inputs of a softplus, as are the seconds; logits of nouns, of verbs.
    """

    def __init__(
        self, d: int, nouns: int, verbs: int, layout: Layout, *, channels: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        self.layout, self.nouns, self.verbs = layout, nouns, verbs
        c = channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.still = nn.ModuleList(nn.Conv2d(d, c, 1) for _ in LEVELS)
            self.fast = nn.ModuleList(nn.Conv2d(d, c, 1) for _ in LEVELS[: layout.before and None])
            self.moved = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in self.fast)
            # Rotary positions know distances: the two channels more say where a place is.
            self.fused = nn.ModuleList(nn.Conv2d(c + 2, c, 3, padding=1) for _ in LEVELS)
            self.shared = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
            self.out = nn.Conv2d(c, 6 + nouns + verbs, 1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            assert self.out.bias is not None
            self.out.bias.zero_()
            self.out.bias[0] = -4.0  # few places are centres

    def forward(self, states: list[Tensor]) -> Tensor:
        layout = self.layout
        (h, w), (fh, fw) = layout.still_hw, layout.fast_hw
        total: Tensor | None = None
        for i in reversed(range(len(LEVELS))):
            x_BTd = F.layer_norm(states[i], states[i].shape[-1:])
            size = [max(1, round(LEVELS[i] * side)) for side in (h, w)]
            still_Bdhw = x_BTd[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))
            level = resized(self.still[i](still_Bdhw), size)
            if layout.before:
                fast = x_BTd[:, : -h * w].unflatten(1, (layout.before, fh, fw)).mean(1)
                moved = self.fast[i](fast.permute(0, 3, 1, 2))
                level = level + F.gelu(self.moved[i](resized(moved, size)))
            if total is not None:
                level = level + F.interpolate(total, size=size, mode="nearest")
            total = F.gelu(self.fused[i](torch.cat((level, places(level)), 1)))
        assert total is not None
        for conv in self.shared:
            total = total + F.gelu(conv(total))
        made: Tensor = self.out(total)
        return made


def resized(x: Tensor, size: list[int]) -> Tensor:
    """Bilinear where it grows, means where it shrinks."""
    if size[0] < x.shape[-2]:
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def places(like: Tensor) -> Tensor:
    """y and x of every place, -1 to 1, (B, 2, h, w)."""
    B, _, h, w = like.shape
    y, x = (torch.linspace(-1, 1, n, device=like.device) for n in (h, w))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(B, -1, -1, -1).to(like.dtype)


# ---------------------------------------------------------------------------------------- learning


@dataclass(frozen=True)
class Target:
    """Objects of a batch, one after another. box_G4: x1, y1, x2, y2 in shares of the frame."""

    frame_G: Tensor
    box_G4: Tensor
    noun_G: Tensor
    verb_G: Tensor
    seconds_G: Tensor

    def to(self, device: torch.device) -> Target:
        parts = (self.frame_G, self.box_G4, self.noun_G, self.verb_G, self.seconds_G)
        return Target(*(part.to(device) for part in parts))


def task_loss(maps: Tensor, target: Target, nouns: int, verb_weight: float) -> Tensor:
    """Centre + box + noun + verb_weight x verb + TIME_WEIGHT x seconds, an object.

    The centre's is CornerNet's focal loss, the box's 1 - GIoU, the classes' cross-entropy, the
    seconds' smooth L1; all but the first at the places in the middle half of an object.
    """
    h, w = maps.shape[-2:]
    unit_4 = maps.new_tensor([w, h, w, h])
    box_G4 = target.box_G4 * unit_4
    heat_Bhw, owner_Bhw = _drawn(box_G4, target.frame_G, len(maps), h, w)
    centre_Bhw = maps[:, 0]
    p, log_p, log_not = centre_Bhw.sigmoid(), F.logsigmoid(centre_Bhw), F.logsigmoid(-centre_Bhw)
    is_centre = heat_Bhw == 1
    focal = torch.where(is_centre, (1 - p) ** 2 * log_p, (1 - heat_Bhw) ** 4 * p**2 * log_not)
    loss = -focal.sum() / max(1, len(box_G4))
    frame_N, y_N, x_N = torch.nonzero(owner_Bhw >= 0, as_tuple=True)
    own_N = owner_Bhw[frame_N, y_N, x_N]
    at_NC = maps[frame_N, :, y_N, x_N]
    middle_N4 = torch.stack((x_N, y_N, x_N, y_N), 1) + 0.5
    sign_4 = maps.new_tensor([-1, -1, 1, 1])
    sides_N4 = (box_G4[own_N] - middle_N4) * sign_4
    loss = loss + _giou_loss(F.softplus(at_NC[:, 1:5]), sides_N4.clamp_min(1e-3)).mean()
    loss = loss + F.cross_entropy(at_NC[:, 6 : 6 + nouns], target.noun_G[own_N])
    verb = F.cross_entropy(at_NC[:, 6 + nouns :], target.verb_G[own_N])
    seconds = F.smooth_l1_loss(F.softplus(at_NC[:, 5]), target.seconds_G[own_N])
    return loss + verb_weight * verb + TIME_WEIGHT * seconds


def _drawn(box_G4: Tensor, frame_G: Tensor, frames: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """How near each place is to a centre (1 there), and whose middle half it is in, else -1."""
    heat_Bhw = box_G4.new_zeros(frames, h, w)
    owner_Bhw = torch.full((frames, h, w), -1, device=box_G4.device)
    y_h, x_w = (torch.arange(n, device=box_G4.device) + 0.5 for n in (h, w))
    size_G2 = (box_G4[:, 2:] - box_G4[:, :2]).clamp_min(1e-3)
    middle_G2 = (box_G4[:, :2] + box_G4[:, 2:]) / 2
    for g in torch.argsort(size_G2.prod(1), descending=True).tolist():  # the smaller owns
        b, (cx, cy), (sx, sy) = int(frame_G[g]), middle_G2[g], size_G2[g]
        row = int(cy.clamp(0, h - 1))
        column = int(cx.clamp(0, w - 1))
        dy, dx = (y_h - (row + 0.5))[:, None], (x_w - (column + 0.5))[None]
        near = torch.exp(-((dy / sy.clamp_min(1)) ** 2 + (dx / sx.clamp_min(1)) ** 2) * 18)
        heat_Bhw[b] = torch.maximum(heat_Bhw[b], near)
        inside = ((y_h - cy).abs() < sy / 4)[:, None] & ((x_w - cx).abs() < sx / 4)[None]
        inside[row, column] = True
        owner_Bhw[b][inside] = g
    return heat_Bhw, owner_Bhw


def _giou_loss(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """1 - generalised intersection over union (Rezatofighi et al. 2019) of boxes about one point,
    by their sides' distances from it (left, top, right, bottom), (N,)."""

    def area(sides_N4: Tensor) -> Tensor:
        return (sides_N4[:, 0] + sides_N4[:, 2]) * (sides_N4[:, 1] + sides_N4[:, 3])

    shared, hull = area(torch.minimum(a_N4, b_N4)), area(torch.maximum(a_N4, b_N4))
    union = area(a_N4) + area(b_N4) - shared
    return 1 - shared / union + (hull - union) / hull


# --------------------------------------------------------------------------------------- answering


@torch.no_grad()
def answers(maps: Tensor, nouns: int) -> list[Tensor]:
    """Of each frame at most `PEAKS` rows (x1, y1, x2, y2 in shares of the frame, place of the noun,
    of the verb, seconds, score), by falling score.

    Centres are local maxima; each has every noun, and its likeliest verb. The score is the product
    of the three probabilities. Of one noun, no two boxes overlap by more than `MAX_OVERLAP`.
    """
    B, _, h, w = maps.shape
    p_B1hw = maps[:, :1].sigmoid()
    is_peak = F.max_pool2d(p_B1hw, 3, stride=1, padding=1) == p_B1hw
    score_Bn = (p_B1hw * is_peak).flatten(1)
    best_BP, at_BP = score_Bn.topk(min(PEAKS, h * w), dim=1)
    found = []
    for b in range(B):
        at_P = at_BP[b]
        of_PC = maps[b].flatten(1)[:, at_P].T
        y, x = (at_P // w + 0.5), (at_P % w + 0.5)
        left, top, right, bottom = F.softplus(of_PC[:, 1:5]).T
        box_P4 = torch.stack(((x - left) / w, (y - top) / h, (x + right) / w, (y + bottom) / h), 1)
        verb_P, which_P = of_PC[:, 6 + nouns :].softmax(1).max(1)
        score_PN = (best_BP[b] * verb_P)[:, None] * of_PC[:, 6 : 6 + nouns].softmax(1)
        score_N, order_N = score_PN.flatten().sort(descending=True, stable=True)
        order_N = order_N[: 4 * PEAKS]
        peak_N, noun_N = order_N // nouns, order_N % nouns
        rows = torch.column_stack(
            (box_P4[peak_N].clamp(0, 1), noun_N, which_P[peak_N], F.softplus(of_PC[peak_N, 5]),
             score_N[: 4 * PEAKS])
        )  # fmt: skip
        found.append(rows[_kept(rows)][:PEAKS].cpu())
    return found


def _kept(rows_N8: Tensor) -> Tensor:
    """Places of the rows that no earlier one of the same noun overlaps by more than the most."""
    low = torch.maximum(rows_N8[:, None, :2], rows_N8[None, :, :2])
    high = torch.minimum(rows_N8[:, None, 2:4], rows_N8[None, :, 2:4])
    shared = (high - low).clamp_min(0).prod(-1)
    area = (rows_N8[:, 2:4] - rows_N8[:, :2]).prod(-1)
    overlap = shared / (area[:, None] + area[None] - shared).clamp_min(1e-9)
    bad = ((overlap > MAX_OVERLAP) & (rows_N8[:, None, 4] == rows_N8[None, :, 4])).cpu()
    kept: list[int] = []
    for i in torch.nonzero(rows_N8[:, 7].cpu() > 0).flatten().tolist():
        if not bad[i, kept].any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long, device=rows_N8.device)
