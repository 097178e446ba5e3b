"""A law in a file: plain JSON that predicts as the fit did, to the last digit.

    path.write_text(text(found))            # found: StudyLaw, VariableLaw or StudySurface
    saved = load(path)                      # saved.law.predict(1e20), saved.warnings

Nothing is fitted again. The file holds what the found law says of itself (`to_json`) and, under
`data`, what its predictions are made of:

- a law whose form was chosen predicts by the mixture of all forms, which follows from the points
  alone, without chance: their compute, loss, weights and, where it is known, the covariance of
  their noise;
- a law whose form was asked for, and L(N, D), predict by their resampled parameters, which are in
  the file as they are, so that no version of a random generator matters.

Floats are written with all their digits, so both come back as they were. `scaling study` writes the
same file as its law.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.curve import CurveLaw
from scaling.analysis.laws.form_law import FormLaw
from scaling.analysis.laws.parametric_law import NAMES, Optimum, ParametricLaw, SurfaceStatus
from scaling.analysis.laws.power_law import (
    PowerLaw,
    Prediction,
    SaturatingLaw,
    Status,
    conditions,
    finite,
)
from scaling.analysis.laws.rates_fit import RatesLaw
from scaling.analysis.questions.curve_study import StudyCurve, law_of_json
from scaling.analysis.questions.form_study import StudyForm
from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.questions.parametric_study import StudySurface
from scaling.analysis.questions.rate_study import StudyRates
from scaling.analysis.questions.saved_form import form_data, form_law, per_token
from scaling.analysis.questions.saved_rates import SavedRates, rates_of_json
from scaling.analysis.questions.saved_values import (
    Wrong,
    array,
    intervals,
    number,
    optional,
    part,
    require_covariance,
    status_of,
)
from scaling.analysis.questions.variable import VariableLaw
from scaling.errors import UserError

FORMAT = "scaling law"
VERSION = 1
TINY = 1e-300
APART = {"curve": "the loss curve", "rates": "rate and batch"}  # forms with files of their own
LAWS = {"power": PowerLaw, "saturating": SaturatingLaw}
UNITS = {"MACs": "compute", "parameters": "params", "tokens": "tokens"}


@dataclass(frozen=True)
class SavedLaw:
    """A law that was loaded, and what its fit said to beware of."""

    law: PowerLaw | ParametricLaw | FormLaw
    warnings: tuple[str, ...]
    per_token: float = float("nan")  # of a form: MACs = per_token N D

    @property
    def of(self) -> str:
        """What it is a law of: compute, params, tokens, or params and tokens; of a form its
        columns."""
        if isinstance(self.law, FormLaw):
            return ", ".join(self.law.form.columns)
        return "both" if isinstance(self.law, ParametricLaw) else UNITS[self.law.unit]

    def prediction(self, at: float) -> str:
        """What the fit's own `prediction` says, in text."""
        if isinstance(self.law, FormLaw):
            return StudyForm(self.law, (), self.warnings, per_token=self.per_token).prediction(at)
        if isinstance(self.law, ParametricLaw):
            return StudySurface(self.law, (), self.warnings).prediction(at)
        return f"  predicts     {self.law.predict(at)}"

    def predict(self, points: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The loss at each of the points, of analysis.tables.points: a row for each, and a text.

        loss, low and high (interval of the law), run_low and run_high (of one more run's loss),
        decades (beyond the fitted range), and refused: why there is no loss. For a law L(N, D) and
        points of compute alone it is the loss of the best run, whose params and tokens are given.
        """
        records, texts = [], []
        for row in points.to_dict("records"):
            at = {str(name): value for name, value in row.items() if name != "refused"}
            said = None if row["refused"] else self._predict(at)
            refused = row["refused"] if said is None else said.refused
            records.append({**at, **_numbers(said), "refused": refused})
            texts.append(f"no loss: {refused}" if said is None else str(said))
        return pd.DataFrame(records), texts

    def _predict(self, at: dict[str, float]) -> Prediction | Optimum:
        if isinstance(self.law, FormLaw):
            return self.law.predict(**{name: at[name] for name in self.law.form.columns})
        if not isinstance(self.law, ParametricLaw):
            return self.law.predict(at["macs_total" if self.of == "compute" else self.of])
        if "macs_total" in at:
            return self.law.optimum(at["macs_total"])
        return self.law.predict(at["params"], at["tokens"])

    def __str__(self) -> str:
        """The law, and what to know before its predictions are used."""
        lines = [str(self.law)]
        if not isinstance(self.law, FormLaw):
            lines += conditions(self.law)
        return "\n".join([*lines, *(f"  beware       {text}" for text in self.warnings)])


@dataclass(frozen=True)
class SavedCurve:
    """A law of the loss curve that was loaded, and what its fit said to beware of."""

    law: CurveLaw
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([str(self.law), *(f"  beware       {text}" for text in self.warnings)])


def _numbers(said: Prediction | Optimum | None) -> dict[str, float]:
    """A prediction's columns; no number where the law refuses one."""
    names = ("loss", "low", "high", "run_low", "run_high", "decades")
    none = dict.fromkeys(names, float("nan"))
    if isinstance(said, Optimum):
        low, high = said.loss_interval
        best = {"params": said.n, "tokens": said.d, "loss": said.loss, "low": low, "high": high}
        return none | best | {"decades": said.decades}
    if said is None:
        return none
    loss = float("nan") if said.refused else said.loss
    return {name: getattr(said, name) for name in names} | {"loss": loss}


def text(
    found: StudyLaw | VariableLaw | StudySurface | StudyCurve | StudyForm | StudyRates,
    warnings: Sequence[str] = (),
    findings: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """The file's content: JSON, a line for each of its keys.

    warnings: what else to beware of. findings: of `scaling.analysis.findings`, all that a study's
    page says of its law.
    """
    law = found.law
    if isinstance(found, (StudyCurve, StudyRates)):
        about = {"format": FORMAT, "version": VERSION, **found.to_json()}
        return _lines(about | {"warnings": [*warnings, *found.warnings]})
    assert not isinstance(law, (CurveLaw, RatesLaw))
    names: list[str] = []
    data: dict[str, Any] = {}
    if isinstance(law, FormLaw):
        data = form_data(law)
    elif isinstance(law, ParametricLaw):
        names = ["n", "d", "loss", "weights", "samples", "run_index"]
    elif law.mixture is None:
        names = ["compute", "loss", "weights", "samples", "centre"]
    else:
        names = ["compute", "loss", "weights", "covariance"]
    for name in names:
        value = getattr(law, name)
        data[name] = value.tolist() if isinstance(value, np.ndarray) else value
    about = {"format": FORMAT, "version": VERSION, **found.to_json(), "data": data}
    about["warnings"] = [*warnings, *found.warnings]
    if findings is not None:
        about["findings"] = findings
    return _lines(about)


def _lines(about: Mapping[str, Any]) -> str:
    lines = [f" {json.dumps(key)}: {json.dumps(finite(value))}" for key, value in about.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(path: Path) -> SavedLaw | SavedCurve | SavedRates:
    """The law of a file that `text` wrote.

    Raises UserError, in a sentence, where there is none: no such file, no JSON, another format, a
    newer version, or a value that is missing or of a wrong kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError among them
        raise UserError(
            f"{path}: not the JSON of a law, or a part of it is lost: save it again with "
            "`scaling fit ... --save`"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a law that was saved by `scaling fit ... --save` or by a study of this "
            f'version (its "format" would be "{FORMAT}"): save it again, or `scaling report` the '
            "study"
        )
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        raise UserError(
            f"{path}: a law of version {version!r}, and this is a tool of version {VERSION}: "
            + ("read it with a newer one" if newer else "save it again")
        )
    try:
        return _law(content)
    except Wrong as wrong:
        raise UserError(
            f"{path}: {wrong}: the file is damaged or was edited; save it again"
        ) from None


def _apart(content: dict[str, Any], warnings: list[str]) -> SavedCurve | SavedRates:
    """A law of the loss curve, or of rate and batch."""
    what = APART[content["form"]]
    try:
        if content["form"] == "rates":
            return rates_of_json(content, warnings)
        return SavedCurve(law_of_json(content, warnings), tuple(warnings))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Wrong(f"its law of {what} lacks or spoils {error}") from None


def _law(content: dict[str, Any]) -> SavedLaw | SavedCurve | SavedRates:
    warnings = content.get("warnings")
    if not isinstance(warnings, list) or not all(isinstance(one, str) for one in warnings):
        raise Wrong('"warnings" is no list of texts')
    if content.get("form") in tuple(APART):  # of any type
        return _apart(content, warnings)
    about, data = part(content, "law"), part(content, "data")
    if about.get("form") == "formula":
        return SavedLaw(form_law(about, data), tuple(warnings), per_token(about))
    parameters = part(about, "parameters")
    common: dict[str, Any] = {
        "unit": about.get("unit"), "level": number(about, "level", 0.01, 0.9999),
        "ci": intervals(part(about, "interval")), "pinned": "E" in part(about, "given"),
        "loss": (loss := array(data, "loss", (None,), positive=True)),
        "weights": optional(data, "weights", (len(loss),), positive=True),
    }  # fmt: skip
    form = about.get("form")
    if form == "parametric":
        values: dict[str, Any] = dict(zip(("e", "a", "b", "alpha", "beta"), (
            number(parameters, name, 0) for name in NAMES), strict=True))  # fmt: skip
        if about["unit"] != "MACs" or not min(list(values.values())[1:]) > 0:
            raise Wrong("its unit or its parameters are those of no L(N, D)")
        return SavedLaw(
            ParametricLaw(
                **values, **common, objective=number(about, "objective"),
                per_token=number(about, "per_token", TINY), loss_kind=str(about.get("loss")),
                corner=np.inf if about.get("corner") is None else number(about, "corner", 0),
                tied=about.get("tied") is True,
                n=array(data, "n", loss.shape, positive=True),
                d=array(data, "d", loss.shape, positive=True),
                samples=array(data, "samples", (None, 5)),
                run_index=array(data, "run_index", loss.shape).astype(int),
                status=status_of(SurfaceStatus, about),
            ),
            tuple(warnings),
        )  # fmt: skip
    if form not in LAWS or common["unit"] not in UNITS:
        raise Wrong(f"no form {form!r} of {common['unit']!r} is known")
    chosen = about.get("mixture") is not None
    compute = array(data, "compute", loss.shape, positive=True)
    if chosen and len(np.unique(compute)) < 3:
        raise Wrong("'compute' has fewer than three values, which determine no law")
    covariance = None
    if chosen and (covariance := optional(data, "covariance", (len(loss),) * 2)) is not None:
        require_covariance(covariance)
    return SavedLaw(
        LAWS[form](
            **common, a=number(parameters, "a", TINY), b=number(parameters, "b"),
            e=number(parameters, "E", 0), noise=number(about, "noise_log", 0),
            compute=compute, covariance=covariance, chosen=chosen,
            samples=np.empty((0, 3)) if chosen else array(data, "samples", (None, 3)),
            centre=float(np.log(compute).mean()) if chosen else number(data, "centre"),
            status=status_of(Status, about),
        ),
        tuple(warnings),
    )  # fmt: skip
