"""Token shards: fixed-length sequences in uint16 files, read in an order that is one counter.

A sequence of n codes is n + 2 tokens: a start token (video or image), the codes + 4, the end token.
A model sees the first n + 1 and predicts the last n + 1, so its context is n + 1 positions.

Sample g of a study (g = step * batch + position in the batch) is a pure function of g and the seed:
a fixed table shares the counters out to the sources by weight, and a keyed permutation turns a
source's counter into a row, with a new permutation in every pass. Nothing else is state, so any
number of workers or ranks, started anywhere, reads the same batches.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.storage import files
from scaling.study_folder import TokenFolder

VIDEO_START, END, IMAGE_START = 1, 2, 3  # 0 is never written
SPECIALS = 4  # code c is token c + 4
SCHEMA = 2
SPLITS = ("train", "validation")
SHARD_BYTES = 1 << 30  # a file holds as many whole sequences as fit

_VERIFY_BYTES = 4 << 30
_PERIOD = 10_000  # samples after which the sources' shares repeat: weights have this resolution
_BLOCK = 8192  # samples whose rows are computed together


def sequence(codes_NL: np.ndarray, start: int) -> np.ndarray:
    """Tokens, uint16 (N, L + 2), of codes (N, L); `start` is VIDEO_START or IMAGE_START."""
    n, length = codes_NL.shape
    tokens = np.empty((n, length + 2), np.uint16)
    tokens[:, 0], tokens[:, -1] = start, END
    np.add(codes_NL, SPECIALS, out=tokens[:, 1:-1], casting="unsafe")
    return tokens


def permute(counter: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """A keyed permutation of 0 .. size - 1 at the given places, int64; nothing is stored.

    A four-round Feistel network over the next even number of bits; results beyond `size` walk the
    cycle until they fall inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    if size == 1:
        return np.zeros(counter.shape, np.int64)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=32).digest()
    round_keys = np.frombuffer(digest, np.uint64)
    out = counter.astype(np.uint64)
    todo = np.arange(out.size)
    flat = out.reshape(-1)
    while todo.size:
        left, right = flat[todo] >> shift, flat[todo] & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        flat[todo] = (left << shift) | right
        todo = todo[flat[todo] >= size]
    return flat.reshape(counter.shape).astype(np.int64)


def mixture(weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The source of each sample of a period, (P,), and how often it came before, (P, S) and total.

    Each source's turns are evenly spaced, so its share of any window is within one turn or two of
    its weight. Raises UserError for weights that cannot be honoured.
    """
    share = np.asarray(weights, float) / sum(weights)
    turns = np.floor(share * _PERIOD).astype(np.int64)
    # Largest remainders take what rounding left over.
    for source in np.argsort(-(share * _PERIOD - turns), kind="stable")[: _PERIOD - turns.sum()]:
        turns[source] += 1
    if (turns == 0).any():
        raise UserError(
            f"weights {list(weights)}: a source with less than 1/{_PERIOD} of the whole would "
            "never be seen. Raise its weight or remove it."
        )
    place = np.concatenate([(np.arange(k) + 0.5) / k for k in turns])
    owner = np.repeat(np.arange(len(turns)), turns)
    order = owner[np.argsort(place, kind="stable")]
    before = np.zeros((_PERIOD + 1, len(turns)), np.int64)
    before[1:] = np.cumsum(order[:, None] == np.arange(len(turns)), axis=0)
    return order, before


class Writer:
    """Writes the sequences of one split into files of at most SHARD_BYTES."""

    def __init__(self, folder: Path, stem: str, width: int, dtype: Any = np.uint16) -> None:
        self.folder, self.stem = folder, stem
        # Rows of a full shard.
        self.rows = max(1, SHARD_BYTES // (np.dtype(dtype).itemsize * width))
        self.entries: list[dict[str, Any]] = []
        self._open()

    def write(self, tokens_NW: np.ndarray) -> None:
        """Append sequences (N, width)."""
        while len(tokens_NW):
            if self.count == self.rows:
                self._finish()
                self._open()
            part = tokens_NW[: self.rows - self.count]
            content = part.tobytes()
            self.file.write(content)
            self.digest.update(content)
            self.count += len(part)
            tokens_NW = tokens_NW[len(part) :]

    def close(self) -> dict[str, Any]:
        """Make everything durable; returns the split's entry of the index."""
        self._finish()
        total = sum(entry["sequences"] for entry in self.entries)
        return {"sequences": total, "rows_per_shard": self.rows, "shards": self.entries}

    def _open(self) -> None:
        self.path = self.folder / f"{self.stem}-{len(self.entries):05d}.bin"
        self.file, self.digest, self.count = self.path.open("wb"), hashlib.sha256(), 0

    def _finish(self) -> None:
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
        digest = self.digest.hexdigest()
        self.entries.append({"file": self.path.name, "sequences": self.count, "sha256": digest})


class Rows:
    """The sequences of one split, in as many memory-mapped files as it has."""

    def __init__(
        self,
        folder: Path,
        entry: dict[str, Any],
        width: int,
        verify: bool,
        dtype: Any = np.uint16,
    ) -> None:
        self.per_shard: int = entry["rows_per_shard"]
        self.length: int = entry["sequences"]
        self.maps: list[np.ndarray] = []
        for shard in entry["shards"]:
            row_bytes = width * np.dtype(dtype).itemsize
            _check(folder / shard["file"], shard, row_bytes, verify)
            shape = (shard["sequences"], width)
            self.maps.append(np.memmap(folder / shard["file"], dtype, mode="r", shape=shape))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row_N: np.ndarray) -> np.ndarray:
        """Sequences (N, width) at the given rows."""
        if len(self.maps) == 1:
            one: np.ndarray = self.maps[0][row_N]
            return one
        shard_N, place_N = np.divmod(row_N, self.per_shard)
        out = np.empty((len(row_N), self.maps[0].shape[1]), self.maps[0].dtype)
        for shard in np.unique(shard_N):
            mine = np.flatnonzero(shard_N == shard)
            out[mine] = self.maps[shard][place_N[mine]]
        return out


