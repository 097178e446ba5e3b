"""The exponent under other choices, and without single runs."""

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import choices
from scaling.analysis.questions.choices import (
    CHOICES,
    CORNERS,
    alike_text,
    influence,
    specifications,
    spread,
)
from scaling.analysis.questions.frontier import METHODS, fit_frontier, frontier
from scaling.analysis.questions.simulate import PURE, TRUTH, study
from scaling.analysis.tables import read


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return study(PURE, sizes=7, budgets=6, seed=2)


@pytest.fixture(scope="module")
def table(rows: pd.DataFrame) -> pd.DataFrame:
    return specifications(rows)


def test_the_main_specification_is_the_law_itself(rows: pd.DataFrame, table: pd.DataFrame) -> None:
    main = table[table["main"] & (table["form"] == "pure")]
    assert len(main) == 1
    assert main["b"].iloc[0] == pytest.approx(fit_frontier(rows, resamples=100).pure.b, rel=1e-7)


def test_every_combination_is_counted_in_one_analysis(table: pd.DataFrame) -> None:
    assert not table.duplicated(list(CHOICES)).any()
    pure = table[table["form"] == "pure"]
    # Here 3 N D is what is counted anyway, so "3 N D, all parameters" is never an analysis.
    assert set(pure["compute"]) == {"training MACs"}
    frontiers = len(METHODS) - 1  # bins are for rows without budgets
    assert pure["alike"].sum() == 2 * frontiers * len(CORNERS) * 3
    assert np.isfinite(table["b"]).all() and (table["b"] < 0).all()


def test_distinct_analyses_differ_and_say_what_they_stand_for(table: pd.DataFrame) -> None:
    for _, one in table.groupby(["form", "points_fitted"]):
        gap = np.diff(np.sort(one["b"]))
        # The same exponent twice only where other points gave it.
        assert (gap > 1e-7).all()
    assert (table["alike"] >= 2).all()
    assert table["shares"].str.contains("compute: training MACs, 3 N D, all parameters").all()
    said = alike_text(table)
    assert said.startswith(f"{table['alike'].sum() - len(table)} lead to the points and fit")


def test_a_robust_corner_that_no_residual_reaches_is_least_squares() -> None:
    """Nearly no noise: the corner of 1% is squares, that of 0.1% too; all frontiers agree."""
    rows = study(PURE, sizes=7, budgets=6, run_noise=0, point_noise=1e-5, seed=2)
    found = specifications(rows[["run_id", *rows.columns.drop("run_id")]])
    whole = found[(found["form"] == "pure") & (found["points"] == "all")]
    assert (whole["shares"].str.contains("corner: 1%, 0.1%, squares")).any()
    assert whole["corner"].eq("1%").all()


def test_what_differs_is_not_merged(rows: pd.DataFrame) -> None:
    """A head that shrinks with size makes every way to count compute an analysis of its own."""
    share = 0.5 * (rows["params"] / rows["params"].min()) ** -0.3
    found = specifications(rows.assign(macs_head=share * rows["macs_total"]))
    kinds = found.loc[found["form"] == "pure", "compute"].value_counts()
    assert set(kinds.index) == {"training MACs", "without the head"}


def test_least_squares_is_numpy_s(rows: pd.DataFrame) -> None:
    last = rows["budget_macs"] == rows["budget_macs"].max()  # a wild budget: the corners differ
    rows = rows.assign(val_loss=rows["val_loss"] * np.where(last, 1.08, 1.0))
    points = frontier(rows)
    slope = np.polyfit(np.log(points["macs_total"]), np.log(points["val_loss"]), 1)[0]
    one = specifications(rows)
    one = one[(one["corner"] == "squares") & (one["form"] == "pure") & (one["points"] == "all")]
    one = one[(one["compute"] == "training MACs") & (one["frontier"] == "budget")]
    assert one["b"].tolist() == pytest.approx([slope], rel=1e-7)


