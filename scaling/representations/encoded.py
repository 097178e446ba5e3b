"""Labelled files as a study's models read them: codes of every file and view, kept on disk.

    STUDY/probes/<key>/index.json, tokens.npz

Files are encoded in chunks; a killed call loses the one in hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import media, shards
from scaling.data.video import read_video
from scaling.errors import UserError
from scaling.models.probes import Recipe
from scaling.representations.features import seen
from scaling.representations.labelled import Labelled, usable
from scaling.representations.trained import TrainedRun, data_dir_of, open_tokenizer
from scaling.storage import files
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder, Study

SCHEMA = 2
CHUNK = 32  # labelled files encoded before they are written
Say = Callable[[str], None]


@dataclass(frozen=True)
class Views:
    """How a clip is looked at: `clips` in time, `crops` in space (the paper: 10 x 3).

    More `frames` than a training sequence has are read in windows of that many, each with its own
    start token and positions; a head sees the tokens of all windows, and which they are of.
    """

    clips: int = 1
    crops: int = 1
    frames: int | None = None  # of a clip; default as many as in a training sequence
    stride: int | None = None  # frame periods between them; default as in training

    @property
    def count(self) -> int:
        return self.clips * self.crops


def check_windows(views: Views, window: int) -> None:
    """Raises UserError for frames that windows of a training sequence do not fill."""
    if views.frames is not None and views.frames > window and views.frames % window:
        raise UserError(
            f"{views.frames} frames are no multiple of the {window} of a training sequence, in "
            f"windows of which they are read; the nearest is "
            f"{round(views.frames / window) * window}"
        )


def encoded(
    study: Study,
    trained: TrainedRun,
    labelled: Labelled,
    path: Path,
    views: Views,
    recipe: Recipe,
    say: Say,
    px: int | None = None,
) -> Path:
    """The probe directory of (labelled data, tokens of the run's tokenizer), made if need be.

    px: side of the frames where it is not that of the run's own.
    """
    tokenizer, index = open_tokenizer(data_dir_of(study, trained.run))
    used = views if labelled.kind == "video" else Views()
    settings = {
        "schema": SCHEMA,
        "labelled": labelled.key,
        "tokens": index["key"],
        "views": asdict(used),
        "recipe": asdict(recipe),
        "patches": trained.run.model.patch_inputs,
    }
    trained_px = index["size"]
    if px is not None and px != trained_px:
        settings["px"] = px
        index = index | {"size": px}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    there = ProbeFolder(study.probes_dir / key)
    if there.tokens_npz.exists():
        if len(there.read_index()["names"]) <= len(labelled.names):
            return there.path
        say(f"{there.path}: an interrupted call of an older version took files twice; made again")
        shutil.rmtree(there.path)
    parts = there.path / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    _encode(parts, trained, tokenizer, index, labelled, path, used)
    codes_FVL, left, lost = _joined(parts, labelled, path, say)
    has_images = any(s["kind"] == "images" for s in index["sources"])
    image = labelled.kind == "images" and has_images
    described = {
        "settings": settings,
        "data": path.parent.name if path.suffix == ".csv" else path.stem,
        "kind": labelled.kind,
        "frames": index["frames"],
        "side": round(index["tokens_per_frame"] ** 0.5 * index["size"] / trained_px),
        "classes": list(left.classes),
        "names": list(left.names),
        "lost": lost,
        "start": shards.IMAGE_START if image else shards.VIDEO_START,
    }
    given = left.split_F if left.split_F is not None else np.array([])
    files.write(there.index, json.dumps(described))
    files.write(there.tokens_npz, _npz(codes=codes_FVL, labels=left.labels_F, split=given))
    shutil.rmtree(parts)
    return there.path


def _encode(
    parts: Path,
    trained: TrainedRun,
    tokenizer: Any,
    index: dict[str, Any],
    labelled: Labelled,
    path: Path,
    views: Views,
) -> None:
    """A part for each chunk of files that has none: codes, which files they are of, what failed."""
    stride, tell = views.stride or index["settings"]["stride"], teller()
    for first in range(0, len(labelled.names), CHUNK):
        part, last = parts / f"{first:09d}.npz", min(first + CHUNK, len(labelled.names))
        if part.exists():
            continue
        codes, kept, lost = [], [], []
        for i in range(first, last):
            try:
                pixels = _pixels(labelled, i, index, views, stride)
            except (media.MediaError, OSError) as error:
                lost.append(f"{labelled.names[i]}: {error}")
                continue
            frames = pixels.reshape(-1, *pixels.shape[-3:])
            inputs = seen(trained.run.model, tokenizer, frames)
            # The frames of a view follow one another: (V, T L), or of patches (V, T L, P).
            codes.append(inputs.reshape(views.count, -1, *inputs.shape[2:]))
            kept.append(i)
        none = np.empty((0, views.count, 0), np.uint16)
        stacked = np.stack(codes) if codes else none
        numbers, said = np.array(kept, np.int64), np.array(json.dumps(lost))
        files.write(part, _npz(codes=stacked, kept=numbers, lost=said))
        tell(f"encode {path.name}", last, len(labelled.names))


def _joined(
    parts: Path, labelled: Labelled, path: Path, say: Say
) -> tuple[np.ndarray, Labelled, list[str]]:
    """Codes (F, V, L) of the files that were read, these files, and what became of the others."""
    held = [dict(np.load(part)) for part in files.whole(parts, "*.npz")]
    kept_F = np.concatenate([h["kept"] for h in held])
    lost = [line for h in held for line in json.loads(str(h["lost"]))]
    if lost:
        say(f"{path}: {len(lost)} of {len(labelled.names)} files were not used:")
        for line in lost[:8]:
            say(f"  {line}")
    if not len(kept_F):
        raise UserError(f"{path}: no labelled file can be read; first: {lost[0]}")
    left = labelled.take(kept_F)
    usable(left, path)
    return np.concatenate([h["codes"] for h in held if len(h["kept"])]), left, lost


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def open_encoded(folder: Path) -> tuple[Labelled, np.ndarray]:
    """The files of a probe directory that were read, and their codes (F, V, L)."""
    there = ProbeFolder(folder)
    index = there.read_index()
    with np.load(there.tokens_npz) as held:
        codes_FVL, labels_F, split = held["codes"], held["labels"], held["split"]
    names, classes = tuple(index["names"]), tuple(index["classes"])
    given = split if len(split) else None
    return Labelled(folder, names, labels_F, classes, given, index["kind"]), codes_FVL


def _pixels(
    labelled: Labelled, i: int, index: dict[str, Any], views: Views, stride: int
) -> np.ndarray:
    """Views of one file, uint8 (V, T, S, S, 3); an image is one frame."""
    size = index["size"]
    if labelled.images is not None:
        rgb = media.resize_short(labelled.images[i], size)
        y, x = (rgb.shape[0] - size) // 2, (rgb.shape[1] - size) // 2
        return rgb[None, None, y : y + size, x : x + size]
    path = labelled.root / labelled.names[i]
    if labelled.kind == "images":
        return media.read_image(path, size=size, crops=1, rng=None)[None]
    clips = read_video(
        path,
        frames=views.frames or index["frames"],
        size=size,
        stride=stride,
        clips=views.clips,
        crops=views.crops,
        rng=None,
        fps=index["settings"].get("fps"),
    )
    if len(clips.pixels) < views.count:
        raise media.MediaError(clips.note or "not all of its clips decode")
    return clips.pixels
