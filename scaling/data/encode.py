"""Media -> tokenizer -> token shards: the data directory of a study.

Encoding is a map over units (scaling/data/sources.py). Each unit becomes one part file, written
atomically; so a killed call loses the units in hand, and the next call ends with the same bytes,
with any number of workers. When all parts are there they are joined, and the finished directory is
put in place by one rename.

Layout: <root>/<key>/ (`study_folder.TokenFolder`, and shards); <root>/.<key>.partial/ while at
work.
"""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from scaling.config.schema import DataConfig, TokenizerConfig
from scaling.data import shards
from scaling.data.fit_tokenizer import Kept, Progress, fit, silent
from scaling.data.given import Given
from scaling.data.given import survey as ready_tokens
from scaling.data.given import write as write_given
from scaling.data.parts_to_shards import Joiner, part_path
from scaling.data.sources import Reader, Source, Unit, survey, unusable
from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from scaling.storage import files
from scaling.study_folder import TokenFolder

Work = Callable[[list[Unit]], int]
Mapper = Callable[[Work, Sequence[list[Unit]]], Iterable[int]]


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    root: Path,
    *,
    seed: int,
    progress: Progress = silent,
    workers: int = 1,
    mapper: Mapper | None = None,
) -> Path:
    """Encode the sources of `data` with `tokenizer` under `root`.

    Returns `<root>/<key>`, for `TokenData.open`; at once when it is there. The key is a hash of the
    settings, the seed and the content of every file, not of where the files lie.

    `workers` processes share the units. With a `mapper`, the units are dealt into `workers` lists
    and `mapper(work, lists)` runs `work` (which pickles) on each, on other machines for instance
    (scaling.jobs.encode_jobs.on_cluster).

    Raises UserError when a source has no usable file or too few to split, when the tokenizer does
    not fit, and when the disk is full.
    """
    given: tuple[Given, ...] = ()
    sources: tuple[Source, ...]
    if tokenizer.kind == "given":
        numbered = enumerate(data.sources)
        sources = given = tuple(ready_tokens(n, s, data, tokenizer, seed) for n, s in numbered)
    else:
        sources = tuple(
            survey(number, source, data.val_fraction, seed)
            for number, source in enumerate(data.sources)
        )
    settings = _settings(data, tokenizer, seed, sources)
    key = shards.settings_key(settings)
    target, work = root / key, (root / f".{key}.partial").resolve()  # workers may start elsewhere
    if TokenFolder(target).index.exists() and not work.exists():
        return target
    if data.size % tokenizer.patch:
        raise UserError(
            f"data.size={data.size} px is no multiple of tokenizer.patch={tokenizer.patch} px. Use "
            "a patch that divides the size."
        )
    with files.explained(root):
        root.mkdir(parents=True, exist_ok=True)
        _check_room(data, tokenizer, root)
        with files.RunLock(root, f".{key}.lock", wait=True):
            if not TokenFolder(target).index.exists():
                (work / "parts").mkdir(parents=True, exist_ok=True)
                if given:
                    _copy(work, given, data, tokenizer, key, settings)
                else:
                    reader = Reader(data, seed, sources)
                    _Encoder(reader, tokenizer, work, progress, workers, mapper).run(key, settings)
                if target.exists():  # a directory without an index: someone's remains
                    shutil.rmtree(target)
                os.replace(work / "done", target)
                files.sync_folder(root)
            shutil.rmtree(work, ignore_errors=True)
    return target


def _copy(
    work: Path,
    sources: tuple[Given, ...],
    data: DataConfig,
    tokenizer: TokenizerConfig,
    key: str,
    settings: dict[str, Any],
) -> None:
    """Ready tokens -> <work>/done; nothing stays where they are refused."""
    shutil.rmtree(work / "done", ignore_errors=True)
    (work / "done").mkdir()
    try:
        write_given(work / "done", sources, data, tokenizer, key, settings)
    except UserError:
        shutil.rmtree(work)
        raise


def _check_room(data: DataConfig, tokenizer: TokenizerConfig, root: Path) -> None:
    """Generated sources are as long as the study asks: say what cannot fit before it is begun."""
    codes = data.frames * (data.size // tokenizer.patch) ** 2
    values = 3 * data.frames * data.size**2 if data.pixels else 0
    each = 2 * codes + values  # bytes
    generated = sum(source.kind == "leaves" for source in data.sources)
    needed, free = generated * data.train_sequences * each, shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"data.train_sequences {data.train_sequences:,}: {needed / 1e9:,.0f} GB of tokens for "
            f"{generated} generated sources, and {free / 1e9:,.0f} GB are free at {root}; ask for "
            f"fewer, or choose another --out"
        )


