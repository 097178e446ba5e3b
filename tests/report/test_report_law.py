"""The sections that question the law print the numbers that analysis gives."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.figures.style import exponent_text
from scaling.analysis.findings import RESAMPLES, Findings, find
from scaling.analysis.questions import choices, isoflop
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.report.data import config_section, position_section
from scaling.analysis.report.law import choices_section, isoflop_section, trust_section
from scaling.analysis.schema import TOKEN_UNIT
from scaling.analysis.tables.ladder import Ladder
from scaling.study.page_sources import read_sources
from scaling.study_folder import Study
from tests.report.conftest import simulated_rows


def words(section: str) -> str:
    """The text of a section, without its figures."""
    section = re.sub(r"<script.*?</script>", "", section, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", section).replace("&nbsp;", " ").replace("\u00a0", " ")
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def found(rows: pd.DataFrame, study_law: StudyLaw) -> Findings:
    return find(rows, study_law)


def isoflops(rows: pd.DataFrame) -> str:
    sizes = find(rows).sizes
    assert sizes is not None
    return words(isoflop_section(sizes, TOKEN_UNIT))


def test_the_three_approaches_and_the_refused_vertices(rows: pd.DataFrame) -> None:
    text = isoflops(rows)
    fits = isoflop.approaches(rows, resamples=RESAMPLES)
    for exponent in [*fits["params_exponent"].dropna(), *fits["tokens_exponent"].dropna()]:
        assert f"{exponent:.3f}" in text
    minima = isoflop.minima(rows, resamples=RESAMPLES)
    minima = minima[minima["method"] == "parabola"]
    assert f"accepted at {int(minima['accepted'].sum())} of {len(minima)} budgets" in text
    for reason in set(minima["reason"]) - {""}:
        assert reason in text


def test_the_approaches_name_their_refusals(rows: pd.DataFrame) -> None:
    two = rows[(rows.role == "ladder") & ~(rows.budget_macs > 5e11)]
    text = isoflops(two)
    assert "2 budgets with a usable optimum: a line needs 3" in text or "usable optimum" in text
    none = rows.assign(budget_macs=float("nan"))
    assert "No decayed point of the ladder has a nominal budget" in isoflops(none)


def test_both_forms_the_prediction_and_the_published_laws(
    rows: pd.DataFrame, study_law: StudyLaw, found: Findings
) -> None:
    text = words(trust_section(study_law, found.forecast, TOKEN_UNIT))
    laws = [law for law in (study_law.pure, study_law.saturating) if law is not None]
    assert len(laws) == 2
    for law in laws:
        assert exponent_text(law.b) in text and f"{law.r2:.4f}" in text
    for comparison in study_law.compare():
        assert comparison.conclusion in text and exponent_text(comparison.difference) in text
    # Both forms are judged on the same budgets.
    both = [{h.compute: h.error for h in law.holdout} for law in laws]
    for errors in both:
        common = [errors[macs] for macs in both[0].keys() & both[1].keys()]
        assert f"{100 * np.sqrt(np.mean(np.square(common))):.2f}%" in text
    top = study_law.points.iloc[-1]
    kept = rows[~(rows.budget_macs >= top.budget_macs * (1 - 1e-9))]
    before = fit_frontier(kept, form=study_law.law.form, resamples=RESAMPLES).law
    promised = before.predict(float(top.macs_total))
    for number in (promised.loss, promised.run_low, promised.run_high, top.val_loss):
        assert f"{number:.4f}" in text
    inside = promised.run_low <= top.val_loss <= promised.run_high
    assert f"measured, {'in' if inside else 'out'}side that" in text


def test_the_largest_bin_of_a_cloud_is_held_out_whole() -> None:
    """Its cheaper runs too: they are part of the point that is to be predicted."""
    rng = np.random.default_rng(0)
    macs, params = 10 ** rng.uniform(11, 14, 120), 10 ** rng.uniform(5, 6, 120)
    tokens = macs / (3 * params)
    cloud = simulated_rows().iloc[[-1] * 120].assign(
        run_id=[f"r{i}" for i in range(120)], role="ladder", decayed=True, status="finished",
        budget_macs=np.nan, macs_total=macs, params=params, tokens=tokens,
        val_loss=(2 + 6 / params**0.25 + 60 / tokens**0.35) * np.exp(rng.normal(0, 0.003, 120)),
    ).reset_index(drop=True)  # fmt: skip
    law = fit_frontier(cloud, resamples=200)
    assert law.method == "binned"
    ladder = Ladder.of(cloud)
    kept = law.smaller(ladder).rows
    top = ladder.binned().rows["budget_macs"].max()
    in_top = cloud[ladder.binned().rows["budget_macs"] == top]
    assert len(in_top) > 5 and in_top.macs_total.min() < law.points.macs_total.iloc[-1]
    assert kept.macs_total.max() < in_top.macs_total.min()
    assert len(kept) + len(in_top) == len(cloud)


def test_other_analysts(rows: pd.DataFrame, study_law: StudyLaw, found: Findings) -> None:
    text = words(choices_section(study_law, found.analysts))
    for row in choices.spread(choices.specifications(rows)).to_dict("records"):
        assert exponent_text(row["min"]) in text and exponent_text(row["max"]) in text
    form = "saturating" if study_law.law.e else "pure"
    moved = choices.influence(rows, form=form)
    first = moved[(moved["kind"] == "run") & moved["b"].notna()].iloc[0]
    assert first["left_out"] in text and exponent_text(first["b"]) in text


def test_what_is_missing_is_said() -> None:
    assert "no law to judge" in trust_section(None, None, TOKEN_UNIT)
    assert "no law whose exponent" in choices_section(None, None)
    assert position_section(None) == ""
    assert "No configuration was given" in config_section(" ")


@pytest.mark.parametrize("content", ["{", '{"loss": [1.0]}', '{"loss": 3, "tokens_per_frame": 4}'])
def test_a_damaged_position_file_is_said(rows: pd.DataFrame, tmp_path: Path, content: str) -> None:
    study = Study(tmp_path)
    study.positions_json.write_text(content)
    shown = read_sources(study, None, rows, "")
    assert "cannot be shown" in position_section(shown.positions)


def test_loss_by_position_says_what_the_frames_tell() -> None:
    first, later = [6.0] * 4, [3.0] * 12
    record = {"size": "a<1>", "tokens_per_frame": 4, "loss": [*first, *later, 0.1]}
    text = words(position_section(record))
    assert "The first frame costs 6" in text and "is worth 3" in text
    assert "a&lt;1&gt;" in text
