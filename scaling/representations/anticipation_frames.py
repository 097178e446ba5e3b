"""Annotated frames and those before them as a study's tokens, kept on disk.

    STUDY/anticipated/<key>/index.json, tokens.npz

A folder has Ego4D's annotation files and, anywhere below it, videos: VIDEO.mp4, of which `frame`
is the number of the frame, or clips, CLIP_UID.mp4, of which `clip_frame` is (any kind of video that
a study reads). Frames before the first are the first, as StillFast has it.

A frame is not cut: its short side is `px`, its long side what the commonest shape of the annotated
videos asks, and a video of another shape is stretched to that, for sequences of one length.

Shapes: F annotated frames, T frames of each, h w tokens of a frame.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import media
from scaling.data.video import read_numbered
from scaling.errors import UserError, did_you_mean
from scaling.models.anticipation import Layout
from scaling.representations.anticipation_files import (
    SPLITS,
    TEST,
    Annotations,
    Still,
    read_annotations,
)
from scaling.storage import files
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder

SCHEMA = 1
CHUNK = 32  # videos read before their codes are written
MAX_STRETCH = 0.05  # of a video, beside the shape that its annotations are of
MOST = 5  # files named in a message
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Videos:
    """Annotated frames and where each is: a file of `root`, and its number in it."""

    root: Path
    splits: dict[str, Annotations]  # train, val, perhaps test
    places: dict[str, list[tuple[str, int]]]  # of the stills of each split

    @property
    def key(self) -> str:
        """A hash of annotations and videos, not of where they lie."""
        digest = hashlib.sha256()
        for split, one in self.splits.items():
            digest.update(f"{split} {one.key}\0".encode())
        for name in sorted({name for places in self.places.values() for name, _ in places}):
            digest.update(f"{name} {media.fingerprint(self.root / name)}\0".encode())
        return digest.hexdigest()[:16]


def read_folder(root: Path) -> Videos:
    """The annotations of a folder and the videos that they are of.

    Raises UserError: no annotations, none to learn from or to be measured on, other categories in
    one split than in another, videos that are not there.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; want {', '.join(SPLITS.values())} and videos")
    paths = {split: root / name for split, name in SPLITS.items()}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"{root}: has no {' and no '.join(path.name for path in missing)}: frames to learn "
            "from and frames to be measured on are two files in Ego4D's layout"
        )
    splits = {s: read_annotations(path, to_learn=s == "train") for s, path in paths.items()}
    if (root / TEST).is_file():
        splits["test"] = read_annotations(root / TEST)
    _check_categories(splits)
    for split in ("train", "val"):
        if not splits[split].annotated:
            raise UserError(
                f"{splits[split].path}: its frames have no `objects`, as the challenge's test "
                "split, which is written a submission of and learned nothing from"
            )
    there = _by_stem(root)
    lost: dict[str, list[str]] = {}
    places: dict[str, list[tuple[str, int]]] = {}
    for split, one in splits.items():
        places[split] = []
        for still in one.stills:
            number, name = still.frame, there.get(still.video)
            if name is None and still.clip:
                number, name = still.clip_frame, there.get(still.clip)
            if name is None:
                lost.setdefault(still.video, []).append(still.uid)
            else:
                places[split].append((name, number))
    if lost:
        shown = ", ".join(f"{v} ({len(uids)} frames)" for v, uids in list(lost.items())[:MOST])
        hint = did_you_mean(next(iter(lost)), there)
        raise UserError(
            f"{root}: {len(lost)} annotated videos are not there: {shown}"
            f"{' ...' * (len(lost) > MOST)}{hint}. Put VIDEO.mp4 or CLIP_UID.mp4 anywhere below "
            "the folder, or take their annotations out: figures of fewer frames are others"
        )
    return Videos(root, splits, places)


def _by_stem(root: Path) -> dict[str, str]:
    names, _ = media.list_files(root, media.VIDEO_SUFFIXES)
    found: dict[str, str] = {}
    for name in names:
        stem = Path(name).stem
        if stem in found:
            raise UserError(f"{root}: {found[stem]} and {name} bear one name; keep one of them")
        found[stem] = name
    return found


