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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from scaling.analysis.laws.curve import CurveLaw
from scaling.analysis.laws.parametric_law import NAMES, Optimum, ParametricLaw, SurfaceStatus
from scaling.analysis.laws.power_law import (
    PowerLaw,
    Prediction,
    SaturatingLaw,
    Status,
    conditions,
    finite,
)
from scaling.analysis.questions.curve_study import StudyCurve, law_of_json
from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.questions.parametric_study import StudySurface
from scaling.analysis.questions.variable import VariableLaw
from scaling.errors import UserError

FORMAT = "scaling law"
VERSION = 1
TINY = 1e-300
LAWS = {"power": PowerLaw, "saturating": SaturatingLaw}
UNITS = {"MACs": "compute", "parameters": "params", "tokens": "tokens"}
S = TypeVar("S", Status, SurfaceStatus)


@dataclass(frozen=True)
class SavedLaw:
    """A law that was loaded, and what its fit said to beware of."""

    law: PowerLaw | ParametricLaw
    warnings: tuple[str, ...]

    @property
    def of(self) -> str:
        """What it is a law of: compute, params, tokens, or params and tokens."""
        return "both" if isinstance(self.law, ParametricLaw) else UNITS[self.law.unit]

    def prediction(self, at: float) -> str:
        """What the fit's own `prediction` says, in text."""
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
        if not isinstance(self.law, ParametricLaw):
            return self.law.predict(at["macs_total" if self.of == "compute" else self.of])
        if "macs_total" in at:
            return self.law.optimum(at["macs_total"])
        return self.law.predict(at["params"], at["tokens"])

    def __str__(self) -> str:
        """The law, and what to know before its predictions are used."""
        lines = [str(self.law), *conditions(self.law)]
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
    found: StudyLaw | VariableLaw | StudySurface | StudyCurve, warnings: Sequence[str] = (),
    findings: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """The file's content: JSON, a line for each of its keys.

    warnings: what else to beware of. findings: of `scaling.analysis.findings`, all that a study's
    page says of its law.
    """
    law = found.law
    if isinstance(law, CurveLaw):
        assert isinstance(found, StudyCurve)
        about = {"format": FORMAT, "version": VERSION, **found.to_json()}
        return _lines(about | {"warnings": [*warnings, *found.warnings]})
    if isinstance(law, ParametricLaw):
        names = ["n", "d", "loss", "weights", "samples", "run_index"]
    elif law.mixture is None:
        names = ["compute", "loss", "weights", "samples", "centre"]
    else:
        names = ["compute", "loss", "weights", "covariance"]
    data = {}
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


def load(path: Path) -> SavedLaw | SavedCurve:
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
    except _Wrong as wrong:
        raise UserError(
            f"{path}: {wrong}: the file is damaged or was edited; save it again"
        ) from None


class _Wrong(Exception):
    """What is wrong with a value."""


def _law(content: dict[str, Any]) -> SavedLaw | SavedCurve:
    warnings = content.get("warnings")
    if not isinstance(warnings, list) or not all(isinstance(one, str) for one in warnings):
        raise _Wrong('"warnings" is no list of texts')
    if content.get("form") == "curve":
        try:
            return SavedCurve(law_of_json(content, warnings), tuple(warnings))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _Wrong(f"its law of the loss curve lacks or spoils {error}") from None
    about, data = _part(content, "law"), _part(content, "data")
    parameters = _part(about, "parameters")
    common: dict[str, Any] = {
        "unit": about.get("unit"), "level": _number(about, "level", 0.01, 0.9999),
        "ci": _intervals(_part(about, "interval")), "pinned": "E" in _part(about, "given"),
        "loss": (loss := _array(data, "loss", (None,), positive=True)),
        "weights": _optional(data, "weights", (len(loss),), positive=True),
    }  # fmt: skip
    form = about.get("form")
    if form == "parametric":
        values: dict[str, Any] = dict(zip(("e", "a", "b", "alpha", "beta"), (
            _number(parameters, name, 0) for name in NAMES), strict=True))  # fmt: skip
        if about["unit"] != "MACs" or not min(list(values.values())[1:]) > 0:
            raise _Wrong("its unit or its parameters are those of no L(N, D)")
        return SavedLaw(
            ParametricLaw(
                **values, **common, objective=_number(about, "objective"),
                per_token=_number(about, "per_token", TINY), loss_kind=str(about.get("loss")),
                corner=np.inf if about.get("corner") is None else _number(about, "corner", 0),
                tied=about.get("tied") is True,
                n=_array(data, "n", loss.shape, positive=True),
                d=_array(data, "d", loss.shape, positive=True),
                samples=_array(data, "samples", (None, 5)),
                run_index=_array(data, "run_index", loss.shape).astype(int),
                status=_status(SurfaceStatus, about),
            ),
            tuple(warnings),
        )  # fmt: skip
    if form not in LAWS or common["unit"] not in UNITS:
        raise _Wrong(f"no form {form!r} of {common['unit']!r} is known")
    chosen = about.get("mixture") is not None
    compute = _array(data, "compute", loss.shape, positive=True)
    if chosen and len(np.unique(compute)) < 3:
        raise _Wrong("'compute' has fewer than three values, which determine no law")
    covariance = None
    if chosen and (covariance := _optional(data, "covariance", (len(loss),) * 2)) is not None:
        _require_covariance(covariance)
    return SavedLaw(
        LAWS[form](
            **common, a=_number(parameters, "a", TINY), b=_number(parameters, "b"),
            e=_number(parameters, "E", 0), noise=_number(about, "noise_log", 0),
            compute=compute, covariance=covariance, chosen=chosen,
            samples=np.empty((0, 3)) if chosen else _array(data, "samples", (None, 3)),
            centre=float(np.log(compute).mean()) if chosen else _number(data, "centre"),
            status=_status(Status, about),
        ),
        tuple(warnings),
    )  # fmt: skip


