"""What launching and reading cost: runs that do nothing, and a table of many rows.

    python benchmarks/overhead.py [--runs 200] [--rows 2000]

Local runs always; Slurm too where `sbatch` reaches a cluster. A run here is a function that returns
at once, so all of its wall time is overhead: of the driver, its worker processes, and Slurm's. The
driver's memory is read after a quarter of the runs and after all of them. Peak memory says nothing
of a leak; what is resident does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from scaling.config.schema import LaunchConfig
from scaling.jobs.job import Job
from scaling.jobs.launch import Launcher
from scaling.results import COLUMNS, dumps
from scaling.tracking.load import load

PER_RUN = 8  # rows of one run, about as many as the quickstart's


def nothing(run: object, run_dir: Path) -> None:
    """The job: it leaves no more than its directory."""
    run_dir.mkdir(parents=True, exist_ok=True)


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def launch(folder: Path, config: LaunchConfig, runs: int) -> str:
    """Seconds a run, the first start included, and the driver's memory."""
    jobs = [Job[object](k, folder / "runs" / f"{k:04d}") for k in range(runs)]
    early = 0.0
    begin = time.perf_counter()
    with Launcher(config, folder / "jobs", nothing) as launcher:
        for done, finished in enumerate(launcher.map(jobs), 1):
            assert finished.error is None, finished.error
            if done == runs // 4:
                early = resident_mb()
        took = time.perf_counter() - begin
        late = resident_mb()
    return (
        f"{runs} runs in {took:.1f} s: {took / runs:.3f} s a run; driver {early:.1f} MB after "
        f"{runs // 4} runs, {late:.1f} MB after {runs}"
    )


def read(folder: Path, rows: int) -> str:
    """Seconds to load a study's rows from its run directories."""
    example = {"str": "x", "int": 7, "float": 0.1, "bool": True}
    row = {column: example[kind] for column, kind in COLUMNS.items()}
    for k in range(rows // PER_RUN):
        run_dir = folder / "runs" / f"{k:012x}"
        run_dir.mkdir(parents=True)
        of_run = [row | {"run_id": run_dir.name, "steps": s} for s in range(PER_RUN)]
        (run_dir / "rows.json").write_text(dumps(of_run))
    import pandas as pd  # noqa: F401  # once a process, whatever the number of rows

    begin = time.perf_counter()
    table = load(folder)
    took = time.perf_counter() - begin
    assert len(table) == rows
    return f"{rows} rows of {rows // PER_RUN} runs loaded in {took:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2000)
    chosen = parser.parse_args()
    clusters = {"local": LaunchConfig(threads=1)}
    if shutil.which("sbatch"):
        clusters["slurm"] = LaunchConfig(cluster="slurm", threads=1, parallel=16)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, config in clusters.items():
            print(f"{name:6} {launch(folder / name, config, chosen.runs)}", flush=True)
        print(f"{'rows':6} {read(folder / 'rows', chosen.rows)}")


if __name__ == "__main__":
    main()
