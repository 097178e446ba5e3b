"""Anyone's learning-rate sweep: does the best rate move with width or depth?"""

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.transfer import (
    best_rate_lines,
    best_rate_verdicts,
    verdict_lines,
    verdicts,
)
from scaling.analysis.tables.sweeps import read_sweep

WIDTHS = (128, 256, 512, 1024, 2048)
BEST = pd.DataFrame(
    {
        "Width": WIDTHS, "SP opt LR": ["0.000977", "0.000488", "0.000244", "0.000122", "6.1e-05"],
        "MuP opt LR": "9.77e-4",
    }
)  # fmt: skip


def sweep(moves: float, *, seed: int = 0, noise: float = 1e-3) -> pd.DataFrame:
    """Losses of five widths at nine rates; the best rate moves by so many octaves a doubling."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, width in enumerate(WIDTHS):
        for log2 in range(-14, -5):
            loss = 3 - 0.1 * k + 0.02 * (log2 + 10 - moves * k) ** 2
            rows.append((width, 2.0**log2, loss + noise * rng.standard_normal()))
    return pd.DataFrame(rows, columns=["width", "lr", "val_loss"])


def test_best_rates_by_width() -> None:
    """Megatron-LM's table: without muP the best rate halves with each doubling."""
    points, notes = read_sweep(BEST)
    assert notes[-1] == "best rates: 'SP opt LR', 'MuP opt LR'"
    said = best_rate_verdicts(points).set_index("parametrization")
    assert said.loc["SP", "octaves"] == pytest.approx(-4, abs=0.01)
    assert said.loc["SP", "verdict"] == "does not transfer"
    assert said.loc["MuP", "octaves"] == 0 and said.loc["MuP", "verdict"] == "transfers"
    # Best rates are known to the spacing of the grid, an octave.
    assert said["uncertainty"].tolist() == pytest.approx([0.716, 0.716], abs=0.01)
    assert "SP over width: the best rate moves by -4.00 ± 0.72 octaves" in next(
        best_rate_lines(points)
    )


@pytest.mark.parametrize(("moves", "verdict"), [(0.0, "transfers"), (-0.5, "does not transfer")])
@pytest.mark.parametrize("form", ["long", "wide", "log2", "widths as names"])
def test_losses_by_rate_and_width(moves: float, verdict: str, form: str) -> None:
    table = sweep(moves)
    if form == "wide":
        table = table.pivot(index="lr", columns="width", values="val_loss").reset_index()
    elif form == "log2":
        table = table.assign(lr=np.log2(table["lr"])).rename(columns={"lr": "log2_lr"})
    elif form == "widths as names":
        table = table.assign(width=[f"d{w}" for w in table["width"]])
    points, _ = read_sweep(table, lr="log2_lr" if form == "log2" else None)
    row = verdicts(points).iloc[0]
    assert row["octaves"] == pytest.approx(4 * moves, abs=0.15) and row["verdict"] == verdict
    assert verdict in next(verdict_lines(points))


def test_parametrisations_are_sweeps_of_their_own() -> None:
    both = pd.concat(
        [sweep(0.0).assign(parametrization="mup"), sweep(-0.5).assign(parametrization="sp")]
    )
    points, _ = read_sweep(both)
    found = verdicts(points).set_index("parametrization")["verdict"]
    assert found.to_dict() == {"mup": "transfers", "sp": "does not transfer"}
    alone, _ = read_sweep(both.rename(columns={"parametrization": "arm"}), by="arm")
    assert verdicts(alone)["verdict"].tolist() == ["transfers", "does not transfer"]


def test_runs_that_diverged_or_crashed() -> None:
    table = sweep(0.0).assign(state="finished")
    wild, first = table["lr"] > 2**-7, table.index == 0
    table["val_loss"] = table["val_loss"].mask(wild, 9.0).mask(first, 0.1)
    table["state"] = table["state"].mask(wild, "diverged").mask(first, "crashed")
    points, notes = read_sweep(table)
    assert points["val_loss"].isna().sum() == 5 and len(points) == len(table) - 1
    assert any("1 runs that did not finish" in note for note in notes)
    assert verdicts(points)["verdict"].tolist() == ["transfers"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (BEST.drop(columns="Width"), "no column of widths"),
        (BEST[["Width"]], "no column for learning rate"),
        (BEST.assign(Width=[128, *[256] * 4]).iloc[:1], "no column of widths"),
        (BEST.assign(Width=["a", *WIDTHS[1:]]), "holds 'a', which is no width"),
        (sweep(0).assign(lr=lambda t: np.log2(t["lr"])), "no learning rates"),
        (sweep(0).iloc[:9].assign(width=128), "no column of widths"),
    ],
)
def test_what_is_no_sweep_is_said(table: pd.DataFrame, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_sweep(table)
