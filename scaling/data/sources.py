"""What a study is made of: the files of each source, their split, and the pixels of a unit of work.

A unit is what one worker does at a time: one video, a chunk of images, or a block of built-in
clips. What it gives depends on its content, the settings and the seed, never on other units.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config.schema import DataConfig, SourceConfig
from scaling.data import archives, leaves, media
from scaling.data.video import read_video
from scaling.errors import UserError

LEAF_BLOCK = 1024  # clips of a unit of the built-in source
IMAGE_CHUNK = 64  # image files of a unit


@dataclass
class Source:
    """The files of a source, identified by their content and split, before anything is decoded."""

    number: int
    settings: SourceConfig
    identity: dict[str, str] = field(default_factory=dict)  # relative path -> content fingerprint
    train: list[str] = field(default_factory=list)  # both in the order of a keyed hash
    validation: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)  # manifest rows of what is left out
    members: dict[str, archives.Member] = field(default_factory=dict)  # those inside of archives

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def kind(self) -> str:
        return self.settings.kind

    @property
    def folder(self) -> Path:
        assert self.settings.path is not None
        root = self.settings.path.expanduser()
        return root if root.is_dir() else root.parent

    @property
    def content(self) -> str:
        """A hash of all files' relative paths and contents."""
        return hashlib.sha256(json.dumps(sorted(self.identity.items())).encode()).hexdigest()

    def move_next(self) -> None:
        """Move the first training file, and all files of the same content, to validation."""
        content = self.identity[self.train[0]]
        self.validation += [name for name in self.train if self.identity[name] == content]
        self.train = [name for name in self.train if self.identity[name] != content]


@dataclass(frozen=True)
class Unit:
    """What is encoded at once: a range of the built-in clips, a video, or some images."""

    source: int
    split: str
    name: str  # unique among the units of a study; says what the content is
    start: int = 0  # built-in clips: the range in the stream
    count: int = 0
    files: tuple[str, ...] = ()


def survey(number: int, settings: SourceConfig, val_fraction: float, seed: int) -> Source:
    """List and identify the files of a source and split them by a keyed hash of their content.

    Raises UserError when there is no readable file of the source's kind.
    """
    source = Source(number, settings)
    if source.kind == "leaves":
        return source
    suffixes = media.VIDEO_SUFFIXES if source.kind == "video" else media.IMAGE_SUFFIXES
    assert settings.path is not None
    root = settings.path.expanduser()
    if not root.exists():
        raise UserError(
            f"source {source.name!r}: {root} does not exist. Give a folder of {source.kind} files."
        )
    names, left_out = media.list_files(root, suffixes | archives.SUFFIXES)
    for name, why in left_out:
        if name.lower().endswith(archives.COMPRESSED):
            why = "compressed: its members cannot be reached one by one; unpack it to .tar"
        source.rows.append(row(source.name, "", name, "ignored", error=why))
    media_names = []
    for name in names:
        if Path(name).suffix.lower() not in archives.SUFFIXES:
            media_names.append(name)
            continue
        inside, told = archives.members(source.folder, name, source.kind)
        source.members |= inside
        media_names += inside
        source.rows += [row(source.name, "", n, status, error=why) for n, status, why in told]
    for name in media_names:
        try:
            source.identity[name] = _fingerprint(source, name)
        except OSError as error:
            reason = error.strerror or str(error)
            source.rows.append(row(source.name, "", name, "error", error=reason))
    if not source.identity:
        known = " ".join(sorted(suffixes))
        raise UserError(
            f"source {source.name!r}: no readable {source.kind} file in {root} ({len(media_names)} "
            f"with a known suffix, {len(source.rows)} other entries). Known suffixes: {known}, and "
            f"these in .tar (WebDataset) or .parquet (Hugging Face)."
        )
    # Equal contents under two names must not meet across the split: the hash is of the content.
    rank = {name: _number(seed, "split", content) for name, content in source.identity.items()}
    source.train = sorted(source.identity, key=lambda name: (rank[name], name))
    while len(source.validation) < round(val_fraction * len(source.identity)):
        source.move_next()
    return source


def _fingerprint(source: Source, name: str) -> str:
    member = source.members.get(name)
    if member is None:
        return media.fingerprint(source.folder / name)
    if member.column:
        held = archives.content(source.folder, member)
        return media.fingerprint_of(io.BytesIO(held), 0, len(held))
    with (source.folder / member.archive).open("rb") as file:
        return media.fingerprint_of(file, member.start, member.size)


