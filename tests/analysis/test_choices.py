"""The exponent under other choices, and without single runs."""

import numpy as np
import pandas as pd
import pytest

from analysis.choices import CHOICES, CORNERS, influence, specifications, spread
from analysis.frontier import fit_frontier, frontier
from analysis.laws import NotIdentified
from analysis.simulate import PURE, study
from analysis.tables import read


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


def test_every_combination_is_there_once(table: pd.DataFrame) -> None:
    assert not table.duplicated(list(CHOICES)).any()
    pure = table[table["form"] == "pure"]
    assert set(pure["compute"]) == {"training MACs", "3 N D, all parameters"}
    assert len(pure) == 2 * 3 * len(CORNERS) * 3
    assert np.isfinite(table["b"]).all() and (table["b"] < 0).all()


def test_least_squares_is_numpy_s(rows: pd.DataFrame, table: pd.DataFrame) -> None:
    points = frontier(rows)
    slope = np.polyfit(np.log(points["macs_total"]), np.log(points["val_loss"]), 1)[0]
    one = table[table["main"] | (table["corner"] == "squares")]
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
    assert set(found["compute"]) == {
        "training MACs", "without the head", "without attention", "3 N D, all parameters",
        "3 N D, without embeddings",
    }  # fmt: skip
    plain = found[(found["frontier"] == "budget") & (found["corner"] == "1%")]
    plain = plain[(plain["points"] == "all") & (plain["form"] == "pure")]
    b = dict(zip(plain["compute"], plain["b"], strict=True))
    assert b["without the head"] == pytest.approx(b["training MACs"]), "a constant share"
    assert abs(b["3 N D, all parameters"] / b["3 N D, without embeddings"] - 1) > 0.01


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
    assert main["frontier"].tolist() == ["envelope"]
    assert main["b"].iloc[0] == pytest.approx(fit_frontier(rows, resamples=100).pure.b, rel=1e-7)
