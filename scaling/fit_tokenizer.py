"""Fitting a tokenizer on a study's training frames, and how well it gives held-out ones back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.tokenizers.codebook import Codebook, cut, psnr
from scaling.sources import Reader, Source, survey, unusable

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much

HELD_OUT = 2000  # frames of a comparison, at most


def silent(what: str, done: int, total: int) -> None:
    """Progress that shows nothing."""


def fit(config: Any, reader: Reader, progress: Progress = silent) -> Any:
    """The tokenizer of `config` (TokenizerConfig), fitted on training frames of all sources.

    Raises UserError when a source has no usable file, ValueError when the settings do not fit.
    """
    return _fit(config, np.concatenate(list(_frames(config, reader, progress))), reader, progress)


def _fit(config: Any, frames: np.ndarray, reader: Reader, progress: Progress) -> Any:
    if config.kind == "codebook":
        progress("fit the codebook", 0, len(frames))
        return Codebook.fit(cut(frames, config.patch), config.codes, reader.seed)
    from models.tokenizers import train

    learn = train.train_dvae if config.kind == "dvae" else train.train_vqgan
    return learn(
        frames,
        codes=config.codes,
        patch=config.patch,
        width=config.width,
        steps=config.steps,
        seed=reader.seed,
        progress=lambda step, steps, loss: progress(
            f"train the {config.kind}, loss {loss:.4f}", step, steps
        ),
    )


def _frames(config: Any, reader: Reader, progress: Progress) -> Iterator[np.ndarray]:
    """Training frames of every source, uint8 (n, S, S, 3), in proportion to its weight."""
    whole = sum(source.settings.weight for source in reader.sources)
    for source in reader.sources:
        wanted = max(1, round(config.fit_frames * source.settings.weight / whole))
        yield from _of_source(reader, source, "train", wanted, progress)


def _of_source(
    reader: Reader, source: Source, split: str, wanted: int, progress: Progress
) -> Iterator[np.ndarray]:
    have = 0
    for unit in reader.units(source, split):
        progress(f"frames of {source.name} for the tokenizer", have, wanted)
        pixels, _ = reader.pixels(unit, limit=wanted - have)
        frames = pixels.reshape(-1, *pixels.shape[-3:])[: wanted - have]
        if len(frames):
            yield frames
        have += len(frames)
        if have >= wanted:
            break
    if not have:
        raise unusable(source, reader.minimum(source))


@dataclass(frozen=True)
class Fitted:
    """One tokenizer of a comparison. `psnr` is in dB, of held-out frames, by source."""

    kind: str
    tokenizer: Any
    seconds: float
    codes_used: int  # by the held-out frames
    psnr: dict[str, float]


def compare(
    data: Any, config: Any, *, seed: int, progress: Progress = silent
) -> tuple[list[Fitted], int, int]:
    """`config`'s tokenizer beside k-means: the same frames, tokens a frame and codes.

    Both are fitted on the training frames that a study of `data` (DataConfig) would give them and
    judged on frames of its validation files. Returns the tokenizers, k-means first, and how many
    frames they were fitted and judged on. Raises as `fit`.
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
        start = time.perf_counter()
        tokenizer = _fit(one, frames, reader, progress)
        seconds = time.perf_counter() - start
        codes = {name: tokenizer.encode(there) for name, there in held_out.items()}
        errors = {
            name: np.square(tokenizer.decode(codes[name]).astype(np.float32) - there).mean()
            for name, there in held_out.items()
        }
        used = len(np.unique(np.concatenate([c.reshape(-1) for c in codes.values()])))
        decibel = {name: psnr(float(error)) for name, error in errors.items()}
        found.append(Fitted(one.kind, tokenizer, seconds, used, decibel))
    return found, len(frames), sum(map(len, held_out.values()))
