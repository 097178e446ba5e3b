"""What to know before trusting a law of rate and batch: what was read, what speaks against it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from scaling.analysis.laws.rates import EXACT
from scaling.analysis.laws.rates_fit import LEAST, RatesLaw
from scaling.analysis.tables.columns import BATCH, LR, Table
from scaling.analysis.tables.roles import SEEDS

ALIKE = 0.01  # in log: sizes and tokens so near count as one


def notes_of(notes: Sequence[str]) -> list[str]:
    """What reading a table said, but that the best run of each cell alone counts: here all do."""
    out = []
    for note in notes:
        if note.startswith("grid: "):
            out.append(note.split("; the best")[0] + "; every run counts")
            columns = re.findall(r"'([^']+)'", note.split(" vary")[0])
            table = Table(pd.DataFrame({name: [1.0] for name in columns}))
            others = [name for name in columns if name not in table.named(LR | BATCH)]
            if others:
                out.append(
                    f"beware: {', '.join(map(repr, others))} too, and the law knows rate and "
                    "batch alone: what is best is of their values mixed, or moves with them; "
                    "--where picks one"
                )
        elif note == SEEDS:
            out.append("runs that differ in their seed alone: every one counts")
        elif note.startswith(("learning rate: ", "batch: ")) and note.endswith("which differs"):
            out.append(f"beware: {note}: rename the one that is meant")
        elif "settings were tried in a cell" not in note:
            out.append(note)
    return out


def with_batch(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs whose batch is known, where batches vary within cells: the others have no place in
    a law that has the batch. And what to beware of."""
    known = np.isfinite(table["batch"]) & (table["batch"] > 0)
    tried = table[known].groupby(["n", "d"])["batch"].nunique()
    if known.all() or not known.any() or (tried >= LEAST).mean() < 0.5:
        return table, []
    left = table[known].reset_index(drop=True)
    left.attrs |= table.attrs
    count = int((~known).sum())
    return left, [f"{count} of {len(known)} runs have no batch, and are left out"]


def near_alike(values: np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """Sizes or tokens (n,), those within ALIKE of one another as their geometric mean: tokens are
    whole batches, so that runs of other batches differ a little. And what to say of it.

    Values that follow one another so closely over more than twice ALIKE stay as they are.
    """
    each = np.log(np.unique(values))
    group = np.concatenate([[0], np.cumsum(np.diff(each) > ALIKE)])
    of = {g: each[group == g] for g in np.unique(group)}
    to = {g: one.mean() for g, one in of.items() if len(one) > 1 and np.ptp(one) <= 2 * ALIKE}
    if not to:
        return values, []
    mine = group[np.searchsorted(each, np.log(values))]
    out = np.array([np.exp(to[g]) if g in to else v for g, v in zip(mine, values, strict=True)])
    return out, [
        f"{what} within {ALIKE:.0%} of one another count as one: {len(each)} values as "
        f"{len(np.unique(out))}"
    ]


def unlabelled(table: pd.DataFrame) -> list[str]:
    """Whether runs of one N, D, rate and batch differ in what no column tells: then the law is of
    another setting too, mixed."""
    there = table[np.isfinite(table["loss"])]
    keys = ["n", "d", "lr", "batch"]
    cells = there.groupby(keys, dropna=False)
    count, losses, seeds = (
        cells["loss"].transform("size"), cells["loss"].transform("nunique"),
        cells["seed"].transform("nunique"),
    )  # fmt: skip
    alike = (losses > 1) & (seeds < count)
    if not alike.any():
        return []
    log = np.log(there["loss"])
    off = (log - log.groupby([there[k] for k in keys], dropna=False).transform("mean"))[alike]
    spread = float(np.sqrt((off**2).mean()))
    return [
        f"{int(alike.sum())} runs share N, D, rate and batch with another, their losses differ by "
        f"{spread:.2%} (rms), and no seed tells them apart: if another setting does (weight decay, "
        "a batch that is no column), the best rate is of its values mixed: --where picks one"
    ]


def said_batch(law: RatesLaw, table: pd.DataFrame) -> tuple[str, list[str]]:
    """What is known of the batch, in words, and what to beware of."""
    known = table["batch"] > 0
    found = table.loc[known, "batch"].unique()
    if law.shape.batch:
        return "in the unit of its column", []
    if not known.any():
        return "not in the table", []
    if len(found) == 1 and known.all():
        return f"{found[0]:g} in every run: the exponents of the rate are at this batch", []
    some = "" if known.all() else f", and not known in {int((~known).sum())} of {len(known)} runs"
    return (
        f"{len(found)} value{'s' * (len(found) != 1)}, too few in a cell to tell its best{some}",
        [
            "batches differ between runs, or are not known in some: the exponents are of rate and "
            "batch together"
        ],
    )


def doubts(law: RatesLaw) -> list[str]:
    """What speaks against a law of rate and batch."""
    out = []
    for count, what in ((law.edges, "rate"), (law.batch_edges, "batch")):
        if count:
            out.append(
                f"in {count} of {law.cells} cells the lowest loss is at the smallest or largest "
                f"{what} tried: there the optimum may lie beyond"
            )
    for name, (_, low, high) in law.exponents.items():
        for smooth, text in ((law.smooth, "other neighbourhoods"), (
            not law.smooth, "curvatures that " + (
                "are the same in all cells" if law.smooth else "move with N and D"))):  # fmt: skip
            found = [c.exponents[name] for c in law.choices if c.smooth == smooth]
            off = [one for one in found if not low <= one <= high]
            if off:
                worst = max(off, key=lambda one: abs(one - (low + high) / 2))
                out.append(
                    f"{name}: with {text} the exponent is up to {worst:+.3f}, outside its interval"
                )
    if law.together:
        out.append(
            "N and D move together in the sweep: the exponent of N is that of both along this line"
        )
    if law.noise < EXACT:
        out.append(
            "the runs lie on the law to the last digit: computed, not measured; no interval means "
            "anything"
        )
    if law.cells < 6:
        out.append(f"{law.cells} cells: the interval rests on very few")
    return out
