"""Who sees whom, where, and what is remembered: masks, rotary positions, key-value caches.

Shapes: B sequences, T positions, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.errors import UserError
from scaling.models.family import ModelConfig

# With narrower heads a CPU's attention is faster in float32: the backward pass of its bfloat16
# kernel takes 1.4 times as long at a head of 16 (1024 positions), and is the faster from 32 on.
CPU_BF16_HEAD = 32
# A CPU's causal kernel takes blocks of up to 256 queries and 512 keys, and computes what it then
# masks. Rows of 128 queries, each on the keys up to its last, take 0.9 of its time in float32
# (forward and backward) at the contexts below; beyond, where the keys outgrow the cache, 1.5 of it.
CPU_ROW = 128
CPU_ROWS_AT = range(2 * CPU_ROW, 1024 + 1)


@dataclass(frozen=True)
class View:
    """Where a call's queries stand and what they may see; one for all layers."""

    start: int
    mask: Tensor | None  # (T, start + T), True where a row may see a column; None: see is_causal
    is_causal: bool


def view(config: ModelConfig, start: int, T: int, device: torch.device) -> View:
    """The view of positions start, ..., start + T - 1 on everything up to them."""
    if config.attention == "full":
        if start:
            raise UserError(
                f"model {config.name!r} attends in both directions (attention: full), so earlier "
                "positions change with every new one; generate with causal or prefix attention"
            )
        return View(start, None, is_causal=False)
    if T == 1:
        return View(start, None, is_causal=False)
    if start == 0 and config.attention == "causal":
        return View(start, None, is_causal=True)
    row = torch.arange(start, start + T, device=device)[:, None]
    column = torch.arange(start + T, device=device)
    seen = row >= column
    if config.attention == "prefix":
        seen = seen | ((row < config.prefix) & (column < config.prefix))
    return View(start, seen, is_causal=False)


def attend(
    q_BTHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    config: ModelConfig,
    seen: View,
    cache: dict[str, Tensor] | None,
) -> Tensor:
    """Multi-head attention, (B, T, H D); new keys and values are added to the cache."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTHD, v_BTHD))
    if cache is not None:
        stop = seen.start + k.shape[2]
        cache["k"][:, :, seen.start : stop] = k
        cache["v"][:, :, seen.start : stop] = v
        k, v = cache["k"][:, :, :stop], cache["v"][:, :, :stop]
    settings: dict[str, Any] = {
        "attn_mask": seen.mask,
        "is_causal": seen.is_causal,
        "scale": config.attention_scale,
        "enable_gqa": config.kv_heads != config.heads,
    }
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and config.head_dim < CPU_BF16_HEAD:
        with torch.autocast("cpu", enabled=False):
            h_BHTD = _attention(q.float(), k.float(), v.float(), settings)
    else:
        h_BHTD = _attention(q, k, v, settings)
    return h_BHTD.transpose(1, 2).flatten(2)


def _attention(q: Tensor, k: Tensor, v: Tensor, settings: dict[str, Any]) -> Tensor:
    """Scaled dot-product attention (B, H, T, D)."""
    T = q.shape[2]
    narrow = q.device.type == "cpu" and q.dtype == torch.float32 and T in CPU_ROWS_AT
    if not (narrow and settings["is_causal"]):
        return F.scaled_dot_product_attention(q, k, v, **settings)
    rows = []
    for start in range(0, T, CPU_ROW):
        stop = min(start + CPU_ROW, T)
        later = torch.full((stop - start, stop), float("-inf")).triu(start + 1)
        of_row = settings | {"is_causal": False, "attn_mask": later}
        row = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        rows.append(F.scaled_dot_product_attention(*row, **of_row))
    return torch.cat(rows, 2)


def key_value_cache(config: ModelConfig, batch: int, like: Tensor) -> list[dict[str, Tensor]]:
    """Room for the keys and values of `config.context` positions, one dict a layer."""
    shape = (batch, config.kv_heads, config.context, config.head_dim)
    return [{"k": like.new_empty(shape), "v": like.new_empty(shape)} for _ in range(config.layers)]


def rope_tables(positions: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (positions, head_dim) of rotary positions (arXiv 2104.09864).

    Dimension i turns with i + head_dim/2, the convention of Hugging Face's LLaMA. The sign of
    the first half is in the table, so that a rotation is x cos + roll(x) sin.
    """
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=1).float(), torch.cat((-sin, sin), dim=1).float()


def rotate(x_BTHD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotary positions on every head, in three operations."""
    turned = torch.addcmul(x_BTHD * cos_T1D, x_BTHD.roll(x_BTHD.shape[-1] // 2, -1), sin_T1D)
    return turned.to(x_BTHD.dtype)
