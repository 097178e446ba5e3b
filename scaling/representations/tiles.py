"""Features of frames that are larger than what the models were trained on, by tiles.

A frame is cut into tiles of the study's frame size that overlap by half; each tile is a sequence of
one frame, and a place that lies in several tiles has the mean of their features. Every channel is
standardised over the places of the first frame, whatever the features: channels that are large
everywhere would make all places alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaling.data import shards
from scaling.models.decoder import Decoder
from scaling.models.tokenizers.codebook import cut
from scaling.representations.features import seen, with_start
from scaling.representations.trained import TrainedRun, open_tokenizer


@torch.inference_mode()
def tiled_features(
    model: Decoder, tokenizer: Any, frame_HW3: np.ndarray, *, size: int, patch: int, at_once: int
) -> torch.Tensor:
    """Hidden states of every layer at every place of a frame, (layers + 1, h, w, d)."""
    height, width = frame_HW3.shape[:2]
    h, w, side = height // patch, width // patch, size // patch
    step = max(1, side // 2)
    tops, lefts = _starts(h, side, step), _starts(w, side, step)
    padded = np.pad(
        frame_HW3, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="edge"
    )
    corners = [(y, x) for y in tops for x in lefts]
    tiles = np.stack(
        [padded[y * patch : y * patch + size, x * patch : x * patch + size] for y, x in corners]
    )
    codes = seen(model.config, tokenizer, tiles)
    ids = with_start(codes, shards.VIDEO_START).to(model.head.device)
    layers = ["embed", *(f"layer_{i + 1}" for i in range(model.config.layers))]
    total = torch.zeros(len(layers), max(h, side), max(w, side), model.config.d)
    count = torch.zeros(max(h, side), max(w, side), 1)
    for first in range(0, len(corners), at_once):
        states: dict[str, torch.Tensor] = {}
        model.features(ids[first : first + at_once], states)
        x = torch.stack([states[name][:, 1:] for name in layers]).float().cpu()
        for i, (y, left) in enumerate(corners[first : first + at_once]):
            place = (slice(y, y + side), slice(left, left + side))
            total[(slice(None), *place)] += x[:, i].unflatten(1, (side, side))
            count[place] += 1
    return (total / count)[:, :h, :w]


def standardised(features_Thwd: torch.Tensor) -> torch.Tensor:
    """Float32, every channel of mean 0 and deviation 1 over the places of the first frame."""
    deviation, mean = torch.std_mean(features_Thwd[0].float(), (0, 1), correction=0)
    return features_Thwd.float().sub_(mean).div_(deviation.clamp_min(1e-6))


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles of `side` begin, so that they cover `length` and overlap."""
    if length <= side:
        return [0]
    return sorted({*range(0, length - side, step), length - side})


def _pixels(frame_HW3: np.ndarray, patch: int) -> torch.Tensor:
    """Each patch's own colours, about mid-grey, (1, h, w, 3 patch^2)."""
    h, w = frame_HW3.shape[0] // patch, frame_HW3.shape[1] // patch
    values = cut(frame_HW3[None], patch).astype(np.float32) - 127.5
    return torch.from_numpy(values).view(1, h, w, -1)


class Layers:
    """Reads frames with one model, or as their pixels: features of one layer after another."""

    def __init__(
        self, trained: TrainedRun, weights: str, data_dir: Path, memory_bytes: float
    ) -> None:
        self.tokenizer, index = open_tokenizer(data_dir)
        self.size: int = index["size"]  # px of a tile
        self.patch = round(self.size / index["tokens_per_frame"] ** 0.5)
        self.memory_bytes = memory_bytes
        self.model = None if weights == "pixels" else trained.model(weights)
        if self.model is not None and torch.cuda.is_available():
            self.model = self.model.cuda()
        config = trained.run.model
        per_tile = 4 * (index["tokens_per_frame"] + 1) * 4 * (config.layers + 1) * config.d
        self.tiles_at_once = max(1, min(512, int(memory_bytes / 4 / per_tile)))

    def of(self, frames_THW3: np.ndarray, wanted: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """(layer, its standardised features (T, h, w, d)), layer by layer.

        Frames are read once for as many layers as fit in memory together.
        """
        h, w = frames_THW3.shape[1] // self.patch, frames_THW3.shape[2] // self.patch
        channels = 3 * self.patch**2 if self.model is None else self.model.config.d
        # Of a layer: its half-precision states, and those of one layer in float32, twice.
        layer_bytes = 2 * len(frames_THW3) * h * w * channels
        group = max(1, int(self.memory_bytes / 2 / layer_bytes) - 4)
        for first in range(0, len(wanted), group):
            near = wanted[first : first + group]
            held = [
                self._features(frame)[near].half() for frame in frames_THW3
            ]  # (layers, h, w, d)
            for place, layer in enumerate(near):
                yield layer, standardised(torch.stack([x[place] for x in held]))

    def _features(self, frame_HW3: np.ndarray) -> torch.Tensor:
        """(layers + 1, h, w, d), or (1, h, w, 3 patch^2) of pixels."""
        if self.model is None:
            return _pixels(frame_HW3, self.patch)
        return tiled_features(
            self.model,
            self.tokenizer,
            frame_HW3,
            size=self.size,
            patch=self.patch,
            at_once=self.tiles_at_once,
        )
