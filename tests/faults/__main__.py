"""Fault campaign: studies under fire, and then the question whether anything shows.

    python -m tests.faults --out /tmp/faults --minutes 60          # local and, with `sbatch`, Slurm
    python -m tests.faults --out /tmp/faults --studies 20 --faults 40 --seed 7

Every study has a twin that is let be. Faults are injected at random moments, one to six at once,
the same command is repeated until it ends by itself, and the two tables must be equal to the last
digit (but for clocks), no finished run may have been touched again, and no process or cluster job
may be left. Kinds of study take turns: a grid; one that is asked for one budget after the other
under fire and must end as the twin that was asked for all at once; a ladder that places its own
runs; the encoding of tokens; probes.

A line for each study is appended to OUT/faults.jsonl, and a further call goes on after its last,
so that a campaign takes as many calls as it likes; the tables printed in the end are of all of
them. Exits with 1 if anything was lost; the folder of such a study is kept.

The faults are real: signals, truncated and overwritten files, removed locks, a full tmpfs (needs
root), an absent MLflow, and on a cluster made by a start script (SLURM_UP, default
../shared/slurm/slurm-up, run again to mend it) killed daemons, nodes set down, preemption and a
time limit of one minute, which the longest run exceeds. The clocks of two nodes are an hour off (as
Python sees them there), and file times move.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tests.faults.kinds import WRITING, live_jobs, possible, requeues
from tests.faults.study import BUDGETS, PHOTOS, Study, Watch

LOCAL = ("encode", "probe", "grid", "encode", "probe", "placed", "encode", "probe", "grows")
SLURM = ("placed", "grid", "grows")
TWINS = 2  # seeds of a kind: its studies share their twins
NAME = "fire"


@contextlib.contextmanager
def small_disk(out: Path) -> Iterator[None]:
    """A file system of 300 MB below the study, where that may be mounted."""
    out.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(out)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(out)], check=True)


def under_fire(s: Study, faults: int, pause: tuple[float, float]) -> None:
    """Inject faults until there were enough or the study ended by itself."""
    kinds = possible(s)
    s.start()
    assert s.driver is not None
    while sum(s.injected.values()) < faults:
        end = time.monotonic() + s.rng.uniform(*pause)
        while time.monotonic() < end:
            s.mend()
            time.sleep(0.1)
        code = s.driver.poll()
        if code == 0 and not s.detached:
            if s.kind != "grows" or s.asked == len(BUDGETS):
                return
            s.asked += 1
        if code is not None:
            s.start()
            continue
        for fault in s.rng.sample(kinds, min(len(kinds), s.rng.choice((1, 2, 3, 4, 6)))):
            if (s.out / "filler").exists() and fault in WRITING:  # the disk is full for these too
                continue
            if fault(s):
                s.injected[fault.__name__] += 1


def campaign(s: Study, twin: Study, faults: int, pause: tuple[float, float]) -> dict[str, Any]:
    """One study's whole story, as it is recorded."""
    lost = s.lost
    expected_code = undisturbed(twin)
    prepare(s)
    with Watch(s) as watch:
        under_fire(s, faults, pause)
        s.mend(everything=True)
        s.asked = len(BUDGETS)
        warned = requeues(s)
        assert s.driver is not None
        s.driver.wait()
        while s.slurm and live_jobs(s):  # of a driver that detached, or gave up on another run
            time.sleep(1)
        if s.slurm:  # from here on nothing but the limit interrupts a run
            s.injected["time_limit"] += requeues(s) - warned
        if s.kind not in ("encode", "probe"):
            s.finish("--set", "tracking.uri=http://127.0.0.1:9")
            s.injected["mlflow_down"] += 1
        for _ in range(10):
            if (code := s.finish()) == expected_code:
                break
        else:
            lost.append(f"the command still ends with {code}, undisturbed with {expected_code}")
    try:
        (table, bytes_of), (expected, bytes_expected) = s.outcome(), twin.outcome()
        pd.testing.assert_frame_equal(table, expected, check_exact=True)
        if bytes_of != bytes_expected:
            differ = {n for n, _ in bytes_of.items() ^ bytes_expected.items()}
            lost.append(f"other bytes: {', '.join(sorted(differ))}")
    except (AssertionError, ValueError) as error:
        lost.append(f"another table: {str(error)[:400]}")
    lost += [f"run {name} was written again after its end" for name in watch.touched]
    end = time.monotonic() + 40
    while (left := s.processes()) and time.monotonic() < end:
        time.sleep(0.5)
    lost += [f"process {pid} is left" for pid in left]
    if s.slurm:
        lost += [f"job {job} is left" for job in live_jobs(s)]
    return {
        "kind": s.kind,
        "cluster": "slurm" if s.slurm else "local",
        "seed": s.seed,
        "faults": dict(s.injected.most_common()),
        "sessions": s.sessions,
        "runs": len(watch.finished),
        "steps": watch.trained,
        "steps_again": watch.repeated,
        "lost": lost,
    }


def undisturbed(twin: Study) -> int:
    """The exit code of the study that is let be; it is made once for all of its kind and seed."""
    done = twin.out / "exit_code"
    if not done.exists():
        shutil.rmtree(twin.out, ignore_errors=True)  # what a campaign that was killed has left
        prepare(twin)
        done.write_text(str(twin.finish()))
    return int(done.read_text())


