"""What a referee would ask of the runs: rates, histories, mixtures, repeated data, units, seeds.

Each question takes a case and gives its findings, or none where it does not apply.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.analysis.questions.audit_case import Case, Finding, Found
from scaling.analysis.questions.doubts import PASSES
from scaling.analysis.schema import TOKEN_UNIT, loss_unit

SIZES = ("params", "tokens")
TOGETHER = 1.02  # sizes and amounts of training within this factor are one cell
FRESH = 1.1  # passes over the data that count as one
# Column of rows -> what it tells, and why a law may not mix its values.
MIXES = {
    "tokenizer": "losses per token of different tokenizers are not comparable",
    "vocab": "losses per token of different vocabularies are not comparable",
    "data_key": "losses on different data are not comparable",
    "data_mix": "losses on different data are not comparable",
    "context": "losses at different context lengths are not comparable",
    "optimizer": "other optimizers have other laws",
    "evaluated_on": "losses on different data are not comparable",
    "parametrization": "other parametrisations have other laws",
}
TOLD = {
    "lr": "learning rate", "batch_tokens": "batch", "schedule": "schedule",
    "epochs": "passes over the data", "tokenizer": "tokenizer", "seed": "seed",
}  # fmt: skip


def columns(case: Case) -> Found:
    question = "Does the table tell how the runs were trained?"
    lacking = [word for column, word in TOLD.items() if case.values(column).empty]
    unused = case.said("not used")
    if not lacking and not unused:
        yield Finding("columns", question, f"{', '.join(TOLD.values())} are there", "fine")
        return
    evidence = [f"no column tells {', '.join(lacking)}"] if lacking else []
    evidence += [unused] if unused else []
    yield Finding(
        "columns", question, "; ".join(evidence), "slight",
        "give the columns, or state these settings; check that none of the unused ones varies",
    )  # fmt: skip


def settings(case: Case) -> Found:
    """Rates and batches that vary among runs of one size and length."""
    question = "Was each run trained at its best rate and batch?"
    varying = {c: _searched(case.kept, c) for c in ("lr", "batch_tokens", "schedule")}
    varying = {column: found for column, found in varying.items() if found[0]}
    if varying:
        text = "; ".join(
            f"{TOLD[c]} varies within {n} cells of one N and D, where the worst is {worse:.1%} "
            "above the best"
            for c, (n, worse) in varying.items()
        )
        yield Finding(
            "settings", question, f"{text}; all count as equals", "weighty",
            "keep the best run of each cell, or fit each setting by itself",
        )  # fmt: skip
        return
    if chosen := case.said("grid:"):
        yield Finding(
            "settings", question, chosen, "slight", "repeat the best of each cell with a new seed"
        )
        return
    sweep = int(case.rows.loc[case.rows["role"] == "lr_sweep", "run_id"].nunique())
    rates = case.values("lr").nunique()
    if sweep or rates > 1:
        how = f"a sweep of {sweep} runs chose the rate" if sweep else f"{rates} rates, by size"
        yield Finding("settings", question, how, "fine")
    else:
        yield Finding(
            "settings", question,
            "one rate for all runs, and no sweep" if rates else "the rate is not told", "slight",
            "sweep the rate at the smallest and the largest size (`scaling study` does)",
        )  # fmt: skip


def _searched(kept: pd.DataFrame, column: str) -> tuple[int, float]:
    """Cells of one N and D with several values of a column, and their largest relative spread."""
    if column not in kept.columns:
        return 0, 0.0
    size = [np.round(np.log(kept[c].to_numpy(float)) / np.log(TOGETHER)) for c in SIZES]
    cell = kept.assign(cell_n=size[0], cell_d=size[1]).groupby(["cell_n", "cell_d"])
    several = cell[column].nunique() > 1
    if not several.any():
        return 0, 0.0
    worse = cell["val_loss"].max() / cell["val_loss"].min() - 1
    return int(several.sum()), float(worse[several].max())


def history(case: Case) -> Found:
    question = "Is every point the end of a run whose rate had decayed?"
    by_run = case.kept.groupby("run_id")["macs_total"].nunique()
    several = by_run[by_run > 1]
    mid = int((~case.rows["decayed"].eq(True)).sum())
    if several.empty or mid:
        said = case.said("history", "every row is taken", "decayed")
        evidence = f"{mid} rows mid-schedule are left out" if mid else said or "one row a run"
        unknown = said.startswith("every row is taken")
        remedy = "say so, or give the last row of each run alone" if unknown else ""
        yield Finding("history", question, evidence, "slight" if unknown else "fine", remedy)
        return
    here = case.kept[case.kept["run_id"].isin(several.index)]
    loose = here["budget_macs"].isna().mean() > 0.5 or several.median() > 12
    yield Finding(
        "history", question,
        f"{len(several)} of {len(by_run)} runs have several points (up to {several.max()}), "
        + ("most at costs of their own, as a training curve has" if loose
           else "at budgets that other sizes share, as branches of a trunk"),
        "weighty" if loose else "slight",
        "keep the last, decayed point of each run" if loose else "say that the rate had decayed",
    )  # fmt: skip


def mixture(case: Case) -> Found:
    question = "Are all losses of one kind?"
    mixed = [
        f"{case.values(c).nunique()} values of {c}: {why}"
        for c, why in MIXES.items()
        if case.values(c).nunique() > 1
    ]
    if mixed:
        yield Finding(
            "mixture", question, "; ".join(mixed), "weighty", "fit a law for each value by itself"
        )
    else:
        known = [c for c in MIXES if not case.values(c).empty]
        evidence = f"one value of {', '.join(known)}" if known else "no column says otherwise"
        yield Finding("mixture", question, evidence, "fine")


def repetition(case: Case) -> Found:
    question = "Were the data fresh?"
    passes = pd.to_numeric(case.values("epochs"), errors="coerce")
    if passes.empty:
        if "epochs" in case.kept.columns:
            yield Finding("repetition", question, "every sequence was new", "fine")
        return
    most = float(passes.max())
    text = f"up to {most:.3g} passes over the data"
    if most <= FRESH:
        yield Finding("repetition", question, text, "fine")
        return
    yield Finding(
        "repetition", question,
        f"{text}: repeated data teach less than fresh ones (arXiv 2305.16264)",
        "weighty" if most > PASSES else "slight", "fit the rows of one pass alone, or add data",
    )  # fmt: skip


def ratio(case: Case) -> Found:
    question = "Do tokens per parameter vary?"
    n, d = (case.kept[c].to_numpy(float) for c in SIZES)
    known = np.isfinite(n) & np.isfinite(d)
    if known.sum() < 3 or len(np.unique(n[known])) < 2:
        return
    spread = float(np.ptp(np.log((d / n)[known])))
    if spread > np.log(1.2):
        low, high = (float(f((d / n)[known])) for f in (np.min, np.max))
        yield Finding("ratio", question, f"from {low:.3g} to {high:.3g} tokens each", "fine")
        return
    yield Finding(
        "ratio", question,
        f"all runs have about {np.median((d / n)[known]):.3g} tokens per parameter: that this is "
        "the best ratio, at every budget, is assumed",
        "weighty", "train two or three sizes at each of a few budgets",
    )  # fmt: skip


def loss_size(case: Case) -> Found:
    question = "Is the loss of a plausible size?"
    unit = loss_unit(case.rows.get("tokenizer", ()))
    if unit != TOKEN_UNIT:
        yield Finding("loss", question, f"{unit}, in all runs", "fine")
        return
    low, high = float(case.kept["val_loss"].min()), float(case.kept["val_loss"].max())
    vocab = pd.to_numeric(case.values("vocab"), errors="coerce").max()
    chance = np.log(vocab) if vocab > 1 else 12.5  # the logarithm of 268,000 tokens
    text = f"{low:.3g} to {high:.3g} {unit}"
    if high > 1.1 * chance:
        why = f"chance is {chance:.3g}" + ("" if vocab > 1 else " for any usual vocabulary")
        yield Finding(
            "loss", question, f"{text}, but {why}: perplexity, a sum, or other units", "weighty",
            "give the mean loss in nats per token (the logarithm of a perplexity)",
        )  # fmt: skip
    elif high < 0.05:
        yield Finding(
            "loss", question, f"{text}: smaller than any language or video leaves", "weighty",
            "check the column: a share, a squared error, or a mean over another count",
        )  # fmt: skip
    else:
        yield Finding("loss", question, text, "fine")


def cost(case: Case) -> Found:
    question = "Does compute agree with 6 N D FLOPs?"
    per = (case.kept["macs_total"] / (case.kept["params"] * case.kept["tokens"])).dropna()
    if per.empty:
        return
    middle, spread = 2 * float(per.median()), float(per.max() / per.min())
    text = f"it is {middle:.3g} N D in the middle, within a factor {spread:.2g}"
    remedy = "name the unit of the column (--compute-unit), or say what is counted"
    if not 3 <= middle <= 10:
        # Small models and long contexts cost up to several times as much, never a fixed 12.
        weight = "weighty" if middle < 3 or middle > 30 or spread < 1.05 else "slight"
        yield Finding("cost", question, text, weight, remedy)
    else:
        yield Finding("cost", question, text, "slight" if spread > 3 else "fine",
                      remedy if spread > 3 else "")  # fmt: skip


def seeds(case: Case) -> Found:
    question = "Was any run repeated?"
    count = case.values("seed").astype(str).nunique()
    if count > 1:
        yield Finding("seeds", question, f"{count} seeds", "fine")
        return
    evidence = "one seed: the noise is inferred from residuals"
    if not count:
        evidence = "no column tells the seed: the noise is inferred from residuals"
    yield Finding(
        "seeds", question, evidence, "slight", "repeat the best size of the two end budgets"
    )
