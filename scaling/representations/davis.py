"""Tracking on DAVIS's folders: features of a frozen model carry the first mask through a video.

Features are those of tiles (`representations.tiles`): a frame is larger than training's. Results
lie in STUDY/davis/<key>/, one file for each (run, weights, sequence), and a killed call goes on
from these; STUDY/davis.csv holds all rows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from scaling.analysis.figures.pictures import overlay
from scaling.analysis.questions.quality import DAVIS_KINDS
from scaling.errors import UserError
from scaling.jobs.machine import in_threads, threads_at_once
from scaling.models.propagation import PROTOCOLS, Protocol, propagate
from scaling.representations.continuation import write_video
from scaling.representations.davis_folders import Davis, find_sequences
from scaling.representations.davis_masks import read_masks
from scaling.representations.davis_measures import VOID, evaluate
from scaling.representations.tiles import Layers
from scaling.representations.trained import (
    WEIGHTS,
    TrainedRun,
    check_layers,
    data_dir_of,
    trained_runs,
)
from scaling.storage import files
from scaling.study.page_sources import films
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder, Study

SCHEMA = 3
COLUMNS = (
    "run_id", "study", "size", "layers", "params", "macs_total", "weights", "protocol", "rows",
    "data", "layer", "depth", "sequence", "object", "frames", "j_mean", "j_recall", "j_decay",
    "f_mean", "f_recall", "f_decay",
)  # fmt: skip
FILM_FRAMES = 60  # as many as the paper's Figure 5 shows
FILM_HEIGHT = 120  # px
FILM_FPS = 12
Say = Callable[[str], None]


def track(
    study: Study,
    data: Path,
    *,
    runs: list[str] | None = None,
    layers: list[int] | None = None,
    protocol: str = "jabri",
    rows: int = 24,
    split: str | None = None,
    resolution: str | None = None,
    every_point: bool = False,
    memory_gb: float = 2.0,
    say: Say = print,
) -> Path:
    """Track DAVIS's objects with every layer of a study's models; returns STUDY/davis.csv.

    STUDY/davis/<key>/SEQUENCE.mp4 shows each sequence's masks.

    Beside the trained model: the same with the weights it started from, and the patches' pixels
    themselves as features.

    Args:
        data: DAVIS's folder, with JPEGImages/*/SEQUENCE and Annotations/*/SEQUENCE.
        runs: default, the one with the most compute.
        every_point: track with every decayed point of the ladder (or of these runs) too, not only
            with the last; the baselines stay those of the last.
        rows: places (tokens) on the short side of a frame. The radius is that of the protocol at
            60 rows, DAVIS's 480 px at stride 8, in proportion.
        split, resolution: as of `davis_folders.find_sequences`.
    Raises:
        UserError: no sequence, frames without masks, a layer that does not exist.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol '{protocol}': choose one of {', '.join(PROTOCOLS)}")
    if rows < 2 or memory_gb <= 0:
        raise UserError(f"rows {rows}, memory {memory_gb} GB: want at least 2 rows, some memory")
    chosen = trained_runs(study, runs)
    beside = [t for t in chosen if t.last] if runs else chosen[-1:]  # the baselines
    chosen = chosen if every_point else beside
    for trained in chosen:
        check_layers(trained, layers)
    study.claim(study.davis_csv)
    found = find_sequences(data, split, resolution)
    say(found.told)
    rule = asdict(PROTOCOLS[protocol])
    rule["radius"] = max(1.0, rule["radius"] * rows / 60)
    folders: dict[Path, None] = {}
    with files.explained(study.folder):
        for trained in chosen:
            data_dir = data_dir_of(study, trained.run)
            settings = {"schema": SCHEMA, "tokens": trained.run.data_key, "rows": rows, **rule}
            settings |= {"split": found.split, "resolutions": found.resolutions}
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
            folder = study.davis_dir / key
            folder.mkdir(parents=True, exist_ok=True)
            folders[folder] = None
            about = {"protocol": protocol, "data": found.named}
            files.write(ProbeFolder(folder).index, json.dumps(settings | about))
            kinds = (*WEIGHTS, "pixels") if trained in beside else WEIGHTS[:1]
            each_gb = memory_gb / threads_at_once(len(kinds))
            in_threads(
                [
                    partial(
                        _track_run, folder, trained, weights, data_dir, found, layers,
                        Protocol(**rule), protocol, rows, each_gb, say,
                    )
                    for weights in kinds
                ]
            )  # fmt: skip
        out = gather(study)
        table = pd.read_csv(out, dtype={"run_id": str})
        of = dict(zip(DAVIS_KINDS, (found.named, protocol, rows), strict=True))
        mine = table[(table[list(of)] == pd.Series(of)).all(axis=1)]
        for folder in folders:
            write_films(folder, mine)
        say(f"masks of each sequence: {', '.join(f'{folder}/*.mp4' for folder in folders)}")
        return out


