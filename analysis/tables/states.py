"""Which runs finished: the words of the usual systems, booleans and exit codes.

A word that is not known is named, and `--finished-if` decides: a run that crashed is not fitted
because nobody knew the word for it.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from scaling.analysis.tables.columns import Table, listed
from scaling.errors import UserError

# Weights & Biases, MLflow, Ray, Slurm (and its short codes), Neptune, Optuna, SageMaker, Airflow,
# Comet, ClearML, Kubernetes, Azure ML, Vertex, LSF, HTCondor.
FINISHED = {
    "finished", "completed", "complete", "done", "success", "successful", "succeeded", "ok",
    "passed", "cd", "job_state_succeeded", "state_completed", "trialstate.complete", "published",
    "finished successfully", "succeed", "true", "yes", "y",
}  # fmt: skip
DIVERGED = {"diverged", "nan", "nan loss", "exploded", "blew up", "unstable", "loss spike"}
UNFINISHED = {
    "crashed", "crash", "failed", "failure", "fail", "killed", "kill", "running", "pending",
    "preempted", "preempting", "queued", "scheduled", "error", "errored", "paused", "timeout",
    "timed out", "timed_out", "time out", "cancelled", "canceled", "cancelling", "canceling",
    "out_of_memory", "oom", "node_fail", "boot_fail", "deadline", "suspended", "requeued",
    "revoked", "stopping", "configuring", "completing", "pruned", "waiting", "inprogress",
    "in_progress", "in progress", "aborted", "abort", "interrupted", "skipped", "upstream_failed",
    "up_for_retry", "up_for_reschedule", "created", "initializing", "starting", "provisioning",
    "terminating", "evicted", "unknown", "incomplete", "unfinished", "not finished", "partial",
    "started", "active", "false", "no", "ca", "f", "to", "nf", "pd", "r", "pr", "exit",
    "crashloopbackoff", "imagepullbackoff", "job_state_failed", "trialstate.fail",
    "trialstate.pruned", "trialstate.running", "removed", "restarting", "deferred", "bf",
    "dl", "oom killed", "oomkilled", "lost", "dead", "hung",
}  # fmt: skip
RAY = {"terminated", "error", "pending", "paused", "running"}
NAMES = {"state", "status", "outcome", "result", "finalstate", "finalstatus", "exitstatus",
         "trainingjobstatus", "phase", "jobstate", "runstate"}  # fmt: skip
_WHOSE = {
    "run", "job", "slurm", "trial", "training", "train", "task", "final", "exp", "experiment",
    "wandb", "mlflow", "sys", "lsf", "ray", "process", "end", "exit", "current", "last",
    "completion", "pod", "dag", "instance", "execution", "sagemaker", "neptune", "comet",
    "clearml",
}  # fmt: skip
WELL = {"finished", "completed", "done", "success", "succeeded", "complete", "isfinished",
        "hasfinished", "iscompleted", "iscomplete", "isdone", "runfinished", "ok", "converged",
        "finishedok", "runcompleted", "trainingcompleted"}  # fmt: skip
ILL = {"failed", "crashed", "diverged", "error", "killed", "isfailed", "hascrashed", "hasfailed",
       "iscrashed", "hasdiverged", "isdiverged", "preempted", "aborted", "running", "isrunning",
       "nan", "isnan", "hasnan", "oom", "timedout", "unfinished", "pruned", "ispruned"}  # fmt: skip
CODES = {"exitcode", "returncode", "rc", "exitstatus", "retcode", "exit", "derivedexitcode"}
MOST_CODES = 12  # values of a column of exit codes
_TRUE = {"true": True, "yes": True, "1": True, "1.0": True, "y": True, "t": True}
_FALSE = {"false": False, "no": False, "0": False, "0.0": False, "n": False, "f": False}


def statuses(table: Table, finished_if: str | None) -> tuple[np.ndarray | None, list[str]]:
    """What became of each row, and notes: "finished", "diverged" or the table's own word; None
    where no column tells.

    A run is finished when every column that speaks of its state says so. finished_if: words of the
    column of states, or a condition on columns, in place of what is known here.
    Raises UserError for a word that is not known.
    """
    frame = table.frame
    if finished_if is not None:
        return _decided(table, finished_if)
    if not (columns := state_columns(table)):
        return None, []
    out = np.full(len(frame), "finished", dtype=object)
    notes = []
    # Neptune: a run that is over is inactive, and another column says whether it failed.
    over = {"inactive"} if any(table.plain(column) == "failed" for column in columns) else set()
    for column in columns:
        words = frame[column].astype(object).where(frame[column].notna(), None)
        read, how = _read(str(column), table.plain(column), words, over)
        changed = (read != "finished") & (out == "finished")
        out[changed] = read[changed]
        notes.append(f"state: column {str(column)!r}{how}")
    return out, notes


def state_columns(table: Table) -> list[str]:
    found = []
    for column, name in table.names.items():
        words = name.everything
        plain = table.plain(column)
        values = table.frame[column]
        named = plain in NAMES | CODES or (
            words and words[-1] in ("state", "status", "outcome", "result")
            and set(words[:-1]) <= _WHOSE
        )  # fmt: skip
        if not named and not (plain in WELL | ILL and _booleans(values) is not None):
            continue
        if not pd.api.types.is_float_dtype(values) or values.nunique() <= MOST_CODES:
            found.append(column)  # else a result in numbers
    return found


def _booleans(values: pd.Series) -> np.ndarray | None:
    """True and False of a column of booleans, yes and no, 1 and 0 (missing: False); else None."""
    if len(values) and values.nunique() > 4:
        return None
    words = values.astype(str).str.strip().str.lower()
    known = words.isin([*_TRUE, *_FALSE]) | values.isna()
    return words.isin(list(_TRUE)).to_numpy() if bool(known.all()) else None


def _read(
    column: str, plain: str, values: pd.Series, over: set[str]
) -> tuple[np.ndarray, str]:  # fmt: skip
    """The status of each row by one column, and how it was read. over: words that mean finished in
    this table alone."""
    given = values.notna().to_numpy()
    if plain in WELL | ILL:
        true = _booleans(values)
        assert true is not None
        good = true if plain in WELL else ~true
        word = (
            "diverged" if "diverged" in plain or "nan" in plain else f"{column} is {plain in ILL}"
        )
        return np.where(good, "finished", word).astype(object), f" ({plain in WELL} is finished)"
    words = values.astype(str).str.strip().str.lower()
    kinds = set(words[given])
    numeric = bool(kinds) and all(re.fullmatch(r"-?\d+(\.0)?(:\d+)?", w) for w in kinds)
    if plain in CODES and numeric:
        good = words.str.fullmatch(r"0(\.0)?(:0)?").to_numpy()
        return np.where(good, "finished", "exit code not 0").astype(object), " (0 is finished)"
    finished = FINISHED | over | ({"terminated"} if kinds <= RAY else set())
    out = words.to_numpy(dtype=object)
    shown = {}
    unknown: dict[str, int] = {}
    for word in sorted(kinds):
        stem = re.sub(r"^cancelled by.*", "cancelled", word).rstrip("+").strip(" ✓✔✗✘.!")
        if stem in finished:
            shown[word] = "finished"
        elif stem in DIVERGED:
            shown[word] = "diverged"
        elif stem in UNFINISHED:
            shown[word] = stem
        else:
            unknown[str(values[given & (words == word).to_numpy()].iloc[0])] = int(
                (words == word).sum()
            )
    if unknown:
        known = [word for word, meaning in shown.items() if meaning == "finished"]
        example = ",".join(known) or max(unknown, key=lambda word: unknown[word])
        counts = ", ".join(f"{word!r} ({count} rows)" for word, count in list(unknown.items())[:8])
        raise UserError(
            f"column {column!r} says of runs {counts}: is a run with it finished? Name the words "
            f"of finished runs: --finished-if {example!r}, several apart by commas; or a "
            f"condition, --finished-if '{column} == ...'"
        )
    mapped = pd.Series(out).map(shown).where(given, "no state given").to_numpy(dtype=object)
    return mapped, ""


def _decided(table: Table, text: str) -> tuple[np.ndarray, list[str]]:
    """Statuses by the caller's words or condition."""
    frame = table.frame
    if re.search(r"[<>=]|\b(in|not|and|or)\b", text):
        good = condition(frame, text, "--finished-if")
        out = np.where(good, "finished", f"not {text}").astype(object)
        return out, [f"state: finished where {text} ({int(good.sum())} of {len(frame)} rows)"]
    wanted = {w.strip().lower() for w in text.split(",") if w.strip()}
    columns = [c for c in state_columns(table) if table.plain(c) not in WELL | ILL] or [
        c for c in state_columns(table)
    ]
    for column in columns:
        words = frame[column].astype(str).str.strip().str.lower().str.removesuffix(".0")
        if words.isin(wanted).any():
            out = np.where(words.isin(wanted), "finished", words).astype(object)
            count = int(words.isin(wanted).sum())
            return out, [f"state: column {str(column)!r}, finished is {text} ({count} rows)"]
    if not columns:
        raise UserError(
            f"--finished-if {text!r}: the table has no column of states; give a condition on one "
            f"of {listed(frame.columns)}, as in --finished-if 'exit == 0'"
        )
    held = frame[columns[0]].dropna().astype(str).unique()
    raise UserError(
        f"--finished-if {text!r}: no row has it; column {str(columns[0])!r} holds {listed(held, 8)}"
    )


