"""The same exponent under every reasonable analyst's choice, and without each run.

A specification curve (Simonsohn, Simmons and Nelson 2020): when the exponent moves more between
choices than its statistical interval is wide, the choices are the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import DELTA, NotIdentified, relative
from scaling.analysis.laws.solver import best, log_law
from scaling.analysis.questions.doubts import BY_BUDGET
from scaling.analysis.questions.frontier import METHODS, auto_method, frontier
from scaling.analysis.tables.ladder import COSTS, DESIGN, Ladder, of_points

CORNERS = {"1%": DELTA, "0.1%": 1e-3, "squares": np.inf}
ITERATIONS = 60  # of a fit; one that has not arrived by then is not identified
APART = 50  # runs that are left out one by one, at most
ALL_ROWS = ("envelope", "hull")
FORMS = ("pure", "saturating")
CHOICES = ("compute", "frontier", "corner", "points", "form")

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # log compute, ascending, log loss, weight: (n,)
Key = tuple[float, ...]  # the same numbers are the same points
Fitted = tuple[float, float] | None  # E and b


def specifications(rows: pd.DataFrame | Ladder) -> pd.DataFrame:
    """The exponent under every combination of choices.

    rows: of a study, or their ladder: its weights hold, and a floor that it pins is that of every
    saturating form (at 0 there is none).

    compute: what is counted; frontier: how its points are found; corner: Huber's, in relative
    loss; points: all, without the smallest budget, without the worst residual; form: pure or
    saturating (their exponents mean different things: compare within a form).
    Combinations that lead to the same points and the same fit are one specification: a row. Its
    CHOICES are those of the first of them (the main one, where it is among them), `alike` says how
    many they are and `shares` in which choices they differ ("frontier: budget, envelope").
    Returns the columns CHOICES, b, e, points_fitted, low, high (NaN: the interval belongs to the
    main specification), main, alike and shares; a combination that has no identified fit is left
    out.
    """
    ladder = Ladder.of(rows)
    own = auto_method(ladder)  # that of `scaling fit`
    found, samples = _points_of_choices(ladder, own)
    ways = list(itertools.product(CORNERS, FORMS if ladder.e != 0 else FORMS[:1]))
    every = list(samples.values())
    fits = {
        (corner, form): dict(
            zip(samples, _subsets(every, CORNERS[corner], _pin(form, ladder)), strict=True)
        )
        for corner, form in ways
    }
    out = []
    for ((label, method), key), (corner, form) in itertools.product(found.items(), ways):
        x, y, _ = samples[key]
        for which, fitted, kept in fits[corner, form][key]:
            if fitted is not None:
                e, b = fitted
                alike = _signature(x[kept], y[kept], b, e)
                out.append((label, method, corner, which, form, b, e, int(kept.sum()), alike))
    table = pd.DataFrame(out, columns=[*CHOICES, "b", "e", "points_fitted", "signature"])
    if table.empty:
        raise NotIdentified(
            "no combination of choices has an identified fit: the points are too few, span under a "
            "decade of compute, or have one loss (`scaling fit` says which)"
        )
    main = (
        (table["compute"] == "training MACs") & (table["frontier"] == own)
        & (table["corner"] == "1%") & (table["points"] == "all")
    )  # fmt: skip
    table = table.assign(low=np.nan, high=np.nan, main=main)
    return _distinct(table)


def _points_of_choices(
    ladder: Ladder, own: str
) -> tuple[dict[tuple[str, str], Key], dict[Key, Sample]]:
    """Which points a way to count compute and a method lead to, several to the same; own: the
    first of the methods."""
    part = ladder.where(ladder.counts())
    rows = part.kept()
    named = bool((rows["budget_macs"] > 0).any())
    # Bins of compute are for rows without budgets.
    others = [
        m for m in METHODS if (m in BY_BUDGET or m in ALL_ROWS if named else m not in BY_BUDGET)
    ]
    methods = [own, *(m for m in others if m != own)]
    found: dict[tuple[str, str], Key] = {}
    samples: dict[Key, Sample] = {}
    counted = {rows["macs_total"].to_numpy(float).tobytes(): ladder}  # one of each compute
    for label, compute in _conventions(rows).items():
        costs = compute.to_numpy(float).tobytes()
        if costs not in counted:
            counted[costs] = part.replaced(macs_total=compute)
        for method in methods:
            # The frontier itself depends on what is counted.
            try:
                points = frontier(counted[costs], method=method)
            except NotIdentified:
                continue
            points = points.sort_values("macs_total", kind="stable")
            x, y, weight = sample = _sample(points)
            key = tuple(np.concatenate([x - x[0], y, weight]).round(12).tolist())
            found[label, method] = key
            samples.setdefault(key, sample)
    return found, samples


def _sample(points: pd.DataFrame) -> Sample:
    x, y = (np.log(points[c].to_numpy(float)) for c in ("macs_total", "val_loss"))
    given = of_points(points)
    return x, y, np.ones(len(x)) if given is None else relative(given, len(x))


def _pin(form: str, ladder: Ladder) -> float | None:
    """The floor that a form keeps; None where it is free."""
    return 0.0 if form == "pure" else ladder.e


def _signature(x: np.ndarray, y: np.ndarray, b: float, e: float) -> Key:
    """What two combinations share that are one analysis: points in order, up to a constant factor
    of compute, and the fit's exponent and floor."""
    points = np.concatenate([x - x[0], y]).round(6)
    return (*points.tolist(), round(b, 7), round(e, 6))


