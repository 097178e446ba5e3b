"""What speaks against a law: mixed rows, lucky points, overfitting, repeated data, scatter."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.tables.ladder import DESIGN

BY_BUDGET = ("budget", "lowest")  # frontiers that take nominal budgets
EXPECTED = ("budget", "binned")  # the loss to expect of the best size, not a run's own
OVERFIT = 0.005  # relative rise of the validation loss; less is noise
PASSES = 4  # arXiv 2305.16264: up to here repeated data are nearly as good as fresh ones
SCATTER = 0.2  # of log loss around the pure law; published frontiers scatter by a hundredth
ALONE = ("parameters", "tokens")  # units of laws that are not of compute
COMPARABLE = "bits per pixel are (scaling.analysis.laws.references.bits_per_pixel)"
OF_STUDIES = (
    ("family", "other architectures have other laws; --by family fits one for each"),
    ("parametrization", "other parametrisations have other laws"),
    ("optimizer", "other optimizers have other laws; --by optimizer fits one for each"),
)
LOWEST = "the lowest of them is taken, which is too low if they are"


def warnings_for(
    rows: pd.DataFrame, points: pd.DataFrame, repeats: str = LOWEST, apart: Sequence[str] = ()
) -> tuple[str, ...]:
    """What a reader must know before trusting the law. repeats: what becomes of runs that may be
    repeats. apart: further columns in which these would agree."""
    out = []
    ours = "git_sha" in rows.columns  # of other tables their reading tells it, with the remedy
    for column, why in (
        *(OF_STUDIES if ours else ()),
        ("tokenizer", f"losses per token of different tokenizers are not comparable; {COMPARABLE}"),
        ("vocab", f"losses per token of different vocabularies are not comparable; {COMPARABLE}"),
        ("data_key", "losses on different data are not comparable"),
        ("data_mix", "losses on different data are not comparable"),
        ("context", "losses at different context lengths are not comparable"),
    ):
        if column in rows.columns and (count := rows[column].nunique()) > 1:
            out.append(f"{count} values of {column} in one law: {why}")
    edge = points[points["edge"] & points["budget_macs"].notna()]
    if len(edge):
        text = ", ".join(f"{b:.3g}" for b in edge["budget_macs"])
        out.append(
            f"at budgets {text} the best size is the smallest or largest tried there: "
            "the optimum may lie outside the grid"
        )
    if "seed" not in rows.columns:
        key = ["macs_total", *(c for c in DESIGN if c in rows.columns), *apart]
        alike = rows["run_id"][rows.duplicated(key, keep=False) & rows["params"].notna()]
        if count := int(points["run_id"].isin(alike).sum()):
            out.append(
                f"at {count} of {len(points)} points several runs have the same size, tokens and "
                f"compute, and no column 'seed' says that they are repeats: {repeats}"
            )
    elif rows["seed"].nunique() < 2:
        out.append("one seed: no run was repeated, so the noise is inferred from the residuals")
    return tuple(out + overfitting(rows) + repetition(points))


def lucky(rows: pd.DataFrame, points: pd.DataFrame, method: str) -> list[str]:
    """Whether the points are the lowest of several runs, which luck lowers, uncorrected."""
    if method in EXPECTED and (points["lowest_loss"] != points["val_loss"]).any():
        return []
    if method in BY_BUDGET:
        crowded = rows.groupby("budget_macs")["run_id"].nunique().max() > 2
        if not crowded:
            return []
        what = "of several runs at each budget the lowest is taken"
    else:
        if rows["run_id"].nunique() < 2 * len(points):
            return []
        what = f"the {method} takes the lowest of many runs"
    return [
        f"{what}: luck lowers it, and the interval does not know; method budget or binned "
        "averages the runs near the best, where parameters and tokens are known and runs suffice"
    ]


def overfitting(rows: pd.DataFrame) -> list[str]:
    """Which runs' validation loss rose by OVERFIT or more while their training loss fell."""
    if not {"run_id", "size", "train_loss", "decayed"} <= set(rows.columns):
        return []
    decayed = rows[rows["decayed"].eq(True) & rows["val_loss"].notna() & rows["train_loss"].notna()]
    points = decayed.sort_values("macs_total", kind="stable").reset_index(drop=True)
    best = points.loc[points.groupby("run_id", sort=False)["val_loss"].idxmin()].set_index("run_id")
    last = points.drop_duplicates("run_id", keep="last").set_index("run_id").loc[best.index]
    rises = last["val_loss"] > best["val_loss"] * (1 + OVERFIT)
    over = rises & (last["train_loss"] < best["train_loss"])
    if not over.any():
        return []
    seen = set(last["size"][over].astype(str))
    low, end = best[over].iloc[-1], last[over].iloc[-1]
    example = (
        f"{end['size']}: {low['val_loss']:.3f} to {end['val_loss']:.3f} while the training loss "
        f"goes from {low['train_loss']:.3f} to {end['train_loss']:.3f}"
    )
    return [
        f"overfitting: with more training the validation loss of {', '.join(sorted(seen))} rises "
        f"({example}): the training data are too few, or too unlike the validation files, for "
        "these budgets"
    ]


def repeated(points: pd.DataFrame) -> bool:
    """Whether any went over its data more often than PASSES."""
    return "epochs" in points.columns and bool((points["epochs"] > PASSES).any())


def repetition(points: pd.DataFrame) -> list[str]:
    """What that means for a law of fresh data."""
    if not repeated(points):
        return []
    return [
        f"the law's points went over a source up to {points['epochs'].max():.3g} times; beyond "
        f"about {PASSES} passes repeated data teach less than fresh ones (arXiv 2305.16264); fit "
        "--form repeated has that in the law; of a study it is said beside this one"
    ]


def doubts(pure: PowerLaw) -> tuple[str, ...]:
    """What the pure law itself says against there being a law."""
    out = []
    low, high = pure.ci["b"]
    if high >= 0:
        out.append(
            f"the interval of the pure exponent, {low:.3g} to {high:.3g}, holds 0: these points do "
            f"not show that more {pure.unit if pure.unit in ALONE else 'compute'} means less loss"
        )
    if not pure.status.converged:
        out.append(
            "the fit of the pure law did not converge (gradient per point "
            f"{pure.status.gradient_norm:.2g})"
        )
    if pure.noise > SCATTER:
        out.append(
            f"the points scatter by {pure.noise:.0%} around the pure law: check the columns and "
            "their units, and whether the runs belong together"
        )
    return tuple(out)
