"""From rows to a law: which rows count, the frontier, the interval, what is printed."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.best_loss import best_loss
from scaling.analysis.questions.frontier import fit_frontier, frontier
from scaling.analysis.questions.simulate import PURE, TRUTH, Truth, frontier_exponent, study
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return study(PURE, sizes=6, budgets=5, seed=3)


def spoiled(rows: pd.DataFrame) -> pd.DataFrame:
    """The study plus one row for every rule, each with the lowest loss of all."""
    extra = rows.iloc[[0] * 11].assign(val_loss=0.5, run_id=[f"bad{i}" for i in range(11)])
    extra = extra.reset_index(drop=True).astype({"budget_macs": float, "params": float})
    extra.loc[0, "role"] = "lr_sweep"
    extra.loc[1, "role"] = "single"
    extra.loc[2, "status"] = "diverged"
    extra.loc[3, "status"] = "failed"
    extra.loc[4, "decayed"] = False
    extra.loc[5, "val_loss"] = np.nan
    extra.loc[6, "params"] = -1.0
    extra.loc[7, "budget_macs"] = np.nan
    extra.loc[8, "role"] = "repeat"
    extra.loc[9, "role"] = "tuning"
    extra.loc[10, "role"] = "repeated"
    return pd.concat([rows, extra], ignore_index=True)


def test_every_rule_leaves_out_its_row_and_counts_it(rows: pd.DataFrame) -> None:
    ladder = Ladder.of(spoiled(rows))
    kept, excluded = ladder.kept(budgets=True), ladder.left_out(budgets=True)
    assert len(kept) == len(rows)
    counts = dict(excluded)
    assert counts.pop("no usable compute") == 0
    assert set(counts.values()) == {1} and len(counts) == 11


def test_rows_left_out_do_not_touch_the_law(rows: pd.DataFrame) -> None:
    clean, dirty = fit_frontier(rows, resamples=300), fit_frontier(spoiled(rows), resamples=300)
    assert dirty.law.b == clean.law.b and dirty.law.ci == clean.law.ci
    assert "1 rows: diverged" in dirty.summary() and "no row" in clean.summary()


def test_the_lowest_runs_are_the_minimum_over_sizes(rows: pd.DataFrame) -> None:
    points = frontier(rows, method="lowest")
    best = rows.groupby("budget_macs")["val_loss"].min()
    assert points["val_loss"].to_numpy() == pytest.approx(best.to_numpy())
    assert points["macs_total"].is_monotonic_increasing


def many_sizes(noise: float, seed: int, sizes: int = 12, reach: float = 3.0) -> pd.DataFrame:
    """The field's commonest table: `sizes` single runs within `reach` of each budget's optimum."""
    truth, rng = Truth(1.8169, 482.01, 0.3478, 2085.43, 0.3658), np.random.default_rng(seed)
    budget = np.repeat(np.geomspace(5e16, 5e19, 8), sizes)
    n = truth.n_opt(budget) * np.tile(np.geomspace(1 / reach, reach, sizes), 8)
    d = budget / (3 * n)
    loss = truth(n, d) * np.exp(noise * rng.standard_normal(len(n)))
    return pd.DataFrame(
        {
            "run_id": [f"run{i}" for i in range(len(n))], "role": "ladder", "status": "finished",
            "decayed": True, "seed": 0, "size": [f"n{v:.3g}" for v in n], "params": n, "tokens": d,
            "macs_total": budget, "budget_macs": budget, "val_loss": loss,
            "truth": truth.frontier(budget),
        }
    )  # fmt: skip


def test_the_best_size_is_not_the_luckiest_run() -> None:
    """Of twelve sizes within 1% the lowest run is 1% low; the frontier's point is right, and so is
    the interval (of the lowest runs' law it held the truth in 0 of 30 such studies)."""
    law = Truth(1.8169, 482.01, 0.3478, 2085.43, 0.3658)
    lowest, point, held = [], [], 0
    for seed in range(20):
        rows = many_sizes(0.01, seed)
        points = frontier(rows)
        truth = rows.groupby("budget_macs")["truth"].first().to_numpy()
        point.append(np.log(points["val_loss"] / truth).mean())
        lowest.append(np.log(points["lowest_loss"] / truth).mean())
        ahead = fit_frontier(rows, form="saturating", resamples=300).law.predict(2e18)
        held += bool(ahead.low <= law.frontier(2e18) <= ahead.high)
        assert ahead.low < ahead.loss < ahead.high
    assert np.mean(lowest) < -0.008
    assert abs(np.mean(point)) < 4 * 0.0013 / np.sqrt(20)  # 0.13%: a point's mean over 8 budgets
    assert held >= 16
    assert (points["averaged"] >= 6).all()
    assert points["runs"].map(len).tolist() == points["averaged"].tolist()


def test_distant_sizes_keep_their_best_run() -> None:
    """Without noise, sizes a factor 4 apart: nothing is averaged, and the runs are as they are."""
    points = frontier(many_sizes(0.0, 0, sizes=3, reach=4.0))
    assert points["averaged"].tolist() == [1] * 8
    assert points["val_loss"].to_numpy() == pytest.approx(points["lowest_loss"], rel=2e-3)


def test_a_cloud_of_runs_is_read_in_bins_of_compute() -> None:
    """No two runs of one compute: the envelope is low by what luck lowers, bins are not."""
    truth = Truth(1.8169, 482.01, 0.3478, 2085.43, 0.3658)
    bins, envelope = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        macs = 5 * 10 ** rng.uniform(17, 20, 240)
        n = truth.n_opt(macs) * 2 ** rng.uniform(-1, 1, 240)
        rows = many_sizes(0.0, 0, sizes=30).assign(
            params=n, tokens=macs / (3 * n), macs_total=macs, budget_macs=np.nan,
            size=[f"{v:.3g}" for v in n],
            val_loss=truth(n, macs / (3 * n)) * np.exp(0.01 * rng.standard_normal(240)),
        )  # fmt: skip
        law = fit_frontier(rows, resamples=200)
        assert law.method == "binned" and law.points["averaged"].min() >= 3
        points, lowest = law.points, frontier(rows, method="envelope")
        bins.append(np.log(points["val_loss"] / truth.frontier(points["macs_total"])).mean())
        envelope.append(np.log(lowest["val_loss"] / truth.frontier(lowest["macs_total"])).mean())
    assert np.mean(envelope) < -0.005
    assert abs(np.mean(bins)) < 0.0015
    said = fit_frontier(rows, method="envelope", resamples=200).warnings
    assert any("luck lowers it" in text for text in said)
    nameless = rows.assign(params=np.nan, tokens=np.nan)
    assert fit_frontier(nameless, resamples=200).method == "envelope"
    with pytest.raises(NotIdentified, match="choose method envelope"):
        frontier(nameless, method="binned")


def test_envelope_and_hull() -> None:
    table = study(sizes=6, budgets=8, seed=1)
    envelope, hull = frontier(table, method="envelope"), frontier(table, method="hull")
    assert (np.diff(envelope["val_loss"]) < 0).all()
    for point in envelope.itertuples():
        cheaper = table[table["macs_total"] < point.macs_total]
        assert (cheaper["val_loss"] > point.val_loss).all()
    slopes = np.diff(np.log(hull["val_loss"])) / np.diff(np.log(hull["macs_total"]))
    assert (np.diff(slopes) > 0).all()
    assert set(hull["design"]) <= set(envelope["design"])


def test_a_point_is_the_mean_over_its_seeds() -> None:
    """One size at each budget, so that nothing is chosen: eight seeds of 1% noise average to the
    truth, where the lowest of them would be 1.4% below it."""
    budgets = [1e12, 1e13, 1e14]
    truth = np.log(PURE(1e6, np.array(budgets) / 3e6))
    mean, lowest = [], []
    for seed in range(50):
        rows = study(
            PURE, sizes=[1e6], budgets=budgets, reach=1e9, seeds=8, run_noise=0.0,
            point_noise=0.01, seed=seed,
        )  # fmt: skip
        points = frontier(rows)
        mean.append(np.log(points["val_loss"]) - truth)
        lowest.append(np.log(rows.groupby("budget_macs")["val_loss"].min()).to_numpy() - truth)
    assert abs(np.mean(mean)) < 4 * 0.01 / np.sqrt(8 * 50 * 3)
    assert np.std(mean) == pytest.approx(0.01 / np.sqrt(8), rel=0.2)
    assert np.mean(lowest) == pytest.approx(-0.0142, abs=0.001)
    assert points["seeds"].tolist() == [8, 8, 8]
    assert points["runs"].map(len).tolist() == [8, 8, 8]


def test_seeds_narrow_the_interval_as_runs_do() -> None:
    """Four seeds have half of one seed's noise, in the draws as in the points."""
    noise: dict[str, Any] = dict(sizes=10, budgets=6, run_noise=0.002, point_noise=0.002)
    widths = []
    for seeds in (1, 4):
        laws = [fit_frontier(study(PURE, **noise, seeds=seeds, seed=s), form="power", resamples=500)
                for s in range(5)]  # fmt: skip
        widths.append(np.median([np.diff(law.law.ci["b"]) for law in laws]))
        assert ("means over up to 4 seeds" in laws[0].summary()) == (seeds == 4)
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.15)


