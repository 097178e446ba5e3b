"""Optima of compared sweeps, how far they lie apart, and what carrying a rate over costs."""

import math

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.figures.transfer import transfer_figure
from scaling.analysis.questions import transfer

RATES = range(-9, -2)


def sweep(
    kind: str, best: dict[tuple[int, int], float], bend: float = 0.03, noise: float = 0.0
) -> pd.DataFrame:
    """Parabolas of loss in log2(rate); `best`: (width, layers) -> log2 of the optimum."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "role": "lr_sweep",
                "size": f"d{d}l{layers}h2",
                "parametrization": kind,
                "d": d,
                "layers": layers,
                "log2_lr": float(p),
                "seed": 0,
                "run_id": f"{kind}{d}-{layers}{p}",
                "steps": 300,
                "decayed": True,
                "status": "finished",
                "val_loss": 3 + 1 / d + bend * (p - vertex) ** 2 + noise * random.normal(),
            }
            for (d, layers), vertex in best.items()
            for p in RATES
        ]
    )


WIDTHS = {"mup": {(d, 2): -5.5 for d in (16, 32, 64, 128)}}
STANDARD = {(16, 2): -5.0, (32, 2): -5.8, (64, 2): -6.6, (128, 2): -7.4}
DEPTHS = {(32, 2): -5.5, (32, 4): -5.5 - 0.8 / 3, (32, 16): -6.3}


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    rows = [sweep("mup", WIDTHS["mup"] | DEPTHS), sweep("standard", STANDARD)]
    return transfer.series_points(pd.concat(rows, ignore_index=True))


def test_a_run_may_belong_to_two_series(points: pd.DataFrame) -> None:
    members = points.groupby(transfer.GROUP, sort=False).member.unique()
    assert {key: list(found) for key, found in members.items()} == {
        ("mup", "", "width", 2): [16, 32, 64, 128],
        ("standard", "", "width", 2): [16, 32, 64, 128],
        ("mup", "", "depth", 32): [2, 4, 16],
    }
    shared = points[(points.log2_lr == -5) & points.run_id.eq("mup32-2-5")]
    assert sorted(shared.axis) == ["depth", "width"]


def test_verdicts(points: pd.DataFrame) -> None:
    found = transfer.verdicts(points).set_index(["parametrization", "axis"])
    assert found.octaves.tolist() == pytest.approx([0, -2.4, -0.8], abs=1e-9)
    assert found.uncertainty.tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert found.verdict.tolist() == ["transfers", "does not transfer", "transfers"]
    carried, own = 0.03 * (-5 + 7.4) ** 2, 0.03 * 0.4**2
    assert found.cost["standard", "width"] == pytest.approx(carried - own)
    lines = list(transfer.verdict_lines(points))
    assert "standard over width (2 layers): the best rate moves by -2.40" in lines[5]
    assert lines[6].startswith("  width 16: 2^-5.00")


def test_the_interval_covers_the_optimum_of_noisy_losses() -> None:
    rows = sweep("mup", {(16, 2): -5.6, (32, 2): -5.6}, noise=0.004)
    best = transfer.optima(transfer.series_points(rows))
    assert ((best.low <= -5.6) & (best.high >= -5.6) & (best.high - best.low < 1.5)).all()
    found = transfer.verdicts(transfer.series_points(rows))
    assert (found.uncertainty > 0.05).all() and found.verdict.tolist() == ["transfers"]


def test_the_interval_of_the_drift_covers_what_is_true() -> None:
    """Of 200 noisy sweeps whose optimum moves by -0.9 octaves; a point on the line decides none."""
    random, covered = np.random.default_rng(1), 0
    clean = transfer.series_points(sweep("mup", {(d, 2): -5.5 - 0.3 * i for i, d in enumerate(
        (16, 32, 64, 128))}))  # fmt: skip
    for _ in range(200):
        noisy = clean.assign(val_loss=clean.val_loss + 0.01 * random.normal(size=len(clean)))
        one = transfer.verdicts(noisy).iloc[0]
        covered += abs(one.octaves + 0.9) <= one.uncertainty
    assert 180 <= covered <= 198


def test_a_drift_that_the_noise_hides_is_not_decided() -> None:
    rows = sweep("mup", {(16, 2): -5.5, (32, 2): -5.5}, noise=0.1)
    assert transfer.verdicts(transfer.series_points(rows)).verdict.tolist() == ["not decided"]


def test_an_optimum_beyond_the_rates_tried_decides_only_against() -> None:
    near = transfer.verdicts(transfer.series_points(sweep("mup", {(16, 2): -3.4, (32, 2): -3.0})))
    assert near.verdict.tolist() == ["not decided"]
    far = transfer.verdicts(transfer.series_points(sweep("mup", {(16, 2): -6.0, (32, 2): -2.8})))
    assert far.verdict.tolist() == ["does not transfer"]


def test_a_rate_that_diverges_costs_everything() -> None:
    rows = sweep("mup", {(16, 2): -4.0, (32, 2): -6.0})
    rows.loc[(rows.d == 32) & (rows.log2_lr >= -4), ["status", "val_loss"]] = "diverged", np.nan
    points = transfer.series_points(rows)
    assert math.isinf(transfer.verdicts(points).cost[0])
    assert transfer.optima(points).diverged.tolist() == [0, 2]
    assert not transfer.optima(points).edge.any()


def test_one_model_is_no_series() -> None:
    assert transfer.series_points(sweep("mup", {(16, 2): -5.0})).empty


def test_the_figure_has_a_panel_a_series_and_a_line_a_member(points: pd.DataFrame) -> None:
    figure = transfer_figure(transfer.Rates.of(points))
    assert [a.text for a in figure.layout.annotations] == [
        "muP over width (2 layers)",
        "standard over width (2 layers)",
        "muP over depth (width 32)",
    ]
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert len(lines) == 11 and len(figure.data) == 22
    assert [t.name for t in figure.data if t.showlegend] == [
        *(f"width {d}" for d in (16, 32, 64, 128)),
        *(f"depth {n}" for n in (2, 4, 16)),
    ]