def _settings(
    data: DataConfig, tokenizer: TokenizerConfig, seed: int, sources: tuple[Source, ...]
) -> dict[str, Any]:
    """All that determines the bytes."""
    return {
        "schema": shards.SCHEMA,
        "seed": seed,
        "frames": data.frames,
        "size": data.size,
        "stride": data.stride,
        "fps": data.fps,
        "pixels": data.pixels,
        "train_sequences": data.train_sequences,
        "val_sequences": data.val_sequences,
        "clips_per_video": data.clips_per_video,
        "val_fraction": data.val_fraction,
        "tokenizer": _tokenizer_settings(tokenizer),
        "sources": [
            {
                "name": source.name,
                "kind": source.kind,
                "weight": source.settings.weight,
                "content": source.content,
            }
            for source in sources
        ],
    } | (
        {"zoom": data.zoom} if data.zoom != 1 else {}
    )  # without it the key is that of older studies


def _tokenizer_settings(tokenizer: TokenizerConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "kind": tokenizer.kind,
        "patch": tokenizer.patch,
        "codes": tokenizer.codes,
    }
    if tokenizer.kind == "given":
        return settings
    weights = tokenizer.weights
    if weights is not None:
        try:
            with weights.expanduser().open("rb") as file:
                return settings | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise UserError(
                f"tokenizer.weights={weights} cannot be read ({error.strerror}). Give a file of "
                "weights (.safetensors)."
            ) from error
    settings["fit_frames"] = tokenizer.fit_frames
    if tokenizer.kind != "codebook":
        settings |= {"width": tokenizer.width, "steps": tokenizer.steps}
    return settings


# -- the work of one worker ------------------------------------------------------------------------


def encode_units(work: Path, reader: Reader, units: list[Unit]) -> int:
    """Make the parts of `units` that are not there yet; returns how many sequences or images."""
    tokenizer = _tokenizer(TokenFolder(work).tokenizer)
    with _one_thread(tokenizer):
        return sum(_encode_unit(work, reader, tokenizer, unit) for unit in units)


def _encode_unit(work: Path, reader: Reader, tokenizer: Any, unit: Unit) -> int:
    """A part: codes (n, L), or of images (n, 1 frame); squared error; manifest rows."""
    path = part_path(work, unit)
    if path.exists():
        with np.load(path) as there:
            return len(there["codes"])
    pixels, rows = reader.pixels(unit)
    frames = pixels.reshape(-1, *pixels.shape[-3:])
    codes = np.empty((0, 1), np.uint16)
    squared = 0
    if len(pixels):
        codes_NL = tokenizer.encode(frames)
        codes = codes_NL.reshape(len(pixels), -1)
        if unit.split == "validation":
            difference = tokenizer.decode(codes_NL).astype(np.int16) - frames
            squared = int(np.square(difference, dtype=np.int32).sum(dtype=np.int64))
    buffer = io.BytesIO()
    part: dict[str, Any] = {
        "codes": codes,
        "squared": np.int64(squared),
        "values": np.int64(frames.size),
        "rows": np.frombuffer(json.dumps(rows).encode(), np.uint8),
    }
    if reader.keeps_pixels:
        part["pixels"] = pixels
    np.savez(buffer, **part)
    path.parent.mkdir(exist_ok=True)
    files.write(path, buffer.getvalue())
    return len(codes)


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    with safe_open(path, framework="numpy") as file:
        if set(file.keys()) == {"centroids"}:
            return Codebook.load(path)  # without torch, whose import takes longer than the work
    import torch

    from scaling.models.tokenizers.weights import load

    loaded = load(path)
    return loaded.to("cuda") if torch.cuda.is_available() else loaded


@contextmanager
def _one_thread(tokenizer: Any) -> Iterator[None]:
    """Sums in convolutions may depend on the number of threads: codes must not."""
    if isinstance(tokenizer, Codebook):  # exact in integers
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _more_than(count: int, values: Iterable[str]) -> bool:
    """Whether there are more than `count` different ones; no more are looked at than it takes."""
    seen: set[str] = set()
    for value in values:
        seen.add(value)
        if len(seen) > count:
            return True
    return False


_given: list[Work] = []  # of a worker, once: it holds the names of all files


def _start(parent: int, work: Work) -> None:
    """Begin a worker, which ends when the driver is gone, also when it was killed outright."""
    _given[:] = [work]

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(unit: Unit) -> int:
    return _given[0]([unit])


