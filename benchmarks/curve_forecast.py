"""The forecast of running runs: how often a final loss lies inside its 95% interval.

    python benchmarks/curve_forecast.py [--studies 50] [STUDY]

Simulated studies of 20 runs (tests/analysis/test_forecast.py): half of each run is carried to its
end, with the errors of the other 19 for the interval. With a study's folder: its own finished
runs, each with the errors of the others of its role.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from scaling.analysis.laws.forecast import FEWEST_ERRORS, calibrated, forecast
from scaling.study.forecasts import curve_of, errors_of
from scaling.study_folder import Study
from tests.analysis.test_forecast import inside_and_width, study

SHARES = (0.3, 0.5, 0.7, 0.9)


def of_folder(folder: Path) -> None:
    """What the finished runs of a study say, at several shares of each."""
    whole = Study.open(folder)
    roles: dict[str, list[str]] = {}
    for entry in whole.plan().runs:
        roles.setdefault(entry["role"], []).append(entry["run_id"])
    for share in SHARES:
        inside, widths, short = [], [], 0
        for ids in roles.values():
            for run_id in ids:
                folder_ = whole.run(run_id)
                run = folder_.config()
                curve, final = curve_of(folder_, run, share)
                said = forecast(curve, run.budgets_steps[-1])
                errors = errors_of([whole.run(i) for i in ids if i != run_id], share)
                if said is None or math.isnan(final) or len(errors) < FEWEST_ERRORS:
                    short += 1
                    continue
                told = calibrated(said, errors)
                inside.append(told.low <= final <= told.high)
                widths.append((told.high - told.low) / told.loss)
        width = f"median width {np.median(widths):.1%}" if widths else "no width"
        print(f"at {share:.0%}: inside {sum(inside)} of {len(inside)}, {width}, not told {short}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", nargs="?", type=Path)
    parser.add_argument("--studies", type=int, default=50)
    given = parser.parse_args()
    if given.study is not None:
        of_folder(given.study)
        return
    inside: list[bool] = []
    widths: list[float] = []
    for seed in range(given.studies):
        one, width = inside_and_width(study(seed))
        inside += one
        widths += width
    print(
        f"{len(inside)} curves: {np.mean(inside):.1%} inside, median width {np.median(widths):.2%}"
    )


if __name__ == "__main__":
    main()