def test_what_is_counted_moves_the_exponent(rows: pd.DataFrame) -> None:
    """Embeddings that do not grow make small models dearer, so the exponent changes."""
    embedding = 5e4
    with_columns = rows.assign(
        params=rows["params"] + embedding, params_non_embedding=rows["params"],
        macs_head=0.1 * rows["macs_total"], macs_attention=0.2 * rows["macs_total"],
    )  # fmt: skip
    found = specifications(with_columns)
    assert set(found["compute"]) == {"training MACs", "3 N D, all parameters"}
    main = found[found["main"] & (found["form"] == "pure")].iloc[0]
    # A constant share of the compute changes no exponent: one analysis, and it says so.
    same = "training MACs, without the head, without attention, 3 N D, without embeddings"
    assert f"compute: {same}" in main["shares"]
    plain = found[(found["frontier"] == "budget") & (found["corner"] == "1%")]
    plain = plain[(plain["points"] == "all") & (plain["form"] == "pure")]
    b = dict(zip(plain["compute"], plain["b"], strict=True))
    assert abs(b["3 N D, all parameters"] / b["training MACs"] - 1) > 0.01


def test_spread(table: pd.DataFrame) -> None:
    found = {row["form"]: row for row in spread(table).to_dict("records")}
    pure = table.loc[table["form"] == "pure", "b"].to_numpy()
    assert [found["pure"][k] for k in ("count", "min", "median", "max")] == [
        len(pure), pure.min(), np.median(pure), pure.max(),
    ]  # fmt: skip


def test_the_run_that_spoils_the_law_is_on_top(rows: pd.DataFrame) -> None:
    points = frontier(rows)
    victim = points["run_id"].iloc[-1]
    last = rows["budget_macs"] == rows["budget_macs"].max()
    spoilt = rows.copy()
    spoilt.loc[last & (rows["run_id"] == victim), "val_loss"] *= 0.9
    found = influence(spoilt)
    assert victim in found["left_out"].iloc[0] or found["kind"].iloc[0] == "budget"
    assert victim in found.loc[found["kind"] == "run", "left_out"].iloc[0]
    assert found["change"].abs().is_monotonic_decreasing
    # Without a run the law is the law of the remaining rows.
    again = fit_frontier(spoilt[spoilt["run_id"] != victim], resamples=100).pure.b
    mine = found[found["left_out"].str.contains(victim)]
    assert mine["b"].tolist() == pytest.approx([again], rel=1e-7)


def test_of_many_seeds_those_that_move_most_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [study(TRUTH, seed=k).assign(seed=k) for k in range(6)]
    many = pd.concat(seeds, ignore_index=True)
    many["run_id"] = many["seed"].astype(str) + "-" + many["run_id"]
    every = influence(many)
    monkeypatch.setattr(choices, "APART", 6)
    few = influence(many)
    runs = every[every["kind"] == "run"].reset_index(drop=True)
    asked = few[few["kind"] == "run"].reset_index(drop=True)
    assert len(runs) > 20 and len(asked) == 6 and few["kind"].eq("budget").sum() == 5
    pd.testing.assert_frame_equal(asked[:1], runs[:1])


def test_a_run_has_its_own_size_not_that_of_its_point(rows: pd.DataFrame) -> None:
    """Points are made of several sizes here."""
    own = rows.drop_duplicates("run_id").set_index("run_id")["size"]
    found = influence(rows)
    for name in found["left_out"][found["kind"] == "run"]:
        size, run = name.removesuffix(")").split(" (")
        assert own[run] == size


def test_influence_of_what_is_no_law_is_refused() -> None:
    with pytest.raises(NotIdentified):
        influence(study(PURE, sizes=4, budgets=1))


def test_no_identified_combination_is_refused() -> None:
    with pytest.raises(NotIdentified, match="no combination of choices"):
        specifications(study(PURE, sizes=4, budgets=1))


def test_a_cloud_of_runs_has_a_main_specification() -> None:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(5, 8, 60), 10 ** rng.uniform(7, 10, 60)
    rows, _ = read(pd.DataFrame({"N": n, "D": d, "loss": PURE(n, d)}))
    table = specifications(rows)
    main = table[table["main"] & (table["form"] == "pure")]
    assert main["frontier"].tolist() == [fit_frontier(rows, resamples=100).method]
    assert main["b"].iloc[0] == pytest.approx(fit_frontier(rows, resamples=100).pure.b, rel=1e-7)
