"""Figures that question a law, and figures of models and tokens."""

import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from scaling.analysis.figures import law as figures_law
from scaling.analysis.figures import model as figures_model
from scaling.analysis.figures.style import DARK
from scaling.analysis.tables.ladder import Ladder


@pytest.fixture(scope="module")
def specifications() -> pd.DataFrame:
    noise = np.random.default_rng(0)
    b = noise.normal(-0.045, 0.004, 12)
    return pd.DataFrame(
        {
            "b": b,
            "low": b - 0.003,
            "high": b + 0.003,
            "frontier": ["budget", "envelope", "hull"] * 4,
            "warm-up": [True, False] * 6,
            "main": [False] * 4 + [True] + [False] * 7,
        }
    )


def coordinate_records(growth: float) -> list[dict[str, Any]]:
    return [
        {"width": w, "layer": layer, "step": s, "seed": seed, "scale": base * w ** (growth * s)}
        for w in (64, 128, 256)
        for layer, base in (("embedding", 1.0), ("block 1", 2.0), ("logits", 0.5))
        for s in range(4)
        for seed in range(2)
    ]


def all_figures(rows: pd.DataFrame, specifications: pd.DataFrame) -> dict[str, go.Figure]:
    points = Ladder.of(rows).cells(budgets=True)
    minima = pd.DataFrame(
        {
            "budget_macs": sorted(points.budget_macs.unique()),
            "params": 5e4,
            "vertex": 5e4,
            "used_from": 2e4,
            "used_to": 1e5,
            "val_loss": 2.7,
            "curvature": 0.02,
            "accepted": [True, True, True, True, False],
        }
    )
    ordered = figures_law.specification_points(specifications)
    left_out = pd.DataFrame(
        {
            "left_out": [f"<b>run</b> {i}" for i in range(40)],
            "kind": ["run", "budget"] * 20,
            "b": specifications.b.iloc[0],
        }
    )
    return {
        "isoflop": figures_law.isoflop_figure(points, minima),
        "specification": figures_law.specification_figure(
            ordered, ["frontier", "warm-up"], (-0.048, -0.042)
        ),
        "influence": figures_law.influence_figure(left_out, -0.045, (-0.048, -0.042)),
        "coordinate": figures_model.coordinate_figure(
            figures_model.coordinate_points(coordinate_records(0.1))
        ),
        "position": figures_model.position_figure(
            figures_model.position_points(np.linspace(6, 3, 4 * 16 + 1), 16)
        ),
        "ngram": figures_model.ngram_figure(
            figures_model.ngram_points({"a": (np.arange(1000), 1000.0), "<b>": (np.ones(9), 512.0)})
        ),
    }


def test_all_draw_in_colours_that_both_themes_know(
    rows: pd.DataFrame, specifications: pd.DataFrame
) -> None:
    for name, figure in all_figures(rows, specifications).items():
        text = str(figure.to_json())
        used = {c[:7] for c in re.findall(r"#[0-9a-fA-F]{6,8}", text)}
        assert used and used <= set(DARK), name
        assert ("<b>run" not in text and "&lt;b&gt;" in text) or name != "influence"
        assert figure.layout.height and len(figure.data) >= 1


def test_parabolas_pass_through_their_vertex(rows: pd.DataFrame) -> None:
    points = Ladder.of(rows).cells(budgets=True)
    budget = float(points.budget_macs.min())
    minima = pd.DataFrame(
        [
            {
                "budget_macs": budget,
                "params": np.nan,
                "vertex": 4e4,
                "used_from": 2e4,
                "used_to": 1e5,
                "val_loss": 2.9,
                "curvature": 0.1,
                "accepted": False,
            }
        ]
    )
    figure = figures_law.isoflop_figure(points, minima)
    curve = next(t for t in figure.data if t.mode == "lines")
    n, loss = np.asarray(curve.x, float), np.asarray(curve.y, float)
    np.testing.assert_allclose(loss, 2.9 + 0.1 * np.log(n / 4e4) ** 2)
    crosses = [t for t in figure.data if t.marker.symbol == "x-thin"]
    assert len(crosses) == 1, "a vertex that was not accepted is crossed"


def test_specifications_are_ordered_and_every_choice_is_marked(
    specifications: pd.DataFrame,
) -> None:
    ordered = figures_law.specification_points(specifications)
    assert list(ordered.b) == sorted(specifications.b)
    figure = figures_law.specification_figure(ordered, ["frontier", "warm-up"])
    marks = [t for t in figure.data if t.yaxis == "y2"]
    assert len(marks) == 3 + 2
    assert sum(len(t.x) for t in marks) == 2 * len(ordered)
    axis = figure.layout.yaxis2
    labels = dict(zip(axis.ticktext, axis.tickvals, strict=True))
    hull = next(t for t in marks if t.y[0] == labels["hull"])
    assert set(hull.x) == set(ordered["rank"][ordered.frontier == "hull"])
    # The study's own choices come first under their heading, and its exponent stands out.
    assert labels["<b>frontier</b>"] == labels["envelope"] + 1
    own = next(t for t in figure.data if t.name == "this report’s choice")
    assert list(own.y) == specifications.b[specifications.main].tolist()


def test_the_most_influential_run_is_on_top() -> None:
    points = pd.DataFrame(
        {"left_out": ["a", "b", "c"], "kind": ["run", "run", "budget"], "b": [-0.05, -0.02, -0.04]}
    )
    figure = figures_law.influence_figure(points, -0.045)
    assert list(figure.layout.yaxis.categoryarray)[-1] == "b"
    assert {t.name: list(t.y) for t in figure.data} == {
        "without one run": ["a", "b"],
        "without one budget": ["c"],
    }


@pytest.mark.parametrize("growth", [0.0, 0.15])
def test_coordinate_slopes_are_recovered(growth: float) -> None:
    points = figures_model.coordinate_points(coordinate_records(growth))
    assert len(points) == 3 * 3 * 4, "seeds are averaged"
    np.testing.assert_allclose(points.slope, growth * points.step, atol=1e-12)
    assert list(dict.fromkeys(points.layer)) == ["embedding", "block 1", "logits"]
    figure = figures_model.coordinate_figure(points)
    assert len(figure.data) == 2 * 3, "the first and the last step of each layer"


def test_loss_by_position_and_frame() -> None:
    loss = np.concatenate([np.repeat([6.0, 3.0], 4), [0.1]])
    points = figures_model.position_points(loss, 4)
    assert list(points.frame) == [0] * 4 + [1] * 4 + [-1]
    assert list(points.frame_loss[:8]) == [6.0] * 4 + [3.0] * 4
    assert np.isnan(points.frame_loss[8]), "the end token is no frame"
    with pytest.raises(ValueError, match="one whole frame"):
        figures_model.position_points(loss, 10)


def test_ngram_coverage_and_shares() -> None:
    counts = np.array([0, 5, 3, 0, 2])
    points = figures_model.ngram_points({"k": (counts, 5.0)})
    assert list(points["rank"]) == [1, 2, 3]
    np.testing.assert_allclose(points.share, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(points.cumulative, [0.5, 0.8, 1.0])
    assert (points.distinct == 3).all() and (points.coverage == 0.6).all()
    many = figures_model.ngram_points({"k": (np.ones(10**6), 1e6)})
    assert len(many) <= figures_model.RANKS and many["rank"].iloc[-1] == 10**6
    with pytest.raises(ValueError, match="no n-gram occurs"):
        figures_model.ngram_points({"k": (np.zeros(4), 4.0)})
