"""`kill -9` at random moments of a study, then the same command: the same table to the last digit,
no run done twice, no process left behind. (Thousands of them: tests/faults.py.)"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests import warm
from tests.shell import changed
from tests.test_study import command, no_process_left, table, undisturbed  # noqa: F401
from tests.warm import Warm


def test_kills_at_random_moments(
    undisturbed: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`kill -9` of the driver, of a job or of all; then the same command.

    A moment is a number of files written since the start, whatever the machine's speed.
    """
    system = tmp_path / "t"
    system.mkdir()
    monkeypatch.setenv("TMPDIR", str(system))
    words = command(tmp_path)[3:]
    draw = random.Random(0)
    killed = 0
    for kill in range(4):
        driver = Warm(warm.command, *words, said=tmp_path / "said")
        killed += changed(driver, tmp_path, draw.randint(1, 25))
        if kill % 2 and (jobs := descendants(driver.pid)):
            os.kill(draw.choice(jobs), signal.SIGKILL)
            time.sleep(draw.uniform(0, 2))
        everyone = descendants(driver.pid) if kill % 2 == 0 else []
        driver.kill()
        for job in everyone:  # so that none is left to clean up behind the driver
            with contextlib.suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL)
        driver.wait()
        no_process_left(tmp_path)
    assert killed
    last = Warm(warm.command, *words, said=tmp_path / "said")  # not here: it reads TMPDIR
    assert last.wait() == 0, last.said.read_text()
    assert not list(system.glob("scaling-*")) and not list((tmp_path / "tiny" / "jobs").glob("*"))
    assert not list((tmp_path / "tiny").rglob(".*.tmp"))
    pd.testing.assert_frame_equal(table(tmp_path), undisturbed, check_exact=True)
    trained = [p for p in (tmp_path / "tiny" / "runs").iterdir() if (p / "rows.json").exists()]
    assert {p.name for p in trained} == set(table(tmp_path).run_id)
    for run_dir in trained:  # no step is logged twice: nothing was trained past its last state
        positions = [
            line.split('"position": ')[1].split(",")[0]
            for line in (run_dir / "metrics.jsonl").read_text().splitlines()
            if '"train_loss"' in line
        ]
        assert len(positions) == len(set(positions))
    no_process_left(tmp_path)


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found += (more := children.get(queue.pop(), []))
        queue += more
    return found
