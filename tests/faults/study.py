"""One study under fire, and what is watched of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import pandas as pd

from scaling.results import NOT_REPEATABLE
from scaling.storage import files
from scaling.tracking.load import load

STUDY = """\
study: {name}
seed: {seed}
data:
  frames: 2
  size: 8
  stride: 1
  train_sequences: {sequences}
  val_sequences: 64
  sources:
    - {{name: leaves, kind: leaves}}
tokenizer: {{patch: 4, codes: 16, fit_frames: 200}}
model: {{base_width: 32}}
train: {{batch: 4, warmup_steps: {warmup}, evals: 3, checkpoint_seconds: 0.2}}
fit: {{resamples: 200}}
"""
GRID = """\
lr: {widths: [16, 32], layers: 2, heads: 2, log2_min: -8, log2_max: -5, steps: 40}
ladder:
  sizes: [t16, t24, t32]
  budgets_macs: [1e8]
  tokens_per_param: [1e-3, 86.5]
"""
PLACED = """\
ladder: {macs: 4e9, first_macs: 3e7, sizes: [t16, t24, t32], log2_lr: -6}
"""
BUDGETS = ("1e8", "1.5e8", "2e8", "4e8", "8e8")
LONG = "2e10"  # by tokens_per_param for t32 alone: minutes, under a limit of one
GOES_ON = ("grows", "placed")  # whose runs go on after their end
PHOTOS = 60  # of each of three classes that are probed
PROLOG = """\
#!/bin/sh
case $SLURMD_NODENAME in
node2) echo export CLOCK_SHIFT=3600 ;;
node3) echo export CLOCK_SHIFT=-3600 ;;
*) exit ;;
esac
echo export PYTHONPATH={folder}:$PYTHONPATH
"""
SHIFT = """\
import os, time

