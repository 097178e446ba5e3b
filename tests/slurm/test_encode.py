"""Encoding as an array of jobs on a real cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.config.study_file import load_study
from scaling.jobs import squeue
from scaling.study.pipeline import encode
from scaling.study_folder import Study
from tests.data.test_encode import digest
from tests.shell import HANGS

pytestmark = pytest.mark.slurm

STUDY = """\
study: own
data:
  frames: 2
  size: 32
  stride: 1
  train_sequences: 6000
  val_sequences: 64
  sources: [{name: leaves, kind: leaves}]
tokenizer: {patch: 4, codes: 64, fit_frames: 64}
ladder: {sizes: [t16], budgets_macs: [1e9], log2_lr: -6}
launch: {cluster: slurm, parallel: 2, threads: 2}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(STUDY)
    return tmp_path


def reference(own: Path) -> dict[str, str]:
    config = load_study(own / "own.yaml", ["launch.cluster=debug"])
    return digest(encode(config, Study(own / "here"), lambda _: None))


def test_an_array_gives_the_bytes_of_one_process(own: Path) -> None:
    made = encode(load_study(own / "own.yaml"), Study(own), lambda _: None)
    assert digest(made) == reference(own)
    assert not (own / "encode").exists()
    told = subprocess.run(
        ["squeue", "-h", "-t", "all", "-o", "%C %k"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    cores = {line.split()[0] for line in told if str(own) in line}
    assert cores == {"1"}  # what decoding uses, whatever training asks for


def test_a_killed_driver_leaves_jobs_that_the_next_one_takes_over(own: Path) -> None:
    code = (
        "from pathlib import Path; from scaling.config.study_file import load_study\n"
        "from scaling.study.pipeline import encode; from scaling.study_folder import Study\n"
        f"encode(load_study(Path({str(own / 'own.yaml')!r})), Study(Path({str(own)!r})), print)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + HANGS
    while not squeue.entries(own / "jobs"):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    assert digest(encode(load_study(own / "own.yaml"), Study(own), lambda _: None)) == reference(
        own
    )
