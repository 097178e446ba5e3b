"""A form of laws/formulas.py fitted to rows, with what a reader must know before trusting it.

found = fit_study_form(rows, "repeated")        # StudyForm: .law, .warnings, .summary()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified, usable
from scaling.analysis.laws.form_fit import fit_form, judge, told
from scaling.analysis.laws.form_law import FormLaw, HeldOut, ranges
from scaling.analysis.laws.formulas import FORMS, MEANINGS, REPEATED, Form
from scaling.analysis.laws.repetition import optimum, repetition
from scaling.analysis.questions.doubts import repeated, warnings_for
from scaling.analysis.questions.parametric_study import REPEATS, scattered
from scaling.analysis.questions.variable import judged, none_left
from scaling.analysis.schema import TOKEN_UNIT
from scaling.analysis.tables.ladder import Excluded, Ladder, of_points
from scaling.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

CHOICES = {"repeated": REPEATED}  # a name that stands for several forms: held-out error chooses
KNOWN = (*CHOICES, *FORMS)
PLACES = {"N": "params", "D": "tokens", "C": "macs_total", "lr": "lr", "batch": "batch_tokens"}
SETTINGS = ("lr", "batch")


@dataclass(frozen=True)
class StudyForm:
    """A form's law of a study and everything needed to judge it."""

    law: FormLaw
    excluded: Excluded
    warnings: tuple[str, ...]
    choice: tuple[str, ...] = ()  # of several forms: each with its held-out error, or its refusal
    per_token: float = float("nan")  # MACs = per_token N D, in the middle of the runs
    answers: tuple[str, ...] = ()

    def summary(self) -> str:
        """The law, its intervals, what the solver reached, and its judgement, in plain text."""
        law, reached = self.law, self.law.status
        lines = [f"{law.form.name}: L = {law.form.formula}"]
        lines += [f"  from         {law.form.reference}"] if law.form.reference else []
        lines += [f"  assumes      {law.form.assumes}"] if law.form.assumes else []
        for name, value in law.values.items():
            how = "given" if name in law.given else f"{law.level:.0%} {law.interval(name)}"
            lines.append(f"  {name:12s} {value:<12.5g} {how}")
        held = "too few runs to hold some out" if law.held is None else str(law.held)
        ended = "converged" if reached.converged else "not converged"
        lines += [
            f"  fitted to    {len(law.loss)} points of {ranges(law)}",
            f"  fit          Huber's loss of log loss, corner {law.corner:g}; R2 {law.r2:.4f}, "
            f"residual {law.noise:.2%}",
            f"  held out     {held}",
            *(f"  {'chosen' if not i else '':12s} {text}" for i, text in enumerate(self.choice)),
            f"  minimum      {ended}, gradient {reached.gradient_norm:.1g}; "
            f"{reached.basin_share:.0%} of {reached.starts} starts reach it; condition "
            f"{reached.condition:.2g}",
            f"  interval     {reached.bootstrap}, {reached.resamples} resamples",
        ]
        if law.weights is not None:
            low, high = law.weights.min(), law.weights.max()
            lines.append(f"  weights      {low:.3g} to {high:.3g} of their mean, a point")
        return "\n".join([*lines, *self.answers, *judged(self.excluded, self.warnings)])

    def figure(self, *, unit: str = TOKEN_UNIT) -> go.Figure:
        """Observed against predicted losses, and the misses. unit: of the losses."""
        from scaling.analysis.figures.forms import form_figure, form_points

        return form_figure(form_points(self.law), unit=unit)

    def prediction(self, at: float) -> str:
        """The loss at so much compute, or the best run of it, in text.

        Raises UserError: a form that compute alone does not tell.
        """
        law = self.law
        if law.form.columns == ("C",):
            return f"  predicts     {law.predict(C=at)}"
        if set(law.form.columns) == {"N", "D", "U"}:
            u = float(law.columns["U"].max())
            return f"  best run     {optimum(law, at, u, self.per_token, 'MACs')}"
        raise UserError(
            f"--at {at:g}: compute alone does not say {', '.join(map(told, law.form.columns))}; "
            "save the law (--save law.json) and give `scaling predict` a table with these columns"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values only; what is missing is None."""
        return {
            "law": self.law.to_json() | {"per_token": self.per_token},
            "excluded": [{"rule": rule, "rows": count} for rule, count in self.excluded],
            "warnings": list(self.warnings), "choice": list(self.choice),
            "answers": [line.strip() for line in self.answers],
        }  # fmt: skip


def form_named(name: str) -> Form | str:
    """The form of a name, or the name itself where it stands for several. Raises UserError."""
    if name not in KNOWN:
        raise UserError(
            f"form {name!r}: choose one of {', '.join(KNOWN)}{did_you_mean(name, KNOWN)}"
        )
    return name if name in CHOICES else FORMS[name]


def members(form: Form | str) -> tuple[Form, ...]:
    """The forms of which `form` is one, or which its name stands for."""
    if isinstance(form, Form):
        return (form,)
    found = form_named(form)
    return (found,) if isinstance(found, Form) else tuple(FORMS[one] for one in CHOICES[form])


def further(form: Form | str) -> tuple[str, ...]:
    """The columns of a table that a form names itself, which reading has to keep."""
    return tuple(c for one in members(form) for c in one.columns if c not in MEANINGS)


def every_run(form: Form | str) -> tuple[str, ...]:
    """Roles of rows that count for this form, though they count for no law of compute."""
    columns = {c for one in members(form) for c in one.columns}
    roles = ("repeated",) if "U" in columns else ()
    searched = columns - set(MEANINGS) or columns & set(SETTINGS)
    return (*roles, "tuning", "lr_sweep") if searched else roles


def notes_for(notes: Sequence[str], form: Form | str) -> list[str]:
    """What reading a table said, without what does not hold for this form: that runs were left out
    which count for it."""
    roles = every_run(form)
    out = []
    for note in notes:
        if note.startswith("repeated data: ") and "repeated" in roles:
            out.append(note.split(" and are left out")[0] + " and count: the form has U")
        elif note.startswith("grid: ") and "tuning" in roles:
            out.append(note.split("; the best")[0] + "; every run counts")
        elif not ("settings were tried in a cell" in note and "tuning" in roles):
            out.append(note)
    return out


def fit_study_form(
    rows: pd.DataFrame | Ladder, form: Form | str, *, e: float | None = None,
    weights: str | None = None, seed: int = 0, **options: Any,
) -> StudyForm:  # fmt: skip
    """A form's law of all rows that have its columns.

    Rows of repeated data count where the form has U, runs of a search where it has lr, batch or a
    column of its own.

    Args:
        rows: of a study or of analysis.tables.read, or a ladder, whose floor and weights hold.
        form: of laws/formulas.py, its name, or "repeated": of REPEATED the one whose error on the
            held-out runs is least.
        e: pins the form's parameter E. weights: as of `Ladder.of`.
        options: of `fit_form`.
    Raises NotIdentified when the rows do not determine it, with what else is wrong with them.
    """
    if isinstance(rows, Ladder):
        e, weights, rows = rows.e, rows.weights, rows.rows
    roles = every_run(form)
    rows = rows.assign(role=rows["role"].where(~rows["role"].isin(roles), "ladder"))
    ladder = Ladder.of(rows, e=e, weights=weights)
    forms = members(form)
    columns = list(dict.fromkeys(c for one in forms for c in one.columns))
    table = ladder.cells()
    if table.empty:
        raise none_left("a loss and compute", ladder.left_out())
    values = pd.DataFrame({name: _column(table, name) for name in columns})
    fine = np.ones(len(table), bool)
    for name in columns:  # those of a table's own may be 0, or negative
        one = values[name].to_numpy(float)
        fine &= usable(one, "compute") if name in MEANINGS else np.isfinite(one)
    excluded = (*ladder.left_out(), (f"no usable {', '.join(columns)}", int((~fine).sum())))
    if not fine.any():
        raise none_left(", ".join(map(told, columns)), excluded)
    table, values = table[fine].reset_index(drop=True), values[fine].reset_index(drop=True)
    plain = table.drop(columns="epochs", errors="ignore") if "U" in columns else table
    kept = ladder.kept()
    apart = {name: _column(kept, name) for name in columns if name not in ("N", "D", "C")}
    said = warnings_for(kept.assign(**apart), plain.assign(edge=False), REPEATS, tuple(apart))
    if "U" in columns and "drawn" in table and table["data_mix"].nunique() == 1:
        said = (*said, *_several_sources(table))
    cost = table["macs_total"].to_numpy(float)
    options = {
        "groups": table["run_id"].tolist(), "weights": of_points(table), "seed": seed,
        "order": cost, "held_by": "C", **options,
    }  # fmt: skip
    points = {name: values[name].to_numpy(float) for name in columns}
    loss = table["val_loss"].to_numpy(float)
    try:
        law, choice, more = _chosen(
            [_pinned(one, ladder.e) for one in forms], points, loss, options
        )
    except NotIdentified as refusal:
        text = "".join(f"\n  beware       {one}" for one in said)
        raise NotIdentified(f"{refusal}{text}") from None
    per_token, answers = float("nan"), list[str]()
    if {"N", "D"} <= set(law.columns):
        per_token = float(np.median(cost / (law.columns["N"] * law.columns["D"])))
    if set(law.columns) == {"N", "D", "U"}:
        answers = repetition(law).lines()
    said = (*said, *law.doubts, *more, *_shape(law))
    return StudyForm(law, excluded, said, choice, per_token, tuple(answers))


def repeated_law(rows: pd.DataFrame | Ladder, **options: Any) -> StudyForm | NotIdentified | None:
    """The law that counts repetition, or why there is none; None where no run of the ladder went
    over its data more than PASSES times, up to which the laws of fresh data hold.

    options: of `fit_study_form`.
    """
    ladder = Ladder.of(rows)
    if ladder.variable != "compute" or not repeated(ladder.cells()):
        return None
    try:
        return fit_study_form(ladder, "repeated", **options)
    except NotIdentified as refusal:
        return refusal


def _pinned(form: Form, e: float | None) -> Form:
    if e is None:
        return form
    if "E" not in form.parameters:
        raise UserError(f"--e {e:g}: the form {form.name} has no parameter E to pin")
    return form.fixed("E", e)


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A form's column (rows,) as floats, NaN where there is no number."""
    if name == "U":
        return _unique(table)
    place = PLACES.get(name, name)
    if place not in table.columns:
        known = [k for k, v in PLACES.items() if v in table.columns]
        raise UserError(
            f"the formula's {told(name)}: the table has no such column; there is "
            f"{', '.join([*known, *map(str, table.columns)][:40])}{did_you_mean(name, known)}"
        )
    return pd.to_numeric(table[place], errors="coerce").astype(float)


def _unique(table: pd.DataFrame) -> pd.Series:
    """Tokens before any is repeated (rows,): tokens over passes, where these are more than one."""
    if "epochs" not in table.columns:
        raise UserError(
            "the formula's U (tokens before any is repeated): the table has neither passes over "
            "the data nor unique tokens; add a column 'epochs' or 'unique_tokens'"
        )
    passes = pd.to_numeric(table["epochs"], errors="coerce")
    if "git_sha" in table.columns:  # in a study's rows none is given where every clip was new
        passes = passes.fillna(1.0)
    unique: pd.Series = table["tokens"] / passes.clip(lower=1.0)
    return unique


def _several_sources(table: pd.DataFrame) -> list[str]:
    import json

    mix = table["data_mix"].iloc[0]
    try:
        count = len(json.loads(mix)) if isinstance(mix, str) else 1
    except ValueError:
        count = 1
    return [
        f"the data are of {count} sources, and U is counted by the one that was repeated most: of "
        "the others more is fresh than the law has it"
    ] * (count > 1)


def _chosen(
    forms: list[Form], points: dict[str, np.ndarray], loss: np.ndarray,
    options: dict[str, Any],
) -> tuple[FormLaw, tuple[str, ...], list[str]]:  # fmt: skip
    """The law of the form with the least error on the held-out runs, the errors of all, and what
    speaks against it."""
    if len(forms) == 1:
        return fit_form(forms[0], points, loss, **options), (), []
    said, errors = list[str](), dict[str, HeldOut | None]()
    common = {k: v for k, v in options.items() if k not in ("groups", "level", "resamples")}
    for form in forms:
        try:
            errors[form.name] = judge(form, points, loss, **common)
        except NotIdentified as refusal:
            said.append(str(refusal))
    lines = [f"{name}: {_error(held)}" for name, held in errors.items()]
    law = None
    for name in sorted(errors, key=lambda one: _rms(errors[one])):
        try:
            law = fit_form(next(f for f in forms if f.name == name), points, loss, **options)
            break
        except NotIdentified as refusal:
            said.append(str(refusal))
    if law is None:
        reasons = [
            text.removeprefix(f"{one.name}: ") for one, text in zip(forms, said, strict=False)
        ]
        raise NotIdentified("no form is identified: " + "; ".join(dict.fromkeys(reasons)))
    beware = []
    low, high = forms[0].parameters["E"]
    fresh = FORMS["fresh"] if low < high else FORMS["fresh"].fixed("E", low)
    try:
        plain = judge(fresh, points, loss, **common)
    except NotIdentified as refusal:
        said.append(f"without repetition: {refusal}")
    else:
        lines.append(f"without repetition: {_error(plain)}")
        if plain is not None and _rms(plain) <= _rms(law.held):
            beware.append(
                "the law without repetition predicts the held-out runs as well or better: they do "
                "not show that repetition costs anything"
            )
    if len(errors) > 1 and law.held is not None:
        beware.append(
            f"the form was chosen among {len(errors)} by the held-out error, which is therefore a "
            "little too low, and no interval knows of the choice"
        )
    head = [f"{law.form.name}, of least held-out error"]
    return law, (*head, *lines, *(f"not {one}" for one in said)), beware


def _rms(held: HeldOut | None) -> float:
    return float("inf") if held is None else held.rms


def _error(held: HeldOut | None) -> str:
    return "not held out" if held is None else f"held-out rms {held.rms:.4f}, R2 {held.r2:.3f}"


def _shape(law: FormLaw) -> list[str]:
    """What the points say against the law."""
    out = scattered(law.noise)
    miss = np.abs(law.residuals)
    wild = miss > max(10 * law.noise, 0.05)
    if wild.any():
        out.append(
            f"{int(wild.sum())} of {len(miss)} points lie more than ten times the noise off, up to "
            f"{miss.max():.0%}: the form does not hold there (Huber's loss hardly sees them)"
        )
    return out
