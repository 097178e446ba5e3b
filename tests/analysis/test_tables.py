"""Anyone's table: columns by name or by flag, units, and no silent guess."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.frontier import fit_frontier, frontier
from scaling.analysis.questions.simulate import study
from scaling.analysis.tables import budgets, read
from scaling.errors import UserError


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """Parameters, tokens, training FLOPs and loss of a simulated study."""
    rows = study(sizes=6, budgets=5, seed=3)
    return pd.DataFrame(
        {
            "N": rows["params"],
            "D": rows["tokens"],
            "C": 2 * rows["macs_total"],
            "loss": rows["val_loss"],
            "run": rows["run_id"],
        }
    )


def test_a_table_gives_the_law_of_the_study(runs: pd.DataFrame) -> None:
    rows, _ = read(runs.rename(columns={"C": "training_flops"}))
    ours = fit_frontier(rows, resamples=200)
    assert ours.method == "budget" and ours.law.unit == "MACs"
    original = fit_frontier(study(sizes=6, budgets=5, seed=3), resamples=200)
    assert ours.pure.b == pytest.approx(original.pure.b, rel=1e-6)
    assert ours.pure.a == pytest.approx(original.pure.a, rel=1e-6)


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ({"N": "Model Size", "C": "Training FLOP", "D": "tokens"}, {}),
        ({"N": "params", "C": "compute"}, {"compute_unit": "FLOPs"}),
        ({"N": "width", "D": "seen", "C": "cost", "loss": "nll"},
         {"n": "width", "d": "seen", "c": "cost", "loss": "nll", "compute_unit": "flops"}),
        ({"loss": "eval/loss", "N": "n_params"}, {}),
    ],
)  # fmt: skip
def test_columns_are_found_by_name_or_by_flag(
    runs: pd.DataFrame, names: dict[str, str], flags: dict[str, Any]
) -> None:
    rows, notes = read(runs.rename(columns=names), **flags)
    assert rows["macs_total"].to_numpy() == pytest.approx(runs["C"].to_numpy() / 2)
    assert rows["params"].to_numpy() == pytest.approx(runs["N"].to_numpy())
    assert rows["tokens"].to_numpy() == pytest.approx(runs["D"].to_numpy())
    for name in names.values():
        assert any(repr(name) in note for note in notes), (name, notes)


@pytest.mark.parametrize("unit", ["MACs", "FLOPs", "PF-days"])
def test_every_unit_of_compute(runs: pd.DataFrame, unit: str) -> None:
    macs = {"MACs": 1.0, "FLOPs": 0.5, "PF-days": 4.32e19}[unit]
    table = runs[["N", "loss"]].assign(compute=runs["C"] / 2 / macs)
    rows, notes = read(table, compute_unit=unit)
    assert rows["macs_total"].to_numpy() == pytest.approx(runs["C"].to_numpy() / 2)
    assert rows["tokens"].to_numpy() == pytest.approx(runs["D"].to_numpy())
    assert any("as no column gives them" in note for note in notes)


def test_the_unit_is_told_from_the_ratio_to_parameters_and_tokens(runs: pd.DataFrame) -> None:
    rows, notes = read(runs)
    assert "compute (C): column 'C' in FLOPs; unit by 6 N D" in notes
    halved, notes = read(runs.assign(C=runs["C"] / 2))
    assert "compute (C): column 'C' in MACs; unit by 6 N D" in notes
    assert halved["macs_total"].to_numpy() == pytest.approx(rows["macs_total"].to_numpy())
    with pytest.raises(ValueError, match="give compute_unit"):
        read(runs[["N", "C", "loss"]])


@pytest.mark.parametrize("how", ["flag", "name", "brackets", "text"])
def test_tokens_in_billions(runs: pd.DataFrame, how: str) -> None:
    table = runs[["N", "loss"]].copy()
    flags: dict[str, Any] = {}
    billions = runs["D"] / 1e9
    if how == "flag":
        table["D"], flags = billions, {"tokens_in": "B"}
    elif how == "text":
        table["D"] = [f"{v!r}B" for v in billions]
    else:
        table["tokens_B" if how == "name" else "tokens (B)"] = billions
    rows, _ = read(table, **flags)
    assert rows["tokens"].to_numpy() == pytest.approx(runs["D"].to_numpy())


@pytest.mark.parametrize("kind", ["csv", "tsv", "json"])
def test_files(runs: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"table.{kind}"
    if kind == "json":
        runs.to_json(path, orient="records")
    else:
        runs.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    from_file, _ = read(path)
    from_frame, _ = read(runs)
    pd.testing.assert_frame_equal(from_file, from_frame, check_exact=False, rtol=1e-8)


def test_a_weights_and_biases_export(runs: pd.DataFrame) -> None:
    """The columns of its CSV export; a crashed run is left out and counted."""
    export = pd.DataFrame(
        {
            "Name": runs["run"] + [f"-{i}" for i in range(len(runs))],
            "State": ["crashed", *["finished"] * (len(runs) - 1)],
            "Created": "2026-01-01",
            "Runtime": 12.0,
            "params": runs["N"],
            "tokens": runs["D"],
            "_step": 100,
            "eval/loss": runs["loss"],
        }
    )
    rows, _ = read(export)
    law = fit_frontier(rows, resamples=200)
    assert ("did not finish", 1) in law.excluded
    assert export["Name"][0] not in set(law.points["run_id"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="loss"), "no column for loss"),
        (lambda t: t[["N", "loss"]], "no column for tokens"),
        (lambda t: t.assign(flops=t["C"], macs=t["C"] / 3).drop(columns="C"), "'flops', 'macs'"),
        (lambda t: t.assign(val_loss=t["loss"], eval_loss=1.01 * t["loss"]).drop(columns="loss"),
         "could all be meant"),
        (lambda t: t.assign(loss="high"), "holds no numbers .its first value is 'high'"),
        (lambda t: t.assign(loss=np.nan), "column 'loss' is empty"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.set_axis(["N", "N", "C", "loss", "run"], axis=1), "two columns are called"),
        (lambda t: t.assign(D=t["D"] / 1e9).drop(columns="C"), "in millions or billions"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(
    runs: pd.DataFrame, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read(change(runs))


def test_wrong_flags_are_said(runs: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'perplexity'"):
        read(runs, loss="perplexity")
    with pytest.raises(ValueError, match="choose one of K, M, B, T"):
        read(runs, tokens_in="dozens")
    with pytest.raises(ValueError, match="unknown unit of compute"):
        read(runs, compute_unit="joules")
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "nothing.csv")


def test_a_repeated_row_counts_once(runs: pd.DataFrame) -> None:
    rows, _ = read(pd.concat([runs, runs.iloc[:4]]))
    assert (rows["role"] == "repeat").sum() == 4
    once, _ = read(runs)
    assert fit_frontier(rows, resamples=200).pure.b == fit_frontier(once, resamples=200).pure.b


def test_budgets_are_costs_that_several_sizes_share() -> None:
    rng = np.random.default_rng(0)
    macs = np.repeat([1e12, 1e13], 5) * rng.uniform(0.995, 1.005, 10)
    sizes = np.tile(np.arange(1.0, 6), 2)
    found = budgets(macs, sizes)
    assert len(np.unique(found)) == 2 and np.log(found / macs) == pytest.approx(0, abs=0.01)
    cloud = 10 ** rng.uniform(10, 15, 200)
    assert np.isnan(budgets(cloud, rng.uniform(1, 5, 200))).all()
    assert np.isnan(budgets(macs, np.ones(10))).all(), "one size at a cost is no grid"
    pairs = budgets(np.repeat([1e12, 1e13, 1e14], 2), np.tile([1.0, 2.0], 3))
    assert len(np.unique(pairs)) == 3, "two sizes, where every cost has both"
    assert np.isnan(budgets(np.repeat([1e12, 1e13, 1e14], 2)[:5], np.tile([1.0, 2.0], 3)[:5])).all()


def test_a_column_of_budgets_is_shared(runs: pd.DataFrame) -> None:
    """Labels will do; a name of each run's own tells no budget."""
    cost = np.log10(runs["C"]).round(1)
    labels = cost.map({c: f"budget {k}" for k, c in enumerate(sorted(cost.unique()))})
    rows, notes = read(runs.assign(label=labels), budget_column="label")
    assert rows["budget_macs"].nunique() == labels.nunique()
    assert f"nominal budgets: column 'label', {labels.nunique()} of them" in notes
    own = runs.assign(label=[f"run {k}" for k in range(len(runs))])
    with pytest.raises(UserError, match=r"tells no budgets: \d+ of \d+ rows share"):
        read(own, budget_column="label")
    halves = runs.assign(label=["a", "b"] * (len(runs) // 2) + ["a"] * (len(runs) % 2))
    _, notes = read(halves, budget_column="label")
    assert any("costs within one of its values differ by a factor" in note for note in notes)


def test_published_isoflops_have_nine_budgets(shared_data: Path) -> None:
    """Stanford CS336's table: the best run of each budget grows as C^0.469."""
    table = pd.read_json(shared_data / "scaling_tables/cs336_isoflops_curves.json")
    rows, _ = read(table, n="parameters", c="compute_budget", loss="final_loss",
                   compute_unit="FLOPs")  # fmt: skip
    assert rows["budget_macs"].nunique() == 9
    points = frontier(rows)
    slope = np.polyfit(np.log(points["macs_total"]), np.log(points["params"]), 1)[0]
    assert slope == pytest.approx(0.469, abs=5e-4)


def test_seeds_are_averaged_and_learning_rates_are_not() -> None:
    table = study(sizes=6, budgets=5, seeds=2, seed=3)
    table = table.rename(columns={"params": "N", "tokens": "D", "val_loss": "loss"})
    table = table[["N", "D", "loss", "seed"]]
    rows, notes = read(table)
    assert any("differ in their seed alone are averaged" in note for note in notes)
    assert (frontier(rows)["seeds"] == 2).all()
    rows, _ = read(table.assign(learning_rate=np.where(table["seed"] == 0, 1e-3, 2e-3)))
    assert (frontier(rows)["seeds"] == 1).all()


def test_a_sheet_with_semicolons_and_decimal_commas(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    runs.to_csv(path, index=False, sep=";", decimal=",")
    rows, _ = read(path)
    assert rows["val_loss"].tolist() == pytest.approx(runs["loss"].tolist())


def test_a_comma_in_a_loss_is_not_a_thousand(runs: pd.DataFrame) -> None:
    """ "2,961" may be 2.961 or 2961, and may be the best of its budget: the table is refused."""
    text = runs.assign(loss=runs["loss"].astype(object), N=runs["N"].map("{:,.0f}".format))
    text.loc[4, "loss"] = "2,961"
    with pytest.raises(ValueError, match="1 cells are no numbers: '2,961' in column 'loss', row 5"):
        read(text)
    rows, _ = read(
        text.assign(state=["crashed" if i == 4 else "finished" for i in range(len(text))])
    )
    assert rows["val_loss"].isna().tolist() == [i == 4 for i in range(len(rows))]
    assert rows["params"].tolist() == pytest.approx(runs["N"].tolist(), rel=1e-3)


def test_counts_that_no_run_has_are_asked_about(runs: pd.DataFrame) -> None:
    """Without a column of compute, nothing else would show that tokens are in billions."""
    billions = runs.assign(D=runs["D"] / 1e9)[["N", "D", "loss"]]
    with pytest.raises(ValueError, match=r"column 'D' has .* tokens in the middle row"):
        read(billions)
    rows, _ = read(billions, tokens_in="B")
    assert rows["tokens"].tolist() == pytest.approx(runs["D"].tolist())
    assert read(billions, tokens_in="")[0]["tokens"].tolist() == billions["D"].tolist()


@pytest.mark.parametrize(("largest", "told"), [(9, False), (4, False), (2, True)])
def test_grids_of_unlike_sizes_are_told(largest: int, told: bool) -> None:
    """The best of many settings is luckier than the best of few, which tilts the law."""
    rows = [
        (n, 20 * n, lr, 2 + 60 * n**-0.2 + 0.01 * lr)
        for n in (1e6, 1e7, 1e8, 1e9)
        for lr in range(9 if n < 1e9 else largest)
    ]
    _, notes = read(pd.DataFrame(rows, columns=["params", "tokens", "lr", "loss"]))
    said = [one for one in notes if one.startswith("beware: 2 to 9 settings were tried in a cell")]
    assert bool(said) == told
    assert any(one.startswith("grid: 'lr' vary within 4 cells") for one in notes)
