"""Sampling frames, token by token, past the context by a window that slides on frame boundaries.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.models.decoder import Cache, Decoder


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: Tensor,
    *,
    frames: int,
    tokens_per_frame: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    codes_from: int = 0,
    seed: int = 0,
    use_cache: bool = True,
) -> Tensor:
    """`frames` new frames of token ids, (B, frames * tokens_per_frame).

    prompt: (B, 1 + n tokens_per_frame) ids: a start token and n >= 0 whole frames.
    temperature: 0 takes the likeliest token. top_k, top_p: draw from the k likeliest tokens, or
    from the fewest whose probabilities reach p (arXiv 1904.09751), or from both. codes_from: the
    first id that may be drawn; smaller ones are special tokens.

    When a sequence outgrows the context, its oldest frames leave the window; the start token stays.
    The window is then read anew, so each token is drawn from exactly what a forward pass over the
    window gives, with the cache or without.
    """
    room = (model.config.context - 1) // tokens_per_frame  # frames that the context holds
    kept = (room - 1) * tokens_per_frame  # of a full window; the last frame is being drawn
    _check(model, prompt, frames, tokens_per_frame, kept)
    if temperature < 0 or (top_k is not None and top_k < 1) or not 0 < (top_p or 1) <= 1:
        raise UserError(
            f"temperature {temperature}, top_k {top_k}, top_p {top_p}: temperature is at least 0, "
            "top_k at least 1, top_p above 0 and at most 1"
        )
    random = torch.Generator(prompt.device).manual_seed(seed)
    window = unread = prompt
    cache: Cache | None = None
    drawn = []
    for _ in range(frames):
        if window.shape[1] - 1 > kept:
            window = torch.cat((prompt[:, :1], window[:, window.shape[1] - kept :]), dim=1)
            cache = None
        if use_cache and cache is None:
            cache, unread = model.new_cache(len(prompt)), window
        for _ in range(tokens_per_frame):
            logits_BV = model(unread if use_cache else window, cache=cache)[:, -1]
            unread = _sample(logits_BV[:, codes_from:], temperature, top_k, top_p, random)
            unread = unread + codes_from
            window = torch.cat((window, unread), dim=1)
            drawn.append(unread)
    return torch.cat(drawn, dim=1)


def _check(model: Decoder, prompt: Tensor, frames: int, tokens_per_frame: int, kept: int) -> None:
    config = model.config
    if config.patch_inputs or config.patch_targets:
        raise UserError(f"model {config.name!r} works on patches; only tokens can be drawn")
    if config.attention == "full":
        raise UserError(
            f"model {config.name!r} attends in both directions (attention: full), so it does not "
            "predict what follows; generate with causal or prefix attention"
        )
    if kept < 0:
        raise UserError(
            f"a frame of {tokens_per_frame} tokens and the start token do not fit the context of "
            f"{config.name!r} ({config.context})"
        )
    if frames < 1 or prompt.ndim != 2 or (prompt.shape[1] - 1) % tokens_per_frame:
        raise UserError(
            f"a prompt of shape {tuple(prompt.shape)} and {frames} frames to draw: a prompt is a "
            f"start token and whole frames of {tokens_per_frame} tokens, and at least one is drawn"
        )
    if config.prefix > 1 + min(kept, prompt.shape[1] - 1):
        raise UserError(
            f"model {config.name!r} reads the first {config.prefix} positions in both directions; "
            f"the prompt has {prompt.shape[1]} and a full window keeps {1 + kept}: give more frames"
        )


def _sample(
    logits_BV: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    random: torch.Generator,
) -> Tensor:
    """One index a row, (B, 1)."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    p_BV = torch.softmax(logits_BV.float() / temperature, dim=-1)
    p_BV, order = p_BV.sort(dim=-1, descending=True)
    if top_k is not None:
        p_BV[:, top_k:] = 0
    if top_p is not None:
        before = p_BV.cumsum(dim=-1) - p_BV
        p_BV[before >= top_p * p_BV.sum(dim=-1, keepdim=True)] = 0
    return order.gather(1, torch.multinomial(p_BV, 1, generator=random))
