"""What a model reads and predicts at each position: token ids, or patches of the stored frames.

Of a sequence of n codes, position 0 reads the start token, or a patch of zeros, and predicts the
first code or patch. Tokens end with one that says so (n + 1 positions), patches do not (n).

Shapes: B sequences, S = n + 2 tokens, T positions, P = 3 side^2 values of a patch.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from scaling.data.shards import TokenData
from scaling.models.family import ModelConfig
from scaling.models.tokenizers.codebook import cut

Pair: TypeAlias = tuple[Tensor, Tensor]  # inputs and targets: int64 (B, T) or uint8 (B, T, P)


def train_pair(data: TokenData, model: ModelConfig, step: int, batch: int, seed: int) -> Pair:
    """The `batch` sequences of a step; UserError when patches are wanted and were not stored."""
    tokens_BS, _ = data.batch(step, batch, seed)
    frames = data.frames(step, batch, seed) if _sees_patches(model) else None
    return _pair(tokens_BS, frames, model)


def validation_pairs(data: TokenData, model: ModelConfig) -> dict[str, Pair]:
    """Source name -> all its validation sequences; UserError as above."""
    frames = data.validation_frames() if _sees_patches(model) else {}
    return {
        name: _pair(tokens_BS, frames.get(name), model)
        for name, tokens_BS in data.validation().items()
    }


def values(x: Tensor) -> Tensor:
    """What a model takes: token ids as they are, uint8 patches as float32 in [0, 1]."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _sees_patches(model: ModelConfig) -> bool:
    return bool(model.patch_inputs or model.patch_targets)


def _pair(tokens_BS: np.ndarray, frames: np.ndarray | None, model: ModelConfig) -> Pair:
    tokens = torch.from_numpy(tokens_BS)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if frames is not None:
        size = max(model.patch_inputs, model.patch_targets)
        flat = cut(frames.reshape(-1, *frames.shape[2:]), round((size / 3) ** 0.5))
        patches = torch.from_numpy(flat).view(len(frames), -1, size)
        if model.patch_inputs:
            inputs = torch.cat([torch.zeros_like(patches[:, :1]), patches], 1)
        if model.patch_targets:
            inputs, targets = inputs[:, :-1], patches
    return inputs, targets
