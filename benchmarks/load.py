"""What a study of many runs costs to look at: plan, status, fit, report, sync, doctor.

    python benchmarks/load.py [--runs 5000 10000] [--commands status fit] [--out FOLDER]
    python benchmarks/load.py --out FOLDER --of CHECKOUT         # another version, the same folders

Each study is made in FOLDER once: real configurations, tokens and costs, made-up losses. Every
command is a process of its own, with a thread; printed are its seconds, those of the processor, and
its peak memory, and for each command the growth from the fewest runs to the most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

STUDY = """\
study: load{runs}
data:
  sources:
    - {{name: leaves, kind: leaves}}
  frames: 2
  size: 8
  train_sequences: 4000
  val_sequences: 4
tokenizer: {{patch: 4, codes: 16, fit_frames: 50}}
train: {{batch: 4, warmup_steps: 2, schedule: cosine}}
ladder:
  sizes: [t16, t24, t32, t48, t64]
  budgets_macs: [2e9, 8e9, 3.2e10, 1.28e11]
  seeds: {seeds}
  log2_lr: -6
launch: {{parallel: 2, threads: 1}}
"""
COMMANDS = {
    "plan": ["plan", "--no-measure"],
    "status": ["status"],
    "fit": ["fit"],
    "report": ["report"],
    "sync": ["sync"],
    "doctor": ["doctor"],
}


def make(folder: Path, runs: int) -> tuple[int, Path]:
    """A finished study of this many runs below a folder; the one that is there, if it is whole."""
    import torch

    from scaling.config.schedule import evaluation_steps
    from scaling.config.study_file import describe, load_study
    from scaling.data.shards import TokenData
    from scaling.plan.runs import ladder_runs, step_macs
    from scaling.results import dumps
    from scaling.study import pipeline
    from scaling.study.rates import record
    from scaling.study_folder import Study
    from scaling.training.ranks import Ranks
    from scaling.training.row import cost, identity

    study = Study(folder / f"load{runs}")
    if study.plan_json.is_file():
        return runs, study.folder
    study.folder.mkdir(parents=True, exist_ok=True)
    given = folder / f"load{runs}.yaml"
    given.write_text(STUDY.format(runs=runs, seeds=runs // 20))
    config = load_study(given)
    data = TokenData.open(pipeline.encode(config, study, print))
    planned, _ = ladder_runs(config, 2.0**-6, data.key, data.path)
    draw = random.Random(runs)
    same: dict[str, dict[str, Any]] = {}  # of the runs of a size
    for run in planned:
        there = study.run(run.run_id)
        there.path.mkdir(parents=True, exist_ok=True)
        there.config_yaml.write_text(run.to_yaml())
        macs = step_macs(run.model, run.batch)
        if run.model.name not in same:
            same[run.model.name] = identity(
                run, data, Ranks(0, 1, torch.device("cpu")), {"leaves": 1.0}
            )
        of_run = same[run.model.name] | {"run_id": run.run_id, "seed": run.seed}
        luck = draw.gauss(1, 0.002)
        rows, lines = [], []
        last = run.budgets_steps[0]
        for step in sorted({*(s for s in evaluation_steps(run) if s < last), last}):
            tokens = step * run.batch * run.model.context
            loss = luck * (1.5 + 8 * of_run["params"] ** -0.3 + 20 * tokens**-0.35)
            end = step == last
            outcome = {"val_loss/leaves": loss, "val_loss": loss, "train_loss": loss}
            outcome |= {"decayed": end, "budget_macs": run.budgets_macs[0] if end else None}
            clock = {"seconds": step / 50, "mfu": None, "status": "finished"}
            rows.append(of_run | cost(run, data, step, macs) | clock | outcome)
            at = {"position": step, "step": step, "macs": step * macs}
            lines.append(at | {"train_loss": loss, "lr": run.lr, "seconds": step / 50})
            lines.append(at | {"val_loss": loss, "decayed": end})
        there.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        there.rows_json.write_text(dumps(rows))
    study.yaml.write_text(describe(config))
    record(study, planned)
    return runs, study.folder


def timed(command: list[str], of: Path) -> tuple[float, float, float]:
    """Seconds, of them the processor's, and GB of a command in a process of its own."""
    code = "import sys, scaling.cli; sys.argv[0] = 'scaling'; scaling.cli.main()"
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(of)}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=of,
        env=os.environ | threads,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status and command[0] != "doctor":  # whose runs have no checkpoint
        sys.exit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    scale = 1e9 if sys.platform == "darwin" else 1e6
    taken = used.ru_utime + used.ru_stime
    return time.perf_counter() - begin, taken, used.ru_maxrss / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[5000, 10000])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--out", type=Path, help="keep the studies here; default: a temporary one")
    parser.add_argument("--of", type=Path, default=Path(__file__).resolve().parent.parent)
    chosen = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.out or Path(temporary)).resolve()
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn) as apart:  # here its memory would count below
            studies = dict(apart.map(partial(make, folder), sorted(chosen.runs)))
        for name in chosen.commands:
            spent = []
            for runs, study in studies.items():
                for made in (study / "report.html", *study.glob("mlflow.*")):
                    made.unlink(missing_ok=True)  # else there is nothing to do
                wall, taken, memory = timed([*COMMANDS[name], str(study)], chosen.of.resolve())
                spent.append(taken)
                print(
                    f"{name:8}{runs:8,} runs {wall:8.2f} s, {taken:8.2f} of the processor, "
                    f"{memory:6.2f} GB",
                    flush=True,
                )
            if len(spent) > 1:
                print(f"{'':8}{spent[-1] / spent[0]:.2f} times", flush=True)


if __name__ == "__main__":
    main()