@dataclass(frozen=True)
class TokenData:
    """The tokens of a study, opened from the directory that `encode.prepare` returned."""

    path: Path
    key: str
    vocab: int
    context: int
    sources: tuple[str, ...]
    tokenizer: str
    meta: dict[str, Any]
    _train: tuple[Rows, ...] = field(repr=False)
    _validation: tuple[Rows, ...] = field(repr=False)
    _pixels: dict[str, tuple[Rows, ...]] = field(repr=False)  # by split; empty if not stored
    _plan: "_Plan" = field(repr=False)

    @classmethod
    def open(cls, path: Path, *, verify: bool | None = None) -> "TokenData":
        """Check the index and every shard, then map the shards into memory.

        Sizes are always checked, sha256 with `verify`, by default up to 4 GiB in all (seconds).
        Raises UserError that names the file and the remedy.
        """
        try:
            return cls._opened(path, read_index(path), verify)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{TokenFolder(path).index} is damaged ({type(error).__name__}: {error}). Remove "
                f"{path} and run again: it will be encoded anew."
            ) from error

    @classmethod
    def _opened(cls, path: Path, index: dict[str, Any], verify: bool | None) -> "TokenData":
        width = index["context"] + 1
        if verify is None:
            rows = sum(s[split]["sequences"] for s in index["sources"] for split in SPLITS)
            verify = 2 * width * rows <= _VERIFY_BYTES
        opened = {
            split: tuple(Rows(path, s[split], width, verify) for s in index["sources"])
            for split in SPLITS
        }
        values = 3 * index["frames"] * index["size"] ** 2
        pixels = {
            split: tuple(
                Rows(path, s[split]["pixels"], values, verify, np.uint8) for s in index["sources"]
            )
            for split in SPLITS
            if all("pixels" in s[split] for s in index["sources"])
        }
        weights = tuple(float(source["weight"]) for source in index["sources"])
        _mixture(weights)
        return cls(
            path=path,
            key=index["key"],
            vocab=index["vocab"],
            context=index["context"],
            sources=tuple(source["name"] for source in index["sources"]),
            tokenizer=index["tokenizer"]["label"],
            meta=index,
            _train=opened["train"],
            _validation=opened["validation"],
            _pixels=pixels,
            _plan=_Plan(weights, tuple(len(rows) for rows in opened["train"])),
        )

    def batch(self, step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 (B, n + 2) and source numbers (B,) of a step; any order of calls."""
        source_B, row_B = self._places(step, batch, seed)
        return _gather(self._train, source_B, row_B).astype(np.int64), source_B

    def frames(self, step: int, batch: int, seed: int) -> np.ndarray:
        """The frames of the same step's sequences, uint8 (B, T, S, S, 3).

        Raises UserError when the frames were not stored beside the tokens.
        """
        source_B, row_B = self._places(step, batch, seed)
        return self._as_frames(_gather(self._stored("train"), source_B, row_B))

    def validation_frames(self) -> dict[str, np.ndarray]:
        """Source name -> the frames of its validation sequences, uint8 (n_seq, T, S, S, 3)."""
        pairs = zip(self.sources, self._stored("validation"), strict=True)
        return {name: self._as_frames(rows[np.arange(len(rows))]) for name, rows in pairs}

    def _stored(self, split: str) -> tuple[Rows, ...]:
        if split not in self._pixels:
            raise UserError(
                f"{self.path} holds tokens only. Inputs or targets that are patches need the "
                "frames too: set data.pixels: true and encode again."
            )
        return self._pixels[split]

    def _as_frames(self, pixels_BD: np.ndarray) -> np.ndarray:
        size = self.meta["size"]
        return pixels_BD.reshape(len(pixels_BD), self.meta["frames"], size, size, 3)

    def _places(self, step: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and row of each sequence of a step."""
        first = step * batch
        source_B = np.empty(batch, np.int64)
        row_B = np.empty(batch, np.int64)
        done = 0
        while done < batch:
            block, offset = divmod(first + done, _BLOCK)
            take = min(batch - done, _BLOCK - offset)
            source, row = _block_rows(self._plan, block, seed)
            source_B[done : done + take] = source[offset : offset + take]
            row_B[done : done + take] = row[offset : offset + take]
            done += take
        return source_B, row_B

    def validation(self) -> dict[str, np.ndarray]:
        """Source name -> its validation sequences, int64 (n_seq, n + 2)."""
        pairs = zip(self.sources, self._validation, strict=True)
        return {name: rows[np.arange(len(rows))].astype(np.int64) for name, rows in pairs}

    def epochs(self, step: int, batch: int, seed: int) -> dict[str, float]:
        """Passes made over each source's training sequences by the first `step` steps."""
        _, before = _mixture(self._plan.weights)
        periods, rest = divmod(step * batch, _PERIOD)
        seen = periods * before[-1] + before[rest]
        return {
            name: int(count) / size
            for name, count, size in zip(self.sources, seen, self._plan.sizes, strict=True)
        }


def _gather(by_source: tuple[Rows, ...], source_B: np.ndarray, row_B: np.ndarray) -> np.ndarray:
    if len(by_source) == 1:
        return by_source[0][row_B]
    out = np.empty((len(row_B), by_source[0].maps[0].shape[1]), by_source[0].maps[0].dtype)
    for s, rows in enumerate(by_source):
        mine = np.flatnonzero(source_B == s)
        out[mine] = rows[row_B[mine]]
    return out


@dataclass(frozen=True)
class _Plan:
    weights: tuple[float, ...]
    sizes: tuple[int, ...]


_mixture = lru_cache(maxsize=16)(mixture)


@lru_cache(maxsize=16)
def _block_rows(plan: _Plan, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and row of samples block * _BLOCK ... ."""
    order, before = _mixture(plan.weights)
    period, place = np.divmod(np.arange(block * _BLOCK, (block + 1) * _BLOCK), _PERIOD)
    source = order[place]
    counter = period * before[-1][source] + before[place, source]
    row = np.empty(_BLOCK, np.int64)
    for s, size in enumerate(plan.sizes):
        epoch = counter // size
        for e in np.unique(epoch[source == s]):
            mine = np.flatnonzero((source == s) & (epoch == e))
            row[mine] = permute(counter[mine] % size, size, (seed, s, int(e)))
    return source, row


INDEX = {"key", "vocab", "context", "frames", "size", "tokens_per_frame", "tokenizer", "sources"}


def read_index(path: Path) -> dict[str, Any]:
    """The index of a token directory; UserError when it is not there or not readable."""
    file = TokenFolder(path).index
    try:
        index = files.read_json(file, dict)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds no token shards: {file.name} is missing. Run `scaling encode`, or "
            "remove the directory and run the study again."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). Remove {path} and run again: it is encoded anew."
        ) from error
    if index.get("schema") != SCHEMA:
        raise UserError(
            f"{file} has schema {index.get('schema')!r}, this version writes {SCHEMA}. Remove "
            f"{path} and run again: it will be encoded anew."
        )
    wrong = sorted(INDEX - index.keys())
    for name in ("vocab", "context", "frames", "size"):
        wrong += [name] * (name in index and not (type(index[name]) is int and index[name] > 0))
    described = {"name", "kind", "weight", *SPLITS}
    sources = index.get("sources")
    whole = isinstance(sources, list) and all(
        isinstance(source, dict)
        and source.keys() >= described
        and all(_is_split(source[split]) for split in SPLITS)
        for source in sources
    )
    named = index.get("tokenizer")
    if "tokenizer" in index and not (
        isinstance(named, dict)
        and isinstance(named.get("label"), str)
        and isinstance(named.get("file", ""), str | None)
    ):
        wrong.append("tokenizer")
    if "sources" in index and not (whole and sources):
        wrong.append("sources")
    if wrong:
        raise UserError(
            f"{file} lacks {', '.join(wrong)}: it is damaged, or somebody else's. Remove "
            f"{path} and run again: it will be encoded anew."
        )
    if foreign := _foreign(index, path.resolve().name):
        raise UserError(
            f"{file}: {foreign}: it was changed, or it is of other tokens. Put the file back, or "
            f"remove {path} and run again: it will be encoded anew."
        )
    return index


def _is_split(entry: Any) -> bool:
    """Whether it has what `Writer.close` says of a split."""
    return (
        isinstance(entry, dict)
        and all(
            type(entry.get(n)) is int and entry[n] >= 0 for n in ("sequences", "rows_per_shard")
        )
        and isinstance(entry.get("shards"), list)
        and all(
            isinstance(shard, dict)
            and type(shard.get("sequences")) is int
            and shard["sequences"] >= 0
            and isinstance(shard.get("sha256"), str)
            and isinstance(shard.get("file"), str)
            for shard in entry["shards"]
        )
    )


def _foreign(index: dict[str, Any], name: str) -> str:
    """What in an index does not go with the folder's name, or with the settings that its key is
    a hash of."""
    key = index["key"]
    if re.fullmatch("[0-9a-f]{16}", name) and key != name:
        return f"its key is {key}, and the folder is named {name}"
    settings = index.get("settings")
    if settings is None:
        return ""
    if key != settings_key(settings):
        return f"its key {key} is not that of its settings"
    for one in ("frames", "size"):
        if index[one] != settings[one]:
            return f"{one} is {index[one]}, and {settings[one]} in its settings"
    if len(index["sources"]) != len(settings["sources"]):
        return f"{len(index['sources'])} sources, and {len(settings['sources'])} in its settings"
    for here, asked in zip(index["sources"], settings["sources"], strict=True):
        if wrong := [one for one in asked if here.get(one) != asked[one]]:
            return f"{', '.join(wrong)} of source {asked['name']} not as in its settings"
    return ""


def settings_key(settings: dict[str, Any]) -> str:
    """The name of the tokens that these settings make."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _check(file: Path, shard: dict[str, Any], row_bytes: int, verify: bool) -> None:
    if why := fault(file, shard, row_bytes, verify):
        raise UserError(f"{why}. Remove {file.parent} and run again: it will be encoded anew.")


def fault(file: Path, shard: dict[str, Any], row_bytes: int, verify: bool) -> str:
    """What is wrong with a shard's file, "" of one that is as its index says: its size and, with
    `verify`, its sha256."""
    expected = shard["sequences"] * row_bytes
    try:
        size = file.stat().st_size
        if size == expected and verify:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            if digest != shard["sha256"]:
                return f"shard {file} is corrupt: its sha256 is not the index's"
    except OSError as error:
        return f"shard {file} cannot be read ({error.strerror})"
    return (
        "" if size == expected else f"shard {file} has {size} bytes, its index promises {expected}"
    )
