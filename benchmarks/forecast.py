"""What lay ahead? On real tables, each beginning of the frontier predicts what lies beyond it.

    python benchmarks/forecast.py FOLDER      # of the tables named in TABLES

The runs up to a table's frontier points at 1, 1.25, 1.5 ... decades (at least five points) are
fitted as `scaling fit` fits them (`analysis.frontier.fit_frontier`: budgets, bins of a cloud, or
the envelope), and the law predicts the point of the whole table's frontier that is nearest to .5,
1 and 1.5 decades above (within .13, or half of what its points lie apart). Per distance: how many
were refused for want of data, the share of the rest inside the 95% interval of one more such point,
the median width of that interval and the median error, both of log loss. A table that is not there,
or has no law, is said and skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder

DISTANCES = (0.5, 1.0, 1.5)
NEAR = 0.13  # decades around a distance within which a point counts; in a wider grid half a step
STEP = 0.25  # decades between the ends of two beginnings
FEWEST = 5  # points of a beginning
# File: columns that its header does not tell, and the column by whose values it is split.
TABLES: dict[str, tuple[dict[str, Any], str | None]] = {
    "chinchilla_epoch_svg_extracted.csv": ({}, None),
    "cs336_isoflops_curves.json": ({"compute_unit": "FLOPs"}, None),
    "datablations_296_runs.csv": ({}, None),
    "kyo_takano_llm_df.csv": ({}, None),
    "misfitting_scaling_results_last_ckpt.csv": ({}, None),
    "mlfoundations_overtraining_104.csv": ({"loss": "loss_c4_val"}, "train_dataset"),
    "multipowerlaw_12_curves.csv": ({}, None),
    "steplaw_dense_lr_bs_loss.csv": ({}, None),
    "toto_scaling_digitised.csv": ({}, None),
    "xlstm_isoflop_llama_ctx8192.csv": (
        {"loss": "val/dclm_loss", "n": "model/num_params", "c": "flops_6nd"},
        None,
    ),
}


def tables(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and rows of every table that is there, or of each of its parts."""
    for name, (columns, split) in TABLES.items():
        path = folder / name
        if not path.exists():
            print(f"skipped: {path} is not there")
            continue
        table = pd.read_json(path) if path.suffix == ".json" else pd.read_csv(path)
        parts = [(name, table)] if split is None else list(table.groupby(split))
        for part, rows in parts:
            yield name if split is None else f"{name}, {part}", read(rows, **columns)[0]


def beginnings(decades: np.ndarray) -> list[int]:
    """How many points each beginning has; decades (n,) above the first point, sorted."""
    ends = np.arange(1, decades[-1], STEP)
    counts = np.unique(np.searchsorted(decades, ends + 1e-9, side="right"))
    return [int(k) for k in counts if k >= FEWEST and decades[k - 1] >= 1 - 1e-9]


def forecasts(name: str, rows: pd.DataFrame, resamples: int) -> Iterator[dict[str, Any]]:
    """One row per beginning and distance."""
    try:
        ladder = Ladder.of(rows)
        whole = fit_frontier(ladder, resamples=resamples)
    except NotIdentified as refusal:
        print(f"skipped: {name} has no law: {refusal}")
        return
    compute, loss = (whole.points[c].to_numpy(float) for c in ("macs_total", "val_loss"))
    name = f"{name} ({whole.method})"
    decades = np.log10(compute / compute[0])
    near = max(NEAR, float(np.median(np.diff(decades))) / 2)
    for count in beginnings(decades):
        targets = []
        for distance in DISTANCES:
            apart = np.abs(decades - decades[count - 1] - distance)
            if apart.min() <= near:
                targets.append((distance, int(apart.argmin())))
        if not targets:
            continue
        try:
            law = fit_frontier(whole.smaller(ladder, count), resamples=resamples).law
        except NotIdentified as refusal:
            yield from ({"table": name, "distance": d, "refused": str(refusal)} for d, _ in targets)
            continue
        for distance, target in targets:
            ahead = law.predict(float(compute[target]))
            yield {
                "table": name,
                "distance": distance,
                "span": decades[count - 1],
                "refused": ahead.refused,
                "inside": bool(ahead.run_low <= loss[target] <= ahead.run_high),
                "width": float(np.log(ahead.run_high / ahead.run_low)),
                "error": float(np.log(ahead.loss / loss[target])),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resamples", type=int, default=200, help="of the laws' exponents")
    options = parser.parse_args()
    rows = [
        row
        for name, table in tables(options.folder)
        for row in forecasts(name, table, options.resamples)
    ]
    if not rows:
        print(f"no table of {len(TABLES)} in {options.folder}: nothing was forecast")
        return
    found = pd.DataFrame(rows)
    found["given"] = found["refused"].eq("")
    print(f"{'':62s}decades  forecasts  refused  inside   width   error")
    for distance, at in found.groupby("distance"):
        for name, some in [*at.groupby("table"), ("all", at)]:
            given = some[some["given"]]
            print(
                f"{name:62s}{distance:7.1f} {len(some):10d} {1 - some['given'].mean():8.0%} "
                f"{given['inside'].sum():4.0f}/{len(given):<3d} {given['width'].median():7.2%} "
                f"{given['error'].abs().median():7.2%}"
            )


if __name__ == "__main__":
    main()