def condition(frame: pd.DataFrame, text: str, flag: str) -> np.ndarray:
    """Rows for which a condition on columns holds, as `DataFrame.eval` reads it.

    Raises UserError with what is wrong and an example.
    """
    if "@" in text or "__" in text or re.search(r"\.\w+\s*\(", text):
        raise UserError(
            f"{flag} {text!r}: conditions are comparisons of columns joined by and, or, not; as in "
            f"{flag} 'seed == 1 and optimizer == \"adamw\"'"
        )
    try:
        good = frame.eval(text, engine="python")
        kept = pd.Series(good, index=frame.index) if hasattr(good, "__len__") else None
    except Exception as error:  # of pandas' parser and of comparisons, of many types
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{flag} {text!r}: {said[:200]}. The columns are {listed(frame.columns)}; one with "
            f"spaces or signs stands in backticks: {flag} '`val loss` < 4'"
        ) from None
    if kept is None or kept.dtype != bool:
        if kept is not None and kept.isin([True, False]).all():
            return kept.to_numpy(bool)
        raise UserError(f"{flag} {text!r}: no condition; write one as in {flag} 'seed == 1'")
    return kept.to_numpy()


def rows_where(frame: pd.DataFrame, where: str) -> tuple[pd.DataFrame, str]:
    """The rows of which a condition holds, and a note that says so; UserError where none does."""
    good = condition(frame, where, "--where")
    if not good.any():
        raise UserError(f"--where {where!r}: no row of {len(frame)} is left")
    kept = frame[good].reset_index(drop=True)
    return kept, f"where {where}: {len(kept)} of {len(frame)} rows"
