"""L(N), L(D) and L(N, D) of rows: what they need, and what they say against themselves."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.parametric_study import fit_surface
from scaling.analysis.questions.simulate import TRUTH, study
from scaling.analysis.questions.variable import fit_variable
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder


def table(noise: float = 0.002, variable: str = "params") -> pd.DataFrame:
    x = np.geomspace(1e6, 1e9, 9)
    loss = (1.7 + 60 * x**-0.22) * np.exp(noise * np.random.default_rng(1).standard_normal(9))
    return pd.DataFrame({variable: x, "loss": loss})


@pytest.mark.parametrize("variable", ["params", "tokens"])
def test_the_variable_and_the_loss_are_enough(variable: str) -> None:
    rows, notes = read(table(variable=variable), of=variable)
    assert "compute: not known, and not needed" in notes
    found = fit_variable(Ladder.of(rows, variable=variable))
    assert found.law.form == "saturating" and found.law.ci["b"][0] < -0.22 < found.law.ci["b"][1]
    said = found.summary()
    more = {"params": "smaller or larger models", "tokens": "shorter or longer runs"}
    for words in ("not chosen   L(", "form         error on held-out", "curvature    the curve",
                  "held out     the most", "does not say how many"):  # fmt: skip
        assert words in said
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["selected"] == "saturating"
    with pytest.raises(ValueError, match="no column for"):
        read(table(variable=variable))
    assert f"add {more[variable]}" in said and "budget" not in said
    other = "tokens" if variable == "params" else "params"
    with pytest.raises(ValueError, match=r"no column for (tokens|parameters)"):
        read(table(variable=variable), of=other)


def test_rows_without_the_variable_are_counted() -> None:
    rows, _ = read(table(), of="params")
    rows.loc[2, "params"] = np.nan
    found = fit_variable(Ladder.of(rows, variable="params"), form="power")
    assert ("no usable parameters", 1) in found.excluded and len(found.points) == 8
    with pytest.raises(NotIdentified, match="9 rows: no usable tokens"):
        fit_variable(Ladder.of(rows, variable="tokens"))


def test_runs_short_of_the_other_variable_are_told() -> None:
    n, d = (part.ravel() for part in np.meshgrid(np.geomspace(1e7, 1e9, 12), [1e9, 4e9]))
    d = d * np.random.default_rng(0).uniform(0.1, 1, len(d))
    rows, _ = read(pd.DataFrame({"params": n, "tokens": d, "loss": 1.7 + 1e4 / d**0.4 + n**-0.3}))
    assert (
        "and they were not: the fewer tokens"
        in fit_variable(Ladder.of(rows, variable="params")).warnings[0]
    )
    ample, _ = read(pd.DataFrame({"params": n, "tokens": d, "loss": 1.7 + 100 * n**-0.3}))
    assert (
        "they were not"
        not in fit_variable(Ladder.of(ample, variable="params"), form="saturating").warnings[0]
    )


def test_loss_that_does_not_fall_is_told() -> None:
    rows, _ = read(table(noise=0.2).assign(loss=lambda t: t["loss"].sample(9, random_state=3)
                                           .to_numpy()), of="params")  # fmt: skip
    said = " ".join(fit_variable(Ladder.of(rows, variable="params"), form="power").warnings)
    assert "do not show that more parameters means less loss" in said


def mixed(**columns: Any) -> pd.DataFrame:
    return study(TRUTH, sizes=7, budgets=5, decades=2.0, trunks=False, seed=3).assign(**columns)


@pytest.mark.parametrize(
    "fit", [fit_surface, lambda rows, **o: fit_variable(Ladder.of(rows, variable="params"), **o)]
)
def test_one_list_of_warnings(fit: Callable[..., Any]) -> None:
    """What the law of compute warns of, the others warn of."""
    rows = mixed(seed=0, epochs=9.0)
    rows["tokenizer"] = np.where(np.arange(len(rows)) % 2, "a", "b")
    said = " ".join(fit(rows, resamples=100).warnings)
    for words in ("2 values of tokenizer in one law", "one seed", "up to 9 times"):
        assert words in said


def test_runs_of_one_design_without_seeds_are_told() -> None:
    rows = mixed().drop(columns="seed", errors="ignore")
    again = rows.assign(run_id=rows["run_id"] + "b", val_loss=rows["val_loss"] * 1.001)
    said = " ".join(fit_surface(pd.concat([rows, again]), resamples=100).warnings)
    assert "several runs have the same size" in said and "a run of its own" in said
    assert "the lowest of them" not in said


def test_a_sweep_of_settings_is_no_surface() -> None:
    arms = []
    for lr in (0.01, 0.02, 0.03):
        rows = mixed(lr=lr)
        rows["run_id"] += f" at {lr}"
        rows["val_loss"] *= 1 + lr
        arms.append(rows)
    rows = pd.concat(arms)
    said = " ".join(fit_surface(rows, resamples=100).warnings)
    assert "up to 3 runs of one that differ in lr" in said and "keep the best run" in said


def test_a_refusal_says_what_else_is_wrong() -> None:
    rows = mixed(data_key=lambda r: np.where(r.index % 2, "a", "b"))
    rows["val_loss"] = 2.0 + 0.3 * np.random.default_rng(0).standard_normal(len(rows)) ** 2
    with pytest.raises(NotIdentified, match=r"(?s)not identified.*beware.*2 values of data_key"):
        fit_surface(rows, resamples=100)


def test_rows_without_parameters_are_counted_and_the_status_is_printed() -> None:
    rows = mixed()
    rows.loc[rows.index[:2], "params"] = np.nan
    found = fit_surface(rows, resamples=100)
    said = found.summary()
    assert "2 rows: no parameters or tokens" in said
    for words in ("minimum      converged", "starts reach it", "at a bound", "loss_exponent"):
        assert words in said
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["law"]["status"]["converged"]


def test_an_optimum_that_no_run_is_near_is_told() -> None:
    n, ratio = (part.ravel() for part in np.meshgrid(np.geomspace(1e6, 1e9, 8), [2e3, 7e3, 2e4]))
    d = n * ratio
    rows, _ = read(pd.DataFrame({
        "params": n, "tokens": d,
        "loss": (1.7 + 400 / n**0.34 + 1500 / d**0.36)
        * np.exp(0.001 * np.random.default_rng(0).standard_normal(24)),
    }))  # fmt: skip
    found = fit_surface(rows, resamples=100)
    assert any("lie outside those tried (2e+03 to 2e+04)" in w for w in found.warnings)
    assert "so none is near that optimum" in found.prediction(1e20)
    inside = fit_surface(mixed(), resamples=100)
    assert "tokens per parameter" not in " ".join(inside.warnings) + inside.prediction(1e13)


def test_the_over_training_law_prints_no_interval_of_no_width() -> None:
    found = fit_surface(mixed(), tied=True, resamples=100)
    assert (
        "size_exponent" not in found.law.ci and "N_opt ~ C^0.5 as alpha = beta" in found.summary()
    )