def _distinct(table: pd.DataFrame) -> pd.DataFrame:
    """One row per analysis, with `alike` and `shares`; the main one stands for those like it."""
    out = []
    for _, same in table.groupby(["form", "signature"], sort=False):
        first = same.sort_values("main", ascending=False, kind="stable").iloc[0]
        differ = [(c, same[c].unique()) for c in CHOICES if same[c].nunique() > 1]
        shares = "; ".join(f"{c}: {', '.join(values)}" for c, values in differ)
        out.append(first.drop("signature").to_dict() | {"alike": len(same), "shares": shares})
    return pd.DataFrame(out)


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Per form: count, lowest, median and highest exponent of the distinct `specifications`."""
    return table.groupby("form")["b"].agg(["count", "min", "median", "max"]).reset_index()


def alike_text(table: pd.DataFrame) -> str:
    """Which combinations of `specifications` are one analysis, the commonest kinds first; '' where
    every combination is its own."""
    more = table.assign(more=table["alike"] - 1).groupby("shares")["more"].sum()
    more = more[more > 0].sort_values(ascending=False, kind="stable")
    kinds = [f"{shares} ({count})" for shares, count in more.items()]
    if len(kinds) > 3:
        kinds = [*kinds[:3], f"and {len(kinds) - 3} more kinds ({more.iloc[3:].sum()})"]
    return (
        f"{more.sum()} lead to the points and fit of another: {'; '.join(kinds)}" if kinds else ""
    )


def influence(rows: pd.DataFrame | Ladder, *, form: str = "pure") -> pd.DataFrame:
    """The exponent without each run in turn, and without each budget; rows as of `specifications`.

    Returns left_out, kind ("run" or "budget"), b, change, sorted by |change|, the largest first.
    Only runs on the frontier move it; the others are left out of the table. Of more than APART
    runs on it those are asked that move most (`_farthest`).
    """
    whole = Ladder.of(rows)
    (b_whole,) = _exponents([whole], form)
    if np.isnan(b_whole):
        raise NotIdentified("the law of all runs is not identified: there is nothing to compare")
    points = frontier(whole)
    ladder = _slim(whole)
    rows = ladder.rows
    runs = list(dict.fromkeys(itertools.chain(*points["runs"])))
    if len(runs) > APART:
        runs = _farthest(whole, runs)
    sizes = rows.drop_duplicates("run_id").set_index("run_id")["size"]  # a point is of several
    parts = [(f"{sizes[run]} ({run})", "run", rows["run_id"] != run) for run in runs]
    parts += [
        (f"budget {budget:.3g}", "budget", rows["budget_macs"] != budget)
        for budget in points["budget_macs"]
    ]
    found = _exponents([ladder.where(keep) for _, _, keep in parts], form)
    table = pd.DataFrame(
        [(label, kind, b, b - b_whole) for (label, kind, _), b in zip(parts, found, strict=True)],
        columns=["left_out", "kind", "b", "change"],
    )
    order = table["change"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _slim(ladder: Ladder) -> Ladder:
    """The rows that count and the columns that their frontier asks for, to be asked often."""
    kept = ladder.where(ladder.counts(budgets=True))
    rows = kept.rows
    asked = {"run_id", "size", "seed", "val_loss", *COSTS, ladder.weights}
    differ = [c for c in rows if c in DESIGN and rows[c].nunique(dropna=False) > 1]
    return replace(kept, rows=rows[[c for c in rows if c in asked or c in differ]])


def _farthest(ladder: Ladder, runs: list[str]) -> list[str]:
    """The APART of these runs, in their order, that move the mean of their design most, times how
    far from the middle budget that is: the farther, the more it turns the law."""
    cells = ladder.cells(budgets=True)
    cells = cells[cells["run_id"].isin(runs)]
    loss, x = np.log(cells["val_loss"]), np.log(cells["macs_total"])
    seeds = loss.groupby(cells["design"]).transform("size")
    moves = ((loss - loss.groupby(cells["design"]).transform("mean")) / seeds).abs()
    moves *= (x - x.mean()).abs() + np.ptp(x) / 4  # those in the middle bend it
    moves = moves.mask(seeds == 1, np.inf).groupby(cells["run_id"]).max()
    chosen = set(moves.sort_values(ascending=False, kind="stable").index[:APART])
    return [run for run in runs if run in chosen]


def _conventions(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Ways to count compute, as far as the columns allow."""
    out = {"training MACs": rows["macs_total"].astype(float)}
    if "macs_head" in rows.columns:
        out["without the head"] = (rows["macs_total"] - rows["macs_head"]).astype(float)
    if "macs_attention" in rows.columns:
        out["without attention"] = (rows["macs_total"] - rows["macs_attention"]).astype(float)
    for column, label in (
        ("params", "3 N D, all parameters"),
        ("params_non_embedding", "3 N D, without embeddings"),
        ("params_matmul_head", "3 N D, matrices and head"),
    ):
        if column in rows.columns:
            out[label] = (3.0 * rows[column] * rows["tokens"]).astype(float)
    return {label: values for label, values in out.items() if (values > 0).all()}