@dataclass(frozen=True)
class Reader:
    """Cuts clips from sources. Travels to the workers, so it holds no open file."""

    data: DataConfig
    seed: int
    sources: tuple[Source, ...]

    @property
    def keeps_pixels(self) -> bool:
        """Whether frames are stored beside the tokens."""
        return self.data.pixels

    def units(self, source: Source, split: str) -> Iterator[Unit]:
        """The units of a split, in the order in which they are joined."""
        if source.kind == "leaves":
            total = self.data.train_sequences if split == "train" else self.data.val_sequences
            for start in range(0, total, LEAF_BLOCK):
                name = f"{source.number}-{split}-{start}"
                yield Unit(source.number, split, name, start, min(LEAF_BLOCK, total - start))
            return
        files = source.train if split == "train" else source.validation
        chunk = 1 if source.kind == "video" else IMAGE_CHUNK
        for start in range(0, len(files), chunk):
            yield self.file_unit(source, split, tuple(files[start : start + chunk]))

    def file_unit(self, source: Source, split: str, files: tuple[str, ...]) -> Unit:
        """Named by path and content: its part is right whatever else joins the source."""
        what = json.dumps([(name, source.identity[name]) for name in files])
        digest = hashlib.blake2b(what.encode(), digest_size=10).hexdigest()
        return Unit(source.number, split, f"{source.number}-{split}-{digest}", files=files)

    def crops(self, source: Source, split: str) -> int:
        """Crops of one image: enough for the training sequences asked for; one in validation."""
        if split == "validation":
            return 1
        return -(-self.data.train_sequences * self.data.frames // len(source.train))

    def minimum(self, source: Source) -> int:
        """Clips, or images, that each split of a source needs."""
        return self.data.frames if source.kind == "images" else 1

    def pixels(
        self, unit: Unit, limit: int | None = None
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Clips uint8 (n, T, S, S, 3) of a unit, or crops of images (n, S, S, 3); manifest rows.

        `limit` bounds the frames that the built-in source makes.
        """
        data, source = self.data, self.sources[unit.source]
        if source.kind == "leaves":
            count = unit.count if limit is None else min(unit.count, -(-limit // data.frames))
            clips = leaves.clips(
                self.seed,
                unit.start,
                count,
                frames=data.frames,
                size=data.size,
                stream=unit.split,
            )
            return clips, []
        found, rows = [], []
        for name in unit.files:
            rng = None
            if unit.split == "train":
                rng = rng_of(self.seed, "crop", source.identity[name])
            try:
                member = source.members.get(name)
                with archives.as_file(source.folder, name, member) as path:
                    clips, about = self._file(source, unit.split, path, rng)
            except media.MediaError as error:
                rows.append(row(source.name, unit.split, name, "error", error=str(error)))
                continue
            found.append(clips)
            status = "partial" if about["error"] else "ok"
            rows.append(row(source.name, unit.split, name, status, **about))
        if not found:
            return np.empty((0, data.frames, data.size, data.size, 3), np.uint8), rows
        return np.concatenate(found), rows

    def _file(
        self, source: Source, split: str, path: Path, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        data = self.data
        if source.kind == "images":
            crops = self.crops(source, split)
            pixels = media.read_image(path, size=data.size, crops=crops, rng=rng, zoom=data.zoom)
            return pixels, {"frames": 1, "error": ""}
        video = read_video(
            path,
            frames=data.frames,
            size=data.size,
            stride=data.stride,
            clips=data.clips_per_video,
            rng=rng,
            fps=data.fps,
            zoom=data.zoom,
        )
        about = {"frames": video.frames, "seconds": round(video.seconds, 3), "error": video.note}
        return video.pixels, about | {"clips": len(video.pixels)}


def unusable(source: Source, needed: int) -> UserError:
    """The refusal of a source that has too few files for both splits."""
    what = "images" if source.kind == "images" else "videos"
    return UserError(
        f"source {source.name!r}: {source.settings.path} has {len(source.identity)} {what}, and "
        f"too few that can be used: training and validation each need at least {needed} of "
        "different content (they are split by file, so that no clip is in both). Add files, or use "
        "fewer or closer frames (data.frames, data.stride)."
    )


def rng_of(*parts: Any) -> np.random.Generator:
    """A generator keyed by a hash of the parts."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


def row(source: str, split: str, path: str, status: str, **rest: Any) -> dict[str, Any]:
    """A row of the manifest."""
    empty: dict[str, Any] = {"frames": 0, "seconds": 0.0, "clips": 0, "tokens": 0, "error": ""}
    return {"source": source, "split": split, "path": path, "status": status} | empty | rest


def _number(*parts: Any) -> float:
    """A number in [0, 1) that is a keyed hash of the parts."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
