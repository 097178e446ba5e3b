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
        (
            sweep(0).rename(columns={"width": "D"}).assign(D=lambda t: t["D"] * 1e8),
            r"'D' goes up to 2.05e\+11, and is no width",
        ),
        (
            pd.concat([sweep(0).assign(tokens=n, batch_size=256) for n in (1e9, 2e9)]),
            r"differ in 'tokens', on which the best rate hangs: hold them, as in --where",
        ),
        (
            pd.concat([sweep(0).assign(tokens=n, bs=n / 1e7) for n in (1e9, 2e9)]),
            "differ in 'tokens', 'bs'",
        ),
    ],
)
def test_what_is_no_sweep_is_said(table: pd.DataFrame, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_sweep(table)


def test_lengths_that_grow_with_the_width_are_one_sweep() -> None:
    table = sweep(0).assign(tokens=lambda t: 2e7 * t["width"], weight_decay=0.1)
    points, notes = read_sweep(table)
    assert verdicts(points)["verdict"].tolist() == ["transfers"]
    assert not any(note.startswith("beware") for note in notes)
    both = pd.concat([table, sweep(0, seed=1).assign(tokens=2e7, weight_decay=0.2)])
    parted, _ = read_sweep(both, by="weight_decay")
    assert parted["parametrization"].nunique() == 2
    _, notes = read_sweep(both.drop(columns="tokens"))
    assert "beware: runs of one size differ in 'weight_decay'; the best rate may" in notes


def test_a_rate_that_was_not_tried_costs_no_number() -> None:
    table = sweep(-1.0)
    near = (np.log2(table["lr"]) + 10 + np.log2(table["width"] / 128)).abs() <= 1.5
    said = next(verdict_lines(read_sweep(table[near])[0]))
    assert "; width 2048 was not tried at the rate of width 128" in said and "nan" not in said