def _subsets(
    samples: Sequence[Sample], delta: float, pin: float | None
) -> list[list[tuple[str, Fitted, np.ndarray]]]:
    """Of each sample (points, fit, which were kept) for all points and without single ones."""
    whole = _fits(samples, delta, pin)
    kept: list[list[tuple[str, np.ndarray]]] = []
    for (x, y, _), (theta, fitted) in zip(samples, whole, strict=True):
        kept.append([("without the smallest", x > x.min())])
        if fitted is not None:
            residual = np.abs(y - log_law(theta[None], x - x.mean())[0])
            kept[-1].append(("without the worst", residual < residual.max()))
    fewer = iter(_fits(
        [(x[keep], y[keep], weight[keep])
         for (x, y, weight), parts in zip(samples, kept, strict=True) for _, keep in parts],
        delta, pin,
    ))  # fmt: skip
    return [
        [("all", fitted, np.ones(len(x), dtype=bool))]
        + [(which, next(fewer)[1], keep) for which, keep in parts]
        for (x, _, _), (_, fitted), parts in zip(samples, whole, kept, strict=True)
    ]


def _fits(
    samples: Sequence[Sample], delta: float, pin: float | None
) -> list[tuple[np.ndarray, Fitted]]:
    """theta (3,) of each sample, about its mean, and (E, b), or None when it is not identified.

    All are solved at once: shorter samples are filled up with points of no weight.
    """
    free = 3 if pin is None else 2
    out: list[tuple[np.ndarray, Fitted]] = [(np.full(3, np.nan), None)] * len(samples)
    known = [
        i for i, (x, y, _) in enumerate(samples)
        if len(np.unique(x)) > free and np.ptp(x) >= np.log(10) - 1e-9 and np.ptp(y) >= 1e-9
    ]  # fmt: skip
    if not known:
        return out
    at, targets, weights = np.zeros((3, len(known), max(len(samples[i][0]) for i in known)))
    for row, i in enumerate(known):
        x, y, weight = samples[i]
        at[row, : len(x)], targets[row, : len(x)] = x - x.mean(), y
        weights[row, : len(x)] = weight
    thetas, reached = best(at, targets, weights, min(delta, 1e6), pin, iterations=ITERATIONS)
    for i, theta, gradient in zip(known, thetas, reached["gradient"], strict=True):
        e, _, b = theta
        floor = float(np.exp(samples[i][1].min()))
        lost = not 1e-3 * floor < e < floor * (1 - 1e-6) or b >= 0 or gradient > 1e-6
        out[i] = theta, None if pin != 0 and lost else (float(e), float(b))
    return out


def _exponents(ladders: Sequence[Ladder], form: str) -> list[float]:
    """Of each ladder's law; NaN where it is not identified."""
    samples: dict[int, Sample] = {}
    for i, ladder in enumerate(ladders):
        with suppress(NotIdentified):  # no row, say
            samples[i] = _sample(frontier(ladder))
    fits = _fits(list(samples.values()), DELTA, _pin(form, ladders[0]))
    out = [np.nan] * len(ladders)
    for i, (_, fitted) in zip(samples, fits, strict=True):
        out[i] = np.nan if fitted is None else fitted[1]
    return out
