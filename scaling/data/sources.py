"""What a study is made of: the files of each source, their split, and the pixels of a unit of work.

A unit is what one worker does at a time: one video, a chunk of images, or a block of built-in
clips. What it gives depends on its content, the settings and the seed, never on other units.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import av
import numpy as np

from scaling.config.schema import DataConfig, SourceConfig
from scaling.data import archives, leaves, lerobot, media
from scaling.data.video import Part, read_pictures, read_video
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
    episodes: dict[str, lerobot.Episode] = field(default_factory=dict)  # those of LeRobot
    together: dict[str, str] = field(default_factory=dict)  # what an episode of many cameras is

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
        """Move the first training file, and all that belong to it, to validation."""
        unit = self.split_unit(self.train[0])
        # They have one place in the order of the hash: neighbours.
        moved = list(takewhile(lambda name: self.split_unit(name) == unit, self.train))
        self.validation += moved
        del self.train[: len(moved)]

    def split_unit(self, name: str) -> str:
        """What is never on both sides: a content, or an episode with all of its cameras."""
        return self.together.get(name, self.identity[name])


@dataclass(frozen=True, slots=True)
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
    media_names = _listed(source, root, suffixes)
    files: dict[str, str] = {}
    for name in media_names:
        try:
            source.identity[name] = _fingerprint(source, name, files)
        except OSError as error:
            reason = error.strerror or str(error)
            source.rows.append(row(source.name, "", name, "error", error=reason))
    if not source.identity:
        raise _nothing(source, root, suffixes, len(media_names))
    whole: dict[str, str] = {}  # the first camera's content stands for an episode
    for name in sorted(source.episodes.keys() & source.identity.keys()):
        group = source.episodes[name].group
        source.together[name] = whole.setdefault(group, source.identity[name])
    split(source, val_fraction, seed)
    return source


def split(source: Source, val_fraction: float, seed: int) -> None:
    """Share the files out to training and validation."""
    # Equal contents under two names must not meet across the split: the hash is of the content.
    names = sorted(source.identity)
    names.sort(key=lambda name: _number(seed, "split", source.split_unit(name)))  # stable
    units = groupby(names, key=source.split_unit)
    while len(source.validation) < round(val_fraction * len(names)):
        source.validation += next(units)[1]
    source.train = names[len(source.validation) :]


def _listed(source: Source, root: Path, suffixes: frozenset[str]) -> list[str]:
    """The media of a source by name, those inside of archives and datasets too."""
    names, left_out = media.list_files(root, suffixes | archives.SUFFIXES)
    above = lerobot.root_above(source.folder)
    if above is not None:
        raise lerobot.refused(source.name, above, f"give that folder, not {root} in it")
    ours = [
        n.removesuffix(lerobot.INFO) for n, _ in left_out if f"/{n}".endswith(f"/{lerobot.INFO}")
    ]
    if ours and source.kind != "video":
        what = source.folder / ours[0]
        raise lerobot.refused(source.name, what, "its episodes are clips, kind: video")
    for dataset in ours:
        found, told = lerobot.episodes(source.folder, dataset.removesuffix("/"))
        source.episodes |= found
        source.rows += [row(source.name, "", name, "error", error=why) for name, why in told]
    used = {episode.file for episode in source.episodes.values()}
    for name, why in left_out:
        if source.kind == "video" and _moves(source.folder / name):
            if not name.lower().endswith(".webp") or "webp_anim" in av.codecs_available:
                names.append(name)
                continue
            why = (
                "animated WebP, of which this PyAV gives one picture: PyAV 19 reads it, or convert"
            )
            source.rows.append(row(source.name, "", name, "error", error=why + " it (.gif, .mp4)"))
            continue
        if name.lower().endswith(archives.COMPRESSED):
            why = "compressed: its members cannot be reached one by one; unpack it to .tar"
        source.rows.append(row(source.name, "", name, "ignored", error=why))
    media_names = list(source.episodes)
    for name in names:
        if any(name.startswith(dataset) for dataset in ours):
            if name not in used and Path(name).suffix.lower() not in archives.SUFFIXES:
                why = "of no episode of the LeRobot dataset that it lies in"
                source.rows.append(row(source.name, "", name, "ignored", error=why))
        elif Path(name).suffix.lower() in archives.SUFFIXES:
            inside, left = archives.members(source.folder, name, source.kind)
            source.members |= inside
            media_names += inside
            source.rows += [row(source.name, "", n, status, error=why) for n, status, why in left]
        else:
            media_names.append(name)
    return media_names


def _moves(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in media.MAY_MOVE and media.moves(path)


def _nothing(source: Source, root: Path, suffixes: frozenset[str], listed: int) -> UserError:
    """The refusal of a source without a file that can be read; the first reasons are in it."""
    told = sorted(source.rows, key=lambda r: str(r["status"]) != "error")  # errors first
    wrong = [f"{r['path']}: {r['error']}" for r in told if r["error"] != media.OTHER_KIND]
    reasons = "".join(f" {reason}." for reason in wrong[:3])
    other, theirs = "images", media.IMAGE_SUFFIXES
    if source.kind == "images":
        other, theirs = "video", media.VIDEO_SUFFIXES
    found = sum(Path(r["path"]).suffix.lower() in theirs for r in told)
    if found:
        reasons += f" {found} of them would be kind: {other}."
    known = " ".join(sorted(suffixes))
    return UserError(
        f"source {source.name!r}: no readable {source.kind} file in {root} ({listed} "
        f"with a known suffix, {len(source.rows)} other entries).{reasons} Known suffixes: {known},"
        " and these in .tar (WebDataset), .parquet (Hugging Face) or a LeRobot dataset."
    )


def _fingerprint(source: Source, name: str, files: dict[str, str]) -> str:
    """Of a media file; `files` keeps those of files that hold many episodes."""
    episode = source.episodes.get(name)
    if episode is not None:
        if episode.file not in files:
            files[episode.file] = media.fingerprint(source.folder / episode.file)
        if episode.alone:  # as the file would be called in a folder of files
            return files[episode.file]
        where = [files[episode.file], episode.start, episode.row, episode.frames, episode.column]
        return hashlib.blake2b(json.dumps(where).encode(), digest_size=16).hexdigest()
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
                clips, about = self._read(source, unit.split, name, rng)
            except media.MediaError as error:
                rows.append(row(source.name, unit.split, name, "error", error=str(error)))
                continue
            found.append(clips)
            status = "partial" if about["error"] else "ok"
            rows.append(row(source.name, unit.split, name, status, **about))
        if not found:
            return np.empty((0, data.frames, data.size, data.size, 3), np.uint8), rows
        return np.concatenate(found), rows

    def _read(
        self, source: Source, split: str, name: str, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        data, episode = self.data, source.episodes.get(name)
        how: dict[str, Any] = {
            "frames": data.frames,
            "size": data.size,
            "stride": data.stride,
            "clips": data.clips_per_video,
            "rng": rng,
            "fps": data.fps,
            "zoom": data.zoom,
        }
        if episode is None:
            with archives.as_file(source.folder, name, source.members.get(name)) as path:
                if source.kind == "images":
                    crops = self.crops(source, split)
                    size, zoom = data.size, data.zoom
                    pixels = media.read_image(path, size=size, crops=crops, rng=rng, zoom=zoom)
                    return pixels, {"frames": 1, "error": ""}
                video = read_video(path, **how)
        elif episode.column:
            video = read_pictures(_pictures(source.folder, episode), episode.fps, **how)
        else:
            part = Part(episode.start, episode.frames, episode.fps)
            video = read_video(source.folder / episode.file, part=part, **how)
        about = {"frames": video.frames, "seconds": round(video.seconds, 3), "error": video.note}
        return video.pixels, about | {"clips": len(video.pixels)}


def _pictures(folder: Path, episode: lerobot.Episode) -> list[Callable[[], np.ndarray]]:
    """The frames of an episode that are images in a parquet file."""

    def picture(row: int) -> np.ndarray:
        try:
            held = archives.content(folder, archives.Member(episode.file, row, 0, episode.column))
        except OSError as error:
            raise media.MediaError(f"row {row} of {episode.file}: {error}") from error
        return media.read_rgb(io.BytesIO(held))

    return [partial(picture, episode.row + frame) for frame in range(episode.frames)]


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
