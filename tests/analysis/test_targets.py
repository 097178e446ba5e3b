"""What is best for which target: simulated truths are in the intervals, and what is not told is
refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import targets
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.simulate import TRUTH, study
from tests.analysis.test_quality import table
from tests.report.conftest import simulated_rows
from tests.shell import scaling

FLOOR, CHANCE, STEEP, MIDDLE = 0.2, 0.9, 4.0, 3.0


def curve(loss: np.ndarray) -> np.ndarray:
    return FLOOR + (CHANCE - FLOOR) / (1 + np.exp(STEEP * (MIDDLE - loss)))


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return study(TRUTH, sizes=7, budgets=6, seed=3)


def probed(rows: pd.DataFrame, error: np.ndarray) -> pd.DataFrame:
    """Probes of these errors at layer 2, of eight seeds."""
    rng = np.random.default_rng(5)
    probes = table(rows.assign(layers=3))
    at = dict(zip(zip(rows.run_id, rows.macs_total, strict=True), error, strict=True))
    points = zip(probes.run_id, probes.macs_total, strict=True)
    truth = np.array([at.get(point, np.nan) for point in points])
    noisy = truth * np.exp(rng.normal(0, 0.004, len(probes))) * np.where(probes.layer == 2, 1, 1.1)
    probes["top1"] = np.where(probes.weights == "trained", 1 - noisy, 1 - CHANCE)
    return probes


@pytest.fixture(scope="module")
def found(rows: pd.DataFrame) -> list[targets.Target]:
    probes = probed(rows, curve(rows.val_loss.to_numpy()))
    return targets.targets(rows, {"probe_top1": probes}, resamples=200)


def test_the_curve_is_found(found: list[targets.Target], rows: pd.DataFrame) -> None:
    loss, probe = found
    law = probe.by_loss
    assert law is not None, probe.by_loss_refusal
    for name, true in (("E", FLOOR), ("k", STEEP), ("M", MIDDLE)):
        low, high = law.ci[name]
        assert low < true < high and high - low < 1.5 * true, name
    assert law.given == {"X": pytest.approx(CHANCE)}
    assert not [text for text in probe.warnings if "at one loss" in text]
    assert loss.by_loss is None and "by the loss" not in "\n".join(loss.lines(1e13))


def test_both_steps_lead_to_the_error(found: list[targets.Target], rows: pd.DataFrame) -> None:
    law = fit_frontier(rows).law
    at = 1e13
    told, low, high = found[1].through(law, at)
    assert low < told < high < low + 0.1
    assert low < float(curve(np.array([law(at)]))[0]) < high
    with pytest.raises(NotIdentified, match="no curve"):
        found[0].through(law, at)


def test_a_function_of_the_loss_has_its_best_sizes(found: list[targets.Target]) -> None:
    loss, probe = found
    assert loss.sizes is not None and probe.sizes is not None
    for one in (loss, probe):
        low, high = one.sizes[0].exponent_interval  # type: ignore[index]
        assert low < TRUTH.beta / (TRUTH.alpha + TRUTH.beta) < high
    said = targets.apart(loss, probe, 1e13)
    assert len(said) == 2 and all("not told apart" in text for text in said)
    text = targets.summary(found)
    assert "beside the loss: exponents of N*" in text and "error = E + (X - E)" in text


def test_a_target_that_likes_larger_models_is_told_apart(rows: pd.DataFrame) -> None:
    """And the loss alone does not tell its error."""
    larger = rows.val_loss - 0.09 * np.log(rows.params / rows.params.median())
    probes = probed(rows, curve(larger.to_numpy()))
    loss, probe = targets.targets(rows, {"probe_top1": probes}, resamples=200)
    assert any("at one loss sizes differ" in text for text in probe.warnings)
    assert any(", told apart" in text for text in targets.apart(loss, probe, 2e12))


def test_what_is_not_told_is_refused(rows: pd.DataFrame) -> None:
    flat = probed(rows, np.full(len(rows), 0.5))
    (_, probe) = targets.targets(rows, {"probe_top1": flat}, resamples=100)
    assert probe.by_loss is None and probe.by_loss_refusal
    few = rows[rows.run_id.isin(rows.run_id.head(2))]
    loss, probe = targets.targets(
        few, {"probe_top1": probed(few, curve(few.val_loss.to_numpy()))}, resamples=100
    )
    assert "a curve needs 4" in probe.by_loss_refusal
    assert loss.sizes is None or not np.isfinite(loss.sizes[0].exponent)
    assert "no target has a law" in targets.summary([loss, probe])


def test_points_that_a_target_lacks_are_told(rows: pd.DataFrame) -> None:
    probes = probed(rows, curve(rows.val_loss.to_numpy()))
    best = str(rows.sort_values("val_loss").run_id.iloc[0])
    probes.loc[probes.run_id == best, "top1"] = 1.0
    (_, probe) = targets.targets(rows, {"probe_top1": probes}, resamples=100)
    said = f"of {len(rows)} points have no error above 0 ({best}: 0)"
    assert any(said in text for text in probe.warnings)
    assert said in probe.by_loss_refusal
    half = probes[probes.macs_total > rows.macs_total.median()]
    (_, probe) = targets.targets(rows, {"probe_top1": half}, resamples=100)
    assert any(f"of the ladder's {len(rows)} points" in text for text in probe.warnings)


def test_two_families_are_no_one_law(rows: pd.DataFrame) -> None:
    two = rows.assign(
        git_sha="x", family=np.where(rows.params > rows.params.median(), "toto", "gpt2")
    )
    (loss,) = targets.targets(two, {}, resamples=100)
    assert any("2 values of family in one law" in text for text in loss.warnings)
    assert "beware" in targets.summary([loss])


def test_the_command(tmp_path: Path) -> None:
    rows = simulated_rows()
    study = tmp_path / "s"
    study.mkdir()
    rows.to_csv(study / "rows.csv", index=False)
    said = scaling("targets", str(study), code=2)
    assert "neither probed nor tracked yet" in said and "scaling probe" in said
    probed(rows, curve(rows.val_loss.to_numpy())).to_csv(study / "probes.csv", index=False)
    said = scaling("targets", str(study), "--figure", str(tmp_path / "t.html"))
    assert "loss (nats per token)" in said and "beside the loss: exponents" in said
    drawn = pd.read_csv(tmp_path / "t.points.csv")
    assert drawn.target.nunique() == 2 and (drawn.params_low.dropna() > 0).all()
    assert "no such study" in scaling("targets", str(tmp_path / "nowhere"), code=2)
