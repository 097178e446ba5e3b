"""Toto's transformer: a LLaMA-style decoder over video tokens (arXiv 2501.05453, Section 3.2).

Pre-norm RMSNorm, rotary positions, SwiGLU, no biases. Shapes: B sequences, T positions, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.models.attention import View, attend, key_value_cache, rope_tables, rotate, view
from scaling.models.decoder import Cache, Decoder
from scaling.models.family import ModelConfig

NORM_EPS = 1e-5


class Toto(Decoder):
    """Toto's transformer; inputs and outputs as of `Decoder`."""

    cos_TD: Tensor
    sin_TD: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, [Block(config) for _ in range(config.layers)])
        self.norm = nn.Parameter(torch.empty(config.d))
        cos_TD, sin_TD = rope_tables(config.context, config.head_dim, config.rope_base)
        self.register_buffer("cos_TD", cos_TD, persistent=False)
        self.register_buffer("sin_TD", sin_TD, persistent=False)

    def features(
        self,
        inputs: Tensor,
        states: dict[str, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x_BTd, start = self._embedded(inputs, cache)
        stop = start + x_BTd.shape[1]
        seen = view(self.config, start, stop - start, x_BTd.device)
        # One more axis for the heads; the same rows serve queries and keys of every layer.
        rope = self.cos_TD[start:stop, None], self.sin_TD[start:stop, None]
        x_BTd = self._through(x_BTd, states, cache, seen, rope)
        x_BTd = F.rms_norm(x_BTd, (self.config.d,), self.norm, NORM_EPS)
        if states is not None:
            states["final"] = x_BTd
        return x_BTd

    def new_cache(self, batch: int) -> Cache:
        return Cache(key_value_cache(self.config, batch, self.head))


class Block(nn.Module):
    """Attention and feed-forward, each on its own normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, d_kv = config.d, config.kv_heads * config.head_dim
        self.norm_attention = nn.Parameter(torch.empty(d))
        self.qkv = nn.Parameter(torch.empty(d + 2 * d_kv, d))
        self.out = nn.Parameter(torch.empty(d, d))
        self.norm_ffn = nn.Parameter(torch.empty(d))
        self.gate_up = nn.Parameter(torch.empty(2 * config.d_ff, d))
        self.down = nn.Parameter(torch.empty(d, config.d_ff))

    def forward(
        self,
        x_BTd: Tensor,
        cache: dict[str, Tensor] | None,
        seen: View,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        c = self.config
        h = F.linear(F.rms_norm(x_BTd, (c.d,), self.norm_attention, NORM_EPS), self.qkv)
        h = h.unflatten(-1, (c.heads + 2 * c.kv_heads, c.head_dim))
        qk, v = h.split((c.heads + c.kv_heads, c.kv_heads), dim=2)
        q, k = rotate(qk, *rope).split((c.heads, c.kv_heads), dim=2)
        x_BTd = torch.add(
            x_BTd, F.linear(attend(q, k, v, c, seen, cache), self.out), alpha=c.residual_scale
        )
        h = F.linear(F.rms_norm(x_BTd, (c.d,), self.norm_ffn, NORM_EPS), self.gate_up)
        gate, up = h.chunk(2, dim=-1)
        return torch.add(x_BTd, F.linear(F.silu(gate) * up, self.down), alpha=c.residual_scale)