def test_only_seeds_are_averaged() -> None:
    """Runs of other learning rates, or of one seed, differ in more than chance."""
    rows = study(PURE, sizes=5, budgets=4, seeds=2, seed=1)
    assert (frontier(rows)["seeds"] == 2).all()
    best = rows.groupby("budget_macs")["val_loss"].min().to_numpy()
    for other in (rows.assign(lr=rows["seed"] + 0.5), rows.assign(seed=0)):
        points = frontier(other, method="lowest")
        assert (points["seeds"] == 1).all()
        assert points["val_loss"].to_numpy() == pytest.approx(best)
    nameless = rows.drop(columns="seed")
    assert frontier(nameless)["lowest_loss"].to_numpy() == pytest.approx(best)
    said = fit_frontier(nameless, resamples=200).warnings
    assert any("at 4 of 4 points several runs have the same size" in text for text in said)


def test_edges_are_flagged(rows: pd.DataFrame) -> None:
    largest = rows[rows["params"] <= np.sort(rows["params"].unique())[2]]
    law = fit_frontier(largest, resamples=300)
    assert law.points["edge"].iloc[-1]
    assert any("smallest or largest" in text for text in law.warnings)


def test_the_order_of_rows_does_not_matter(rows: pd.DataFrame) -> None:
    shuffled = rows.sample(frac=1, random_state=0)
    one, other = fit_frontier(rows, resamples=300), fit_frontier(shuffled, resamples=300)
    assert one.law.b == other.law.b
    assert one.law.ci["b"] == pytest.approx(other.law.ci["b"], rel=0.02)
    seeds = study(PURE, seeds=3, seed=3)
    one, other = (fit_frontier(r, resamples=300) for r in (seeds, seeds.sample(frac=1)))
    assert one.law.b == other.law.b


