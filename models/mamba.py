"""Mamba (Gu and Dao, arXiv 2312.00752), a rival of Toto's Table 6, behind the same interface.

A selective state space in plain PyTorch, scanned in chunks. Shapes: B sequences, T positions,
d width, E inner width (config.d_ff), N states of a channel, R rank of the step size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.models.decoder import Cache, Decoder
from scaling.models.family import MAMBA_CONV, ModelConfig

NORM_EPS = 1e-5


class Mamba(Decoder):
    """Mamba blocks in a row, without positions; inputs and outputs as of `Decoder`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, [Block(config) for _ in range(config.layers)])
        self.norm = nn.Parameter(torch.empty(config.d))

    def features(
        self,
        inputs: Tensor,
        states: dict[str, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x_BTd, _ = self._embedded(inputs, cache)
        x_BTd = self._through(x_BTd, states, cache)
        x_BTd = F.rms_norm(x_BTd, (self.config.d,), self.norm, NORM_EPS)
        if states is not None:
            states["final"] = x_BTd
        return x_BTd

    def new_cache(self, batch: int) -> Cache:
        inner, zeros = self.config.d_ff, self.head.new_zeros
        return Cache(
            [
                {
                    "conv": zeros((batch, MAMBA_CONV - 1, inner)),
                    "state": zeros((batch, inner, self.config.state)),
                }
                for _ in range(self.config.layers)
            ]
        )


class Block(nn.Module):
    """Gated convolution and state space on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, inner, rank, state = config.d, config.d_ff, config.step_rank, config.state
        self.norm = nn.Parameter(torch.empty(d))
        self.x_gate = nn.Parameter(torch.empty(2 * inner, d))
        self.conv = nn.Parameter(torch.empty(inner, MAMBA_CONV))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.step_input_output = nn.Parameter(torch.empty(rank + 2 * state, inner))
        self.step = nn.Parameter(torch.empty(inner, rank))
        self.step_bias = nn.Parameter(torch.empty(inner))
        self.log_decay = nn.Parameter(torch.empty(inner, state))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = nn.Parameter(torch.empty(d, inner))

    def forward(self, x_BTd: Tensor, cache: dict[str, Tensor] | None) -> Tensor:
        c = self.config
        h = F.linear(F.rms_norm(x_BTd, (c.d,), self.norm, NORM_EPS), self.x_gate)
        u_BTE, gate_BTE = h.chunk(2, dim=-1)
        if cache is None:
            past = F.pad(u_BTE, (0, 0, MAMBA_CONV - 1, 0))
        else:
            past = torch.cat((cache["conv"].to(u_BTE.dtype), u_BTE), dim=1)
            cache["conv"] = past[:, 1 - MAMBA_CONV :]
        kernel = self.conv[:, None]
        u_BTE = F.silu(F.conv1d(past.mT, kernel, self.conv_bias, groups=c.d_ff).mT)
        h = F.linear(u_BTE, self.step_input_output)
        step, into_BTN, from_BTN = h.split((c.step_rank, c.state, c.state), dim=-1)
        step_BTE = F.softplus(F.linear(step, self.step).float() + self.step_bias)
        state = None if cache is None else cache["state"]
        y_BTE, state = selective_scan(
            u_BTE.float(),
            step_BTE,
            -self.log_decay.exp(),
            into_BTN.float(),
            from_BTN.float(),
            state,
        )
        if cache is not None:
            cache["state"] = state
        y_BTE = (y_BTE + self.skip * u_BTE) * F.silu(gate_BTE)
        return torch.add(x_BTd, F.linear(y_BTE, self.out), alpha=c.residual_scale)


def selective_scan(
    u_BTE: Tensor,
    step_BTE: Tensor,
    decay_EN: Tensor,
    into_BTN: Tensor,
    from_BTN: Tensor,
    state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = h_t . from_t with h_t = exp(step_t decay) h_(t-1) + step_t u_t into_t (Equation 2).

    Time is cut into about sqrt(T) chunks: all chunks advance together from an empty state, then
    the states at their ends are chained. That takes 2 sqrt(T) steps instead of T, and every
    factor is at most 1 (decay < 0), so nothing overflows. Returns (B, T, E) and the last state.
    """
    B, T, E = u_BTE.shape
    size = max(1, math.isqrt(T))
    chunks = -(-T // size)
    pad = (0, 0, 0, chunks * size - T)  # a step of 0 leaves the state as it is

    def cut(x: Tensor) -> Tensor:
        out: Tensor = F.pad(x, pad).unflatten(1, (chunks, size))
        return out

    step = cut(step_BTE)
    gain = torch.exp(step[..., None] * decay_EN)  # (B, chunks, size, E, N)
    drive = cut(step_BTE * u_BTE)[..., None] * cut(into_BTN)[..., None, :]
    h = drive[:, :, 0]
    inside = [h]
    for gain_BCEN, drive_BCEN in zip(gain.unbind(2)[1:], drive.unbind(2)[1:], strict=True):
        h = torch.addcmul(drive_BCEN, gain_BCEN, h)
        inside.append(h)
    # What is left at each position of the state with which its chunk began.
    left = torch.exp(step.cumsum(2)[..., None] * decay_EN)
    carry = u_BTE.new_zeros(B, E, decay_EN.shape[1]) if state_BEN is None else state_BEN
    begins = []
    for end_BEN, left_BEN in zip(h.unbind(1), left[:, :, -1].unbind(1), strict=True):
        begins.append(carry)
        carry = torch.addcmul(end_BEN, left_BEN, carry)
    h = torch.addcmul(torch.stack(inside, 2), left, torch.stack(begins, 1)[:, :, None])
    y = torch.einsum("btdn,btn->btd", h.flatten(1, 2)[:, :T], from_BTN)
    return y, carry
