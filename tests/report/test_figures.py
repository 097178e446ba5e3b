"""What a figure draws is right, and can be seen: colours, edges, diverged runs, hostile names."""

import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.style import DARK
from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.questions.transfer import learning_rate_points
from tests.report.conftest import BEST_LOG2_LR, BUDGETS_MACS, SIZES, WIDTHS


@pytest.fixture(scope="module")
def drawn(rows: pd.DataFrame, study_law: StudyLaw) -> dict[str, go.Figure]:
    law = study_law.law
    laws = [study_law.pure, study_law.saturating]
    return {
        "rate": figures.learning_rate_figure(learning_rate_points(rows), -6.0),
        "compute": figures.scaling_figure(
            figures.run_points(rows),
            frontier=study_law.points,
            law=figures.law_points(law, 1e11, 1e13),
            slopes={"GPT-3": -0.048, "Toto": -0.0378},
        ),
        "residuals": figures.residual_figure(figures.residual_points(study_law.points, law)),
        "holdout": figures.holdout_figure(figures.holdout_points([one for one in laws if one])),
    }


def named(figure: go.Figure, name: str) -> go.Scatter:
    return next(trace for trace in figure.data if trace.name == name)


# --- what is drawn


def test_learning_rate_points_hold_each_run_once(rows: pd.DataFrame) -> None:
    points = learning_rate_points(rows)
    assert len(points) == len(WIDTHS) * 8
    assert points.run_id.is_unique
    assert list(points.d.unique()) == list(WIDTHS)
    assert int(points.val_loss.isna().sum()) == 2
    best = points[points.best]
    assert list(best.d) == list(WIDTHS), "one optimum a width"
    assert set(best.log2_lr) == {float(BEST_LOG2_LR)}


def test_learning_rate_points_take_the_last_evaluation(rows: pd.DataFrame) -> None:
    sweep = rows[rows.role == "lr_sweep"]
    earlier = sweep.assign(val_loss=0.5, decayed=False, steps=sweep.steps - 1)
    both = pd.concat([sweep, earlier]).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(learning_rate_points(both), learning_rate_points(sweep))


def test_a_diverged_run_with_a_finite_last_loss_is_no_optimum(rows: pd.DataFrame) -> None:
    sweep = rows[rows.role == "lr_sweep"].copy()
    sweep.loc[sweep.status == "diverged", "val_loss"] = 0.1
    points = learning_rate_points(sweep)
    assert points.val_loss.min() > 1 and int(points.val_loss.isna().sum()) == 2


def test_run_points_kinds(rows: pd.DataFrame) -> None:
    points = figures.run_points(rows)
    kinds = points.kind.value_counts()
    assert kinds["decayed"] == len(SIZES) * len(BUDGETS_MACS)
    assert kinds["diverged"] == 1
    assert not points.run_id.str.startswith("lr").any(), "the sweep is not the ladder"


def test_run_points_are_thinned_to_what_a_page_can_draw() -> None:
    runs, evaluations = 100, 1000
    many = pd.DataFrame(
        {
            "run_id": np.repeat([f"r{i}" for i in range(runs)], evaluations),
            "role": "ladder",
            "size": "a",
            "params": 1000,
            "seed": 0,
            "status": "finished",
            "decayed": np.tile(np.arange(evaluations) == evaluations - 1, runs),
            "macs_total": np.tile(np.arange(1, evaluations + 1) * 1e9, runs),
            "tokens": 1,
            "val_loss": 2.0,
        }
    )
    points = figures.run_points(many)
    assert int((points.kind == "mid").sum()) <= figures.DRAWN_POINTS
    assert int((points.kind == "decayed").sum()) == runs, "what the law rests on is never thinned"
    first = points[points.kind == "mid"].groupby("run_id").macs_total.min()
    assert (first == 1e9).all(), "each run's curve begins where it began"


def test_residuals_are_relative_to_the_law() -> None:
    points = pd.DataFrame({"macs_total": [1e10, 1e12], "val_loss": [2.02, 0.99], "size": "a"})
    step: Any = lambda macs: np.where(macs < 1e11, 2.0, 1.0)  # noqa: E731
    table = figures.residual_points(points, step)
    np.testing.assert_allclose(table.residual_percent, [1.0, -1.0])