def _check_categories(splits: dict[str, Annotations]) -> None:
    train = splits["train"]
    for one in list(splits.values())[1:]:
        for kind in ("nouns", "verbs"):
            a, b = getattr(train, kind), getattr(one, kind)
            differs = [f"{i}: {a.get(i)!r} and {b.get(i)!r}" for i in sorted({*a, *b})
                       if a.get(i) != b.get(i)]  # fmt: skip
            if differs:
                raise UserError(
                    f"{train.path} and {one.path.name}: other {kind} ({', '.join(differs[:MOST])}"
                    f"{' ...' * (len(differs) > MOST)}); a category is the same in all splits"
                )


@dataclass(frozen=True)
class Shape:
    """What is read of an annotated frame: frames, `stride` apart, the last of them it, by the px
    of a short side of the last one and of those before."""

    frames: int
    stride: int
    px: int
    fast_px: int

    def numbers(self, last: int) -> list[int]:
        """Of the frames, in time; none before the first."""
        return [max(0, last - self.stride * t) for t in reversed(range(self.frames))]

    def layout(self, patch: int, stills: Sequence[Still]) -> Layout:
        """Tokens of the frames, in the commonest shape of the stills'. Raises UserError."""
        for px in {self.px, self.fast_px}:
            if px % patch or px < patch:
                raise UserError(f"{px} px are no multiple of the tokenizer's {patch} px; use one")
        (width, height), _ = Counter((s.width, s.height) for s in stills).most_common(1)[0]
        short = min(width, height)

        def tokens(px: int) -> tuple[int, int]:
            rows, columns = (max(1, round(px / patch * side / short)) for side in (height, width))
            return rows, columns

        return Layout(self.frames - 1, tokens(self.fast_px), tokens(self.px))


def encode(
    folder: Path,
    videos: Videos,
    shape: Shape,
    tokenizer: Any,
    index: dict[str, Any],
    say: Say,
) -> tuple[Path, Layout]:
    """The directory of the tokens of all splits, made if need be, and their layout.

    Raises UserError: a video that cannot be read, or has no frame of an annotated number.
    """
    patch = round(index["size"] / index["tokens_per_frame"] ** 0.5)
    stills = [still for one in videos.splits.values() for still in one.stills]
    layout = shape.layout(patch, stills)
    for line in _notes(videos, layout, patch):
        say(line)
    settings = {"schema": SCHEMA, "data": videos.key, "tokens": index["key"],
                "shape": [shape.frames, shape.stride, shape.px, shape.fast_px]}  # fmt: skip
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    there = ProbeFolder(folder / key)
    if there.tokens_npz.exists() and there.index.exists():
        return there.path, layout
    parts = there.path / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    codes = {s: _encoded(parts, videos, s, shape, layout, patch, tokenizer) for s in videos.splits}
    files.write(there.tokens_npz, _npz(**codes))
    shutil.rmtree(parts)
    files.write(there.index, json.dumps(settings | {"layout": [layout.fast_hw, layout.still_hw]}))
    return there.path, layout


def _notes(videos: Videos, layout: Layout, patch: int) -> list[str]:
    lines = []
    for split, one in videos.splits.items():
        count = f"{len(one.stills):,} annotated frames of {len({s.video for s in one.stills}):,}"
        lines.append("; ".join([f"{one.path}: {count} videos", *one.notes]))
        h, w = layout.still_hw
        far = [s for s in one.stills if abs(s.width / s.height * h / w - 1) > 0.1]
        if far:
            lines.append(
                f"  {len(far):,} frames of {split} have another shape, and are stretched to "
                f"{w * patch} x {h * patch} px"
            )
    return lines


