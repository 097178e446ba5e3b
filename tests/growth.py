"""Growth campaign: studies that are asked for their budgets, sizes and seeds in random orders, and
killed on the way.

    python -m tests.growth --out /tmp/growth --orders 20 --seed 0

One study is planned whole from the start. Each order asks another folder for some of it, again and
again, kills the driver and its jobs in about half of the calls, and at last asks for all: the two
tables must be equal to the last digit (but for clocks). Whatever a call that ended made is part of
the whole study's table as well. Prints how much was killed; exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scaling.results import NOT_REPEATABLE
from scaling.tracking.load import load
from tests.shell import changed
from tests.test_kills import descendants

STUDY = """\
study: grows
data:
  frames: 2
  size: 16
  stride: 1
  train_sequences: 512
  val_sequences: 16
  sources:
    - {name: leaves, kind: leaves}
tokenizer: {patch: 4, codes: 64, fit_frames: 200}
model: {base_width: 32}
train: {batch: 4, warmup_steps: 4, evals: 6, checkpoint_seconds: 0.2, precision: fp32}
ladder: {sizes: [t16], budgets_macs: [1e8], log2_lr: -6}
launch: {parallel: 2, threads: 1}
fit: {resamples: 200}
"""
SIZES = ("t16", "t24")
BUDGETS = ("1e8", "1.5e8", "2e8", "4e8", "8e8")  # each serves each size
SEEDS = 2
KEY = ["size", "seed", "steps", "decayed"]


def command(out: Path, sizes: Sequence[str], budgets: Sequence[str], seeds: int) -> list[str]:
    yaml = out / "grows.yaml"
    if not yaml.exists():
        out.mkdir(parents=True)
        yaml.write_text(STUDY)
    asked = {"sizes": f"[{', '.join(sizes)}]", "budgets_macs": f"[{', '.join(budgets)}]"}
    call = [sys.executable, "-m", "scaling.cli", "study", str(yaml), "--out", str(out)]
    for name, value in (asked | {"seeds": str(seeds)}).items():
        call += ["--set", f"ladder.{name}={value}"]
    return call


def finish(out: Path, *asked: object) -> pd.DataFrame:
    """The table of a study that was let end."""
    done = subprocess.run(command(out, *asked), capture_output=True, text=True, check=False)  # type: ignore[arg-type]
    if done.returncode:
        sys.exit(f"{out}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return load(out / "grows").drop(columns=[*NOT_REPEATABLE, "git_sha"])


def kill(out: Path, draw: random.Random, *asked: object) -> bool:
    """Begin, and kill the driver and all its jobs after some files were written."""
    driver = subprocess.Popen(
        command(out, *asked),  # type: ignore[arg-type]
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    killed = changed(driver, out, draw.randint(1, 40))
    for process in [driver.pid, *descendants(driver.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    driver.wait()
    return killed


def differs(part: pd.DataFrame, whole: pd.DataFrame, points: int) -> str:
    """How a part's table differs from the whole study's rows of it; '' where it does not."""
    if (found := int(part.decayed.sum())) != points:
        return f"{found} decayed points, not {points}"
    same = part[KEY].merge(whole, on=KEY, how="left")[list(part.columns)]
    try:
        pd.testing.assert_frame_equal(part, same, check_exact=True, check_dtype=False)
    except AssertionError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    out, begin = chosen.out.resolve(), time.monotonic()
    whole = finish(out / "planned", SIZES, BUDGETS, SEEDS)
    lost, kills, calls = [], 0, 0
    for number in range(chosen.orders):
        draw = random.Random(chosen.seed * 1000 + number)
        there = out / f"order{number}"
        for _ in range(draw.randint(2, 4)):
            sizes = sorted(draw.sample(SIZES, draw.randint(1, len(SIZES))))
            budgets = sorted(draw.sample(BUDGETS, draw.randint(1, 3)), key=float)
            seeds = draw.randint(1, SEEDS)
            calls += 1
            if draw.random() < 0.5:
                kills += kill(there, draw, sizes, budgets, seeds)
                continue
            part = finish(there, sizes, budgets, seeds)
            if wrong := differs(part, whole, len(sizes) * len(budgets) * seeds):
                lost.append(f"order {number}, {sizes} {budgets} {seeds}: {wrong}")
        table = finish(there, SIZES, BUDGETS, SEEDS)
        try:
            pd.testing.assert_frame_equal(table, whole, check_exact=True)
        except AssertionError as error:
            lost.append(f"order {number}: {error}")
        print(f"order {number}: {len(lost)} tables differ so far, {kills} kills", flush=True)
    minutes = (time.monotonic() - begin) / 60
    print(f"seed {chosen.seed}, {chosen.orders} orders, {calls} calls, {kills} of them killed, ")
    print(f"{minutes:.0f} minutes: {len(lost)} tables differ")
    for line in lost:
        print(f"LOST {line}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
