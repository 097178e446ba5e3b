"""Whole studies on file systems without a common `flock`: two hosts, one table."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from scaling.results import NOT_REPEATABLE
from tests.shell import HANGS

pytestmark = pytest.mark.slow  # whole studies, and the patience that a dead host is given
STUDY = """\
study: s
data:
  sources:
    - {name: leaves, kind: leaves}
  frames: 2
  size: 8
  train_sequences: 64
  val_sequences: 4
tokenizer: {patch: 4, codes: 16, fit_frames: 50}
train: {batch: 4, warmup_steps: 2, checkpoint_seconds: 0.2}
ladder:
  sizes: [t16, t24]
  budgets_macs: [1e8, 2e8, 4e8]
  log2_lr: -6
launch: {parallel: 2, threads: 1}
fit: {resamples: 200}
"""
# Read by every Python of a "host": the driver, its worker and its runs.
HOST = """
import errno, fcntl, os, socket
kind, host = os.environ["FLOCK"], os.environ["HOST"]
if kind != "shared":
    def flock(file, how):
        if kind != "local":  # that of this host alone always succeeds
            raise OSError(getattr(errno, kind), "no locks")
    fcntl.flock = flock
socket.gethostname = lambda: host
# A dead host is given a third of the time that it has: the study waits it out more than once.
import scaling.storage.files as files
files.BEAT_SECONDS, files.PATIENCE_SECONDS = 2.0, 15.0
readlink = os.readlink
os.readlink = lambda p, **kw: host if str(p) == "/proc/self/ns/pid" else readlink(p, **kw)
"""


def start(folder: Path, kind: str, host: str) -> subprocess.Popen[str]:
    shim = folder / "shim"
    shim.mkdir(exist_ok=True)
    (shim / "sitecustomize.py").write_text(HOST)
    (folder / "s.yaml").write_text(STUDY)
    path = os.pathsep.join([str(shim), str(Path(__file__).parent.parent)])
    return subprocess.Popen(
        [sys.executable, "-m", "scaling.cli", "study", "s.yaml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "FLOCK": kind, "HOST": host, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table(folder: Path) -> pd.DataFrame:
    rows = pd.read_csv(folder / "studies" / "s" / "rows.csv")
    return rows.drop(columns=[*NOT_REPEATABLE, "git_sha"], errors="ignore")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("undisturbed")
    alone = start(folder, "shared", "n1")
    said, _ = alone.communicate(timeout=HANGS)
    assert alone.returncode == 0, said
    return table(folder)


@pytest.mark.parametrize("kind", ["ENOSYS", "local"])  # each errno: tests/scaling/test_files.py
def test_two_hosts_one_table(tmp_path: Path, kind: str, undisturbed: pd.DataFrame) -> None:
    """The second driver ends in a sentence; when the first is killed the next one goes on."""
    lock = tmp_path / "studies" / "s" / "driver.lock"
    first = start(tmp_path, kind, "n1")
    while not lock.exists() or not lock.read_text():
        assert first.poll() is None
        time.sleep(0.05)
    second = start(tmp_path, kind, "n2")
    said, _ = second.communicate(timeout=HANGS)
    if first.poll() is None:
        assert second.returncode == 2 and "Traceback" not in said
        assert f"in use by process {first.pid} on n1. One driver works on a study" in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(tmp_path, kind, "n2")
    said, _ = third.communicate(timeout=HANGS)
    assert third.returncode == 0 and "Traceback" not in said, said
    pd.testing.assert_frame_equal(table(tmp_path), undisturbed)