def test_a_study_recovers_its_exponent(rows: pd.DataFrame) -> None:
    law = fit_frontier(rows).pure
    low, high = law.ci["b"]
    assert low < frontier_exponent(PURE, rows["budget_macs"].to_numpy()) < high
    assert 0.001 < high - low < 0.01
    assert "frontier recomputed" in law.status.bootstrap


def test_the_smooth_loss_recovers_the_noise() -> None:
    rows = study(TRUTH, sizes=12, budgets=10, run_noise=0.004, point_noise=0.002, seed=0)
    table = Ladder.of(rows).cells(budgets=True)
    best = best_loss(table, frontier(table, method="lowest"))
    assert best is not None
    assert best.smooth.noise.run == pytest.approx(0.004, rel=0.6)
    assert best.smooth.noise.point == pytest.approx(0.002, rel=0.25)
    truth = TRUTH.frontier(np.sort(table["budget_macs"].unique()))
    assert best.points()["val_loss"].to_numpy() == pytest.approx(truth, rel=0.012)


def test_too_few_cells_fall_back_to_the_points() -> None:
    law = fit_frontier(study(PURE, sizes=2, budgets=3, seed=1), resamples=300).pure
    assert "clusters drawn anew" in law.status.bootstrap


def test_saturating_study_chooses_the_floor_when_it_predicts_better() -> None:
    table = study(TRUTH, sizes=10, budgets=10, decades=3, run_noise=5e-4, point_noise=5e-4, seed=2)
    law = fit_frontier(table, resamples=1000)
    assert law.law is law.saturating and law.saturating is not None
    assert law.saturating.ci["E"][0] < TRUTH.e < law.saturating.ci["E"][1]
    assert law.curvature[1] < 0.01


