"""A study's variants side by side, and beside the paper's table of the same choices.

A variant that bears the name of a row of the paper's stands beside it. Accuracies are of other
data, models and budgets: what may be compared is which choice wins, and by how much.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.analysis.questions.paper import BY_NAME, CHOICES
from scaling.analysis.questions.quality import (
    half_width,
    over_seeds,
    scored_by_others,
    variance_over_files,
)

# The paper's choices by title: top-1 on ImageNet, in percent.
PAPER = {
    BY_NAME[name].title: {
        str(row[0]): BY_NAME[name].value(str(row[0])) for row in BY_NAME[name].printed
    }
    for name in CHOICES
}
KEYS = ["data", "variant"]


def title_of(names: list[str]) -> str:
    """The paper's table that most of the variants are named after."""
    shared = {title: len(set(rows) & set(names)) for title, rows in PAPER.items()}
    best = max(shared, key=lambda title: shared[title])
    return best if shared[best] else "Variants"


def paper_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per data and variant of the rows of variants.csv, in the configuration's order.

    Accuracies and differences in percent, with 95% intervals over seeds: `ours` (each seed at the
    layer that the others choose), `random`: of the weights before training, `difference`: to the
    first variant, seed by seed. `paper` and `paper_difference` are NaN where the paper has none.
    `nats`: next-token loss a token on the test files, of variants that were fine-tuned on it.
    `macs`: of the training.
    """
    printed = PAPER.get(title_of(list(table.variant.unique())), {})
    rows = []
    for data, of_data in table.groupby("data", sort=False):
        first: tuple[str, np.ndarray] | None = None
        for name, one in of_data[of_data.weights == "trained"].groupby("variant", sort=False):
            values, layer = _scores(one)
            first = first or (str(name), values)
            random = of_data[(of_data.variant == name) & (of_data.weights == "random")]
            about = one.iloc[0]
            sizes = {"n_train": about.n_train, "n_test": about.n_test, "split": about.split}
            mean, low, high = over_seeds(values, **sizes)
            paper = printed.get(str(name), np.nan)
            row = {"choice": name, "paper": paper, "ours": mean, "low": low, "high": high}
            row |= {"random": _scores(random)[0].mean() if len(random) else np.nan}
            row |= {"chance": one.chance.mean()}
            row["paper_difference"] = paper - printed.get(first[0], np.nan)
            shared = min(len(values), len(first[1]))  # seeds that both have
            apart = values[:shared] - first[1][:shared]
            both = sum(variance_over_files(v.mean(), about.n_test) for v in (values, first[1]))
            half = half_width(apart, **sizes, sampling=both) if name != first[0] else 0.0
            row |= {"difference": apart.mean(), "difference_low": apart.mean() - half}
            row |= {"difference_high": apart.mean() + half}
            nats = one.groupby("seed").next_token_loss.first().to_numpy(float)
            row |= {"nats": nats.mean(), "nats_half": half_width(nats, **sizes, sampling=0.0)}
            row["data"] = data
            row |= {"layer": layer, "seeds": len(values), "run_at": _scale(one)}
            row |= {"macs": one.macs_total.mean()}
            rows.append(row)
    out = pd.DataFrame(rows)
    ours = ["ours", "low", "high", "random", "chance"]
    ours += ["difference", "difference_low", "difference_high"]
    out[ours] = 100 * out[ours]
    return out


def variant_points(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by layer of every data and variant: the columns that `layer_figure` draws."""
    rows = []
    place = {name: i for i, name in enumerate(table.variant.unique())}
    keys = ["data", "variant", "weights", "layer", "depth"]
    for (data, name, weights, layer, depth), g in table.groupby(keys, sort=False):
        about = g.iloc[0]
        mean, low, high = over_seeds(g.top1.to_numpy(), about.n_train, about.n_test, about.split)
        rows.append(
            {"data": data, "size": name, "params": place[name], "weights": weights}
            | {"layer": layer, "depth": depth, "accuracy": mean}
            | {"low": low, "high": high, "chance": g.chance.mean()}
        )
    return pd.DataFrame(rows)


def _scores(one: pd.DataFrame) -> tuple[np.ndarray, int]:
    """By seed, the accuracy at the layer that the other seeds choose; and the best layer of all."""
    wide = one.pivot(index="seed", columns="layer", values="top1").sort_index()
    values = wide.to_numpy(float)
    return scored_by_others(values), int(wide.columns[values.mean(0).argmax()])


def _scale(one: pd.DataFrame) -> str:
    """What a row was run at, in words."""
    row = one.iloc[0]
    side = round(row.tokens**0.5)
    tuned = f"; fine-tuned: {row.tuned}" if isinstance(row.tuned, str) and row.tuned else ""
    return (
        f"{row['size']} ({row.params:,} parameters), {row.macs_total:.2g} training MACs, "
        f"{row.tokenizer}, {row.px} px = {side} x {side} tokens, {row['head']} head{tuned}"
    )
