"""Short-term anticipation (Section 4.4): what will be touched next, by which contact, and when?

A study's model is fine-tuned on annotated frames in Ego4D's layout (`anticipation_files`), or on
built-in clips (`anticipation_scenes`), and measured as Ego4D's challenge does. Beside the trained
weights it is done from those that the run started with.

STUDY/anticipated/<key>.json holds what one (run, data, settings, seed, weights) is worth, with its
draws of the frames, <key>-val.json its predictions as a submission, <key>.pt the state of one that
is not finished; STUDY/anticipation.csv the means over seeds, and their differences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd

from scaling import checkpoint
from scaling.analysis.questions.anticipation import CRITERIA, KS, LESS, lines, worth
from scaling.analysis.questions.anticipation import settings as settings_of
from scaling.analysis.questions.quality import half_width, variance_over_files
from scaling.config.study_file import checked
from scaling.errors import UserError
from scaling.jobs.machine import in_threads
from scaling.models.anticipation import Layout
from scaling.representations.anticipation_files import (
    read_annotations,
    read_submission,
    submission,
)
from scaling.representations.anticipation_frames import (
    Shape,
    Videos,
    encode,
    open_tokens,
    read_folder,
)
from scaling.representations.anticipation_measures import doubts
from scaling.representations.anticipation_scenes import BUILT_IN, TOKENS, write_scenes
from scaling.representations.anticipation_tune import (
    Anticipation,
    Split,
    anticipate_with,
    measured,
    predictions,
)
from scaling.representations.probe import read_rows
from scaling.representations.trained import (
    WEIGHTS,
    TrainedRun,
    data_dir_of,
    open_tokenizer,
    trained_runs,
)
from scaling.results import read_learned
from scaling.storage import files
from scaling.study_folder import Study

SCHEMA = 1
SETTINGS = (
    "px", "fast_px", "frames", "stride", "rope_base", "next_token_weight", "verb_weight", "frozen",
    "layer_decay", "lr", "head_lr", "steps", "batch",
)  # fmt: skip
ABOUT = (
    "run_id", "study", "size", "params", "macs_total", "data", "data_key", *SETTINGS, "tokens",
    "weights",
)  # fmt: skip
COLUMNS = (
    *ABOUT, "seeds", "n_train", "n_test", "silent", "next_token_loss", "less", "criterion", "k",
    "percent", "low", "high",
)  # fmt: skip
Say = Callable[[str], None]


def anticipate(
    study: Study,
    data: Path | None = None,
    *,
    given: dict[str, Any] | None = None,
    run: str | None = None,
    seeds: int = 1,
    say: Say = print,
) -> Path:
    """Fine-tune one model, by default the study's costliest; returns STUDY/anticipation.csv.

    Args:
        data: a folder in Ego4D's layout; None: the built-in clips, which are written once.
        given: of `Anticipation`, what is not to be as it is by default.
        seeds: starts of the pyramid and the head, and orders of the frames.
    Raises:
        UserError: what is wrong with the settings, the data, or the study's runs.
    """
    trained = trained_runs(study, [run] if run else None)[-1]
    config = trained.run.model
    if config.patch_inputs or config.patch_targets:
        raise UserError(f"{config.name} works on patches; anticipation takes models of tokens")
    tokenizer, index = open_tokenizer(data_dir_of(study, trained.run))
    tuning = checked(Anticipation, **((BUILT_IN if data is None else {}) | (given or {})))
    study.claim(study.anticipation_csv, inputs=[data] if data else [])
    with files.explained(study.folder):
        is_built_in = data is None
        if data is None:
            data = write_scenes(study.folder / "anticipation-clips", say=say)
        patch = round(index["size"] / index["tokens_per_frame"] ** 0.5)
        px = tuning.px or (TOKENS * patch if is_built_in else 2 * index["size"])
        fast_px = tuning.fast_px or max(patch, px // 2 // patch * patch)
        shape = Shape(tuning.frames, tuning.stride, px, fast_px if tuning.frames > 1 else px)
        videos = read_folder(data)
        study.anticipated_dir.mkdir(exist_ok=True)
        with files.RunLock(study.anticipated_dir, "encode.lock", wait=True):
            folder, layout = encode(study.anticipated_dir, videos, shape, tokenizer, index, say)
        one = partial(
            _one, study, trained, videos, folder, layout, shape, tuning, data.resolve().name
        )
        in_threads([partial(one, s, w, say) for s in range(seeds) for w in WEIGHTS])
    made = gather(study)
    for line in told(study, trained.run_id, videos.key):
        say(line)
    return made


def _settings(tuning: Anticipation, shape: Shape) -> dict[str, Any]:
    """What tells one fine-tuning of a model on some data from another; of the last frame alone
    there are no others and no distance of them."""
    alone = shape.frames == 1
    found = {name: getattr(tuning, name) for name in SETTINGS}
    found |= {"px": shape.px, "fast_px": None if alone else shape.fast_px}
    found |= {"stride": None if alone else shape.stride}
    return found | {"next_token_weight": tuning.tokens_weight}


def _one(
    study: Study,
    trained: TrainedRun,
    videos: Videos,
    folder: Path,
    layout: Layout,
    shape: Shape,
    tuning: Anticipation,
    name: str,
    seed: int,
    weights: str,
    say: Say,
    stop: Event | None = None,
) -> None:
    """Fine-tune and measure once, where that is not there yet."""
    settings = _settings(tuning, shape)
    made_by = {"schema": SCHEMA, "run_steps": trained.row["steps"]}
    of = made_by | {
        "run": trained.run_id,
        "data": videos.key,
        "seed": seed,
        "weights": weights,
        **settings,
    }
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    path = study.anticipated_dir / f"{key}.json"
    if path.exists():
        return
    codes = open_tokens(folder)
    splits = {split: Split.of(codes[split], one) for split, one in videos.splits.items()}
    saved = path.with_suffix(".pt")
    reader = anticipate_with(
        trained, weights, layout, splits["train"], tuning, seed, saved, say, stop
    )
    row: dict[str, Any] = made_by | {
        k: trained.row[k] for k in ("study", "size", "params", "macs_total")
    }
    row |= {"run_id": trained.run_id, "weights": weights, "seed": seed, "data": name}
    row |= {"data_key": videos.key, "tokens": layout.tokens, "n_train": len(splits["train"])}
    if weights == "random":
        row["macs_total"] = 0
    for split in [s for s in splits if s != "train"]:
        found, nats = predictions(reader, splits[split], tuning.batch)
        uids = [still.uid for still in videos.splits[split].stills]
        files.write(study.anticipated_dir / f"{key}-{split}.json", submission(uids, found))
        if split == "val":
            row |= settings | {"next_token_loss": nats} | measured(found, videos.splits[split])
        else:
            say(f"predictions of the test split: {study.anticipated_dir / f'{key}-{split}.json'}")
    files.write(path, json.dumps([row]))
    checkpoint.drop(saved, files=0, folders=0)


# ----------------------------------------------------------------------------------- what was found


def score(submission: Path, annotations: Path) -> list[str]:
    """What anyone's predictions are worth, in words. Raises UserError with every mistake."""
    of = read_annotations(annotations)
    if not of.annotated:
        raise UserError(f"{annotations}: no frame has `objects`, to which predictions are held")
    found = read_submission(submission, of)
    if not sum(map(len, found)):
        raise UserError(
            f"{submission}: none of the {len(found)} frames has a prediction, so that there is "
            "nothing to measure"
        )
    row: dict[str, Any] = measured(found, of)
    about = {"n_train": 1, "n_test": row["n_test"]}
    rows = [
        {"less": "", "criterion": c, "k": k} | _interval([(row, None)], f"{c}@{k}", about)
        for k in KS
        for c in CRITERIA
    ]
    table = pd.DataFrame(rows).assign(n_test=row["n_test"], silent=row["silent"])
    told = doubts([still.objects for still in of.stills if still.objects is not None], found)
    return [*worth(table, submission.name), *(f"  beware       {text}" for text in told)]


