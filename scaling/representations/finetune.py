"""Fine-tuning a study's model on labelled images or clips: resolution, length, attention.

A sequence that is longer than those of training, of more tokens a frame or of more frames, is read
whole: the context grows with it, and a larger rotary base slows the rotations (Table 4).

Section 4.2: next-token loss on the model, cross-entropy on a head of every layer, whose gradient
stops at the states. Sections A.2 and A.3, end to end: the labels alone train the model, through one
head on the last layer, under causal, prefix or full attention. Rates fall by `layer_decay` a layer
from the last to the embedding.

STUDY/finetuned/<key>.json holds the rows of one (run, data, settings, seed), <key>.pt the state of
one that is not finished, STUDY/finetune.csv the rows of all. Each is done twice: from the trained
weights, and from those that their run started with.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from scaling import checkpoint
from scaling.config.schema import Tuning
from scaling.errors import UserError
from scaling.jobs.machine import in_threads
from scaling.models.probes import KINDS, Recipe
from scaling.representations.encoded import Views, encoded
from scaling.representations.labelled import Labelled, read_labelled
from scaling.representations.probe import read_rows
from scaling.representations.trained import (
    WEIGHTS,
    TrainedRun,
    data_dir_of,
    open_tokenizer,
    trained_runs,
)
from scaling.representations.tune import tune
from scaling.storage import files
from scaling.study_folder import ProbeFolder, Study

COLUMNS = (
    "run_id", "study", "size", "params", "macs_total", "data", "data_key", "px", "frames",
    "stride", "tokens", "rope_base", "attention", "end_to_end", "layer_decay", "lr", "head_lr",
    "steps", "batch", "clips", "crops", "head", "weights", "layer", "depth", "seed", "split",
    "n_train", "n_test", "top1", "chance", "n_hidden", "top1_hidden", "next_token_loss",
)  # fmt: skip
Say = Callable[[str], None]


def finetune(
    study: Study,
    data: Path,
    *,
    tuning: Tuning = Tuning(),  # noqa: B008 (frozen)
    head: str = "attention",
    run: str | None = None,
    seeds: int = 3,
    say: Say = print,
) -> Path:
    """Fine-tune one model, by default the study's costliest; returns STUDY/finetune.csv.

    Seeds draw the split of the files, the heads and the order. What is there is not done again, and
    what was interrupted continues where it was saved last.
    Raises UserError: as `tuned`, and what reading data and runs raises.
    """
    trained = trained_runs(study, [run] if run else None)[-1]
    study.claim(study.finetune_csv, inputs=[data])
    labelled = read_labelled(data)
    if labelled.about:
        say(labelled.about)
    one = partial(tuned, study, trained, labelled, data, tuning, head)
    in_threads([partial(one, s, say, weights) for s in range(seeds) for weights in WEIGHTS])
    return gather(study)


def tuned(
    study: Study,
    trained: TrainedRun,
    labelled: Labelled,
    data: Path,
    tuning: Tuning,
    head: str,
    seed: int,
    say: Say,
    weights: str = "trained",
    stop: Event | None = None,
) -> list[dict[str, Any]]:
    """The rows of one fine-tuning, which is done where they are not there yet.

    Once `stop` is set it saves itself and ends with KeyboardInterrupt.
    Raises UserError: frames of images, a size that the tokenizer does not divide, a model that
    cannot attend so; of clips, what `encoded` raises.
    """
    _check(trained, labelled, data, tuning, head)
    images = labelled.kind == "images"
    _, index = open_tokenizer(data_dir_of(study, trained.run))
    patch = round(index["size"] / index["tokens_per_frame"] ** 0.5)
    px = tuning.px or (1 + images) * index["size"]
    if px % patch:
        raise UserError(f"{px} px are no multiple of the tokenizer's {patch} px; use one")
    given = tuning.model_dump()
    settings = {k: v for k, v in given.items() if k not in tuning.ADDED or v != tuning.ADDED[k]}
    settings |= {"px": px, "head": head, "run": trained.run_id}
    settings |= {"data": labelled.key, "seed": seed, "weights": weights}
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = study.finetuned_dir / f"{key}.json"
    if path.exists():
        return read_rows(path)
    with files.explained(study.folder):
        path.parent.mkdir(exist_ok=True)
        views = Views(tuning.clips, tuning.crops, tuning.frames, tuning.stride)
        # All seeds and weights read the same tokens.
        with files.RunLock(path.parent, "encode.lock", wait=True):
            folder = encoded(study, trained, labelled, data, views, Recipe(), say, px)
        saved = path.with_suffix(".pt")
        hidden_F = read_hidden(data, ProbeFolder(folder).read_index()["names"])
        seen = {"data_key": labelled.key, "px": px}
        seen["frames"] = 1 if images else tuning.frames or index["frames"]
        seen["stride"] = None if images else tuning.stride or index["settings"]["stride"]
        seen |= {"clips": tuning.clips, "crops": tuning.crops}
        found = tune(trained, weights, folder, hidden_F, tuning, head, seed, saved, say, stop)
        rows = [r | seen for r in found]
        files.write(path, json.dumps(rows))
        checkpoint.drop(saved, files=0, folders=0)
    best = max(rows, key=lambda r: r["top1"])
    of = f", the best of {len(rows)} layers by the test files" if len(rows) > 1 else ""
    say(
        f"{trained.run_id} {trained.run.model.name} from {weights} weights, "
        f"{best['frames']} x {px} px, {tuning.attention}{', end to end' * tuning.end_to_end}, "
        f"RoPE base {tuning.rope_base:g}, seed {seed}: "
        f"top-1 {best['top1']:.1%} at layer {best['layer']}{of} (chance {best['chance']:.1%})"
    )
    return rows


def _check(trained: TrainedRun, labelled: Labelled, data: Path, tuning: Tuning, head: str) -> None:
    """Raises UserError where data, model and tuning do not go together."""
    several = tuning.clips * tuning.crops > 1
    if labelled.kind == "images" and (tuning.frames or tuning.stride or several):
        raise UserError(
            f"{data}: images have no frames, no stride and one view each; leave out frames, "
            "stride, clips and crops"
        )
    if head not in KINDS:
        raise UserError(f"head '{head}': choose one of {', '.join(KINDS)}")
    config = trained.run.model
    if config.patch_inputs or config.patch_targets:
        raise UserError(f"{config.name} works on patches; fine-tuning takes models of tokens")
    if config.family == "mamba" and tuning.attention != "causal":
        raise UserError(f"{config.name} is a mamba, which has no attention: use causal")


def read_hidden(data: Path, names: list[str]) -> np.ndarray:
    """Of each file whether what is looked for is hidden at its end, where the labels say so.

    Said by the column `visible` of a CSV, a share, as `scaling permanence` writes it.
    Raises UserError for a value that is no number.
    """
    none = np.zeros(len(names), bool)
    if data.suffix != ".csv":
        return none
    with data.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not {"path", "visible"} <= set(rows[0]):
        return none
    try:
        hidden = {row["path"]: float(row["visible"]) == 0 for row in rows}
    except ValueError as error:
        raise UserError(f"{data}: column visible: {error}; want shares, 0 to 1") from None
    return np.array([hidden[name] for name in names])


def gather(study: Study) -> Path:
    """STUDY/finetune.csv of all rows that are there."""
    import pandas as pd

    rows = [r for p in files.whole(study.finetuned_dir, "*.json") for r in read_rows(p)]
    rows = [{"clips": 1, "crops": 1} | r for r in rows]  # of before there were several views
    rows = [r for r in rows if set(COLUMNS) <= set(r)]  # others are an older version's
    keys = ["data", "data_key", "run_id", "px", "frames", "rope_base", "attention", "end_to_end"]
    keys += ["steps", "clips", "crops", "head"]
    keys += ["weights", "seed", "layer"]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(keys, kind="stable")
    return study.write(study.finetune_csv, table.to_csv(index=False))