def read_frames(paths: list[Path], rows: int, patch: int) -> np.ndarray:
    """Frames of `rows` patches on the short side, uint8 (T, h patch, w patch, 3)."""
    frames = []
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                unit = min(width, height) / rows
                size = (round(width / unit) * patch, round(height / unit) * patch)
                rgb = image.convert("RGB").resize(size, Image.Resampling.BOX)
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path}: cannot be read as a frame ({error})") from None
        frames.append(np.asarray(rgb))
    return np.stack(frames)


# -- one run


def _track_run(
    folder: Path,
    trained: TrainedRun,
    weights: str,
    data_dir: Path,
    davis: Davis,
    layers: list[int] | None,
    rule: Protocol,
    protocol: str,
    rows: int,
    memory_gb: float,
    say: Say,
    stop: Event,
) -> None:
    """Rows of every sequence that has none; baselines of pixels are of no run.

    Returns between two sequences once `stop` is set.
    """
    name = "pixels" if weights == "pixels" else trained.label(weights)
    told = "pixels" if weights == "pixels" else trained.named(weights)
    sequences = davis.sequences
    paths = {s: folder / f"{name}-{s}.json" for s in sequences}
    depth = trained.run.model.layers
    wanted = [0] if weights == "pixels" else (layers or list(range(depth + 1)))
    todo = [s for s, files_of in sequences.items() if not _has(paths[s], wanted, files_of.key)]
    if todo:
        read = Layers(trained, weights, data_dir, memory_gb * 1e9)
    about = _about(trained, weights) | {"weights": weights, "protocol": protocol, "rows": rows}
    about["data"] = davis.named
    tell = teller()
    for number, sequence in enumerate(todo, 1):
        if stop.is_set():
            return
        of_files = sequences[sequence]
        frames = read_frames(of_files.frames, rows, read.patch)
        truth_THW = read_masks(of_files.masks)
        h, w = frames.shape[1] // read.patch, frames.shape[2] // read.patch
        first_hwC = (nearest if rule.hard_start else shares)(truth_THW[0], h, w)
        made, small = [], []
        for layer, features in read.of(frames, wanted):
            soft_ThwC = propagate(features, first_hwC, rule)
            masks_THW = hard_masks(soft_ThwC, truth_THW[0], rule.normalised)
            small.append(_film(masks_THW))
            of = {"layer": layer, "depth": layer / depth, "sequence": sequence}
            of |= {"frames": len(frames), "files": of_files.key}
            made += [about | of | measured for measured in evaluate(masks_THW, truth_THW)]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, layers=np.array(wanted), masks=np.stack(small))
        files.write(folder / f"{name}-{sequence}.npz", buffer.getvalue())
        _keep_frames(folder, sequence, of_files.frames, truth_THW)
        files.write(paths[sequence], json.dumps(made))
        tell(f"{told}: sequences", number, len(todo))
    best, score = _best_layer(list(paths.values()), wanted)
    of_layers = f", the best of {len(wanted)}," if len(wanted) > 1 else ""
    say(f"{told}: J&F {score:.1%} at layer {best}{of_layers} over {len(sequences)} sequences")


def _about(trained: TrainedRun, weights: str) -> dict[str, Any]:
    """What a row says of the model; the pixels have none."""
    row = dict.fromkeys(trained.row) if weights == "pixels" else trained.row
    about = {k: row[k] for k in ("run_id", "size", "layers", "params", "macs_total")}
    if weights == "random":
        about["macs_total"] = 0
    return about | {"study": trained.row["study"]}


def _best_layer(paths: list[Path], wanted: list[int]) -> tuple[int, float]:
    """The layer with the highest mean J&F over all objects, and that mean."""
    rows = [r for path in paths for r in json.loads(path.read_text())]
    means = {
        layer: float(
            np.mean([(r["j_mean"] + r["f_mean"]) / 2 for r in rows if r["layer"] == layer])
        )
        for layer in wanted
    }
    best = max(means, key=lambda layer: means[layer])
    return best, means[best]


def _has(path: Path, wanted: list[int], key: str) -> bool:
    """Whether there are rows of these layers, of the files that are there now."""
    if not path.exists():
        return False
    rows = json.loads(path.read_text())
    return set(wanted) <= {r["layer"] for r in rows if r["files"] == key}