def prepare(s: Study) -> None:
    """What is probed: the models of a grid, and photos bright above, bright below or striped."""
    if s.kind != "probe":
        return
    out = s.out.parent
    models = Study(out / f"undisturbed-grid-{s.seed}", NAME, "grid", s.seed, False, False, s.rng)
    undisturbed(models)
    shutil.copytree(models.folder, s.folder)
    rng = np.random.default_rng(0)
    for name in ("above", "below", "striped"):
        folder = out / "photos" / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        for i in range(PHOTOS):
            grey = np.full((16, 16, 3), 60.0)
            if name == "striped":
                grey[:, ::4] = 200
            else:
                grey[: 8 if name == "above" else 16][-8:] = 200
            noisy = np.clip(grey + rng.normal(0, 15, grey.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{i}.png")


def one_study(out: Path, number: int, chosen: argparse.Namespace, slurm: bool) -> dict[str, Any]:
    rng = random.Random(f"{chosen.seed} {number}")
    order = SLURM if slurm else LOCAL
    kind = order[number % len(order)]
    seed = number // len(order) % TWINS
    long = slurm and kind != "placed"
    where = out / f"study{number}"
    shutil.rmtree(where, ignore_errors=True)  # of a campaign that was killed
    where.with_name(f"{where.name}.log").unlink(missing_ok=True)
    # Nodes in name spaces of their own would not see a disk that is mounted here.
    disk = small_disk(where) if number % 3 == 0 and not slurm else contextlib.nullcontext()
    study = Study(where, NAME, kind, seed, slurm, long, rng, 1 if kind == "grows" else len(BUDGETS))
    calm = "grid" if kind == "grows" else kind
    twin_out = out / f"undisturbed-{calm}-{seed}{'-long' if long else ''}"
    twin = Study(twin_out, NAME, calm, seed, False, long, rng)
    begin = time.monotonic()
    with disk:
        story = campaign(study, twin, chosen.faults, tuple(chosen.pause))
        if story["lost"] and os.path.ismount(where):
            shutil.copytree(where, where.with_name(f"{where.name}-lost"))
    if not story["lost"]:
        shutil.rmtree(where)
        where.with_name(f"{where.name}.log").unlink()
    minutes = (time.monotonic() - begin) / 60
    return {"number": number, "campaign_seed": chosen.seed, **story, "minutes": round(minutes, 1)}


def summary(stories: list[dict[str, Any]]) -> str:
    """Of all calls: a line for each kind of study, and one for each kind of fault."""
    lines = []
    for kind in dict.fromkeys((one["kind"], one["cluster"]) for one in stories):
        these = [one for one in stories if (one["kind"], one["cluster"]) == kind]
        steps, again = (sum(one[key] for one in these) for key in ("steps", "steps_again"))
        lines.append(
            f"{kind[0]}, {kind[1]}: {len(these)} studies, "
            f"{sum(sum(one['faults'].values()) for one in these)} faults in "
            f"{sum(one['sessions'] for one in these)} sessions, "
            f"{sum(not one['lost'] for one in these)} the same"
            + (f", {100 * again / steps:.1f}% of {steps} steps done again" if steps else "")
        )
    total: Counter[str] = Counter()
    for one in stories:
        total.update(one["faults"])
    lines += [f"  {count:4d} {name.replace('_', ' ')}" for name, count in total.most_common()]
    whole = sum(not one["lost"] for one in stories)
    lines.append(f"{sum(total.values())} faults, {whole} of {len(stories)} studies ended the same")
    lines += [f"LOST study {one['number']}: {what}" for one in stories for what in one["lost"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder, on a shared disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", type=int, default=8, help="at most so many in this call")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no study after these")
    parser.add_argument("--faults", type=int, default=40, help="about so many a study")
    parser.add_argument("--cluster", choices=["local", "slurm", "both"], default="both")
    parser.add_argument("--pause", type=float, nargs=2, default=(1.0, 6.0), help="seconds between")
    chosen = parser.parse_args()
    # A shell's background job ignores Ctrl-C, and so would the studies.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with_slurm = chosen.cluster != "local" and shutil.which("sbatch") is not None
    if chosen.cluster == "slurm" and not with_slurm:
        sys.exit("no `sbatch` on this machine")
    if chosen.cluster == "both" and not with_slurm:
        print("no Slurm here: local faults only")
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record = out / "faults.jsonl"
    stories = [json.loads(x) for x in record.read_text().splitlines()] if record.exists() else []
    begin, lost = time.monotonic(), 0
    for _ in range(chosen.studies):
        if time.monotonic() - begin > 60 * chosen.minutes:
            break
        number = 1 + max((one["number"] for one in stories), default=-1)
        slurm = with_slurm and (chosen.cluster == "slurm" or number % 2 == 1)
        story = one_study(out, number, chosen, slurm)
        stories.append(story)
        with open(record, "a") as file:
            file.write(json.dumps(story) + "\n")
        print(json.dumps(story), flush=True)
        lost += bool(story["lost"])
    print(summary(stories))
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
