"""The paper's comparisons of design choices, with a study's own numbers beside its.

Accuracies are of other data, models and budgets: what may be compared is which choice wins, and by
how much. Each table says at what scale ours was run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.quality import best_layers, over_seeds, read_quality

# arXiv 2501.05453, Tables 4, 5 and 6 and Section A.2: top-1 on ImageNet, in percent.
POOLING = {"average": 53.2, "attention": 61.1}
RESOLUTION = {
    "trained at the low resolution": 53.2,
    "fine-tuned at twice that, RoPE base 10,000": 63.2,
    "fine-tuned at twice that, RoPE base 50,000": 64.4,
}
ARCHITECTURE = {"gpt2": 48.5, "mamba": 40.7, "toto": 53.2}
ATTENTION = {"full": 82.6, "causal": 82.2}
COLUMNS = ["choice", "paper", "ours", "low", "high", "data", "scale"]


def paper_tables(study: Path) -> dict[str, pd.DataFrame]:
    """Title -> rows of COLUMNS (percent), of the comparisons that the study holds.

    Pooling (Table 5) and architecture (Table 6; of the largest run of each family) come from
    probes.csv, resolution (Table 4) and attention (A.2) from finetune.csv. A comparison with fewer
    than two of its choices is left out.
    """
    probes, tuned = read_quality(study, "probes"), read_quality(study, "finetune")
    found: dict[str, list[pd.DataFrame]] = {}
    if probes is not None:
        trained = probes[probes.weights == "trained"]
        for _, one in trained.groupby("data_key", sort=False):
            largest = one[one.macs_total == one.macs_total.max()]
            largest = largest[largest.run_id == largest.run_id.iloc[0]]
            found.setdefault("Pooling (Table 5)", []).append(_heads(largest))
            families = one[one["head"] == "attention"]
            families = families[
                families.macs_total == families.groupby("family").macs_total.transform("max")
            ]
            found.setdefault("Architecture (Table 6)", []).append(_families(families))
    if tuned is not None:
        attention = tuned[tuned.rope_base == 50_000]
        for _, one in attention.groupby(["data", "px"], sort=False):
            rows = _tuned(one, "attention", {c: c for c in ("full", "causal", "prefix")}, ATTENTION)
            found.setdefault("Attention in fine-tuning (A.2)", []).append(rows)
        causal = tuned[tuned.attention == "causal"]
        names = {
            10_000.0: "fine-tuned at twice that, RoPE base 10,000",
            50_000.0: "fine-tuned at twice that, RoPE base 50,000",
        }
        for data, one in causal.groupby("data", sort=False):
            rows = _tuned(one[one.px == one.px.max()], "rope_base", names, RESOLUTION)
            if probes is not None:
                before = probes[(probes.data == data) & (probes["head"] == "attention")]
                before = before[before.run_id.isin(set(one.run_id)) & (before.weights == "trained")]
                before = before[before.macs_total == before.macs_total.max()]
                if len(before):
                    low = "trained at the low resolution"
                    rows = pd.concat([_best(before, low, RESOLUTION[low]), rows])
            found.setdefault("Resolution (Table 4)", []).append(rows)
    tables = {title: pd.concat(parts, ignore_index=True) for title, parts in found.items() if parts}
    return {title: t for title, t in tables.items() if len(t) and t.choice.nunique() > 1}


def _best(probes: pd.DataFrame, choice: str, paper: float) -> pd.DataFrame:
    """The best layer of one model and head as a row."""
    best = best_layers(probes).iloc[0]
    scale = f"{best['size']}, {best.macs_total:.3g} training MACs, {int(best.seeds)} seeds"
    values = [100 * best.accuracy, 100 * best.low, 100 * best.high]
    return pd.DataFrame([[choice, paper, *values, best.data, scale]], columns=COLUMNS)


def _heads(probes: pd.DataFrame) -> pd.DataFrame:
    rows = [
        _best(probes[probes["head"] == h], h, paper)
        for h, paper in POOLING.items()
        if h in set(probes["head"])
    ]
    return pd.concat(rows) if rows else pd.DataFrame(columns=COLUMNS)


def _families(probes: pd.DataFrame) -> pd.DataFrame:
    rows = [
        _best(probes[probes.family == f], f, paper)
        for f, paper in ARCHITECTURE.items()
        if f in set(probes.family)
    ]
    return pd.concat(rows) if rows else pd.DataFrame(columns=COLUMNS)


def _tuned(
    rows: pd.DataFrame, column: str, names: dict, paper: dict[str, float]
) -> pd.DataFrame:  # fmt: skip
    """The best layer of each setting, each seed scored at the layer that the others choose."""
    out = []
    for value, g in rows.groupby(column, sort=False):
        if value not in names:
            continue
        wide = g.pivot_table(index="seed", columns="layer", values="top1").to_numpy()
        layer = (wide.sum(0) - wide).argmax(1) if len(wide) > 1 else wide.argmax(1)
        mean, low, high = over_seeds(
            wide[np.arange(len(wide)), layer], g.n_train.mean(), g.n_test.mean(), "drawn"
        )
        scale = (
            f"{g['size'].iloc[0]}, {g.px.iloc[0]} px, {g.tokens.iloc[0]} tokens, "
            f"{g.steps.iloc[0]} steps, {len(wide)} seeds"
        )
        name = names[value]
        values = [100 * mean, 100 * low, 100 * high]
        out.append([name, paper.get(name, np.nan), *values, g.data.iloc[0], scale])
    return pd.DataFrame(out, columns=COLUMNS)
