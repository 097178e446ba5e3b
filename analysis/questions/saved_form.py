"""A form's law in a file and out of it: its formula as text, its points and resamples."""

from __future__ import annotations

from typing import Any

import numpy as np

from scaling.analysis.laws.form_law import FormLaw
from scaling.analysis.laws.formulas import MEANINGS, Form
from scaling.analysis.laws.parametric_law import SurfaceStatus
from scaling.analysis.questions.saved_values import (
    Wrong,
    array,
    intervals,
    number,
    optional,
    part,
    status_of,
)
from scaling.errors import UserError


def form_data(law: FormLaw) -> dict[str, Any]:
    """What predictions are made of, as plain lists."""
    return {
        "columns": {name: one.tolist() for name, one in law.columns.items()},
        "loss": law.loss.tolist(), "samples": law.samples.tolist(),
        "run_index": law.run_index.tolist(),
        "weights": None if law.weights is None else law.weights.tolist(),
    }  # fmt: skip


def per_token(about: dict[str, Any]) -> float:
    """MACs over N D; NaN of a form without N or D. Raises Wrong."""
    none = about.get("per_token") is None
    return float("nan") if none else number(about, "per_token", 1e-300)


def form_law(about: dict[str, Any], data: dict[str, Any]) -> FormLaw:
    """The law that `form_data` and its own `to_json` hold. Raises Wrong."""
    bounds = part(about, "bounds")
    try:
        form = Form(
            str(about.get("name")), str(about.get("formula")),
            {name: (float(low), float(high)) for name in bounds
             for low, high in [array(bounds, name, (2,))]},
            str(about.get("reference", "")),
        )  # fmt: skip
    except UserError as error:
        raise Wrong(str(error)) from None
    parameters, columns = part(about, "parameters"), part(data, "columns")
    if set(parameters) != set(form.names) or set(columns) != set(form.columns):
        raise Wrong("its parameters or columns are not those of its formula")
    loss = array(data, "loss", (None,), positive=True)
    law = FormLaw(
        form=form, values={name: number(parameters, name) for name in form.names},
        level=number(about, "level", 0.01, 0.9999), ci=intervals(part(about, "interval")),
        status=status_of(SurfaceStatus, about), objective=number(about, "objective"),
        corner=np.inf if about.get("corner") is None else number(about, "corner", 0),
        columns={name: array(columns, name, loss.shape, positive=name in MEANINGS)
                 for name in form.columns},
        loss=loss, samples=array(data, "samples", (None, len(form.names))),
        run_index=array(data, "run_index", loss.shape).astype(int),
        weights=optional(data, "weights", loss.shape, positive=True),
    )  # fmt: skip
    if not np.isfinite(law.fitted).all():
        raise Wrong("its formula has no value at its own points")
    return law
