"""Hidden states of every layer: computed once, kept on disk, read within a memory bound.

Shapes: N rows (a file's views), L layers, T tokens, d width.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaling.data import shards
from scaling.errors import UserError
from scaling.models.decoder import Decoder
from scaling.models.family import ModelConfig
from scaling.models.probes import cells
from scaling.models.tokenizers.codebook import cut
from scaling.storage import files


def seen(config: ModelConfig, tokenizer: Any, frames_NHWC: np.ndarray) -> np.ndarray:
    """What a model sees of uint8 frames: codes (N, L), or uint8 patches (N, L, P)."""
    if not config.patch_inputs:
        codes_NL: np.ndarray = tokenizer.encode(frames_NHWC)
        return codes_NL
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

    shape: on disk. layers: those that are read. side: tokens on the side of a frame; a file of
    cells is a file of one frame.
    They stay in memory where they and a standardised copy take half of `memory_bytes` at most; else
    rows are read as they are asked for. Read, not mapped: a mapped page counts as the process's own
    until the system wants it back, and the bound would not be one.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        memory_bytes: float,
        *,
        layers: list[int],
        side: int,
        grids: Collection[int] = (1,),
    ) -> None:
        self.shape, self.layers, self.side = shape[1:], layers, side
        values = int(np.prod(shape[2:])) * len(layers)
        self.path = path
        self.stored_bytes = 2 * int(np.prod(shape[1:]))  # of a row
        # Two bytes a value and four of the standardised copy; of means eight, as they are joined.
        means = len(layers) * shape[3] * sum(grid**2 for grid in grids)
        held = shape[0] * (6 * values + 8 * means)
        self.held = self._read(np.arange(shape[0])) if 2 * held <= memory_bytes else None
        # Of a training step: the rows, their standardised copy, what backward keeps.
        self.rows_at_once = max(1, int(memory_bytes / 2 / (20 * values)))
        self.ready: torch.Tensor | None = None  # (L, N, T, d), standardised
        self.tokens = _Moments()
        self.averages = {grid: _Moments() for grid in grids}
        self.means: dict[int, torch.Tensor] = {}  # of a grid (L, N, grid^2 d), standardised

    def _read(self, rows: np.ndarray) -> torch.Tensor:
        """(B, L, T, d), half precision."""
        out = np.empty((len(rows), len(self.layers), *self.shape[1:]), np.float16)
        layer_bytes = self.stored_bytes // self.shape[0]
        with self.path.open("rb") as file:
            for place, row in enumerate(rows.tolist()):
                for i, layer in enumerate(self.layers):
                    file.seek(row * self.stored_bytes + layer * layer_bytes)
                    file.readinto(memoryview(out[place, i]).cast("B"))
        return torch.from_numpy(out)

    def raw(self, rows: torch.Tensor) -> torch.Tensor:
        """(L, B, T, d) as stored."""
        part = self.held[rows] if self.held is not None else self._read(rows.numpy())
        return part.float().transpose(0, 1)

    def standardise(self, rows: torch.Tensor) -> None:
        """From now on every channel has mean 0 and deviation 1 over the tokens of these rows.

        And so has every channel of every cell's average, which varies much less than tokens do (as
        the BatchNorm without parameters of MAE's linear probe).
        """
        self.ready, self.means = None, {}
        self.tokens = _Moments()
        self.averages = {grid: _Moments() for grid in self.averages}
        for part in rows.split(self.rows_at_once):
            x = self.raw(part)
            self.tokens.add(x)
            for grid, moments in self.averages.items():
                moments.add(cells(x, self.side, grid).flatten(2))
        if self.held is not None:
            every = torch.arange(len(self.held)).split(self.rows_at_once)
            for grid in self.averages:
                self.means[grid] = torch.cat([self._averaged(part, grid) for part in every], 1)
            self.ready = self.tokens.standardise_(self.held.float().transpose(0, 1))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(L, B, T, d)."""
        if self.ready is not None:
            return self.ready[:, rows]
        return self.tokens.standardise_(self.raw(rows))

    def pooled(self, rows: torch.Tensor, grid: int = 1) -> torch.Tensor:
        """Means over frames of grid x grid cells, (L, B, grid^2 d)."""
        return self.means[grid][:, rows] if grid in self.means else self._averaged(rows, grid)

    def _averaged(self, rows: torch.Tensor, grid: int) -> torch.Tensor:
        return self.averages[grid].standardise_(cells(self.raw(rows), self.side, grid).flatten(2))


