"""Tracking on DAVIS's folders: features of a frozen model carry the first mask through a video.

A frame is larger than what the models were trained on, so it is cut into tiles of the study's
frame size that overlap by half; each tile is a sequence of one frame, and a place that lies in
several tiles has the mean of their features. Every channel is standardised over the places of the
first frame, whatever the features: channels that are large everywhere would make all places alike.
Results lie in STUDY/davis/<key>/, one file for each (run, weights, sequence), and a killed call
goes on from these; STUDY/davis.csv holds all rows.
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
import torch
import torch.nn.functional as F
from PIL import Image

from scaling.data import shards
from scaling.errors import UserError
from scaling.jobs.machine import in_threads, threads_at_once
from scaling.models.decoder import Decoder
from scaling.models.propagation import PROTOCOLS, Protocol, propagate
from scaling.models.tokenizers.codebook import cut
from scaling.representations.davis_measures import evaluate
from scaling.representations.features import seen, with_start
from scaling.representations.weights import (
    WEIGHTS,
    TrainedRun,
    check_layers,
    data_dir_of,
    open_tokenizer,
    trained_runs,
)
from scaling.storage import files
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder, Study

SCHEMA = 2
COLUMNS = (
    "run_id", "study", "size", "layers", "params", "macs_total", "weights", "protocol", "rows",
    "layer", "depth", "sequence", "object", "frames", "j_mean", "j_recall", "j_decay", "f_mean",
    "f_recall", "f_decay",
)  # fmt: skip
STRIP_FRAMES = 8
STRIP_HEIGHT = 96  # px
Say = Callable[[str], None]


def track(
    study: Study,
    data: Path,
    *,
    runs: list[str] | None = None,
    layers: list[int] | None = None,
    protocol: str = "jabri",
    rows: int = 24,
    memory_gb: float = 2.0,
    say: Say = print,
) -> Path:
    """Track DAVIS's objects with every layer of a study's models; returns STUDY/davis.csv.

    Beside the trained model: the same with the weights it started from, and the patches' pixels
    themselves as features.

    Args:
        data: DAVIS's folder, with JPEGImages/*/SEQUENCE and Annotations/*/SEQUENCE.
        runs: default, the one with the most compute.
        rows: places (tokens) on the short side of a frame. The radius is that of the protocol at
            60 rows, DAVIS's 480 px at stride 8, in proportion.
    Raises:
        UserError: no sequence, frames without masks, a layer that does not exist.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol '{protocol}': choose one of {', '.join(PROTOCOLS)}")
    if rows < 2 or memory_gb <= 0:
        raise UserError(f"rows {rows}, memory {memory_gb} GB: want at least 2 rows, some memory")
    chosen = trained_runs(study, runs)
    chosen = [t for t in chosen if t.last] if runs else chosen[-1:]
    for trained in chosen:
        check_layers(trained, layers)
    study.claim(study.davis_csv)
    sequences = find_sequences(data)
    rule = asdict(PROTOCOLS[protocol])
    rule["radius"] = max(1.0, rule["radius"] * rows / 60)
    with files.explained(study.folder):
        for trained in chosen:
            data_dir = data_dir_of(study, trained.run)
            settings = {"schema": SCHEMA, "tokens": trained.run.data_key, "rows": rows, **rule}
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
            folder = study.davis_dir / key
            folder.mkdir(parents=True, exist_ok=True)
            files.write(ProbeFolder(folder).index, json.dumps(settings | {"protocol": protocol}))
            kinds = (*WEIGHTS, "pixels")
            each_gb = memory_gb / threads_at_once(len(kinds))
            in_threads(
                [
                    partial(
                        _track_run, folder, trained, weights, data_dir, sequences, layers,
                        Protocol(**rule), protocol, rows, each_gb, say,
                    )
                    for weights in kinds
                ]
            )  # fmt: skip
        return gather(study)


# -- DAVIS's folders


def find_sequences(data: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Name -> its frames and its masks, in order.

    Raises UserError: not DAVIS's layout, a sequence of fewer than three frames, a frame without its
    mask.
    """
    images, masks = data / "JPEGImages", data / "Annotations"
    folders = sorted(p for p in images.glob("*/*") if p.is_dir())
    if not folders or not masks.is_dir():
        raise UserError(
            f"{data}: not DAVIS's layout; want JPEGImages/480p/SEQUENCE/00000.jpg and "
            f"Annotations/480p/SEQUENCE/00000.png"
        )
    found = {}
    for folder in folders:
        frames = sorted(folder.glob("*.jpg"))
        marks = [masks / folder.parent.name / folder.name / f"{f.stem}.png" for f in frames]
        missing = [m for m in marks if not m.is_file()]
        if missing or len(frames) < 3:
            why = f"no mask {missing[0]}" if missing else "fewer than three frames"
            raise UserError(
                f"{folder}: {len(frames)} frames, {why}; take the sequence out or mend it"
            )
        found[folder.name] = (frames, marks)
    return found


def read_masks(paths: list[Path]) -> np.ndarray:
    """Object numbers, uint8 (T, H, W): an indexed PNG's own; of a grey one 0 and 1 (not 0)."""
    masks = []
    for path in paths:
        try:
            with Image.open(path) as image:
                indexed = image.mode == "P"
                held = np.asarray(image if indexed else image.convert("L"))
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path}: cannot be read as a mask ({error})") from None
        masks.append(held if indexed else (held > 127).astype(np.uint8))
    return np.stack(masks)


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


