"""Rows that one law may not hold together, and measures that are not what their names say: told by
the table's own values, or asked."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.tables import read
from scaling.errors import UserError
from tests.analysis.base_runs import BASE, counted, history, same_runs
from tests.analysis.test_tables_lines import PLAIN, RUNS, D, L, N


def twice(name: str, first: Any, second: Any, share: float = 0.9) -> pd.DataFrame:
    """Every run once more, with another loss and another value of a column."""
    again = PLAIN.assign(run_id=[f"{r}b" for r in RUNS], val_loss=L * share)
    return pd.concat([PLAIN.assign(**{name: first}), again.assign(**{name: second})])


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("num_repeats", 1, 7), ("data_passes", 1, 7), ("repeat factor", 1, 7),
     ("unique_tokens_B", D / 1e9, D / 7e9), ("num_unique_toks", D, D / 7), ("D_unique", D, D / 7),
     ("dataset_tokens_B", D / 1e9, D / 7e9)],
)  # fmt: skip
def test_repeated_data_in_other_words(name: str, first: Any, second: Any) -> None:
    rows, notes = read(twice(name, first, second))
    same_runs(rows)
    assert any("30 rows went over their data more than once (up to 7 times)" in n for n in notes)


@pytest.mark.parametrize(
    ("name", "first", "second", "share", "words"),
    [("times_seen", 1, 7, 0.9, "-10.00% from 1 to 7 in 30 cells.*call it epochs"),
     ("total_epochs", 1, 7, 1.1, "call it epochs"),
     ("U", D, D / 7, 0.9, "0.14 x the tokens.*call it unique_tokens"),
     ("lr_scale", 0.5, 2.0, 1.01, "--where \"lr_scale == 0.5\", or --by lr_scale"),
     ("trace", "data", "Fit", 0.9, "30 rows have 'Fit' in column 'trace'.*trace != 'Fit'"),
     ("kind", "run", "extrapolated", 1, "points of a curve are no runs")],
)  # fmt: skip
def test_runs_that_an_unknown_column_tells_apart(
    name: str, first: Any, second: Any, share: float, words: str
) -> None:
    table = twice(name, first, second, share)
    with pytest.raises(UserError, match=words):
        read(table)
    if not isinstance(first, np.ndarray):
        same_runs(read(table, where=f"{name} == {first!r}")[0])
        if name not in ("trace", "kind"):
            both = read(table, where=f"{name} in [{first!r}, {second!r}]")[0]
            assert len(counted(both)) == 60
    if name not in ("trace", "kind"):  # the other remedies
        known = {"times_seen": "epochs", "total_epochs": "epochs", "U": "unique_tokens"}
        renamed = table.rename(columns=known)
        rows, _ = read(renamed, by=None if name in known else name)
        same_runs(rows[~rows["run_id"].str.endswith("b")])


def test_runs_that_a_column_without_effect_tells_apart() -> None:
    rng = np.random.default_rng(0)
    table = twice("cluster", "a", "b").assign(
        val_loss=np.tile(L, 2) * (1 + 0.002 * rng.standard_normal(60))
    )
    assert len(counted(read(table)[0])) == 60


@pytest.mark.parametrize("column", ["method", "resolution", "arch"])
def test_runs_of_two_kinds_at_other_sizes_are_told(column: str) -> None:
    values = (224, 384) if column == "resolution" else ("baseline", "ours")
    other = PLAIN.assign(run_id=[f"{r}b" for r in RUNS], params=N * 1.07, tokens=D / 1.07)
    other = other.assign(val_loss=L * 1.01, **{column: values[1]})
    _, notes = read(pd.concat([PLAIN.assign(**{column: values[0]}), other]))
    assert any(f"beware: 2 values of {column!r} in one law" in note for note in notes), notes
    tier = np.select([N < 3e7, N < 1e8], ["small", "middle"], "large")  # of the size alone
    _, notes = read(PLAIN.assign(tier=tier, half=np.tile([1, 2], 15)))
    assert not any("differ with them" in note for note in notes), notes


def test_epochs_that_may_be_of_a_trainer_are_named() -> None:
    _, notes = read(PLAIN.assign(total_epochs=3))
    assert any("'total_epochs' goes up to 3" in note for note in notes)


@pytest.mark.parametrize("factor", [float(1 / np.log(2)), 1.0])
def test_the_base_of_a_loss_is_told_by_its_perplexity(factor: float) -> None:
    table = PLAIN.assign(val_loss=L * factor, val_ppl=np.exp(L), train_ppl=np.exp(0.97 * L))
    rows, notes = read(table)
    same_runs(rows)
    assert any("'val_ppl' is 2 to its power" in note for note in notes) is (factor > 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [("excess_loss", "--e 0 fits a law without"), ("reducible loss", "--e 0 fits a law without"),
     ("valid_nll_loss", "fairseq's name for a loss in bits")],
)  # fmt: skip
def test_a_loss_that_is_another_one_is_told(name: str, words: str) -> None:
    table = PLAIN.drop(columns="val_loss").assign(**{name: L - 1.8})
    assert any(words in note for note in read(table)[1])


def test_tokens_that_runs_go_beyond_are_no_plan() -> None:
    rows, notes = read(PLAIN.assign(target_tokens=1e9))
    same_runs(rows)
    assert not any("mid-schedule" in note for note in notes)
    rows, notes = read(PLAIN.assign(target_tokens=np.where(np.arange(30) == 4, 2 * D, D)))
    same_runs(rows, BASE.drop(index=4))
    assert any("mid-schedule" in note for note in notes)


@pytest.mark.parametrize("first", ["lr", "learning_rate"])
def test_of_two_rates_the_one_that_moves_tells_what_decayed(first: str) -> None:
    table = history().rename(columns={"learning_rate": "lr"})
    constant = table["run_id"].isin(["r7", "r19"])
    end = table.groupby("run_id")["step"].transform("max")
    moving = np.where(constant, 1e-3, 1e-3 * (1.1 - table["step"] / end))
    other = "learning_rate" if first == "lr" else "lr"
    table = table.drop(columns="lr", errors="ignore").assign(**{first: 1e-3}, **{other: moving})
    rows, _ = read(table)
    same_runs(rows, BASE.drop(index=[7, 19]))


def test_an_error_is_no_accuracy() -> None:
    error = 10 + 5 * L
    rows, _ = read(PLAIN.assign(top1_err=error), metric="top1_err")
    assert rows["val_loss"].to_numpy() == pytest.approx(error / 100)


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"log_params": np.log10(N), "tokens": D}, "rename it log10_... or ln_..."),
     ({"params": N, "log C": np.log10(6 * N * D)}, "rename it log10_... or ln_..."),
     ({"tokens": D}, "no column for parameters .*--n .*compute \\(--c\\)")],
)  # fmt: skip
def test_what_is_missing_is_named(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(pd.DataFrame({**columns, "val_loss": L}))


@pytest.mark.parametrize("names", [
    {"params": "Param. count (M)", "tokens": "num. tokens (in billions)"},
    {"params": "log10N", "tokens": "log10D"},
])  # fmt: skip
def test_more_ways_to_write_names(names: dict[str, str]) -> None:
    log = "log" in names["params"]
    values = (np.log10(N), np.log10(D)) if log else (N / 1e6, D / 1e9)
    columns = dict(zip(names.values(), values, strict=True))
    same_runs(read(pd.DataFrame({**columns, "val_loss": L}))[0])
