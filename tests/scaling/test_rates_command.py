"""`scaling fit --form rates` and `scaling predict` of what it saved; refusals; a study's rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import saved_law
from scaling.analysis.questions.rate_doubts import notes_of, unlabelled, with_batch
from scaling.analysis.questions.rate_study import StudyRates, rate_points, study_rates
from scaling.analysis.questions.saved_rates import SavedRates
from scaling.analysis.tables.reading import read
from scaling.errors import UserError
from tests.analysis.sweep_truth import TRUTH, simulated
from tests.shell import scaling


def table(seed: int = 3, sizes: int = 4) -> pd.DataFrame:
    """A simulated sweep as people keep it; runs that diverged have a loss of 11."""
    frame = pd.DataFrame(simulated(seed)).drop(columns="batch")
    frame = frame[frame["n"].isin(sorted(frame["n"].unique())[:sizes])]
    frame["loss"] = frame["loss"].replace(np.inf, 11.0)
    return frame.rename(columns={"n": "params", "d": "tokens"})


@pytest.fixture(scope="module")
def found() -> StudyRates:
    return study_rates(read(table(), history=False)[0])


def test_held_out_size_and_divergence(found: StudyRates) -> None:
    held = found.held
    assert held is not None
    assert held.n == 64e7
    assert held.r2 > 0.5
    assert held.r2_finite > 0.5
    assert held.diverged > 0
    assert held.octaves < 1
    assert found.divergence is not None
    assert found.divergence.loss == pytest.approx(11.0)
    value, low, high = found.law.exponents["lr ~ N"]
    assert low < TRUTH["lr ~ N"] < high
    text = found.summary()
    assert "of those that did not diverge" in text
    assert f"exponent {value:+.3f}" in text


def test_saved_law_predicts_as_it_did(found: StudyRates, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(saved_law.text(found, ["said while reading"]), encoding="utf-8")
    saved = saved_law.load(path)
    assert isinstance(saved, SavedRates)
    assert saved.law.exponents == found.law.exponents
    assert saved.warnings[0] == "said while reading"
    points = pd.DataFrame(
        {"N": [4e7, 4e7, 4e10, 4e7], "D": 6e9, "lr": 2.0 ** np.array([-9, -5, -9, 2])}
    )
    told, texts = saved.predict(points.assign(refused=""))
    truth = (1.8 + 400 / 4e7**0.34 + 410 / 6e9**0.28) * 1.0
    assert told["low"][0] < told["loss"][0] < told["high"][0]
    assert told["loss"][0] == pytest.approx(truth, rel=0.02)
    assert told["diverges"][1] > 0.5 > told["diverges"][0]
    assert "does not diverge" in texts[1]
    assert "+10.9 octaves from the best one" in texts[3]
    assert "it diverges with probability" in texts[3]
    assert np.isnan(told["loss"][3])
    assert "up to 4 times" in told["refused"][2]
    assert np.isnan(told["loss"][2])
    content = path.read_text(encoding="utf-8").replace('"left_out": [[', '"left_out": [["x", ')
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="rate and batch lacks or spoils"):
        saved_law.load(path)


def test_the_command(tmp_path: Path) -> None:
    source, law, figure = (tmp_path / name for name in ("sweep.csv", "law.json", "law.html"))
    table(sizes=3).to_csv(source, index=False)
    args = ["fit", str(source), "--form", "rates", "--no-history"]
    out = scaling(*args, "--save", str(law), "--figure", str(figure))
    assert "every run counts" in out
    assert "lr ~ N       exponent" in out
    assert figure.exists()
    points = pd.read_csv(figure.with_suffix(".points.csv"))
    assert {"octaves", "above", "law", "diverged"} <= set(points)
    asked = tmp_path / "points.csv"
    asked.write_text("N,D\n4e7,6e9\n", encoding="utf-8")
    assert "rate 0.00" in scaling("predict", str(law), str(asked))
    assert "a law of rate and batch" in scaling("predict", str(law), "--at", "1e20", code=2)
    assert "does not read it" in scaling(*args, "--at", "1e20", code=2)
    table().drop(columns="lr").to_csv(source, index=False)
    assert "no column of the learning rate" in scaling(*args, code=2)


def test_parametrisations_do_not_mix() -> None:
    rows = read(table(), history=False)[0]
    rows["parametrization"] = np.where(rows["params"] > 1e8, "mup", "standard")
    with pytest.raises(UserError, match="several parametrisations \\(mup, standard\\)"):
        rate_points(rows)


def test_settings_that_no_column_tells_are_said() -> None:
    plain = table(sizes=3)
    rng = np.random.default_rng(0)
    other = plain.assign(loss=plain["loss"] * np.exp(0.01 * rng.standard_normal(len(plain))))
    mixed = rate_points(read(pd.concat([plain, other]), history=False)[0])
    assert any("no seed tells them apart" in text for text in unlabelled(mixed))
    seeds = pd.concat([plain.assign(seed=0), other.assign(seed=1)])
    assert unlabelled(rate_points(read(seeds, history=False)[0])) == []


def test_copies_logarithms_and_rates_of_two_columns() -> None:
    plain = table()
    twice, notes = read(pd.concat([plain, plain]), history=False)
    assert len(rate_points(twice)) == len(plain)
    assert any("are copies and are left out" in note for note in notes)
    log = plain.assign(lr=np.log2(plain["lr"])).rename(columns={"lr": "log2_lr"})
    rows, notes = read(log, history=False)
    np.testing.assert_allclose(rate_points(rows)["lr"], plain["lr"])
    assert "learning rate: log2 undone" in notes
    _, notes = read(plain.assign(peak_lr=plain["lr"] * 3), history=False)
    told = "beware: learning rate: column 'lr', not 'peak_lr', which differs: rename the one"
    assert any(told in note for note in notes_of(notes))
    with pytest.raises(UserError, match="the first: N 1e\\+07, D 1e\\+09, lr -14"):
        rate_points(read(plain.assign(lr=np.log2(plain["lr"])), history=False)[0])


def test_a_run_without_its_batch_is_left_out() -> None:
    frame = pd.DataFrame(simulated(3, batch=True)).rename(columns={"n": "params", "d": "tokens"})
    text = frame["batch"].map(lambda one: f"{one / 2**20}M").astype(object)
    frame["batch_tokens"] = text.where(frame.index != 3, None)
    points = rate_points(read(frame.drop(columns="batch"), history=False)[0])
    left, said = with_batch(points)
    assert len(left) == len(points) - 1
    assert said == [f"1 of {len(points)} runs have no batch, and are left out"]


def test_tokens_of_whole_batches_are_one_cell() -> None:
    plain = table()
    rng = np.random.default_rng(0)
    near = plain.assign(tokens=plain["tokens"] * (1 + 0.002 * rng.random(len(plain))))
    points = rate_points(read(near, history=False)[0])
    assert points.groupby(["n", "d"]).ngroups == 12
    assert points.attrs["merged"] == [
        f"tokens within 1% of one another count as one: {len(plain)} values as 3"
    ]
    np.testing.assert_allclose(points["d"], plain["tokens"], rtol=0.003)
    tokens = 2.0**18 * (1 + 0.001 * rng.standard_normal(len(plain)))
    points = rate_points(read(plain.assign(batch_tokens=tokens), history=False)[0])
    assert points["batch"].nunique() == 1
    with pytest.raises(UserError, match=r"no rate is a number \(the first is '2\^-9'\)"):
        rate_points(read(plain.assign(lr="2^-9"), history=False)[0])
    tied = plain.assign(weight_decay=1e-5 / plain["lr"])
    notes = notes_of(read(tied, history=False)[1])
    assert any("beware: 'weight_decay' too, and the law knows" in note for note in notes)


def test_what_is_no_sweep_is_told() -> None:
    rows = read(table(), history=False)[0]
    with pytest.raises(UserError, match="all positive numbers"):
        rate_points(rows.assign(lr=0.0))
    with pytest.raises(NotIdentified, match="bracket their optimum"):
        study_rates(rows.assign(val_loss=3 + 0.01 * np.log2(rows["lr"].astype(float))))
    rng = np.random.default_rng(0)
    with pytest.raises(NotIdentified, match="opens upwards"):
        study_rates(rows.assign(val_loss=np.exp(0.1 * rng.standard_normal(len(rows)))))
    few = rows[
        np.isin(np.log2(rows["lr"].to_numpy(float)), [-12.0, -10.0, -8.0])
    ]  # three rates: no room beside levels
    text = study_rates(few).summary()
    assert "lr ~ N       exponent" in text


def test_no_noise_is_said() -> None:
    rows = read(table(), history=False)[0]
    off = np.log2(rows["lr"].astype(float)) + 9.5
    exact = rows.assign(val_loss=3 * np.exp(0.005 * off**2))
    assert "no interval means anything" in study_rates(exact).summary()
