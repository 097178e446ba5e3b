"""A ladder that places its own runs beside the quickstart's fixed grid, at equal MACs, simulated.

    python -m benchmarks.rounds --studies 200

Sizes, steps and MACs are those that `scaling plan` counts for the quickstart; losses are of a truth
L(N, D) with noise that a run shares and noise of its points, and are fitted by `fit_frontier`. The
true pure exponent is the slope of the line through the noise-free frontier of a design's budgets.
Printed: the median width of its 95% interval, the share of intervals that hold the truth, of
budgets whose best size is the smallest or largest that was tried, and of the MACs that were spent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.rounds import Cell, propose
from scaling.analysis.questions.simulate import Truth
from scaling.config.run import RunConfig
from scaling.config.schema import StudyConfig
from scaling.config.study_file import load_study
from scaling.models.macs import parameter_counts
from scaling.plan import runs as plan

STUDY = Path("sweeps/quickstart.yaml")
FIRST = 4.7e10  # MACs of the smallest budget
NOISE = 0.003  # of log loss, of a run and again of each of its points
TRUTHS = {  # of both the best size at 5e10 MACs has 30,000 parameters
    "floor": Truth(e=3.0, a=56.0, alpha=0.5, b=243.0, beta=0.5),
    "pure": Truth(e=0.0, a=8.2, alpha=0.15, b=12.4, beta=0.15),
}
Losses = Callable[[RunConfig], list[float]]  # of each budget


def world(truth: Truth, seed: int) -> Losses:
    """What training a run would give, whatever was trained before it."""

    def losses(run: RunConfig) -> list[float]:
        n = parameter_counts(run.model)["matmul_head"]
        shared = np.random.default_rng([seed, n, run.seed]).standard_normal()
        out = []
        for steps in run.budgets_steps:
            own = np.random.default_rng([seed, n, run.seed, steps]).standard_normal()
            d = steps * run.batch * run.model.context
            out.append(float(truth(n, d) * np.exp(NOISE * (shared + own))))
        return out

    return losses


def fixed(config: StudyConfig, losses: Losses) -> list[RunConfig]:
    """The runs of a listed ladder."""
    return plan.ladder_runs(config, 1.0, "", Path())[0]


def placed(config: StudyConfig, losses: Losses) -> list[RunConfig]:
    """The runs that a ladder decides on, round by round."""
    names, space = plan.ladder_space(config)
    cells: list[Cell] = []
    runs: list[RunConfig] = []
    found: dict[Cell, float] = {}
    while (more := propose(space, found)) is not None:
        cells += more.cells
        runs = plan.ladder_runs(config, 1.0, "", Path(), cells)[0]
        of_run = {
            (run.model.name, run.seed - config.seed, budget): loss
            for run in runs
            for budget, loss in zip(run.budgets_macs, losses(run), strict=True)
        }
        found = {c: of_run[names[c.size], c.seed, float(space.budgets[c.budget])] for c in cells}
    return runs


def rows(runs: list[RunConfig], losses: Losses) -> pd.DataFrame:
    """As a study has them."""
    return pd.DataFrame(
        {
            "run_id": run.run_id, "role": "ladder", "status": "finished", "decayed": True,
            "seed": run.seed, "size": run.model.name, "vocab": run.model.vocab,
            "params": parameter_counts(run.model)["matmul_head"], "tokenizer": "simulated",
            "tokens": steps * run.batch * run.model.context,
            "macs_total": steps * plan.step_macs(run.model, run.batch), "budget_macs": budget,
            "val_loss": loss,
        }
        for run in runs
        for steps, budget, loss in zip(
            run.budgets_steps, run.budgets_macs, losses(run), strict=True
        )
    )  # fmt: skip


def true_exponent(config: StudyConfig, truth: Truth, budgets: np.ndarray) -> float:
    """Of the noise-free frontier of these budgets over all sizes between those it may try."""
    names, space = plan.ladder_space(config)
    tried = [name for name, steps in zip(names, space.steps, strict=True) if steps.any()]
    models = [plan.ladder_model(config, name) for name in tried]
    log_n = np.log([parameter_counts(model)["matmul_head"] for model in models])
    a_token = [plan.step_macs(m, 1) / m.context for m in models]
    grid = np.linspace(log_n[0], log_n[-1], 4000)
    tokens = np.exp(-np.interp(grid, log_n, np.log(a_token)))
    best = [float(truth(np.exp(grid), budget * tokens).min()) for budget in budgets]
    return float(np.polyfit(np.log(budgets), np.log(best), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=500)
    chosen = parser.parse_args()
    grid = load_study(STUDY)
    macs = sum(map(plan.path_macs, plan.ladder_runs(grid, 1.0, "", Path())[0]))
    own = load_study(STUDY, [f"ladder={{macs: {macs:.6e}, first_macs: {FIRST:.6e}}}"])
    print(f"{chosen.studies} studies of each kind, {macs:.3g} MACs, {chosen.resamples} resamples")
    print(
        f"{'truth':8}{'design':8}{'decades':>8}{'width':>9}{'covered':>9}{'edges':>8}{'spent':>7}"
    )
    for name, truth in TRUTHS.items():
        for design, make, config in (("fixed", fixed, grid), ("placed", placed, own)):
            widths, covered, edges, spent, decades, refused = [], [], [], [], 0.0, 0
            for seed in range(chosen.studies):
                losses = world(truth, seed)
                runs = make(config, losses)
                spent.append(sum(map(plan.path_macs, runs)) / macs)
                try:
                    found = fit_frontier(
                        rows(runs, losses), form="power", resamples=chosen.resamples, seed=seed
                    )
                except NotIdentified:
                    refused += 1
                    continue
                budgets = found.points["budget_macs"].to_numpy(float)
                low, high = found.pure.ci["b"]
                widths.append(high - low)
                covered.append(low <= true_exponent(own, truth, budgets) <= high)
                edges.append(found.points["edge"].mean())
                decades = found.pure.decades
            print(
                f"{name:8}{design:8}{decades:>8.2f}{np.median(widths):>9.4f}"
                f"{np.mean(covered):>9.1%}{np.mean(edges):>8.1%}{np.mean(spent):>7.0%}"
                + f"  refused {refused}"
                * bool(refused),
                flush=True,
            )


if __name__ == "__main__":
    main()
