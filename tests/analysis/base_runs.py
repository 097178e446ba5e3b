"""One simulated study (five budgets, six sizes) that tests of tables bring in many forms.

What is read must be the same parameters, MACs and losses.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.tables.ladder import Ladder

BASE = pd.read_csv(Path(__file__).parent / "base_runs.csv")
PLAIN = BASE.rename(columns={"N": "params", "D": "tokens"})[["params", "tokens", "loss"]]
MACS = BASE["C"].to_numpy() / 2
LOST = [2, 9, 17]
KEPT = BASE.drop(index=LOST)
Build = Callable[[pd.DataFrame], pd.DataFrame]


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that enter a law, sorted by compute and loss."""
    kept = Ladder.of(rows).kept()
    return kept.sort_values(["macs_total", "val_loss"]).reset_index(drop=True)


def same_runs(rows: pd.DataFrame, table: pd.DataFrame = BASE, rtol: float = 2e-3) -> None:
    """Whether the rows that count are those of `table` (columns N, D, C in FLOPs, loss)."""
    found = counted(rows)
    assert len(found) == len(table)
    order = np.lexsort([found["val_loss"], np.round(np.log(found["macs_total"]), 1)])
    true = np.lexsort([table["loss"], np.round(np.log(table["C"] / 2), 1)])
    for column, truth in (("macs_total", table["C"] / 2), ("val_loss", table["loss"])):
        assert found[column].to_numpy()[order] == pytest.approx(truth.to_numpy()[true], rel=rtol)


def history(points: int = 10, *, rate: bool = False) -> pd.DataFrame:
    """Evaluations along each run; the last one is the run's loss."""
    parts = []
    run: Any
    for i, run in enumerate(PLAIN.itertuples()):
        share = np.arange(1, points + 1) / points
        part = pd.DataFrame(
            {
                "run_id": f"r{i}", "step": (1000 * share).astype(int), "params": run.params,
                "tokens": run.tokens * share, "val_loss": run.loss * (1 + 0.1 * (1 / share - 1)),
            }
        )  # fmt: skip
        if rate:
            part["lr"] = 1e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
