"""Folders of runs as trainers leave them: Hugging Face's trainer_state.json, Lightning's
metrics.csv with the hparams.yaml beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from scaling.errors import UserError

STATE, METRICS = "trainer_state.json", "metrics.csv"
# Seen with transformers 5.24 (findings/transformers_total_flos.sh).
TOTAL_FLOS = (
    "total_flos is the Trainer's 6 N D, with N without embeddings, and without the output layer "
    "where that shares the embedding's weights: small models cost more than it says"
)
LATE = 0.98  # of a run's steps: an evaluation before that is not of its end


def is_folder(path: Path) -> bool:
    """Whether one of these trainers left runs in a folder or below it."""
    return path.is_dir() and any(next(path.rglob(n), None) is not None for n in (STATE, METRICS))


def read_runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """A row for each of Hugging Face's runs, or Lightning's rows with the run that they are of;
    and notes. Raises UserError for fewer than two runs that can be read."""
    if paths := sorted(folder.rglob(STATE)):
        found, notes = _states(folder, paths)
        whose = "Hugging Face's Trainer (trainer_state.json)"
    else:
        found, notes = _metrics(folder, sorted(folder.rglob(METRICS)))
        whose = "Lightning (metrics.csv)"
    if len(found) < 2:
        said = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"logs of {whose} of {len(found)} runs: a law needs several; give the folder that "
            f"holds a folder for each{said}"
        )
    notes.insert(0, f"layout: logs of {whose}, {len(found)} runs, a folder each")
    return pd.concat(found, ignore_index=True), notes


def _name(run: Path, folder: Path) -> str:
    return folder.name if run == folder else str(run.relative_to(folder))


def _states(folder: Path, paths: list[Path]) -> tuple[list[pd.DataFrame], list[str]]:
    """The end of each run, by the latest of its checkpoints."""
    newest: dict[Path, dict[str, Any]] = {}
    notes = []
    for path in paths:
        checkpoint = re.fullmatch(r"checkpoint-\d+", path.parent.name)
        run = path.parent.parent if checkpoint else path.parent
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            step, _ = state["global_step"], state["log_history"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"left out: {path}, which is not read ({type(error).__name__}: {error})")
            continue
        if run not in newest or step >= newest[run]["global_step"]:
            newest[run] = state
    rows = []
    for run, state in newest.items():
        step, name = state["global_step"], _name(run, folder)
        row = {"run": name, "step": step, "max_steps": state.get("max_steps"),
               "epoch": state.get("epoch")}  # fmt: skip
        for count in ("total_flos", "num_input_tokens_seen"):
            row[count] = state.get(count) or np.nan  # 0 where it was not counted
        for entry in state["log_history"]:  # the last of each
            if entry.get("step", 0) >= LATE * step:
                row |= {k: v for k, v in entry.items() if k.startswith("eval_")}
                row |= {"train_loss": entry["loss"]} if "loss" in entry else {}
        if not any(key.startswith("eval_") for key in row):
            notes.append(f"run {name!r} has no evaluation at its last steps")
        rows.append(pd.DataFrame([row]))
    if any(row["total_flos"].notna().any() for row in rows):
        notes.append(TOTAL_FLOS)
    return rows, notes


def _metrics(folder: Path, paths: list[Path]) -> tuple[list[pd.DataFrame], list[str]]:
    """The rows of each run, with the values that it was started with."""
    parts, notes = [], []
    for path in paths:
        try:
            rows = pd.read_csv(path)
            beside = path.with_name("hparams.yaml")
            held = yaml.safe_load(beside.read_text(encoding="utf-8")) if beside.exists() else None
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())[:200]
            notes.append(f"left out: {path.parent}, which is not read ({said})")
            continue
        flat = pd.json_normalize(held).iloc[0].to_dict() if isinstance(held, dict) and held else {}
        told: dict[str, Any] = {f"hparams/{k}": v for k, v in flat.items() if np.isscalar(v)}
        parts.append(rows.assign(run=_name(path.parent, folder), **told))
    return parts, notes
