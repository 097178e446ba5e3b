"""Text that trainers print: Megatron-LM's logs as histories; of others, what to give instead.

Megatron (and NeMo, Megatron-DeepSpeed) prints its arguments, the parameters on each rank, and then
lines of `iteration 100/ 1000 | consumed samples: 25600 | ... | lm loss: 4.1E+00 |`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.errors import UserError

ENDINGS = {".log", ".out", ".txt", ".stdout"}
SEARCHED = 1 << 21  # characters in which a log's first line of training is found
_STEP = re.compile(r"\biteration:?\s+(\d+)\s*/\s*(\d+)\s*\|(.*)")
_EVALUATED = re.compile(
    r"\bvalidation (?:loss|results) at (?:iteration (\d+)|the end)([^|]*)\|(.*)"
)
_ARGUMENT = re.compile(
    r"^\W*(?:\[\S+\]:)?\s*(seq_length|seed|tensor_model_parallel_size|pipeline_model_parallel_size)"
    r" \.{3,} (\d+)\s*$"
)
_RANK = re.compile(r"number of parameters on \(tensor, pipeline\) model parallel rank "
                   r"\((\d+)\s*,\s*(\d+)\): (\d+)")  # fmt: skip
_OTHER = re.compile(
    r"(?im)^.{0,60}\b(?:step|iter|iteration|epoch)\b\W{0,3}\d+.*loss\W{1,4}\d|"
    r"^\d+ (?:train|val) \d+\.\d+$"
)
FEWEST = 3  # such lines that make a text a log
SINGLE = (
    "the log of one run of Megatron-LM: a law needs several; give the folder that holds the runs' "
    "logs, one a run"
)
OTHER = (
    "a trainer's log, a line of text a step: give a table with a row a run (parameters, tokens, "
    "last validation loss), as trackers export it, or a row an evaluation with the run's name"
)


def refuse(text: str) -> None:
    """Raise UserError where the beginning of a file is a trainer's log."""
    if _megatron(text):
        raise UserError(SINGLE)
    if len(_OTHER.findall(text)) >= FEWEST:
        raise UserError(OTHER)


def is_folder(path: Path) -> bool:
    """Whether Megatron left logs in a folder or below it."""
    return path.is_dir() and any(_megatron(_head(file)) for file in _texts(path))


def read_folder(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows of step, tokens, rate and losses of each run, and notes.

    Raises UserError for fewer than two runs, and for runs without parameters or tokens.
    """
    parts, notes = [], list[str]()
    for file in _texts(folder):
        if not _megatron(_head(file)):
            continue
        name = str(file.relative_to(folder).with_suffix(""))
        rows, said = _run(file.read_text(encoding="utf-8", errors="replace"))
        if len(rows):
            parts.append(pd.DataFrame(rows).assign(run=name))
            notes += [f"{name}: {one}" for one in said]
    if len(parts) < 2:
        raise UserError(SINGLE)
    runs = pd.concat(parts, ignore_index=True)
    if not {"params", "tokens"} <= set(runs.columns):  # in none of them
        raise UserError(f"Megatron-LM's logs of {len(parts)} runs, of which {notes[0]}")
    notes.insert(0, f"layout: Megatron-LM's logs, {len(parts)} runs, a file each")
    return runs, notes


def _texts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in ENDINGS and p.is_file())


def _head(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(SEARCHED)


def _megatron(text: str) -> bool:
    found = _STEP.search(text)
    return found is not None and bool(re.search(r"\blm[ _]loss", found.group(3)))


def _run(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each step that one log tells of; of steps that were done again, the later one."""
    steps: dict[int, dict[str, Any]] = {}
    told: dict[str, int] = {}
    ranks: dict[tuple[str, str], int] = {}
    last = 0
    for line in text.splitlines():
        if found := _STEP.search(line):
            last = int(found[1])
            steps.setdefault(last, {}).update(
                _fields(found[3]), iteration=last, train_iters=int(found[2])
            )
        elif found := _EVALUATED.search(line):
            at = int(found[1] or last)
            loss = re.search(r"\blm[ _]loss(?: value)?:\s*([0-9.eE+-]+)", found[3])
            if loss and "test" not in found[2]:
                row = steps.setdefault(at, {"iteration": at})
                row["validation/lm_loss"] = _float(loss[1])
        elif found := _ARGUMENT.match(line):
            told[found[1]] = int(found[2])
        elif found := _RANK.search(line):
            ranks[found[1], found[2]] = int(found[3])
    params, notes = _parameters(told, ranks)
    for row in steps.values():
        row |= {"params": params} if params else {}
        row |= {"seed": told["seed"]} if "seed" in told else {}
        if "tokens" not in row and "samples" in row and "seq_length" in told:
            row["tokens"] = row["samples"] * told["seq_length"]
        row.pop("samples", None)
    if not any("tokens" in row for row in steps.values()):
        notes.append("no line of its arguments tells seq_length: its tokens are not known")
    return list(steps.values()), notes


def _fields(text: str) -> dict[str, float]:
    """What a line of training tells, by the names of columns."""
    names = {"consumed samples": "samples", "consumed tokens": "tokens",
             "learning rate": "learning_rate", "lm loss": "train/lm_loss",
             "lm_loss": "train/lm_loss"}  # fmt: skip
    found = {}
    for part in text.split("|"):
        key, _, value = part.rpartition(":")
        if (name := names.get(key.strip())) is not None:
            found[name] = _float(value)
    return found


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _parameters(
    told: dict[str, int], ranks: dict[tuple[str, str], int]
) -> tuple[int | None, list[str]]:
    """Parameters of the whole model, where the ranks' numbers add up to it."""
    tensor = told.get("tensor_model_parallel_size", 1)
    stages = told.get("pipeline_model_parallel_size", 1)
    if not ranks:
        return None, ["no line tells its number of parameters"]
    if stages > 1 or any(stage != "0" for _, stage in ranks) or len(ranks) != tensor:
        return None, [
            "its parameters are not the sum of its ranks' (stages share the embedding, or ranks "
            "are missing in the log): write a table with them"
        ]
    return sum(ranks.values()), []
