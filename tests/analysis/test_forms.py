"""Forms in one table and forms of one's own: truth, repeated data, choice, refusals, files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scaling.analysis.figures.forms import form_figure, form_points
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.form_fit import fit_form, judge
from scaling.analysis.laws.form_law import FormLaw
from scaling.analysis.laws.formulas import FORMS, Form, form_of
from scaling.analysis.laws.parametric import fit_parametric
from scaling.analysis.laws.repetition import optimum, repetition
from scaling.analysis.questions import saved_law
from scaling.analysis.questions.form_study import fit_study_form
from scaling.analysis.tables import read
from scaling.analysis.tables.points import read_form_points
from scaling.cli import app
from scaling.errors import UserError
from scaling.runs import fit

TRUTH = {"E": 1.87, "A": 521.0, "alpha": 0.35, "B": 1488.0, "beta": 0.35, "R_D": 15.4}


def design() -> dict[str, np.ndarray]:
    """72 runs: 4 sizes, 3 data sets, 6 numbers of epochs."""
    n, u, epochs = np.meshgrid([1e7, 3e7, 1e8, 3e8], [1e8, 4e8, 1.6e9], [1, 2, 4, 8, 16, 40])
    return {"N": n.ravel(), "D": (u * epochs).ravel(), "U": u.ravel()}


def losses(columns: dict[str, np.ndarray], noise: float = 0.002, seed: int = 0) -> np.ndarray:
    form = FORMS["effective_data"]
    loss = form.value(columns, np.array([[TRUTH[name] for name in form.names]]))[0]
    return np.asarray(loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss))))


def table(noise: float = 0.002) -> pd.DataFrame:
    columns = design()
    return pd.DataFrame({
        "params": columns["N"], "tokens": columns["D"], "unique_tokens": columns["U"],
        "val_loss": losses(columns, noise),
    })  # fmt: skip


@pytest.fixture(scope="module")
def repeated() -> FormLaw:
    """At 99%: of six intervals of 95% one in four studies or so excludes its truth."""
    return fit_form(FORMS["effective_data"], design(), losses(design()), resamples=400, level=0.99)


def test_a_known_truth_is_in_the_intervals(repeated: FormLaw) -> None:
    assert repeated.status.converged and repeated.status.basin_share > 0.5
    assert repeated.noise == pytest.approx(0.002, rel=0.3)
    for name, value in TRUTH.items():
        low, high = repeated.ci[name]
        assert low < value < high, name
    assert repeated.ci["R_D"][1] - repeated.ci["R_D"][0] < 2
    far = {"N": 1e9, "D": 2e10, "U": 1.6e9}
    truth = FORMS["effective_data"].value(far, np.array([list(TRUTH.values())]))[0, 0]
    said = repeated.predict(**far)
    assert said.low < truth < said.high and said.run_low < said.low and said.decades > 0
    assert np.isnan(repeated.predict(**(far | {"N": 1e15})).low)


def test_intervals_cover() -> None:
    """Twelve studies here; 1,000 of the shared design in docs/method/forms.md."""
    form = Form("floor", "E + A / N^a", {"E": (0, 5), "A": (1, 1e6), "a": (0.01, 2)})
    n, hits = np.logspace(6, 9, 30), 0
    for seed in range(12):
        noise = 0.002 * np.random.default_rng(seed).standard_normal(30)
        law = fit_form(form, {"N": n}, (1.7 + 400 / n**0.34) * np.exp(noise), resamples=200)
        low, high = law.ci["a"]
        hits += low <= 0.34 <= high
    assert hits >= 9  # of 95% the chance of fewer is 1 in 4,000


def test_without_repetition_it_is_the_law_of_n_and_d() -> None:
    rng = np.random.default_rng(3)
    n, d = 10 ** rng.uniform(7, 10, 50), 10 ** rng.uniform(9, 11.5, 50)
    loss = (1.7 + 400 / n**0.34 + 1500 / d**0.36) * np.exp(0.01 * rng.standard_normal(50))
    mine = fit_form(FORMS["fresh"], {"N": n, "D": d}, loss, resamples=400)
    theirs = fit_parametric(n, d, loss, resamples=400)
    for name, value in zip(("E", "A", "alpha", "B", "beta"), (
        theirs.e, theirs.a, theirs.alpha, theirs.b, theirs.beta), strict=True):  # fmt: skip
        assert mine.values[name] == pytest.approx(value, rel=1e-5)
        ratio = np.ptp(mine.ci[name]) / np.ptp(theirs.ci[name])
        assert 0.6 < ratio < 1.6, name


def test_a_function_of_python_is_as_good_as_a_formula() -> None:
    def mine(*, N: Any, D: Any, U: Any, E: Any, A: Any, alpha: Any, B: Any, R_D: Any) -> Any:
        useful = U * (1 + R_D * (1 - np.exp(-(D / U - 1) / R_D)))
        return E + A / N**alpha + B / useful**0.35

    bounds = FORMS["effective_data"].parameters
    form = Form("mine", mine, {name: ends for name, ends in bounds.items() if name != "beta"})
    law = fit_form(form, design(), losses(design()), resamples=100)
    other = fit_form(
        FORMS["effective_data"].fixed("beta", 0.35), design(), losses(design()), resamples=100
    )
    for name, value in law.values.items():
        assert value == pytest.approx(other.values[name], rel=1e-3)
    with pytest.raises(UserError, match="is a function of Python, which no file can hold"):
        law.to_json()


def test_of_several_forms_held_out_error_chooses() -> None:
    rows, _ = read(table())
    found = fit_study_form(rows, "repeated", resamples=100)
    assert found.law.form.name == "effective_data"
    assert found.choice[0] == "effective_data, of least held-out error"
    assert found.law.held is not None and found.law.held.r2 > 0.99
    text = found.summary()
    assert "without repetition: held-out rms" in text
    # R_N has nothing to hold on to where the truth has no surplus parameters
    assert "not effective is not identified: the best fit rests on a bound (R_N = 1e+04" in text
    assert "a repeated token is worth half a fresh one or more up to epoch 11." in text
    assert not any("seen more than once" in rule for rule, count in found.excluded if count)


def test_answers_are_those_of_the_truth(repeated: FormLaw) -> None:
    said = repetition(repeated, n=1e8, u=4e8)
    for k, answer in said.worth.items():
        truth = 1 + 15.4 * (1 - np.exp(-(k - 1) / 15.4))
        assert answer.low <= truth <= answer.high, k
    half = 1 + 15.4 * np.log(2)
    assert said.half.low < half < said.half.high
    assert "no epoch of the 40" in said.data.refused
    best = optimum(repeated, 6 * 1e8 * 4e9, 4e8, 6.0, "FLOPs")
    grid = np.geomspace(1e7, 3e9, 4001)
    at = {"N": grid, "D": 4e17 / grid, "U": np.full(4001, 4e8)}
    truth = grid[FORMS["effective_data"].value(at, np.array([[*TRUTH.values()]]))[0].argmin()]
    assert best.n.low < truth < best.n.high
    assert best.n.value * best.d.value == pytest.approx(4e17)
    far = optimum(repeated, 1e26, 4e8, 6.0, "FLOPs")
    assert np.isnan(far.n.value) and "no optimum within a factor of 10" in str(far)


def test_repeated_rows_count_where_the_form_has_u() -> None:
    rows, notes = read(table())
    assert (rows["role"] == "repeated").sum() == 60 and "are left out" in " ".join(notes)
    assert len(fit_study_form(rows, "effective_data", resamples=100).law.loss) == 72


@pytest.mark.parametrize(
    ("change", "form", "said"),
    [
        (lambda t: t.assign(unique_tokens=t["tokens"]), "effective_data",
         "0 of 72 runs repeat data: a law of repetition needs at least 3"),
        (lambda t: t[t["tokens"] > t["unique_tokens"]], "effective_data",
         "no run has fresh data alone"),
        (lambda t: t[t["tokens"].isin([u * k for u in (1e8, 4e8, 1.6e9) for k in (1, 8)])
                     & (t["tokens"] / t["unique_tokens"]).isin([1, 8])], "effective_data",
         "repeat data all do so 8 times"),
        (lambda t: t.head(6), "effective_data", "6 distinct runs for 6 parameters"),
        (lambda t: t.assign(params=1e8), "effective_data", r"the same N \(parameters\), 1e\+08"),
        (lambda t: t.assign(val_loss=3.0), "effective_data", "the loss is the same in every run"),
        (lambda t: t.drop(columns="unique_tokens"), "effective_data", "add a column 'epochs'"),
    ],
)  # fmt: skip
def test_what_the_rows_do_not_tell_is_refused(change: Any, form: str, said: str) -> None:
    rows, _ = read(change(table()))
    with pytest.raises(UserError, match=said):
        fit_study_form(rows, form, resamples=100)


def test_two_parameters_that_do_one_thing_are_named() -> None:
    form = Form("twice", "E + F + A / N^a", {
        "E": (0, 5), "F": (0, 5), "A": (1, 1e6), "a": (0.01, 2)
    })  # fmt: skip
    n = np.logspace(6, 9, 20)
    loss = (1.7 + 400 / n**0.34) * np.exp(0.001 * np.random.default_rng(0).standard_normal(20))
    with pytest.raises(NotIdentified, match=r"E, F cannot be told apart|rests on a bound \((E|F)"):
        fit_form(form, {"N": n}, loss, resamples=100)


def test_a_parameter_on_its_bound_is_no_finding() -> None:
    form = Form("narrow", "E + A / N^a", {"E": (0, 1.5), "A": (1, 1e6), "a": (0.01, 2)})
    n = np.logspace(6, 9, 20)
    with pytest.raises(NotIdentified, match=r"rests on a bound \(E = 1.5 of \[0, 1.5\]\)"):
        fit_form(form, {"N": n}, 1.7 + 400 / n**0.34, resamples=100)
    # a number in place of bounds is given, and everything is conditional on it
    given = fit_form(form.fixed("E", 1.7), {"N": n}, 1.7 + 400 / n**0.34, resamples=100)
    assert given.given == {"E": 1.7} and "E" not in given.ci
    assert given.values["A"] == pytest.approx(400)
    assert "were computed and not measured" in given.doubts[-1]


def test_a_formula_without_a_value_is_refused() -> None:
    form = Form("none", "log(E - N)", {"E": (0, 5)})
    with pytest.raises(NotIdentified, match="has no value at these runs anywhere within"):
        fit_form(form, {"N": np.logspace(6, 9, 9)}, np.linspace(3, 2, 9), resamples=100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "a form is `formula"),
        ({"formla": "E"}, "'formla' is no key of a form.*did you mean 'formula'.*`parameters`"),
        ({"formula": "E + N", "parameters": {"E": "x"}}, "neither"),
        ({"formula": "E + N", "parameters": {"E": [2, 1]}}, "2 is above the upper one 1"),
        ({"formula": "E + N", "parameters": {"E": [0, float("inf")]}}, "not both numbers"),
        ({"formula": "E + N", "parameters": {"E": 1.0}}, "none is to be fitted"),
        ({"formula": "E", "parameters": {"E": [0, 1]}}, "a law needs a column"),
        ({"formula": "E + N", "parameters": {"E": [0, 1], "Q": [0, 1]}}, "'Q' is not in"),
        ({"formula": "E + open(N)", "parameters": {"E": [0, 1]}}, "'open' is no function"),
        ({"formula": "E + N", "parameters": {"exp": [0, 1], "E": [0, 1]}}, "'exp' is no name"),
    ],
)
def test_what_is_no_form_is_refused(content: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        form_of(content, "mine.yaml")


def test_a_form_of_ones_own_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "formula: |\n  heads = h / 8\n  E + A / N^alpha + K * heads^2\n"
        "parameters: {E: [0, 10], A: [1, 1e9], alpha: [0.01, 2], K: [0, 1]}\n"
    )
    rng = np.random.default_rng(0)
    n, h = 10 ** rng.uniform(6, 9, 40), rng.integers(1, 17, 40)
    loss = (2 + 300 / n**0.3 + 0.05 * (h / 8) ** 2) * np.exp(0.002 * rng.standard_normal(40))
    runs = pd.DataFrame({"params": n, "tokens": 20 * n, "h": h, "val_loss": loss})
    found = fit(runs, form=path)
    low, high = found.law.ci["K"]
    assert low < 0.05 < high
    with pytest.raises(UserError, match="no column 'h'; the table has"):
        fit(runs.rename(columns={"h": "heads"}), form=path)
    with pytest.raises(UserError, match=r"no (such )?column"):
        fit(runs.drop(columns="h"), form=path)
    with pytest.raises(UserError, match=r"choose one of select, .*did you mean 'effective'"):
        fit(runs, form="efective")
    with pytest.raises(UserError, match="no such file"):
        fit(runs, form=tmp_path / "none.yaml")


def test_a_saved_form_predicts_as_it_did(tmp_path: Path) -> None:
    rows, _ = read(table())
    found = fit_study_form(rows, "effective_data", resamples=100)
    path = tmp_path / "law.json"
    path.write_text(saved_law.text(found))
    saved = saved_law.load(path)
    assert isinstance(saved, saved_law.SavedLaw)
    points, _ = read_form_points(
        pd.DataFrame({"params": [1e9, 1e8], "tokens": [1e10, None], "epochs": [5, 1]}),
        found.law.form.columns,
    )
    told, texts = saved.predict(points)
    assert str(found.law.predict(N=1e9, D=1e10, U=2e9)) == texts[0]
    assert told["loss"][0] == found.law.predict(N=1e9, D=1e10, U=2e9).loss
    assert texts[1].startswith("no loss: D is missing") or "U is missing" in texts[1]
    assert saved.prediction(1e18) == found.prediction(1e18)
    damaged = path.read_text().replace("R_D * (1", "open * (1")
    path.write_text(damaged)
    with pytest.raises(UserError, match="damaged or was edited"):
        saved_law.load(path)


def test_held_out_error_of_the_largest(repeated: FormLaw) -> None:
    assert repeated.held is None
    columns = design()
    law = fit_form(
        FORMS["fresh"], columns, losses(columns), order=columns["N"], held_by="N", resamples=100
    )
    assert law.held is not None and law.held.above == 1e8 and law.held.held == 18


def test_datablations_beside_the_law_without_repetition(shared_data: Path) -> None:
    """Runs above the 80th percentile of compute, from the rest (arXiv 2305.16264's 296 runs)."""
    runs = pd.read_csv(shared_data / "scaling_tables" / "datablations_296_runs.csv")
    columns = {"N": runs["params"], "D": runs["tokens"], "U": runs["unique_tokens"]}
    n, d = runs["params"].to_numpy(), runs["tokens"].to_numpy()
    held = {name: judge(FORMS[name], columns, runs["loss"], n * d) for name in ("fresh", "penalty")}
    assert held["penalty"] is not None and held["fresh"] is not None
    assert held["penalty"].held == 59
    assert held["penalty"].r2 > 0.83 and held["fresh"].r2 < 0.25
    assert held["penalty"].rms < 0.46 * held["fresh"].rms


def test_the_shared_table_of_repeated_data(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "tables" / "sim_repeated_data.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = fit(path, form="effective_data")
    for name, value in (("E", 1.87), ("alpha", 0.35), ("beta", 0.35)):
        low, high = found.law.ci[name]
        assert low <= value <= high, name


def test_every_run_of_a_search_counts_in_a_law_of_the_rate() -> None:
    """The best rate, 0.003 (N / 1e8)^-0.4, and what missing it costs, from runs of four sizes."""
    rng = np.random.default_rng(0)
    n, k = (one.ravel() for one in np.meshgrid([1e7, 3e7, 1e8, 3e8], np.arange(-3, 4)))
    lr = 0.003 * (n / 1e8) ** -0.4 * 2.0**k
    loss = (12 * n**-0.07 + 0.02 * (k * np.log(2)) ** 2) * np.exp(0.001 * rng.standard_normal(28))
    runs = pd.DataFrame({"params": n, "tokens": 20 * n, "lr": lr, "val_loss": loss})
    rows, notes = read(runs)
    assert (rows["role"] == "tuning").sum() == 24 and "best of each cell counts" in " ".join(notes)
    form = Form(
        "rates", "x = log(lr / (lr_0 * (N / 1e8)^a)); A * N^(-alpha) + h * x^2",
        {"A": (1, 1e3), "alpha": (0, 1), "lr_0": (1e-5, 1), "a": (-2, 2), "h": (1e-6, 1)},
    )  # fmt: skip
    law = fit_study_form(rows, form, resamples=400, level=0.99).law
    assert len(law.loss) == 28
    for name, truth in (("lr_0", 0.003), ("a", -0.4), ("h", 0.02), ("alpha", 0.07)):
        low, high = law.ci[name]
        assert low < truth < high, name


def test_the_figure_has_the_points_and_what_is_left_over(repeated: FormLaw) -> None:
    points = form_points(repeated)
    assert len(points) == 72 and points["miss"].abs().max() < 0.01
    drawn = form_figure(points)
    assert len(drawn.data) == 4 and drawn.layout.yaxis.title.text.startswith("observed loss")


def test_the_command_fits_saves_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    monkeypatch.chdir(tmp_path)
    table().to_csv("runs.csv", index=False)
    pd.DataFrame({"params": [1e9], "tokens": [1e10], "epochs": [5]}).to_csv("p.csv", index=False)
    said = run("fit runs.csv --form effective_data --save law.json --figure fit.html --at 1e18")
    assert "60 rows went over their data more than once (up to 40 times) and count" in said
    assert "R_D" in said and "best run     1e+18 MACs on 1.6e+09 unique tokens" in said
    assert (tmp_path / "fit.html").exists() and (tmp_path / "fit.points.csv").exists()
    again = run("predict law.json p.csv")
    assert "row 1        loss 2.7" in again and "above the fitted range" in again
    with pytest.raises(UserError, match="--method hull: --form effective_data does not read it"):
        run("fit runs.csv --form effective_data --method hull")
    with pytest.raises(UserError, match=r"E pinned at 99 is not in"):
        run("fit runs.csv --form effective_data --e 99")


def test_a_column_of_ones_own_may_be_nil(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, drop = (one.ravel() for one in np.meshgrid(np.logspace(7, 9, 8), [-0.1, 0.0, 0.1]))
    loss = (12 * n**-0.07 + 0.5 * drop) * np.exp(0.001 * rng.standard_normal(24))
    form = Form(
        "drop", "A * N^(-alpha) + h * drop", {"A": (1, 1e3), "alpha": (0, 1), "h": (0, 5)}
    )  # fmt: skip
    rows, _ = read(
        pd.DataFrame({"params": n, "tokens": 20 * n, "drop": drop, "val_loss": loss}),
        keep=("drop",),
    )
    found = fit_study_form(rows, form, resamples=100)
    law = found.law
    assert len(law.loss) == 24 and law.values["h"] == pytest.approx(0.5, rel=0.05)
    said = law.predict(N=1e9, drop=0.0)
    assert np.isfinite(said.low)
    assert "drop is farther beyond" in law.predict(N=1e9, drop=5.0).refused
    (tmp_path / "law.json").write_text(saved_law.text(found))
    saved = saved_law.load(tmp_path / "law.json")
    assert isinstance(saved, saved_law.SavedLaw) and isinstance(saved.law, FormLaw)
    assert str(saved.law.predict(N=1e9, drop=0.0)) == str(said)
    with pytest.raises(UserError, match="N is 0: give one positive number"):
        law.predict(N=0, drop=0.0)