# -- features


@torch.inference_mode()
def tiled_features(
    model: Decoder, tokenizer: Any, frame_HW3: np.ndarray, *, size: int, patch: int, at_once: int
) -> torch.Tensor:
    """Hidden states of every layer at every place of a frame, (layers + 1, h, w, d)."""
    height, width = frame_HW3.shape[:2]
    h, w, side = height // patch, width // patch, size // patch
    step = max(1, side // 2)
    tops, lefts = _starts(h, side, step), _starts(w, side, step)
    padded = np.pad(
        frame_HW3, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="edge"
    )
    corners = [(y, x) for y in tops for x in lefts]
    tiles = np.stack(
        [padded[y * patch : y * patch + size, x * patch : x * patch + size] for y, x in corners]
    )
    codes = seen(model.config, tokenizer, tiles)
    ids = with_start(codes, shards.VIDEO_START).to(model.head.device)
    layers = ["embed", *(f"layer_{i + 1}" for i in range(model.config.layers))]
    total = torch.zeros(len(layers), max(h, side), max(w, side), model.config.d)
    count = torch.zeros(max(h, side), max(w, side), 1)
    for first in range(0, len(corners), at_once):
        states: dict[str, torch.Tensor] = {}
        model.features(ids[first : first + at_once], states)
        x = torch.stack([states[name][:, 1:] for name in layers]).float().cpu()
        for i, (y, left) in enumerate(corners[first : first + at_once]):
            place = (slice(y, y + side), slice(left, left + side))
            total[(slice(None), *place)] += x[:, i].unflatten(1, (side, side))
            count[place] += 1
    return (total / count)[:, :h, :w]


def standardised(features_Thwd: torch.Tensor) -> torch.Tensor:
    """Float32, every channel of mean 0 and deviation 1 over the places of the first frame."""
    deviation, mean = torch.std_mean(features_Thwd[0].float(), (0, 1), correction=0)
    return features_Thwd.float().sub_(mean).div_(deviation.clamp_min(1e-6))


def _starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles of `side` begin, so that they cover `length` and overlap."""
    if length <= side:
        return [0]
    return sorted({*range(0, length - side, step), length - side})


def _pixels(frame_HW3: np.ndarray, patch: int) -> torch.Tensor:
    """Each patch's own colours, about mid-grey, (1, h, w, 3 patch^2)."""
    h, w = frame_HW3.shape[0] // patch, frame_HW3.shape[1] // patch
    values = cut(frame_HW3[None], patch).astype(np.float32) - 127.5
    return torch.from_numpy(values).view(1, h, w, -1)


# -- one run


def _track_run(
    folder: Path,
    trained: TrainedRun,
    weights: str,
    data_dir: Path,
    sequences: dict[str, tuple[list[Path], list[Path]]],
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
    paths = {s: folder / f"{name}-{s}.json" for s in sequences}
    config = trained.run.model
    wanted = [0] if weights == "pixels" else (layers or list(range(config.layers + 1)))
    todo = [s for s in sequences if not _has(paths[s], wanted)]
    if todo:
        tokenizer, index = open_tokenizer(data_dir)
        size = index["size"]
        patch = round(size / index["tokens_per_frame"] ** 0.5)
        model = None if weights == "pixels" else trained.model(weights)
        if model is not None and torch.cuda.is_available():
            model = model.cuda()
        per_tile = 4 * (index["tokens_per_frame"] + 1) * 4 * (config.layers + 1) * config.d
        at_once = max(1, min(512, int(memory_gb * 1e9 / 4 / per_tile)))
    tell, told = teller(), "pixels" if weights == "pixels" else trained.named(weights)
    for number, sequence in enumerate(todo, 1):
        if stop.is_set():
            return
        frames = read_frames(sequences[sequence][0], rows, patch)
        truth_THW = read_masks(sequences[sequence][1])
        h, w = frames.shape[1] // patch, frames.shape[2] // patch
        labels = int(truth_THW[0][truth_THW[0] < 255].max()) + 1
        first_CHW = F.one_hot(torch.from_numpy(truth_THW[0].astype(np.int64)) % 255, labels)
        first_hwC = F.adaptive_avg_pool2d(first_CHW.permute(2, 0, 1).float(), (h, w)).permute(
            1, 2, 0
        )
        # Of a layer: its half-precision states, and those of one layer in float32, twice.
        layer_bytes = 2 * len(frames) * h * w * (config.d if model else 3 * patch**2)
        group = max(1, int(memory_gb * 1e9 / 2 / layer_bytes) - 4)
        made, strips = [], []
        for place, layer in enumerate(wanted):
            if place % group == 0:  # layers whose states fit in memory together
                near = wanted[place : place + group]
                held = []  # (layers, h, w, d) of each frame
                for frame in frames:
                    if model is None:
                        held.append(_pixels(frame, patch).half())
                        continue
                    x = tiled_features(
                        model, tokenizer, frame, size=size, patch=patch, at_once=at_once
                    )
                    held.append(x[near].half())
            features = standardised(torch.stack([x[place % group] for x in held]))
            carried = propagate(features, first_hwC, rule)
            masks_THW = hard_masks(carried, truth_THW[0])
            strips.append(_strip(masks_THW))
            row = trained.row if weights != "pixels" else dict.fromkeys(trained.row)
            base = {k: row[k] for k in ("run_id", "size", "layers", "params", "macs_total")}
            base["study"] = trained.row["study"]
            if weights == "random":
                base["macs_total"] = 0
            made += [
                base
                | {"weights": weights, "protocol": protocol, "rows": rows, "layer": layer}
                | {"depth": layer / config.layers, "sequence": sequence, "frames": len(frames)}
                | measured
                for measured in evaluate(masks_THW, truth_THW)
            ]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, layers=np.array(wanted), masks=np.stack(strips))
        files.write(folder / f"{name}-{sequence}.npz", buffer.getvalue())
        _keep_frames(folder, sequence, sequences[sequence][0], truth_THW)
        files.write(paths[sequence], json.dumps(made))
        tell(f"{told}: sequences", number, len(todo))
    table = [r for s in sequences for r in json.loads(paths[s].read_text()) if r["layer"] in wanted]
    by_layer = {
        layer: float(
            np.mean([(r["j_mean"] + r["f_mean"]) / 2 for r in table if r["layer"] == layer])
        )
        for layer in wanted
    }
    best = max(by_layer, key=lambda layer: by_layer[layer])
    say(f"{told}: J&F {by_layer[best]:.1%} at layer {best} ({len(sequences)} sequences)")


def _has(path: Path, wanted: list[int]) -> bool:
    return path.exists() and set(wanted) <= {r["layer"] for r in json.loads(path.read_text())}


def hard_masks(labels_ThwC: torch.Tensor, first_HW: np.ndarray) -> np.ndarray:
    """The likeliest label of every pixel, uint8 (T, H, W); frame 0 is the given mask."""
    size = first_HW.shape
    masks = []
    for soft_hwC in labels_ThwC:
        soft_CHW = F.interpolate(
            soft_hwC.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False
        )[0]
        best_HW, mask_HW = soft_CHW[0], torch.zeros(size, dtype=torch.uint8)
        for label in range(1, len(soft_CHW)):  # argmax over a first axis of two is slow
            higher_HW = soft_CHW[label] > best_HW
            best_HW = torch.where(higher_HW, soft_CHW[label], best_HW)
            mask_HW[higher_HW] = label
        masks.append(mask_HW.numpy())
    masks[0] = first_HW
    return np.stack(masks)


def _strip(masks_THW: np.ndarray) -> np.ndarray:
    """Evenly spaced masks, small, for a film strip: (STRIP_FRAMES, STRIP_HEIGHT, W') uint8."""
    at = np.linspace(0, len(masks_THW) - 1, STRIP_FRAMES).round().astype(int)
    height, width = masks_THW.shape[1:]
    size = (round(width * STRIP_HEIGHT / height), STRIP_HEIGHT)
    small = [Image.fromarray(masks_THW[t]).resize(size, Image.Resampling.NEAREST) for t in at]
    return np.stack([np.asarray(s) for s in small])


def _keep_frames(folder: Path, sequence: str, paths: list[Path], truth_THW: np.ndarray) -> None:
    """The frames and true masks of a sequence's strip."""
    target = folder / f"frames-{sequence}.npz"
    if target.exists():
        return
    truth = _strip(truth_THW)
    at = np.linspace(0, len(paths) - 1, STRIP_FRAMES).round().astype(int)
    small = []
    for t in at:
        with Image.open(paths[t]) as image:
            small.append(np.asarray(image.convert("RGB").resize((truth.shape[2], STRIP_HEIGHT))))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=np.stack(small), truth=truth)
    files.write(target, buffer.getvalue())


def gather(study: Study) -> Path:
    """STUDY/davis.csv of all rows of this schema."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for there in ProbeFolder.all_in(study.davis_dir):
        if there.read_index()["schema"] == SCHEMA:
            for path in sorted(there.path.glob("*-*.json")):
                rows += json.loads(path.read_text())
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(
        ["params", "run_id", "weights", "layer", "sequence", "object"], kind="stable"
    )
    return study.write(study.davis_csv, table.to_csv(index=False))