def test_holdout_points_are_the_laws_own(study_law: StudyLaw) -> None:
    table = figures.holdout_points([study_law.pure])
    assert list(table.macs_total) == [h.compute for h in study_law.pure.holdout]
    np.testing.assert_allclose(
        table.error_percent, 100 * (table.predicted / table.actual - 1), atol=1e-12
    )


def test_law_points_lie_on_the_law_inside_its_interval(study_law: StudyLaw) -> None:
    table = figures.law_points(study_law.law, 1e11, 1e13)
    predicted = [study_law.law.predict(float(macs)).loss for macs in table.macs_total]
    np.testing.assert_allclose(table.loss, predicted)
    # Of all forms together, which inside the data say what the chosen one says.
    np.testing.assert_allclose(table.loss, study_law.law(table.macs_total.to_numpy()), rtol=2e-3)
    assert (table.low <= table.loss).all() and (table.loss <= table.high).all()
    np.testing.assert_allclose(table.macs_total.iloc[[0, -1]], [1e11, 1e13])


# --- how it is drawn


def test_diverged_runs_are_visible_inside_the_axes(drawn: dict[str, go.Figure]) -> None:
    assert len(named(drawn["rate"], "diverged").x) == 2
    cross = named(drawn["compute"], "diverged")
    low, high = (10**edge for edge in drawn["compute"].layout.yaxis.range)
    assert len(cross.x) == 1 and low < cross.y[0] < high


def test_decayed_points_and_law_lie_inside_the_axes(drawn: dict[str, go.Figure]) -> None:
    low, high = (10**edge for edge in drawn["compute"].layout.yaxis.range)
    shown = [t for t in drawn["compute"].data if t.mode == "markers" or t.name == "law"]
    assert len(shown) >= len(SIZES) + 2
    for trace in shown:
        values = np.asarray(trace.y, float)
        assert ((low < values) & (values < high)).all(), trace.name


def test_published_slopes_are_drawn_with_their_exponent(drawn: dict[str, go.Figure]) -> None:
    for name, exponent in (("GPT-3, −0.048", -0.048), ("Toto, −0.0378", -0.0378)):
        line = named(drawn["compute"], f"slope of {name}")
        slope = np.diff(np.log(np.asarray(line.y, float))) / np.diff(np.log(np.asarray(line.x)))
        np.testing.assert_allclose(slope, exponent, rtol=1e-9)


def test_curves_break_between_runs() -> None:
    points = pd.DataFrame(
        {"run_id": ["a", "a", "b"], "macs_total": [1.0, 2, 3], "val_loss": [3.0, 2, 1]}
    )
    x, y = figures._broken_lines(points)
    np.testing.assert_array_equal(x, [1, 2, np.nan, 3])
    np.testing.assert_array_equal(y, [3, 2, np.nan, 1])


def test_a_decay_starts_at_the_run_s_own_schedule() -> None:
    mid = pd.DataFrame(
        {
            "run_id": ["a", "a", "b"],
            "macs_total": [1.0, 2.0, 1.0],
            "val_loss": [5.0, 4.0, 9.0],
        }
    )
    done = pd.DataFrame({"run_id": ["a", "c"], "macs_total": [1.5, 9.0], "val_loss": [4.2, 3.0]})
    x, y = figures._cooldowns(mid, done)
    np.testing.assert_array_equal(x, [1.0, 1.5, np.nan])
    np.testing.assert_array_equal(y, [5.0, 4.2, np.nan])


def test_user_text_cannot_become_markup(rows: pd.DataFrame) -> None:
    hostile = '<a href="javascript:alert(1)">x</a>'
    points = figures.run_points(rows.assign(size=hostile))
    text = str(figures.scaling_figure(points).to_json())
    assert "<a href" not in text and "&lt;a href" in text


def test_every_colour_has_a_partner_on_a_dark_page(drawn: dict[str, go.Figure]) -> None:
    for name, figure in drawn.items():
        used = {c[:7] for c in re.findall(r"#[0-9a-fA-F]{6,8}", str(figure.to_json()))}
        assert used - {"#000000"} <= set(DARK), name