def _encoded(
    parts: Path,
    videos: Videos,
    split: str,
    shape: Shape,
    layout: Layout,
    patch: int,
    tokenizer: Any,
) -> np.ndarray:
    """Codes of the frames of each still in time, (F, tokens of the layout)."""
    by_file: dict[str, list[tuple[int, int]]] = {}
    for i, (name, last) in enumerate(videos.places[split]):
        by_file.setdefault(name, []).append((i, last))
    codes = np.zeros((len(videos.places[split]), layout.tokens), np.uint16)
    tell, done, wrong = teller(), 0, list[str]()
    names = list(by_file)
    for first in range(0, len(names), CHUNK):
        part = parts / f"{split}-{first:06d}.npz"
        chunk = names[first : first + CHUNK]
        rows = [i for name in chunk for i, _ in by_file[name]]
        if not part.exists():
            made = []
            for name in chunk:
                lasts = [last for _, last in by_file[name]]
                still = videos.splits[split].stills[by_file[name][0][0]]
                of = videos.root / name, (still.width, still.height), lasts
                try:
                    made.append(_of_video(*of, shape, layout, patch, tokenizer))
                except (media.MediaError, OSError) as error:
                    wrong.append(f"{name}: {error}")
            if wrong:  # all of them are looked at, to be told at once
                continue
            files.write(part, _npz(codes=np.concatenate(made)))
        with np.load(part) as held:
            codes[rows] = held["codes"]
        done += len(rows)
        tell(f"frames of {split}", done, len(codes))
    if wrong:
        more = len(wrong) - MOST
        lines = [*wrong[:MOST], *[f"... and {more} more videos"] * (more > 0)]
        raise UserError("\n".join(f"{videos.root}: {line}" for line in lines))
    return codes


def _of_video(
    path: Path,
    told: tuple[int, int],
    lasts: list[int],
    shape: Shape,
    layout: Layout,
    patch: int,
    tokenizer: Any,
) -> np.ndarray:
    """Codes (n, tokens) of the frames that end at each of n numbers of a video, whose width and
    height are told to be so: boxes are of these."""
    numbers, stills = {n for last in lasts for n in shape.numbers(last)}, sorted({*lasts})

    def make(rgb: np.ndarray) -> np.ndarray:
        height, width = rgb.shape[:2]
        if abs(width / height * told[1] / told[0] - 1) > MAX_STRETCH:
            raise media.MediaError(
                f"shows {width} x {height} px, where its annotations are of {told[0]} x {told[1]}: "
                "a video may be smaller than that, but not of another shape"
            )
        return _both(rgb, layout, patch)

    found, note = read_numbered(path, numbers, make)
    if lost := sorted(numbers - found.keys()):
        has = f"{', '.join(map(str, lost[:MOST]))}{' ...' * (len(lost) > MOST)}"
        more = f" ({note})" if note else ""
        raise media.MediaError(f"frames {has} are asked for and cannot be read{more}")
    (h, w), (fh, fw) = layout.still_hw, layout.fast_hw
    cut = 3 * h * w * patch * patch
    large = np.stack([found[n][:cut] for n in stills]).reshape(-1, h * patch, w * patch, 3)
    large_codes = dict(zip(stills, tokenizer.encode(large), strict=True))
    rows = [[large_codes[last]] for last in lasts]
    if layout.before:
        of = {n: at for at, n in enumerate(sorted(found))}
        small = np.stack([found[n][cut:] for n in of]).reshape(-1, fh * patch, fw * patch, 3)
        small_codes = tokenizer.encode(small)
        rows = [
            [*small_codes[[of[n] for n in shape.numbers(last)[:-1]]], *row]
            for last, row in zip(lasts, rows, strict=True)
        ]
    return np.stack([np.concatenate(row) for row in rows]).astype(np.uint16)


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _both(rgb_HWC: np.ndarray, layout: Layout, patch: int) -> np.ndarray:
    """The picture at the sizes of the last frame and of those before, one after the other, flat."""
    sizes = [layout.still_hw, *[layout.fast_hw] * (layout.before > 0)]
    return np.concatenate(
        [media.resize(rgb_HWC, h * patch, w * patch).reshape(-1) for h, w in sizes]
    )


def open_tokens(folder: Path) -> dict[str, np.ndarray]:
    """Codes (F, tokens) of each split."""
    with np.load(ProbeFolder(folder).tokens_npz) as held:
        return {split: held[split] for split in held.files}
