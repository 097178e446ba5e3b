"""Fit of L(N, D): this tool against Epoch's published procedure, on the same data in one process.

    pip install autograd
    python benchmarks/fit.py [chinchilla_epoch_svg_extracted.csv] [--starts 4500] [--resamples 4000]
    python benchmarks/fit.py --rows 100000       # instead: a large table, from file to figures
    git worktree add /tmp/base REVISION
    python benchmarks/fit.py --against /tmp/base # instead: L(N, D) here and in another version

Peer (Besiroglu et al. 2024, data_analysis.ipynb, written anew from the procedure):
  fit        Huber 1e-3 on log loss, summed; L-BFGS-B with SciPy's finite differences from each of
             4,500 starts; the best
  bootstrap  4,000 resamples, BFGS from Hoffmann et al.'s parameters with the gradient of
             `autograd`; also with a gradient written by hand, as a careful user of SciPy would
Ours: laws/surface.py. The objectives are compared row by row, so that speed is not bought with
a worse fit. The published bootstrap is timed on --published resamples (the same minimiser on the
same data), and its time is scaled to 4,000; so are the others when fewer are asked for. Times are
CPU seconds.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from scaling.analysis.laws.parametric import fit_parametric
from scaling.analysis.laws.surface import Objective, continuation, newton, starts

DELTA = 1e-3
HOFFMANN = np.array(
    [6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083]
)  # a, b, e, alpha, beta
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # logs of parameters, tokens and loss
Result = TypeVar("Result")
TABLE = "scaling_tables/chinchilla_epoch_svg_extracted.csv"


def peer_value(p: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> float:
    """Epoch's objective of (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = p
    with np.errstate(over="ignore"):
        prediction = np.log(np.exp(a - alpha * log_n) + np.exp(b - beta * log_d) + np.exp(e))
        r = log_loss - prediction
        size = np.abs(r)
        return float(np.where(size <= DELTA, 0.5 * r**2, DELTA * (size - 0.5 * DELTA)).sum())


def peer_gradient(
    p: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray
) -> np.ndarray:
    a, b, e, alpha, beta = p
    terms = np.exp(a - alpha * log_n), np.exp(b - beta * log_d), np.exp(e)
    f = terms[0] + terms[1] + terms[2]
    pull = np.clip(log_loss - np.log(f), -DELTA, DELTA) / f
    pa, pb = pull * terms[0], pull * terms[1]
    return -np.array(
        [pa.sum(), pb.sum(), (pull * terms[2]).sum(), -(pa * log_n).sum(), -(pb * log_d).sum()]
    )