def gather(study: Study) -> Path:
    """STUDY/anticipation.csv of all that is there."""
    rows = [
        row
        for path in files.whole(study.anticipated_dir, "*.json")
        if "-" not in path.stem
        for row in read_rows(path)
        if row.get("schema") == SCHEMA
    ]
    table = pd.DataFrame(list(_compared(rows)), columns=list(COLUMNS))
    return study.write(study.anticipation_csv, table.to_csv(index=False))


def _compared(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The mean over seeds of each setting, and of its differences to its `LESS`."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_key(row), {})[row["seed"]] = row
    for _, group in sorted(groups.items()):
        first = group[min(group)]
        about = {name: first[name] for name in (*ABOUT, "n_train", "n_test")}
        about["silent"] = max(row["silent"] for row in group.values())
        about["next_token_loss"] = float(
            np.mean([row["next_token_loss"] for row in group.values()])
        )
        for less, changes in LESS.items():
            if changes and all(first[name] == value for name, value in changes.items()):
                continue  # itself
            other = groups.get(_key(first | changes), {})
            pairs = [(group[s], other.get(s) if less else None) for s in sorted(group)]
            pairs = [(a, b) for a, b in pairs if b is not None or not less]
            for k in KS if pairs else ():
                for criterion in CRITERIA:
                    name = f"{criterion}@{k}"
                    found = _interval(pairs, name, about)
                    at = {"less": less, "criterion": criterion, "k": k, "seeds": len(pairs)}
                    yield about | at | found


def _key(row: dict[str, Any]) -> str:
    """Equal for rows that differ in their seed alone."""
    names = ("data_key", "run_id", "run_steps", "weights", *SETTINGS)
    of = {name: row[name] for name in names}
    return json.dumps(of | ({"fast_px": None, "stride": None} if row["frames"] == 1 else {}))


def _interval(
    pairs: list[tuple[dict[str, Any], dict[str, Any] | None]], name: str, about: dict[str, Any]
) -> dict[str, float]:
    """Mean over seeds in percent and its 95% interval: of the seeds, and of the frames measured."""
    values = np.array([a[name] - (b[name] if b else 0) for a, b in pairs])
    resampled = f"{name} resampled"
    drawn_R = np.mean(
        [np.subtract(a[resampled], b[resampled] if b else 0) for a, b in pairs], axis=0
    )
    mean, videos = float(values.mean()), pairs[0][0]["videos"]
    drawn_R = drawn_R[np.isfinite(drawn_R)]  # one of silent frames alone has no figure
    sampling = float(np.var(drawn_R, ddof=1)) if len(drawn_R) > 1 else float("nan")
    if sampling < 1e-12:  # nothing was found (or all) in any draw, which other videos may differ in
        sampling = 1e4 * variance_over_files(abs(mean) / 100, videos)
    if videos == 1:  # its frames say nothing of what others would give
        sampling = float("nan")
    half = half_width(values, about["n_train"], about["n_test"], "given", sampling)
    least, most = (0, 100) if pairs[0][1] is None else (-100, 100)
    ends = np.clip([mean - half, mean + half], least, most)
    return {"percent": mean, "low": float(ends[0]), "high": float(ends[1])}


def told(study: Study, run_id: str, data_key: str) -> list[str]:
    """What is there of a run on some data: of each setting, and of its differences to others."""
    table = read_learned(study.anticipation_csv)
    assert table is not None
    mine = table[(table.run_id == run_id) & (table.data_key == data_key)]
    return [line for of, rows in settings_of(mine) for line in lines(of, rows)]
