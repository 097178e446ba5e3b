"""The figure of several laws: heights, published slopes, the forest plot of exponents."""

import re

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.figures.compare import LEAST, MARGIN, comparison_figure, comparison_points
from scaling.analysis.figures.style import DARK, exponent_text
from scaling.analysis.laws.references import REFERENCES
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from tests.report.conftest import simulated_rows

PUBLISHED = [REFERENCES[name] for name in ("gpt3", "toto", "henighan-video", "kaplan-n")]
Laws = dict[str, StudyLaw]


@pytest.fixture(scope="module")
def laws(study_law: StudyLaw) -> Laws:
    """Two studies, the second four decades up, where GPT-3's law and Toto's were fitted too."""
    far = simulated_rows(seed=1)
    far = far.assign(macs_total=far.macs_total * 10**4, budget_macs=far.budget_macs * 1e4)
    return {"<b>near</b>": study_law, "far": fit_frontier(far, resamples=200)}


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "divided"])
def drawn(laws: Laws, request: pytest.FixtureRequest) -> tuple[pd.DataFrame, bool]:
    return comparison_points(laws, PUBLISHED, divided=request.param), request.param


def of(points: pd.DataFrame, law: str, kind: str) -> pd.DataFrame:
    return points[(points["law"] == law) & (points["kind"] == kind)]


def test_heights_are_losses_or_shares_of_each_laws_own(
    laws: Laws, drawn: tuple[pd.DataFrame, bool]
) -> None:
    points, divided = drawn
    for name, study in laws.items():
        curve, dots = of(points, name, "curve"), of(points, name, "point")
        scale = curve["loss"].iloc[0] if divided else 1.0
        assert dots["loss"].tolist() == study.points["val_loss"].tolist()
        for part in (curve, dots):
            np.testing.assert_allclose(part["height"], part["loss"] / scale)
        assert (curve["low"] <= curve["height"]).all() and (curve["height"] <= curve["high"]).all()


def test_published_laws_are_slopes_where_they_were_fitted(
    laws: Laws, drawn: tuple[pd.DataFrame, bool]
) -> None:
    points, divided = drawn
    top = max(study.law.compute.max() for study in laws.values()) * 10**MARGIN
    for key in ("gpt3", "toto"):
        law = REFERENCES[key]
        curve = of(points, law.name, "curve")
        low, high = law.fitted_macs or (0, 0)
        assert curve["macs_total"].iloc[0] == pytest.approx(low)
        assert curve["macs_total"].iloc[-1] == pytest.approx(min(high, top))
        slopes = np.diff(np.log(curve["height"])) / np.diff(np.log(curve["macs_total"]))
        np.testing.assert_allclose(slopes, law.b, rtol=1e-9)
    assert divided == (of(points, "Toto", "curve")["height"].iloc[0] == pytest.approx(1))
    assert of(points, "Henighan video", "curve").empty, "it is not known where it was fitted"
    assert "Kaplan L(N)" not in set(points["law"])


def test_a_law_that_was_fitted_elsewhere_has_no_curve(laws: Laws) -> None:
    near = {"near": laws["<b>near</b>"]}
    points = comparison_points(near, PUBLISHED)
    top = near["near"].law.compute.max()
    low, _ = REFERENCES["gpt3"].fitted_macs or (0, 0)
    assert low * 10**LEAST > top * 10**MARGIN, "what this test is of"
    assert of(points, "GPT-3", "curve").empty and len(of(points, "GPT-3", "exponent")) == 1
    names = [
        trace.name for trace in comparison_figure(points).data if trace.showlegend is not False
    ]
    assert not any("GPT-3" in str(name) for name in names)
    with pytest.raises(ValueError, match="no fitted law"):
        comparison_points({}, PUBLISHED)


def test_the_forest_holds_every_exponent_with_its_interval(
    laws: Laws, drawn: tuple[pd.DataFrame, bool]
) -> None:
    points, divided = drawn
    figure = comparison_figure(points, divided=divided)
    panels = {"power": "x2", "saturating": "x3"}
    for study in laws.values():
        for law in filter(None, (study.pure, study.saturating)):
            low, high = law.ci["b"]
            (mark,) = [t for t in figure.data if t.xaxis == panels[law.form] and t.x[0] == law.b]
            assert mark.x[0] - mark.error_x.arrayminus[0] == pytest.approx(low)
            assert mark.x[0] + mark.error_x.array[0] == pytest.approx(high)
    lines = {(shape.xref, shape.x0) for shape in figure.layout.shapes}
    assert lines == {("x2", -0.048), ("x2", -0.0378), ("x3", -0.14)}
    texts = " ".join(a.text for a in figure.layout.annotations).replace("\u00a0", " ")
    assert "4.3 × 10¹³ to 1.6 × 10²³" in texts and "not recorded" in texts
    low, high = laws["far"].pure.ci["b"]
    assert f"[{exponent_text(low)}, {exponent_text(high)}]" in texts


def test_what_was_divided_by_what_is_on_the_axis_and_exponents_in_the_legend(
    laws: Laws, drawn: tuple[pd.DataFrame, bool]
) -> None:
    points, divided = drawn
    figure = comparison_figure(points, divided=divided, unit="bits per token")
    title = figure.layout.yaxis.title.text
    assert title == ("loss / own law’s loss at its smallest compute" if divided
                     else "loss (bits per token)")  # fmt: skip
    names = [t.name for t in figure.data if t.name and t.showlegend is not False]
    assert len(names) == 4
    for study, name in zip(laws.values(), [n for n in names if "slope" not in n], strict=True):
        assert exponent_text(study.law.b) in name
        assert ("above a floor of" in name) == bool(study.law.e)
    text = str(figure.to_json())
    assert "<b>near" not in text.replace("\\u003c", "<")
    used = {c[:7] for c in re.findall(r"#[0-9a-fA-F]{6,8}", text)}
    assert used and used <= set(DARK)
