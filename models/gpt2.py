"""GPT-2 (Radford et al. 2019), a rival of Toto's Table 6, behind the same interface.

Pre-norm LayerNorm, absolute positions (learned, or the paper's sine-cosine), GELU (its tanh form),
biases. Shapes: B sequences, T positions, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.models.attention import View, attend, key_value_cache, view
from scaling.models.decoder import Cache, Decoder
from scaling.models.family import ModelConfig

NORM_EPS = 1e-5


class GPT2(Decoder):
    """GPT-2 with learned or sine-cosine positions; inputs and outputs as of `Decoder`."""

    positions_Td: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, [Block(config) for _ in range(config.layers)])
        if config.positions == "learned":
            self.positions_Td = nn.Parameter(torch.empty(config.context, config.d))
        else:
            table = sine_cosine(config.context, config.d)
            self.register_buffer("positions_Td", table, persistent=False)
        self.norm = nn.Parameter(torch.empty(config.d))
        self.norm_bias = nn.Parameter(torch.empty(config.d))

    def features(
        self,
        inputs: Tensor,
        states: dict[str, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x_BTd, start = self._embedded(inputs, cache)
        T = x_BTd.shape[1]
        x_BTd = x_BTd + self.positions_Td[start : start + T]
        x_BTd = self._through(x_BTd, states, cache, view(self.config, start, T, x_BTd.device))
        x_BTd = F.layer_norm(x_BTd, (self.config.d,), self.norm, self.norm_bias, NORM_EPS)
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
        d, d_kv, d_ff = config.d, config.kv_heads * config.head_dim, config.d_ff
        self.norm_attention = nn.Parameter(torch.empty(d))
        self.norm_attention_bias = nn.Parameter(torch.empty(d))
        self.qkv = nn.Parameter(torch.empty(d + 2 * d_kv, d))
        self.qkv_bias = nn.Parameter(torch.empty(d + 2 * d_kv))
        self.out = nn.Parameter(torch.empty(d, d))
        self.out_bias = nn.Parameter(torch.empty(d))
        self.norm_ffn = nn.Parameter(torch.empty(d))
        self.norm_ffn_bias = nn.Parameter(torch.empty(d))
        self.up = nn.Parameter(torch.empty(d_ff, d))
        self.up_bias = nn.Parameter(torch.empty(d_ff))
        self.down = nn.Parameter(torch.empty(d, d_ff))
        self.down_bias = nn.Parameter(torch.empty(d))

    def forward(self, x_BTd: Tensor, cache: dict[str, Tensor] | None, seen: View) -> Tensor:
        c = self.config
        h = F.layer_norm(x_BTd, (c.d,), self.norm_attention, self.norm_attention_bias, NORM_EPS)
        h = F.linear(h, self.qkv, self.qkv_bias)
        h = h.unflatten(-1, (c.heads + 2 * c.kv_heads, c.head_dim))
        q, k, v = h.split((c.heads, c.kv_heads, c.kv_heads), dim=2)
        h = F.linear(attend(q, k, v, c, seen, cache), self.out, self.out_bias)
        x_BTd = torch.add(x_BTd, h, alpha=c.residual_scale)
        h = F.layer_norm(x_BTd, (c.d,), self.norm_ffn, self.norm_ffn_bias, NORM_EPS)
        h = F.gelu(F.linear(h, self.up, self.up_bias), approximate="tanh")
        return torch.add(x_BTd, F.linear(h, self.down, self.down_bias), alpha=c.residual_scale)


def sine_cosine(positions: int, d: int) -> Tensor:
    """Absolute positions of Vaswani et al. 2017 (Section 3.5): (positions, d), sines first."""
    frequency = 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :d].float()
