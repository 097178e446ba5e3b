"""Exports of known tools: which of their columns mean what, or what to export instead."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from scaling.analysis.tables.columns import listed
from scaling.analysis.tables.losses import HIGHEST_LOSS
from scaling.analysis.tables.pivots import unpivoted
from scaling.analysis.tables.reshaped import without_lists
from scaling.errors import UserError


@dataclass
class Layout:
    frame: pd.DataFrame
    columns: dict[str, str] = field(default_factory=dict)  # role -> column
    notes: list[str] = field(default_factory=list)


def adapt(frame: pd.DataFrame, asked: set[str]) -> Layout:
    """The table with a row a run or a row an evaluation, and the columns its layout tells.

    asked: roles whose columns the caller named; they are not touched. Raises UserError for a
    layout that cannot give a law, with what to export instead.
    """
    frame = _unfolded(frame)
    for layout in (_panel, _log_of_one_run, _pivot, _optuna, _nanochat):
        if (found := layout(frame, asked)) is not None:
            return found
    return Layout(frame)


def _unfolded(frame: pd.DataFrame) -> pd.DataFrame:
    """Weights & Biases' runs as its documentation exports them: a cell holds the whole summary,
    another the whole configuration, as Python prints a dictionary."""
    if not {"summary", "config"} <= set(frame.columns):
        return frame
    parts = [frame.drop(columns=["summary", "config"])]
    for column in ("summary", "config"):
        held = [one for cell in frame[column] if (one := _dictionary(cell)) is not None]
        if len(held) < len(frame):
            return frame
        parts.append(pd.json_normalize(held).add_prefix(f"{column}."))
    whole = pd.concat([part.reset_index(drop=True) for part in parts], axis=1)
    return without_lists(whole)[0]


def _dictionary(cell: Any) -> dict[str, Any] | None:
    if isinstance(cell, dict):
        return cell
    text = re.sub(r"(?<=[:,\[] )(nan|inf|-inf)(?=[,}\]])", "None", str(cell))
    try:
        held = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def _panel(frame: pd.DataFrame, asked: set[str]) -> Layout | None:
    """A panel of Weights & Biases: a column a run, with __MIN and __MAX."""
    ends = [c for c in frame.columns if str(c).endswith(("__MIN", "__MAX"))]
    if len(ends) < 2 or not any(" - " in str(c) for c in ends):
        return None
    runs = [c for c in frame.columns if " - " in str(c) and c not in ends]
    raise UserError(
        f"the export of a Weights & Biases panel: curves of {len(runs)} runs over "
        f"{str(frame.columns[0])!r}, without their parameters, tokens or compute. Export the "
        "table of runs instead (the project's page, Runs, Export as CSV, with columns of "
        "parameters, tokens and the final loss)"
    )


def _log_of_one_run(frame: pd.DataFrame, asked: set[str]) -> Layout | None:
    """Hugging Face's log_history: evaluations of a single run."""
    names = set(map(str, frame.columns))
    single = frame.attrs.get("log") == "trainer_state" or (
        {"epoch", "step", "learning_rate"} <= names
        and ("eval_runtime" in names or "train_runtime" in names or "grad_norm" in names)
        and not names & {"run", "run_id", "run_name", "name", "id", "params", "n_params"}
    )
    if not single:
        return None
    raise UserError(
        "the log of one run of Hugging Face's Trainer (log_history): a law needs several runs. "
        "Make a table with a row a run: its parameters (model.num_parameters()), the last "
        "num_input_tokens_seen, and the last eval_loss"
    )


def _pivot(frame: pd.DataFrame, asked: set[str]) -> Layout | None:
    found = unpivoted(frame)
    if found is None:
        return None
    long, compute, notes = found
    return Layout(long, {"c": compute} | ({"loss": "loss"} if "loss" in long else {}), notes)


def _optuna(frame: pd.DataFrame, asked: set[str]) -> Layout | None:
    """Optuna's trials_dataframe(): its objective is `value`."""
    names = [str(c) for c in frame.columns]
    objectives = [c for c in names if re.match(r"values?(_|$)", c)]
    if not {"number", "state"} <= set(names) or not (objectives or "score" in names):
        return None
    if not any(c.startswith(("params_", "user_attrs_", "datetime_")) for c in names):
        return None
    if len(objectives) > 1 and "loss" not in asked:
        raise UserError(
            f"Optuna's trials of several objectives, {listed(objectives)}: name the one that is "
            f"the loss (loss=..., or --loss on the command line), as in --loss {objectives[0]}"
        )
    suggested = {c: c.removeprefix("params_") for c in names if c.startswith("params_")}
    frame = frame.rename(columns={c: to for c, to in suggested.items() if to not in names})
    note, columns = "layout: Optuna's trials", {"run": "number"}
    if "study" in frame.columns and frame["study"].nunique() > 1:
        named = frame["study"].astype(str) + " " + frame["number"].astype(str)
        frame, columns = frame.assign(trial=named), {"run": "trial"}
    known = [c for c in names if re.search(r"(val|eval).*loss", c) and c not in objectives]
    if not known and len(objectives) == 1 and "loss" not in asked:
        columns["loss"] = objectives[0]
        note += f"; the objective {objectives[0]!r} is taken for the loss"
        if "studies" not in frame.attrs:  # a CSV does not say whether it was minimised
            _refuse_accuracy(pd.to_numeric(frame[objectives[0]], errors="coerce"), objectives[0])
    return Layout(frame, columns, [note])


def _refuse_accuracy(values: pd.Series, name: str) -> None:
    if values.isna().all() or 1 < values.median() <= HIGHEST_LOSS:
        return
    of = "lies below 1" if values.median() <= 1 else f"is {values.median():.3g} in the middle row"
    raise UserError(
        f"Optuna's objective {name!r} {of}: a loss, or an accuracy? Say --loss {name} "
        "for the first; for the second rename it, as in accuracy, and give --metric accuracy"
    )


def _nanochat(frame: pd.DataFrame, asked: set[str]) -> Layout | None:
    """nanochat's results.csv: its own laws count the transformer's matrices and the head."""
    wanted = {"flops_budget", "params_transformer", "params_lm_head", "tokens_trained"}
    if not wanted <= set(map(str, frame.columns)):
        return None
    counted = frame["params_transformer"] + frame["params_lm_head"]
    name = "params (transformer + lm_head)"
    columns = {"n": name, "d": "tokens_trained", "c": "flops_budget"}
    return Layout(
        frame.assign(**{name: counted}), columns,
        ["layout: nanochat's results; parameters are params_transformer + params_lm_head, those "
         "that "
         "training spends its FLOPs on (--n params_total counts all)"],
    )  # fmt: skip
