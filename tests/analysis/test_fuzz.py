"""Garbage gives a clear ValueError or a right answer: never a traceback, never a silent fit."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scaling.analysis.laws.fit import fit
from scaling.analysis.laws.parametric import ParametricLaw, fit_parametric
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.questions.isoflop import approaches, minima
from scaling.analysis.questions.simulate import study
from scaling.analysis.tables import read
from scaling.errors import UserError

Found = TypeVar("Found")
QUICK = settings(max_examples=60, deadline=None, derandomize=True)
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)
nice = st.floats(min_value=1e-3, max_value=1e24)


def sane(law: PowerLaw) -> None:
    """A law that was given must be finite, describe its points, and own up to its basis."""
    assert np.isfinite([law.a, law.b, law.e]).all() and law.e >= 0
    assert len(np.unique(law.compute)) > law.parameters - law.__dict__.get("pinned", False)
    assert law.decades >= 0.999
    for low, high in law.ci.values():
        assert np.isfinite([low, high]).all() and low <= high
    assert np.isfinite(law.predict(law.compute.max()).loss)
    if law.noise > 1e-9:
        assert np.abs(law.residuals).min() <= law.noise * 3


def attempt(function: Callable[..., Found], *args: Any, **kwargs: Any) -> Found | None:
    """The result, or None for a UserError with a sentence in it."""
    try:
        return function(*args, **kwargs)
    except UserError as error:  # any other is a bug
        assert len(str(error)) > 15
        return None


@QUICK
@given(st.lists(st.tuples(anything, anything), max_size=12))
def test_any_two_columns(pairs: list[tuple[float, float]]) -> None:
    compute, loss = [p[0] for p in pairs], [p[1] for p in pairs]
    law = attempt(fit, compute, loss, resamples=100)
    if law is not None:
        sane(law)


@QUICK
@given(st.lists(st.tuples(nice, st.floats(1e-2, 20)), min_size=3, max_size=12), st.booleans())
def test_positive_columns(pairs: list[tuple[float, float]], repeat: bool) -> None:
    pairs = pairs * 2 if repeat else pairs
    law = attempt(fit, [p[0] for p in pairs], [p[1] for p in pairs], resamples=100)
    if law is not None:
        sane(law)


@QUICK
@given(hnp.arrays(float, st.tuples(st.integers(0, 14), st.just(3)), elements=anything))
def test_any_three_columns(values: np.ndarray) -> None:
    law = attempt(fit_parametric, *values.T, resamples=100)
    assert law is None or isinstance(law, ParametricLaw)


@QUICK
@given(
    hnp.arrays(float, st.tuples(st.integers(6, 14), st.just(2)), elements=st.floats(1e3, 1e12)),
    st.floats(0.5, 6),
    st.integers(0, 1000),
)
def test_positive_three_columns(values: np.ndarray, level: float, seed: int) -> None:
    loss = level * np.exp(0.3 * np.random.default_rng(seed).standard_normal(len(values)))
    law = attempt(fit_parametric, *values.T, loss, resamples=100)
    if law is not None:
        assert np.isfinite([law.e, law.a, law.b, law.alpha, law.beta]).all()
        assert law.alpha > 0 and law.beta > 0
        assert all(np.isfinite(v).all() and v[0] <= v[1] for v in map(np.array, law.ci.values()))


cells = st.one_of(
    anything, st.integers(-(10**20), 10**20), st.text(max_size=8), st.none(), st.booleans(),
    st.sampled_from(["1.3B", "7B", "1,024", "nan", "2e9", "-", "inf", "350M"]),
)  # fmt: skip
names = st.one_of(
    st.sampled_from(
        ["N", "D", "C", "loss", "val_loss", "params", "tokens", "tokens_B", "flops", "macs",
         "Training FLOP", "run_id", "State", "name", "eval/loss", "x"]
    ),
    st.text(max_size=6),
)  # fmt: skip


@QUICK
@given(st.data())
def test_any_table(data: st.DataObject) -> None:
    columns = data.draw(st.lists(names, max_size=6))
    rows = data.draw(st.integers(0, 8))
    content = [data.draw(st.lists(cells, min_size=rows, max_size=rows)) for _ in columns]
    table = pd.DataFrame(list(zip(*content, strict=True)) if columns else [], columns=columns)
    found = attempt(read, table)
    if found is None:
        return
    result = attempt(fit_frontier, found[0], resamples=100)
    assert result is None or isinstance(result, StudyLaw)


spoil = st.sampled_from(
    ["val_loss", "macs_total", "params", "tokens", "budget_macs", "status", "decayed", "role"]
)
bad = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300, 1e-300, 1e12])


@QUICK
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.tuples(spoil, st.integers(0, 35), bad), max_size=6),
    st.booleans(),
)
def test_spoilt_studies(
    sizes: int, budgets: int, spoiled: list[tuple[str, int, float]], repeated: bool
) -> None:
    rows = study(sizes=sizes, budgets=budgets, seed=sizes + budgets)
    rows = pd.concat([rows, rows], ignore_index=True) if repeated else rows
    for column, row, value in spoiled:
        rows[column] = rows[column].astype(object)
        rows.loc[row % len(rows), column] = value
    law = attempt(fit_frontier, rows, resamples=200)
    if law is not None:
        sane(law.law)
        assert np.isfinite(law.points["val_loss"].astype(float)).all()
        total = sum(count for _, count in law.excluded)
        assert total <= len(rows)
        assert law.summary()
    attempt(minima, rows)
    attempt(approaches, rows, resamples=100)


def test_one_run_constant_loss_and_duplicates() -> None:
    rows = study(sizes=6, budgets=5, seed=1)
    assert attempt(fit_frontier, rows.iloc[:1]) is None
    assert attempt(fit_frontier, rows.assign(val_loss=2.0)) is None
    assert attempt(fit_frontier, rows.iloc[:0]) is None
    twice = pd.concat([rows, rows], ignore_index=True)
    assert fit_frontier(twice, resamples=200).pure.b == fit_frontier(rows, resamples=200).pure.b


def test_mixed_units_are_named() -> None:
    rows = study(sizes=6, budgets=5, seed=1)
    table = pd.DataFrame(
        {
            "N": rows["params"],
            "D": rows["tokens"],
            "C": rows["macs_total"],
            "loss": rows["val_loss"],
        }
    )
    table.loc[:5, "D"] /= 1e9
    with pytest.raises(ValueError, match="mix units"):
        read(table)
    table["D"] = rows["tokens"] / 1e9
    for tokens_in in (None, "B"):  # compute leaves billions alone possible
        found, notes = read(table, compute_unit="MACs", tokens_in=tokens_in)
        assert found["tokens"].to_numpy() == pytest.approx(rows["tokens"].to_numpy())
        assert "tokens (D): column 'D', x 1e+09" in notes[2]


@pytest.mark.slow
def test_ten_million_rows_of_garbage() -> None:
    rng = np.random.default_rng(0)
    n = 10_000_000
    table = pd.DataFrame(
        {
            "flops": rng.standard_cauchy(n),
            "N": 1e6 * rng.standard_cauchy(n),
            "loss": rng.normal(size=n),
        }
    )
    found = attempt(read, table)
    if found is not None:
        law = attempt(fit_frontier, found[0], resamples=100)
        assert law is None or abs(law.pure.b) < 10
