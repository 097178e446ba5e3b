"""The parts of the report that question the law: other sizes, other budgets, other analysts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.analysis.figures import compare as figures_compare
from scaling.analysis.figures import law as figures_law
from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.style import (
    budget_text,
    count_text,
    escape,
    exponent_text,
    number_text,
    readable,
)
from scaling.analysis.laws.references import REFERENCES
from scaling.analysis.questions import choices, isoflop
from scaling.analysis.questions.frontier import BESIDE
from scaling.analysis.questions.size_law import OF
from scaling.analysis.report.page import Column, figure, table

if TYPE_CHECKING:
    from scaling.analysis.findings import Analysts, Forecast, Repeated, Sizes
    from scaling.analysis.laws.power_law import PowerLaw
    from scaling.analysis.questions.frontier import StudyLaw


def isoflop_section(sizes: Sizes, unit: str) -> str:
    """Loss against parameters at each budget, and how the best size grows with compute."""
    points, every, fits = sizes.points, sizes.minima, sizes.laws
    if points.empty:
        return "<p>No decayed point of the ladder has a nominal budget and a loss.</p>"
    if every is None or fits is None:
        return f"<p>The best size of a budget: {escape(readable(sizes.refusal))}</p>"
    minima = every[every.method == "parabola"]
    drawn = figures_law.isoflop_figure(points, minima, unit=unit)
    accepted = int(minima.accepted.sum())
    text = (
        "At one budget a small model sees many tokens and a large one few; the best lies between. "
        f"Rings: the minimum by a parabola in ln N, accepted at {accepted} of {len(minima)} budgets"
    )
    refused = minima[~minima.accepted].groupby("reason", sort=False).budget_macs
    reasons = [f"not at {_listed(b)}\u00a0MACs ({reason})" for reason, b in refused]
    text += "".join(f"; {one}" for one in reasons) + f". {_sentence(isoflop.rule())}."
    if minima.curvature.isna().any():
        text += " Dotted lines only join the points."
    body = figure(
        "isoflop", "Loss against parameters at each budget.", text, drawn, points,
        alt=f"Chart on two logarithmic axes: validation loss against parameters. {text}",
    )  # fmt: skip
    return body + _minima(every) + _approaches(fits, sizes.thinned)


def _minima(minima: pd.DataFrame) -> str:
    """The best size of each budget, a column a method."""
    records: dict[float, dict[str, Any]] = {}
    for one in minima.to_dict("records"):
        text = readable(one["reason"])
        if one["accepted"]:
            text = f"{count_text(one['params'])}; {text}"
            if np.isfinite(one["params_low"]):
                ends = (count_text(one[f"params_{end}"]) for end in ("low", "high"))
                text = f"{count_text(one['params'])} ({' to '.join(ends)})"
        budget = one["budget_macs"]
        records.setdefault(budget, {"budget": budget})[one["method"]] = text
    columns = [
        Column("budget", "budget, MACs", number_text),
        *(Column(m, f"N* by {m}", kind="wrap") for m in isoflop.AT_BUDGETS),
    ]
    caption = (
        "The best size of each budget, and its 95% interval; an interpolation is Akima’s curve "
        "through the losses in ln N."
    )
    return table(pd.DataFrame(list(records.values())), columns, caption=caption)


def _approaches(fits: pd.DataFrame, thinned: str) -> str:
    """N* and D* of every method."""

    def text(row: Mapping[Hashable, Any], key: str, show: Callable[[float], str]) -> str:
        if not np.isfinite(row[key]):
            return "–"
        ends = [row[f"{key}_low"], row[f"{key}_high"]]
        return show(row[key]) + (
            f" ({' to '.join(map(show, ends))})" if np.isfinite(ends).all() else ""
        )

    records = [
        {
            "approach": fit["approach"],
            "budgets": fit["budgets"],
            "refused": readable(fit["refused"]) or "–",
        }
        | {
            f"{of}_{what}": text(fit, of if what == "at" else f"{of}_{what}", show)
            for of in OF
            for what, show in (
                ("exponent", lambda v: f"{v:.3f}"), ("coefficient", number_text), ("at", count_text)
            )
        }
        for fit in fits.to_dict("records")
    ]  # fmt: skip
    macs = f"at {number_text(float(fits.macs.iloc[0]))} MACs"
    columns = [
        Column("approach", "approach", kind="text"),
        Column("params_exponent", "exponent of N*", kind="wrap"),
        Column("params_coefficient", "k of N*", kind="wrap"),
        Column("params_at", f"N* {macs}", kind="wrap"),
        Column("tokens_exponent", "exponent of D*", kind="wrap"),
        Column("tokens_coefficient", "k of D*", kind="wrap"),
        Column("tokens_at", f"D* {macs}", kind="wrap"),
        Column("budgets", "points"),
    ]
    if fits.refused.any():
        columns.append(Column("refused", "refused", kind="wrap"))
    caption = (
        "How the best size and the best number of tokens grow, N* = k Cᵖ in parameters and D* = "
        "k Cᵖ in tokens, C in MACs, by the three approaches of Hoffmann et al. 2022 and by "
        f"interpolation on the same rows{thinned}; in brackets the 95% interval of each estimator. "
        "Points: budgets with a usable optimum, corners of the frontier, or runs."
    )
    caption += "".join(f" {_sentence(readable(note))}." for note in fits.attrs["notes"])
    return table(pd.DataFrame(records), columns, caption=caption)


def trust_section(study_law: StudyLaw | None, forecast: Forecast | None, unit: str) -> str:
    """How well the law describes its points, and predicts what it has not seen."""
    if study_law is None or forecast is None:
        return "<p>There is no law to judge.</p>"
    law = study_law.law
    residuals = figures.residual_points(study_law.points, law)
    worst = f"{residuals.residual_percent.abs().max():.2f}%"
    body = figure(
        "residuals", "Residuals.",
        f"The largest miss is {worst}. A bow in these points would say that the form is wrong.",
        figures.residual_figure(residuals), residuals,
        alt=f"Chart: measured minus fitted loss in percent at each compute; at most {worst}.",
    )  # fmt: skip
    laws = [one for one in (study_law.pure, study_law.saturating) if one is not None]
    held = figures.holdout_points(laws)
    if held.empty or not law.holdout:
        body += "<p>There are too few budgets to predict one from the others.</p>"
    else:
        last = held[held.form == law.form].iloc[-1]
        text = (
            f"The largest, {number_text(last.macs_total)}\u00a0MACs: the {law.form} law predicted "
            f"{last.predicted:.4f} {unit} from {last.fitted_points:.0f} smaller points and "
            f"{last.actual:.4f} was measured ({last.error_percent:+.2f}%)."
        ).replace("-", "−")
        body += figure(
            "holdout", "Each budget predicted from the smaller ones.", text,
            figures.holdout_figure(held), held,
            alt=f"Chart: error in percent of the prediction of each budget. {text}",
        )  # fmt: skip
    return (
        body
        + _prediction(study_law, forecast, unit)
        + _forms(study_law)
        + _published(study_law, unit)
        + "<details><summary>The same as the command line prints it</summary>"
        f"<pre>{escape(study_law.summary())}</pre></details>"
    )


def repeated_section(repeated: Repeated | None) -> str:
    """What repeating the data cost, as the command line prints it; '' where none were repeated."""
    if repeated is None:
        return ""
    begin = "Runs of this study went over their data many times, which the laws above do not know"
    if repeated.law is None:
        return f'<p class="warn">{begin}. {escape(readable(str(repeated)))}</p>'
    told = "".join(f"<li>{escape(readable(line))}</li>" for line in repeated.law["answers"])
    return f"<p>{begin}; this one does.</p><ul>{told}</ul><pre>{escape(repeated.summary)}</pre>"


def _prediction(study_law: StudyLaw, forecast: Forecast, unit: str) -> str:
    """The law of the smaller budgets, and what the largest turned out to be."""
    law, points, before = study_law.law, study_law.points, forecast.law
    top = points.iloc[-1]
    if before is None:
        return (
            f"<p>Without the largest budget no {law.form} law is fitted, so there is no curve to "
            f"set beside it: {escape(readable(forecast.refusal))}</p>"
        )
    drawn = figures_law.prediction_points(before, points)
    promised, measured = before.predict(float(top.macs_total)), float(top.val_loss)
    inside = promised.run_low <= measured <= promised.run_high
    text = (
        f"Without the largest budget the {law.form} law promises {promised.loss:.4f} {unit} "
        f"there, {before.level:.0%} of such points between {promised.run_low:.4f} and "
        f"{promised.run_high:.4f}; {measured:.4f} was measured, {'in' if inside else 'out'}side "
        f"that. It reaches {promised.decades:.2f} decades beyond what it was fitted to."
    )
    return figure(
        "prediction", "The largest budget, promised and measured.", text,
        figures_law.prediction_figure(drawn, unit=unit), drawn,
        alt=f"Chart on two logarithmic axes: a law of the smaller budgets, continued. {text}",
    )  # fmt: skip


def _forms(study_law: StudyLaw) -> str:
    """The pure and the saturating law beside each other."""
    laws = [("L = a Cᵇ", study_law.pure), ("L = E + a Cᵇ", study_law.saturating)]
    # Over the budgets that every form shown could predict: others would not be the same test.
    common = set.intersection(*({h.compute for h in law.holdout} for _, law in laws if law))
    records = [
        {
            "form": form + (" (chosen)" if law is study_law.law else ""),
            "E": law.e if law.e else np.nan,
            "a": law.a,
            "b": law.b,
            "interval": f"{exponent_text(law.ci['b'][0])} to {exponent_text(law.ci['b'][1])}",
            "r2": law.r2,
            "held_out": _held_out(law, common),
        }
        for form, law in laws
        if law is not None
    ]
    columns = [
        Column("form", "form", kind="text"),
        Column("E", "E", lambda v: number_text(v, 4)),
        Column("a", "a", lambda v: number_text(v, 4)),
        Column("b", "b", exponent_text),
        Column("interval", f"{study_law.law.level:.0%} interval of b", kind="text"),
        Column("r2", "R²", lambda v: f"{v:.4f}"),
        Column("held_out", "held out", lambda v: "–" if np.isnan(v) else f"{v:.2f}%"),
    ]
    caption = (
        "Both forms, fitted to the same points; E in the unit of the loss, R² of the log "
        "loss, held out: root mean square error over the budgets that each form predicts from the "
        "smaller ones. "
        f"Choice: {readable(study_law.choice)}."
    )
    return table(pd.DataFrame(records), columns, caption=caption)


def _held_out(law: PowerLaw, macs: set[float]) -> float:
    """Root mean square error in percent over the predicted budgets `macs`; NaN: there is none."""
    errors = [h.error for h in law.holdout if h.compute in macs]
    return 100 * float(np.sqrt(np.mean(np.square(errors)))) if errors else float("nan")


def _published(study_law: StudyLaw, unit: str) -> str:
    """The pure exponent beside published ones."""
    known = [REFERENCES[name] for name in BESIDE]
    points = figures_compare.comparison_points({"this study": study_law}, known)
    text = (
        "Above: the law, and the slopes of published ones where they were fitted, if that is near; "
        "their height means nothing. Below: exponents with their intervals. Those of GPT-3 and of "
        "Toto were published without one."
    )
    drawn = figure(
        "published", "The exponent beside published ones.", text,
        figures_compare.comparison_figure(points, unit=unit), points,
        alt=f"Chart: loss against compute, and exponents beside each other. {text}",
    )  # fmt: skip
    records = [
        {
            "law": c.other,
            "b": c.b_other,
            "difference": c.difference,
            "interval": f"{exponent_text(c.low)} to {exponent_text(c.high)}",
            "conclusion": c.conclusion,
        }
        for c in study_law.compare()
    ]
    columns = [
        Column("law", "published law", kind="text"),
        Column("b", "its exponent", exponent_text),
        Column("difference", "ours minus its", exponent_text),
        Column("interval", f"{study_law.pure.level:.0%} interval", kind="text"),
        Column("conclusion", "what may be concluded", kind="wrap"),
    ]
    caption = f"The pure exponent, {exponent_text(study_law.pure.b)}, beside published ones."
    return drawn + table(pd.DataFrame(records), columns, caption=caption)


# --- other analysts


def choices_section(study_law: StudyLaw | None, analysts: Analysts | None) -> str:
    """The exponent under other choices, and without single runs, beside its interval."""
    if study_law is None or analysts is None:
        return "<p>There is no law whose exponent could move.</p>"
    if analysts.influence is None:
        return f"<p>{escape(_sentence(readable(analysts.refusal)))}.</p>"
    return _specifications(analysts.specifications, study_law) + _influence(
        analysts.influence, study_law
    )


def _specifications(found: pd.DataFrame, study_law: StudyLaw) -> str:
    laws = {"pure": study_law.pure, "saturating": study_law.saturating}
    form = "saturating" if study_law.law.e else "pure"
    points = figures_law.specification_points(found[found.form == form])
    if points.empty:
        return f"<p>No combination of choices has an identified {form} law.</p>"
    low, high = study_law.law.ci["b"]
    middle = np.quantile(points.b, [0.025, 0.975])
    ratio = float(np.ptp(middle)) / (high - low)
    verdict = "the choice matters more than the noise" if ratio > 1 else "the noise matters more"
    text = (
        f"{points.alike.sum()} combinations of choices that a careful analyst might make come to "
        f"{len(points)} different analyses, here by the exponent of their {form} law; the marks "
        "below say which choices each one is, of several alike those of the first. Band: the "
        f"{study_law.law.level:.0%} interval of this report’s own choice, from the noise of the "
        f"runs alone. The middle 95% of the choices span {ratio:.2g} times its width: {verdict}."
    )
    points = points.rename(columns={"compute": "compute counted as", "corner": "Huber’s corner"})
    kept = ["compute counted as", "frontier", "Huber’s corner", "points"]
    body = figure(
        "specifications", "The exponent under every choice.", text,
        figures_law.specification_figure(points, kept, (low, high)), points, wide=True,
        alt=f"Chart: exponents in rising order, and the choices of each. {text}",
    )  # fmt: skip
    records = []
    for row in choices.spread(found).to_dict("records"):
        law = laws[row["form"]]
        own = {"own": np.nan, "interval": "refused"}
        if law is not None:
            own = {"own": law.b, "interval": _interval(*law.ci["b"])}
        records.append(row | own)
    columns = [
        Column("form", "form", kind="text"),
        Column("own", "b, own choice", lambda v: "–" if np.isnan(v) else exponent_text(v)),
        Column("interval", f"{study_law.law.level:.0%} interval", kind="text"),
        Column("count", "choices"),
        Column("min", "lowest b", exponent_text),
        Column("median", "median b", exponent_text),
        Column("max", "highest b", exponent_text),
    ]
    caption = (
        "Exponents over all choices. A pure exponent and one above a floor mean different things: "
        "compare within a row only."
    )
    return body + table(pd.DataFrame(records), columns, caption=caption)


def _influence(influence: pd.DataFrame, study_law: StudyLaw) -> str:
    law = study_law.law
    low, high = law.ci["b"]
    points = influence.assign(left_out=[readable(name) for name in influence.left_out])
    moved = points[np.isfinite(points.b)]
    lost = points.left_out[~np.isfinite(points.b)]
    text = ""
    asked = int((points.kind == "run").sum())
    told = len(set(itertools.chain(*study_law.points["runs"])))
    runs = "Of the runs"
    if asked == choices.APART < told:
        runs = (
            f"Of {told:,} runs the {asked} that move their size’s mean most were left out; of these"
        )
    for kind, what in (("run", runs), ("budget", "Of the budgets")):
        mine = moved[moved.kind == kind]
        if len(mine):
            first = mine.iloc[0]
            share = abs(first.change) / (high - low)
            text += (
                f"{what}, {first.left_out.removeprefix('budget ')} moves the exponent most: "
                f"without it b is {exponent_text(first.b)}, a move of {share:.0%} of the "
                "interval’s width. "
            )
    text += f"Line and band: the exponent of all, {exponent_text(law.b)}, and its interval."
    if len(lost):
        text += f" Without {_listed(lost)} the {law.form} law is not identified."
    if moved.empty:
        return f"<p>{escape(text)}</p>"
    return figure(
        "influence", "The exponent without one run, and without one budget.", text,
        figures_law.influence_figure(points, law.b, (low, high)), points,
        alt=f"Chart: the exponent refitted without each run and each budget. {text}",
    )  # fmt: skip


# --- pieces of text


def _interval(low: float, high: float, digits: int = 4) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return "–"
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")


def _listed(things: pd.Series) -> str:
    """'a, b and c', at most four by name; numbers are budgets."""
    names = [budget_text(t) if isinstance(t, float) else str(t) for t in things]
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