class _Moments:
    """Mean and deviation of every channel of every layer, (L, d), over what was added.

    Chan et al. 1979: parts are merged by their means and squared deviations.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """x: (L, ..., d)."""
        over = tuple(range(1, x.ndim - 1))
        more = int(np.prod(x.shape[1:-1]))
        variance, mean = (v.double() for v in torch.var_mean(x, over, correction=0))
        apart, self.count = mean - self.mean, self.count + more
        self.mean = self.mean + apart * more / self.count
        merged = apart**2 * more * (self.count - more) / self.count
        self.squares = self.squares + variance * more + merged

    def standardise_(self, x: torch.Tensor) -> torch.Tensor:
        """In place, (L, ..., d)."""
        shape = (len(self.mean), *[1] * (x.ndim - 2), -1)
        deviation = (self.squares / self.count).sqrt().clamp_min(1e-6).float().view(shape)
        return x.sub_(self.mean.float().view(shape)).div_(deviation)


@torch.inference_mode()
def write_features(
    model: Decoder,
    codes_NL: np.ndarray,  # or patches (N, L, P)
    path: Path,
    *,
    start: int,
    memory_bytes: float,
    side: int,
    grid: int | None = None,
    window: int | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[int, ...]:
    """Hidden states of every layer in one pass, float16 (N, layers + 1, T, d), into `path`.

    Layer 0 is the embedding. The start token's position is left out. Of frames of side x side
    tokens, `grid` keeps the means over all frames of grid x grid cells only: T = grid^2. Sequences
    longer than `window` tokens are read in windows of that many. Continues where an interrupted
    call stopped: `<path>.json` counts the rows that are written and synced.
    Returns the shape.
    """
    config = model.config
    n, length = codes_NL.shape[:2]
    shape = (n, config.layers + 1, grid**2 if grid else length, config.d)
    window = window or length
    if window + 1 > config.context:
        raise UserError(
            f"{window + 1} tokens exceed the context of {config.name} ({config.context})"
        )
    counter = path.with_suffix(".json")
    row_bytes = 2 * int(np.prod(shape[1:]))
    done = _written(path, counter, shape, row_bytes)
    if done == n:
        return shape
    if not done:
        counter.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_space(path.parent, n, done, row_bytes)
    # Of one sequence: the states, their stack in float32, and the widest activation of a block.
    per_row = 4 * (length + 1) * (3 * (config.layers + 1) * config.d + 4 * config.d_ff)
    batch = max(1, min(256, int(memory_bytes / 4 / per_row)))
    with path.open("r+b" if done else "wb") as out:
        out.truncate(done * row_bytes)  # what an interrupted call wrote and did not count
        out.seek(done * row_bytes)
        for first in range(done, n, batch):
            x_BLTd = _states(model, codes_NL[first : first + batch], start, window)
            if grid:
                x_BLTd = cells(x_BLTd, side, grid)
            if not bool(torch.isfinite(x_BLTd).all()) or float(x_BLTd.abs().max()) > 65_504:
                raise UserError(
                    f"{config.name}: hidden states are not finite in 16 bits; it diverged"
                )
            out.write(x_BLTd.half().cpu().numpy().tobytes())
            last = first + len(x_BLTd)
            tell(last, n)
            if last - done >= 1024 or last == n:
                out.flush()
                os.fsync(out.fileno())
                done = last
                files.write(counter, json.dumps({"done": done, "shape": shape}))
    return shape


def _written(path: Path, counter: Path, shape: tuple[int, ...], row_bytes: int) -> int:
    """Rows that an interrupted call wrote and counted; 0 where the file is of another shape."""
    if not (counter.exists() and path.exists()):
        return 0
    written = json.loads(counter.read_text())
    done: int = written["done"]
    whole = path.stat().st_size >= done * row_bytes
    return done if tuple(written["shape"]) == shape and whole else 0


def _check_space(folder: Path, rows: int, done: int, row_bytes: int) -> None:
    """Raises UserError where the rows that are left do not fit on the device."""
    if (rows - done) * row_bytes > shutil.disk_usage(folder).free:
        raise UserError(
            f"hidden states of {rows} sequences take {rows * row_bytes / 1e9:.3g} GB, more than is "
            f"free in {folder}; probe with `--head average --head grid`, which keep means only"
        )


def _states(model: Decoder, codes_BL: np.ndarray, start: int, window: int) -> torch.Tensor:
    """(B, layers + 1, T, d) of sequences that are read in windows."""
    config, (batch, length) = model.config, codes_BL.shape[:2]
    states: dict[str, torch.Tensor] = {}
    windows = codes_BL.reshape(-1, window, *codes_BL.shape[2:])
    model.features(with_start(windows, start).to(model.head.device), states)
    names = ["embed", *(f"layer_{i + 1}" for i in range(config.layers))]
    return torch.stack([states[name][:, 1:].reshape(batch, length, config.d) for name in names], 1)
