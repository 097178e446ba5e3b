"""Hidden states of every layer: computed once, kept on disk, read within a memory bound.

Shapes: N rows (a file's views), L layers, T tokens, d width.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from models.decoder import Decoder
from models.family import ModelConfig
from models.tokenizers.codebook import cut
from scaling import shards
from scaling.checkpoint import write_atomic
from scaling.errors import UserError


def seen(config: ModelConfig, tokenizer: Any, frames_NHWC: np.ndarray) -> np.ndarray:
    """What a model sees of uint8 frames: codes (N, L), or uint8 patches (N, L, P)."""
    if not config.patch_inputs:
        return tokenizer.encode(frames_NHWC)
    side = round((config.patch_inputs / 3) ** 0.5)
    return cut(frames_NHWC, side).reshape(len(frames_NHWC), -1, config.patch_inputs)


def with_start(codes: np.ndarray, start: int) -> torch.Tensor:
    """A model's inputs: the start token and ids (N, 1 + L), or zeros and patches in [0, 1]."""
    if codes.ndim == 3:
        patches = torch.from_numpy(codes).float() / 255
        return torch.cat((torch.zeros_like(patches[:, :1]), patches), 1)
    ids = torch.from_numpy(codes.astype(np.int64)) + shards.SPECIALS
    return torch.nn.functional.pad(ids, (1, 0), value=start)


class Features:
    """Hidden states of all rows, float16 (N, L, T, d) on disk; rows come standardised, float32.

    They stay in memory where they and a standardised copy fit in `memory_bytes`.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], memory_bytes: float) -> None:
        self.map = np.memmap(path, np.float16, mode="r", shape=shape)
        self.memory_bytes = memory_bytes
        self.held = (
            torch.from_numpy(np.array(self.map)) if 4 * self.map.nbytes <= memory_bytes else None
        )
        self.row_bytes = 4 * int(np.prod(shape[1:]))
        # Of a training step: the rows, their standardised copy, what backward keeps.
        self.rows_at_once = max(1, int(memory_bytes / 2 / (4 * self.row_bytes)))
        self.ready: torch.Tensor | None = None  # (L, N, T, d), standardised
        self.means: torch.Tensor | None = None  # (L, N, d), of the same
        self.mean = torch.zeros(())
        self.scale = torch.ones(())

    def raw(self, rows: torch.Tensor) -> torch.Tensor:
        """(L, B, T, d) as stored."""
        if self.held is not None:
            return self.held[rows].float().transpose(0, 1)
        return torch.from_numpy(self.map[rows.numpy()].astype(np.float32)).transpose(0, 1)

    def standardise(self, rows: torch.Tensor) -> None:
        """From now on every channel has mean 0 and deviation 1 over the tokens of these rows."""
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for part in rows.split(self.rows_at_once):
            x = self.raw(part).double()
            count += x.shape[1] * x.shape[2]
            total, square = total + x.sum((1, 2)), square + (x * x).sum((1, 2))
        mean = total / count
        deviation = (square / count - mean**2).clamp_min(0).sqrt()
        self.mean = mean[:, None, None].float()
        self.scale = (1 / deviation.clamp_min(1e-6))[:, None, None].float()

        if self.held is not None:
            self.ready = (self.held.float().transpose(0, 1) - self.mean) * self.scale
            self.means = self.ready.mean(2)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(L, B, T, d)."""
        if self.ready is not None:
            return self.ready[:, rows]
        return (self.raw(rows) - self.mean) * self.scale

    def pooled(self, rows: torch.Tensor) -> torch.Tensor:
        """Their means over tokens, (L, B, d)."""
        return self.means[:, rows] if self.means is not None else self(rows).mean(2)


@torch.inference_mode()
def write_features(
    model: Decoder,
    codes_NL: np.ndarray,  # or patches (N, L, P)
    path: Path,
    *,
    start: int,
    pooled: bool,
    memory_bytes: float,
    window: int | None = None,
) -> tuple[int, ...]:
    """Hidden states of every layer in one pass, float16 (N, layers + 1, T or 1, d), into `path`.

    Layer 0 is the embedding. The start token's position is left out; `pooled` keeps the mean over
    tokens only. Sequences longer than `window` tokens are read in windows of that many. Continues
    where an interrupted call stopped: `<path>.json` counts the rows that are written and synced.
    Returns the shape.
    """
    config = model.config
    n, length = codes_NL.shape[:2]
    shape = (n, config.layers + 1, 1 if pooled else length, config.d)
    window = window or length
    if window + 1 > config.context:
        raise UserError(
            f"{window + 1} tokens exceed the context of {config.name} ({config.context})"
        )
    counter = path.with_suffix(".json")
    done = 0
    if counter.exists() and path.exists():
        written = json.loads(counter.read_text())
        done = written["done"] if tuple(written["shape"]) == shape else 0
    if done == n:
        return shape
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 2 * int(np.prod(shape))
    mode: Literal["r+", "w+"] = "r+" if path.exists() and path.stat().st_size == size else "w+"
    if mode == "w+":
        done = 0
        if size > shutil.disk_usage(path.parent).free:
            raise UserError(
                f"hidden states of {n} sequences take {size / 1e9:.3g} GB, more than is free in "
                f"{path.parent}; probe with `--head average` alone, which keeps means only"
            )
    out = np.memmap(path, np.float16, mode, shape=shape)
    # Of one sequence: the states, their stack in float32, and the widest activation of a block.
    per_row = 4 * (length + 1) * (3 * (config.layers + 1) * config.d + 4 * config.d_ff)
    batch = max(1, min(256, int(memory_bytes / 2 / per_row)))
    synced = done
    for first in range(done, n, batch):
        part = codes_NL[first : first + batch]
        states: dict[str, torch.Tensor] = {}
        windows = part.reshape(-1, window, *part.shape[2:])
        model.features(with_start(windows, start).to(model.head.device), states)
        names = ["embed", *(f"layer_{i + 1}" for i in range(config.layers))]
        x_BLTd = torch.stack(
            [states[name][:, 1:].reshape(len(part), length, config.d) for name in names], 1
        )
        if pooled:
            x_BLTd = x_BLTd.mean(2, keepdim=True)
        if not bool(torch.isfinite(x_BLTd).all()) or float(x_BLTd.abs().max()) > 65_504:
            raise UserError(f"{config.name}: hidden states are not finite in 16 bits; it diverged")
        out[first : first + len(part)] = x_BLTd.cpu().numpy()
        if first + len(part) - synced >= 1024 or first + len(part) == n:
            out.flush()
            synced = first + len(part)
            write_atomic(counter, json.dumps({"done": synced, "shape": shape}))
    return shape
