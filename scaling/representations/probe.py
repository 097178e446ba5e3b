"""Probing a study: labelled files -> tokens -> hidden states of every layer -> accuracies.

Each arrow leaves a file and is skipped when the file is there, so a killed call loses a chunk:

    STUDY/probes/<key>/                      codes of every file and view (`encoded`)
    STUDY/probes/<key>/features/*.bin        hidden states, read while heads train
    STUDY/probes/<key>/<run>-<weights>-<head>.json   one row per seed and layer
    STUDY/probes.csv                         all rows, beside rows.csv
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

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
from scaling.representations.encoded import SCHEMA, Views, check_windows, encoded, open_encoded
from scaling.representations.features import Features, write_features
from scaling.representations.labelled import Labelled, draw_split, read_labelled
from scaling.representations.trained import (
    WEIGHTS,
    TrainedRun,
    check_layers,
    data_dir_of,
    trained_runs,
)
from scaling.storage import files
from scaling.storage.files import RunBusy, RunLock
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder, Study

COLUMNS = (
    "run_id", "study", "size", "family", "d", "layers", "params", "macs_total", "budget_macs",
    "val_loss", "tokenizer", "data", "data_key", "classes", "frames", "clips", "crops", "weights",
    "head", "layer", "depth", "seed", "split", "n_train", "n_test", "top1", "top5", "chance",
)  # fmt: skip
Say = Callable[[str], None]


def probe(
    study: Study,
    data: Path,
    *,
    heads: tuple[str, ...] = ("average", "attention", "grid"),
    layers: list[int] | None = None,
    runs: list[str] | None = None,
    seeds: int = 8,
    views: Views = Views(),  # noqa: B008 (frozen)
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
    if labelled.about:
        say(labelled.about)
    for trained in chosen:  # before anything is encoded
        check_windows(views, read_index(data_dir_of(study, trained.run))["frames"])
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


@dataclass(frozen=True)
class Probing:
    """One model and weights on the labelled files of a probe directory."""

    folder: ProbeFolder
    trained: TrainedRun
    weights: str  # "trained" or "random"

    @property
    def named(self) -> str:
        return self.trained.named(self.weights)

    def rows_path(self, kind: str) -> Path:
        return self.folder.path / f"{self.trained.label(self.weights)}-{kind}.json"

    def about(self, index: dict[str, Any], labelled: Labelled, kind: str) -> dict[str, Any]:
        """What all rows of a kind of head have in common."""
        row, views = self.trained.row, index["settings"]["views"]
        base = {k: row[k] for k in ("study", "size", "family", "d", "layers", "params")}
        base |= {k: row[k] for k in ("macs_total", "budget_macs", "val_loss", "tokenizer")}
        if self.weights == "random":
            base |= {"macs_total": 0, "budget_macs": None, "val_loss": None}
        return base | {
            "run_id": self.trained.run_id,
            "data": index["data"],
            "data_key": self.folder.path.name,
            "classes": len(labelled.classes),
            "frames": views["frames"] or index["frames"],
            "clips": views["clips"],
            "crops": views["crops"],
            "weights": self.weights,
            "head": kind,
            "split": "drawn" if labelled.split_F is None else "given",
            "chance": labelled.chance,
        }


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
    one = Probing(ProbeFolder(folder), trained, weights)
    with _alone(folder, trained.label(weights)):
        found = {kind: read_rows(one.rows_path(kind)) for kind in kinds}
        chosen = layers if layers is not None else list(range(trained.run.model.layers + 1))
        have = {(k, r["seed"], r["layer"]) for k, rows in found.items() for r in rows}
        todo = {
            (seed, kind): [layer for layer in chosen if (kind, seed, layer) not in have]
            for seed in seeds
            for kind in kinds
        }
        if not any(todo.values()):
            return
        if not _train_missing(one, found, todo, memory_gb * 1e9, recipe, stop):
            return
        import pandas as pd

        from scaling.analysis.questions.quality import best_layers

        for kind in kinds:
            best = best_layers(pd.DataFrame(found[kind])).iloc[0]
            by = "each seed at the layer that the others choose" if best.seeds > 1 else "one seed"
            say(
                f"{one.named}, {kind} head: top-1 {best.accuracy:.1%} [{best.low:.1%}, "
                f"{best.high:.1%}] ({by}); best layer {best.layer} of {trained.run.model.layers}"
            )


def _train_missing(
    one: Probing,
    found: dict[str, list[dict[str, Any]]],
    todo: dict[tuple[int, str], list[int]],
    memory_bytes: float,
    recipe: Recipe,
    stop: Event,
) -> bool:
    """Train the heads of (seed, kind): layers, and add their rows to `found` and its files.

    Returns whether all were trained: not once `stop` was set.
    """
    index = one.folder.read_index()
    labelled, codes_FVL = open_encoded(one.folder.path)
    labels, views = torch.from_numpy(labelled.labels_F), codes_FVL.shape[1]
    wanted = sorted({layer for missing in todo.values() for layer in missing})
    per_window = _window(codes_FVL, index)
    features = _features(one, index, codes_FVL, per_window, list(found), wanted, memory_bytes)
    ready, of, tell = 0, sum(map(bool, todo.values())), teller()
    for seed in dict.fromkeys(seed for seed, _ in todo):
        left = {kind: todo[seed, kind] for kind in found if todo[seed, kind]}
        if not left:
            continue
        train_F, test_F = draw_split(labelled, seed)
        features.standardise(_rows_of(train_F, views))
        for kind, missing in left.items():
            if stop.is_set():
                return False
            heads = Heads(
                kind,
                wanted,
                one.trained.run.model.d,
                len(labelled.classes),
                side=index["side"],
                heads=one.trained.run.model.heads,
                windows=codes_FVL.shape[2] // per_window,
                seed=seed,
            )
            top1, top5 = _accuracies(heads, features, labels, views, train_F, test_F, recipe, seed)
            base = one.about(index, labelled, kind)
            base |= {"seed": seed, "n_train": len(train_F), "n_test": len(test_F)}
            found[kind] += [
                base
                | {
                    "layer": layer,
                    "depth": layer / one.trained.run.model.layers,
                    "top1": float(top1[i]),
                    "top5": float(top5[i]),
                }
                for i, layer in enumerate(wanted)
                if layer in missing
            ]
            found[kind].sort(key=lambda r: (r["seed"], r["layer"]))
            files.write(one.rows_path(kind), json.dumps(found[kind]))
            ready += 1
            tell(f"{one.named}: heads", ready, of)
    return True


def _rows_of(files_F: np.ndarray, views: int) -> torch.Tensor:
    """The rows of all views of some files."""
    return torch.from_numpy((files_F[:, None] * views + np.arange(views)).reshape(-1))


def _accuracies(
    heads: Heads,
    features: Features,
    labels_F: torch.Tensor,
    views: int,
    train_F: np.ndarray,
    test_F: np.ndarray,
    recipe: Recipe,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-1 and top-5 (L,) on the test files of heads that are trained on the others."""
    pooled = partial(features.pooled, grid=heads.grid)
    states, at_once = pooled if heads.kind in LINEAR else features, features.rows_at_once
    rows_train, rows_test = _rows_of(train_F, views), _rows_of(test_F, views)
    labels_N = labels_F[rows_train // views]
    train_heads(heads, states, rows_train, labels_N, recipe, seed=seed, at_once=at_once)
    file_N = torch.arange(len(rows_test)) // views
    scores_LFC = file_scores(heads, states, rows_test, file_N, len(test_F), batch=at_once)
    top1, top5 = (top_accuracy(scores_LFC, labels_F[test_F], k) for k in (1, 5))
    return top1, top5


def _window(codes_FVL: np.ndarray, index: dict[str, Any]) -> int:
    """Tokens that are read at once: of a training sequence's frames where there are more."""
    tokens: int = codes_FVL.shape[2]
    of: int = index["frames"]
    frames: int | None = index["settings"]["views"]["frames"]
    if frames is not None and frames > of:
        return tokens * of // frames
    return tokens


def _features(
    one: Probing,
    index: dict[str, Any],
    codes_FVL: np.ndarray,
    per_window: int,
    kinds: list[str],
    layers: list[int],
    memory_bytes: float,
) -> Features:
    """The hidden states of these layers, written first where they are not there yet.

    Linear heads need the means of cells alone; whole tokens serve every head.
    """
    stem = one.folder.features_dir / one.trained.label(one.weights)
    side, d = index["side"], one.trained.run.model.d
    whole, path = stem.with_suffix(".tokens.bin"), stem.with_suffix(".cells.bin")
    grid: int | None = grid_of("grid", side, d)
    if whole.exists() or not set(kinds) <= set(LINEAR):
        path, grid = whole, None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tell = teller()
    shape = write_features(
        one.trained.model(one.weights).to(device),
        codes_FVL.reshape(-1, *codes_FVL.shape[2:]),
        path,
        start=index["start"],
        window=per_window,
        side=side,
        grid=grid,
        memory_bytes=memory_bytes,
        tell=lambda done, of: tell(f"{one.named}: hidden states", done, of),
    )
    grids = {grid_of(kind, side, d) for kind in kinds if kind in LINEAR}
    return Features(path, shape, memory_bytes, layers=layers, side=grid or side, grids=grids)


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
        rows: list[dict[str, Any]] = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it and probe again") from None
    return rows


def gather(study: Study, recipe: Recipe) -> Path:
    """STUDY/probes.csv of all rows of a recipe; the same rows give the same bytes."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for there in ProbeFolder.all_in(study.probes_dir):
        settings = there.read_index()["settings"]
        if (settings["schema"], settings["recipe"]) == (SCHEMA, asdict(recipe)):
            for path in files.whole(there.path, "*-*-*.json"):
                rows += read_rows(path)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(
        ["data", "data_key", "params", "run_id", "weights", "head", "seed", "layer"], kind="stable"
    )
    return study.write(study.probes_csv, table.to_csv(index=False))
