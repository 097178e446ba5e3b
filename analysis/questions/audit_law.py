"""What a referee would ask of the law: its grid, floor, range, form, rivals and predictions.

Each question takes a case and gives its findings, or none where it does not apply.
"""

from __future__ import annotations

import numpy as np

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import choices
from scaling.analysis.questions.audit_case import Case, Finding, Found
from scaling.analysis.questions.doubts import BY_BUDGET, doubts, lucky, overfitting
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.parametric_study import fit_rows

RESAMPLES = 500  # of the law without the largest budget


def the_law(case: Case) -> Found:
    question = "Is there a law?"
    if case.study is None:
        yield Finding("law", question, case.refusal, "weighty", "add the runs that it asks for")
        return
    said = [*doubts(case.study.pure), *overfitting(case.kept)]
    if said:
        remedy = "mend what is named, or say it beside the law"
        yield Finding("law", question, "; ".join(said), "weighty", remedy)
        return
    low, high = case.study.pure.ci["b"]
    yield Finding("law", question, f"the pure exponent is below 0: [{low:.4f}, {high:.4f}]", "fine")


def luck(case: Case) -> Found:
    question = "Are the points the loss of a size, and not of its luckiest run?"
    if case.study is None:
        return
    study = case.study
    budgets = study.method in BY_BUDGET
    kept = case.kept[case.kept["budget_macs"].notna()] if budgets else case.kept
    if said := lucky(kept, study.points, study.method):
        yield Finding(
            "luck", question, "; ".join(said), "weighty",
            "repeat the best runs, or give parameters and tokens, so that runs can be averaged",
        )  # fmt: skip
    else:
        few, many = study.points["averaged"].min(), study.points["averaged"].max()
        text = f"{few} to {many} designs near the best tell a point" if many > 1 else "few competed"
        yield Finding("luck", question, text, "fine")


def edge(case: Case) -> Found:
    question = "Does the best size lie inside the grid?"
    if case.study is None or case.study.method not in BY_BUDGET:
        return
    points = case.study.points
    out = points[points["edge"]]
    if out.empty:
        yield Finding("edge", question, f"at all {len(points)} budgets", "fine")
        return
    budgets = ", ".join(f"{b:.3g}" for b in out["budget_macs"])
    yield Finding(
        "edge", question,
        f"at {len(out)} of {len(points)} budgets ({budgets} MACs) it is the smallest or largest "
        "tried: the optimum may lie beyond, and the loss lower",
        "weighty" if len(out) >= 0.5 * len(points) else "slight",
        "add a size on the open side of each of these budgets",
    )  # fmt: skip


def floor(case: Case) -> Found:
    question = "Does the floor lie below every loss?"
    if case.study is None or case.study.saturating is None:
        return
    law = case.study.saturating
    lowest = float(case.kept["val_loss"].min())
    if law.pinned:
        text = f"E = {law.e:.4g} is pinned, the lowest loss is {lowest:.4g}"
        yield Finding("floor", question, text, "fine")
        return
    low, high = law.ci["E"]
    text = f"E = {law.e:.4g} [{low:.4g}, {high:.4g}], the lowest loss is {lowest:.4g}"
    if high < lowest:
        yield Finding("floor", question, text, "fine")
        return
    chosen = case.study.law is law
    weight = "weighty" if law.e >= lowest and chosen else "slight"
    yield Finding("floor", question, text, weight, "add larger runs, or pin E to a known entropy")


def surface(case: Case) -> Found:
    question = "Do the runs tell size from data?"
    known = case.rows[["params", "tokens"]].notna().all(axis=1).to_numpy()
    if not (known & case.ladder.counts()).any():
        return
    try:
        law = fit_rows(case.ladder.where(known), resamples=RESAMPLES)
    except NotIdentified as refusal:
        yield Finding(
            "surface", question, str(refusal).splitlines()[0], "slight",
            "quote the law of compute alone, or add sizes and lengths that differ",
        )  # fmt: skip
        return
    text = f"N_opt ~ C^{law.size_exponent:.3f} {law.interval('size_exponent', 3)}"
    if law.doubts:
        below = bool((law.loss < law.e).any())
        yield Finding(
            "surface", question, "; ".join(law.doubts), "weighty" if below else "slight",
            "quote no N* and D* of L(N, D) before that is mended",
        )  # fmt: skip
    else:
        yield Finding("surface", question, text, "fine")


