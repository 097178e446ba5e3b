"""Probing a study: labelled files -> tokens -> hidden states of every layer -> accuracies.

Each arrow leaves a file and is skipped when the file is there, so a killed call loses a chunk:

    STUDY/probes/<key>/tokens.npz            codes of every file and view
    STUDY/probes/<key>/features/*.bin        hidden states, memory-mapped while heads train
    STUDY/probes/<key>/<run>-<weights>-<head>.json   one row per seed and layer
    STUDY/probes.csv                         all rows, beside rows.csv
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from scaling.data import media, shards
from scaling.data.shards import read_index
from scaling.errors import UserError
from scaling.jobs.machine import in_threads, threads_at_once
from scaling.models.probes import (
    KINDS,
    LINEAR,
    Heads,
    Recipe,
    file_scores,
    grid_of,
    top_accuracy,
    train_heads,
)
from scaling.representations.features import Features, seen, write_features
from scaling.representations.labelled import Labelled, draw_split, read_labelled, usable
from scaling.representations.weights import (
    WEIGHTS,
    TrainedRun,
    check_layers,
    data_dir_of,
    open_tokenizer,
    trained_runs,
)
from scaling.storage import files
from scaling.storage.files import RunBusy, RunLock
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder, Study

SCHEMA = 2
COLUMNS = (
    "run_id", "study", "size", "family", "d", "layers", "params", "macs_total", "budget_macs",
    "val_loss", "tokenizer", "data", "data_key", "classes", "frames", "clips", "crops", "weights",
    "head", "layer", "depth", "seed", "split", "n_train", "n_test", "top1", "top5", "chance",
)  # fmt: skip
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


def probe(
    study: Study,
    data: Path,
    *,
    heads: tuple[str, ...] = ("average", "attention", "grid"),
    layers: list[int] | None = None,
    runs: list[str] | None = None,
    seeds: int = 8,
    views: Views = Views(),
    memory_gb: float = 2.0,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    say: Say = print,
) -> Path:
    """Probe every layer of a study's runs on labelled data; returns STUDY/probes.csv.

    Every decayed point whose weights are held is probed, and every run with the weights that it
    started from. A seed draws the split of the files (unless the data give one) and the heads.

    Args:
        layers: which; default all, 0 (the embedding) to the model's depth.
        runs: run ids; default every finished run of the ladder.
        memory_gb: bound on the states and activations held in memory.
    Raises:
        UserError: see `read_labelled`, `usable`, `trained_runs`, `data_dir_of`; a layer that does
            not exist; no space on the device.
    """
    unknown = [kind for kind in heads if kind not in KINDS]
    if unknown or not heads:
        raise UserError(f"head {', '.join(unknown) or '(none)'}: choose of {', '.join(KINDS)}")
    if seeds < 1 or memory_gb <= 0 or views.clips < 1 or views.crops < 1:
        raise UserError(
            f"seeds {seeds}, memory {memory_gb} GB, {views.clips} clips x {views.crops} crops: all "
            f"must be positive"
        )
    chosen = trained_runs(study, runs)
    for trained in chosen:
        check_layers(trained, layers)
    study.claim(study.probes_csv, inputs=[data])
    labelled = read_labelled(data)
    for trained in chosen:  # before anything is encoded
        _check_windows(views, read_index(data_dir_of(study, trained.run))["frames"])
    with files.explained(study.folder):
        pieces = {}  # the random weights of a run are those of all its points
        for trained in chosen:
            folder = encoded(study, trained, labelled, data, views, recipe, say)
            for weights in WEIGHTS:
                pieces[folder, trained.label(weights)] = (folder, trained, weights)
        each = memory_gb / threads_at_once(len(pieces))
        in_threads(
            [
                partial(probe_run, *piece, heads, layers, range(seeds), each, recipe, say)
                for piece in pieces.values()
            ]
        )
        return gather(study, recipe)


def _check_windows(views: Views, window: int) -> None:
    """Raises UserError for frames that windows of a training sequence do not fill."""
    if views.frames is not None and views.frames > window and views.frames % window:
        raise UserError(
            f"{views.frames} frames are no multiple of the {window} of a training sequence, in "
            f"windows of which they are read; the nearest is "
            f"{round(views.frames / window) * window}"
        )


# -- tokens


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
    data_dir = data_dir_of(study, trained.run)
    tokenizer, index = open_tokenizer(data_dir)
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
    folder = study.probes_dir / key
    there = ProbeFolder(folder)
    if there.tokens_npz.exists():
        return folder
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    stride = used.stride or index["settings"]["stride"]
    tell = teller()
    for first in range(0, len(labelled.names), CHUNK):
        part, last = parts / f"{first:09d}.npz", min(first + CHUNK, len(labelled.names))
        if part.exists():
            continue
        codes, kept, lost = [], [], []
        for i in range(first, last):
            try:
                pixels = _pixels(labelled, i, index, used, stride)
            except (media.MediaError, OSError) as error:
                lost.append(f"{labelled.names[i]}: {error}")
                continue
            frames = pixels.reshape(-1, *pixels.shape[-3:])
            inputs = seen(trained.run.model, tokenizer, frames)
            # The frames of a view follow one another: (V, T L), or of patches (V, T L, P).
            codes.append(inputs.reshape(used.count, -1, *inputs.shape[2:]))
            kept.append(i)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            codes=np.stack(codes) if codes else np.empty((0, used.count, 0), np.uint16),
            kept=np.array(kept, np.int64),
            lost=np.array(json.dumps(lost)),
        )
        files.write(part, buffer.getvalue())
        tell(f"encode {path.name}", last, len(labelled.names))
    held = [dict(np.load(part)) for part in sorted(parts.iterdir()) if part.suffix == ".npz"]
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
    codes_FVL = np.concatenate([h["codes"] for h in held if len(h["kept"])])
    has_images = any(s["kind"] == "images" for s in index["sources"])
    image = labelled.kind == "images" and has_images
    buffer = io.BytesIO()
    np.savez(
        buffer,
        codes=codes_FVL,
        labels=left.labels_F,
        split=left.split_F if left.split_F is not None else np.array([]),
    )
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
    files.write(there.index, json.dumps(described))
    files.write(there.tokens_npz, buffer.getvalue())
    shutil.rmtree(parts)
    return folder


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
    clips = media.read_video(
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


# -- heads


def probe_run(
    folder: Path,
    trained: TrainedRun,
    weights: str,
    kinds: tuple[str, ...],
    layers: list[int] | None,
    seeds: range,
    memory_gb: float,
    recipe: Recipe,
    say: Say,
    stop: Event,
) -> None:
    """Train and judge the heads that have no rows yet, of one model and weights.

    Returns between two heads once `stop` is set.
    Raises UserError: another process does the same.
    """
    with _alone(folder, trained.label(weights)):
        there = ProbeFolder(folder)
        index = there.read_index()
        found = {
            kind: read_rows(folder / f"{trained.label(weights)}-{kind}.json") for kind in kinds
        }
        chosen = layers if layers is not None else list(range(trained.run.model.layers + 1))
        have = {(k, r["seed"], r["layer"]) for k, rows in found.items() for r in rows}
        todo = {
            (seed, kind): [layer for layer in chosen if (kind, seed, layer) not in have]
            for seed in seeds
            for kind in kinds
        }
        wanted = sorted({layer for layers_left in todo.values() for layer in layers_left})
        if not wanted:
            return
        labelled, codes_FVL = open_encoded(folder)
        labels_F = labelled.labels_F
        count, views = codes_FVL.shape[:2]
        memory = memory_gb * 1e9
        stem = there.features_dir / trained.label(weights)
        side, d = index["side"], trained.run.model.d
        whole, path = stem.with_suffix(".tokens.bin"), stem.with_suffix(".cells.bin")
        grid: int | None = grid_of("grid", side, d)
        if whole.exists() or not set(kinds) <= set(LINEAR):
            path, grid = whole, None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        per_window = codes_FVL.shape[2]
        frames = index["settings"]["views"]["frames"]
        if frames is not None and frames > index["frames"]:
            per_window = per_window * index["frames"] // frames
        tell = teller()
        shape = write_features(
            trained.model(weights).to(device),
            codes_FVL.reshape(count * views, *codes_FVL.shape[2:]),
            path,
            start=index["start"],
            window=per_window,
            side=side,
            grid=grid,
            memory_bytes=memory,
            tell=lambda done, of: tell(f"{trained.named(weights)}: hidden states", done, of),
        )
        features = Features(
            path,
            shape,
            memory,
            layers=wanted,
            side=grid or side,
            grids={grid_of(kind, side, d) for kind in kinds if kind in LINEAR},
        )
        labels = torch.from_numpy(labels_F)
        ready, of = 0, sum(map(bool, todo.values()))
        for seed in seeds:
            left = {kind: todo[seed, kind] for kind in kinds if todo[seed, kind]}
            if not left:
                continue
            train_F, test_F = draw_split(labelled, seed)
            rows_train, rows_test = (
                torch.from_numpy((f[:, None] * views + np.arange(views)).reshape(-1))
                for f in (train_F, test_F)
            )
            features.standardise(rows_train)
            for kind, missing in left.items():
                if stop.is_set():
                    return
                heads = Heads(
                    kind,
                    wanted,
                    d,
                    len(labelled.classes),
                    side=side,
                    heads=trained.run.model.heads,
                    windows=codes_FVL.shape[2] // per_window,
                    seed=seed,
                )
                states = partial(features.pooled, grid=heads.grid) if kind in LINEAR else features
                at_once = features.rows_at_once
                train_heads(
                    heads, states, rows_train, labels[rows_train // views], recipe, seed=seed,
                    at_once=at_once,
                )  # fmt: skip
                scores_LFC = file_scores(
                    heads, states, rows_test, torch.arange(len(rows_test)) // views, len(test_F),
                    batch=at_once,
                )  # fmt: skip
                top1, top5 = (top_accuracy(scores_LFC, labels[test_F], k) for k in (1, 5))
                row = trained.row
                base = {k: row[k] for k in ("study", "size", "family", "d", "layers", "params")}
                base |= {k: row[k] for k in ("macs_total", "budget_macs", "val_loss", "tokenizer")}
                if weights == "random":
                    base |= {"macs_total": 0, "budget_macs": None, "val_loss": None}
                base |= {
                    "run_id": trained.run_id,
                    "data": index["data"],
                    "data_key": folder.name,
                    "classes": len(labelled.classes),
                    "frames": index["settings"]["views"]["frames"] or index["frames"],
                    "clips": index["settings"]["views"]["clips"],
                    "crops": index["settings"]["views"]["crops"],
                    "weights": weights,
                    "head": kind,
                    "seed": seed,
                    "split": "drawn" if labelled.split_F is None else "given",
                    "n_train": len(train_F),
                    "n_test": len(test_F),
                    "chance": labelled.chance,
                }
                made = [
                    base
                    | {
                        "layer": layer,
                        "depth": layer / (shape[1] - 1),
                        "top1": float(top1[i]),
                        "top5": float(top5[i]),
                    }
                    for i, layer in enumerate(wanted)
                    if layer in missing
                ]
                found[kind] += made
                found[kind].sort(key=lambda r: (r["seed"], r["layer"]))
                files.write(
                    folder / f"{trained.label(weights)}-{kind}.json", json.dumps(found[kind])
                )
                ready += 1
                tell(f"{trained.named(weights)}: heads", ready, of)
        for kind in kinds:
            mean: dict[int, list[float]] = {}
            for r in found[kind]:
                mean.setdefault(r["layer"], []).append(r["top1"])
            best = max(mean, key=lambda layer: float(np.mean(mean[layer])))
            say(
                f"{trained.named(weights)}, {kind} head: best layer {best} of "
                f"{trained.run.model.layers}, top-1 {np.mean(mean[best]):.1%}"
            )


@contextmanager
def _alone(folder: Path, label: str) -> Iterator[None]:
    """Exclusive use of one model's files. Raises UserError: another process has them."""
    try:
        with RunLock(folder, f"{label}.lock"):
            yield
    except RunBusy as busy:
        raise UserError(f"{busy}, which probes the same; wait for it or stop it") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a model, weights and head; none while there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it and probe again") from None


def gather(study: Study, recipe: Recipe) -> Path:
    """STUDY/probes.csv of all rows of a recipe; the same rows give the same bytes."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for there in ProbeFolder.all_in(study.probes_dir):
        settings = there.read_index()["settings"]
        if (settings["schema"], settings["recipe"]) == (SCHEMA, asdict(recipe)):
            for path in sorted(there.path.glob("*-*-*.json")):
                rows += read_rows(path)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(
        ["data", "data_key", "params", "run_id", "weights", "head", "seed", "layer"], kind="stable"
    )
    return study.write(study.probes_csv, table.to_csv(index=False))
