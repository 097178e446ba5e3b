"""How long it takes to make a study's tokens: some files are decoded and encoded here and timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from scaling.config.schema import (
    DataConfig,
    SourceConfig,
    StudyConfig,
    TokenizerConfig,
    variant_studies,
)
from scaling.data import archives, lerobot, media
from scaling.data.sources import Reader, Source, Unit
from scaling.models.tokenizers.codebook import Codebook, cut
from scaling.plan.runs import data_of

TIMED = 8  # files of a source
_LEAVES = 16  # generated clips that are timed together
_FITTED = 1024  # codes
_FRAMES = 2  # that a network encodes: one may take seconds

Encode = Callable[[np.ndarray], object]


def lines(config: StudyConfig, parallel: int) -> list[str]:
    """What encoding takes of cores by source, and the time with `parallel` jobs of a core each.

    The range is what it would be if every file cost as much as the cheapest and as the dearest of
    those timed. Fitting the tokenizer is not in it.
    """
    studies = variant_studies(config).values() if config.variants else [config]
    told = []
    for one in {data_of(study): study for study in studies}.values():
        if one.tokenizer.kind != "given":
            told += [_line(one, source, parallel) for source in one.data.sources]
    return told


def _line(config: StudyConfig, source: SourceConfig, parallel: int) -> str:
    head = f"encoding {source.name}:"
    on_gpu = bool(config.launch.gpus) and config.tokenizer.kind != "codebook"
    try:
        reader, units, count = _sample(source, config.data)
        encode = _nothing if on_gpu else _encoder(config.tokenizer)
        most = None if config.tokenizer.kind == "codebook" else _FRAMES
        seconds = _timed(reader, units, encode, most)
    except media.MediaError as error:
        return f"{head} not timed: {error}"
    if not seconds:
        return f"{head} not timed: none of {len(units)} files tried gives a clip"
    mean, low, high = (count * s for s in (float(np.mean(seconds)), min(seconds), max(seconds)))
    unit, size = ("hours", 3600) if mean >= 360 else ("seconds", 1)
    what = "decoding alone" if on_gpu else "decoding and encoding"
    things = "clips, generated" if source.kind == "leaves" else "files"
    each = _LEAVES if source.kind == "leaves" else 1
    said = [_few(x / size) for x in (mean, low, high, mean / parallel)]
    return (
        f"{head} about {said[0]} core-{unit} of {what} ({said[1]} to {said[2]}), {said[3]} {unit} "
        f"with {parallel} jobs; from {len(seconds) * each} of {round(count * each):,} {things}, "
        "timed here"
    )


def _few(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _nothing(frames: np.ndarray) -> None:
    """What a core does of the encoder's work where that has a GPU."""


def _sample(source: SourceConfig, data: DataConfig) -> tuple[Reader, list[Unit], float]:
    """A reader, the units to time, and how many such units there are. Raises MediaError."""
    there = Source(0, source)
    reader = Reader(data, 0, (there,))
    if source.kind == "leaves":
        count = (data.train_sequences + data.val_sequences) / _LEAVES
        return reader, [Unit(0, "train", "", n * _LEAVES, _LEAVES) for n in range(4)], count
    assert source.path is not None
    root = source.path.expanduser()
    if not root.exists():
        raise media.MediaError(f"{root} does not exist")
    suffixes = media.VIDEO_SUFFIXES if source.kind == "video" else media.IMAGE_SUFFIXES
    names, left_out = media.list_files(root, suffixes | archives.SUFFIXES)
    inside = any(name.lower().endswith(tuple(archives.SUFFIXES)) for name in names)
    if inside or any(f"/{name}".endswith(f"/{lerobot.INFO}") for name, _ in left_out):
        raise media.MediaError("what is in archives and data sets is listed when it is encoded")
    if not names:
        raise media.MediaError(f"no {source.kind} file in {root}")
    there.train = names
    at = np.linspace(0, len(names) - 1, min(len(names), TIMED)).round().astype(int)
    chosen = [names[i] for i in at]  # the last ones too: names often go by length or by day
    there.identity = dict.fromkeys(chosen, "")
    return reader, [reader.file_unit(there, "train", (name,)) for name in chosen], len(names)


def _timed(reader: Reader, units: list[Unit], encode: Encode, most: int | None) -> list[float]:
    """Seconds of a core for each unit; at most `most` frames are encoded. None where no unit gives
    a frame."""
    found, frames_seen = [], 0
    for unit in units:
        begin = time.process_time()
        pixels, _ = reader.pixels(unit)
        frames = pixels.reshape(-1, *pixels.shape[-3:])
        frames_seen += len(frames)
        decoded = time.process_time()
        seconds = decoded - begin
        if len(frames):
            encode(frames[:most])
            seconds += (time.process_time() - decoded) * len(frames) / len(frames[:most])
        found.append(seconds)
    if not frames_seen:
        return []
    return found[1:] if len(found) > 2 else found  # the first one loads and makes tables


def _encoder(config: TokenizerConfig) -> Encode:
    """A tokenizer that costs what the study's will cost. Raises MediaError where it is not here."""
    if config.kind == "codebook" and config.weights is None:
        made: list[Codebook] = []

        def nearest(frames: np.ndarray) -> None:
            if not made:
                made.append(_codebook(cut(frames, config.patch), config))
            made[0].encode(frames)

        return nearest
    if config.weights is not None:
        from scaling.models.tokenizers.weights import load

        if not config.weights.expanduser().exists():
            raise media.MediaError(f"{config.weights} is not here")
        encode: Encode = load(config.weights.expanduser()).encode
    else:
        from scaling.models.tokenizers import train

        make = train.small_dvae if config.kind == "dvae" else train.small_vqgan
        encode = make(config.codes, config.patch, config.width).encode
    return encode


def _codebook(patches_MD: np.ndarray, config: TokenizerConfig) -> Codebook:
    """A codebook that is as fast as the study's: fitted as far as it takes a second, to these
    patches, of which some stand for further centroids."""
    patches_MD = np.unique(patches_MD, axis=0)
    fitted = min(config.codes, _FITTED, len(patches_MD))
    chosen = np.linspace(0, len(patches_MD) - 1, config.codes - fitted).astype(int)
    centroids = [patches_MD[chosen]]
    if fitted > 1:
        centroids.append(Codebook.fit(patches_MD, fitted, 0).centroids_KD)
    return Codebook(np.concatenate(centroids), config.patch)