def held_out(case: Case) -> Found:
    question = "Does the law predict what it has not seen?"
    if case.study is None:
        return
    law, points = case.study.law, case.study.points
    top = points.iloc[-1]
    smaller = case.study.smaller(case.ladder)
    promised = None
    forms = (law.form,) if law.pinned else (law.form, "power")
    for form in dict.fromkeys(forms):  # fewer budgets may not identify a floor
        try:
            before = fit_frontier(
                smaller, method=case.study.method, form=form, resamples=RESAMPLES
            ).law
            promised = before.predict(float(top["macs_total"]))
            break
        except NotIdentified as reason:
            refusal = str(reason)
    if promised is None:
        yield Finding("held out", question, f"without the largest budget: {refusal}", "slight",
                      "add budgets, so that one can be held out")  # fmt: skip
        return
    measured = float(top["val_loss"])
    error = promised.loss / measured - 1
    text = (
        f"the largest ({promised.compute:.3g} MACs), predicted from the rest by a {form} law: "
        f"{promised.loss:.4g} "
        f"[{promised.run_low:.4g}, {promised.run_high:.4g}], measured {measured:.4g} ({error:+.2%})"
    )
    half = 0.5 * (promised.run_high - promised.run_low)
    away = max(promised.run_low - measured, measured - promised.run_high)
    if away <= 0:
        yield Finding("held out", question, text, "fine")
    else:
        yield Finding(
            "held out", question, text, "weighty" if away > half else "slight",
            "do not extrapolate by it; look at the largest runs and at the form",
        )  # fmt: skip


def bend(case: Case) -> Found:
    question = "Is the curve straight, as far as the law says so?"
    if case.study is None or not np.isfinite(case.study.curvature[1]):
        return
    coefficient, p = case.study.curvature
    shape = "flattens" if coefficient > 0 else "steepens"
    if p >= 0.05:
        yield Finding("curvature", question, f"no curvature seen (p = {p:.2g})", "fine")
    elif case.study.law.e and coefficient > 0:
        yield Finding("curvature", question, f"it flattens, and the law has a floor (p = {p:.2g})",
                      "fine")  # fmt: skip
    else:
        yield Finding(
            "curvature", question,
            f"it {shape} (p = {p:.2g}), which the {case.study.law.form} law does not",
            "weighty" if p < 0.01 else "slight",
            "quote the exponent as that of this range, and add budgets at the ends",
        )  # fmt: skip


def analysts(case: Case) -> Found:
    question = "Would another analyst find the same exponent?"
    if case.study is None:
        return
    try:
        found = case.given if case.given is not None else choices.specifications(case.ladder)
    except NotIdentified:
        return
    law = case.study.law
    form = "saturating" if law.e else "pure"
    b = found.loc[found["form"] == form, "b"]
    if b.empty:
        return
    low, high = np.quantile(b, [0.025, 0.975])
    width = float(np.ptp(law.ci["b"]))
    times = (high - low) / width if width > 0 else np.inf
    text = (
        f"the middle 95% of {len(b)} analyses span {low:.4f} to {high:.4f}, {times:.2g} times the "
        "interval"
    )
    weight = "weighty" if times > 2.5 else "slight" if times > 1.25 else "fine"
    remedy = "report the spread beside the interval (`scaling choices`)" if times > 1.25 else ""
    yield Finding("choices", question, text, weight, remedy)


def span(case: Case) -> Found:
    question = "Is the range wide enough?"
    if case.study is None:
        return
    law = case.study.law
    few = len(law.compute) - law.parameters
    text = f"{len(law.compute)} points over {law.decades:.2f} decades for {law.parameters} numbers"
    weight = "fine"
    if few < 2 or law.decades < 1.2:
        weight = "weighty"
    elif few < 3 or law.decades < 2:
        weight = "slight"
    remedy = "add budgets at the ends" if weight != "fine" else ""
    yield Finding("range", question, text, weight, remedy)


def ahead(case: Case) -> Found:
    question = "How far beyond the runs is it asked?"
    if case.at is None or case.study is None:
        return
    try:
        there = case.study.law.predict(case.at)
    except NotIdentified as refusal:
        yield Finding("distance", question, str(refusal), "weighty", "add runs nearer to it")
        return
    span = case.study.law.decades
    far = abs(there.decades)
    weight = "fine" if far <= 0.5 else "slight" if far <= min(1.0, span) else "weighty"
    remedy = "" if weight == "fine" else "add a run nearer to it, and quote the held-out error"
    text = f"{there}; the runs span {span:.2f} decades"
    yield Finding("distance", question, text, weight, remedy)
