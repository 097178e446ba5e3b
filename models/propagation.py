"""Label propagation: the mask of the first frame, carried on by similarity of features alone.

Every place of a new frame takes the labels of the places that resemble it most in the frames
before (Jabri et al. 2020, arXiv 2006.14613; Caron et al. 2021, arXiv 2104.14294).

Shapes: T frames, h x w places (tokens) of a frame, d feature width, C labels, background first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8  # places on the side of a block of queries that share one block of keys


@dataclass(frozen=True)
class Protocol:
    """Whom a place may copy from, and what becomes of the labels.

    The context is frame 0 and the `context` frames before the present one. A key counts where it
    lies within `radius` places: less than that far as the crow flies, or with `square` at most so
    many rows and columns away.
    """

    context: int
    top_k: int
    radius: float
    temperature: float
    square: bool  # or a disk, its edge left out
    first_anywhere: bool  # of frame 0 all places count
    filled: bool  # where fewer frames lie before, copies of frame 0, within the radius, fill up
    hard_start: bool  # labels of frame 0 by the nearest pixel, or each label's share of a place
    normalised: bool  # each label's map is stretched to [0, 1] before the likeliest label is taken


# As the two public evaluations run it: videowalk's test.py (padded with `videoLen` first frames,
# `MaskedAttention`), and DINO's eval_video_segmentation.py (`read_seg`, `norm_mask`).
JABRI = Protocol(20, 10, 12.0, 0.05, False, True, filled=True, hard_start=False, normalised=False)
DINO = Protocol(7, 5, 12.0, 0.1, True, False, filled=False, hard_start=True, normalised=True)
PROTOCOLS = {"jabri": JABRI, "dino": DINO}


@torch.no_grad()
def propagate(features_Thwd: Tensor, first_hwC: Tensor, protocol: Protocol) -> Tensor:
    """Soft labels of every frame, (T, h, w, C); frame 0 keeps those that were given.

    Args:
        features_Thwd: are L2-normalised here, so that affinity is the cosine.
        first_hwC: soft labels of frame 0, summing to 1 over C.
    """
    x_Thwd = F.normalize(features_Thwd.float(), dim=-1)
    labels_ThwC = first_hwC.new_zeros(*x_Thwd.shape[:3], first_hwC.shape[-1])
    labels_ThwC[0] = first_hwC
    for t in range(1, len(x_Thwd)):
        before = range(t - protocol.context, t)
        frames = [0, *(max(0, f) for f in before if f > 0 or protocol.filled)]
        labels_ThwC[t] = _carry(x_Thwd[t], x_Thwd[frames], labels_ThwC[frames], protocol)
    return labels_ThwC


def _carry(query_hwd: Tensor, keys_fhwd: Tensor, labels_fhwC: Tensor, protocol: Protocol) -> Tensor:
    """Labels of one frame, (h, w, C), from those of f frames, the first frame first."""
    h, w, d = query_hwd.shape
    out_hwC = labels_fhwC.new_empty(h, w, labels_fhwC.shape[-1])
    reach = int(protocol.radius)
    for y in range(0, h, BLOCK):
        for x in range(0, w, BLOCK):
            y1, x1 = min(y + BLOCK, h), min(x + BLOCK, w)
            q_Nd = query_hwd[y:y1, x:x1].reshape(-1, d)
            # The keys that any query of the block may reach.
            top, left = max(0, y - reach), max(0, x - reach)
            near = (slice(None), slice(top, y1 + reach), slice(left, x1 + reach))
            keys, labels = keys_fhwd[near], labels_fhwC[near]
            far_NM = _beyond(y, x, y1, x1, top, left, keys.shape[1:3], protocol, q_Nd.device)
            affinity_NfM = torch.einsum("nd,fmd->nfm", q_Nd, keys.flatten(1, 2))
            affinity_NfM.masked_fill_(far_NM[:, None], -torch.inf)
            affinity, source = affinity_NfM.flatten(1), labels.reshape(-1, labels.shape[-1])
            if protocol.first_anywhere:
                m = affinity_NfM.shape[2]
                everywhere = q_Nd @ keys_fhwd[0].reshape(-1, d).T
                affinity = torch.cat((everywhere, affinity[:, m:]), 1)
                source = torch.cat((labels_fhwC[0].reshape(h * w, -1), source[m:]))
            best_Nk, place_Nk = affinity.topk(min(protocol.top_k, affinity.shape[1]), dim=1)
            weight_Nk = (best_Nk / protocol.temperature).softmax(1)
            carried = torch.einsum("nk,nkc->nc", weight_Nk, source[place_Nk])
            out_hwC[y:y1, x:x1] = carried.view(y1 - y, x1 - x, -1)
    return out_hwC


def _beyond(
    y: int, x: int, y1: int, x1: int, top: int, left: int, size: torch.Size, protocol: Protocol,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """True where a key lies outside the radius of a query, (queries, keys)."""
    rows = torch.arange(size[0], device=device) + top
    columns = torch.arange(size[1], device=device) + left
    dy = (torch.arange(y, y1, device=device)[:, None] - rows).abs()
    dx = (torch.arange(x, x1, device=device)[:, None] - columns).abs()
    dy, dx = dy[:, None, :, None], dx[None, :, None, :]
    if protocol.square:
        far = (dy > protocol.radius) | (dx > protocol.radius)
    else:
        far = dy**2 + dx**2 >= protocol.radius**2
    return far.reshape(-1, size[0] * size[1])