def shares(mask_HW: np.ndarray, h: int, w: int) -> torch.Tensor:
    """Of each label in a mask its share of every place, (h, w, C); 255 counts as background."""
    label_HWC = _one_hot(mask_HW)
    return F.adaptive_avg_pool2d(label_HWC.permute(2, 0, 1).float(), (h, w)).permute(1, 2, 0)


def nearest(mask_HW: np.ndarray, h: int, w: int) -> torch.Tensor:
    """The label of the pixel at the middle of every place, one-hot (h, w, C)."""
    small_hw = Image.fromarray(mask_HW).resize((w, h), Image.Resampling.NEAREST)
    return _one_hot(np.asarray(small_hw), labels=_labels(mask_HW)).float()


def _labels(mask_HW: np.ndarray) -> int:
    return int(mask_HW[mask_HW < VOID].max()) + 1


def _one_hot(mask_HW: np.ndarray, labels: int | None = None) -> torch.Tensor:
    return F.one_hot(torch.from_numpy(mask_HW.astype(np.int64)) % VOID, labels or _labels(mask_HW))


def hard_masks(labels_ThwC: torch.Tensor, first_HW: np.ndarray, normalised: bool) -> np.ndarray:
    """The likeliest label of every pixel, uint8 (T, H, W); frame 0 is the given mask.

    normalised: each label's map is first stretched to [0, 1].
    """
    size = first_HW.shape
    masks = []
    for soft_hwC in labels_ThwC:
        soft_CHW = F.interpolate(
            soft_hwC.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False
        )[0]
        if normalised:
            low, high = soft_CHW.amin((1, 2), keepdim=True), soft_CHW.amax((1, 2), keepdim=True)
            soft_CHW = (soft_CHW - low) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
        best_HW, mask_HW = soft_CHW[0], torch.zeros(size, dtype=torch.uint8)
        for label in range(1, len(soft_CHW)):  # argmax over a first axis of two is slow
            higher_HW = soft_CHW[label] > best_HW
            best_HW = torch.where(higher_HW, soft_CHW[label], best_HW)
            mask_HW[higher_HW] = label
        masks.append(mask_HW.numpy())
    masks[0] = first_HW
    return np.stack(masks)


def _film(masks_THW: np.ndarray) -> np.ndarray:
    """Evenly spaced masks, small: (FILM_FRAMES or all, FILM_HEIGHT, W') uint8."""
    height, width = masks_THW.shape[1:]
    size = (_even(width * FILM_HEIGHT / height), FILM_HEIGHT)
    small = [
        Image.fromarray(masks_THW[t]).resize(size, Image.Resampling.NEAREST)
        for t in _film_times(len(masks_THW))
    ]
    return np.stack([np.asarray(s) for s in small])


def _film_times(frames: int) -> np.ndarray:
    times: np.ndarray = np.linspace(0, frames - 1, min(FILM_FRAMES, frames)).round().astype(int)
    return times


def _even(length: float) -> int:
    return 2 * round(length / 2)


def _keep_frames(folder: Path, sequence: str, paths: list[Path], truth_THW: np.ndarray) -> None:
    """The frames and true masks of a sequence's film."""
    truth = _film(truth_THW)
    small = []
    for t in _film_times(len(paths)):
        with Image.open(paths[t]) as image:
            small.append(np.asarray(image.convert("RGB").resize(truth.shape[:0:-1])))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=np.stack(small), truth=truth)
    files.write(folder / f"frames-{sequence}.npz", buffer.getvalue())


def write_films(folder: Path, rows: pd.DataFrame) -> None:
    """SEQUENCE.mp4 of each sequence (Figure 5): the true masks, the trained model's under them, and
    beside these random weights' and the pixels', each at its best layer."""
    for film in films(folder, rows):
        of = dict(film.masks)
        shown = [
            overlay(film.frames, of[made_by].astype(np.int64))
            for made_by in ("truth", "random", "trained", "pixels")
            if made_by in of
        ]
        blank = np.zeros_like(film.frames)
        shown += [blank] * (4 - len(shown))
        quarters = np.concatenate(
            [np.concatenate(shown[:2], axis=2), np.concatenate(shown[2:], axis=2)], axis=1
        )
        write_video("scaling davis", folder / f"{film.sequence}.mp4", quarters, fps=FILM_FPS)


def gather(study: Study) -> Path:
    """STUDY/davis.csv of all rows of this schema."""
    rows: list[dict[str, Any]] = []
    for there in ProbeFolder.all_in(study.davis_dir):
        if there.read_index()["schema"] == SCHEMA:
            for path in files.whole(there.path, "*-*.json"):
                rows += json.loads(path.read_text())
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(
        ["params", "run_id", "weights", "layer", "sequence", "object"], kind="stable"
    )
    return study.write(study.davis_csv, table.to_csv(index=False))