def test_form_can_be_decided_beforehand(rows: pd.DataFrame) -> None:
    assert fit_frontier(rows, form="power", resamples=300).law.form == "power"
    with pytest.raises(NotIdentified, match="not identified"):
        fit_frontier(rows, form="saturating", resamples=300)


def test_mixed_tokens_are_warned_of(rows: pd.DataFrame) -> None:
    mixed = rows.assign(tokenizer=["a", "b"] * (len(rows) // 2))
    found = fit_frontier(mixed, resamples=300).warnings
    assert any("2 values of tokenizer" in text for text in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.drop(columns="decayed"), "no column decayed"),
        (lambda r: r.assign(role="lr_sweep"), "no row is left to fit: .* rows: learning-rate"),
        (lambda r: r[r["budget_macs"] == r["budget_macs"].min()], "1 distinct value of compute"),
        (lambda r: r.assign(macs_total=r["macs_total"] ** 0.1), "spans 0.17 decades"),
    ],
)
def test_refusals(
    rows: pd.DataFrame, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit_frontier(change(rows), resamples=300)


def test_wrong_method(rows: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="choose one of budget, lowest, binned, envelope, hull"):
        frontier(rows, method="lower")


def test_summary_and_json(rows: pd.DataFrame) -> None:
    law = fit_frontier(rows, resamples=300)
    text = law.summary()
    for words in ("MACs", "95%", "R2", "held out", "GPT-3", "Toto", "decades", "left out"):
        assert words in text
    data = json.loads(json.dumps(law.to_json(), allow_nan=False))
    assert data["law"]["parameters"]["b"] == law.law.b
    assert len(data["points"]) == 5 and data["excluded"][0]["rows"] == 0
    assert [c["other"] for c in data["references"]] == ["GPT-3", "Toto"]


def test_same_seed_same_json(rows: pd.DataFrame) -> None:
    one = fit_frontier(rows, seed=7, resamples=300).to_json()
    assert one == fit_frontier(rows, seed=7, resamples=300).to_json()
    assert one != fit_frontier(rows, seed=8, resamples=300).to_json()


def test_a_law_of_garbage_says_so() -> None:
    """Budgets whose best losses have no relation to compute; and losses that span decades."""
    rng = np.random.default_rng(0)
    macs = np.geomspace(1e10, 1e16, 8).repeat(3)
    n = np.tile([1e5, 2e5, 4e5], 8)
    flat = pd.DataFrame({"N": n, "macs": macs, "loss": 2 * np.exp(0.01 * rng.normal(size=24))})
    wild = flat.assign(loss=(macs / 1e10) ** -0.3 * np.exp(rng.normal(size=24)))
    for table, words in ((flat, "holds 0"), (wild, "scatter by")):
        law = fit_frontier(read(table)[0], resamples=200)
        assert any(words in text for text in law.warnings), law.summary()


def test_a_cloud_s_edge_is_not_spoken_of() -> None:
    rng = np.random.default_rng(1)
    n, d = 10 ** rng.uniform(5, 8, 400), 10 ** rng.uniform(7, 10, 400)
    rows, _ = read(pd.DataFrame({"N": n, "D": d, "loss": TRUTH(n, d)}))
    assert fit_frontier(rows, resamples=100).warnings == ()


def test_overfitting_and_repeated_data_are_named(rows: pd.DataFrame) -> None:
    """A run whose validation loss rises while its training loss falls; data seen often."""
    clean = rows.assign(train_loss=rows["val_loss"], epochs=1.0)
    said = " ".join(fit_frontier(clean, resamples=200).warnings)
    assert "overfitting" not in said and "repeated data" not in said

    last = clean.loc[clean[clean["decayed"]].groupby("run_id")["macs_total"].idxmax()].iloc[-1]
    spoilt = clean.copy()
    own = spoilt["run_id"] == last["run_id"]
    spoilt.loc[own & (spoilt["macs_total"] == last["macs_total"]), "val_loss"] *= 1.2
    spoilt.loc[spoilt["macs_total"] == spoilt["macs_total"].max(), "epochs"] = 9.0
    said = " ".join(fit_frontier(spoilt, resamples=200).warnings)
    assert f"validation loss of {last['size']} rises" in said
    assert "9 times" in said
