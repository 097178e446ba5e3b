"""How the best size grows with compute: every method, its interval, and when it says nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.best_size import MIN_SIZES, Grid, frontier_sizes, interpolated
from scaling.analysis.questions.isoflop import AT_BUDGETS, approaches, minima, size_laws
from scaling.analysis.questions.isoflop_table import table_of, with_budgets
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.questions.simulate import TRUTH, Truth, study
from scaling.analysis.questions.size_law import METHODS, minima_text, summary
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder

QUIET: dict[str, Any] = dict(run_noise=0.0, point_noise=1e-5)
EPOCH = Truth(e=1.8172, a=477.83, alpha=0.34731, b=2143.42, beta=0.36717)
HOFFMANN = Truth(e=1.69, a=406.4, alpha=0.34, b=410.7, beta=0.28)
# The same sizes at every budget, as published tables have them (in MACs: half the FLOPs).
LADDER: dict[str, Any] = dict(
    sizes=np.geomspace(1e6, 3e9, 12).tolist(), budgets=(np.geomspace(1e17, 1e20, 8) / 2).tolist(),
    reach=1e9, trunks=False, run_noise=0.0,
)  # fmt: skip


def of_parabolas(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["method"] == "parabola"].reset_index(drop=True)


def exact_parabolas(vertices: dict[float, float], bend: float = 0.02) -> pd.DataFrame:
    rows = study(
        TRUTH, sizes=np.geomspace(1e5, 3e6, 7).tolist(), budgets=list(vertices), reach=1e9, **QUIET
    )
    vertex = rows["budget_macs"].map(vertices)
    return rows.assign(val_loss=2.0 + bend * np.log(rows["params"] / vertex) ** 2)


def exponent(truth: Truth) -> float:
    return truth.beta / (truth.alpha + truth.beta)


# --- the minimum of a budget


def test_the_vertex_of_a_parabola_is_exact() -> None:
    wanted = {1e12: 3e5, 1e13: 9e5}
    found = of_parabolas(minima(exact_parabolas(wanted), window=np.inf, resamples=100))
    assert found["accepted"].all()
    assert found["vertex"].to_numpy() == pytest.approx(list(wanted.values()), rel=1e-6)
    assert found["params"].to_numpy() == pytest.approx(list(wanted.values()), rel=0.02)
    assert found["val_loss"].to_numpy() == pytest.approx(2.0)
    assert found["curvature"].to_numpy() == pytest.approx(0.02)


def test_a_vertex_is_accepted_only_inside_and_convex() -> None:
    outside = of_parabolas(minima(exact_parabolas({1e12: 1.0, 1e13: 9e5}), resamples=100))
    assert outside["accepted"].tolist() == [False, True]
    assert "outside" in outside["reason"][0]
    upside_down = of_parabolas(minima(exact_parabolas({1e12: 3e5}, bend=-0.02), resamples=100))
    assert upside_down["reason"].tolist() == ["not convex"]
    few = minima(study(TRUTH, sizes=MIN_SIZES - 1, budgets=4, reach=1e9), resamples=100)
    reasons = of_parabolas(few)["reason"]
    assert (reasons == f"{MIN_SIZES - 1} sizes: a parabola needs {MIN_SIZES}").all()


def test_a_window_holds_what_is_near_and_at_least_five_sizes() -> None:
    rows = study(EPOCH, point_noise=0.002, **LADDER)
    for factor, most in ((1.01, 5), (8.0, 6), (np.inf, 12)):
        found = of_parabolas(minima(rows, window=factor, resamples=100))
        assert found["used"].between(5, most).all(), factor
    assert (found["used"] == found["sizes"]).all()


def test_interpolation_finds_the_minimum_of_akima_s_curve() -> None:
    from scipy.interpolate import Akima1DInterpolator

    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 5, 8))
    loss = 2 + 0.1 * (x - rng.uniform(1, 4, (20, 1))) ** 2 + 0.02 * rng.standard_normal((20, 8))
    cells = pd.DataFrame(
        {"budget_macs": 1.0, "macs_total": 1.0, "params": np.exp(x), "weight": 1.0}
    )
    found, least = interpolated(Grid.of(cells), loss[:, None])
    dense = np.linspace(x[0], x[-1], 50001)
    for one, y, at, low in zip(loss, loss, found[:, 0], least[:, 0], strict=True):
        curve = Akima1DInterpolator(x, one)(dense)
        assert low == pytest.approx(curve.min(), abs=1e-7)
        assert abs(at - dense[curve.argmin()]) < 2e-3, y


def test_the_frontier_of_many_resamples_is_that_of_each() -> None:
    from scaling.analysis.questions.frontier import lower_hull

    rng = np.random.default_rng(1)
    log_c = np.sort(rng.integers(0, 12, 40)).astype(float)
    log_n = np.arange(40.0)
    loss = np.exp(-0.05 * log_c + 0.05 * rng.standard_normal((30, 40)))
    inside = np.zeros(40, bool)
    for hull in (False, True):
        found, costs = frontier_sizes(log_c, log_n, inside, loss, hull)
        for one, row in zip(loss, found, strict=True):
            best = [int(np.flatnonzero(log_c == c)[one[log_c == c].argmin()]) for c in costs]
            falls = [i for i, b in enumerate(best) if all(one[b] < one[p] for p in best[:i])]
            if hull:
                falls = [falls[k] for k in lower_hull(costs[falls], np.log(one[best])[falls])]
            assert np.flatnonzero(np.isfinite(row)).tolist() == falls
            assert row[falls].tolist() == [float(best[i]) for i in falls]


# --- laws


@pytest.mark.parametrize("truth", [EPOCH, HOFFMANN], ids=["epoch", "hoffmann"])
def test_a_ladder_without_noise_tells_the_truth(truth: Truth) -> None:
    """Sizes over 3.5 decades, where a parabola through all of them is off by 0.05."""
    rows = study(truth, point_noise=0.0, **LADDER)
    table = approaches(rows, at=5e19, resamples=200).set_index("approach")
    for method in ("parabola", "interpolation", "L(N, D)"):
        row = table.loc[METHODS[method]]
        assert row["params_exponent"] == pytest.approx(exponent(truth), abs=0.002), method
        assert row["tokens_exponent"] == pytest.approx(1 - exponent(truth), abs=0.002), method
        assert row["params"] == pytest.approx(truth.n_opt(5e19), rel=0.02), method
        assert row["params"] * row["tokens"] * 3 == pytest.approx(5e19, rel=0.01), method
    parabola = table.loc[METHODS["parabola"]]
    assert parabola["params_exponent_low"] < exponent(truth) < parabola["params_exponent_high"]
    wide = of_parabolas(minima(rows, window=np.inf, resamples=100))
    plain = np.polyfit(np.log(wide["macs_total"]), np.log(wide["vertex"]), 1)[0]
    assert abs(plain - exponent(truth)) > 0.03


def test_the_shared_ladder_without_noise(shared_data: Path) -> None:
    path = shared_data.parent / "cases/tables/sim_fixed_ladder_noise_free.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    law = next(x for x in size_laws(read(path)[0], resamples=200) if x.method == "parabola")
    low, high = law.exponent_interval
    assert law.exponent == pytest.approx(0.5126, abs=0.005)
    assert low < 0.5126 < high and high - low < 0.01


@pytest.mark.parametrize(
    "truth", [TRUTH, Truth(1.6, 30.0, 0.34, 900.0, 0.44)], ids=["equal", "unequal"]
)
def test_all_methods_agree_with_the_truth(truth: Truth) -> None:
    budgets = np.geomspace(3e11, 3e13, 5).tolist()
    low, high = truth.n_opt([budgets[0], budgets[-1]])
    sizes = np.geomspace(low / 4, high * 4, 40).tolist()
    rows = study(truth, sizes=sizes, budgets=budgets, reach=3.0, trunks=False, **QUIET)
    table = approaches(rows, at=1e13, resamples=200)
    assert (table["refused"] == "").all()
    assert table["params_exponent"].to_numpy() == pytest.approx(exponent(truth), abs=0.03)
    assert np.log(table["params"] / truth.n_opt(1e13)).abs().max() < 0.15


def covered(truth: Truth, methods: tuple[str, ...], studies: int, **design: Any) -> pd.DataFrame:
    """Whether each interval holds the truth: of the exponent, of N* inside and a decade beyond."""
    records = []
    for seed in range(studies):
        rows = study(truth, seed=seed, **design)
        macs = np.unique(rows["budget_macs"])
        # L(N, D) has tests of its own (test_parametric.py).
        for law in size_laws(rows, methods=methods, seed=seed, resamples=300):
            if law.of == "tokens":
                continue
            low, high = law.exponent_interval
            assert low <= law.exponent <= high and low < high
            holds = {"method": law.method, "exponent": low < exponent(truth) < high}
            for where, at in (("inside", float(np.sqrt(macs[0] * macs[-1]))),
                              ("beyond", 10 * float(macs[-1]))):  # fmt: skip
                low, high = law.interval(at)
                assert low <= law(at) <= high and low < high
                holds[where] = low < truth.n_opt(at) < high
            records.append(holds)
    return pd.DataFrame(records).groupby("method").mean()


def test_intervals_hold_the_truth_of_noisy_ladders() -> None:
    methods = ("best run", "parabola", "interpolation", "hull")
    found = covered(EPOCH, methods, studies=20, point_noise=0.005, **LADDER)
    assert (found.mean() >= 0.9).all() and (found >= 0.8).all(axis=None), found


@pytest.mark.parametrize(("sizes", "around"), [(7, 3.0), (7, 10.0)])
def test_intervals_hold_the_truth_of_few_sizes_a_budget(sizes: int, around: float) -> None:
    budgets = (np.geomspace(1e18, 1e21, 6) / 2).tolist()
    found = covered(
        EPOCH, ("parabola",), studies=20, sizes=sizes, around=around, budgets=budgets,
        run_noise=0.0, point_noise=0.01,
    )  # fmt: skip
    assert (found >= 0.8).all(axis=None), found


def test_intervals_hold_the_truth_where_runs_serve_many_budgets() -> None:
    found = covered(TRUTH, ("parabola",), studies=20, run_noise=0.0014, point_noise=0.0014)
    assert (found >= 0.8).all(axis=None), found


def test_sizes_far_apart_are_part_of_the_interval_of_the_best_runs() -> None:
    """With hardly any noise the best sizes tried still miss the best sizes: here 0.529 for 0.5."""
    rows = study(TRUTH, sizes=10, budgets=6, decades=2.5, trunks=False, run_noise=0.0,
                 point_noise=1e-4)  # fmt: skip
    best_runs = size_laws(rows, methods=("best run",), resamples=300)[0]
    assert best_runs.exponent == pytest.approx(0.529, abs=0.001)
    low, high = best_runs.exponent_interval
    assert low < 0.5 < high


def test_no_number_lacks_its_interval_without_a_reason(shared_data: Path) -> None:
    tables = shared_data / "scaling_tables"
    xlstm = pd.read_csv(tables / "xlstm_isoflop_llama_ctx8192.csv")
    named: list[tuple[Any, dict[str, Any]]] = [
        (pd.read_json(tables / "cs336_isoflops_curves.json"),
         dict(n="parameters", c="compute_budget", loss="final_loss", compute_unit="FLOPs")),
        (tables / "chinchilla_epoch_svg_extracted.csv", dict(n="Model Size", c="Training FLOP")),
        (tables / "datablations_296_runs.csv", {}),
        (tables / "misfitting_scaling_results_last_ckpt.csv", dict(loss="loss", n="N", c="C")),
        (tables / "mlfoundations_overtraining_104.csv", dict(n="params", loss="loss_c4_val")),
        (tables / "nanosmol_run_summaries.csv",
         dict(n="total_params", d="total_samples", loss="best_val_loss")),
        (xlstm, dict(n="model/num_params", loss="val/dclm_loss", budget_column="sweep")),
    ]  # fmt: skip
    for source, columns in named:
        rows, _ = read(source, **columns)
        laws = approaches(rows, resamples=200)
        bare = laws.drop(columns=["approach", "refused", "macs", "budgets"]).isna().any(axis=1)
        assert (laws["refused"].ne("") == bare).all(), laws
        for line in summary(laws).splitlines():
            assert "nan" not in line and "inf" not in line.replace("infer", ""), line
        if rows["budget_macs"].notna().any():
            assert "nan" not in minima_text(minima(rows, resamples=200))


# --- budgets, weights


def test_budgets_are_told_by_a_tolerance() -> None:
    rows = study(EPOCH, point_noise=0.002, **LADDER)
    rng = np.random.default_rng(0)
    apart = rows["macs_total"] * rng.uniform(1, 1.4, len(rows))
    off = rows.assign(
        macs_total=apart, tokens=apart / (3 * rows["params"]), budget_macs=np.nan
    )  # fmt: skip
    off["val_loss"] = EPOCH(off["params"], off["tokens"])
    near = with_budgets(off, within=1.5)
    means = np.log(apart).groupby(rows["budget_macs"]).transform("mean")
    assert near["budget_macs"].to_numpy() == pytest.approx(np.exp(means).to_numpy())
    # Losses are moved to their budget's compute, or a run that cost 1.4 times as much would win.
    law = size_laws(near, methods=("parabola",), resamples=100)[0]
    assert law.exponent == pytest.approx(exponent(EPOCH), abs=0.003)
    note = table_of(Ladder.of(near), window=8.0).notes[0]
    assert note.startswith("costs within a budget differ by up to 3")
    assert note in summary(approaches(near, resamples=100))


def test_budgets_that_cannot_be_told_are_refused() -> None:
    rows = study(TRUTH)
    with pytest.raises(ValueError, match="within is 1: give a factor above 1"):
        with_budgets(rows, within=1.0)
    with pytest.raises(ValueError, match="no row has usable compute"):
        with_budgets(rows.assign(macs_total=np.nan), within=1.5)
    with pytest.raises(NotIdentified, match="no nominal budgets: name the column"):
        minima(rows.assign(budget_macs=np.nan))


def test_standard_errors_weigh_and_tell_the_noise() -> None:
    clean = study(EPOCH, point_noise=0.0, **LADDER)
    rng = np.random.default_rng(3)
    error = np.where(rng.random(len(clean)) < 0.3, 0.02, 0.001)
    rows = clean.assign(val_loss=clean["val_loss"] + error * rng.standard_normal(len(clean)))

    def width(frame: pd.DataFrame, **options: Any) -> float:
        law = size_laws(frame, methods=("parabola",), resamples=400, **options)[0]
        low, high = law.exponent_interval
        assert low < exponent(EPOCH) < high
        return high - low

    told = width(rows.assign(se=error), errors="se")
    assert told < 0.5 * width(rows)
    # Errors that the residuals contradict are scaled up to them.
    assert width(rows.assign(se=error / 4), errors="se") > 0.8 * told


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0, "?"])
def test_standard_errors_that_are_none_are_refused(bad: Any) -> None:
    rows = study(TRUTH).assign(se=0.01)
    rows["se"] = rows["se"].astype(object)
    rows.loc[3, "se"] = bad
    with pytest.raises(ValueError, match=r"column 'se' is .* for run 'run.*' \(1 such of"):
        size_laws(rows, errors="se")
    with pytest.raises(ValueError, match="no column 'sd' for a standard error"):
        size_laws(rows, errors="sd")


def test_seeds_narrow_the_interval() -> None:
    one, four = (
        size_laws(
            study(TRUTH, seeds=seeds, trunks=False, run_noise=0.0, point_noise=0.004),
            methods=("parabola",), resamples=400,
        )[0].exponent_interval
        for seeds in (1, 4)
    )  # fmt: skip
    assert 0.3 < (four[1] - four[0]) / (one[1] - one[0]) < 0.8


# --- what is refused


def test_a_wild_run_is_left_out_and_said() -> None:
    rows = study(EPOCH, point_noise=0.002, **LADDER)
    best = int(rows["val_loss"].to_numpy().argmin())
    spoilt = rows.assign(val_loss=rows["val_loss"] * np.where(rows.index == best, 1.1, 1.0))
    table = table_of(Ladder.of(spoilt), window=8.0)
    assert table.notes == (
        f"left out: 1 of {len(rows)} runs, whose loss is too high beside all others' to be noise: "
        f"{rows['run_id'].to_numpy()[best]}",
    )
    law = size_laws(spoilt, methods=("parabola",), resamples=100)[0]
    assert law.exponent == pytest.approx(exponent(EPOCH), abs=0.02)
    assert table_of(Ladder.of(rows), window=8.0).notes == ()


def reasons(rows: pd.DataFrame) -> dict[str, str]:
    table = approaches(rows, resamples=100)
    assert table["params_exponent"].isna().equals(table["tokens_exponent"].isna())
    return dict(zip(table["approach"].map({v: k for k, v in METHODS.items()}), table["refused"],
                    strict=True))  # fmt: skip


def test_rounded_tokens_do_not_move_the_best_size() -> None:
    """A column of "0.18B" is off by up to 3%, and with it the cost per parameter and token."""
    runs = pd.read_csv(Path(__file__).parent / "base_runs.csv")
    table = pd.DataFrame(
        {"N": runs["N"], "D": runs["D"], "flops": runs["budget"], "loss": runs["loss"]}
    )
    rounded = table.assign(D=(runs["D"] / 1e9).round(2) * 1e9)
    exact, found = (minima(read(t)[0], resamples=100) for t in (table, rounded))
    assert (found["reason"] == exact["reason"]).all()
    shift = np.abs(np.log(found["params"] / exact["params"]))
    assert shift[exact["method"] == "parabola"].max() < 0.02  # it was 0.15, and [-0.01, 0.42]


def test_one_budget_and_two_budgets_are_refused() -> None:
    budgets = np.unique(study(TRUTH)["budget_macs"])
    for count in (1, 2):
        rows = study(TRUTH)
        found = reasons(rows[rows["budget_macs"].isin(budgets[:count])])
        for method in AT_BUDGETS:
            assert "budgets with a usable optimum: a line needs 3" in found[method], method


def test_two_sizes_are_refused() -> None:
    rows = study(TRUTH, sizes=2, budgets=5, reach=1e9)
    found = reasons(rows)
    assert all(found.values())
    assert "2 sizes: a parabola needs 4" in found["parabola"]
    assert "smallest or the largest" in found["best run"]


def test_optima_at_the_edge_are_refused() -> None:
    rows = study(TRUTH, sizes=np.geomspace(1e7, 1e8, 6).tolist(), budgets=5, reach=1e9)
    found = reasons(rows)
    for method in ("best run", "interpolation"):
        assert found[method] == (
            "0 budgets with a usable optimum: a line needs 3 "
            "(5 of 5: the best size is the smallest or the largest tried)"
        )
    assert "a line needs 3" in found["parabola"]


def test_duplicated_rows_count_once() -> None:
    rows = study(EPOCH, point_noise=0.002, **LADDER)
    again = pd.concat([rows, rows.assign(run_id=rows["run_id"] + "b")], ignore_index=True)
    one, two = (
        size_laws(frame.drop(columns="seed"), methods=("parabola",), resamples=100)[0]
        for frame in (rows, again)
    )
    assert two.exponent == one.exponent
    assert two.exponent_interval == one.exponent_interval
    notes = table_of(Ladder.of(again.drop(columns="seed")), window=8.0).notes
    assert notes[0].startswith(
        f"left out: {len(rows)} of {2 * len(rows)} runs, which have a better"
    )


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"window 1, level 0\.95, resamples 100: want a factor"):
        size_laws(study(TRUTH), window=1, resamples=100)
    with pytest.raises(ValueError, match="method is 'vertex': choose of best run, envelope"):
        size_laws(study(TRUTH), methods=("vertex",))
    law = size_laws(study(TRUTH), methods=("parabola",), resamples=100)[0]
    with pytest.raises(ValueError, match="give a positive number of MACs"):
        law.interval(-1.0)


# --- L(N, D), and published numbers


def test_the_surface_takes_the_study_s_own_cost_per_token() -> None:
    rows = study(TRUTH, trunks=False, run_noise=0.0, point_noise=1e-4)
    law = fit_rows(rows.assign(macs_total=rows["macs_total"] * 1.4), resamples=100)
    assert law.per_token == pytest.approx(3 * 1.4) and law.unit == "MACs"
    assert law.alpha == pytest.approx(TRUTH.alpha, abs=0.05)


def test_published_isoflops(shared_data: Path) -> None:
    """Stanford CS336's table: best runs 0.469; parabolas through all sizes 0.515."""
    rows, _ = read(
        pd.read_json(shared_data / "scaling_tables/cs336_isoflops_curves.json"), n="parameters",
        c="compute_budget", loss="final_loss", compute_unit="FLOPs",
    )  # fmt: skip
    best = size_laws(rows, methods=("best run",), resamples=200)[0]
    assert best.exponent == pytest.approx(0.469, abs=5e-4)
    found = of_parabolas(minima(rows, window=np.inf, resamples=100))
    slope = np.polyfit(np.log(found["macs_total"]), np.log(found["vertex"]), 1)[0]
    assert slope == pytest.approx(0.515, abs=5e-4)
