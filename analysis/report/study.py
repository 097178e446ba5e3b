"""report.html: one self-contained page that says what a study found and how far to trust it.

The page is made of what the study left behind: rows, law, configuration and the data directory. A
part that is missing is named as missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.style import (
    count_text,
    escape,
    exponent_text,
    number_text,
    power_of_two_text,
    readable,
)
from scaling.analysis.questions.transfer import learning_rate_points
from scaling.analysis.report.audit import audit_table
from scaling.analysis.report.data import (
    config_section,
    data_section,
    position_section,
    runs_section,
)
from scaling.analysis.report.law import (
    choices_section,
    isoflop_section,
    repeated_section,
    trust_section,
)
from scaling.analysis.report.page import figure, page
from scaling.analysis.report.paper import paper_section
from scaling.analysis.report.probes import probe_sections, variants_section
from scaling.analysis.report.settings import settings_section
from scaling.analysis.report.transfer import transfer_section
from scaling.analysis.schema import loss_unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaling.analysis.findings import Findings
    from scaling.analysis.laws.power_law import PowerLaw
    from scaling.analysis.questions.frontier import StudyLaw
    from scaling.analysis.questions.transfer import Rates
    from scaling.analysis.report.sources import Sources


def page_text(begin: str, shown: Sources, found: Findings) -> str:
    """The whole page; nothing is fitted or read here.

    Args:
        begin: of `page.head`.
        shown: the study's rows and configuration, which are shown as they are, and what else its
            folder holds.
        found: what the rows say (`scaling.analysis.findings.find`).
    """
    rows = shown.rows
    unit = loss_unit(rows.tokenizer)
    rates = settings_section(found.settings, unit) + _rate_section(rows, found.rates)
    rate = ("rate", "The learning rate", rates)
    sections = [
        ("paper", "The paper, line by line", paper_section(shown, found)),
        ("variants", "The choices compared", variants_section(shown.variants)),
    ]
    picture = ""
    if found.sizes is not None and found.audit is not None:
        picture = _compute_figure(rows, found.law)
        if shown.variants is not None:  # the subject comes first: the picture stands further down
            sections.append(("compute", "Loss against compute", picture))
            picture = ""
        sections += [
            ("frontier", "What the law was fitted to", _left_out(found.law)),
            ("isoflop", "The best size of a budget", isoflop_section(found.sizes, unit)),
            rate,
            ("trust", "How good the law is", trust_section(found.law, found.forecast, unit)),
            ("repeated", "The law that counts repetition", repeated_section(found.repeated)),
            (
                "choices",
                "Would another analyst find the same?",
                choices_section(found.law, found.analysts),
            ),
            ("audit", "What a referee would ask", audit_table(found.audit)),
        ]
    else:
        sections.append(rate)
    sections += [
        ("position", "Loss along the sequence", position_section(shown.positions)),
        *probe_sections(shown, found.quality),
        ("runs", "All runs", runs_section(rows)),
        ("data", "The data", data_section(shown.tokens)),
        ("config", "The configuration", config_section(shown.config_text)),
    ]
    told = [section for section in sections if section[2]]
    return page(begin, _header(shown, found, picture), told, _footer(rows))


# --- what was found


def _header(shown: Sources, found: Findings, picture: str) -> str:
    """The law beside its picture, what speaks against it, and what it may be set beside."""
    rows, study_law, refusal = shown.rows, found.law, found.refusal
    facts = _facts(rows, shown.macs)
    title = f'<p class="kicker">Scaling-law study</p><h1>{escape(str(rows.study.iloc[0]))}</h1>'
    if not (rows.role != "lr_sweep").any():
        lines = [] if found.rates is None else found.rates.lines(loss_unit(rows.tokenizer))
        moves = "".join(
            f"<li>{escape(readable(line))}</li>" for line in lines if not line.startswith(" ")
        )
        return f"{title}<ul>{moves}</ul>{facts}"
    if study_law is None:
        reason = f" {escape(readable(refusal))}" if refusal else ""
        why = f'<p class="warn"><b>No law was fitted.</b>{reason}</p>'
        return title + _side_by_side(why, picture) + facts
    law, unit = study_law.law, loss_unit(rows.tokenizer)
    pure = ""
    if law.e:
        pure = (
            f'<span class="pure">pure form: {_equation(study_law.pure)}'
            f"<small>{study_law.pure.level:.0%} interval: {_interval(study_law.pure)}</small>"
            "</span>"
        )
    equation = (
        f'<p class="law"><span>{_equation(law)}</span>'
        f'<span class="unit">{unit}, <var>C</var> in {escape(law.unit)}<br>{law.level:.0%} '
        f"interval of the exponent: {_interval(law)}</span>{pure}</p>"
    )
    of = "the part of the loss above the floor" if law.e else "the loss"
    judged = "; they are too few to hold one out"
    if law.holdout_error is not None:
        judged = (
            "; fitted to the smaller budgets alone, it predicts the largest with an error of "
            f"{abs(law.holdout_error):.2%}"
        )
    decades = f"{law.decades:.2g}"
    lead = (
        f'<p class="lead">Ten times the compute lowers {of} by {1 - 10**law.b:.1%}. The law rests '
        f"on {len(law.compute)} points over {decades} decade{'' if decades == '1' else 's'} of "
        f"compute{judged}.</p>"
    )
    warnings = "".join(f"<li>{escape(readable(text))}</li>" for text in study_law.warnings)
    if warnings:
        warnings = f'<div class="warn"><p><b>Before trusting it</b></p><ul>{warnings}</ul></div>'
    beside = _side_by_side(equation + lead + warnings, picture)
    return title + beside + _comparison(study_law) + facts


def _equation(law: PowerLaw) -> str:
    offset = f"{number_text(law.e, 4)} + " if law.e else ""
    return (
        f"<var>L</var>(<var>C</var>) = {offset}{number_text(law.a, 4)} "
        f'<var>C</var><sup class="b">{exponent_text(law.b)}</sup>'
    )


def _interval(law: PowerLaw) -> str:
    return " to ".join(exponent_text(end) for end in law.ci["b"])


def _side_by_side(told: str, picture: str) -> str:
    """The first screen: the picture at the side of what is said, below it on a narrow one."""
    return f'<div class="first"><div>{told}</div>{picture}</div>' if picture else told


def _comparison(study_law: StudyLaw) -> str:
    """What the law may be set beside, and what not."""
    pure = study_law.pure
    beside = []
    for c in study_law.compare():
        verdict = "do not tell" if c.low <= 0 <= c.high else "tell"
        beside.append(
            f"{escape(c.other)}’s {exponent_text(c.b_other)} (these data {verdict} the two apart)"
        )
    which = "The exponent"
    if study_law.law.e:
        which = (
            "A law with a floor has an exponent of another kind. That of the pure power law of the "
            f"same points, {exponent_text(pure.b)} with {pure.level:.0%} interval "
            f"{_interval(pure)},"
        )
    return (
        f"<p>{which} may be set beside {' and '.join(beside)}: it says how fast more compute "
        "lowers the loss. The coefficients and the losses may not be compared: they depend on the "
        "tokens, the vocabulary and the unit of compute, which differ.</p>"
    )


def _facts(rows: pd.DataFrame, planned: Mapping[str, float]) -> str:
    """planned: of `Sources.macs`."""
    last = rows.sort_values("macs_total").groupby("run_id").tail(1)
    ladder = rows[rows.role != "lr_sweep"]
    sized = ladder if len(ladder) else rows
    diverged = int((last.status == "diverged").sum())
    facts = [
        ("Runs", f"{len(last):,}", f"{diverged or 'none'} diverged"),
        (
            "Sizes of the ladder" if len(ladder) else "Sizes",
            f"{sized['size'].nunique()}",
            f"{_counts(sized.params)} parameters",
        ),
        ("Compute of all runs", number_text(_compute(last, planned)), "training MACs"),
        ("Tokens of a run", _counts(last.tokens), f"vocabulary of {_counts(rows.vocab)}"),
    ]
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _compute(last: pd.DataFrame, planned: Mapping[str, float]) -> float:
    """MACs of the runs, given their last points; of those in the plan with every cooldown."""
    own = zip(last.run_id, last.macs_total, strict=True)
    return float(sum(planned.get(run_id, macs) for run_id, macs in own))


def _rate_section(rows: pd.DataFrame, rates: Rates | None) -> str:
    points = learning_rate_points(rows)
    chosen = sorted(set(rows.log2_lr[rows.role != "lr_sweep"]))
    if points.empty:
        used = ", ".join(power_of_two_text(c) for c in chosen)
        return f"<p>No learning-rate sweep was run. The ladder used {used}.</p>"
    if points.val_loss.isna().all():
        return "<p>Every run of the learning-rate sweep diverged: there is no optimum to show.</p>"
    if rates is not None and rates.count > 1:
        return transfer_section(rates, loss_unit(rows.tokenizer))
    if points["shape"].str.contains("=").any():  # of settings that a sampler chose: no curves
        return ""
    rate = chosen[0] if len(chosen) == 1 else None
    best = points[points.best]
    optima = ", ".join(
        f"{power_of_two_text(x)} at width {d}" for d, x in zip(best.d, best.log2_lr, strict=True)
    )
    if len(best) > 1 and best.log2_lr.nunique() == 1:
        optima = f"{power_of_two_text(best.log2_lr.iloc[0])} at every width"
    text = f"Each width’s best rate is drawn large and open: {optima}."
    if rate is not None:
        text += f" The dashed line is the rate of the ladder, {power_of_two_text(rate)}."
    lost = int(points.val_loss.isna().sum())
    if lost:
        text += f" Crosses at the upper edge: {lost} run{'s' * (lost > 1)} that diverged."
    return figure(
        "rate", "Loss against learning rate, by width.", text,
        figures.learning_rate_figure(points, rate, unit=loss_unit(rows.tokenizer)), points,
        alt=f"Line chart: final validation loss against learning rate, a line a width. {text}",
    )  # fmt: skip


def _compute_figure(rows: pd.DataFrame, study_law: StudyLaw | None) -> str:
    points, unit = figures.run_points(rows), loss_unit(rows.tokenizer)
    if not np.isfinite(points.val_loss).any():
        return "<p>No run of the ladder has a finite loss yet.</p>"
    text = (
        "Faint lines: the runs while their learning rate is high. Filled: points whose rate has "
        "decayed, with the decay dotted. "
    )
    done, shown = int((rows.decayed & (rows.role != "lr_sweep")).sum()), points.kind == "decayed"
    if shown.sum() < done:
        text += f"{shown.sum():,} of {done:,} are drawn, the best among them. "
    lost = int((points.kind == "diverged").sum())
    if lost:
        text += f"Crosses at the upper edge: {lost} run{'s' * (lost > 1)} that diverged. "
    alt = "Chart on two logarithmic axes: validation loss against training MACs. "
    title = "Loss against training compute."
    if study_law is None:
        drawn = figures.scaling_figure(points, unit=unit)
        return figure("compute", title, text, drawn, points, alt=alt + text, wide=True)
    law = study_law.law
    curve = figures.law_points(law, float(law.compute.min()), float(law.compute.max()))
    slopes = {c.other: c.b_other for c in study_law.compare()}
    pure = None
    if law.e:
        ends = float(law.compute.min()), float(law.compute.max())
        pure = figures.law_points(study_law.pure, *ends)[["macs_total", "loss"]]
        text += "Dashed: the pure power law of the same points. "
    drawn = figures.scaling_figure(
        points, frontier=study_law.points, law=curve, pure=pure, slopes=slopes, unit=unit
    )
    text += (
        f"Circles: the frontier, to which the law is fitted, with its {law.level:.0%} interval. "
        "The grey lines show the slopes of published laws for comparison of steepness only; their "
        "height is arbitrary."
    )
    falls = " to ".join(number_text(float(loss)) for loss in curve.loss.iloc[[0, -1]])
    alt += f"The law falls from {falls} {unit}. {text}"
    return figure("compute", title, text, drawn, points, alt=alt, wide=True)


def _left_out(study_law: StudyLaw | None) -> str:
    if study_law is None:
        return ""
    rules = "".join(
        f"<li>{escape(rule)}: {count:,} rows</li>" for rule, count in study_law.excluded if count
    )
    taken = (
        "is the loss to expect of each budget’s best size, from the runs near it: the lowest run "
        "alone is low by luck too"
        if study_law.averages
        else "takes the lowest loss of each budget"
    )
    return (
        f"<p>Every decayed point of the ladder competes; the frontier {taken}. Left out before "
        "that, by rules fixed beforehand:</p>"
        f"<ul>{rules or '<li>nothing</li>'}</ul>"
    )


def _footer(rows: pd.DataFrame) -> str:
    code = ", ".join(sorted({sha[:12] for sha in rows.git_sha if sha})) or "of unknown version"
    devices = ", ".join(sorted(set(rows.device)))
    return (
        "<p>Compute is training multiply-accumulates (MACs): three times the forward pass, "
        "attention counted causally, the head included, embedding look-ups zero. 1 MAC = 2 FLOPs; "
        "1 PF-day = 8.64 × 10¹⁹ FLOPs = 4.32 × 10¹⁹ MACs. "
        f"Code {escape(code)}. Device {escape(devices)}.</p>"
    )


def _counts(values: pd.Series) -> str:
    low, high = count_text(values.min()), count_text(values.max())
    return low if low == high else f"{low} to {high}"