shift, now, now_ns = int(os.environ["CLOCK_SHIFT"]), time.time, time.time_ns
time.time = lambda: now() + shift
time.time_ns = lambda: now_ns() + shift * 10**9
print("the clock here is", shift, "s off", flush=True)
"""


def _bytes(folder: Path, pattern: str) -> dict[str, bytes]:
    """Digest by name of the files."""
    found = sorted(folder.glob(pattern))
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).digest() for p in found}


@dataclass
class Study:
    """One study under fire."""

    out: Path
    name: str
    kind: str  # grid | grows: asked for more and more of its budgets | placed | encode | probe
    seed: int
    slurm: bool
    long: bool  # one run outlasts Slurm's time limit
    rng: random.Random
    asked: int = len(BUDGETS)  # so many of BUDGETS
    harmed: set[str] = field(default_factory=set)  # runs whose points were damaged
    driver: subprocess.Popen[bytes] | None = None
    detached: bool = False  # the last session left its jobs to Slurm
    injected: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    lost: list[str] = field(default_factory=list)
    undo: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def command(self, *more: str) -> list[str]:
        call = [sys.executable, "-m", "scaling.cli"]
        if self.kind == "probe":
            probed = ["--data", str(self.out.parent / "photos"), "--seeds", "4"]
            return [*call, "probe", str(self.folder), *probed]
        yaml = self.out / f"{self.name}.yaml"
        if not yaml.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            files.write(yaml, self.config())
        word = "encode" if self.kind == "encode" else "study"
        where = ["--out", str(self.out), "--set", "launch.threads=1"]
        if self.kind in ("grid", "grows"):
            budgets = [*BUDGETS[: self.asked], *([LONG] if self.long else [])]
            where += ["--set", f"ladder.budgets_macs=[{', '.join(budgets)}]"]
        if self.slurm:
            where += ["--set", "launch.cluster=slurm", "--set", "launch.timeout_min=1"]
            where += ["--set", "launch.partition=low", "--set", "launch.parallel=4"]
        return [*call, word, str(yaml), *where, *more]

    def config(self) -> str:
        # A placed ladder goes by small budgets, and a warm-up is to be a small part of each.
        warmup = 4 if self.kind == "placed" else 10
        sequences = 60_000 if self.kind == "encode" else 2048
        text = STUDY.format(name=self.name, seed=self.seed, warmup=warmup, sequences=sequences)
        return text + (PLACED if self.kind == "placed" else GRID)

    def start(self, *more: str) -> None:
        self.sessions += 1
        self.detached = "--detach" in more
        command = self.command(*more)
        log = open(f"{self.out}.log", "a")  # noqa: SIM115  # the driver's own
        print(f"--- session {self.sessions} {' '.join(more)}", file=log, flush=True)
        self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())
        log.close()

    def finish(self, *more: str) -> int:
        """A whole session; its exit code."""
        self.start(*more)
        assert self.driver is not None
        return self.driver.wait()

    def environment(self) -> dict[str, str]:
        """With it the nodes' clocks disagree: srun asks a script of Slurm's own kind."""
        if not self.slurm:
            return dict(os.environ)
        folder = self.out / "clocks"
        script = folder / "prolog.sh"
        if not script.exists():
            folder.mkdir()
            (folder / "sitecustomize.py").write_text(SHIFT)
            script.write_text(PROLOG.format(folder=folder))
            script.chmod(0o755)
            self.injected["clocks_disagree"] += 1
        return os.environ | {"SLURM_TASK_PROLOG": str(script)}

    def outcome(self) -> tuple[pd.DataFrame, dict[str, bytes]]:
        """What a study ends in: its table without its clocks, and files that must be the same to
        the last byte."""
        if self.kind == "encode":
            return pd.DataFrame(), _bytes(self.folder / "data", "*/*")
        if self.kind == "probe":
            probed = _bytes(self.folder / "probes", "*/*-*-*.json")
            return pd.DataFrame(), probed | _bytes(self.folder, "probes.csv")
        rows = load(self.folder)
        table = rows.drop(columns=[*NOT_REPEATABLE, "git_sha", "study"])
        return table, _bytes(self.folder, "design.json")

    def runs(self) -> list[Path]:
        found = (self.folder / "runs").glob("*/config.yaml")
        return sorted(p.parent for p in found if not (p.parent / "rows.json").exists())

    def training(self) -> list[tuple[Path, int]]:
        """Runs at work, with their processes (the cluster's nodes are this machine)."""
        found = []
        for run_dir in self.runs():
            with contextlib.suppress(OSError, ValueError):
                pid = int(json.loads((run_dir / "lock").read_text())["pid"])
                if Path(f"/proc/{pid}").exists():
                    found.append((run_dir, pid))
        return found

    def processes(self) -> list[int]:
        """Everything at work below this study's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().decode(errors="replace")
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    words = [w for w in line.split("\0") if f"{self.out}/" in f"{w}/"]
                    if words and "tests.faults" not in line and state != "Z":
                        found.append(int(entry.name))
        return found

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        self.undo.append((time.monotonic() + seconds, call))

    def mend(self, everything: bool = False) -> None:
        due = [c for at, c in self.undo if everything or at <= time.monotonic()]
        self.undo = [(at, c) for at, c in self.undo if c not in due]
        for call in due:
            call()


class Watch:
    """Follows every run's position: what is trained again, and that finished runs stay as they are.

    Positions come every ten steps and are read several times a second, so repeated work is known to
    about that much. Neither is told of a study whose runs go on after their end (one that grows,
    one that places its runs) and of a run whose points were damaged.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.position: dict[str, int] = {}
        self.trained = self.repeated = 0
        self.finished: dict[str, tuple[int, int]] = {}
        self.touched: list[str] = []
        self._stop = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._stop.wait(0.15):
            self._look()

    def _look(self) -> None:
        for run_dir in (self.study.folder / "runs").glob("*"):
            own = self.study.kind not in GOES_ON and run_dir.name not in self.study.harmed
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(run_dir / "metrics.jsonl", "rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
                    last = file.read().splitlines()[-1]
                now = int(json.loads(last)["position"])
                before = self.position.get(run_dir.name, 0)
                if own:
                    self.trained += max(0, now - before)
                    self.repeated += max(0, before - now)
                self.position[run_dir.name] = now
            with contextlib.suppress(OSError):
                stat = (run_dir / "rows.json").stat()
                seen = self.finished.setdefault(run_dir.name, (stat.st_ino, stat.st_size))
                if own and seen != (stat.st_ino, stat.st_size):
                    self.touched.append(run_dir.name)