def peer_fit(data: Columns, count: int) -> float:
    starts_of = itertools.product(
        np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5),
        np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5),
    )  # fmt: skip
    grid = np.array(list(starts_of))
    chosen = grid[np.linspace(0, len(grid) - 1, min(count, len(grid))).astype(int)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # starts that run into infinity
        found = (minimize(peer_value, x, args=data, method="L-BFGS-B").fun for x in chosen)
        return float(min(found))


def peer_bootstrap(data: Columns, indices: np.ndarray) -> np.ndarray:
    out = []
    for rows in indices:
        args = tuple(column[rows] for column in data)
        out.append(minimize(peer_value, HOFFMANN, args=args, jac=peer_gradient, method="BFGS").fun)
    return np.array(out)


def peer_autograd(data: Columns, indices: np.ndarray) -> np.ndarray | None:
    """As published: the gradient from automatic differentiation. None without that package."""
    try:
        anp = importlib.import_module("autograd.numpy")
        grad = importlib.import_module("autograd").grad
    except ImportError:
        return None

    def value(p: Any, log_n: Any, log_d: Any, log_loss: Any) -> Any:
        a, b, e, alpha, beta = p
        f = anp.exp(a - alpha * log_n) + anp.exp(b - beta * log_d) + anp.exp(e)
        r = log_loss - anp.log(f)
        size = anp.abs(r)
        return anp.sum(anp.where(size <= DELTA, 0.5 * r**2, DELTA * (size - 0.5 * DELTA)))

    out = []
    for rows in indices:
        args = tuple(column[rows] for column in data)
        out.append(minimize(value, HOFFMANN, args=args, jac=grad(value), method="BFGS").fun)
    return np.array(out)


def many_rows(count: int) -> None:
    """Seconds from a CSV of `count` runs to its law and its figures."""
    from scaling.analysis.figures import runs as figures
    from scaling.analysis.questions.frontier import fit_frontier
    from scaling.analysis.questions.simulate import study
    from scaling.analysis.tables import read

    rows = study(sizes=60, budgets=60, decades=4, trunks=False, seeds=-(-count // 1150), reach=4.0)
    rows = rows.sample(count, random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        columns = {"params": "N", "tokens": "D", "macs_total": "MACs", "val_loss": "loss"}
        rows[["run_id", *columns]].rename(columns=columns).to_csv(path, index=False)
        (table, _), load = timed(read, path)
    law, fit = timed(fit_frontier, table)

    def draw() -> int:
        drawn = (
            figures.scaling_figure(
                figures.run_points(table), frontier=law.points,
                law=figures.law_points(law.law, law.law.compute.min(), law.law.compute.max()),
            ),
            figures.residual_figure(figures.residual_points(law.points, law.law)),
            figures.holdout_figure(figures.holdout_points([law.law])),
        )  # fmt: skip
        return sum(len(figure.to_json()) for figure in drawn)

    size, figure = timed(draw)
    print(
        f"{len(table):,} rows: load {load:.2f} s, frontier and fit {fit:.2f} s, three figures "
        f"({size / 1e6:.1f} MB) {figure:.2f} s, in all {load + fit + figure:.2f} s"
    )
    print(law.law)


ONE_FIT = """
import json, sys, time
import numpy as np
try:
    from scaling.analysis.laws.parametric import fit_parametric
except ModuleNotFoundError:  # a checkout of before the one installed name
    from analysis.parametric import fit_parametric
data = np.load(sys.argv[1])
fit_parametric(*data[:, :60], resamples=100)  # touch the code once
start = time.process_time()
law = fit_parametric(*data)
print(json.dumps([time.process_time() - start, law.objective, law.ci["size_exponent"]]))
"""


def against(base: Path, epoch: tuple[np.ndarray, ...], repeats: int = 3) -> None:
    """CPU seconds of `fit_parametric`, 4,000 resamples included, of this version and of another,
    in turn; and by how much their optima differ."""
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 10_000), 10 ** rng.uniform(9, 12, 10_000)
    loss = 1.8 + 480 / n**0.347 + 2100 / d**0.367
    noisy = loss * np.exp(0.01 * rng.standard_normal(len(n)))
    print(f"{'rows':>7s}{'there, s':>10s}{'here, s':>10s}{'ratio':>8s}   optimum beside theirs")
    for data in (epoch, (n, d, noisy)):
        found: dict[Path, list[Any]] = {base: [], Path(__file__).resolve().parents[1]: []}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "runs.npy"
            np.save(path, np.stack(data))
            for _ in range(repeats if len(data[0]) < 1000 else 1):
                for where, results in found.items():
                    ran = subprocess.run(
                        [sys.executable, "-c", ONE_FIT, str(path)], cwd=where, check=True,
                        env={**os.environ, "PYTHONPATH": str(where)}, capture_output=True,
                        text=True,
                    )  # fmt: skip
                    results.append(json.loads(ran.stdout))
        there, here = (min(results) for results in found.values())
        print(
            f"{len(data[0]):7,d}{there[0]:10.2f}{here[0]:10.2f}{there[0] / here[0]:7.1f}x   "
            f"{here[1] / there[1] - 1:+.1e}; size exponent [{here[2][0]:.4f}, {here[2][1]:.4f}] "
            f"here, [{there[2][0]:.4f}, {there[2][1]:.4f}] there"
        )


def timed(function: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """The result, and CPU seconds over all threads: other work on the machine does not count."""
    start = time.process_time()
    result = function(*args)
    return result, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("SCALING_SHARED_DATA", "../shared/data"))
    parser.add_argument("table", nargs="?", type=Path, default=shared / TABLE)
    parser.add_argument("--starts", type=int, default=4500)
    parser.add_argument("--resamples", type=int, default=4000)
    parser.add_argument("--published", type=int, default=400)
    parser.add_argument("--rows", type=int, help="time a table of so many rows instead")
    parser.add_argument("--against", type=Path, help="another checkout: fit L(N, D) in both")
    options = parser.parse_args()
    if options.rows:
        many_rows(options.rows)
        return
    table = pd.read_csv(options.table)
    n = table["Model Size"].to_numpy()
    d = table["Training FLOP"].to_numpy() / (6 * n)
    loss = table["loss"].to_numpy()
    kept = np.flatnonzero(loss < np.sort(loss)[-5])  # Epoch drops the five highest losses
    n, d, loss = n[kept], d[kept], loss[kept]
    if options.against:
        against(options.against.resolve(), (n, d, loss))
        return
    beside_the_peer(n, d, loss, options)
    law, seconds = timed(lambda: fit_parametric(n, d, loss))
    print(f"fit_parametric with 4,000 resamples, jackknife and intervals: {seconds:.2f} s\n{law}")


def beside_the_peer(
    n: np.ndarray, d: np.ndarray, loss: np.ndarray, options: argparse.Namespace
) -> None:
    """One fit and 4,000 resamples, in seconds and by their objectives."""
    data = (np.log(n), np.log(d), np.log(loss))
    objective = Objective(data[0] - data[0].mean(), data[1] - data[1].mean(), data[2], DELTA)

    def our_fit() -> tuple[np.ndarray, float]:
        first = starts(objective, loss)
        weights = np.ones((len(first), len(loss)))
        theta, value, _ = newton(objective, first, weights, continuation(DELTA, cold=True))
        return theta[value.argmin()], value.min()

    indices = np.random.RandomState(42).choice(len(n), size=(4000, len(n)))
    counts = np.stack([np.bincount(row, minlength=len(n)) for row in indices]).astype(float)
    our_fit()  # touch the code once
    (best, value), fit_seconds = timed(our_fit)

    def our_bootstrap() -> np.ndarray:
        return newton(objective, np.tile(best, (4000, 1)), counts, continuation(DELTA, cold=False))[
            1
        ]

    ours, bootstrap_seconds = timed(our_bootstrap)
    theirs_best, peer_fit_seconds = timed(peer_fit, data, options.starts)
    theirs, peer_bootstrap_seconds = timed(peer_bootstrap, data, indices[: options.resamples])
    published, autograd_seconds = timed(peer_autograd, data, indices[: options.published])
    peer_fit_seconds *= 4500 / options.starts
    peer_bootstrap_seconds *= 4000 / options.resamples
    autograd_seconds *= 4000 / options.published

    print(f"{len(loss)} runs, Huber {DELTA:g} on log loss, {os.cpu_count()} cores")
    print(f"{'':22s}{'peer':>12s}{'ours':>12s}{'ratio':>9s}")
    for label, peer, own in (
        ("multi-start fit, s", peer_fit_seconds, fit_seconds),
        ("4,000 bootstraps, s", autograd_seconds, bootstrap_seconds),
        ("  gradient by hand, s", peer_bootstrap_seconds, bootstrap_seconds),
    ):
        if label.startswith("4,000") and published is None:
            print(
                "4,000 bootstraps      (autograd is not installed: the published peer did not run)"
            )
            continue
        print(f"{label:22s}{peer:12.2f}{own:12.3f}{peer / own:8.0f}x")
    print(f"best objective        {theirs_best:.12e}   {value:.12e}")
    for label, peers in (("gradient by hand", theirs), ("published", published)):
        if peers is None:
            continue
        margin = ours[: len(peers)] / peers - 1
        print(
            f"{label}: on {len(peers)} resamples ours is worse (by more than 1e-9 relative) on "
            f"{(margin > 1e-9).sum()}, better on {(margin < -1e-9).sum()}; "
            f"median of the ratio minus one {np.median(margin):+.1e}"
        )
    print(
        f"peer's times scaled to 4,500 starts and 4,000 resamples from {options.starts} starts, "
        f"{options.published} published and {options.resamples} by hand"
    )


if __name__ == "__main__":
    main()
