"""Real structure without a study: the built-in video as tokens."""

from __future__ import annotations

import torch

from scaling.data import leaves
from scaling.data.shards import sequence
from scaling.models.family import SPECIAL_TOKENS
from scaling.models.tokenizers.codebook import Codebook, cut


def sample_tokens(sequences: int = 8) -> tuple[torch.Tensor, int]:
    """Built-in video as token ids (B, T + 1), and the vocabulary: real structure, no files."""
    frames = leaves.clips(0, 0, 64, frames=4, size=16)
    codebook = Codebook.fit(cut(frames.reshape(-1, 16, 16, 3), 4), 256, 0)
    codes = codebook.encode(frames[:sequences].reshape(-1, 16, 16, 3)).reshape(sequences, -1)
    return torch.from_numpy(sequence(codes, 1).astype("int64")), 256 + SPECIAL_TOKENS
