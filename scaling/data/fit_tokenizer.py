"""Fitting a tokenizer on a study's training frames, and how well it gives held-out ones back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling import checkpoint
from scaling.config.schema import DataConfig, TokenizerConfig
from scaling.data.sources import Reader, Source, Unit, survey, unusable
from scaling.models.tokenizers.codebook import Codebook, cut, psnr

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much

HELD_OUT = 2000  # frames of a comparison, at most


def silent(what: str, done: int, total: int) -> None:
    """Progress that shows nothing."""


def fit(config: TokenizerConfig, reader: Reader, kept: Path, progress: Progress = silent) -> Any:
    """The tokenizer of `config`, fitted on training frames of all sources.

    The state of a training is at `kept` meanwhile; the caller removes it (`Kept.drop`) when the
    tokenizer is safe. Raises UserError when a source has no usable file, ValueError when the
    settings do not fit.
    """
    frames = np.concatenate(list(_frames(config, reader, progress)))
    return _fit(config, frames, reader, kept, progress)


class Kept:
    """A training's state on disk, every few seconds; that of other frames or settings is unused."""

    SECONDS = 20.0

    def __init__(self, path: Path, settings: dict[str, Any], frames: np.ndarray) -> None:
        self.path = path
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(frames.tobytes())
        self.of = digest.hexdigest()
        self.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        state, _ = checkpoint.load(self.path)  # a damaged one gives way to the one before, or none
        return state if state is not None and state["of"] == self.of else None

    def __call__(self, state: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() - self.last > self.SECONDS:
            checkpoint.save(self.path, state() | {"of": self.of})
            self.last = time.monotonic()

    @staticmethod
    def drop(path: Path) -> None:
        for each in (path, checkpoint.previous(path)):
            each.unlink(missing_ok=True)


def _fit(
    config: TokenizerConfig,
    frames: np.ndarray,
    reader: Reader,
    kept: Path | None,
    progress: Progress,
) -> Any:
    if config.kind == "codebook":
        progress("fit the codebook", 0, len(frames))
        return Codebook.fit(cut(frames, config.patch), config.codes, reader.seed)
    from scaling.models.tokenizers import train

    learn = train.train_dvae if config.kind == "dvae" else train.train_vqgan
    settings = {name: getattr(config, name) for name in ("codes", "patch", "width", "steps")}
    settings["seed"] = reader.seed
    keep = None if kept is None else Kept(kept, settings | {"kind": config.kind}, frames)
    return learn(
        frames,
        **settings,
        state=None if keep is None else keep.load(),
        keep=keep or train.forget,
        progress=lambda step, steps, loss: progress(
            f"train the {config.kind}, loss {loss:.4f}", step, steps
        ),
    )


def _frames(config: TokenizerConfig, reader: Reader, progress: Progress) -> Iterator[np.ndarray]:
    """Training frames of every source, uint8 (n, S, S, 3), in proportion to its weight."""
    whole = sum(source.settings.weight for source in reader.sources)
    for source in reader.sources:
        wanted = max(1, round(config.fit_frames * source.settings.weight / whole))
        # k-means needs few frames; a network would learn a few files by heart.
        yield from _of_source(
            reader, source, "train", wanted, progress, spread=config.kind != "codebook"
        )


def _of_source(
    reader: Reader,
    source: Source,
    split: str,
    wanted: int,
    progress: Progress,
    *,
    spread: bool = False,
) -> Iterator[np.ndarray]:
    """`wanted` frames, or all there are, unit after unit; with `spread` evenly from many files."""
    units, most = list(reader.units(source, split)), wanted
    spread = spread and source.kind != "leaves"
    if spread:
        units, most = _spread(units, wanted, reader.data.frames)
    have = 0
    for unit in units:
        progress(f"frames of {source.name} for the tokenizer", have, wanted)
        pixels, _ = reader.pixels(unit, limit=wanted - have)
        frames = pixels.reshape(-1, *pixels.shape[-3:])
        apart = max(1, len(frames) // most) if spread else 1
        frames = frames[::apart][: min(most, wanted - have)]
        if len(frames):
            yield frames
        have += len(frames)
        if have >= wanted:
            break
    if not have:
        raise unusable(source, reader.minimum(source))


def _spread(units: list[Unit], wanted: int, clip: int) -> tuple[list[Unit], int]:
    """The units in an order in which the first are far apart, and the frames to take of each.

    That is a clip's worth of frames at least: of very many files most need not be opened.
    """
    most = max(clip, -(-wanted // len(units)))
    apart = max(1, len(units) * most // wanted)
    return [unit for first in range(apart) for unit in units[first::apart]], most


@dataclass(frozen=True)
class Fitted:
    """One tokenizer of a comparison. `psnr` is in dB, of held-out frames, by source."""

    kind: str
    tokenizer: Any
    core_seconds: float  # of the fit
    codes_used: int  # by the held-out frames
    psnr: dict[str, float]


def compare(
    data: DataConfig,
    config: TokenizerConfig,
    *,
    seed: int,
    kept: Path | None = None,
    progress: Progress = silent,
) -> tuple[list[Fitted], int, int]:
    """`config`'s tokenizer beside k-means: the same frames, tokens a frame and codes.

    Both are fitted on the training frames that a study of `data` would give them and
    judged on frames of its validation files; `kept` as in `fit`. Returns the tokenizers, k-means
    first, and how many frames they were fitted and judged on. Raises as `fit`.
    """
    sources = tuple(survey(n, s, data.val_fraction, seed) for n, s in enumerate(data.sources))
    reader = Reader(data, seed, sources)
    frames = np.concatenate(list(_frames(config, reader, progress)))
    each = max(1, HELD_OUT // len(sources))
    held_out = {
        source.name: np.concatenate(list(_of_source(reader, source, "validation", each, progress)))
        for source in sources
    }
    found = []
    for one in (config.model_copy(update={"kind": "codebook"}), config):
        start = time.process_time()
        tokenizer = _fit(one, frames, reader, kept, progress)
        seconds = time.process_time() - start
        codes = {name: tokenizer.encode(there) for name, there in held_out.items()}
        errors = {
            name: np.square(tokenizer.decode(codes[name]).astype(np.float32) - there).mean()
            for name, there in held_out.items()
        }
        used = len(np.unique(np.concatenate([c.reshape(-1) for c in codes.values()])))
        decibel = {name: psnr(float(error)) for name, error in errors.items()}
        found.append(Fitted(one.kind, tokenizer, seconds, used, decibel))
    return found, len(frames), sum(map(len, held_out.values()))