# -- the driver ------------------------------------------------------------------------------------


@dataclass
class _Encoder:
    reader: Reader
    config: TokenizerConfig
    work: Path
    progress: Progress
    workers: int
    mapper: Mapper | None

    def run(self, key: str, settings: dict[str, Any]) -> None:
        """Split, fit, encode every unit that has no part yet, and join the parts in <work>/done."""
        for source in self.reader.sources:
            self._fill_validation(source)
        tokenizer = self._make_tokenizer()
        todo = self._missing()
        while todo:
            self._map(todo)
            # Jobs that an earlier driver left on a cluster may have had other shares than these.
            left = self._missing()
            if len(left) == len(todo):
                raise UserError(
                    f"the workers ended and {len(left)} parts are not in {self.work}: is this "
                    "folder on a file system that all nodes share?"
                )
            todo = left
        kind = getattr(tokenizer, "family", self.config.kind)
        label = f"{kind}-{self.config.patch}px-{self.config.codes}"
        joiner = Joiner(self.reader, tokenizer, label, self.work)
        for source in self.reader.sources:
            crops = self.reader.crops(source, "train") if source.kind == "images" else 1
            needed = self.reader.minimum(source)
            if joiner.count(source, "train") < needed * crops:
                raise unusable(source, needed)
        with _one_thread(tokenizer):
            joiner.join(key, settings)

    def _missing(self) -> list[Unit]:
        """The units whose part is not there yet."""
        return [
            unit
            for source in self.reader.sources
            for split in shards.SPLITS
            for unit in self.reader.units(source, split)
            if not part_path(self.work, unit).exists()
        ]

    def _fill_validation(self, source: Source) -> None:
        """Move files over, in the order of the hash, until validation has something to show.

        Few files, or damaged ones, can leave it empty. This comes before the fit: the tokenizer
        must not have seen what is moved.
        """
        if source.kind == "leaves":
            return
        needed, usable, seen = self.reader.minimum(source), 0, 0
        while True:
            for name in source.validation[seen:]:
                if usable < needed:
                    unit = self.reader.file_unit(source, "validation", (name,))
                    usable += len(self.reader.pixels(unit)[0])
            seen = len(source.validation)
            if usable >= needed:
                return
            if not _more_than(needed, (source.identity[name] for name in source.train)):
                raise unusable(source, needed)
            source.move_next()

    def _make_tokenizer(self) -> Any:
        """The given weights, or a tokenizer fitted on training frames."""
        path = TokenFolder(self.work).tokenizer
        if not path.exists():
            kept = self.work / "tokenizer.training"
            weights = self.config.weights
            try:
                if weights is not None:
                    from scaling.models.tokenizers.weights import load

                    made = load(weights.expanduser())
                else:
                    made = fit(self.config, self.reader, kept, self.progress)
            except UserError as error:
                raise UserError(f"tokenizer: {error}") from error
            with files.writing(path) as temporary:
                made.save(temporary)
            Kept.drop(kept)
        tokenizer = _tokenizer(path)
        for name in ("patch", "codes"):
            if getattr(tokenizer, name) != getattr(self.config, name):
                raise UserError(
                    f"tokenizer.{name} is {getattr(self.config, name)}, the weights in "
                    f"{self.config.weights} have {getattr(tokenizer, name)}. Set tokenizer.{name}: "
                    f"{getattr(tokenizer, name)}."
                )
        return tokenizer

    def _map(self, units: list[Unit]) -> None:
        """Make the parts of `units`, here or on the workers."""
        work = partial(encode_units, self.work, self.reader)
        if self.mapper is not None:
            lists = [units[i :: self.workers] for i in range(min(self.workers, len(units)))]
            for done, _ in enumerate(self.mapper(work, lists)):
                self.progress("encode, lists of units", done + 1, len(lists))
            return
        if self.workers == 1 or len(units) < 2:
            for done, unit in enumerate(units):
                self.progress("encode", done, len(units))
                work([unit])
            return
        # Spawned, not forked: forked copies of torch's and FFmpeg's threads can hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            self.workers, context, initializer=_start, initargs=(os.getpid(), work)
        )
        together = max(1, min(16, len(units) // (64 * self.workers)))  # each task takes memory
        try:
            for done, _ in enumerate(pool.map(_work, units, chunksize=together)):
                self.progress("encode", done + 1, len(units))
        except BrokenProcessPool as error:
            raise UserError(
                "a worker of the encoder was killed (out of memory?). What it had finished is "
                "kept: give the same command, perhaps with fewer workers (launch.parallel)."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