def _part(holder: dict[str, Any], key: str) -> dict[str, Any]:
    value = holder.get(key)
    if not isinstance(value, dict):
        raise _Wrong(f"it has no {key!r}")
    return value


def _number(holder: dict[str, Any], key: str, low: float = -np.inf, high: float = np.inf) -> float:
    value = holder.get(key)
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fine or not -1e308 < value < 1e308 or not low <= value <= high:  # type: ignore[operator]
        raise _Wrong(f"{key!r} is {str(value)[:40]!r}")
    return float(value)  # type: ignore[arg-type]


def _array(
    holder: dict[str, Any], key: str, shape: tuple[int | None, ...], *, positive: bool = False
) -> np.ndarray:
    """Finite numbers of a shape, None of any length from 1 on."""
    try:
        value = np.array(holder.get(key))
    except ValueError:  # lists of several lengths
        raise _Wrong(f"{key!r} is no table of numbers") from None
    if value.dtype.kind not in "fi" or not np.isfinite(value).all():
        raise _Wrong(f"{key!r} holds something else than finite numbers")
    fits = value.ndim == len(shape) and value.size > 0
    if not fits or any(s is not None and s != v for s, v in zip(shape, value.shape, strict=True)):
        want = " x ".join("some" if s is None else str(s) for s in shape)
        raise _Wrong(f"{key!r} is of shape {value.shape}, not {want}")
    if positive and not (value > 0).all():
        raise _Wrong(f"{key!r} holds numbers that are not positive")
    return value.astype(float)


def _optional(
    holder: dict[str, Any], key: str, shape: tuple[int | None, ...], *, positive: bool = False
) -> np.ndarray | None:
    return None if holder.get(key) is None else _array(holder, key, shape, positive=positive)


def _intervals(given: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of each quantity; NaN where the fit had none."""
    none = (float("nan"), float("nan"))
    found = {k: none if v is None else _array(given, k, (2,)) for k, v in given.items()}
    return {k: (float(v[0]), float(v[1])) for k, v in found.items()}


def _require_covariance(value: np.ndarray) -> None:
    if not np.allclose(value, value.T, rtol=1e-9) or np.linalg.eigvalsh(value)[0] < -1e-9 * np.abs(
        value
    ).max(initial=0):
        raise _Wrong("'covariance' is none")


def _status(kind: type[S], about: dict[str, Any]) -> S:
    """What the optimiser had reached; a number that is missing was not finite."""
    given = _part(about, "status")
    values: dict[str, Any] = {}
    for one in fields(kind):
        if one.name not in given:
            raise _Wrong(f"'status' has no {one.name!r}")
        value = given[one.name]
        values[one.name] = float("nan") if value is None else value
        if not isinstance(values[one.name], (bool, int, float, str)):
            raise _Wrong(f"{one.name!r} is {str(value)[:40]!r}")
    return kind(**values)
